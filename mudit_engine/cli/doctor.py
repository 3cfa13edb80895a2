"""mudit doctor: what this machine is, what is installed, what is missing, and the exact command
that mends it.

    mudit doctor                        # exit 0 when the core works, 3 when it does not
    mudit doctor --require train        # exit 3 when an extra that was asked for is not complete
    mudit doctor --preset musit-380m    # parameters by part, frames of a song, state in bytes
    mudit doctor --cluster --ranks 2    # ranks, versions, clocks, disk, collectives; exit 4: unfit
"""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mudit_engine.availability import CORE, TOOLS, pip_install, requirements, tested_set
from mudit_engine.cli._console import emit_json, json_option, note, print_table, progress
from mudit_engine.cli._doctor_backends import backends_report, print_backends
from mudit_engine.cli._doctor_cluster import cluster_options, examine_cluster
from mudit_engine.errors import MissingError

# modules whose import can fail although their files are there: compiled parts, shared libraries
IMPORT_CHECKS = ("numpy", "safetensors", "soundfile", "torch", "triton")
SONG_SECONDS = 260.0
LYRIC_TOKENS = 1000
STYLES = {"ok": "green", "missing": "red", "broken": "red", "other version": "yellow"}

TESTED_SETS = {
    "constraints": "the set of constraints.txt, on which every change is tested",
    "floor": "the oldest set that is supported (make test-floor)",
    "between": "between the oldest and the newest set that were tested",
    "other": "not a tested set: pip install -c constraints.txt in a checkout gives one",
}

Row = dict[str, Any]


@click.command()
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="EXTRA",
    help="Exit 3 unless this extra is complete. Repeatable.",
)
@click.option(
    "--preset",
    metavar="PRESET",
    help="Also show the size of a preset, a config.json or a model folder.",
)
@cluster_options
@json_option
def command(required: Sequence[str], preset: str | None, as_json: bool, **cluster: Any) -> None:
    """Show what is installed and what is missing, and how to mend it."""
    if examine_cluster(cluster, as_json=as_json):
        return
    from mudit_engine.hardware import disk_free_mib, machine

    extras = [extra for extra in requirements() if extra != CORE]
    if not extras:
        raise MissingError(
            f"mudit-engine runs from a checkout that is not installed, so its pins are unknown: "
            f"{pip_install('-e', '.')}"
        )
    for extra in required:
        if extra not in extras:
            raise click.BadParameter(
                f"no extra '{extra}': there are {', '.join(sorted(extras))}", param_hint="--require"
            )
    with progress("importing torch", total=None, quiet=as_json) as step:
        broken = import_errors()
        step(text="counting parameters" if preset else None)
        size = size_report(preset) if preset else None
    here: Row = dataclasses.asdict(machine()) | {"disk_free_mib": disk_free_mib(Path.cwd())}
    packages = package_report(broken)
    report: Row = {
        "machine": here,
        "torch": None if "torch" in broken else torch_report(),
        "tested_set": tested_set(),
        "packages": packages,
        "mend": mend_commands(packages),
        "tools": [
            {"command": name, "path": shutil.which(name), "mend": f"apt-get install {package}"}
            for name, package in TOOLS.items()
        ],
        "backends": None if {"torch", "triton"} & broken.keys() else backends_report(),
        "size": size,
    }
    lacking = [extra for extra in (CORE, *required) if extra in report["mend"]]
    if as_json:
        emit_json(report | {"lacking": lacking})
    else:
        print_report(report)
    for extra in lacking:
        note(f"mudit: {extra} is not complete: {report['mend'][extra]}")
    if lacking:
        raise click.exceptions.Exit(MissingError.exit_code)


def import_errors() -> dict[str, str]:
    """Core modules that are installed and still do not import, with the reason."""
    errors = {}
    for name in IMPORT_CHECKS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                errors[name] = str(error)
        except (ImportError, OSError) as error:
            errors[name] = str(error)
    return errors


def package_report(broken: dict[str, str]) -> list[Row]:
    """A row for each requirement of the core and of every extra: what is pinned, what is installed,
    and how that stands.
    """
    from importlib.metadata import PackageNotFoundError, version

    rows = []
    for extra, pins in requirements().items():
        for pin in pins:
            try:
                installed = version(pin.name)
            except PackageNotFoundError:
                installed = None
            if installed is None:
                status = "missing"
            elif pin.name in broken:
                status = "broken"
            else:
                # a local label such as 2.13.0+cpu satisfies ==2.13.0
                status = (
                    "ok" if pin.specifier.contains(installed, prereleases=True) else "other version"
                )
            row = {
                "extra": extra,
                "package": pin.name,
                "pinned": str(pin.specifier),
                "installed": installed,
                "status": status,
            }
            rows.append(row | {"error": broken.get(pin.name)})
    return rows


def mend_commands(packages: list[Row]) -> dict[str, str]:
    """The pip command for each extra that is not complete."""
    commands = {}
    for extra in requirements():
        faulty = [row for row in packages if row["extra"] == extra and row["status"] != "ok"]
        if faulty:
            force = (
                ["--force-reinstall"] if any(row["status"] == "broken" for row in faulty) else []
            )
            commands[extra] = pip_install(
                *force, *(row["package"] + row["pinned"] for row in faulty)
            )
    return commands


def torch_report() -> Row:
    """What torch sees. `cuda_build` is None for a CPU wheel."""
    import torch

    devices = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda_devices": devices,
        "threads": torch.get_num_threads(),
    }


def size_report(preset: str) -> Row:
    """Parameters by part, latent rate, tokens of a song and bytes of state. Raises ConfigError for
    an unknown preset.
    """
    from mudit_engine.config import load_config
    from mudit_engine.sizes import (
        TRAINING_BYTES_PER_PARAMETER,
        lyric_cache_bytes,
        parameter_counts,
        song_frames,
    )

    config = load_config(preset)
    counts = parameter_counts(config)
    totals = {
        part: sum(count or 0 for count in children.values()) for part, children in counts.items()
    }
    return {
        "name": config.name,
        "parameters": counts,
        "totals": totals,
        "text_encoder": config.chinmu.text_encoder,
        "latent_rate_hz": config.vae.frame_rate,
        "latent_channels": config.vae.latent_channels,
        "song_seconds": SONG_SECONDS,
        "song_frames": song_frames(config.vae, SONG_SECONDS),
        "dit_weight_bytes": {"bfloat16": 2 * totals["dit"], "float32": 4 * totals["dit"]},
        "dit_training_bytes": TRAINING_BYTES_PER_PARAMETER * totals["dit"],
        "lyric_cache": {
            "tokens": LYRIC_TOKENS,
            "bfloat16_bytes": lyric_cache_bytes(config.dit, tokens=LYRIC_TOKENS, bytes_per_value=2),
        },
    }


def print_report(report: Row) -> None:
    """The report as tables."""
    here, torch = report["machine"], report["torch"]
    gpus = [
        f"{gpu['name']}, {gpu['memory_mib']} MiB, compute capability {gpu['compute_capability']}, "
        f"driver {gpu['driver']}"
        for gpu in here["gpus"]
    ]
    rows = [
        ("system", here["os"]),
        ("python", here["python"]),
        ("cpu", f"{here['cores']} cores, {here['cpu']} ({' '.join(here['cpu_flags'])})"),
        (
            "memory",
            f"{here['memory_mib'] / 1024:.1f} GiB, {here['memory_available_mib'] / 1024:.1f} GiB "
            f"free",
        ),
        ("disk here", f"{here['disk_free_mib'] / 1024:.1f} GiB free"),
        *(("gpu", gpu) for gpu in gpus or ["none"]),
    ]
    if torch is not None:
        build = f"CUDA {torch['cuda_build']}" if torch["cuda_build"] else "CPU build"
        rows.append(("torch", f"{torch['version']}, {build}, {torch['threads']} threads"))
        if here["gpus"] and not torch["cuda_devices"]:
            pin = next(
                f"torch{row['pinned']}" for row in report["packages"] if row["package"] == "torch"
            )
            command = pip_install("--force-reinstall", "--no-cache-dir", pin)
            rows.append(
                (
                    "",
                    f"torch does not see the GPU; on Linux the package index's build has CUDA: "
                    f"{command}",
                )
            )
    rows.append(("torch and triton", TESTED_SETS[report["tested_set"]]))
    print_table("Machine", ["", ""], rows)
    # an extra repeats what another one holds already (dev is the largest): list each package where
    # it first stands
    fresh: dict[str, Row] = {}
    for row in report["packages"]:
        fresh.setdefault(row["package"], row)
    cells = [
        [
            row["extra"],
            name,
            row["pinned"],
            row["installed"],
            (row["status"], STYLES[row["status"]]),
        ]
        for name, row in fresh.items()
    ]
    print_table("Packages", ["extra", "package", "pinned", "installed", "status"], cells)
    tools = [
        [tool["command"], tool["path"] or (tool["mend"], "yellow")] for tool in report["tools"]
    ]
    print_table("Programs (for training material)", ["program", "path"], tools)
    if report["backends"]:
        print_backends(report["backends"])
    if report["mend"]:
        print_table("To complete an extra", ["extra", "command"], list(report["mend"].items()))
    if report["size"]:
        print_size(report["size"])


def print_size(size: Row) -> None:
    """Parameters and derived sizes of a preset."""
    rows: list[list[Any]] = []
    for part, children in size["parameters"].items():
        rows.append([part, "", f"{size['totals'][part]:,}"])
        unknown = f"not counted: {size['text_encoder']} brings its own"
        rows += [
            ["", child, unknown if count is None else f"{count:,}"]
            for child, count in children.items()
        ]
    print_table(
        f"Parameters of {size['name']}",
        ["part", "module", "parameters"],
        rows,
        numeric=["parameters"],
    )
    cache = size["lyric_cache"]
    half, single, training = (
        f"{n / (1 << 30):.2f} GiB"
        for n in (*size["dit_weight_bytes"].values(), size["dit_training_bytes"])
    )
    facts = [
        ("latent", f"{size['latent_rate_hz']:.2f} Hz x {size['latent_channels']} channels"),
        (f"song of {size['song_seconds']:g} s", f"{size['song_frames']:,} tokens"),
        (
            f"lyric cache, {cache['tokens']:,} tokens",
            f"{cache['bfloat16_bytes'] / (1 << 20):.1f} MiB in bf16",
        ),
        ("transformer weights", f"{half} in bf16, {single} in fp32"),
        ("transformer training state", f"{training} (AdamW; activations not counted)"),
    ]
    print_table("Sizes", ["", ""], facts)
