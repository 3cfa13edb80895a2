"""The products that stay in half precision are those that cost most, as few as the limit needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mudit_engine.errors import GateError
from mudit_engine.export import kept_products
from mudit_engine.export.kept_products import Search, loss, said
from mudit_engine.export.quantized_graph import Ranges

CHANNELS = 8
SIZES = {"small": 0.02, "large": 1.0, "middle": 0.4}  # of three products that are added


def graph() -> onnx.ModelProto:
    """`step` of a sampler that takes what the network says: large hears the first half of the
    channels, middle the other.
    """
    draw = np.random.default_rng(0)
    weights = {}
    for name, size in SIZES.items():
        weight = size * draw.normal(0, 1, (CHANNELS, CHANNELS)).astype(np.float32)
        if name != "small":
            weight[slice(CHANNELS // 2, None) if name == "large" else slice(CHANNELS // 2)] = 0
        weights[name] = weight
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}.y"], name) for name in SIZES]
    nodes.append(helper.make_node("Sum", [f"{name}.y" for name in SIZES], ["next"], "sum"))
    rows = [1, "rows", CHANNELS]
    shapes = {"x": rows, "kept": rows, "noise": rows, "coefficients": [1, 4]}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    made = helper.make_graph(
        nodes,
        "step",
        inputs,
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, rows)],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def call(seed: int, *, half: bool = False) -> dict[str, np.ndarray]:
    """Inputs of as many rows as no other seed has; with `half`, the first channels are silent."""
    x = np.random.default_rng(seed).normal(0, 1, (1, 10 + seed, CHANNELS)).astype(np.float32)
    if half:
        x[..., : CHANNELS // 2] = 0
    zero = np.zeros_like(x)
    coefficients = np.array([[0, 1, 0, 0]], np.float32)
    return {"x": x, "kept": zero, "noise": zero, "coefficients": coefficients}


def search(tmp_path: Path, *, calls: list[dict[str, np.ndarray]] | None = None) -> Search:
    """Ranges of int8 that are too wide, most of all those of `large`, so that something is lost."""
    model = graph()
    widths = dict.fromkeys(SIZES, 16.0) | {"large": 48.0}
    ranges = {
        one.name: Ranges(
            np.float64(widths[one.name] / 127),
            np.abs(numpy_helper.to_array(one)).max() / 127 + 1e-9,
        )
        for one in model.graph.initializer
    }
    calls = calls or [call(seed) for seed in range(5)]
    return Search(model, ranges, calls, kind="int8", work=tmp_path)


def test_the_costliest_stay_and_no_more(tmp_path: Path) -> None:
    one = search(tmp_path)
    nothing, large = max(one.losses(())), max(one.losses(["large"]))
    both = max(one.losses(["large", "middle"]))
    assert nothing > 3 * large > 9 * both > 0
    assert max(one.losses(list(SIZES))) == pytest.approx(0, abs=1e-12)
    choice = one.choose(loss=1.1 * large, most=3)
    assert choice.kept == ("large",)
    assert (choice.before, choice.after) == pytest.approx((nothing, large))
    assert [*sorted(choice.losses, key=choice.losses.__getitem__)] == ["small", "middle", "large"]
    assert one.choose(loss=2 * nothing, most=3).kept == ()
    assert one.choose(loss=1.1 * both, most=3).kept == ("large", "middle")


def test_a_product_that_was_not_measured_stays(tmp_path: Path) -> None:
    whole = search(tmp_path)
    ranges = {name: one for name, one in whole.ranges.items() if name != "small"}
    part = Search(graph(), ranges, whole.calls, kind="int8", work=tmp_path)
    assert (part.left_out, part.names) == (("small",), ["large", "middle"])
    assert part.losses(()) == whole.losses(["small"])
    assert part.choose(loss=1.1 * max(part.losses(["large"])), most=1).kept == ("large",)
    with pytest.raises(GateError, match="none of 3 products was measured"):
        Search(graph(), {}, whole.calls, kind="int8", work=tmp_path)


def test_what_the_limit_does_not_need_is_given_back(tmp_path: Path) -> None:
    one = search(tmp_path)
    large = max(one.losses(["large"]))
    assert one.choose(loss=1.1 * large, most=3, kept=["small", "middle"]).kept == ("large",)


def test_a_limit_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    one = search(tmp_path)
    with pytest.raises(GateError, match=r"with 1 of 3 products kept out of int8 .* cosine of 0\.9"):
        one.choose(loss=0.5 * max(one.losses(["large"])), most=1)


def test_a_call_that_was_not_asked_on_the_way_is_held_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears nothing of the costliest product, whose loss in the other calls is larger."""
    monkeypatch.setattr(kept_products, "HARD", 2)
    calls = [call(0), call(1), call(2, half=True)]
    one = search(tmp_path, calls=calls)
    before, after = one.losses(()), one.losses(["large"])
    assert before[2] < min(before[:2]) and after[2] > max(after[:2])
    choice = one.choose(loss=0.9 * after[2], most=3)
    assert choice.kept == ("large", "middle") and choice.after < after[2]


def test_what_was_said_is_without_the_sampler() -> None:
    draw = np.random.default_rng(0)
    x, kept, noise, out = draw.normal(size=(4, 1, 3, 2))
    inputs = {"x": x, "kept": kept, "noise": noise, "coefficients": np.array([[0.9, -2, 0.1, 3]])}
    assert np.allclose(said(inputs, 0.9 * x - 2 * out + 0.1 * kept + 3 * noise), out.ravel())
    assert loss(out.ravel(), 3 * out.ravel()) == pytest.approx(0)
    assert loss(out.ravel(), np.full(6, np.nan)) == 2.0
