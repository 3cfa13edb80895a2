"""FP8 products, by rows, for the widest layers of a step (QKV and MLP), behind a gate on whole
songs.

    fast = with_fp8(dit)                             # a copy; everything else keeps its dtype
    error = hold_to(Denoiser(fast), Denoiser(dit), songs)      # GateError above LIMIT
    SongPipeline.from_pretrained(folder, dtype=FP8)  # both, or: mudit generate --precision fp8

A weight is stored once as e4m3 with a scale for each output column; rows of activations get theirs
at every call: s = max|x| / 448. The product is torch._scaled_mm, which runs on tensor cores from
sm_89 on and, slowly, on a CPU. FP8 is a choice and never what `auto` takes: no GPU has measured
here what it gains, and what it loses is a song's own: hold_to renders songs both ways.

Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv 2209.05433).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mudit_engine.config import ModelConfig
from mudit_engine.errors import GateError, MissingError
from mudit_engine.models.dit import DiT
from mudit_engine.runtime.cost import noise_song
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, denoise

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LAYERS = ("qkv", "up", "down")
PROBE_SECONDS, PROBE_STEPS = 4.0, 12
LIMIT = 0.1
"""Relative L2 distance of a whole song's latents from those of the network's own dtype. Two songs
of 4 s of the tiny model are .044 and .046 from their fp32 selves in FP8, .012 in bf16 (CPU, 12
steps)."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [T, D] as e4m3 [T, D] and their scales, fp32 [T, 1]. Rows of zeros stay zeros.

    Examples:
        >>> q, scale = quantise(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
        >>> (q.float() * scale).tolist()
        [[1.0, -2.0], [0.0, 0.0]]
    """
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


class Fp8Linear(nn.Module):
    """A linear layer with an e4m3 weight [M, D] and a scale for each of its rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[T, M] of x's dtype."""
        rows, scale = quantise(x)
        weight, weight_scale = self.get_buffer("weight"), self.get_buffer("scale")
        if x.is_cuda:
            out: Tensor = torch._scaled_mm(
                rows, weight.t(), scale_a=scale, scale_b=weight_scale.t(), out_dtype=torch.bfloat16
            )
        else:  # CPUs have no such product by rows before torch 2.12: the same in fp32
            out = (rows.float() @ weight.float().t() * scale * weight_scale.t()).bfloat16()
        out = out.to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)


def check_device(device: torch.device) -> None:
    """Raises MissingError for a device without FP8 products: a CPU, which only imitates them, or a
    GPU below sm_89.
    """
    what = "a CPU imitates FP8 products, slower than any other"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 9):
            return
        what = f"{torch.cuda.get_device_name(device)} has no FP8 products (sm_89 and newer have)"
    raise MissingError(f"{what}: take --precision bf16, fp32 or auto")


def with_fp8(dit: DiT) -> DiT:
    """A copy of the network whose QKV and MLP products run in FP8, on a CPU too, where it is slow.
    Raises MissingError on a GPU without FP8.
    """
    device = dit.final.weight.device
    if device.type == "cuda":
        check_device(device)
    fast = copy.deepcopy(dit)
    for block in fast.blocks:
        for name in LAYERS:
            setattr(block, name, Fp8Linear(getattr(block, name)))
    return fast


def probe_songs(config: ModelConfig) -> list[SongInputs]:
    """Two songs that a network is held to itself with: PROBE_SECONDS of noise, sung and not."""
    frames = max(round(PROBE_SECONDS * config.vae.frame_rate), 1)
    plain = noise_song(config, frames, steps=PROBE_STEPS)
    ids = [i % config.dit.vocabulary_size for i in range(1, 1 + frames // 2)]
    return [plain, dataclasses.replace(plain, seed=1, lyric_ids=ids)]


def hold_to(
    fast: Denoiser, exact: Denoiser, songs: Sequence[SongInputs], *, limit: float = LIMIT
) -> float:
    """The largest relative distance of a song's latents, rendered to the end both ways, each song
    alone. Raises GateError above the limit.
    """
    worst = 0.0
    for number, song in enumerate(songs):
        [got], [want] = (denoise(one, [one.prepare(song)]) for one in (fast, exact))
        error = float((got.float() - want.float()).norm() / want.float().norm())
        if not error <= limit:
            raise GateError(
                f"song {number} in FP8 differs from itself by {error:.2f} of its norm (limit "
                f"{limit:g}): this network needs bf16, take --precision bf16"
            )
        worst = max(worst, error)
    return worst
