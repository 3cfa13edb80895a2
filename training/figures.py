"""The figures of a step: collected on the device, summed over the ranks there, read once.

    tensor = [what is summed over ranks: losses, logs, host figures | this rank's own losses]

    figures = Figures()
    figures.add(loss_sum, logs, share=1.0)                  # a micro-batch
    tensor = figures.pack([tokens, seconds], strategy)      # nothing waits here
    norm = strategy.step(phase, lr=lr, figures=tensor, judge=judge)   # the one read
    read = figures.unpack(values)                           # inside judge(norm, values)

A host that waited for the loss, and again for the gradient norm, would let the device run dry
twice a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mudit_engine.training.parallel.strategy import Logs, Strategy


@dataclass(frozen=True)
class Read:
    """What a step's figures came to: the loss sum and the logs of the global batch, the host
    figures summed over the ranks, and this rank's loss of each micro-batch.
    """

    loss: float
    logs: dict[str, float]
    host: list[float]
    own: list[float]


class Figures:
    """Of one phase of one step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.sums: dict[str, list[Tensor | float]] = {}

    def add(self, loss_sum: Tensor, logs: Logs, *, share: float) -> None:
        """One micro-batch, of which this rank counts `share`."""
        self.losses.append(loss_sum.detach() * share)
        for name, (value, amount) in logs.items():
            entry = self.sums.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + value.detach() * share, entry[1] + amount * share

    @property
    def _names(self) -> list[str]:
        return sorted(self.sums)

    def pack(self, host: Sequence[float], strategy: Strategy) -> Tensor:
        """fp64 [n] on the device, its first part summed over the ranks. `host` are figures that the
        host knows.
        """
        device = strategy.device
        own = torch.stack([loss.double() for loss in self.losses])
        values = [value for name in self._names for value in self.sums[name]]
        # what the host knows goes over in one copy that waits for nothing
        known = torch.tensor(
            [float(value) for value in [*values, *host] if not isinstance(value, Tensor)],
            dtype=torch.float64,
        )
        if device.type == "cuda":
            known = known.pin_memory()
        rest = iter(known.to(device, non_blocking=True).unbind())
        parts = [value.double() if isinstance(value, Tensor) else next(rest) for value in values]
        shared = torch.stack([own.sum(), *parts, *rest])
        return torch.cat([strategy.total(shared), own])

    def unpack(self, values: Sequence[float]) -> Read:
        """The values of a tensor that `pack` made."""
        names, micro_batches = self._names, len(self.losses)
        logs = {}
        for number, name in enumerate(names):
            total, weight = values[1 + 2 * number : 3 + 2 * number]
            if weight:
                logs[name] = total / weight
        shared = len(values) - micro_batches
        return Read(
            values[0], logs, list(values[1 + 2 * len(names) : shared]), list(values[shared:])
        )
