"""The whole model on the kernels: a two-block toy equals its eager self, forward, backward and
through a guided sampler step.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mudit_engine import ops
from mudit_engine.config import DitConfig, PathConfig, SamplerConfig
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, denoise

CONFIG = DitConfig(
    latent_channels=8,
    width=128,
    blocks=2,
    heads=2,
    mlp_ratio=2.0,
    lyric_width=64,
    lyric_blocks=1,
    description_width=16,
    max_fragments=4,
    vocabulary_size=50,
)
KINDS = [{}, {"cross_attention": "parallel"}, {"modulation": "per_block"}]


def make_model(changes: dict[str, object]) -> DiT:
    torch.manual_seed(0)
    model = DiT(CONFIG.model_copy(update=changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.08)
    return model


def make_batch(device: str) -> DitBatch:
    g = torch.Generator().manual_seed(1)
    frames, lyrics, fragments, references = [33, 1, 70], [5, 0, 12], [2, 0, 1], [0, 7, 20]
    return DitBatch(
        latents_TC=torch.randn(sum(frames), 8, generator=g).to(device),
        frames=frames,
        times_B=torch.rand(3, generator=g).to(device),
        seconds_B=torch.tensor([3.0, 0.1, 6.5], device=device),
        user_B=torch.tensor([0, 1, 2], device=device),
        descriptions=torch.randn(sum(fragments), 16, generator=g).to(device),
        fragments=fragments,
        lyric_ids=torch.randint(0, 50, (sum(lyrics),), generator=g).to(device),
        lyrics=lyrics,
        references=torch.randn(sum(references), 8, generator=g).to(device),
        reference_frames=references,
        reference_kinds=[0, 1, 2],
    )


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_forward_and_every_gradient_equal_eager(changes: dict[str, object], device: str) -> None:
    model, batch = make_model(changes).to(device), make_batch(device)
    results = {}
    for backend in ("eager", "triton"):
        model.zero_grad()
        with ops.use(backend):
            out = model(batch)
            out.square().sum().backward()
        results[backend] = (
            out.detach(),
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        )
    (eager, eager_grads), (triton, triton_grads) = results["eager"], results["triton"]
    # the kernels multiply fp32 as tf32: 10 bits of mantissa
    assert (triton - eager).norm() <= 3e-3 * eager.norm()
    assert eager_grads.keys() == triton_grads.keys()
    for name, grad in eager_grads.items():
        assert (triton_grads[name] - grad).norm() <= 1e-2 * grad.norm() + 1e-5, name


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_autocast_over_fp32_weights(changes: dict[str, object], device: str) -> None:
    """Strategy `single` in bf16: projections give bf16, parameters and the residual stream fp32."""
    model, batch = make_model({**changes, "blocks": 1}).to(device), make_batch(device)
    grads = {}
    for backend, autocast in (("eager", False), ("eager", True), ("triton", True)):
        model.zero_grad()
        with ops.use(backend), torch.autocast(device, torch.bfloat16, enabled=autocast):
            out = model(batch)
        out.float().square().sum().backward()
        grads[backend, autocast] = {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }
    exact = grads.pop(("eager", False))
    errors = {
        run: max(float((got[n] - g).norm() / (g.norm() + 1e-3)) for n, g in exact.items())
        for run, got in grads.items()
    }
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert errors["triton", True] <= 2 * errors["eager", True] <= 0.5, errors


def test_sampling_equals_eager(device: str) -> None:
    denoiser = Denoiser(make_model({}).to(device).eval())
    g = torch.Generator().manual_seed(2)
    songs = [
        SongInputs(
            frames=frames,
            seconds=frames / 10.77,
            table=sampler_table(
                PathConfig(), SamplerConfig(name="sde-euler", steps=2, guidance=guidance)
            ),
            seed=frames,
            descriptions=torch.randn(2, 16, generator=g),
            negative=torch.zeros(0, 16),
            lyric_ids=list(range(lyrics)),
        )
        for frames, lyrics, guidance in ((40, 6, 2.0), (9, 0, 1.0))
    ]
    results = {}
    for backend in ("eager", "triton"):
        with ops.use(backend):
            results[backend] = denoise(denoiser, [denoiser.prepare(song) for song in songs])
    for eager, triton in zip(results["eager"], results["triton"], strict=True):
        assert (triton - eager).norm() <= 3e-3 * eager.norm()
