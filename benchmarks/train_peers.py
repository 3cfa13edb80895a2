"""One training step of the song transformer: forward, loss, backward, clipping, AdamW; beside
diffusers' StableAudioDiTModel on the same songs padded to the longest.

    rows = run(Options(size="small", rounds=5))                       # or: mudit bench run train

The gate: the packed batch's loss is the sum of its songs' losses, and so are its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mudit_engine.benchmarks.end_to_end import make_network
from mudit_engine.benchmarks.peers import (
    CONTEXT_WIDTH,
    GLOBAL_WIDTH,
    PEER_LATENT,
    StableAudioPeer,
    padded,
)
from mudit_engine.benchmarks.registry import Options, Row, rows_of
from mudit_engine.benchmarks.step_peers import TORCH_DTYPES, usual_place
from mudit_engine.benchmarks.timing import Gemm, interleave
from mudit_engine.benchmarks.waterfall import whole_batch
from mudit_engine.benchmarks.workloads import mixed_songs, network_config
from mudit_engine.errors import GateError
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.models.outline import no_outline, pack_outlines
from mudit_engine.profiling.ledger import Ledger

OURS = "mudit"
LIMIT = 1e-4


def trainer(
    module: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype, place: str
) -> Callable[[], Tensor]:
    """A function that takes one step of AdamW on the loss, in autocast where it is not fp32."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

    def step() -> Tensor:
        with torch.autocast(place, torch.bfloat16, enabled=dtype != torch.float32):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def run(options: Options) -> list[Row]:
    """Rows of the engine and its peer. Raises GateError when packing changes a gradient."""
    config, songs, place = network_config(options.size), mixed_songs(options.size), usual_place()
    dtype, rounds = TORCH_DTYPES[options.dtype], options.rounds or 5
    dit = make_network(config).to(place).train().requires_grad_(True)
    options.report("checking")
    error = check_gradients(dit, songs)
    batch = _batch(dit, songs)
    goal = torch.randn_like(batch.latents_TC)
    calls: dict[str, Callable[[], Any]] = {
        OURS: trainer(dit, lambda: (dit(batch).float() - goal).square().mean(), dtype, place)
    }
    models: dict[str, nn.Module] = {OURS: dit}
    if options.peers:
        peer = StableAudioPeer(config)
        model = peer.model.to(place).train()
        calls[peer.name] = trainer(model, _padded_loss(model, peer, songs, place), dtype, place)
        models[peer.name] = model
        if options.compile:
            other = StableAudioPeer(config)
            compiled = other.model.to(place).train()
            compiled.compile(dynamic=False)
            name = f"{peer.name}, torch.compile"
            calls[name] = trainer(
                compiled, _padded_loss(compiled, other, songs, place), dtype, place
            )
            models[name] = compiled
    counted = {}
    for name, call in calls.items():
        options.report(f"counting {name}")
        call()  # the optimiser's state is made in the first step
        if "torch.compile" in name:
            continue
        with Ledger() as ledger:
            ledger.claim(models[name].parameters(), "weights")
            call()
        counted[name] = ledger
    options.report(f"{rounds} rounds of {len(calls)} providers")
    gemm = Gemm.of(dtype, device=place)
    times = interleave({**calls, "gemm": gemm.call}, rounds=rounds, warm=False)
    yardstick = times.pop("gemm")
    more: dict[str, dict[str, Any]] = {
        name: {"parameters": sum(p.numel() for p in models[name].parameters())} for name in calls
    }
    for name, ledger in counted.items():
        more[name] |= {
            "memory_bytes": ledger.peak_bytes - ledger.live["weights"],
            "figures": {"launches": ledger.launches},
        }
    more[OURS] |= {"error": error, "limit": LIMIT}
    return rows_of(
        "train",
        f"{options.size} {options.dtype}, {len(songs)} songs, {songs[0][0]}-{songs[-1][0]} frames",
        times,
        reference=next((n for n in calls if n != OURS), OURS),
        roles={OURS: "ours"},
        flops={name: ledger.flops for name, ledger in counted.items()},
        gemm=(yardstick, gemm.flops),
        more=more,
    )


def _batch(dit: DiT, songs: Sequence[tuple[int, int]]) -> DitBatch:
    """Each song once: the conditional half of a guided batch."""
    both = whole_batch(dit, songs, None)
    count, frames, lyrics = len(songs), sum(f for f, _ in songs), sum(n for _, n in songs)
    device = both.latents_TC.device
    return replace(
        both,
        latents_TC=both.latents_TC[:frames].clone(),
        frames=both.frames[:count],
        times_B=both.times_B[:count],
        seconds_B=both.seconds_B[:count],
        user_B=both.user_B[:count],
        fragments=both.fragments[:count],
        lyric_ids=both.lyric_ids[:lyrics],
        lyrics=both.lyrics[:count],
        reference_frames=both.reference_frames[:count],
        reference_kinds=both.reference_kinds[:count],
        outline=pack_outlines([no_outline(f, n, dit.config) for f, n in songs]).to(
            device, torch.float32
        )
        if dit.config.outline
        else None,
    )


def check_gradients(dit: DiT, songs: Sequence[tuple[int, int]]) -> float:
    """Distance of the packed batch's gradient of the first projection from the sum of the songs'.
    Raises GateError above the limit.
    """
    weight = dit.blocks[0].qkv.weight

    def gradient(batch: DitBatch) -> Tensor:
        loss = dit(batch).float().square().sum()
        (found,) = torch.autograd.grad(loss, [weight])
        return found

    whole = _batch(dit, songs)
    together, alone = gradient(whole), torch.zeros_like(weight)
    frame = token = 0
    for number, (frames, lyrics) in enumerate(songs):
        single = _batch(dit, [(frames, lyrics)])
        single = replace(
            single,
            latents_TC=whole.latents_TC[frame : frame + frames],
            lyric_ids=whole.lyric_ids[token : token + lyrics],
            seconds_B=whole.seconds_B[number : number + 1],
        )
        alone += gradient(single)
        frame, token = frame + frames, token + lyrics
    error = float((together - alone).norm() / alone.norm())
    if not error <= LIMIT:
        raise GateError(
            f"the packed batch's gradient differs from its songs' by {error:.1e} (limit "
            f"{LIMIT:.0e}): no speed is reported"
        )
    return error


def _padded_loss(
    model: nn.Module, peer: StableAudioPeer, songs: Sequence[tuple[int, int]], place: str
) -> Callable[[], Tensor]:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    batch, frames, context = padded(songs, guidance=False)
    x = torch.randn(batch, PEER_LATENT, frames, device=place)
    states = torch.randn(batch, context, CONTEXT_WIDTH, device=place)
    summary = torch.randn(batch, 1, GLOBAL_WIDTH, device=place)
    rotary = tuple(
        table.to(place)
        for table in get_1d_rotary_pos_embed(
            peer.head_dim // 2, frames + 1, use_real=True, repeat_interleave_real=False
        )
    )
    times = torch.full((batch,), 0.5, device=place)
    goal = torch.randn_like(x)
    rows = torch.tensor([f for f, _ in songs], device=place)
    real = (torch.arange(frames, device=place)[None] < rows[:, None])[:, None]

    def loss() -> Tensor:
        out = model(
            x,
            times,
            encoder_hidden_states=states,
            global_hidden_states=summary,
            rotary_embedding=rotary,
            return_dict=False,
        )[0]
        return ((out.float() - goal).square() * real).sum() / (real.sum() * PEER_LATENT)

    return loss
