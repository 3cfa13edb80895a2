"""mudit plan, mudit train --launch and mudit doctor --cluster as commands: documents, tables, exit
codes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mudit_engine.cli.main import run
from mudit_engine.training.parallel import preflight
from mudit_engine.training.parallel.verdicts import Wanted


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)["results"]


FEW = ("--checkpointing", "full", "--zero-stage", "1")
TINY = (
    "plan",
    "--preset",
    "tiny",
    "--nodes",
    "2",
    "--gpus-per-node",
    "4",
    "--batch-songs",
    "256",
    *FEW,
)


def test_a_plan_of_the_tiny_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results = document(
        capsys,
        *TINY,
        "--plots",
        str(tmp_path),
        "--nics",
        "1",
        "--assume",
        "gemm=0.5",
        "--songs",
        "1000",
    )
    assert results["cluster"]["world"] == 8
    assert (
        results["cluster"]["nics"],
        results["assumptions"]["gemm"],
        results["training"]["songs"],
    ) == (1, 0.5, 1000)
    assert {(row["zero_stage"], row["checkpointing"]) for row in results["options"]} == {
        (1, "full")
    }
    best = results["best"]
    assert best["memory_bytes"] == sum(best["memory"].values())
    assert all(Path(path).is_file() for path in results["plots"])
    assert run([*TINY]) == 0
    out = capsys.readouterr().out
    for words in (
        "Options, best first",
        "GPU-hours*",
        "64 GPUs x 35 days",
        "* modelled, assuming",
        "--launch slurm",
    ):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "musit-38m"], "did you mean 'musit-380m'"),
        (["--gpu", "v100"], "no GPU preset 'v100'"),
        (["--assume", "speed=2"], "write KEY=VALUE"),
        (["--zero-stage", "0"], "use 1, 2 or 3"),
        (["--nodes", "0"], "--nodes"),
        (["--epochs", "0"], "--epochs"),
        (["--lengths", "nothing"], "no lengths 'nothing'"),
        (["--nic", "-1"], "nic_gbs=-1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_planned(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_train_writes_launch_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shape = (
        "--launch",
        "slurm",
        "--nodes",
        "2",
        "--gpus-per-node",
        "8",
        "--set",
        "data.packs_per_step=32",
        "--out",
        str(tmp_path),
    )
    results = document(
        capsys,
        "train",
        "tiny-dit-pretrain",
        *shape,
        "--sbatch",
        "partition=a100",
        "--env",
        "NCCL_IB_HCA=mlx5",
    )
    assert results["command"] == ["sbatch", str(tmp_path / "launch" / "job.sbatch")]
    assert results["environment"]["NCCL_IB_HCA"] == "mlx5"
    text = (tmp_path / "launch" / "job.sbatch").read_text()
    assert "#SBATCH --partition=a100" in text
    assert "--set data.packs_per_step=32 --set strategy=deepspeed" in text


def test_train_refuses_what_it_would_ignore(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "tiny-dit-pretrain", "--nodes", "2"]) == 2
    assert "go with --launch" in capsys.readouterr().err
    assert run(["train", "tiny-dit-pretrain", "--launch", "local", "--gpus-per-node", "2"]) == 2
    assert "packs_per_step=1" in capsys.readouterr().err


REPORT = {
    "backend": "gloo",
    "world": 2,
    "hosts": ["n1"],
    "checks": [{"name": "clocks", "status": "failed", "found": "40 s", "mend": "chrony"}],
    "collectives": [
        {"collective": "all-reduce", "mib": 1, "ms_p50": 1.0, "bus_gbs": 1.0, "right": True}
    ],
    "ranks": [],
    "passed": False,
}


def test_an_unfit_cluster_fails_a_gate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        preflight, "preflight_here", lambda ranks, wanted: asked.append((ranks, wanted)) or REPORT
    )
    options = (
        "--ranks",
        "3",
        "--nodes",
        "2",
        "--folder",
        str(tmp_path),
        "--min-bandwidth",
        "1.5",
        "--timeout",
        "9",
    )
    assert document(capsys, "doctor", "--cluster", *options, code=4) == REPORT
    assert asked == [(3, Wanted(tmp_path, 2, None, 1.5, 9.0))]
    assert run(["doctor", "--cluster", *options]) == 4
    captured = capsys.readouterr()
    assert "chrony" in captured.out
    assert "not fit to train: clocks" in captured.err


def test_the_other_ranks_of_a_launcher_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(preflight, "preflight", lambda wanted: None)
    assert run(["doctor", "--cluster"]) == 0
    assert capsys.readouterr().out == ""
    assert run(["doctor", "--cluster", "--ranks", "2"]) == 2


def test_cluster_options_go_with_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--min-bandwidth", "3"]) == 2
    assert "--min-bandwidth goes with --cluster" in capsys.readouterr().err
