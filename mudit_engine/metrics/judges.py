"""Judges of songs: models of other groups, each through its own package or its published weights,
which the user names.

    judge = open_judge("muq-mulan:OpenMuQ/MuQ-MuLan-large")
    judge(audio_cS, 44100, "慢歌，钢琴")                              # {"muq_mulan": 0.31}

    muq-mulan:SOURCE             cosine with the description    package muq
    clamp3:FILE,mert=SOURCE      the same                       none: metrics/clamp3.py
    songeval:FILE,muq=SOURCE     five marks from 1 to 5         package muq; the head is ours
    audiobox:FILE                four marks from 1 to 10        package audiobox-aesthetics

SOURCE is a folder or a hub id, FILE published weights. Whose licences allow what stands in LICENCES
and in every report. No weights of theirs have been run by this project: the tests hold the adapters
to modules of the same interface.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mudit_engine.availability import require
from mudit_engine.errors import InputError, ModelError
from mudit_engine.metrics.embeddings import loaded, mono

FIGURES = {
    "muq-mulan": ("muq_mulan",),
    "clamp3": ("clamp3",),
    "songeval": tuple(
        f"songeval_{name}"
        for name in ("coherence", "musicality", "memorability", "clarity", "naturalness")
    ),
    "audiobox": ("audiobox_ce", "audiobox_cu", "audiobox_pc", "audiobox_pq"),
}
LICENCES = {
    "muq-mulan": "code MIT; weights CC BY-NC 4.0 (no commercial use)",
    "clamp3": "weights MIT; of MERT, which it hears by, CC BY-NC 4.0 (no commercial use)",
    "songeval": "weights CC BY-NC-SA 4.0, of MuQ CC BY-NC 4.0 (no commercial use)",
    "audiobox": "code and weights CC BY 4.0 (parts MIT)",
}
PARTS = {"clamp3": ("mert", "text"), "songeval": ("muq",)}  # further sources of a kind
NEEDED = {"clamp3": "mert", "songeval": "muq"}
HUB_AUDIOBOX = "facebook/audiobox-aesthetics"  # the one hub id that its package loads
SONGEVAL_LAYER, SONGEVAL_HEADS, MUQ_RATE = 6, 8, 24000


@dataclass(frozen=True)
class Judge:
    """What gives figures of a song.

    Args:
        kind: its name.
        key: what it was opened with: measurements are kept by it.
        asks: whether it holds the song against a description.
        judge: audio [channels, samples], rate and description -> figures in their order.
    """

    kind: str
    key: str
    asks: bool
    judge: Callable[[Tensor, int, str], tuple[float, ...]]

    @property
    def figures(self) -> tuple[str, ...]:
        return FIGURES[self.kind]

    @property
    def licence(self) -> str:
        return LICENCES[self.kind]

    @torch.inference_mode()
    def __call__(self, audio_cS: Tensor, sample_rate: int, description: str) -> dict[str, float]:
        """Figures by name; none where the judge asks for a description and there is none."""
        if self.asks and not description.strip():
            return {}
        values = self.judge(audio_cS, sample_rate, description)
        return dict(zip(self.figures, values, strict=True))


def open_judge(spec: str, *, trust_remote_code: bool = False) -> Judge:
    """A judge of its kind and sources: "KIND:SOURCE" or "KIND:SOURCE,part=SOURCE".

    Raises InputError for another kind or part, MissingError without its package, ModelError when
    its weights cannot be loaded.

    Examples:
        >>> open_judge("beauty:x")
        Traceback (most recent call last):
        mudit_engine.errors.InputError: judge 'beauty:x' is unknown: ...
    """
    kind, _, rest = spec.partition(":")
    source, *more = rest.split(",")
    parts = dict(one.partition("=")[::2] for one in more)
    if kind not in FIGURES or not source:
        raise InputError(
            f"judge '{spec}' is unknown: use muq-mulan:SOURCE, clamp3:FILE,mert=SOURCE, "
            "songeval:FILE,muq=SOURCE or audiobox:FILE"
        )
    known, needed = PARTS.get(kind, ()), NEEDED.get(kind)
    wrong = [name for name, value in parts.items() if name not in known or not value]
    if wrong or (needed and needed not in parts):
        raise InputError(
            f"judge '{spec}': {kind} takes {'FILE' if needed else 'SOURCE'}"
            f"{''.join(f',{name}=SOURCE' for name in known)}"
            f"{f', of which {needed} is needed' if needed else ' alone'}"
        )
    if kind == "clamp3":
        from mudit_engine.metrics.clamp3 import Clamp3

        clamp = Clamp3.load(Path(source), trust_remote_code=trust_remote_code, **parts)
        return Judge(kind, spec, True, lambda *heard: (clamp.similarity(*heard),))
    if kind == "songeval":
        return Judge(kind, spec, False, _songeval(source, muq=parts["muq"]))
    opener = {"muq-mulan": _muq_mulan, "audiobox": _audiobox}[kind]
    return Judge(kind, spec, kind == "muq-mulan", opener(source))


def _muq_mulan(source: str) -> Callable[[Tensor, int, str], tuple[float, ...]]:
    require("muq", "judge 'muq-mulan'")
    from muq import MuQMuLan

    model = loaded(MuQMuLan, source).eval()

    def judge(audio: Tensor, rate: int, text: str) -> tuple[float, ...]:
        wave = mono(audio, rate, int(model.sr))
        near = model.calc_similarity(model(wavs=wave[None]), model(texts=[text]))
        return (float(near[0, 0]),)

    return judge


class SongEvalHead(nn.Module):
    """SongEval's head: rows of MuQ to five marks from 1 to 5.

        h = W2 relu(W1 x);  marks = 3 + 2 tanh(W3 [mean(attention(h)), max(h)])

    Source: Yao et al. 2025, "SongEval", arXiv 2505.10793.
    """

    def __init__(self, width: int, hidden: int, layers: int, marks: int) -> None:
        super().__init__()
        self.attn = nn.ModuleList(
            nn.MultiheadAttention(width, SONGEVAL_HEADS, batch_first=True) for _ in range(layers)
        )
        self.ffd = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.fc = nn.Linear(2 * width, marks)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> SongEvalHead:
        """Of published tensors. Raises ModelError for others."""
        try:
            hidden, width = weights["ffd.0.weight"].shape
            layers = len({n.split(".")[1] for n in weights if re.match(r"attn\.\d+\.", n)})
            head = cls(width, hidden, layers, weights["fc.weight"].shape[0])
            head.load_state_dict(dict(weights))
        except (KeyError, RuntimeError, ValueError, AssertionError) as error:
            raise ModelError(
                f"these are no weights of SongEval ({str(error).splitlines()[0]}): give its "
                "ckpt/model.safetensors"
            ) from None
        return head.eval().requires_grad_(False)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """Marks [N, 5]."""
        own = heard = self.ffd(x_NTD)
        for layer in self.attn:
            heard, _ = layer(heard, heard, heard, need_weights=False)
        both = torch.cat((heard.mean(1), own.amax(1)), 1)
        return 3 + 2 * torch.tanh(self.fc(both))


def _songeval(source: str, *, muq: str) -> Callable[[Tensor, int, str], tuple[float, ...]]:
    require("muq", "judge 'songeval'")
    from muq import MuQ

    try:
        head = SongEvalHead.of(load_file(source))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"SongEval's weights '{source}' cannot be read ({str(error).splitlines()[0]}): give "
            "its ckpt/model.safetensors"
        ) from None
    model = loaded(MuQ, muq).eval()

    def judge(audio: Tensor, rate: int, text: str) -> tuple[float, ...]:
        wave = mono(audio, rate, MUQ_RATE)
        heard = model(wave[None], output_hidden_states=True)["hidden_states"][SONGEVAL_LAYER]
        return tuple(map(float, head(heard)[0]))

    return judge


def _audiobox(source: str) -> Callable[[Tensor, int, str], tuple[float, ...]]:
    require("audiobox_aesthetics", "judge 'audiobox'")
    if source != HUB_AUDIOBOX and not Path(source).is_file():
        raise ModelError(
            f"there is no file '{source}': give its checkpoint.pt, or {HUB_AUDIOBOX} to have its "
            "package fetch it"
        )
    from audiobox_aesthetics.infer import initialize_predictor

    try:
        predictor = initialize_predictor(None if source == HUB_AUDIOBOX else source)
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(
            f"'{source}' cannot be loaded as Audiobox Aesthetics ({str(error).splitlines()[0]}): "
            "give its checkpoint.pt"
        ) from error

    def judge(audio: Tensor, rate: int, text: str) -> tuple[float, ...]:
        [marks] = predictor.forward([{"path": audio.float(), "sample_rate": rate}])
        names = (name.removeprefix("audiobox_").upper() for name in FIGURES["audiobox"])
        return tuple(float(marks[name]) for name in names)

    return judge


__all__ = ["FIGURES", "LICENCES", "Judge", "SongEvalHead", "open_judge"]
