"""What this project owes of an NVIDIA GPU, on the machine as it is found: its own Python, torch and
Triton, and no network.

    make gpu PYTHON=python3                                        # everything
    python -m mudit_engine.benchmarks.gpu_run numerics step --seconds 120
    python -m mudit_engine.benchmarks.gpu_run all --dry            # a rehearsal on a CPU, tiny

Each stage (benchmarks/gpu_kernels.py, gpu_backends.py, gpu_products.py, gpu_network.py) runs in a
process of its own, so that a crash ends that stage alone, and within its seconds. Rows are appended
to OUT/<stage>.jsonl as soon as they are known and never deleted: another run adds to them.
OUT/env.json names the machine, OUT/summary.json and the table at the end say what each stage gave.
Packages that the machine lacks can lie as wheels in .whl/ (benchmarks/gpu_carry.py fills it): they
are unpacked, not installed.

Exit codes: 0 done, 1 a stage failed, 3 no usable GPU, 4 numerics are wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError, MissingError, MuditError
from mudit_engine.files import write_json
from mudit_engine.hardware import CHECKOUT, environment

# stage -> where it is, and the seconds that it gets unless told otherwise
STAGES = {
    "numerics": ("gpu_kernels:numerics", 220),
    "backends": ("gpu_backends:backends", 150),
    "tune": ("gpu_backends:tune", 240),
    "attention": ("gpu_kernels:attention_peers", 280),
    "hopper": ("gpu_hopper:hopper", 200),
    "products": ("gpu_products:products", 240),
    "sweep": ("gpu_kernels:sweep", 230),
    "step": ("gpu_network:step", 200),
    "song": ("gpu_network:song", 120),
    "training": ("gpu_network:training", 240),
    "kernels": ("gpu_kernels:kernels", 280),
}
CARRIED = Path(".whl")
GRACE = 60  # seconds past its own that a stage may take to finish what it is at


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def unpack(carried: Path, site: Path) -> list[str]:
    """Unpacks the wheels of `carried` into `site`, and a Triton in parts once all of them are
    there; returns what was unpacked. Wheels are archives of what is imported.
    """
    done = []
    for wheel in sorted(carried.glob("*.whl")):
        mark = site / f".{wheel.name}"
        if not mark.exists():
            site.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            mark.touch()
        done.append(wheel.name)
    if (carried / "manifest.json").exists():
        from mudit_engine.benchmarks.gpu_carry import join_parts

        done += join_parts(carried, site)
    return done


def run_stage(name: str, folder: Path, *, seconds: float, dry: bool, site: Path) -> dict[str, Any]:
    """One stage in a process of its own; a summary of the rows that it added."""
    path = folder / f"{name}.jsonl"
    before = len(path.read_text().splitlines()) if path.exists() else 0
    command = [sys.executable, "-m", "mudit_engine.benchmarks.gpu_run", "--worker", name]
    command += ["--out", str(folder), "--seconds", str(seconds), *(["--dry"] if dry else [])]
    search = [str(site), str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(part for part in search if part),
        "PYTHONUNBUFFERED": "1",
        "TRITON_INTERPRET": "1" if dry else "0",
    }
    start = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **settings})
    try:
        code = process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
        fault = f"stopped {GRACE} s past its {seconds:g} s"
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    else:
        fault = f"ended with code {code}"
    if code:
        row = {"stage": name, "what": "process", "error": fault}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    lines = path.read_text().splitlines()[before:] if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {
        "stage": name,
        "rows": len(rows),
        "failed": sum("error" in row and isinstance(row["error"], str) for row in rows),
        "wrong": sum(row.get("ok") is False for row in rows),
        "skipped": sum("skipped" in row for row in rows),
        "seconds": round(time.monotonic() - start, 1),
        "best": best(rows),
    }


def best(rows: Sequence[dict[str, Any]]) -> str:
    """The figure that a reader of the summary wants first."""
    shares = [row for row in rows if "gemm_peak_fraction" in row]
    if shares:
        row = max(shares, key=lambda r: r["gemm_peak_fraction"])
        label = row.get("provider") or row.get("config") or row.get("backend") or row["what"]
        where = row.get("shape") or row.get("batch") or row["what"]
        return f"{label} {where}: {100 * row['gemm_peak_fraction']:.1f} % of the GEMM peak"
    songs = [row for row in rows if "audio_seconds_per_second" in row]
    if songs:
        row = max(songs, key=lambda r: r["audio_seconds_per_second"])
        rate = row["audio_seconds_per_second"]
        return f"{row['provider']} {row['batch']}: {rate:.3g} s of audio a second"
    held = [row["ratio_to_bar"] for row in rows if "ratio_to_bar" in row]
    return f"worst error {max(held):.2f} of its bar" if held else ""


def device(dry: bool) -> dict[str, Any]:
    """What is measured. Raises MissingError without a CUDA device."""
    import torch

    found = environment()
    if dry:
        return found | {"device": "cpu (rehearsal: no time means anything)"}
    if not torch.cuda.is_available():
        raise MissingError(
            f"torch {torch.__version__} finds no CUDA device. On a machine with an NVIDIA GPU: "
            f"make gpu PYTHON=python3. Here: --dry rehearses every stage on the CPU"
        )
    card = torch.cuda.get_device_properties(0)
    return found | {"device": card.name, "compute_capability": f"{card.major}.{card.minor}"}


def table(summary: Sequence[dict[str, Any]]) -> str:
    columns = ("stage", "rows", "failed", "wrong", "skipped", "seconds", "best")
    cells = [columns, *(tuple(str(row[c]) for c in columns) for row in summary)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def run(stages: Sequence[str], folder: Path, *, seconds: float | None, dry: bool) -> int:
    """Runs the stages one after the other; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "env.json", device(dry))
    site = folder / "site"
    if unpacked := unpack(CARRIED, site):
        say(f"carried: {', '.join(unpacked)}")
    summary: list[dict[str, Any]] = []
    try:
        for number, name in enumerate(stages):
            say(f"stage {number + 1} of {len(stages)}: {name}")
            given = seconds or STAGES[name][1]
            summary.append(run_stage(name, folder, seconds=given, dry=dry, site=site))
            write_json(folder / "summary.json", {"schema_version": 1, "results": summary})
    finally:
        if summary:
            print(table(summary))
    if any(row["wrong"] for row in summary):
        return 4
    return 1 if any(row["failed"] for row in summary) else 0


def worker(name: str, folder: Path, *, seconds: float, dry: bool) -> None:
    if dry:
        from mudit_engine.profiling import strict

        strict.install()
    from mudit_engine.benchmarks.gpu_stage import StageRun

    module, _, function = STAGES[name][0].partition(":")
    work = getattr(importlib.import_module(f"mudit_engine.benchmarks.{module}"), function)
    work(StageRun(name, folder, seconds, dry))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)} or all")
    parser.add_argument("--seconds", type=float, help="for each stage, instead of its usual ones")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="[out/gpu]")
    parser.add_argument("--dry", action="store_true", help="rehearse on the CPU, tiny")
    parser.add_argument("--worker", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        worker(options.worker, options.out, seconds=options.seconds, dry=options.dry)
        return 0
    stages = list(STAGES) if options.stages in ([], ["all"]) else options.stages
    try:
        if wrong := [name for name in stages if name not in STAGES]:
            raise InputError(f"no stage '{wrong[0]}': choose from {', '.join(STAGES)}, or all")
        return run(stages, options.out, seconds=options.seconds, dry=options.dry)
    except MuditError as error:
        say(f"gpu_run: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"gpu_run: interrupted; what was measured is in {options.out}")
        return 130


if __name__ == "__main__":
    sys.exit(main())
