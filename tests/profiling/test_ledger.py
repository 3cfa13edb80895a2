"""The ledger and ranges: counts against torch's own and by hand, memory by kind, functions that are
whole again afterwards.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attention_cases import make_case
from mudit_engine.kernels.attention import attention
from mudit_engine.profiling import strict
from mudit_engine.profiling.ledger import Ledger, kind_of
from mudit_engine.profiling.ranges import Clock, Watch


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_flops_equal_torchs(mode: type) -> None:
    model, x = network(), torch.randn(5, 8)
    with mode(), FlopCounterMode(display=False) as counter:
        model(x)
    with mode(), Ledger() as ledger:
        model(x)
    assert ledger.flops == counter.get_total_flops() == 2 * 5 * (8 * 16 + 16 * 4)
    assert ledger.launches == 3


def test_backward_is_counted_as_well() -> None:
    model, x = network(), torch.randn(5, 8)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    model.zero_grad()
    with Ledger() as ledger:
        model(x).sum().backward()
    assert ledger.flops == counter.get_total_flops()


def test_fused_attention_counts_as_its_products() -> None:
    q, k, v = (torch.randn(2, 3, n, 16) for n in (7, 5, 5))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(q, k, v)
    with torch.inference_mode(), Ledger() as ledger:
        F.scaled_dot_product_attention(q, k, v)
    assert ledger.flops == counter.get_total_flops() == 4 * 2 * 3 * 7 * 5 * 16


@pytest.mark.skipif(not strict.INTERPRETED, reason="runs the kernels in the interpreter")
def test_our_own_attention_counts_its_segments() -> None:
    case = make_case([70, 33], keys=[20, 5], head_dim=64, heads=2, dtype=torch.float32)
    with torch.no_grad(), Ledger(keep_ops=True) as ledger:
        case.run(attention)
    pairs = sum(q * k for _, q, _, k, _ in case.segments.items)
    found = [op for op in ledger.ops if op.kind == "attention"]
    assert found and found[0].flops == 4 * pairs * 2 * 64


def test_bytes_and_kinds() -> None:
    x = torch.randn(4, 8)
    with Ledger(keep_ops=True) as ledger:
        y = torch.cat((x, x))
        y.view(2, 32)
        F.layer_norm(y, (8,))
    (copy, norm) = ledger.ops
    assert (copy.name, copy.kind, copy.bytes) == ("cat", "copy", 2 * 128 + 256)
    assert norm.kind == "norm" and ledger.launches == 2
    assert kind_of("mudit::attention_fwd") == "attention" and kind_of("gelu") == "pointwise"


def test_memory_by_kind_follows_what_lives() -> None:
    weight = torch.randn(64)
    with Ledger(keep_ops=True) as ledger:
        ledger.claim([weight], "weights")
        big = torch.zeros(1024)
        small = big[:8] + 1
        del big
        ledger.claim([small], "plan")
        small = small * 2
    assert ledger.live == {"weights": 256, "activations": 32, "plan": 0}
    assert ledger.peak_bytes == 256 + 4096 + 32
    assert ledger.peak is not None and ledger.peak.bytes["weights"] == 256


def test_places_and_times() -> None:
    clock = Clock()
    with Ledger(timed=True) as ledger, Watch(clock, ledger) as watch:
        model = network()
        watch.modules(model, depth=1)
        with watch.range("step"):
            torch.mm(torch.ones(2, 2), torch.ones(2, 2))
    assert ledger.ops[-1].place == "step" and ledger.ops[-1].seconds > 0
    assert clock.calls == {"step": 1} and clock.seconds["step"] >= ledger.ops[-1].seconds


def test_what_was_watched_is_whole_again() -> None:
    class Engine:
        def step(self) -> int:
            return 3

    engine, model, clock = Engine(), nn.ModuleDict({"a": nn.Linear(2, 2)}), Clock()
    before = (Engine.step, vars(engine).copy())
    with Watch(clock) as watch:
        watch.function(engine, "step")
        watch.function(Engine, "step", "any")
        watch.function(F, "silu")
        watch.modules(model)
        assert engine.step() == 3 and Engine().step() == 3
        F.silu(model["a"](torch.ones(1, 2)))
    assert (Engine.step, vars(engine)) == before and not F.silu.__closure__
    assert not model["a"]._forward_hooks and not model["a"]._forward_pre_hooks
    assert clock.calls == {"step": 1, "any": 1, "a": 1, "silu": 1}
    engine.step()
    assert clock.calls["step"] == 1


def test_a_failing_function_closes_its_range() -> None:
    def fails() -> None:
        raise ValueError("no")

    owner, clock = nn.Module(), Clock()
    object.__setattr__(owner, "fails", fails)
    with Watch(clock) as watch:
        watch.function(owner, "fails")
        with pytest.raises(ValueError, match="no"):
            owner.fails()
        with watch.range("after"):
            pass
    assert clock.calls == {"fails": 1, "after": 1}
