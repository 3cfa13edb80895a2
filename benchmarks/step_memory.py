"""What a guided step of a mixed batch takes of memory, beside the padded peer, each in a process of
its own.

    rows = run(Options(size="published"))                 # or: mudit bench run memory

A process builds its network, then prepares the songs and takes one step. Its memory is the peak of
what is resident, from before the network was built; `work` is that without the weights: prepared
songs, lyric keys and values, and what a step holds. Weights are random: memory does not depend on
them. Results are held to each song alone first, by a small network (layouts depend on neither
width nor depth). Reads /proc, so it runs on Linux.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.config import DitConfig
from mudit_engine.errors import MissingError

Songs = tuple[tuple[int, int], ...]
PROVIDERS = {"mudit": "ours", "diffusers StableAudioDiT": "peer"}


def run(options: Options) -> list[Row]:
    """Rows of both. Raises MissingError where there is no /proc, GateError for a wrong result."""
    from mudit_engine.benchmarks.end_to_end import check, make_network
    from mudit_engine.benchmarks.workloads import Workload, mixed_songs, network_config
    from mudit_engine.runtime.denoiser import Denoiser

    if not Path("/proc/self/clear_refs").exists():
        raise MissingError("memory is read from /proc, which Linux alone has")
    tiny = Workload("", mixed_songs("tiny"), True, "")
    error = check(Denoiser(make_network(network_config("tiny"))), tiny)
    found = {}
    for name in PROVIDERS if options.peers else ["mudit"]:
        options.report(f"{name}: one step in a process of its own")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(measure, (name, options.size))
    reference = list(found)[-1]
    rows = []
    for name, memory in found.items():
        row = Row(
            "memory", f"{options.size} guided mixed step", name, PROVIDERS[name],
            reference=reference, memory_bytes=memory["peak_bytes"], threads=1,
        )  # fmt: skip
        if name == "mudit":
            row.error = error
        row.figures = memory | {
            "peak_of_reference": memory["peak_bytes"] / found[reference]["peak_bytes"],
            "work_of_reference": memory["work_bytes"] / found[reference]["work_bytes"],
        }
        rows.append(row)
    return rows


def measure(name: str, size: str) -> dict[str, Any]:
    """One step in this process: bytes at the peak, of weights, and of what is neither."""
    import torch

    from mudit_engine.benchmarks.end_to_end import make_network, make_states
    from mudit_engine.benchmarks.peers import StableAudioPeer
    from mudit_engine.benchmarks.timing import resident_bytes
    from mudit_engine.benchmarks.workloads import Workload, mixed_songs, network_config
    from mudit_engine.hardware import keep_freed_memory
    from mudit_engine.runtime.denoiser import Denoiser

    torch.set_num_threads(1)
    keep_freed_memory()  # as opening a model does

    def make(config: DitConfig) -> tuple[torch.nn.Module, Callable[[Songs], object]]:
        if name != "mudit":
            peer = StableAudioPeer(config)
            return peer.model, lambda songs: peer.prepare(songs, guidance=True)()
        denoiser = Denoiser(make_network(config))
        return denoiser.dit, lambda songs: denoiser.step(
            make_states(denoiser, Workload("", songs, True, ""), steps=2)
        )

    # modules that are imported when first called, and the library's buffers, are no step's memory
    make(network_config("tiny").model_copy(update={"blocks": 1}))[1](((8, 4),))
    before = resident_bytes("VmRSS")
    model, step = make(network_config(size))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (proc(5))
    step(mixed_songs(size))
    peak = resident_bytes("VmHWM") - before
    return {"peak_bytes": peak, "weight_bytes": weights, "work_bytes": peak - weights}
