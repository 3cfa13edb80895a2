"""Guidance and one sampler update in one pass, with a row of coefficients for every song.

    out = uncond + w (cond - uncond)  x' = a x + b out + c kept + d noise  kept' = p x + q out

Every sampler of the engine is a table of rows (a, b, c, d, p, q, w): DDIM of any eta, Euler, Heun,
Euler-Maruyama, DPM-Solver++ 2M.

    x, kept = guided_step(x, kept, out, noise, rows, spans)

Each program takes a run of one song's elements, rows end to end, so that latents of any multiple of
8 channels fill whole 16-byte accesses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import (
    aligned,
    cdiv,
    check_rows,
    check_written,
    on_device,
    overwrite,
    row_starts,
    unobserved,
)

BLOCK = 1024
MAX_SONGS = 65535  # of the grid's second axis
MAX_ELEMENTS = 2**31 - BLOCK  # of one song: its elements are counted in 32 bits
COLUMNS = ("a", "b", "c", "d", "p", "q", "w")


@dataclass(frozen=True)
class SongRows:
    """Where each song of a batch lies in the latents and in the network's output.

    Args:
        items: (start, rows, cond_start, uncond_start) of each song: its first row and number of
            rows in x, kept and noise; the first rows of its conditional and its unconditional
            sequence in the network's output. uncond_start is -1 for a song that is not guided at
            this step (its output is the conditional one, whatever w says).
        plans: what launchers have already checked, kept by them; leave it out.

    Examples:
        Two songs of 2 and 3 frames; only the first is guided:

        >>> SongRows(((0, 2, 0, 5), (2, 3, 2, -1))).tensor("cpu").shape
        torch.Size([2, 4])
    """

    items: tuple[tuple[int, int, int, int], ...]
    _tensors: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was found out about these spans and buffers of a kind, so that it is checked once."""

    def tensor(self, device: torch.device | str) -> Tensor:
        """int32 [B, 4] on `device`, made once."""
        device = torch.device(device)
        if device not in self._tensors:
            self._tensors[device] = (
                torch.tensor(self.items, dtype=torch.int32).reshape(-1, 4).to(device)
            )
        return self._tensors[device]

    def take(self, other: SongRows) -> None:
        """Writes the spans of `other` over the tensors that were made of these, for launches that
        were captured with them; spans that are left have no rows. Raises ValueError for more songs
        than there are.
        """
        for table in self._tensors.values():
            overwrite(table, other.tensor("cpu"))

    @property
    def total(self) -> int:
        return sum(item[1] for item in self.items)

    @property
    def longest(self) -> int:
        return max([0, *(item[1] for item in self.items)])

    def check(self, *, rows: int, out_rows: int, channels: int = 1) -> None:
        """Raises ValueError when a span leaves the latents or the network's output, or two spans
        write the same rows.
        """
        for start, count, cond, uncond in self.items:
            if (
                min(start, count, cond) < 0
                or start + count > rows
                or max(cond, uncond) + count > out_rows
            ):
                raise ValueError(
                    f"span {(start, count, cond, uncond)} leaves the buffers of {rows} latent and "
                    f"{out_rows} output rows"
                )
        if len(self.items) > MAX_SONGS:
            raise ValueError(
                f"{len(self.items)} songs in one call: a launch takes {MAX_SONGS}, split the batch"
            )
        if any(count * channels > MAX_ELEMENTS for _, count, *_ in self.items):
            raise ValueError(
                f"a song of more than {MAX_ELEMENTS} elements in one call: cut it in spans"
            )
        placed = sorted(item[:2] for item in self.items if item[1])
        for (start, count), (after, _) in pairwise(placed):
            if start + count > after:
                raise ValueError(
                    f"two spans share latent rows from {after}: every song has rows of its own"
                )


def guided_step_reference(
    x_TC: Tensor,
    kept_TC: Tensor,
    out_NC: Tensor,
    noise_TC: Tensor | None,
    rows_B7: Tensor,
    spans: SongRows,
) -> tuple[Tensor, Tensor]:
    """One update of packed latents; returns new (x', kept') of x's dtype (fp32; float64 stays
    float64).

    x, kept, noise are [T, C]; out_NC [N, C] is the network's packed output (any float dtype),
    conditional and unconditional sequences of all songs in one buffer. rows_B7 are the songs'
    coefficients. noise may be None when every d is 0. Rows no span covers are returned unchanged.
    """
    new_x, new_kept = x_TC.clone(), kept_TC.clone()
    if noise_TC is None and bool((rows_B7[:, 3] != 0).any()):
        raise ValueError("a sampler row has d != 0 but no noise was given")
    for (start, count, cond_start, uncond_start), row in zip(spans.items, rows_B7, strict=True):
        a, b, c, d, p, q, w = row.to(x_TC.dtype).unbind()
        here = slice(start, start + count)
        x, out = x_TC[here], out_NC[cond_start : cond_start + count].to(x_TC.dtype)
        if uncond_start >= 0:
            uncond = out_NC[uncond_start : uncond_start + count].to(x_TC.dtype)
            out = uncond + w * (out - uncond)
        new = a * x + b * out
        # kept is undefined (it may hold NaN) until a row has written it. Chosen, not branched on:
        # a captured step runs this for rows whose values nobody on the host knows.
        new = torch.where(c != 0, new + c * kept_TC[here], new)
        if noise_TC is not None:
            new = torch.where(d != 0, new + d * noise_TC[here], new)
        new_x[here], new_kept[here] = new, p * x + q * out
    return new_x, new_kept


def _metadata(grid: tuple[int, ...], metadata: Any, args: dict[str, Any]) -> dict[str, Any]:
    x, out = args["x_ptr"], args["out_ptr"]
    streams = 4 + (args["noise_ptr"] is not None)
    return {
        "name": f"guided_step_{tuple(x.shape)}",
        "flops32": x.numel() * 12,
        "bytes": x.numel() * x.element_size() * streams + out.numel() * out.element_size(),
    }


@triton.jit(launch_metadata=_metadata)
def _guided_step_kernel(
    x_ptr,
    kept_ptr,
    out_ptr,
    noise_ptr,
    rows_ptr,
    spans_ptr,
    new_x_ptr,
    new_kept_ptr,
    stride_x_row,
    stride_kept_row,
    stride_out_row,
    stride_noise_row,
    stride_new_x_row,
    stride_new_kept_row,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NOISE: tl.constexpr,
):
    song = tl.program_id(1).to(tl.int64)
    span_ptr = spans_ptr + song * 4
    start, count = tl.load(span_ptr).to(tl.int64), tl.load(span_ptr + 1).to(tl.int64)
    cond_start, uncond_start = (
        tl.load(span_ptr + 2).to(tl.int64),
        tl.load(span_ptr + 3).to(tl.int64),
    )
    row_ptr = rows_ptr + song * 7
    a, b, c, d = tl.load(row_ptr), tl.load(row_ptr + 1), tl.load(row_ptr + 2), tl.load(row_ptr + 3)
    p, q, w = tl.load(row_ptr + 4), tl.load(row_ptr + 5), tl.load(row_ptr + 6)

    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, col = element // C, element % C
    live = row < count
    x = tl.load(row_starts(x_ptr, start + row, stride_x_row) + col, mask=live, other=0.0)
    out = tl.load(
        row_starts(out_ptr, cond_start + row, stride_out_row) + col, mask=live, other=0.0
    ).to(tl.float32)
    guided = live & (uncond_start >= 0)
    uncond = tl.load(
        row_starts(out_ptr, uncond_start + row, stride_out_row) + col, mask=guided, other=0.0
    ).to(tl.float32)
    out = tl.where(guided, uncond + w * (out - uncond), out)
    # kept may be unwritten memory and noise is often unused: neither is read unless its coefficient
    # says so
    kept = tl.load(
        row_starts(kept_ptr, start + row, stride_kept_row) + col, mask=live & (c != 0.0), other=0.0
    )
    new = a * x + b * out + c * kept
    if HAS_NOISE:
        new += d * tl.load(
            row_starts(noise_ptr, start + row, stride_noise_row) + col,
            mask=live & (d != 0.0),
            other=0.0,
        )
    else:
        # coefficients live on the device: nobody else can notice
        new = tl.where(d != 0.0, float("nan"), new)
    tl.store(row_starts(new_x_ptr, start + row, stride_new_x_row) + col, new, mask=live)
    tl.store(
        row_starts(new_kept_ptr, start + row, stride_new_kept_row) + col, p * x + q * out, mask=live
    )


def _launch(
    x: Tensor,
    kept: Tensor,
    out: Tensor,
    noise: Tensor | None,
    rows: Tensor,
    spans: Tensor,
    new_x: Tensor,
    new_kept: Tensor,
    max_rows: int,
) -> None:
    """One launch over [songs, blocks of the longest song]; programs past the end of a shorter song
    return at once.
    """
    if max_rows:
        channels = x.shape[1]
        with on_device(x.device):
            _guided_step_kernel[cdiv(max_rows * channels, BLOCK), spans.shape[0]](
                x,
                kept,
                out,
                noise,
                rows,
                spans,
                new_x,
                new_kept,
                x.stride(0),
                kept.stride(0),
                out.stride(0),
                0 if noise is None else noise.stride(0),
                new_x.stride(0),
                new_kept.stride(0),
                C=channels,
                BLOCK=BLOCK,
                HAS_NOISE=noise is not None,
                num_warps=4,
            )


def _new(
    x: Tensor,
    kept: Tensor,
    out: Tensor,
    noise: Tensor | None,
    rows: Tensor,
    spans: Tensor,
    max_rows: int,
    covered: bool,
) -> tuple[Tensor, Tensor]:
    """`covered`: the spans cover every row, so nothing has to be copied."""
    new_x = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if covered
        else x.clone(memory_format=torch.contiguous_format)
    )
    new_kept = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if covered
        else kept.clone(memory_format=torch.contiguous_format)
    )
    noise = None if noise is None else aligned(noise)
    _launch(aligned(x), aligned(kept), aligned(out), noise, rows, spans, new_x, new_kept, max_rows)
    return new_x, new_kept


def _in_place(
    x: Tensor,
    kept: Tensor,
    out: Tensor,
    noise: Tensor | None,
    rows: Tensor,
    spans: Tensor,
    max_rows: int,
) -> None:
    check_written({"x": x, "kept": kept}, {"out": out, "noise": noise})
    noise = None if noise is None else aligned(noise)
    _launch(x, kept, aligned(out), noise, rows, spans, x, kept, max_rows)


_guided_step = torch.library.custom_op("mudit::guided_step", _new, mutates_args=())
_guided_step_ = torch.library.custom_op(
    "mudit::guided_step_", _in_place, mutates_args=("x", "kept")
)


@_guided_step.register_fake
def _(
    x: Tensor,
    kept: Tensor,
    out: Tensor,
    noise: Tensor | None,
    rows: Tensor,
    spans: Tensor,
    max_rows: int,
    covered: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@_guided_step_.register_fake
def _(
    x: Tensor,
    kept: Tensor,
    out: Tensor,
    noise: Tensor | None,
    rows: Tensor,
    spans: Tensor,
    max_rows: int,
) -> None:
    return None


def _check(
    x_TC: Tensor,
    kept_TC: Tensor,
    out_NC: Tensor,
    noise_TC: Tensor | None,
    rows_B7: Tensor,
    spans: SongRows,
) -> None:
    """Raises ValueError for what the kernel cannot serve, whatever the strides and the values."""
    check_rows("x", x_TC)
    check_rows("out", out_NC)
    for name, given in (("x", x_TC), ("kept", kept_TC), ("noise", noise_TC)):
        if given is not None and (given.dtype != torch.float32 or given.shape != x_TC.shape):
            raise ValueError(
                f"{name} is {given.dtype} {tuple(given.shape)}: the sampler's state is float32 "
                f"{tuple(x_TC.shape)} (float64: eager)"
            )
    if (
        out_NC.shape[1] != x_TC.shape[1]
        or rows_B7.shape != (len(spans.items), 7)
        or rows_B7.dtype != torch.float32
    ):
        raise ValueError(
            f"out {tuple(out_NC.shape)}, coefficients {rows_B7.dtype} {tuple(rows_B7.shape)} for x "
            f"{tuple(x_TC.shape)} and"
            f" {len(spans.items)} songs: pass out [N, C] and float32 [B, 7]"
        )
    spans.check(rows=x_TC.shape[0], out_rows=out_NC.shape[0], channels=x_TC.shape[1])


def guided_step(
    x_TC: Tensor,
    kept_TC: Tensor,
    out_NC: Tensor,
    noise_TC: Tensor | None,
    rows_B7: Tensor,
    spans: SongRows,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Guidance and one sampler update of packed latents, in one pass by Triton; not differentiable.

        out = uncond + w (cond - uncond)
        x' = a x + b out + c kept + d noise        kept' = p x + q out

    Args:
        x_TC: fp32 [T, C], C a multiple of 8.
        kept_TC: fp32 [T, C]; not read where c is 0 (it may hold NaN).
        out_NC: [N, C] of any float dtype, the network's packed output.
        noise_TC: fp32 [T, C]; without it, a song whose row has d != 0 becomes NaN.
        rows_B7: fp32 [B, 7], the songs' coefficients (a, b, c, d, p, q, w).
        spans: where each song lies. Rows that none covers stay as they are.
        inplace: writes over x and kept.

    Returns:
        x' and kept', new tensors or, `inplace`, x and kept themselves.

    Raises:
        ValueError: for other dtypes, shapes or spans outside the buffers.

    Source:
        Ho and Salimans 2022, guidance (arXiv 2207.12598).

    Examples:
        >>> import torch
        >>> x, kept, out = torch.randn(2, 8), torch.zeros(2, 8), torch.randn(4, 8)
        >>> rows = torch.tensor([[1.0, -0.5, 0, 0, 0, 1, 3.0]])
        >>> spans = SongRows(((0, 2, 0, 2),))    # conditional rows 0 and 1, unconditional 2 and 3
        >>> new, _ = guided_step(x, kept, out, None, rows, spans)
        >>> exact, _ = guided_step_reference(x, kept, out, None, rows, spans)
        >>> bool(torch.allclose(new, exact, atol=1e-6))
        True
    """
    direct = unobserved(x_TC, kept_TC, out_NC, noise_TC)
    kinds = tuple(None if t is None else (t.shape, t.dtype) for t in (kept_TC, noise_TC, rows_B7))
    key = (x_TC.shape, x_TC.dtype, out_NC.shape, out_NC.dtype, kinds)
    plan = spans.plans.get(key) if direct else None
    if plan is None:
        _check(x_TC, kept_TC, out_NC, noise_TC, rows_B7, spans)
        plan = (spans.longest, spans.total == x_TC.shape[0])
        if direct:
            spans.plans[key] = plan
    longest, covered = plan
    for name, given in (("x", x_TC), ("kept", kept_TC)):
        if inplace and aligned(given) is not given:
            raise ValueError(
                f"{name} with strides {given.stride()} cannot be updated in place: rows must be "
                f"dense and 16-byte aligned"
            )
    if noise_TC is None and rows_B7.device.type == "cpu" and bool((rows_B7[:, 3] != 0).any()):
        raise ValueError("a sampler row has d != 0 but no noise was given")
    rows, where = rows_B7.to(x_TC.device).contiguous(), spans.tensor(x_TC.device)
    if inplace:
        (_in_place if direct else _guided_step_)(
            x_TC, kept_TC, out_NC, noise_TC, rows, where, longest
        )
        return x_TC, kept_TC
    arguments = (x_TC, kept_TC, out_NC, noise_TC, rows, where, longest, covered)
    new: tuple[Tensor, Tensor] = (_new if direct else _guided_step)(*arguments)
    return new
