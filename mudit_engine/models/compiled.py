"""The song transformer's blocks by torch.compile, in training: what lies between two attentions,
compiled once for all batches.

    compile_blocks(dit)                        # or dit.compile=blocks in a recipe

Attention stays as it is, on whatever backend it runs: it takes the batch's layout, which is Python
numbers. What is compiled takes tensors alone, whose rows are marked as dynamic: three functions for
serial blocks, two for parallel ones, each compiled once for all blocks. On a GPU the Triton kernels
inside are operators that the compiler leaves alone.

Only passes that record gradients run compiled; validation and sampling run as ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.kernels.adaln_traced import RunTensors
from mudit_engine.kernels.runs import Runs
from mudit_engine.layouts.dense import PerSequence

if TYPE_CHECKING:
    from mudit_engine.models.dit import DiT, Modulation

AnyRuns = Runs | RunTensors | PerSequence
BACKEND = "inductor"

L = TypeVar("L")


def compile_blocks(dit: DiT) -> None:
    """Has the blocks compiled, at their first pass that records gradients."""
    for block in dit.blocks:
        block.compiled = True


def plain(part: Callable[..., Any]) -> Callable[..., Any]:
    """The part as it is."""
    return part


def compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    """The part of a block (its first argument) compiled for any number of rows."""
    run = _compiled(part, BACKEND)

    def call(block: Any, *args: Any) -> Any:
        return run(block, *(_alike(one) for one in args))

    return call


def _alike(value: Any) -> Any:
    """The argument in the one form that is compiled for: dense, its rows any number."""
    if isinstance(value, RunTensors):
        for tensor in (value.index, value.tiles, value.offsets):
            _mark(tensor)
    elif isinstance(value, Tensor):
        value = value.contiguous()
        _mark(value)
    return value


@cache
def _compiled(part: Callable[..., Any], backend: str) -> Callable[..., Any]:
    function: Callable[..., Any] = torch.compile(part, fullgraph=True, backend=backend)
    return function


def _mark(tensor: Tensor) -> None:
    """Its rows may be any number; one row alone is always a case of its own to the compiler."""
    if tensor.shape[0] > 1:
        torch._dynamo.mark_dynamic(tensor, 0)


def recorded(y: Tensor) -> Tensor:
    """What attention gave, as a part of the graph: zeros, where no song of a batch has lyrics, are
    none, and would be another case to the compiler.
    """
    return y if y.requires_grad or not torch.is_grad_enabled() else y.requires_grad_()


def compilable(modulation: Modulation, layout: L) -> tuple[Modulation, L]:
    """(the modulation with at least two rows, the layout with its runs as tensors)."""
    runs: Runs = layout.runs  # type: ignore[attr-defined]
    rows = modulation.base.shape[0]
    if rows == 1:  # a row that no run names
        pad = [0, 0] * (modulation.base.dim() - 1) + [0, 1]
        modulation = dataclasses.replace(
            modulation,
            base=F.pad(modulation.base, pad),
            final=F.pad(modulation.final, (0, 0, 0, 1)),
        )
    tensors = RunTensors.of(runs, modulation.base.device, table_rows=max(rows, 2))
    return modulation, dataclasses.replace(layout, runs=tensors)  # type: ignore[type-var]
