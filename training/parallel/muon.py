"""Muon for the matrices inside the song transformer's blocks, AdamW for everything else, as one
optimiser.

    m' = m + (1 - beta) (g - m);  u = NS5(g + beta (m' - g));  w' = (1 - lr wd) w - lr s u

NS5 is five Newton-Schulz steps towards the nearest orthogonal matrix, in bf16, and
s = sqrt(max(1, rows / columns)). That is torch.optim.Muon; DeepSpeed 0.19.8's `muon_update` with
ns_method="standard" is the same but for the rounding of bf16: both are within a few percent of the
formula (tests/training/parallel/test_muon.py).

    optimizer = MuonAdamW(matrices, rest, lr=0.02, momentum=0.95, weight_decay=0.01)

DeepSpeed's own class runs under ZeRO 1 to 3 only by orthogonalising before it takes the gradient
norm, so that it clips the update and not the gradient; a recipe that asks for that is refused. At
stage 0 its engine steps with the optimiser here.

Sources: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

BLOCKS = ("blocks", "lyric_blocks")


def hidden_matrices(module: nn.Module) -> set[int]:
    """Ids of the parameters that Muon takes: weights of trained linear layers inside a block,
    without those that make its modulation (they start at 0 and read the time, not the rows).
    """
    return {
        id(part.weight)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and part.weight.requires_grad
        and not {*name.split(".")}.isdisjoint(BLOCKS)
        and "modulation" not in name.split(".")
    }


class MuonAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and AdamW with their groups in one list and their state in one dictionary.

    Args:
        matrices: of Muon, 2-D each.
        rest: groups of AdamW; each holds its own lr, betas, eps and weight_decay.
        lr: Muon's learning rate; its share of AdamW's is kept as `lr_share` of the group.
        momentum: Muon's beta.
        weight_decay: of `matrices`, decoupled.

    Raises:
        ValueError: for a parameter of Muon that is not 2-D.

    Source:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/

    Examples:
        >>> matrix, gain = nn.Parameter(torch.eye(2)), nn.Parameter(torch.ones(2))
        >>> rest = [{"params": [gain], "lr": 1e-3}]
        >>> optimizer = MuonAdamW([matrix], rest, lr=0.02, momentum=0.95, weight_decay=0.0)
        >>> (matrix @ gain).sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[matrix])
        ['momentum_buffer']
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        rest: Sequence[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        # what a group is told wins over the defaults, here and there
        muon = torch.optim.Muon(
            [{"params": list(matrices), "lr_share": lr / rest[0]["lr"]}],
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        adam = torch.optim.AdamW(list(rest), fused=True)
        super().__init__([*muon.param_groups, *adam.param_groups], {})
        self._halves = (muon, adam)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step of both halves, with the learning rates that the groups hold now."""
        assert closure is None
        count = 0
        for half in self._halves:
            # engines may exchange the lists and what is in them
            own = len(half.param_groups)
            half.param_groups = self.param_groups[count : count + own]
            half.state = self.state
            half.step()
            count += own
