"""Noise levels to train at, and the squared error over real target frames of a packed batch.

    loss = sum over frames of w_frame w_song mean_C (out - target)^2

divided by the frames of the *global* batch.

Returning the sum and the count apart keeps the gradient independent of how songs are spread over
ranks and accumulation steps.

    t_B = sample_times(len(songs), path, generator=g)
    loss_sum, frames = diffusion_loss(out_TC, target_TC, lengths)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mudit_engine.diffusion.paths import DdpmPath, Path
from mudit_engine.errors import ConfigError


def sample_times(
    count: int,
    path: Path,
    *,
    generator: torch.Generator | None,
    distribution: Literal["uniform", "logit-normal"] = "uniform",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    uniform_share: float = 0.1,
) -> Tensor:
    """Noise levels t, float32 [count], on the generator's device.

    ddpm: uniform over its discrete steps, t = (i + 1) / train_steps. linear and bezier: in [t_min,
    1), either uniform or logit-normal (Stable Diffusion 3, arXiv 2403.03206, eq. 19: most of the
    effort where t is neither end), mixed with a share of uniform draws, since the logit-normal
    alone hardly visits the ends, which a sampler does. Raises ConfigError where the options do not
    fit the path.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    if distribution not in ("uniform", "logit-normal"):
        raise ConfigError(
            f"distribution={distribution!r} of training times is unknown: use 'uniform' or "
            f"'logit-normal'"
        )
    if isinstance(path, DdpmPath):
        if distribution != "uniform":
            raise ConfigError(
                f"distribution={distribution!r} is for the linear and bezier paths: ddpm trains on "
                f"uniform discrete steps"
            )
        steps = path.config.train_steps
        index = torch.randint(steps, (count,), generator=generator, device=device)
        return ((index + 1).double() / steps).float()
    if logit_std <= 0 or not 0 <= uniform_share <= 1:
        raise ConfigError(
            f"logit_std={logit_std} must be positive and uniform_share={uniform_share} between 0 "
            f"and 1"
        )
    t = torch.rand(count, generator=generator, device=device)
    if distribution == "logit-normal":
        normal = torch.randn(count, generator=generator, device=device)
        keep = torch.rand(count, generator=generator, device=device) < uniform_share
        t = torch.where(keep, t, torch.sigmoid(logit_mean + logit_std * normal))
    return path.t_min + (1 - path.t_min) * t


def diffusion_loss(
    out_TC: Tensor,
    target_TC: Tensor,
    lengths: Sequence[int] | Tensor,
    *,
    frame_weights: Tensor | None = None,
    song_weights: Tensor | None = None,
) -> tuple[Tensor, int]:
    """(sum over target frames of the channel-mean squared error, number of frames). The sum is
    float32 (float64 for float64 outputs).

    lengths are the target frames of each song, in the order they are packed; their sum is T.
    frame_weights [T] and song_weights [B] multiply the error but leave the count alone, so that a
    weight of 1 everywhere changes nothing. Raises ValueError where shapes disagree.
    """
    counts = torch.as_tensor(lengths, dtype=torch.long).cpu()
    frames = int(counts.sum()) if isinstance(lengths, Tensor) else sum(lengths)
    if out_TC.shape != target_TC.shape or out_TC.shape[0] != frames:
        raise ValueError(
            f"out {tuple(out_TC.shape)} and target {tuple(target_TC.shape)} must both be [{frames} "
            f"= sum of lengths, channels]"
        )
    wide = torch.promote_types(out_TC.dtype, torch.float32)
    error_T = (out_TC.to(wide) - target_TC.to(wide)).square().mean(dim=1)
    if frame_weights is not None:
        if frame_weights.shape != (frames,):
            raise ValueError(
                f"frame_weights {tuple(frame_weights.shape)} must be [{frames}], one a target frame"
            )
        error_T = error_T * frame_weights
    if song_weights is not None:
        if song_weights.shape != counts.shape:
            raise ValueError(
                f"song_weights {tuple(song_weights.shape)} must be [{counts.numel()}], one a song"
            )
        error_T = error_T * song_weights.repeat_interleave(
            counts.to(song_weights.device), output_size=frames
        )
    return error_T.sum(), frames


def contrasted_rows(lengths: Sequence[int]) -> Tensor:
    """Row of the next song that stands against each row of packed songs, int64 [sum of lengths]:
    the same frame, counted around a shorter song's end.

    For contrastive flow matching (arXiv 2506.05350), whose loss is the error less a share of the
    squared distance from another sample's target. The last song takes the first. Raises ValueError
    for fewer than two songs: there is no other.

    Examples:
        >>> contrasted_rows([3, 2]).tolist()
        [3, 4, 3, 0, 1]
    """
    if len(lengths) < 2 or min(lengths) < 1:
        raise ValueError(f"lengths {list(lengths)} must be two songs or more, of a frame or more")
    starts = [0, *itertools.accumulate(lengths)]
    following = [*range(1, len(lengths)), 0]
    return torch.cat(
        [
            starts[other] + torch.arange(count) % lengths[other]
            for count, other in zip(lengths, following, strict=True)
        ]
    )


def min_snr_weights(path: Path, t: Tensor, *, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights (arXiv 2303.09556) for song_weights: the error of out, weighted as min(snr,
    gamma) weights the error of x0.

    snr = (alpha / sigma)^2 and x0 = p x + q out, so the weight is min(snr, gamma) q^2 for whatever
    the network predicts: min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v. t [B] in
    [path.t_min, 1]; returns t's shape and dtype.
    """
    wide = t.double()
    alpha, sigma = path.alpha(wide), path.sigma(wide)
    # snr q^2 = (alpha / det)^2 stays finite where alpha and det vanish together (eps at zero SNR)
    snr_weight = torch.where(alpha == 0, 0.0, (alpha / path.determinant(wide)) ** 2)
    return torch.minimum(snr_weight, gamma * (sigma / path.determinant(wide)) ** 2).to(t.dtype)
