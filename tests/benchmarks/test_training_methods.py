"""The comparison of training methods: every method is made and measured alike, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mudit_engine.benchmarks import training_methods
from small_songs import CHANNELS, SMALL_DIT, write_songs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_methods_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_songs(tmp_path / "data", 10, validation=3, held_out="test")
    small = {
        "dit": SMALL_DIT,
        "vae": {"latent_channels": CHANNELS},
        "path": training_methods.MODEL["path"],
    }
    monkeypatch.setattr(training_methods, "MODEL", small)
    monkeypatch.setattr(training_methods, "SNAPSHOTS", 3)
    out = tmp_path / "results.json"

    def run(methods: str) -> list[dict[str, object]]:
        asked = f"--data {data} --work {tmp_path / 'runs'} --out {out} --steps 6 --pack 128"
        options = [*asked.split(), "--methods", methods, "--seeds", "3"]
        options += ["--plot", str(tmp_path / "plot.png")]
        answer = CliRunner().invoke(training_methods.main, options, catch_exceptions=False)
        assert answer.exit_code == 0
        return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]

    run("baseline")
    first = json.loads(out.read_text())["results"]
    runs = sorted(path.stat().st_mtime_ns for path in (tmp_path / "runs/baseline-3").iterdir())
    lines = run("baseline,muon")
    rows = json.loads(out.read_text())["results"]
    assert rows[: len(first)] == first, "what is there is not measured again"
    again = sorted(path.stat().st_mtime_ns for path in (tmp_path / "runs/baseline-3").iterdir())
    assert runs == again
    by_method = {row["method"]: row for row in rows}
    assert list(by_method)[:2] == ["baseline", "last weights"] and "muon" in by_method
    assert by_method["muon"]["frames"] == by_method["baseline"]["frames"], "equal tokens"
    assert by_method["muon"]["loss"] != by_method["baseline"]["loss"]
    assert by_method["baseline"]["test_songs"] == 3
    assert all(len(row["loss_by_noise"]) == training_methods.LEVELS for row in rows)
    ratios = {line["method"]: line["ratio"] for line in lines}
    assert ratios["baseline"] == 1.0
    expected = by_method["muon"]["loss"] / by_method["baseline"]["loss"]
    assert ratios["muon"] == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_every_method_is_a_recipe(tmp_path: Path) -> None:
    from mudit_engine.training.recipe import parse_recipe

    for method in training_methods.METHODS:
        fields = training_methods.recipe_fields(method, seed=1, data=tmp_path, steps=50, pack=64)
        assert fields.pop("base") == "tiny-dit-finetune"
        recipe = parse_recipe({**fields, "task": "dit-finetune"}, source=method)
        assert recipe.seed == 1 and recipe.steps == 50
