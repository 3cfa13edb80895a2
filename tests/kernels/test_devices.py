"""Launches go to the device of their tensors, whichever device is current."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from triton.runtime.interpreter import GridExecutor

from attention_cases import make_case
from mudit_engine.kernels import adaln, attention, bias_gelu, guided_step, rows
from mudit_engine.kernels import pack_qkv as packing
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.kernels.rows import on_device
from mudit_engine.kernels.runs import Runs
from mudit_engine.profiling import strict


def attend() -> None:
    make_case([20], keys=[3], head_dim=64).run(attention.attention)


def normalise() -> None:
    x, mod = torch.randn(5, 16, requires_grad=True), torch.randn(1, 3, 16, requires_grad=True)
    runs = Runs(((5, 0),))
    adaln.layer_norm_modulate(x, mod[:, 0], mod[:, 1], runs).sum().backward()
    torch.autograd.backward(
        adaln.residual_norm(x, x, mod[:, 2], mod[:, 0], mod[:, 1], runs), [torch.ones(5, 16)] * 2
    )
    with torch.no_grad():
        adaln.residual_norm(torch.randn(5, 16), x, None, None, None, None, inplace=True)


def pack() -> None:
    qkv, gain, table = (
        torch.randn(5, 96, requires_grad=True),
        torch.randn(1, 16, requires_grad=True),
        torch.randn(5, 8),
    )
    q, k, v = packing.pack_qkv(qkv, gain, gain[0], table, table, heads=2)
    (q.sum() + k.sum() + v.sum()).backward()
    with torch.no_grad():
        packing.pack_kv(torch.randn(5, 64), None, table, table, heads=2)


def gelu() -> None:
    bias_gelu.bias_gelu(
        torch.randn(5, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    ).sum().backward()


def step() -> None:
    x, kept, out = torch.randn(3, 4, 8)
    for inplace in (False, True):
        guided_step.guided_step(
            x,
            kept,
            out,
            None,
            torch.tensor([[1.0, 1, 0, 0, 0, 0, 1]]),
            SongRows(((0, 4, 0, -1),)),
            inplace=inplace,
        )


@pytest.mark.skipif(not strict.INTERPRETED, reason="launches are watched in the interpreter")
@pytest.mark.parametrize("operation", [attend, normalise, pack, gelu, step])
def test_every_launch_is_on_the_device_of_its_tensors(
    operation: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[torch.device] = []
    launched: list[str] = []

    @contextlib.contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    stock = GridExecutor.__call__

    def launch(self, *args, **kwargs) -> None:
        assert current, f"{self.fn.__name__} is launched on whichever device is current"
        launched.append(self.fn.__name__)
        stock(self, *args, **kwargs)

    for module in (adaln, attention, bias_gelu, guided_step, packing, rows):
        monkeypatch.setattr(module, "on_device", enter)
    monkeypatch.setattr(GridExecutor, "__call__", launch)
    operation()
    assert launched


def test_the_guard_enters_cuda_devices_only() -> None:
    guard = on_device(torch.device("cuda", 1))
    assert isinstance(guard, torch.cuda.device) and guard.idx == 1
    with on_device(torch.device("cpu")):
        pass
