"""Judges of other groups, held to modules of their packages' interfaces with tiny random weights:
what they are asked, what becomes of their answers, licences, and what is said where one is missing.

The interfaces are those of muq 0.1.0, audiobox-aesthetics 0.0.4, and the published scripts of
CLaMP 3 and SongEval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mudit_engine import availability
from mudit_engine.audio import save_audio
from mudit_engine.cli.main import run
from mudit_engine.errors import InputError, MissingError, ModelError
from mudit_engine.metrics import judges
from mudit_engine.metrics.clamp3 import Clamp3
from mudit_engine.metrics.judges import FIGURES, LICENCES, SongEvalHead, open_judge
from tiny_encoders import save_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
RATE, WIDTH = 16000, 16


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(2, round(seconds * rate), generator=generator)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for muq and audiobox_aesthetics. Returns what they were asked."""
    asked: dict[str, Any] = {}

    class Loaded(nn.Module):
        @classmethod
        def from_pretrained(cls, source: str) -> Any:
            if source == "nowhere":
                raise OSError("nowhere is no repository")
            torch.manual_seed(0)
            asked.setdefault("loaded", []).append((cls.__name__, source))
            return cls()

    class MuQMuLan(Loaded):
        sr = 24000

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(512, WIDTH)

        def forward(self, wavs: Any = None, texts: Any = None) -> Tensor:
            assert (wavs is None) != (texts is None) and not self.training
            if texts is not None:
                asked["texts"] = texts
                ids = [torch.tensor([ord(one) % 512 for one in text]) for text in texts]
                return torch.stack([self.words(one).mean(0) for one in ids])
            asked["wavs"] = wavs
            return wavs.unfold(1, WIDTH, WIDTH).mean(1)

        def calc_similarity(self, audio: Tensor, text: Tensor) -> Tensor:
            return audio @ text.T

    class MuQ(Loaded):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(8))

        def forward(self, x: Tensor, output_hidden_states: bool = False) -> dict[str, Any]:
            assert output_hidden_states and x.ndim == 2
            asked["muq"] = x
            states = [x.unfold(1, WIDTH, 960)]
            for layer in self.layers:
                states.append(layer(states[-1]).tanh())
            return {"hidden_states": states}

    class Predictor:
        def __init__(self, checkpoint: str | None) -> None:
            if checkpoint is not None and Path(checkpoint).read_bytes() != b"checkpoint":
                raise RuntimeError("invalid magic number")
            asked["checkpoint"] = checkpoint

        def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, float]]:
            asked["batch"] = batch
            level = [float(one["path"].abs().mean()) for one in batch]
            return [{"CE": 5 + v, "CU": 6 + v, "PC": 2 + v, "PQ": 7 + v} for v in level]

    muq, audiobox, infer = map(
        ModuleType, ("muq", "audiobox_aesthetics", "audiobox_aesthetics.infer")
    )
    muq.MuQ, muq.MuQMuLan = MuQ, MuQMuLan  # type: ignore[attr-defined]
    infer.initialize_predictor = lambda ckpt=None: Predictor(ckpt)  # type: ignore[attr-defined]
    for module in (muq, audiobox, infer):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(judges, "require", lambda *names: None)
    return asked


def test_muq_mulan_hears_at_its_own_rate(packages: dict[str, Any]) -> None:
    judge = open_judge("muq-mulan:OpenMuQ/MuQ-MuLan-large")
    assert packages["loaded"] == [("MuQMuLan", "OpenMuQ/MuQ-MuLan-large")]
    found = judge(noise(2), RATE, "慢歌，钢琴")
    assert packages["wavs"].shape == (1, 48000) and packages["texts"] == ["慢歌，钢琴"]
    assert list(found) == ["muq_mulan"] and np.isfinite(found["muq_mulan"])
    assert found != judge(noise(2), RATE, "rock"), "the description counts"
    assert found != judge(noise(2, seed=1), RATE, "慢歌，钢琴"), "and so does the song"
    assert judge(noise(2), RATE, "  ") == {}, "nothing was said"


def songeval_weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {
        **{
            f"attn.{n}.{name}": 0.3 * torch.randn(shape)
            for n in range(2)
            for name, shape in (
                ("in_proj_weight", (3 * WIDTH, WIDTH)),
                ("in_proj_bias", (3 * WIDTH,)),
                ("out_proj.weight", (WIDTH, WIDTH)),
                ("out_proj.bias", (WIDTH,)),
            )
        },
        "ffd.0.weight": torch.randn(24, WIDTH),
        "ffd.0.bias": torch.randn(24),
        "ffd.2.weight": 0.3 * torch.randn(WIDTH, 24),
        "ffd.2.bias": torch.randn(WIDTH),
        "fc.weight": 0.3 * torch.randn(5, 2 * WIDTH),
        "fc.bias": torch.randn(5),
    }


def by_hand(weights: dict[str, Tensor], x_TD: Tensor) -> Tensor:
    """The head written out: eight heads of attention without a residual."""
    w = {name: value.double() for name, value in weights.items()}
    h = (x_TD.double() @ w["ffd.0.weight"].T + w["ffd.0.bias"]).relu()
    h = heard = h @ w["ffd.2.weight"].T + w["ffd.2.bias"]
    for n in range(2):
        q, k, v = (heard @ w[f"attn.{n}.in_proj_weight"].T + w[f"attn.{n}.in_proj_bias"]).chunk(
            3, -1
        )
        outs = [
            (a @ b.T / a.shape[1] ** 0.5).softmax(-1) @ c
            for a, b, c in zip(q.chunk(8, -1), k.chunk(8, -1), v.chunk(8, -1), strict=True)
        ]
        heard = torch.cat(outs, -1) @ w[f"attn.{n}.out_proj.weight"].T
        heard = heard + w[f"attn.{n}.out_proj.bias"]
    both = torch.cat((heard.mean(0), h.max(0).values))
    return 3 + 2 * (both @ w["fc.weight"].T + w["fc.bias"]).tanh()


def test_songeval_marks_songs(packages: dict[str, Any], tmp_path: Path) -> None:
    weights = songeval_weights()
    x = torch.randn(1, 7, WIDTH)
    marks = SongEvalHead.of(weights)(x)[0]
    assert torch.allclose(marks.double(), by_hand(weights, x[0]), atol=1e-5)
    save_file(weights, tmp_path / "model.safetensors")
    judge = open_judge(f"songeval:{tmp_path / 'model.safetensors'},muq=MuQ-large")
    found = judge(noise(3), RATE, "")
    assert packages["loaded"] == [("MuQ", "MuQ-large")] and packages["muq"].shape == (1, 72000)
    assert tuple(found) == FIGURES["songeval"]
    assert all(1 <= mark <= 5 for mark in found.values()) and len(set(found.values())) == 5
    # the seventh of the hidden states, the first being the input
    model = sys.modules["muq"].MuQ.from_pretrained("MuQ-large")  # type: ignore[attr-defined]
    with torch.inference_mode():
        rows = model(packages["muq"], output_hidden_states=True)["hidden_states"][6][0]
        wanted = by_hand(weights, rows).tolist()
    assert list(found.values()) == pytest.approx(wanted, abs=1e-4)
    del weights["fc.bias"]
    with pytest.raises(ModelError, match="no weights of SongEval"):
        SongEvalHead.of(weights)
    with pytest.raises(ModelError, match="cannot be read"):
        open_judge(f"songeval:{tmp_path / 'none.safetensors'},muq=MuQ-large")


def test_audiobox_takes_a_tensor(packages: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"checkpoint")
    judge = open_judge(f"audiobox:{tmp_path / 'checkpoint.pt'}")
    found = judge(noise(1), RATE, "")
    [given] = packages["batch"]
    assert given["sample_rate"] == RATE and given["path"].shape == (2, RATE)
    assert tuple(found) == FIGURES["audiobox"]
    level = float(noise(1).abs().mean())
    assert list(found.values()) == pytest.approx([5 + level, 6 + level, 2 + level, 7 + level])
    open_judge("audiobox:facebook/audiobox-aesthetics")
    assert packages["checkpoint"] is None, "its package fetches it"
    with pytest.raises(ModelError, match="there is no file"):
        open_judge("audiobox:somebody/else")
    (tmp_path / "other.pt").write_bytes(b"other")
    with pytest.raises(ModelError, match="invalid magic number"):
        open_judge(f"audiobox:{tmp_path / 'other.pt'}")


# CLaMP 3


@pytest.fixture(scope="module")
def clamp_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny weights by the published names, an XLM-RoBERTa and a stand-in for MERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertModel,
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaModel,
    )

    root = tmp_path_factory.mktemp("clamp3")
    torch.manual_seed(1)
    words = {word: n for n, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", "slow", "piano"))}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", sep_token="</s>"
    ).save_pretrained(root / "text")
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 32}
    own = XLMRobertaConfig(
        vocab_size=6, num_attention_heads=2, max_position_embeddings=140, **shape
    )
    own.save_pretrained(root / "text")
    text = XLMRobertaModel(own)
    audio = BertModel(
        BertConfig(vocab_size=1, num_attention_heads=1, max_position_embeddings=8, **shape)
    )
    for tower in (text, audio):
        for parameter in tower.parameters():
            nn.init.normal_(parameter, std=0.3)
    weights = {
        **{f"text_model.{n}": v for n, v in text.state_dict().items()},
        **{f"audio_model.{n}": v for n, v in audio.state_dict().items()},
        "audio_model.embeddings.position_ids": torch.arange(8)[None],
        "symbolic_model.base.something": torch.zeros(2),
    }
    for name in ("text", "audio"):
        weights[f"{name}_proj.weight"] = torch.randn(12, WIDTH)
        weights[f"{name}_proj.bias"] = torch.randn(12)
    torch.save({"model": weights, "epoch": 3, "min_eval_loss": 0.1}, root / "weights.pth")
    save_encoder(root / "mert")
    return {"root": root, "weights": weights, "text": text.eval(), "audio": audio.eval()}


def opened(files: dict[str, Any]) -> Clamp3:
    root = files["root"]
    return Clamp3.load(root / "weights.pth", mert=str(root / "mert"), text=str(root / "text"))


def padded(tower: Any, given: Tensor, most: int, name: str) -> Tensor:
    """Mean of a tower over what is no padding, which it is given to its full length."""
    room = most - len(given)
    mask = torch.cat((torch.ones(len(given)), torch.zeros(room)))[None]
    if name == "text":
        whole = torch.cat((given, torch.ones(room, dtype=torch.long)))[None]
        out = tower(whole, attention_mask=mask).last_hidden_state
    else:
        whole = torch.cat((given, torch.zeros(room, given.shape[1])))[None]
        out = tower(inputs_embeds=whole, attention_mask=mask).last_hidden_state
    return (out * mask[..., None]).sum(1)[0] / mask.sum()


@torch.inference_mode()
def published(files: dict[str, Any], given: Tensor, most: int, name: str) -> Tensor:
    """Parts of the towers' lengths, the last reaching back, weighted by what each adds."""
    parts = [given[start : start + most] for start in range(0, len(given), most)]
    counts = torch.tensor([float(len(part)) for part in parts])
    parts[-1] = given[-most:]
    w = files["weights"]
    rows = torch.stack([padded(files[name], part, most, name) for part in parts])
    rows = rows @ w[f"{name}_proj.weight"].T + w[f"{name}_proj.bias"]
    return nn.functional.normalize((rows * counts[:, None]).sum(0) / counts.sum(), dim=0)


@pytest.mark.parametrize("words", [2, 126, 130, 300])
def test_clamp3_reads_texts_as_published(clamp_files: dict[str, Any], words: int) -> None:
    files = dict(clamp_files)
    ids = torch.tensor([0, *([4, 5] * 200)[:words], 2])
    found = opened(files).encode_text(" ".join((["slow", "piano"] * 200)[:words]))
    assert torch.allclose(found, published(files, ids, 128, "text"), atol=1e-5)


def test_clamp3_reads_each_line_once(clamp_files: dict[str, Any]) -> None:
    clamp = opened(clamp_files)
    assert torch.equal(
        clamp.encode_text("slow\n\npiano\nslow"), clamp.encode_text("slow </s> piano")
    )
    with pytest.raises(InputError, match="the text is empty"):
        clamp.encode_text(" \n")


@pytest.mark.parametrize("seconds", [3.0, 30.4, 62.0])
def test_clamp3_hears_songs_as_published(clamp_files: dict[str, Any], seconds: float) -> None:
    clamp, audio = opened(clamp_files), noise(seconds)
    wave = audio.mean(0)
    wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
    parts = [one for one in wave.split(5 * RATE) if len(one) >= RATE]
    with torch.inference_mode():
        states = [
            torch.stack(clamp.mert(one[None], output_hidden_states=True).hidden_states)
            for one in parts
        ]
    rows = torch.cat([one.mean(-2) for one in states], 1).mean(0)
    given = torch.cat((torch.zeros(1, WIDTH), rows, torch.zeros(1, WIDTH)))
    found = clamp.encode_audio(audio, RATE)
    assert torch.allclose(found, published(clamp_files, given, 8, "audio"), atol=1e-4)


def test_clamp3_by_its_judge_and_other_weights(clamp_files: dict[str, Any], tmp_path: Path) -> None:
    root, weights = clamp_files["root"], dict(clamp_files["weights"])
    judge = open_judge(f"clamp3:{root / 'weights.pth'},mert={root / 'mert'},text={root / 'text'}")
    found = judge(noise(6), RATE, "slow piano")
    clamp = opened(clamp_files)
    said, heard = clamp.encode_text("slow piano"), clamp.encode_audio(noise(6), RATE)
    assert found == {"clamp3": pytest.approx(float(said @ heard), abs=1e-6)}
    sources = {"mert": str(root / "mert"), "text": str(root / "text")}
    for broken, message in (
        ({"nothing": torch.zeros(1)}, "no weights of CLaMP 3"),
        ({k: v for k, v in weights.items() if k != "text_proj.bias"}, "the head text_proj"),
        ({k: v for k, v in weights.items() if "text_model.encoder.layer.1" not in k}, "the text"),
    ):
        torch.save(broken, tmp_path / "broken.pth")
        with pytest.raises(ModelError, match=message):
            Clamp3.load(tmp_path / "broken.pth", **sources)
    with pytest.raises(ModelError, match="cannot be read"):
        Clamp3.load(tmp_path / "none.pth", **sources)


# Named, missing, and in the command


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("beauty:x", "judge 'beauty:x' is unknown"),
        ("muq-mulan", "is unknown"),
        ("songeval:file", "of which muq is needed"),
        ("clamp3:file,text=x", "of which mert is needed"),
        ("audiobox:file,muq=x", "audiobox takes SOURCE alone"),
        ("songeval:file,muq=", "songeval takes FILE,muq=SOURCE"),
    ],
)
def test_a_judge_is_named_rightly(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_judge(spec)


@pytest.mark.parametrize(
    ("spec", "package"),
    [
        ("muq-mulan:x", "muq"),
        ("songeval:x,muq=y", "muq"),
        ("audiobox:x", "audiobox_aesthetics"),
        ("clamp3:x,mert=y", "transformers"),
    ],
)
def test_a_missing_package_is_named(
    spec: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "available", lambda name: name != package)
    with pytest.raises(MissingError, match=f"needs the package '{package}'.*pip install"):
        open_judge(spec)


def test_weights_that_cannot_be_reached(packages: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="'nowhere' cannot be loaded as MuQMuLan"):
        open_judge("muq-mulan:nowhere")


def test_every_kind_says_its_licence() -> None:
    assert LICENCES.keys() == FIGURES.keys()
    for kind in ("muq-mulan", "clamp3", "songeval"):
        assert "no commercial use" in LICENCES[kind]


def test_the_command_prints_marks_and_licences(
    packages: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"checkpoint")
    for number, folder in enumerate(("a", "b", "music")):
        for song in range(3):
            audio = noise(4, seed=10 * number + song)
            path = tmp_path / folder / f"s{song}.wav"
            path.parent.mkdir(exist_ok=True)
            save_audio(path, audio * (0.3 if folder == "b" else 1.0), RATE)
    lines = [{"id": f"s{n}", "description": "slow piano" if n else ""} for n in range(3)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["eval", "songs", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]
    command += ["--reference", str(tmp_path / "music"), "--work", str(tmp_path / "work")]
    marks = ["--judge", f"audiobox:{tmp_path / 'checkpoint.pt'}"]
    near = ["--judge", "muq-mulan:x", "--requests", str(tmp_path / "asked.jsonl")]
    out = ["--out", str(tmp_path / "report")]
    assert run([*command, *marks, *near, *out]) == 0
    printed = capsys.readouterr()
    assert LICENCES["audiobox"] in printed.err and LICENCES["muq-mulan"] in printed.err
    rows = {row["system"]: row["figures"] for row in json.loads(printed.out)["results"]["rows"]}
    assert rows["a"]["audiobox_pq"]["value"] > rows["b"]["audiobox_pq"]["value"] > 7
    assert rows["a"]["audiobox_ce"]["n"] == 3 and rows["a"]["muq_mulan"]["n"] == 2
    page = (tmp_path / "report" / "index.html").read_text()
    assert "CC BY-NC 4.0" in page and "audiobox_pc" in page
    assert run([*command, "--judge", "muq-mulan:x"]) == 2
    assert "give --requests" in capsys.readouterr().err
    assert run([*command, *marks, *marks]) == 2
    assert "names a kind twice" in capsys.readouterr().err
