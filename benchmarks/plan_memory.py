"""`mudit plan` against measurement: state on real gloo ranks and on rehearsals at 64 ranks,
activations at three lengths, packing.

    python -m mudit_engine.benchmarks.plan_memory --out benchmarks/results/plan_memory.json
    python -m mudit_engine.benchmarks.plan_memory --parts state,packing \\
      --rehearse musit-380m:64:1:fp32

    state        bytes by kind on 2 and 4 real gloo ranks and on rank 0 of rehearsals, each against
                 the closed forms: within 1 %
    activations  bytes that saved_tensors_hooks see, and the most that lives at once, of the real
                 network on the CPU, against the plan's fit: within 10 %
    packing      the training sampler on the plan's mix of lengths, at the best option's pack size:
                 at least 0.97 filled

The fit is of packs of several songs. In eager mode one song alone keeps some 7 % less (no copy that
joins the songs' attention outputs); on the kernels' path it makes no difference. Everything is
counted in tensor storages. Exit 4 when a gate fails. The rehearsal of a network of 1 B wants 12 GB
of memory.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mudit_engine.errors import GateError, MuditError
from mudit_engine.files import write_json
from mudit_engine.training.ranks import local_world

SMALL = {"dit": {"width": 512, "heads": 4, "blocks": 3}}
PACK = 17664  # frames of a micro-batch that `mudit plan` gives musit-380m on 8 x 8 A100
STATE_GATE, ACTIVATION_GATE, PACKING_GATE = 0.01, 0.10, 0.97
REAL = {
    2: [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
}
REAL[4] = REAL[2][:4]
REHEARSED = (
    "musit-380m:64:1:fp32,musit-380m:64:2:fp32,musit-380m:64:3:fp32,musit-380m:64:1:bf16,"
    "musit-1b:64:1:bf16,musit-1b:64:3:fp32"
)
Row = dict[str, Any]


def real_state(world: int) -> list[Row]:
    """Bytes of every rank of a real gloo world against the closed forms: of each case, the row of
    the worst rank.
    """
    from mudit_engine.training.planning.rehearse import Rehearsal, compare

    cases = [
        Rehearsal("musit-380m", world, {"zero_stage": stage}, precision, overrides=SMALL)
        for stage, precision in REAL[world]
    ]
    with tempfile.TemporaryDirectory() as folder:
        specs, out = Path(folder) / "specs.json", Path(folder) / "out.json"
        write_json(specs, [asdict(case) for case in cases])
        processes = []
        for place in local_world(world):
            env = {**os.environ, **place, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            command = [
                sys.executable,
                "-m",
                "mudit_engine.training.planning.rehearse",
                str(specs),
                str(out),
            ]
            processes.append(
                subprocess.Popen(
                    command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            )
        ends = [process.communicate()[1] for process in processes]
        if any(process.returncode for process in processes):
            raise MuditError(
                f"a rank of {world} failed: "
                f"{next(e for e, p in zip(ends, processes, strict=True) if p.returncode)[-600:]}"
            )
        ranks = [
            json.loads(out.with_name(f"{out.name}.{rank}").read_text()) for rank in range(world)
        ]
    return [
        max((compare(case, rank[number]) for rank in ranks), key=_error)
        for number, case in enumerate(cases)
    ]


def rehearsed_state(specs: list[str]) -> Iterator[Row]:
    """PRESET:WORLD:STAGE:PRECISION each; those of one preset and world share a process."""
    from mudit_engine.training.planning.rehearse import Rehearsal, compare, rehearse_all

    for _, group in itertools.groupby(specs, lambda spec: spec.split(":")[:2]):
        cases = []
        for spec in group:
            preset, world, stage, precision = spec.split(":")
            cases.append(Rehearsal(preset, int(world), {"zero_stage": int(stage)}, precision))
        for case, measured in zip(cases, rehearse_all(cases), strict=True):
            yield compare(case, measured)


def _error(row: Row) -> float:
    errors = [abs(entry["error"]) for entry in row["state"].values() if entry["error"] is not None]
    return float(max(errors))


def activations(preset: str, frames: int, lyrics: int, mode: Any, fitted: Any) -> Row:
    """One song through the real network on the CPU, forward and backward, against the fit."""
    from mudit_engine.config import load_config
    from mudit_engine.training.planning.step_cost import Pack, run_once

    pack = Pack.of([frames], [lyrics])
    measured = run_once(
        load_config(preset), pack, precision="fp32", checkpointing=mode, backend="eager", fake=False
    )
    planned = fitted.at(pack)
    row: Row = {"preset": preset, "frames": frames, "lyrics": lyrics, "checkpointing": mode}
    for name in ("saved_bytes", "peak_bytes"):
        was, said = getattr(measured, name), getattr(planned, name)
        row[name] = {"planned": said, "measured": was, "error": said / was - 1}
    return row


def packing() -> list[Row]:
    """Packs of the plan's mix at several sizes."""
    import numpy as np

    from mudit_engine.config import load_config
    from mudit_engine.training.dataset.lengths import read_lengths
    from mudit_engine.training.dataset.packing import plan_packs

    lengths = read_lengths("songs", load_config("musit-380m"))
    order = np.random.default_rng(0).permutation(len(lengths.frames))
    sizes = (4416, 8832, PACK, 2 * PACK)
    return [
        {"pack_size": size, "efficiency": plan_packs(order, lengths.frames, size).efficiency}
        for size in sizes
    ]


def run(
    parts: set[str],
    rehearsals: list[str],
    worlds: list[int],
    frames: list[int],
    modes: list[str],
    preset: str,
) -> Iterator[tuple[str, Row]]:
    """Every measurement of the parts, as it is made."""
    if "packing" in parts:
        for row in packing():
            yield "packing", row
    if "state" in parts:
        for world in worlds:
            for row in real_state(world):
                yield "state", row
        for row in rehearsed_state(rehearsals):
            yield "state", row
    if "activations" in parts:
        from mudit_engine.config import load_config
        from mudit_engine.training.planning.step_cost import fit

        for mode in modes:
            fitted = fit(load_config(preset), precision="fp32", checkpointing=mode, backend="eager")  # type: ignore[arg-type]
            for length in frames:
                yield "activations", activations(preset, length, round(0.24 * length), mode, fitted)


def gates(results: dict[str, list[Row]]) -> dict[str, Row]:
    """The worst of each part beside its gate."""
    found: dict[str, Row] = {}
    if results.get("state"):
        worst = max(_error(row) for row in results["state"])
        found["state"] = {"worst_error": worst, "gate": STATE_GATE, "passed": worst <= STATE_GATE}
    if results.get("activations"):
        worst = max(
            abs(row[name]["error"])
            for row in results["activations"]
            for name in ("saved_bytes", "peak_bytes")
        )
        found["activations"] = {
            "worst_error": worst,
            "gate": ACTIVATION_GATE,
            "passed": worst <= ACTIVATION_GATE,
        }
    if results.get("packing"):
        best = max(row["efficiency"] for row in results["packing"] if row["pack_size"] <= PACK)
        found["packing"] = {
            "efficiency": best,
            "pack_size": PACK,
            "gate": PACKING_GATE,
            "passed": best >= PACKING_GATE,
        }
    return found


def _line(part: str, row: Row) -> str:
    if part == "packing":
        return f"packs of {row['pack_size']:,} frames: {100 * row['efficiency']:.2f} % filled"
    if part == "activations":
        names = ("saved_bytes", "peak_bytes")
        pairs = [
            f"{name} {row[name]['measured'] / 2**20:,.1f} MiB ({100 * row[name]['error']:+.2f} %)"
            for name in names
        ]
        return (
            f"{row['preset']}, {row['frames']} frames, checkpointing {row['checkpointing']}: "
            f"{', '.join(pairs)}"
        )
    where = "real ranks" if row["real_ranks"] else "rehearsed ranks"
    total = row["state"]["all"]
    return (
        f"{row['parameters'] / 1e6:,.0f} M, {row['world']} {where}, ZeRO-{row['zero_stage']} "
        f"{row['precision']}: "
        f"{total['measured'] / 2**20:,.1f} MiB ({100 * total['error']:+.3f} %), worst kind "
        f"{100 * _error(row):.3f} %"
    )


@click.command(help=__doc__)
@click.option("--parts", default="packing,state,activations", show_default=True)
@click.option(
    "--rehearse",
    "rehearsals",
    default=REHEARSED,
    show_default=True,
    help="PRESET:WORLD:STAGE:PRECISION, several, or nothing.",
)
@click.option("--worlds", default="2,4", show_default=True, help="Real ranks.")
@click.option(
    "--modes",
    default="none,full,selective",
    show_default=True,
    help="Checkpointing of the activations that are measured.",
)
@click.option(
    "--frames",
    default="323,808,1616",
    show_default=True,
    help="Lengths of the song whose activations are measured.",
)
@click.option("--preset", default="musit-380m", show_default=True, help="Of the activations.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="JSON file; parts that it holds and that are not run again are kept.",
)
@click.option(
    "--add",
    is_flag=True,
    help="Add rows to those of --out instead of replacing the parts that are run.",
)
@click.option("--json", "as_json", is_flag=True)
def main(
    parts: str,
    rehearsals: str,
    worlds: str,
    modes: str,
    frames: str,
    preset: str,
    out: Path | None,
    add: bool,
    as_json: bool,
) -> None:
    from mudit_engine.hardware import environment

    wanted = set(parts.split(","))
    results: dict[str, list[Row]] = {}
    environment_ = environment()
    command = shlex.join(["python", "-m", "mudit_engine.benchmarks.plan_memory", *sys.argv[1:]])
    runs = [{"commit": environment_["commit"], "command": command}]
    if out is not None and out.exists():
        before = json.loads(out.read_text(encoding="utf-8"))
        results = {
            part: rows
            for part, rows in before["results"].items()
            if part != "gates" and (add or part not in wanted)
        }
        if results:  # rows are kept: so is what gave them
            runs = [*before["env"]["runs"], *runs]
            environment_ = before["env"] | environment_
    say: Callable[[str], None] = (lambda text: None) if as_json else click.echo
    environment_ |= {"runs": runs}
    environment_.pop("command", None)  # with the folders of this machine: each run has its own
    document: dict[str, Any] = {}
    counts, lengths = (
        [int(number) for number in text.split(",") if number] for text in (worlds, frames)
    )
    measured = run(
        wanted,
        [spec for spec in rehearsals.split(",") if spec],
        counts,
        lengths,
        modes.split(","),
        preset,
    )
    for part, row in itertools.chain(measured, [("", {})]):
        if part:
            results.setdefault(part, []).append(row)
            say(_line(part, row))
        document = {
            "schema_version": 1,
            "env": environment_,
            "results": {**results, "gates": gates(results)},
        }
        if out is not None:  # after every row: hours of measurement outlive an interruption
            write_json(out, document)
    judged = document["results"]["gates"]
    if as_json:
        click.echo(json.dumps(document, indent=2))
    failed = [name for name, gate in judged.items() if not gate["passed"]]
    if failed:
        raise SystemExit(GateError.exit_code)


if __name__ == "__main__":
    main()
