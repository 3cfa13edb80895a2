"""How fast a run is: tokens/s, seconds of audio a second a device, MFU against a stated peak,
memory, time spent waiting for data.

    MFU = 3 forward FLOPs of the global batch / (step seconds * devices * peak)

Recomputation is not useful work.

meter = Meter(recipe, device, world=8)
meter.step(tokens=16384, seconds=1520.0, flops=3.1e14, step_seconds=0.9)
"""

from __future__ import annotations

import resource
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from mudit_engine.config import DitConfig
    from mudit_engine.models.dit import DitBatch
    from mudit_engine.training.recipe import Recipe

BACKWARD = 2  # of a forward's FLOPs
# dense matrix products, TFLOP/s of one device by its data sheet: (name in the driver, bf16, fp32
# without TF32)
PEAKS = (
    ("B200", 2250.0, 75.0),
    ("H200", 989.4, 66.9),
    ("H100 PCIe", 756.0, 51.2),
    ("H100", 989.4, 66.9),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("A10G", 70.0, 35.0),
    ("A10", 125.0, 31.2),
    ("V100", 0.0, 15.7),
    ("RTX 4090", 165.2, 82.6),
)


def stated_peak(recipe: Recipe, device: torch.device) -> float | None:
    """FLOP/s of one device at the recipe's precision: what the recipe states, or else the data
    sheet's. None: unknown.
    """
    if recipe.log.peak_tflops is not None:
        return recipe.log.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, bf16, fp32 in PEAKS:
        if part in name:
            return (bf16 if recipe.precision == "bf16" else fp32) * 1e12 or None
    return None


class Meter:
    """Figures of a step. Time spent on anything but steps (checkpoints,
    validation) is not in them.
    """

    def __init__(self, recipe: Recipe, device: torch.device, *, world: int) -> None:
        self.device, self.world = device, world
        self.peak = stated_peak(recipe, device)

    def step(
        self, *, tokens: float, seconds: float, flops: float, step_seconds: float
    ) -> dict[str, Any]:
        """tokens, seconds of audio and forward FLOPs of the global batch; the step's wall time."""
        took = max(step_seconds, 1e-9)
        figures: dict[str, Any] = {
            "tokens_per_s": round(tokens / took, 1),
            "audio_s_per_s_device": round(seconds / took / self.world, 2),
            "memory_mib": round(self.memory() / 2**20),
        }
        if self.peak is not None and flops:
            figures["mfu"] = round((1 + BACKWARD) * flops / (took * self.world * self.peak), 4)
        return figures

    def memory(self) -> int:
        """Peak bytes: of the device's allocator, or of this process on a CPU."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def counting() -> AbstractContextManager[Any]:
    """Counts the FLOPs of torch's own products and convolutions inside: `with counting() as c: ...;
    c.get_total_flops()`.

    It does not know the CPU's fused attention and our Triton kernels, which are a small part of the
    codec and of ChinMu.
    """
    from torch.utils.flop_counter import FlopCounterMode

    mode: AbstractContextManager[Any] = FlopCounterMode(display=False)
    return mode


def forward_flops(config: DitConfig, batch: DitBatch) -> float:
    """FLOPs of matrix products and attention in one forward pass of the song transformer (2 a
    multiply-add).
    """
    width, streams = config.width, 2 if config.cross_attention == "parallel" else 1
    target, lyrics, songs = sum(batch.frames), sum(batch.lyrics), len(batch.frames)
    rows = [
        t + r + d
        for t, r, d in zip(batch.frames, batch.reference_frames, batch.fragments, strict=True)
    ]
    n = sum(rows)
    block = (
        2 * n * width * (streams + 2) * width
        + 2 * n * streams * width * width
        + 4 * n * width * config.mlp_width
    )
    block += 2 * lyrics * config.lyric_width * 2 * width
    if streams == 1:
        block += 4 * n * width * width  # query and output of cross-attention
    block += (
        4 * width * sum(r * r + r * length for r, length in zip(rows, batch.lyrics, strict=True))
    )
    e = config.lyric_width
    encoder = 2 * lyrics * (3 * e * e + e * e + 8 * e * e) + 4 * e * sum(
        length * length for length in batch.lyrics
    )
    modulation = (
        2 * songs * width * 6 * width * (1 if config.modulation == "shared" else config.blocks)
    )
    time = 2 * 2 * songs * (256 * width + width * width)
    ends = (
        2 * config.latent_channels * width * (2 * target + sum(batch.reference_frames))
        + 2 * songs * width * 2 * width
    )
    ends += (
        2
        * config.description_width
        * width
        * (sum(batch.fragments) + (songs if config.pooled_description else 0))
    )
    if batch.outline is not None:
        ends += 2 * target * width * (batch.outline.features_TF.shape[1] + e)
    return float(config.blocks * block + config.lyric_blocks * encoder + modulation + time + ends)
