"""What each idea of the engine brings to a guided step of a mixed batch, one rung after another.

    padded      songs as long as the longest, all computed in each step, textbook operations
    ragged      songs end to end, nothing padded
    prepared    lyric keys and values, modulation, conditions and tables once a song
    fused       the engine's operations: norms, gates, GELU in one pass; on CUDA our kernels
    bf16        networks in half precision
    runtimes    the same step as an exported graph, of a deployment folder (--folder)

    rows = run(Options(size="small", rounds=5))             # or: mudit bench run waterfall

Every rung but the padded one, which has no masks and so computes other songs, is held to the fused
one before anything is timed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine import ops
from mudit_engine.benchmarks.end_to_end import make_network, make_states
from mudit_engine.benchmarks.registry import Options, Row, rows_of
from mudit_engine.benchmarks.step_peers import usual_place
from mudit_engine.benchmarks.timing import Gemm, interleave
from mudit_engine.benchmarks.workloads import Workload, mixed_songs, network_config
from mudit_engine.config import load_config
from mudit_engine.errors import GateError
from mudit_engine.kernels.adaln import EPS
from mudit_engine.kernels.runs import Runs
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.models.outline import no_outline, pack_outlines
from mudit_engine.profiling.ledger import Ledger
from mudit_engine.runtime.denoiser import Denoiser, SongState

LIMIT, BF16_LIMIT = 1e-4, 5e-2
SECONDS_PER_FRAME = 1 / 5.86


@contextlib.contextmanager
def textbook_operations() -> Iterator[None]:
    """The norms, gates and GELU as a textbook writes them: one operation after another, each with a
    result of its own, modulation rows spread over all tokens.
    """

    def layer_norm_modulate(
        x: Tensor, shift: Tensor | None, scale: Tensor | None, runs: Runs | None
    ) -> Tensor:
        h = F.layer_norm(x, x.shape[-1:], eps=EPS)
        if shift is None or scale is None or runs is None:
            return h
        index = runs.tensor(x.device).long()
        return h * (1 + scale[index]) + shift[index]

    def residual_norm(
        x: Tensor,
        y: Tensor,
        gate: Tensor | None,
        shift: Tensor | None,
        scale: Tensor | None,
        runs: Runs | None,
    ) -> tuple[Tensor, Tensor]:
        if gate is not None and runs is not None:
            y = gate[runs.tensor(x.device).long()] * y
        x = x + y
        return x, layer_norm_modulate(x, shift, scale, runs)

    def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")

    own = {
        "layer_norm_modulate": layer_norm_modulate,
        "residual_norm": residual_norm,
        "linear_gelu": linear_gelu,
    }
    kept = {name: getattr(ops, name) for name in own}
    for name, function in own.items():
        setattr(ops, name, function)
    try:
        with ops.use("eager"):
            yield
    finally:
        for name, function in kept.items():
            setattr(ops, name, function)


def whole_batch(
    dit: DiT, songs: Sequence[tuple[int, int]], states: Sequence[SongState] | None
) -> DitBatch:
    """Both branches of all songs as one batch that is computed anew: with the songs' own lyrics and
    latents where states are given, else any.
    """
    config, device, dtype = dit.config, dit.final.weight.device, dit.final.weight.dtype
    generator = torch.Generator().manual_seed(2)
    ids = [
        torch.randint(0, config.vocabulary_size, (lyrics,), generator=generator)
        for _, lyrics in songs
    ]
    frames = [f for f, _ in songs]
    if states is None:
        x = torch.randn(sum(frames), config.latent_channels, device=device)
        seconds, times = [f * SECONDS_PER_FRAME for f in frames], [0.5] * len(songs)
        # as a padded batch has it: the unconditional half carries lyric rows as well
        unconditional = [n for _, n in songs]
    else:
        x = torch.cat([state.x_TC for state in states])
        seconds = [f * SECONDS_PER_FRAME for f in frames]
        times = [float(state.table.times[state.step]) for state in states]
        unconditional = [0] * len(songs)
    count = len(songs)
    lyric_ids = torch.cat([*ids, *(i[:n] for i, n in zip(ids, unconditional, strict=True))])
    lyrics = [n for _, n in songs] + unconditional
    outline = None
    if config.outline:
        parts = [no_outline(f, n, config) for f, n in zip(frames * 2, lyrics, strict=True)]
        outline = pack_outlines(parts).to(device, dtype)
    return DitBatch(
        latents_TC=torch.cat((x, x)).to(dtype),
        frames=frames * 2,
        times_B=torch.tensor(times * 2, device=device),
        seconds_B=torch.tensor(seconds * 2, device=device),
        user_B=torch.zeros(2 * count, dtype=torch.int64, device=device),
        descriptions=torch.zeros(0, config.description_width, device=device, dtype=dtype),
        fragments=[0] * 2 * count,
        lyric_ids=lyric_ids.to(device),
        lyrics=lyrics,
        references=torch.zeros(0, config.latent_channels, device=device, dtype=dtype),
        reference_frames=[0] * 2 * count,
        reference_kinds=[0] * 2 * count,
        outline=outline,
    )


class _Seen(Denoiser):
    """A denoiser whose last network output can be looked at."""

    out_NC: Tensor

    def update(self, states: Sequence[Any], out_NC: Tensor, *rest: Any, **options: Any) -> None:
        self.out_NC = out_NC
        super().update(states, out_NC, *rest, **options)


def _stepping(denoiser: _Seen, workload: Workload) -> Callable[[], Tensor]:
    """The first step of the workload's songs, again and again."""
    states = make_states(denoiser, workload, steps=1)
    begin = [(state.x_TC.clone(), state.kept_TC.clone()) for state in states]

    def step() -> Tensor:
        for state, (x, kept) in zip(states, begin, strict=True):
            state.step, state.x_TC, state.kept_TC = 0, x.clone(), kept.clone()
        denoiser.step(states)
        return denoiser.out_NC

    return step


def run(options: Options) -> list[Row]:
    """A row a rung, ratios against the padded one. Raises GateError when a rung computes something
    else.
    """
    config, songs, place = network_config(options.size), mixed_songs(options.size), usual_place()
    rounds = options.rounds or 5
    workload = Workload("", songs, True, "")
    dit = make_network(config).to(place)
    denoiser = _Seen(dit)
    states = make_states(denoiser, workload, steps=1)
    longest = (max(f for f, _ in songs), max(n for _, n in songs))
    batches = {
        "padded": whole_batch(dit, [longest] * len(songs), None),
        "ragged": whole_batch(dit, songs, states),
    }

    @torch.inference_mode()
    def anew(name: str) -> Tensor:
        with textbook_operations():
            out: Tensor = dit(batches[name])
        return out

    prepared = _stepping(_Seen(dit), workload)

    def textbook() -> Tensor:
        with textbook_operations():
            return prepared()

    calls: dict[str, Callable[[], Tensor]] = {
        "padded": lambda: anew("padded"),
        "ragged": lambda: anew("ragged"),
        "prepared": textbook,
        "fused": _stepping(denoiser, workload),
        "bf16": _stepping(_Seen(deepcopy(dit).to(torch.bfloat16)), workload),
    }
    options.report("checking")
    truth = calls["fused"]().float()
    errors = {}
    for name in ("ragged", "prepared", "bf16"):
        errors[name] = float((calls[name]().float() - truth).norm() / truth.norm())
        limit = BF16_LIMIT if name == "bf16" else LIMIT
        if not errors[name] <= limit:
            raise GateError(
                f"the rung '{name}' differs from the engine's step by {errors[name]:.1e} (limit "
                f"{limit:.0e}): no speed is reported"
            )
    counted = {}
    for name, call in calls.items():
        with Ledger() as ledger:
            ledger.claim(dit.parameters(), "weights")
            call()
        counted[name] = ledger
    options.report(f"{rounds} rounds of {len(calls)} rungs")
    gemm = Gemm.of(device=place)
    times = interleave({**calls, "gemm": gemm.call}, rounds=rounds)
    yardstick = times.pop("gemm")
    more: dict[str, dict[str, Any]] = {
        name: {
            "error": errors.get(name),
            "limit": None if name not in errors else BF16_LIMIT if name == "bf16" else LIMIT,
            "memory_bytes": ledger.peak_bytes - ledger.live.get("weights", 0),
            "figures": {"launches": ledger.launches, "bytes_moved": ledger.bytes},
        }
        for name, ledger in counted.items()
    }
    rows = rows_of(
        "waterfall",
        f"{options.size}, {len(songs)} songs of {songs[0][0]} to {songs[-1][0]} frames",
        times,
        reference="padded",
        roles=dict.fromkeys(calls, "step"),
        flops={name: ledger.flops for name, ledger in counted.items()},
        gemm=(yardstick, gemm.flops),
        more=more,
    )
    rows[
        0
    ].note = "every song as long as the longest: computes other songs, so it is held to nothing"
    return rows + (_runtimes(options) if options.folder is not None else [])


def _runtimes(options: Options) -> list[Row]:
    """The rungs of a deployment folder: torch beside every CPU runtime, one song of 30 s."""
    from mudit_engine.benchmarks.registered import runtime_rows

    assert options.folder is not None
    name = load_config(options.folder).name
    return runtime_rows("waterfall", f"{name}, exported", options, works=("step",))
