"""Starts a training on many ranks: the exact command, the files a scheduler wants, and the
network's environment.

    local       torchrun on this machine, and runs it
    torchrun    the line to start on every node (one node: runs it)
    deepspeed   a hostfile, an environment file and DeepSpeed's own launcher (one node: runs it)
    slurm       job.sbatch: one task a GPU by srun, a preflight first, SIGUSR1 before the time is
                up, requeued until the recipe is done

    launch = Launch("slurm", recipe="musit", out=Path("runs/a"), nodes=8, gpus_per_node=8)
    write_launch(launch).command  # what to run, or what is run

Everything is written into OUT/launch, so that a run's folder says how it was started. `mudit train`
on each rank reads RANK and WORLD_SIZE.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from mudit_engine.errors import ConfigError, InputError, MissingError
from mudit_engine.files import read_text, write_text
from mudit_engine.training.parallel.deepspeed_config import data_ranks
from mudit_engine.training.recipe import Recipe

Kind = Literal["local", "slurm", "deepspeed", "torchrun"]
PORT = 29500
SAVED = 128 + signal.SIGUSR1  # how `mudit train` ends after it saved on SIGUSR1
INFINIBAND = Path("/sys/class/infiniband")
# seconds that torchrun leaves ranks to end their step and save when it is stopped (deepspeed's
# launcher always 30); after a rank died it also waits as long, at most, for ranks that hang in a
# collective
GRACE = 120

# name -> (value, why)
NETWORK: dict[str, tuple[str, str]] = {
    "NCCL_DEBUG": ("WARN", "INFO prints rings, trees and the NICs that were chosen"),
    "NCCL_SOCKET_IFNAME": (
        "^lo,docker,virbr",
        "never bootstrap over interfaces that other nodes cannot reach",
    ),
    "NCCL_IB_TIMEOUT": ("22", "about 16 s: a switch that reroutes does not end the job"),
    "NCCL_IB_RETRY_CNT": ("7", "the most that InfiniBand allows"),
    "NCCL_IB_GID_INDEX": ("", "RoCE only: usually 3 (show_gids); leave empty on InfiniBand"),
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": (
        "1",
        "a rank that dies ends the others instead of leaving them to wait",
    ),
    "TORCH_NCCL_DUMP_ON_TIMEOUT": ("1", "writes which collective hung on which rank"),
    "TORCH_FR_BUFFER_SIZE": ("2000", "of the last collectives, for that dump"),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": (
        "1",
        "torchrun --max-restarts hangs with torch 2.13 otherwise",
    ),
    "PYTORCH_CUDA_ALLOC_CONF": (
        "expandable_segments:True",
        "ragged batches fragment fixed segments",
    ),
    "CUDA_DEVICE_ORDER": ("PCI_BUS_ID", "LOCAL_RANK is the same GPU as nvidia-smi's"),
}


@dataclass(frozen=True)
class Launch:
    """What to start where. `recipe` is a name or a file; hosts are for the deepspeed launcher and
    torchrun's meeting point.
    """

    kind: Kind
    recipe: str
    out: Path
    nodes: int = 1
    gpus_per_node: int = 1
    overrides: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()  # further options of `mudit train`
    hosts: tuple[str, ...] = ()
    port: int = PORT
    max_restarts: int = 3
    network: Mapping[str, str] = field(default_factory=dict)
    slurm: tuple[str, ...] = ()  # further #SBATCH lines, such as partition=a100
    minutes: int = 24 * 60
    threads: int | None = None  # OMP threads of a rank

    @property
    def world(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def folder(self) -> Path:
        return self.out / "launch"


@dataclass(frozen=True)
class Files:
    """What was written, and the command: run here, or by hand."""

    command: tuple[str, ...]
    environment: dict[str, str]
    written: tuple[Path, ...]
    runs_here: bool


def check_launch(launch: Launch, recipe: Recipe) -> Launch:
    """The launch with what the recipe lacks for ranks. Raises ConfigError or InputError where the
    two do not fit.
    """
    if launch.kind == "local" and launch.nodes != 1:
        raise InputError(
            f"--launch local is one machine, not {launch.nodes} nodes: use slurm, deepspeed or "
            f"torchrun"
        )
    if launch.hosts and len(launch.hosts) != launch.nodes:
        raise InputError(
            f"{len(launch.hosts)} hosts were named for {launch.nodes} nodes: name one a node"
        )
    if launch.kind == "deepspeed" and launch.nodes > 1 and not launch.hosts:
        raise InputError(
            f"--launch deepspeed on {launch.nodes} nodes needs their names: --hosts a,b,... or "
            f"--hosts FILE"
        )
    if recipe.strategy == "single":
        launch = dataclasses.replace(launch, overrides=(*launch.overrides, "strategy=deepspeed"))
        if (
            recipe.precision == "fp32"
            and launch.world > 1
            and recipe.device not in ("auto", "cpu", "cuda")
        ):
            raise ConfigError(
                f"device='{recipe.device}' names one device, the launch {launch.world}: use auto, "
                f"cuda or cpu"
            )
    ranks = data_ranks(recipe, launch.world)
    if recipe.data.packs_per_step < ranks:
        raise ConfigError(
            f"data.packs_per_step={recipe.data.packs_per_step} leaves "
            f"{ranks - recipe.data.packs_per_step} of {ranks} ranks without songs: "
            f"use --set data.packs_per_step={ranks} (or a multiple), or fewer ranks"
        )
    return launch


def read_hosts(text: str) -> tuple[str, ...]:
    """Names from 'a,b' or from a file of lines ('a' or 'a slots=8')."""
    path = Path(text)
    if not path.is_file():
        return tuple(name.strip() for name in text.split(",") if name.strip())
    lines = (line.split("#")[0].split() for line in read_text(path, "hosts").splitlines())
    return tuple(words[0] for words in lines if words)


def read_network(given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE settings. Raises InputError."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.replace("_", "").isalnum():
            raise InputError(
                f"--env {text!r} must be NAME=VALUE, for example --env NCCL_IB_HCA=mlx5"
            )
        found[name] = value
    return found


def network(launch: Launch) -> dict[str, str]:
    """The environment of every rank. NICs are named when this machine is a node itself (it has
    InfiniBand devices).
    """
    values = {name: value for name, (value, _) in NETWORK.items() if value}
    devices = sorted(path.name for path in INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []
    if devices:
        values["NCCL_IB_HCA"] = "=" + ",".join(devices)
    cores = os.cpu_count() or 1
    values["OMP_NUM_THREADS"] = str(launch.threads or max(1, min(8, cores // launch.gpus_per_node)))
    return values | dict(launch.network)


def train_command(launch: Launch) -> list[str]:
    """`mudit train` as every rank runs it, after the interpreter."""
    sets = [word for override in launch.overrides for word in ("--set", override)]
    return [
        "-m",
        "mudit_engine",
        "train",
        launch.recipe,
        *sets,
        "--out",
        str(launch.out),
        *launch.arguments,
    ]


def write_launch(launch: Launch) -> Files:
    """Writes OUT/launch and says what to run."""
    folder, values = launch.folder, network(launch)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "network.env"]
    write_text(written[0], _environment_file(values))
    python = sys.executable
    if launch.kind == "slurm":
        script = folder / "job.sbatch"
        write_text(script, _sbatch(launch, written[0]))
        return Files(("sbatch", str(script)), values, (*written, script), runs_here=False)
    if launch.kind == "deepspeed":
        hostfile, settings = folder / "hostfile", folder / "deepspeed_env"
        write_text(
            hostfile,
            "".join(
                f"{host} slots={launch.gpus_per_node}\n" for host in launch.hosts or ("localhost",)
            ),
        )
        write_text(settings, "".join(f"{name}={value}\n" for name, value in values.items()))
        where = (
            ["--hostfile", str(hostfile), "--master_addr", launch.hosts[0]] if launch.hosts else []
        )
        many = ["--num_nodes", str(launch.nodes)] if launch.nodes > 1 else []
        ranks = [
            "--num_gpus",
            str(launch.gpus_per_node),
            "--master_port",
            str(launch.port),
            "--no_local_rank",
            "--module",
        ]
        launcher = [python, "-m", "deepspeed.launcher.runner", *where, *many, *ranks]
        command = [*launcher, *train_command(launch)[1:]]
        environment = values | {"DS_ENV_FILE": str(settings)}
        written += [hostfile, settings]
    else:
        meeting = ["--standalone"]
        if launch.nodes > 1:
            head = launch.hosts[0] if launch.hosts else "HEAD_NODE"
            meeting = [
                "--nnodes",
                str(launch.nodes),
                "--rdzv-backend",
                "c10d",
                "--rdzv-endpoint",
                f"{head}:{launch.port}",
            ]
            meeting += ["--rdzv-id", f"mudit-{launch.port}"]
        ranks = [
            "--nproc-per-node",
            str(launch.gpus_per_node),
            "--max-restarts",
            str(launch.max_restarts),
        ]
        ranks += ["--shutdown-timeout", str(GRACE)]
        command = [python, "-m", "torch.distributed.run", *meeting, *ranks, *train_command(launch)]
        environment = values
    script = folder / "run.sh"
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n"
        for name, value in environment.items()
        if name not in values
    )
    remark = (
        "# to be started on every node\n" if launch.nodes > 1 and launch.kind == "torchrun" else ""
    )
    prepare = (
        f"cd {shlex.quote(os.getcwd())}\nset -a; source {shlex.quote(str(written[0]))}; set +a\n"
        f"{exports}"
    )
    write_text(script, f"#!/bin/bash\n{remark}{prepare}exec {shlex.join(command)}\n")
    return Files(tuple(command), environment, (*written, script), runs_here=launch.nodes == 1)


def _environment_file(values: Mapping[str, str]) -> str:
    lines = ["# environment of every rank; sourced by the scripts beside it"]
    for name, value in values.items():
        why = NETWORK.get(name, ("", "set by the launch"))[1]
        lines += [f"# {why}", f"{name}={shlex.quote(value)}"]
    unset = [
        f"# {name}=    {why}"
        for name, (value, why) in NETWORK.items()
        if not value and name not in values
    ]
    return "\n".join([*lines, *unset]) + "\n"


def _sbatch(launch: Launch, environment: Path) -> str:
    quoted = shlex.quote
    options = {
        "job-name": f"mudit-{Path(launch.recipe).stem}",
        "nodes": launch.nodes,
        "ntasks-per-node": launch.gpus_per_node,
        "gpus-per-node": launch.gpus_per_node,
        "time": f"{launch.minutes // 60:02d}:{launch.minutes % 60:02d}:00",
        "output": str(launch.folder.absolute() / "slurm-%j.log"),  # from wherever it is submitted
        "open-mode": "append",
        # five minutes before the end every rank saves and stops
        "signal": "USR1@300",
    }
    given = dict(line.partition("=")[::2] for line in launch.slurm)
    lines = [
        f"#SBATCH --{name}={value}" if value != "" else f"#SBATCH --{name}"
        for name, value in (options | given).items()
    ]
    python = quoted(sys.executable)
    rank = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"
    shape = f"--nodes {launch.nodes} --gpus-per-node {launch.gpus_per_node}"
    preflight = f"-m mudit_engine doctor --cluster {shape} --folder {quoted(str(launch.out))}"
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "#SBATCH --requeue",
            "set -uo pipefail",
            f"cd {quoted(os.getcwd())}",
            f"set -a; source {quoted(str(environment))}; set +a",
            # since 22.05 srun takes no notice of what sbatch was asked for
            '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"export MASTER_PORT={launch.port}",
            "",
            "# ranks, versions, clocks, disk and collectives, before the time of all GPUs is spent",
            f"srun --kill-on-bad-exit=1 bash -c {quoted(f'{rank} exec {python} {preflight}')} || "
            f"exit $?",
            "",
            "restarts=0",
            "while :; do",
            f"srun --kill-on-bad-exit=1 bash -c "
            f"{quoted(f'{rank} exec {python} {shlex.join(train_command(launch))}')}",
            "code=$?",
            "# a rank that died may live the next time; what was asked for wrongly, or is not "
            "installed, stays so",
            f'case "$code" in '
            f"0|{InputError.exit_code}|{MissingError.exit_code}|{SAVED}|{128 + signal.SIGTERM}) "
            f"break;; esac",
            f'[ "$restarts" -lt {launch.max_restarts} ] || break',
            "restarts=$((restarts + 1))",
            'echo "restart $restarts after exit code $code"',
            "done",
            f"# {SAVED}: every rank saved because the time is nearly up; {128 + signal.SIGTERM}: "
            f"because the job was preempted",
            f'if [ "$code" -eq {SAVED} ] || [ "$code" -eq {128 + signal.SIGTERM} ]; then scontrol '
            f'requeue "$SLURM_JOB_ID"; fi',
            'exit "$code"',
            "",
        ]
    )


def run_here(files: Files) -> int:
    """Runs the command and returns its exit code. Signals go on to it, so that ranks save before
    they end: then 128 + signal.
    """
    process = subprocess.Popen(files.command, env={**os.environ, **files.environment})
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        # launchers hand this one on to their ranks, and die of SIGUSR1
        process.send_signal(signal.SIGTERM)

    # Ctrl-C reaches the ranks by the terminal: here it is only waited out
    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code and asked:  # launchers end with codes of their own
        return 128 + asked[0]
    return 128 - code if code < 0 else code
