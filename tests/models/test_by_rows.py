"""Work in pieces of rows: a step's results are those of whole rows, bit for bit, and its widest
tensors exist for a piece alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mudit_engine import ops
from mudit_engine.models import by_rows
from mudit_engine.models.by_rows import each_row, row_pieces
from small_dits import MIXED, SMALL, make_model

KINDS = [{}, {"cross_attention": "parallel"}, {"qk_norm": False}, {"modulation": "per_block"}]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    rows = 32
    monkeypatch.setattr(by_rows, "ELEMENTS", rows * SMALL.width // torch.get_num_threads())
    yield


@pytest.mark.parametrize("changes", KINDS, ids=str)
@torch.no_grad()
def test_pieces_give_what_whole_rows_give(
    changes: dict[str, object], small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**changes)
    cut = []
    pieces_of = by_rows.row_pieces

    def seen(x_ND: torch.Tensor) -> list[slice] | None:
        cut.append(pieces_of(x_ND))
        return cut[-1]

    for module in ("mudit_engine.models.by_rows", "mudit_engine.models.dit"):
        monkeypatch.setattr(f"{module}.row_pieces", seen)
    in_pieces = model(MIXED)
    assert cut and all(pieces is not None and len(pieces) > 1 for pieces in cut)
    monkeypatch.setattr(by_rows, "ELEMENTS", 1 << 40)
    cut.clear()
    whole = model(MIXED)
    assert cut and not any(cut)
    torch.testing.assert_close(in_pieces, whole, rtol=2e-6, atol=2e-7)


@torch.no_grad()
def test_half_precision_and_autocast_keep_their_types(small_pieces: None) -> None:
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(MIXED)
        by_rows.ELEMENTS = 1 << 40
        whole = model(MIXED)
    assert found.dtype == whole.dtype
    torch.testing.assert_close(found.float(), whole.float(), rtol=2e-2, atol=2e-2)


def test_pieces_cover_all_rows_and_are_never_short() -> None:
    with torch.no_grad():
        least = by_rows.ELEMENTS * torch.get_num_threads() // 1024
        for rows in (0, 1, 2 * least - 1, 2 * least, 5 * least + 7):
            pieces = row_pieces(torch.empty(rows, 1024))
            if rows < 2 * least:
                assert pieces is None
                continue
            assert pieces is not None
            covered = [row for one in pieces for row in range(one.start, one.stop)]
            assert covered == list(range(rows))
            assert min(one.stop - one.start for one in pieces) >= least


def test_rows_are_taken_whole_where_they_must_be() -> None:
    x = torch.zeros(2 * by_rows.ELEMENTS * torch.get_num_threads() // 64, 64)
    assert row_pieces(x) is None, "gradients are recorded"
    with torch.no_grad():
        assert row_pieces(x[None]) is None, "padded rows"
        with ops.use("triton"):
            assert row_pieces(x) is None, "a launch a piece"
        seen: list[object] = []

        def compiled(y: torch.Tensor) -> torch.Tensor:
            seen.append(row_pieces(y))
            return y + 1

        torch.compile(compiled, backend="eager")(x)
        assert row_pieces(x) is not None
    assert seen == [None], "compiled"


class Widest(TorchDispatchMode):
    """Elements a row of the widest tensor that has all rows of a batch."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.width = rows, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor) and one.shape[:1] == (self.rows,):
                self.width = max(self.width, one.numel() // self.rows)
        return found


@torch.no_grad()
def test_no_tensor_of_a_step_is_wider_than_its_rows(small_pieces: None) -> None:
    model = make_model()
    rows = sum((*MIXED.frames, *MIXED.fragments, *MIXED.reference_frames))
    with Widest(rows) as in_pieces:
        model(MIXED)
    assert in_pieces.width == model.config.width
    by_rows.ELEMENTS = 1 << 40
    with Widest(rows) as whole:
        model(MIXED)
    assert whole.width == model.config.mlp_width


@torch.no_grad()
def test_rows_are_written_over_where_they_fit(small_pieces: None) -> None:
    x = torch.randn(200, SMALL.width)
    wanted = x.sin()
    found = each_row(torch.sin, x)
    assert torch.equal(found, wanted) and found.data_ptr() == x.data_ptr()
    half = each_row(lambda rows: rows[:, :4], x)
    assert torch.equal(half, wanted[:, :4]) and half.data_ptr() != x.data_ptr()
