"""The figures of a run: FLOPs against torch's own count, MFU by its formula, memory; and what is
told to logging services.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mudit_engine.config import OUTLINE_GROUPS
from mudit_engine.errors import MissingError
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.dit import DitTask
from mudit_engine.training.tasks.task import Moment
from mudit_engine.training.throughput import Meter, counting, forward_flops, stated_peak
from mudit_engine.training.trainer import Trainer
from small_audio import vae_recipe, write_chords
from small_songs import SMALL_DIT, small_recipe, write_songs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cross_attention": "parallel"},
        {"modulation": "per_block", "blocks": 2},
        {"outline": True, "lyric_blocks": 2},
    ],
    ids=["serial", "parallel", "per-block", "outline"],
)
def test_flops_are_those_that_run(data: Path, changes: dict[str, Any]) -> None:
    plain = dict.fromkeys(("outline", *OUTLINE_GROUPS), False)
    recipe = small_recipe(
        data, model_overrides__dit={**SMALL_DIT, **plain, **changes}, dit__reference=1.0
    )
    task = DitTask(recipe, Shards(data))
    batch = task.load(range(8), Moment(0, 0, 0))
    # as plain products: torch does not count the CPU's fused attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counting() as counter:
        task.modules["model"](batch.inputs)
    assert (
        forward_flops(task.config.dit, batch.inputs.clean)
        == batch.flops
        == pytest.approx(counter.get_total_flops(), rel=1e-9)
    )


def test_mfu_by_its_formula(data: Path) -> None:
    meter = Meter(small_recipe(data, log__peak_tflops=2.0), torch.device("cpu"), world=4)
    figures = meter.step(tokens=1000, seconds=50.0, flops=4e11, step_seconds=0.5)
    assert (
        figures["mfu"] == pytest.approx(3 * 4e11 / (0.5 * 4 * 2e12))
        and figures["tokens_per_s"] == 2000
    )
    assert figures["audio_s_per_s_device"] == 25 and figures["memory_mib"] > 50
    unknown = Meter(small_recipe(data), torch.device("cpu"), world=1)
    assert "mfu" not in unknown.step(tokens=1, seconds=1, flops=1e9, step_seconds=1), (
        "no peak was stated, and none is guessed"
    )
    assert stated_peak(small_recipe(data), torch.device("cpu")) is None


def test_every_step_is_logged(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        small_recipe(data, steps=3, log__peak_tflops=0.1, log__songs=True), tmp_path, quiet=True
    )
    trainer.run()
    rows = read_metrics(tmp_path)[0]
    assert all(
        {"loss", "grad_norm", "tokens_per_s", "audio_s_per_s_device", "mfu", "memory_mib", "wait_s"}
        <= row.keys()
        for row in rows
    )
    frames = [
        sum(trainer.task.costs()[n] for pack in trainer.sampler.batch(0, step) for n in pack)
        for step in range(2)
    ]
    assert rows[0]["tokens_per_s"] * rows[0]["step_s"] >= 0.9 * frames[0], (
        "reference and description rows count too"
    )
    songs = [
        json.loads(line)["songs"] for line in (tmp_path / "songs.jsonl").read_text().splitlines()
    ]
    assert sorted(songs[0]) == sorted(
        trainer.shards.id(n) for pack in trainer.sampler.batch(0, 0) for n in pack
    )
    assert json.loads((tmp_path / "run.json").read_text())["stated_peak_flops"] == 1e11


def test_flops_of_other_stages_are_counted_once(tmp_path: Path) -> None:
    data = write_chords(tmp_path / "chords")
    trainer = Trainer(
        vae_recipe(data, **{"steps": 2, "log.peak_tflops": 0.1}), tmp_path / "run", quiet=True
    )
    trainer.run()
    assert trainer._counted["generator"] > 1e6 and read_metrics(tmp_path / "run")[0][1]["mfu"] > 0


def test_services_get_every_logged_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins with the two services' interfaces: what is logged, and that a resumed run goes on
    under the same id.
    """
    told: list[Any] = []
    run = SimpleNamespace(
        id="run-1",
        log=lambda figures, step: told.append(("wandb", step, figures)),
        finish=lambda exit_code: told.append(exit_code),
    )

    def init(**options: Any) -> Any:
        told.append(("init", options["id"], options["project"]))
        return run

    mlflow = SimpleNamespace(
        set_experiment=lambda name: told.append(name),
        start_run=lambda run_id, run_name: SimpleNamespace(
            info=SimpleNamespace(run_id=run_id or "m-1")
        ),
        log_dict=lambda fields, name: told.append((name, fields["steps"])),
        log_metrics=lambda figures, step: told.append(("mlflow", step, figures)),
        end_run=lambda status: told.append(status),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr("mudit_engine.training.log_services.require", lambda *_: None)
    logged = {"log__wandb": "project", "log__mlflow": "experiment", "log__every": 2}
    Trainer(
        small_recipe(data, steps=4, schedule__kind="constant", **logged), tmp_path, quiet=True
    ).run()
    for service in ("wandb", "mlflow"):
        rows = [entry for entry in told if isinstance(entry, tuple) and entry[0] == service]
        assert [step for _, step, _ in rows] == [1, 3] and "train/grad_norm" in rows[0][2]
    assert (
        told[0] == ("init", None, "project")
        and 0 in told
        and "FINISHED" in told
        and ("recipe.json", 4) in told
    )
    Trainer(
        small_recipe(data, steps=6, schedule__kind="constant", **logged), tmp_path, quiet=True
    ).run()
    assert ("init", "run-1", "project") in told


def test_a_service_that_is_not_installed_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mudit_engine.availability.available", lambda module: False)
    with pytest.raises(MissingError, match="log.wandb='p' needs the package 'wandb'"):
        Trainer(small_recipe(data, log__wandb="p"), tmp_path, quiet=True).run()
