"""Work that knows no other row, done in pieces of rows where nothing needs a gradient: the widest
tensors of a step then exist for a piece alone.

    y_ND = each_row(mlp, h_ND)

A guided step of four songs packs 5,508 rows of 1,536 at the paper's size. Its MLP is four times as
wide, QKV three times, and each of them whole would be most of what the step holds. Only the eager
path on a CPU is cut: on a GPU a launch costs more than memory does, autograd keeps the tensors
anyway, and compiled, exported and captured code has one shape for all rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mudit_engine import ops
from mudit_engine.kernels.rows import PIECE

# Products of 256 to 2,048 rows, 1,536 wide, took as long a row as those of 5,508 did, and gave the
# same bits (one thread). A smaller step has nothing to save, and each thread wants rows of its own.
ELEMENTS = PIECE


def row_pieces(x_ND: Tensor) -> list[slice] | None:
    """Slices of at least ELEMENTS a thread each that cover x; None where x is to be taken whole.

    Args:
        x_ND: [N, D] packed rows; padded rows [B, T, D] are never cut.

    Examples:
        >>> with torch.no_grad():
        ...     row_pieces(torch.zeros(10, 8)) is None  # too few
        True
    """
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or x_ND.dim() != 2
        or x_ND.device.type != "cpu"
        or ops.backend_of(x_ND) == "triton"
    ):
        return None
    count = x_ND.numel() // (ELEMENTS * torch.get_num_threads())
    if count < 2:
        return None
    ends = [x_ND.shape[0] * i // count for i in range(count + 1)]
    return [slice(*bounds) for bounds in itertools.pairwise(ends)]


def each_row(part: Callable[[Tensor], Tensor], x_ND: Tensor) -> Tensor:
    """part(x), whose rows know no other row; written over x where x is cut and as wide.

    Args:
        part: [n, D] rows -> [n, ...].
        x_ND: [N, D], which nobody needs again.

    Examples:
        >>> with torch.no_grad():
        ...     each_row(torch.sin, torch.zeros(3, 8)).shape
        torch.Size([3, 8])
    """
    if (pieces := row_pieces(x_ND)) is None:
        return part(x_ND)
    (whole,) = by_rows(lambda rows: (part(x_ND[rows]),), pieces, into=(x_ND,))
    return whole


def by_rows(
    part: Callable[[slice], Sequence[Tensor]],
    pieces: Sequence[slice],
    *,
    into: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """What `part` gives for each piece, end to end.

    Args:
        part: tensors of the rows of a slice.
        pieces: of all rows, in order (row_pieces).
        into: for each tensor, memory for its rows, such as the rows that `part` reads, of which it
            needs those of a slice once; None, or another type or width, makes a new tensor.

    Returns:
        A tensor of all rows for each that `part` gives.

    Examples:
        >>> x = torch.arange(4.0)
        >>> (doubled,) = by_rows(lambda rows: (2 * x[rows],), [slice(0, 2), slice(2, 4)], into=[x])
        >>> doubled.tolist(), doubled.data_ptr() == x.data_ptr()
        ([0.0, 2.0, 4.0, 6.0], True)
    """
    whole: list[Tensor] = []
    for rows in pieces:
        found = part(rows)
        if not whole:
            whole = [_room(own, one, pieces[-1].stop) for own, one in zip(into, found, strict=True)]
        for own, one in zip(whole, found, strict=True):
            own[rows].copy_(one)
    return tuple(whole)


def _room(own: Tensor | None, one: Tensor, count: int) -> Tensor:
    """Memory for `count` rows like those of `one`: `own` where it fits."""
    shape = (count, *one.shape[1:])
    if (
        own is not None
        and own.dtype == one.dtype
        and own.is_contiguous()
        and own.numel() == math.prod(shape)
    ):
        return own.view(shape)
    return one.new_empty(shape)
