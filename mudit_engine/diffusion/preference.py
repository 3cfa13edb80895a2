"""Diffusion-DPO: of two songs for one request, the better one is made likelier than the other,
measured against the network that training starts from.

    margin = -beta ((won - base_won) - (lost - base_lost))        loss = -log sigmoid(margin)

where won and lost are the denoising errors of the two songs at one noise level, by the network that
learns, and base_won and base_lost those of the fixed one. Whatever the network predicts (noise, v
or velocity), the error is that of its own target.

    loss_B, margin_B = preference_loss(won_B, lost_B, base_won_B, base_lost_B, beta=500.0)

beta stands for the product beta T omega of the paper. Source: Wallace et al. 2023 (arXiv
2311.12908), eq. 14; for velocities Liu et al. 2025 (arXiv 2501.13918), with a constant weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def song_errors(out_TC: Tensor, target_TC: Tensor, frames: Sequence[int]) -> Tensor:
    """Mean squared error of each packed song over its frames and channels, fp32 [songs] (fp64 for
    float64 outputs); songs of any length weigh the same.

    Raises ValueError where frames do not add up to T or a song has none.

    Examples:
        >>> song_errors(torch.ones(3, 2), torch.zeros(3, 2), [1, 2]).tolist()
        [1.0, 1.0]
    """
    if out_TC.shape != target_TC.shape or len(out_TC) != sum(frames) or min(frames) < 1:
        raise ValueError(
            f"out {tuple(out_TC.shape)} and target {tuple(target_TC.shape)} must both be "
            f"[{sum(frames)} = sum of frames, channels], and no song without frames"
        )
    wide = torch.promote_types(out_TC.dtype, torch.float32)
    error_T = (out_TC.to(wide) - target_TC.to(wide)).square().mean(1)
    return torch.stack([part.mean() for part in error_T.split(list(frames))])


def preference_loss(
    won_B: Tensor, lost_B: Tensor, base_won_B: Tensor, base_lost_B: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """(loss, margin) of each pair, [B]. The margin is positive where the network tells the better
    song from the other more than the base does; where both are one network it is 0 and the loss
    log 2.

    Examples:
        >>> errors = torch.tensor([0.5])
        >>> loss, margin = preference_loss(errors, errors, errors, errors, beta=500.0)
        >>> round(float(loss), 4), float(margin)
        (0.6931, 0.0)
    """
    margin_B = -beta * ((won_B - base_won_B) - (lost_B - base_lost_B))
    return -F.logsigmoid(margin_B), margin_B


__all__ = ["preference_loss", "song_errors"]
