"""`mudit export tensorrt`: engines for a GPU, built here where that is possible, else the package
that builds them there.

mudit export tensorrt deploy --target rtx-sm80 --target rtx-portable
mudit export tensorrt deploy --target here --bucket 60:512
mudit export tensorrt deploy --record      # after build.sh of a build package, on the GPU host
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, progress
from mudit_engine.errors import GateError, InputError, MissingError, ModelError

GPUS = ("a100", "l40s", "h100", "h200", "b200")
SMS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121")
RTX = ("rtx-sm75", "rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120", "rtx-sm121", "rtx-portable")
GRAPHS = ("modulation", "lyric_kv", "conditions", "step", "vae_decode", "chinmu_text")


@click.command("tensorrt")
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(("here", *GPUS, *SMS, *RTX)),
    help="A GPU by its name or architecture, on which the engines are built; here is the GPU of "
    "this machine; rtx-* (TensorRT-RTX) are built anywhere, without a GPU. Repeatable.",
)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    metavar="SECONDS[:TOKENS]",
    help="Longest song of a profile. Repeatable.  [default: 4]",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice(GRAPHS),
    help="Build only this graph. Repeatable.  [default: all]",
)
@click.option(
    "--flavour",
    type=click.Choice(("bf16", "fp16")),
    default="bf16",
    show_default=True,
    help="Precision, as exported.",
)
@click.option(
    "--timing-cache/--no-timing-cache",
    default=True,
    show_default=True,
    help="Keep the builder's timings for the next build.",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="Of the builder.  [default: the builder's]",
)
@click.option(
    "--vae-optimization-level",
    type=click.IntRange(0, 5),
    help="Of the builder, for vae_decode.  [default: the builder's]",
)
@click.option(
    "--quantize",
    type=click.Choice(("fp8", "int8")),
    help="Build the `step` that `mudit export quantize` made.",
)
@click.option(
    "--package-only",
    is_flag=True,
    help="Write the build package for the GPU host, and build nothing.",
)
@click.option(
    "--record",
    is_flag=True,
    help="Build nothing: gate the engines that a package's script built, and enter them into the "
    "manifest. [default target: every package with engines]",
)
@json_option
def command(
    folder: Path,
    targets: tuple[str, ...],
    buckets: tuple[str, ...],
    graphs: tuple[str, ...],
    package_only: bool,
    record: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Build TensorRT engines of the deployment folder OUT (made by `mudit export onnx --flavour
    bf16`).

    Every engine must have all its attentions, projections and adaLN norms fused, or it is removed
    (exit code 4). A target that this machine cannot build leaves a build package in
    OUT/engines/TARGET, and the exit code is 3.
    """
    from mudit_engine.export.tensorrt_build import (
        Options,
        build_engines,
        make_plan,
        record_engines,
        target_here,
        write_package,
    )
    from mudit_engine.hardware import machine
    from mudit_engine.runtime.trt_targets import TARGETS

    if record:
        _record(folder, targets, as_json=as_json)
        return
    if not targets:
        raise InputError("--target is needed: --target here is the GPU of this machine")
    targets = tuple(target_here() if name == "here" else name for name in targets)
    options = Options(**chosen)
    plans = [
        make_plan(folder, TARGETS[name], buckets=buckets, options=options, graphs=graphs)
        for name in dict.fromkeys(targets)
    ]
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    broken: list[str] = []
    with progress(
        "building", total=sum(len(plan.graphs) for plan in plans), quiet=as_json
    ) as advance:
        for plan in plans:

            def report(name: str, target: str = plan.target.name) -> None:
                advance(1, text=f"building {name} for {target}")

            if package_only:
                write_package(plan)
                record_engines(plan, [])
                continue
            kept: list[dict[str, Any]] = []
            try:
                build_engines(plan, measured=bool(machine().gpus), report=report, keep=kept.append)
            except MissingError as error:
                missing.append(str(error))
            except GateError as error:
                broken.append(str(error))
            finally:
                record_engines(plan, kept)
                rows += kept
    if not (missing or broken):
        _show(folder, plans, rows, package_only=package_only, as_json=as_json)
        return
    if rows and not as_json:
        _show(folder, plans, rows, package_only=False, as_json=False)
    raise GateError("; ".join(broken)) if broken else MissingError("; ".join(missing))


def _record(folder: Path, targets: tuple[str, ...], *, as_json: bool) -> None:
    from mudit_engine.export.tensorrt_build import record_built, target_here
    from mudit_engine.export.tensorrt_engine import BUILT

    there = tuple(sorted(path.parent.name for path in folder.glob(f"engines/*/{BUILT}")))
    names = tuple(target_here() if name == "here" else name for name in targets) or there
    if not names:
        raise ModelError(
            f"'{folder}' has no engines that a build package's script built: run build.sh in "
            f"{folder}/engines/TARGET, on the GPU"
        )
    plans, rows, broken = [], [], []
    for name in names:
        try:
            plan, built = record_built(folder, name)
        except GateError as error:
            broken.append(str(error))
        else:
            plans.append(plan)
            rows += built
    if broken:
        raise GateError("; ".join(broken))
    _show(folder, plans, rows, package_only=False, as_json=as_json)


def _show(
    folder: Path, plans: list[Any], rows: list[dict[str, Any]], *, package_only: bool, as_json: bool
) -> None:
    if as_json:
        packages = {plan.target.name: plan.out for plan in plans}
        emit_json({"folder": str(folder), "packages": packages, "engines": rows})
        return
    if package_only:
        for plan in plans:
            note(
                f"build package for {plan.target.name}: {plan.out} (run build.sh in it, on the GPU "
                f"host)"
            )
        return
    cells = [
        [
            row["target"],
            row["name"],
            one["profile"],
            f"{row['build_seconds']:.0f}",
            f"{row['bytes'] / 2**20:.1f}",
            f"{_memory(row, index) / 2**20:.1f}",
            one["kernels"],
            *(
                f"{one[key]}/{one[f'{key}_wanted']}"
                for key in ("attentions", "qkv", "matrices", "norms")
            ),
        ]
        for row in rows
        for index, one in enumerate(row["fusion"])
    ]
    columns = [
        "target",
        "graph",
        "profile",
        "build s",
        "engine MiB",
        "scratch MiB",
        "kernels",
        "attention",
        "QKV",
        "gemm",
        "adaLN",
    ]
    print_table(
        "Engines, and what is fused in them (found/wanted)", columns, cells, numeric=columns[2:]
    )
    timed = [
        [
            row["target"],
            row["name"],
            one["profile"],
            *(f"{one[f'p{p}_ms']:.3f}" for p in (50, 90, 99)),
        ]
        for row in rows
        for one in row.get("measured") or ()
    ]
    if timed:
        columns = ["target", "graph", "profile", "p50", "p90", "p99"]
        print_table("Milliseconds, from a CUDA graph", columns, timed, numeric=columns[3:])
    else:
        note("not measured: there is no GPU here")


def _memory(row: dict[str, Any], profile: int) -> int:
    """Activation memory of a profile as the builder reports it, bytes."""
    figures: list[int] = row["memory"].get("Total Activation Memory") or [0]
    return figures[min(profile, len(figures) - 1)]
