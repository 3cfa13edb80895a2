"""Table 3 from one command: settings are trained and tested once, a CLAP stands beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import audio_fields
from mudit_engine.training.retrieval_table import DEFAULT, SETTINGS, chosen
from small_audio import CORPUS_ATTRIBUTES, RATE, SMALL_CHINMU
from tiny_encoders import save_clap


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones of 20 heights; a word, a phrase and a sentence of each."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    with ShardWriter(folder, audio_fields(channels=1)) as writer:
        for number in range(60):
            height = number % 20
            hertz = 150 * 1.17**height
            wave = 0.3 * np.sin(np.arange(RATE // 2) * 2 * np.pi * hertz / RATE + rng.uniform(0, 6))
            name = "abcdefghijklmnopqrst"[height] * 3
            described = [
                {
                    "language": "en",
                    "user": "amateur",
                    "word": [name],
                    "phrase": [f"a tone {name}"],
                    "sentence": [f"this is the tone that is called {name} here"],
                }
            ]
            writer.add(
                f"tone-{number:02d}",
                {"audio": (wave[:, None] * 32767).astype(np.int16)},
                metadata={"sample_rate": RATE, "descriptions": described},
                split="train" if number < 40 else "test",
            )
    return folder


def test_settings_by_name() -> None:
    assert [one.name for one in chosen(["long", "mix", "long"])] == ["long", *DEFAULT[3:]]
    assert len(SETTINGS) == 3 + 4 * 2
    assert SETTINGS["short+long/batch"].overrides() == [
        "chinmu.levels=[1.0, 0.0, 1.0]",
        "chinmu.mixing=batch",
    ]
    with pytest.raises(InputError, match="'tiny' is unknown: use short, medium"):
        chosen(["tiny"])


def test_table_3_from_one_command(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clap = save_clap(tmp_path / "clap")
    changes = {
        "model_overrides.chinmu": SMALL_CHINMU,
        "chinmu.attributes": dict.fromkeys(CORPUS_ATTRIBUTES, 0.0),
        "chinmu.crop_seconds": 0.5,
        "data.pack_size": 20,
        "steps": 40,
        "schedule.warmup": 4,
        "optimizer.lr": 5e-3,
        "ema.decay": 0.5,
        "log.validate_every": 0,
        "log.tensorboard": False,
        "log.curve": False,
    }
    words = ["eval", "retrieval", "--train", str(data), "--work", str(tmp_path / "work")]
    words += ["--setting", "short", "--setting", "short+long/batch", "--clap", str(clap)]
    words += ["--out", str(tmp_path / "out")]
    words += [part for k, v in changes.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    assert run([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]["rows"]
    assert [row["setting"] for row in rows] == ["short", "short+long/batch", "clap"]
    cells = {
        (row["setting"], c["direction"], c["level"], c["k"]): c
        for row in rows
        for c in row["cells"]
    }
    assert len(cells) == 3 * 2 * 3 * 3
    trained = cells["short", "text to audio", "word", 5]
    assert trained["chance"] == pytest.approx(0.25) and trained["accuracy"]["value"] > 0.6
    # of the second time nothing is trained: the checkpoints may be gone
    for name in ("short", "short+long-batch"):
        (tmp_path / "work" / name / "checkpoints").rename(tmp_path / "work" / name / "gone")
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "word@5" in shown.out and "chance" in shown.out
    assert f"{trained['accuracy']['value']:.3f}" in (tmp_path / "out/table3.tex").read_text()
    assert not (tmp_path / "work/short/checkpoints").exists()


def test_options_that_do_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "retrieval", "--clap", "somewhere"]) == 2
    assert "--clap has no effect without --train" in capsys.readouterr().err
    assert run(["eval", "retrieval", "--train", "x", "--gate"]) == 2
