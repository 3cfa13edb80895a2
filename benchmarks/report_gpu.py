"""What `make gpu` runs on a machine with an NVIDIA GPU: numerics on the device, then the
measurement, in one folder to hand on.

    python -m mudit_engine.benchmarks.report_gpu --out out/gpu

    out/gpu/<time>-<device>/
        env.json        device, driver, versions, commit, command
        numerics.xml    the tests marked gpu, one by one
        numerics.log    their output
        measured.json   every kernel and peer, timed
        static.json     the same kernels' machine code for this device
        report.html     both, on one page

Exit codes: 0 done, 3 no usable GPU, 4 numerics are red (the log is kept, and nothing is timed). A
run that is interrupted leaves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mudit_engine.errors import GateError, InputError, MuditError
from mudit_engine.hardware import CHECKOUT, environment, machine

TESTS = CHECKOUT / "tests/kernels"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def device_facts() -> dict[str, Any]:
    """The device that is measured, as torch and the driver name it."""
    import torch

    found = torch.cuda.get_device_properties(0)
    return environment() | {
        "device": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_mib": found.total_memory >> 20,
        "cuda": torch.version.cuda,
        "drivers": sorted({gpu.driver for gpu in machine().gpus}),
        "devices": torch.cuda.device_count(),
    }


def numerics(folder: Path) -> None:
    """Runs the tests marked gpu with compiled kernels. Raises GateError when one fails, InputError
    outside a checkout.
    """
    if not TESTS.is_dir():
        raise InputError(
            f"{TESTS} is not there: numerics are proven by the tests of a checkout, which an "
            f"installed package has not"
        )
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(TESTS),
        "-m",
        "gpu",
        "-q",
        f"--junitxml={folder / 'numerics.xml'}",
    ]
    with (folder / "numerics.log").open("w") as log:
        code = subprocess.run(
            command,
            cwd=CHECKOUT,
            env={**os.environ, "TRITON_INTERPRET": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    tail = (folder / "numerics.log").read_text().strip().splitlines()[-1:]
    if code:
        raise GateError(f"numerics are red on this device ({' '.join(tail)}): nothing is timed")
    say(f"numerics: {' '.join(tail)}")


def write_json(path: Path, env: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    path.write_text(
        json.dumps({"schema_version": 1, "env": env, "results": list(rows)}, indent=1) + "\n"
    )


def report(folder: Path, *, rounds: int) -> None:
    """Fills the folder. Raises MissingError without a GPU and GateError when results are wrong."""
    from mudit_engine.benchmarks import measure_kernels, static_kernels
    from mudit_engine.benchmarks.report_kernels import write
    from mudit_engine.profiling.aot import ARCHITECTURES

    env = device_facts()
    (folder / "env.json").write_text(json.dumps(env, indent=1) + "\n")
    say(f"{env['device']}: numerics")
    numerics(folder)
    measured = measure_kernels.run(
        dtypes=("bf16", "fp16"), rounds=rounds, progress=lambda text: say(f"timing {text}")
    )
    write_json(folder / "measured.json", env, measured)
    arch = "sm_" + env["compute_capability"].replace(".", "")
    static: list[dict[str, Any]] = []
    if arch in ARCHITECTURES:
        say(f"compiling for {arch}")
        static = static_kernels.run(arches=(arch,))
        write_json(folder / "static.json", env, static)
    write(folder / "report.html", static=static, measured=measured)


def run(out: Path, *, rounds: int) -> Path:
    """Makes a new folder in `out`: written aside, named when whole; with "-red" when numerics
    failed.
    """
    from mudit_engine.benchmarks.measure_kernels import need_device

    need_device(interpret=False)
    import torch

    slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    folder = out / f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}"
    aside = folder.with_name(folder.name + ".partial")
    aside.mkdir(parents=True)
    try:
        report(aside, rounds=rounds)
    except GateError:
        aside.rename(folder.with_name(folder.name + "-red"))
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("out/gpu"), help="where the report's folder goes [out/gpu]"
    )
    parser.add_argument("--rounds", type=int, default=50, help="launches of each provider [50]")
    options = parser.parse_args(arguments)
    try:
        folder = run(options.out, rounds=options.rounds)
    except MuditError as error:
        say(f"make gpu: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("make gpu: interrupted")
        return 130
    say(f"report: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
