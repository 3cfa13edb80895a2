"""Launch files: what they hold, that they run, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training.parallel import launch as launching
from mudit_engine.training.parallel.launch import (
    Launch,
    check_launch,
    read_hosts,
    read_network,
    run_here,
    write_launch,
)
from mudit_engine.training.recipe import Recipe, load_recipe
from small_songs import small_recipe, write_songs


def recipe(*overrides: str) -> Recipe:
    return load_recipe("tiny-dit-pretrain", overrides=["data.packs_per_step=64", *overrides])


def launch(kind: str, out: Path, **fields: object) -> Launch:
    return Launch(kind, "tiny-dit-pretrain", out, **fields)  # type: ignore[arg-type]


def test_torchrun_on_one_machine(tmp_path: Path) -> None:
    files = write_launch(
        launch("local", tmp_path, gpus_per_node=4, overrides=("steps=5",), max_restarts=2)
    )
    words = list(files.command)
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert words[3:11] == [
        "--standalone",
        "--nproc-per-node",
        "4",
        "--max-restarts",
        "2",
        "--shutdown-timeout",
        "120",
        "-m",
    ]
    assert words[11:] == [
        "mudit_engine",
        "train",
        "tiny-dit-pretrain",
        "--set",
        "steps=5",
        "--out",
        str(tmp_path),
    ]
    assert files.runs_here
    assert files.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_torchrun_on_nodes_meets_at_the_first(tmp_path: Path) -> None:
    files = write_launch(
        launch(
            "torchrun",
            tmp_path,
            nodes=8,
            gpus_per_node=8,
            hosts=("n1", *[f"n{i}" for i in range(2, 9)]),
            port=1234,
        )
    )
    line = " ".join(files.command)
    assert "--nnodes 8 --rdzv-backend c10d --rdzv-endpoint n1:1234" in line
    assert not files.runs_here


def test_deepspeed_gets_a_hostfile_and_its_environment(tmp_path: Path) -> None:
    files = write_launch(
        launch(
            "deepspeed",
            tmp_path,
            nodes=2,
            gpus_per_node=8,
            hosts=("a", "b"),
            network={"NCCL_IB_HCA": "mlx5"},
        )
    )
    assert (tmp_path / "launch" / "hostfile").read_text() == "a slots=8\nb slots=8\n"
    settings = (tmp_path / "launch" / "deepspeed_env").read_text().splitlines()
    assert "NCCL_IB_HCA=mlx5" in settings
    line = " ".join(files.command)
    assert "--num_nodes 2 --num_gpus 8" in line
    assert line.index("--no_local_rank --module mudit_engine train") > 0
    assert files.environment["DS_ENV_FILE"] == str(tmp_path / "launch" / "deepspeed_env")


def test_infiniband_devices_of_a_node_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlx5_1", "mlx5_0"):
        (tmp_path / "infiniband" / name).mkdir(parents=True)
    monkeypatch.setattr(launching, "INFINIBAND", tmp_path / "infiniband")
    write_launch(launch("local", tmp_path, gpus_per_node=2))
    assert "NCCL_IB_HCA==mlx5_0,mlx5_1" in (tmp_path / "launch" / "network.env").read_text()


@pytest.mark.parametrize("kind", ["local", "torchrun", "deepspeed", "slurm"])
def test_scripts_are_bash(kind: str, tmp_path: Path) -> None:
    files = write_launch(
        launch(kind, tmp_path / "a folder", gpus_per_node=2, overrides=("name=it's",))
    )
    scripts = [path for path in files.written if path.suffix in (".sh", ".sbatch", ".env")]
    assert len(scripts) == 2
    for script in scripts:
        done = subprocess.run(
            ["bash", "-n", str(script)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


STUB = """#!/bin/bash
# stands in for srun: notes what it is given, runs one rank of it, and ends as it is told to
echo "$MASTER_ADDR:$MASTER_PORT NCCL_DEBUG=$NCCL_DEBUG cpus=$SRUN_CPUS_PER_TASK" >> "$NOTES"
printf '%s\\n' "$@" >> "$NOTES"
case "$*" in *doctor*) exit "${DOCTOR:-0}";; esac
exit "${TRAIN:-0}"
"""


def sbatch(tmp_path: Path, **codes: int) -> tuple[int, str]:
    """Runs a job file with stand-ins for Slurm's programs, from another folder: (exit code, what
    they were given).
    """
    shape: dict[str, object] = {
        "nodes": 2,
        "gpus_per_node": 4,
        "slurm": ("partition=a100", "exclusive"),
        "minutes": 90,
    }
    job = os.path.abspath(
        write_launch(launch("slurm", Path(os.path.relpath(tmp_path)), **shape)).command[1]
    )
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    scontrol = (
        '#!/bin/bash\nif [ "$1" = show ]; then echo node7; echo node8; else echo "scontrol $*" >> '
        '"$NOTES"; fi\n'
    )
    for name, text in (("srun", STUB), ("scontrol", scontrol)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    notes = tmp_path / "notes"
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    environment |= {
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": "12",
        **{name: str(code) for name, code in codes.items()},
    }
    done = subprocess.run(
        ["bash", job], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, notes.read_text()


def test_a_slurm_job_examines_the_cluster_and_trains(tmp_path: Path) -> None:
    code, notes = sbatch(tmp_path)
    assert code == 0
    text = (tmp_path / "launch" / "job.sbatch").read_text()
    shape = ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "time=01:30:00")
    for line in (*shape, "signal=USR1@300", "partition=a100", "exclusive", "requeue"):
        assert f"#SBATCH --{line}\n" in text
    assert notes.count("node7:29500 NCCL_DEBUG=WARN cpus=12") == 2
    first, second = notes.split("node7:29500")[1:]
    assert "doctor --cluster --nodes 2 --gpus-per-node 4" in first
    assert "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec" in second
    assert "train tiny-dit-pretrain" in second
    assert "scontrol" not in notes


def test_a_slurm_job_that_saved_is_queued_again(tmp_path: Path) -> None:
    assert sbatch(tmp_path, TRAIN=128 + signal.SIGUSR1) == (138, (tmp_path / "notes").read_text())
    assert (tmp_path / "notes").read_text().endswith("scontrol requeue 17\n")


def test_a_slurm_job_stops_on_an_unfit_cluster(tmp_path: Path) -> None:
    code, notes = sbatch(tmp_path, DOCTOR=4)
    assert (code, "mudit_engine train" in notes, "requeue" in notes) == (4, False, False)


@pytest.mark.parametrize(("code", "runs"), [(1, 4), (137, 4), (2, 1), (3, 1), (0, 1)])
def test_a_slurm_job_starts_dead_ranks_again(tmp_path: Path, code: int, runs: int) -> None:
    """Three times, but not when the recipe is wrong."""
    ended, notes = sbatch(tmp_path, TRAIN=code)
    assert (ended, notes.count("mudit_engine train"), "requeue" in notes) == (code, runs, False)


def test_a_recipe_for_one_process_becomes_one_for_ranks(tmp_path: Path) -> None:
    checked = check_launch(launch("slurm", tmp_path, nodes=8, gpus_per_node=8), recipe())
    assert checked.overrides == ("strategy=deepspeed",)
    assert (
        check_launch(
            launch("slurm", tmp_path, nodes=8, gpus_per_node=8), recipe("strategy=deepspeed")
        ).overrides
        == ()
    )


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is one machine, not 2 nodes"):
        check_launch(launch("local", tmp_path, nodes=2), recipe())
    with pytest.raises(InputError, match="needs their names"):
        check_launch(launch("deepspeed", tmp_path, nodes=2), recipe())
    with pytest.raises(InputError, match="1 hosts were named for 2 nodes"):
        check_launch(launch("torchrun", tmp_path, nodes=2, hosts=("a",)), recipe())
    with pytest.raises(
        ConfigError, match=r"packs_per_step=1 leaves 1 of 2 ranks.*packs_per_step=2"
    ):
        check_launch(launch("local", tmp_path, gpus_per_node=2), recipe("data.packs_per_step=1"))
    with pytest.raises(ConfigError, match="sequence_parallel=3"):
        check_launch(
            launch("local", tmp_path, gpus_per_node=4),
            recipe("strategy=deepspeed", "parallel.sequence_parallel=3"),
        )
    with pytest.raises(InputError, match="NAME=VALUE"):
        read_network(["NCCL_DEBUG"])


def test_hosts_from_a_list_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# racks\nn1 slots=8\nn2\n\n")
    assert read_hosts("n1, n2") == read_hosts(str(file)) == ("n1", "n2")


def test_a_command_that_runs_here_gives_its_exit_code(tmp_path: Path) -> None:
    program = "import os, sys; sys.exit(7 if os.environ['NCCL_DEBUG'] == 'WARN' else 1)"
    assert (
        run_here(launching.Files((sys.executable, "-c", program), {"NCCL_DEBUG": "WARN"}, (), True))
        == 7
    )
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_here(launching.Files((sys.executable, "-c", killed), {}, (), True)) == 137


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_goes_on_to_the_launcher(tmp_path: Path, sent: signal.Signals) -> None:
    """As SIGTERM, which launchers hand on, whatever came; the exit code names what came, as that of
    one process does.
    """
    ready, got = tmp_path / "ready", tmp_path / "got"
    program = (
        "import pathlib, signal, sys, time\n"
        f"def note(number, frame): pathlib.Path({str(got)!r}).write_text(str(number)); "
        f"sys.exit(1)\n"
        f"signal.signal(signal.SIGTERM, note); pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), sent)

    thread = threading.Thread(target=send)
    thread.start()
    code = run_here(launching.Files((sys.executable, "-c", program), {}, (), True))
    thread.join()
    assert (code, got.read_text()) == (128 + sent, str(int(signal.SIGTERM)))


@pytest.mark.slow
def test_two_ranks_train_here(tmp_path: Path) -> None:
    """The whole way: the command writes its files, torchrun starts two gloo ranks, rank 0 prints
    one document.
    """
    pytest.importorskip("deepspeed")
    small = small_recipe(write_songs(tmp_path / "data"), steps=3)
    file = tmp_path / "small.json"
    file.write_text(json.dumps(small.resolved()))
    arguments = [
        "train",
        str(file),
        "--launch",
        "local",
        "--gpus-per-node",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "mudit_engine", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["results"]["steps"] == 3
    assert (tmp_path / "run" / "deepspeed.json").exists()
    assert (tmp_path / "run" / "launch" / "run.sh").exists()
