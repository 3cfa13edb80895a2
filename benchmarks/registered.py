"""The benchmarks that have commands of their own, as rows of the registry.

    rows = e2e(Options(rounds=3))                                     # or: mudit bench run e2e

Their own documents (`mudit bench kernels|e2e|runtimes --json`) keep their form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.errors import InputError
from mudit_engine.names import GRAPH_RUNTIMES


def e2e(options: Options) -> list[Row]:
    """A step of the published size against diffusers' StableAudioDiTModel."""
    from mudit_engine.benchmarks.end_to_end import run
    from mudit_engine.benchmarks.workloads import WORKLOADS

    rows = []
    for found in run(list(WORKLOADS), rounds=options.rounds or 3, progress=options.report):
        ours = Row("e2e", found.workload, "mudit", "ours", reference=found.peer)
        ours.seconds_p20, ours.seconds_p50, ours.seconds_p80 = (
            found.seconds_p20,
            found.seconds_p50,
            found.seconds_p80,
        )
        ours.ratio, ours.flops = found.ratio_to_peer, found.tflop * 1e12
        ours.gemm_peak_gflops = found.gemm_peak_gflops
        ours.gemm_peak_fraction = found.gemm_peak_fraction
        ours.gemm_cpu_fraction = found.gemm_cpu_fraction
        ours.cpu_ratio = found.cpu_ratio_to_peer
        ours.rounds, ours.threads = found.rounds, found.threads
        ours.figures = {"process_peak_memory_mib": found.peak_memory_mib}
        peer = Row("e2e", found.workload, found.peer, "peer", reference=found.peer, ratio=1.0)
        peer.seconds_p50, peer.rounds, peer.threads = (
            found.peer_seconds_p50,
            found.rounds,
            found.threads,
        )
        rows += [ours, peer]
    return rows


def kernels(options: Options) -> list[Row]:
    """Every kernel on this machine's GPU. Raises MissingError where there is none."""
    from mudit_engine.benchmarks.measure_kernels import run

    found = run(peers=options.peers, rounds=options.rounds or 50, progress=options.report)
    return [_kernel_row("kernels", row) for row in found]


def kernels_static(options: Options) -> list[Row]:
    """Every kernel compiled for sm_80 and sm_90 and read: no speeds."""
    from mudit_engine.benchmarks.static_kernels import OPS, run

    found = run(
        arches=("sm_80", "sm_90"),
        ops=tuple(OPS),
        head_dims=(64, 96, 128),
        dtypes=("bf16",),
        peers=options.peers,
        processes=1,
    )
    rows = []
    for row in found:
        variant = str(row["variant"])
        rows.append(
            Row(
                "kernels-static",
                " ".join(str(row[k]) for k in ("op", "head_dim", "dtype", "arch") if row.get(k)),
                variant,
                "peer" if variant.startswith("peer:") else "ours",
                note=row.get("skipped"),
                figures={k: v for k, v in row.items() if _plain(v)},
            )
        )
    return rows


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _kernel_row(benchmark: str, row: dict[str, Any]) -> Row:
    found = Row(
        benchmark,
        " ".join(str(row[k]) for k in ("op", "head_dim", "dtype", "rows") if row.get(k)),
        row["provider"],
        "ours" if row["provider"] == "mudit" else "peer",
        reference="mudit",
        error=row["error"],
        note=row["note"],
    )
    if row["ms_p50"] is not None:
        found.seconds_p20, found.seconds_p50, found.seconds_p80 = (
            row[k] / 1e3 for k in ("ms_p20", "ms_p50", "ms_p80")
        )
        found.ratio = 1 / row["speedup_of_ours"]
        found.gemm_peak_fraction = row["gemm_peak_fraction"]
        if row["peak_memory_mib"] is not None:
            found.memory_bytes = row["peak_memory_mib"] << 20
        found.figures = {
            k: row[k]
            for k in ("tflops", "gigabytes_per_second", "copy_peak_fraction")
            if row[k] is not None
        }
    return found


def runtimes(options: Options) -> list[Row]:
    """Steps, decodes and songs of a deployment folder by every CPU runtime. Raises InputError
    without --folder.
    """
    if options.folder is None:
        raise InputError(
            "benchmark 'runtimes' needs a deployment folder: make one with `mudit export onnx "
            "MODEL FOLDER`, then pass --folder FOLDER"
        )
    return runtime_rows("runtimes", "", options)


def runtime_rows(
    benchmark: str,
    case: str,
    options: Options,
    *,
    works: Sequence[str] = ("step", "decode", "song"),
) -> list[Row]:
    """Rows of benchmarks/cpu_runtimes.py, against torch in fp32."""
    from mudit_engine.benchmarks.cpu_runtimes import run
    from mudit_engine.errors import MuditError

    if options.folder is None:
        raise MuditError("no deployment folder was given")
    rows = []
    for found in run(
        options.folder,
        runtimes=GRAPH_RUNTIMES if options.peers else (),
        lengths=(options.seconds or 30.0,),
        rounds=options.rounds or 5,
        works=works,
        report=options.report,
    ):
        rows.append(
            Row(
                benchmark,
                case or f"{found.model} {found.work} {found.song_seconds:g} s",
                found.runtime,
                "step" if case else "ours" if found.runtime.startswith("torch") else "peer",
                seconds_p50=found.seconds_p50,
                cpu_seconds_p50=found.cpu_seconds_p50,
                reference="torch",
                ratio=found.ratio_to_torch,
                cpu_ratio=found.cpu_ratio_to_torch,
                error=found.difference,
                audio_seconds=found.song_seconds if found.work == "song" else None,
                rounds=found.rounds,
                threads=found.threads,
            )
        )
    return rows
