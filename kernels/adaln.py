"""Adaptive LayerNorm and gated residuals over packed rows; the modulation row of each token is
looked up.

    layer_norm_modulate    h = LN(x) (1 + scale[r]) + shift[r]
    residual_norm          x' = x + gate[r] y;  h = LN(x') (1 + scale[r]) + shift[r]

r = runs (runs.py): which modulation row each run of packed rows takes.
residual_norm reads and writes the residual stream once.

    h = layer_norm_modulate(x, shift, scale, runs)
    x, h = residual_norm(x, y, gate, shift, scale, runs)

The Triton kernels are in adaln_kernels.py. A program takes a tile of rows of one run, so that the
modulation row is read once per tile. Backward, each tile also leaves one fp32 partial row of every
table gradient, and rows.segment_sums adds those of a table row in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .adaln_kernels import norm_bwd_kernel, norm_fwd_kernel, shape_of_program
from .rows import (
    DTYPES,
    aligned,
    by_pieces,
    cdiv,
    check_rows,
    check_written,
    on_device,
    processors,
    segment_sums,
    unobserved,
)
from .runs import Runs

EPS = 1e-6
MAX_WIDTH = 8192


def layer_norm_modulate_reference(
    x_TD: Tensor,
    shift_RD: Tensor | None,
    scale_RD: Tensor | None,
    runs: Runs | None,
    *,
    eps: float = EPS,
) -> Tensor:
    """LayerNorm without affine terms, then (1 + scale) and shift of the run's row; plain LayerNorm
    when they are None.
    """
    width = (x_TD.shape[1],)
    if shift_RD is None or scale_RD is None or runs is None:
        return F.layer_norm(x_TD, width, eps=eps)
    # under autocast tables may be of other types than the rows; layer_norm takes one alone
    scales, shifts = (1 + scale_RD.to(x_TD.dtype)).unbind(), shift_RD.to(x_TD.dtype).unbind()
    if len(runs.items) > 1 and by_pieces(x_TD):
        h = None  # a run is normalised and put in place before the next one
        for rows, r in runs.slices():
            part = F.layer_norm(x_TD[rows], width, scales[r], shifts[r], eps)
            h = part.new_empty(x_TD.shape) if h is None else h
            h[rows] = part
        return h
    parts = [F.layer_norm(x, width, scales[r], shifts[r], eps) for x, r in runs.split(x_TD)]
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def residual_norm_reference(
    x_TD: Tensor,
    y_TD: Tensor,
    gate_RD: Tensor | None,
    shift_RD: Tensor | None,
    scale_RD: Tensor | None,
    runs: Runs | None,
    *,
    eps: float = EPS,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (x + gate[r] y, its modulated LayerNorm). gate None is 1; shift and scale None give
    the plain LayerNorm.

    `inplace` writes the residual stream over x (inference only: autograd still needs x).
    """
    if gate_RD is None:
        x = x_TD.add_(y_TD) if inplace else x_TD + y_TD
    elif runs is None:
        raise ValueError("a gate needs runs: which modulation row each packed row takes")
    elif inplace:
        x = x_TD
        for (part, r), (y, _) in zip(runs.split(x), runs.split(y_TD), strict=True):
            part.addcmul_(y, gate_RD[r])
    else:
        gates = gate_RD.unbind()
        parts = [
            torch.addcmul(x, y, gates[r])
            for (x, r), (y, _) in zip(runs.split(x_TD), runs.split(y_TD), strict=True)
        ]
        x = torch.cat(parts) if len(parts) != 1 else parts[0]
    return x, layer_norm_modulate_reference(x, shift_RD, scale_RD, runs, eps=eps)


def _tile_rows(rows: int, device: torch.device, *, training: bool) -> int:
    """Rows of a tile: four programs a processor, since a step has few rows; training two, since
    every tile writes partial rows.
    """
    per_program = cdiv(rows, (2 if training else 4) * processors(device))
    return max(8, min(per_program, 96)) if training else max(1, min(per_program, 64))


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _aligned(x: Tensor | None) -> Tensor | None:
    return None if x is None else aligned(x)


def _forward(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    tiles: Tensor | None,
    total: Tensor | None,
    stats: Tensor | None,
    tile_rows: int,
    eps: float,
) -> Tensor:
    """Launches the forward kernel: h, and x + gate y into `total`, mean and 1 / deviation into
    `stats` where given.
    """
    rows, width = x.shape
    h = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    if rows:
        x, y, gate, shift, scale = (
            aligned(x) if total is not x else x,
            _aligned(y),
            _aligned(gate),
            _aligned(shift),
            _aligned(scale),
        )
        grid = (cdiv(rows, tile_rows) if tiles is None else tiles.shape[0],)
        with on_device(x.device):
            norm_fwd_kernel[grid](
                x, y, gate, shift, scale, tiles, total, h, stats, _stride(x), _stride(y),
                _stride(gate), _stride(shift), _stride(scale), _stride(total), rows, tile_rows, eps,
                HAS_TILES=tiles is not None, HAS_Y=y is not None,
                HAS_GATE=gate is not None, HAS_SCALE=scale is not None, HAS_STATS=stats is not None,
                **shape_of_program(width),
            )  # fmt: skip
    return h


@torch.library.custom_op("mudit::norm_backward", mutates_args=())
def _norm_backward(
    dh: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    stats: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    tiles: Tensor | None,
    offsets: Tensor | None,
    tile_rows: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dy, tables): x is what was normalised; dy is empty without a gate; tables [Q, R, D] of
    `dtype` are the gradients of shift, scale, gate.
    """
    rows, width = x.shape
    quantities = 2 * (scale is not None) + (gate is not None)
    dx = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    dy = torch.empty(
        rows if gate is not None else 0,
        width,
        dtype=x.dtype if y is None else y.dtype,
        device=x.device,
    )
    n_tiles = cdiv(rows, tile_rows) if tiles is None else tiles.shape[0]
    parts = torch.empty(quantities, n_tiles, width, dtype=torch.float32, device=x.device)
    if rows:
        dh, dtotal, x, y, gate, scale = (
            aligned(dh),
            _aligned(dtotal),
            aligned(x),
            _aligned(y),
            _aligned(gate),
            _aligned(scale),
        )
        shape = shape_of_program(width)
        with on_device(x.device):
            norm_bwd_kernel[(n_tiles,)](
                x, y, gate, scale, stats, tiles, dh, dtotal, dx, dy, parts, _stride(x), _stride(y),
                _stride(gate), _stride(scale), _stride(dh), _stride(dtotal), rows, tile_rows,
                n_tiles, HAS_TILES=tiles is not None, HAS_DSUM=dtotal is not None,
                HAS_GATE=gate is not None, HAS_SCALE=scale is not None,
                PARTS_IN_MEMORY=shape["BLOCK_D"] > 4096, **shape,
            )  # fmt: skip
    return dx, dy, segment_sums(parts, offsets, dtype=dtype)


def _modulated(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    tiles: Tensor | None,
    offsets: Tensor | None,
    tile_rows: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    stats = torch.empty(2, x.shape[0], dtype=torch.float32, device=x.device)
    return _forward(x, None, None, shift, scale, tiles, None, stats, tile_rows, eps), stats


_layer_norm_modulate = torch.library.custom_op(
    "mudit::layer_norm_modulate", _modulated, mutates_args=()
)


@torch.library.custom_op("mudit::residual_norm", mutates_args=())
def _residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    tiles: Tensor | None,
    offsets: Tensor | None,
    tile_rows: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    stats = torch.empty(2, x.shape[0], dtype=torch.float32, device=x.device)
    h = _forward(x, y, gate, shift, scale, tiles, total, stats, tile_rows, eps)
    return total, h, stats


def _in_place(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    tiles: Tensor | None,
    tile_rows: int,
    eps: float,
) -> Tensor:
    total = aligned(x)
    if total is x:
        # the same rows are read before they are written, other rows of x by another program
        same = y.data_ptr() == x.data_ptr() and y.stride() == x.stride()
        tables = {"gate": gate, "shift": shift, "scale": scale}
        check_written({"x": x}, tables if same else {"y": y, **tables})
    h = _forward(total, y, gate, shift, scale, tiles, total, None, tile_rows, eps)
    if total is not x:
        x.copy_(total)
    return h


_residual_norm_ = torch.library.custom_op("mudit::residual_norm_", _in_place, mutates_args=("x",))


@_layer_norm_modulate.register_fake
def _(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(2, x.shape[0], dtype=torch.float32)


@_residual_norm.register_fake
def _(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        x.new_empty(2, x.shape[0], dtype=torch.float32),
    )


@_residual_norm_.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape)


@_norm_backward.register_fake
def _(
    dh: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    stats: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    tiles: Tensor | None,
    offsets: Tensor | None,
    tile_rows: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = 1 if offsets is None else offsets.shape[0] - 1
    tables = x.new_empty(
        2 * (scale is not None) + (gate is not None),
        groups,
        x.shape[1],
        dtype=dtype,
    )
    dy = x.new_empty(
        x.shape if gate is not None else (0, x.shape[1]), dtype=x.dtype if y is None else y.dtype
    )
    return x.new_empty(x.shape), dy, tables


def _dtypes(*tables: Tensor | None) -> tuple[torch.dtype | None, ...]:
    return tuple(None if table is None else table.dtype for table in tables)


def _common(dtypes: tuple[torch.dtype | None, ...]) -> torch.dtype:
    """What gradients of tables are summed into: their own type if they share one, else fp32."""
    given = {dtype for dtype in dtypes if dtype is not None}
    return given.pop() if len(given) == 1 else torch.float32


def _as(
    gradients: tuple[Tensor, ...], dtypes: tuple[torch.dtype | None, ...]
) -> list[Tensor | None]:
    """The gradients, in order, of those tables that were given, each in its table's type."""
    left = iter(gradients)
    return [None if dtype is None else next(left).to(dtype) for dtype in dtypes]


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, shift, scale, tiles, offsets, ctx.tile_rows, _ = inputs
    ctx.dtypes = _dtypes(shift, scale)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], scale, tiles, offsets)


def _differentiate_norm(ctx: Any, dh: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, stats, scale, tiles, offsets = ctx.saved_tensors
    dtype = _common(ctx.dtypes)
    dx, _, tables = _norm_backward(
        dh, None, x, stats, None, None, scale, tiles, offsets, ctx.tile_rows, dtype
    )
    return (
        dx,
        *_as(tables.unbind(), ctx.dtypes),
        None,
        None,
        None,
        None,
    )


def _save_residual(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, y, gate, shift, scale, tiles, offsets, ctx.tile_rows, _ = inputs
    ctx.dtypes = _dtypes(shift, scale, gate)
    total, _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, stats, None if gate is None else y, gate, scale, tiles, offsets)


def _differentiate_residual(
    ctx: Any, dtotal: Tensor | None, dh: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    total, stats, y, gate, scale, tiles, offsets = ctx.saved_tensors
    if dh is None:
        dh = torch.zeros_like(total)
    dtype = _common(ctx.dtypes)
    dx, dy, tables = _norm_backward(
        dh, dtotal, total, stats, y, gate, scale, tiles, offsets, ctx.tile_rows, dtype
    )
    dshift, dscale, dgate = _as(tables.unbind(), ctx.dtypes)
    return (
        dx,
        dx if gate is None else dy,
        dgate,
        dshift,
        dscale,
        None,
        None,
        None,
        None,
    )


_layer_norm_modulate.register_autograd(_differentiate_norm, setup_context=_save_norm)
_residual_norm.register_autograd(_differentiate_residual, setup_context=_save_residual)


def _plan(
    x: Tensor, tables: tuple[Tensor | None, ...], runs: Runs | None, *, training: bool
) -> tuple[Tensor | None, Tensor | None, int]:
    """(tiles, offsets, rows of a tile) of a call, after checking its arguments. Without tables
    every tile is alike and none is listed.
    """
    check_rows("x", x, max_width=MAX_WIDTH)
    tile_rows = _tile_rows(x.shape[0], x.device, training=training)
    given = [table for table in tables if table is not None]
    if not given:
        return None, None, tile_rows
    shapes = {tuple(table.shape) for table in given}
    if len(shapes) != 1 or given[0].dim() != 2 or given[0].shape[1] != x.shape[1]:
        raise ValueError(
            f"modulation tables {sorted(map(str, shapes))} for width {x.shape[1]}: gate, shift and "
            f"scale are [R, D], equally many rows"
        )
    if wrong := sorted({str(table.dtype) for table in given if table.dtype not in DTYPES}):
        raise ValueError(
            f"modulation tables of {', '.join(wrong)} have no triton kernel (bfloat16, float16, "
            f"float32): use the eager backend"
        )
    if runs is None:
        raise ValueError("modulation needs runs: which table row each packed row takes")
    runs.check(rows=x.shape[0], table_rows=given[0].shape[0])
    return *runs.tiles(x.device, tile_rows=tile_rows, table_rows=given[0].shape[0]), tile_rows


def _check_sum(x: Tensor, y: Tensor) -> None:
    if y.shape != x.shape:
        raise ValueError(f"y {tuple(y.shape)} is added to x {tuple(x.shape)}: pass equal shapes")
    check_rows("y", y)


_UNTABLED: dict[Any, tuple[None, int]] = {}  # plans of calls without tables


def _looked_up(
    x: Tensor, y: Tensor, tables: tuple[Tensor | None, ...], runs: Runs | None
) -> tuple[Tensor | None, int]:
    """(tiles, rows of a tile) of a call where nothing is recorded, checked once for its shapes."""
    kinds = tuple(None if table is None else (table.shape, table.dtype) for table in tables)
    key = (x.shape, x.dtype, y.shape, y.dtype, x.device, kinds)
    plans: dict[Any, Any] = _UNTABLED if runs is None else runs.plans
    plan = plans.get(key)
    if plan is None:
        _check_sum(x, y)
        tiles, _, tile_rows = _plan(x, tables, runs, training=False)
        if len(_UNTABLED) > 1024:
            _UNTABLED.clear()
        plan = plans[key] = (tiles, tile_rows)
    return plan


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def layer_norm_modulate(
    x_TD: Tensor,
    shift_RD: Tensor | None,
    scale_RD: Tensor | None,
    runs: Runs | None,
    *,
    eps: float = EPS,
) -> Tensor:
    """LayerNorm without affine terms, then scale and shift of the run's table row, by Triton.

        h = LN(x) (1 + scale[r]) + shift[r]

    Differentiable.

    Args:
        x_TD: [T, D] in bf16, fp16 or fp32, D a multiple of 8 up to 8192.
        shift_RD: [R, D] table; rows may be strided (mod[:, 0] of [R, 6, D]). None for both tables
            gives the plain LayerNorm.
        scale_RD: [R, D] table.
        runs: which table row each run of packed rows takes.
        eps: of the LayerNorm.

    Returns:
        [T, D] of x's dtype.

    Raises:
        ValueError: for widths that are no multiple of 8 or above 8192, and for other dtypes.

    Source:
        Peebles and Xie 2023, section 3.2, adaLN (arXiv 2212.09748).

    Examples:
        >>> import torch
        >>> x, shift, scale = torch.randn(5, 8), torch.randn(2, 8), torch.randn(2, 8)
        >>> runs = Runs(((2, 0), (3, 1)))        # two rows take table row 0, three take row 1
        >>> h = layer_norm_modulate(x, shift, scale, runs)
        >>> exact = layer_norm_modulate_reference(x, shift, scale, runs)
        >>> bool(torch.allclose(h, exact, atol=1e-5))
        True
    """
    if shift_RD is None or scale_RD is None or runs is None:
        shift_RD = scale_RD = runs = None
    if unobserved(x_TD, shift_RD, scale_RD):
        tiles, tile_rows = _looked_up(x_TD, x_TD, (shift_RD, scale_RD), runs)
        return _forward(x_TD, None, None, shift_RD, scale_RD, tiles, None, None, tile_rows, eps)
    tiles, offsets, tile_rows = _plan(
        x_TD, (shift_RD, scale_RD), runs, training=_needs_grad(x_TD, shift_RD, scale_RD)
    )
    return _layer_norm_modulate(x_TD, shift_RD, scale_RD, tiles, offsets, tile_rows, eps)[0]


def residual_norm(
    x_TD: Tensor,
    y_TD: Tensor,
    gate_RD: Tensor | None,
    shift_RD: Tensor | None,
    scale_RD: Tensor | None,
    runs: Runs | None,
    *,
    eps: float = EPS,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """x + gate[r] y and its modulated LayerNorm, in one pass by Triton; differentiable.

        x' = x + gate[r] y        h = LN(x') (1 + scale[r]) + shift[r]

    The residual stream is read and written once.

    Args:
        x_TD: [T, D] in bf16, fp16 or fp32, D a multiple of 8 up to 8192.
        y_TD: [T, D], what a branch adds.
        gate_RD: [R, D] table; None is 1.
        shift_RD: [R, D] table; None with scale None gives the plain LayerNorm.
        scale_RD: [R, D] table.
        runs: which table row each run of packed rows takes.
        eps: of the LayerNorm.
        inplace: writes x' over x (no gradients then).

    Returns:
        x' and h, both [T, D].

    Raises:
        ValueError: as layer_norm_modulate does.

    Source:
        Peebles and Xie 2023, section 3.2, adaLN-Zero (arXiv 2212.09748).

    Examples:
        >>> import torch
        >>> x, y = torch.randn(2, 5, 8).unbind()
        >>> total, h = residual_norm(x, y, None, None, None, None)
        >>> bool(torch.allclose(total, x + y))
        True
    """
    if gate_RD is not None and runs is None:
        raise ValueError("a gate needs runs: which modulation row each packed row takes")
    if shift_RD is None or scale_RD is None or runs is None:
        shift_RD = scale_RD = None
    if unobserved(x_TD, y_TD, gate_RD, shift_RD, scale_RD):
        tiles, tile_rows = _looked_up(x_TD, y_TD, (gate_RD, shift_RD, scale_RD), runs)
        modulation = (gate_RD, shift_RD, scale_RD, tiles)
        if inplace:
            return x_TD, _in_place(x_TD, y_TD, *modulation, tile_rows, eps)
        total = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
        return total, _forward(x_TD, y_TD, *modulation, total, None, tile_rows, eps)
    _check_sum(x_TD, y_TD)
    training = _needs_grad(x_TD, y_TD, gate_RD, shift_RD, scale_RD)
    tiles, offsets, tile_rows = _plan(x_TD, (gate_RD, shift_RD, scale_RD), runs, training=training)
    if not inplace:
        return _residual_norm(
            x_TD, y_TD, gate_RD, shift_RD, scale_RD, tiles, offsets, tile_rows, eps
        )[:2]
    if training:
        raise ValueError(
            "inplace=True writes over x, which backward needs: pass inplace=False or use "
            "torch.no_grad()"
        )
    return x_TD, _residual_norm_(x_TD, y_TD, gate_RD, shift_RD, scale_RD, tiles, tile_rows, eps)
