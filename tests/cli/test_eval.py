"""`mudit eval` as a user runs it, on a corpus of small tones and the micro model: documents,
pictures, reruns, gates and bad input.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch

from mudit_engine import availability
from mudit_engine.cli.main import run
from mudit_engine.training.corpus.labels import SCHEMA_VERSION, Description, Line, Song, Syllable

RATE = 8000
HELD_OUT, TRAINING = 16, 12
needs_notes = pytest.mark.skipif(
    not (availability.available("onnxruntime") and availability.available("basic_pitch")),
    reason="needs onnxruntime and basic-pitch",
)


def make_song(corpus: Path, index: int, *, held_out: bool) -> None:
    sung, seconds = index % 2 == 1, 3.2
    descriptions = tuple(
        Description(
            language, user, text, (f"word{index}",), ("in C major", f"phrase {index}"), (text,)
        )  # type: ignore[arg-type]
        for user, text in (
            ("professional", f"Pop at 100 BPM in C major, number {index}."),
            ("amateur", f"I want song {index}."),
        )
        for language in ("zh", "en")
    )
    song = Song(
        schema=SCHEMA_VERSION,
        id=f"0-{index:06d}",
        seed=0,
        index=index,
        held_out=held_out,
        style=("pop", "rock")[index % 2],
        instrument_set="piano",
        instruments=("piano",),
        bpm=100,
        key=index % 12,
        mode="major",
        seconds=seconds,
        sample_rate=RATE,
        drums=index % 3 == 0,
        voice=("female", "male")[index // 2 % 2] if sung else "none",
        timbre="clear" if sung else "none",
        language="zh" if sung else "none",
        progressions=(),
        bars=(0.0,),
        form=(),
        chords=(),
        melody=(),
        arrangement=(),
        lyrics="[verse]\n月亮" if sung else "",
        lines=(Line("x", "月亮", 0, "ang", 0.5, 2.5),) if sung else (),
        syllables=(Syllable(0.5, 1.5, 60, "月", "yue4", 0, 0),) if sung else (),
        descriptions=descriptions,
        stems=(),
    )
    folder = corpus / "songs" / f"{index:06d}"
    folder.mkdir(parents=True)
    (folder / "song.json").write_text(song.to_json(), encoding="utf-8")
    time = torch.arange(round(seconds * RATE)) / RATE
    tone = torch.sin(2 * math.pi * 220 * 2 ** (index / 12) * time) * torch.exp(-4 * (time % 0.6))
    soundfile.write(folder / "mix.flac", (0.2 * tone + 0.01 * torch.randn(len(time))).numpy(), RATE)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mudit_engine.metrics.figures.FAD_RESAMPLES", 10)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(HELD_OUT + TRAINING):
        make_song(folder, index, held_out=index < HELD_OUT)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def evaluate(what: str, micro: Path, corpus: Path, *arguments: object) -> int:
    return run(["eval", what, "--model", str(micro), "--corpus", str(corpus), *map(str, arguments)])


@needs_notes
def test_codec_document_and_gate(
    micro: Path, corpus: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = evaluate("codec", micro, corpus, "--work", work, "--songs", 4, "--gate", "--json")
    results = json.loads(capsys.readouterr().out)["results"]
    assert code == 4, "a random codec misses bars"
    rows = {row["name"]: row["figures"] for row in results["rows"]}
    baselines = ["Griffin-Lim, mel at 43 Hz", "Griffin-Lim, mel at 21.5 Hz"]
    assert list(rows) == ["original", "codec", *baselines, "permuted requests", "shuffled", "noise"]
    for name in ("codec", *baselines):
        assert (
            0 <= rows[name]["notes"]["value"] <= 1
            and rows[name]["spectrum"]["value"] > 0
            and rows[name]["seconds"]["value"] > 0
        )
    for figures in rows.values():
        assert (
            figures["fad"]["value"] > 0
            and figures["fad"]["n"] == 4
            and figures["fad"]["low"] <= figures["fad"]["high"]
        )
    assert {v["name"]: v["passed"] for v in results["verdicts"]}["notes"] is False
    assert results["facts"]["training_songs"] == TRAINING

    kept = {path.name for path in (work / "cache").iterdir()}
    assert evaluate("codec", micro, corpus, "--work", work, "--songs", 4) == 0, (
        "without --gate it only tells"
    )
    table = capsys.readouterr().out
    assert "MISSED" in table and "original" in table and "key among the best two of 12" in table
    assert {path.name for path in (work / "cache").iterdir()} == kept, "nothing is measured twice"


def test_songs_document_audio_and_picture(
    micro: Path, corpus: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = evaluate("tiny", micro, corpus, "--work", work, "--songs", 4, "--json")
    results = json.loads(capsys.readouterr().out)["results"]
    assert code == 0
    rows = {row["name"].strip(): row["figures"] for row in results["rows"]}
    users = ["professional words", "amateur words"]
    assert list(rows) == [
        "original",
        "codec",
        "generated",
        *users,
        "permuted requests",
        "shuffled",
        "noise",
    ]
    for name, figures in rows.items():
        assert {"fad", "tempo", "key", "drums", "vocals", "instrumental", "style", "per"} <= set(
            figures
        ), name
    assert (
        rows["amateur words"]["tempo"]["value"] is None
        and rows["professional words"]["tempo"]["n"] == 4
    )
    assert rows["generated"]["seconds"]["value"] > 0
    assert results["facts"]["recogniser_epochs"] > 0, "how long the embedded one was trained"
    made = sorted(path.name for path in (work / "songs").glob("*.flac"))
    assert len(made) == 8 and made[0].endswith("-amateur.flac")
    assert (work / "spectrograms.png").read_bytes()[:4] == b"\x89PNG"
    assert {v["name"] for v in results["verdicts"] if v["measured"] is None} >= {"seconds"}, (
        "the micro model makes no 30 s"
    )


def test_retrieval(micro: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("retrieval", micro, corpus, "--json") == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results["rows"]) == 18 and {row["songs"] for row in results["rows"]} == {HELD_OUT}
    assert evaluate("retrieval", micro, corpus, "--gate") == 4
    captured = capsys.readouterr()
    assert "audio to text" in captured.out and "bars are missed" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["codec", "--corpus", "nowhere"], 2, "mudit data synth"),
        (["codec", "--model", "nowhere"], 1, "no model folder"),
        (["codec", "--songs", "2"], 2, "--songs"),
        (["tiny", "--seed", "-1"], 2, "--seed"),
        (["tiny", "--recogniser", "no.safetensors"], 1, "no phoneme recogniser"),
        (["songs"], 2, "songs"),
    ],
    ids=["no-corpus", "no-model", "too-few", "bad-seed", "no-recogniser", "unknown"],
)
def test_bad_input(
    micro: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in arguments or arguments == ["songs"] else ["--model", str(micro)]
    assert run(["eval", *arguments, *model]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_the_note_network_the_gate_says_how_to_install_it(
    micro: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mudit_engine.metrics.notes.MODEL_FILE", Path("absent.onnx"))
    monkeypatch.setattr("mudit_engine.availability.available", lambda module: True)
    assert evaluate("codec", micro, corpus, "--work", tmp_path, "--songs", 4) == 3
    assert "--no-deps basic-pitch" in capsys.readouterr().err
