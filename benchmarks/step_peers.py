"""One guided step of a mixed batch (songs that differ in length by nine): the engine beside three
open song transformers of equal width, depth and heads.

    rows = run(Options(size="small", rounds=5))                       # or: mudit bench run step

Peers pad the batch to its longest song, as their pipelines do. FLOPs are counted of every provider
(profiling/ledger.py), padding included; memory is the most that lives at once during the step, the
weights left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mudit_engine.benchmarks.end_to_end import check, make_network, make_states
from mudit_engine.benchmarks.peers import AceStepPeer, LongCatPeer, StableAudioPeer
from mudit_engine.benchmarks.registry import Options, Row, rows_of
from mudit_engine.benchmarks.timing import Gemm, interleave
from mudit_engine.benchmarks.workloads import Workload, mixed_songs, network_config, step_flops
from mudit_engine.errors import GateError
from mudit_engine.profiling.ledger import Ledger
from mudit_engine.runtime.denoiser import Denoiser

OURS = "mudit"
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIMITS = {"fp32": 1e-4, "bf16": 3e-2}


def usual_place() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(options: Options) -> list[Row]:
    """Rows of the engine and its peers. Raises GateError when a song of the batch is not the song
    alone.
    """
    config, songs, place = network_config(options.size), mixed_songs(options.size), usual_place()
    dtype, rounds = TORCH_DTYPES[options.dtype], options.rounds or 5
    workload = Workload("", songs, True, "")
    denoiser = Denoiser(make_network(config).to(place, dtype))
    options.report("checking")
    error = check(denoiser, workload, limit=LIMITS[options.dtype])
    states = make_states(denoiser, workload, steps=1)
    begin = [(state.x_TC.clone(), state.kept_TC.clone()) for state in states]

    def ours() -> None:
        # the same step again: a sampler with a row a round would change nothing in its cost
        for state, (x, kept) in zip(states, begin, strict=True):
            state.step, state.x_TC, state.kept_TC = 0, x, kept
        denoiser.step(states)

    calls: dict[str, Callable[[], Any]] = {OURS: ours}
    models: dict[str, torch.nn.Module] = {OURS: denoiser.dit}
    for make in (StableAudioPeer, AceStepPeer, LongCatPeer) if options.peers else ():
        peer = make(config)
        peer.model.to(place, dtype)
        calls[peer.name] = peer.prepare(songs, guidance=True)
        models[peer.name] = peer.model
        if options.compile:
            peer = make(config)
            peer.model.to(place, dtype).compile(dynamic=False)
            name = f"{peer.name}, torch.compile"
            calls[name], models[name] = peer.prepare(songs, guidance=True), peer.model
    counted = {}
    for name, call in calls.items():
        options.report(f"counting {name}")
        counted[name] = _count(call, models[name], compiled="torch.compile" in name)
    for name, call in calls.items():
        out = call()
        if out is not None and not torch.isfinite(out).all():
            raise GateError(f"{name} gives NaN or infinity: no speed is reported")
    options.report(f"{rounds} rounds of {len(calls)} providers")
    gemm = Gemm.of(dtype, device=place)
    times = interleave({**calls, "gemm": gemm.call}, rounds=rounds)
    yardstick = times.pop("gemm")
    more: dict[str, dict[str, Any]] = {
        name: {
            "parameters": sum(p.numel() for p in models[name].parameters()),
            "memory_bytes": counted[name][1],
            "figures": {"launches": counted[name][2]},
        }
        for name in calls
    }
    more[OURS] |= {"error": error, "limit": LIMITS[options.dtype]}
    more[OURS]["figures"]["useful_flops"] = step_flops(config, songs, guidance=True)
    return rows_of(
        "step",
        f"{options.size} {options.dtype}, {len(songs)} songs, {songs[0][0]}-{songs[-1][0]} frames",
        times,
        reference=next((n for n in calls if n != OURS), OURS),
        roles={OURS: "ours"},
        flops={name: found[0] for name, found in counted.items()},
        gemm=(yardstick, gemm.flops),
        more=more,
    )


def _count(
    call: Callable[[], Any], model: torch.nn.Module, *, compiled: bool
) -> tuple[float, int | None, int | None]:
    """FLOPs, most bytes living at once beside the weights, launches. A compiled model hides its
    operations.
    """
    if compiled:
        call()
        return 0.0, None, None
    with Ledger() as ledger:
        ledger.claim(model.parameters(), "weights")
        call()
    return ledger.flops, ledger.peak_bytes - ledger.live["weights"], ledger.launches
