"""The quickened interpreter knows what the stock one computes: the same types, the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from mudit_engine.profiling import strict

pytestmark = pytest.mark.skipif(not strict.INTERPRETED, reason="the interpreter is off")

SCALARS = (tl.int1, tl.int8, tl.uint16, tl.int32, tl.int64, tl.float16, tl.bfloat16, tl.float32)
SHAPES = ([1], [16], [4, 8], [8, 4], [2, 1, 4])


@pytest.fixture(autouse=True)
def quick() -> None:
    strict.install()


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter as it was."""
    for owner, name in (
        (tl.block_type, "__init__"),
        (tl.tensor, "__init__"),
        (interpreter, "_get_np_dtype"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    monkeypatch.setattr(
        interpreter.interpreter_builder, "options", interpreter.InterpreterOptions()
    )


@triton.jit
def _mixed_kernel(x_ptr, ids_ptr, out_ptr, n, N: tl.constexpr):
    rows, cols = tl.arange(0, N)[:, None], tl.arange(0, 2 * N)[None, :]
    ids = tl.load(ids_ptr + rows, mask=rows < n, other=0)
    x = tl.load(x_ptr + ids * (2 * N) + cols)
    y = tl.where(cols % 3 == 0, x.to(tl.bfloat16).to(tl.float32), x * 0.5 - ids)
    y = y + tl.sum(y, axis=1)[:, None] + (rows.to(tl.int64) * 3).to(tl.float32)
    tl.store(out_ptr + rows * (2 * N) + cols, y)


def run() -> torch.Tensor:
    torch.manual_seed(0)
    x, ids = torch.randn(8, 16), torch.randperm(8).to(torch.int32)
    out = torch.empty(8, 16)
    _mixed_kernel[(1,)](x, ids, out, 7, 8)
    return out


def described() -> list[object]:
    """All that a value says of its shape and type."""
    found: list[object] = []
    for scalar in (*SCALARS, tl.pointer_type(tl.float32), tl.pointer_type(tl.int8)):
        for shape in (*SHAPES, *SHAPES):
            block = tl.block_type(scalar, shape)
            value = tl.tensor(None, block)
            assert block.shape == shape and block.scalar == scalar and value.type is block
            found.append(
                (
                    *(block.name, block.numel, list(block.shape), type(block.shape)),
                    *(str(value), value.numel.value, str(value.shape), type(value.shape)),
                    *(value.dtype.name, interpreter._get_np_dtype(block)),
                )
            )
        single = tl.tensor(None, scalar)
        found.append((str(single), list(single.shape), single.numel.value))
        found.append(interpreter._get_np_dtype(scalar))
    return found


def test_types_and_bits_are_those_of_the_stock_interpreter(
    request: pytest.FixtureRequest,
) -> None:
    types, bits = described(), run()
    request.getfixturevalue("stock")
    assert types == described()
    assert torch.equal(bits, run())


def test_no_check_is_computed_whose_outcome_nobody_reads(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    semantic, asserted = interpreter.interpreter_semantic, []
    monkeypatch.setattr(semantic, "device_assert", lambda *given: asserted.append(given))
    run()
    assert not asserted
    request.getfixturevalue("stock")
    run()
    assert asserted and not interpreter.interpreter_builder.options.debug


@pytest.mark.parametrize("shape", [[3], [], [2, 3]], ids=str)
def test_shapes_that_are_none_are_still_refused(shape: list[int]) -> None:
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            tl.block_type(tl.float32, shape)
