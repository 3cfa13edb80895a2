"""Products of a graph in 8 bits, with the ranges that ModelOpt measured on a float32 twin.

    y = DQ(Q(x)) DQ(Q(W)),   Q(v) = round(v / s) as int8 or e4m3,   DQ(q) = s q

    smooth(model, peaks, share=0.8)                      # int8: channels of like size
    twin = widened(model)                                # runs on a CPU, whose types are float32
    fold_weights(twin)                                   # what ModelOpt is given
    ranges = ranges_of(onnx.load("measured.onnx"))       # what ModelOpt found, by node
    count = insert(model, ranges, kind="fp8")            # Q and DQ around these products

A weight is stored in 8 bits: for fp8 with one scale, for int8 with one an output. Everything else
stays in the graph's own precision: attention takes no product with a weight and is left alone, and
ModelOpt is told to leave it, because a quantised attention is no longer one kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mudit_engine.errors import GateError
from mudit_engine.export.onnx_export import all_nodes

KINDS = ("fp8", "int8")
LARGEST = {"fp8": 448.0, "int8": 127.0}  # of e4m3 and int8
SMOOTHED = ".smooth"  # ends the name of a product's factor
HALVES = ("BFLOAT16", "FLOAT16")


@dataclass(frozen=True)
class Product:
    """A MatMul with a weight of the graph, which is [inputs, outputs], or with `turned` [outputs,
    inputs] behind a Transpose.
    """

    node: Any
    weight: str
    turned: bool


@dataclass(frozen=True)
class Ranges:
    """Scales of a product's input (one number) and of its weight (one, or one an output)."""

    inputs: np.ndarray
    weight: np.ndarray


def products(graph: Any, *, kept: Sequence[str] = ()) -> list[Product]:
    """Every MatMul of a graph with a weight, but of weights whose name holds one of `kept`."""
    weights = {tensor.name for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        name, maker = node.input[1], makers.get(node.input[1])
        turned = maker is not None and maker.op_type == "Transpose"
        weight = maker.input[0] if maker is not None and turned else name
        if weight in weights and not any(one in weight for one in kept):
            found.append(Product(node, weight, turned))
    return found


def widened(model: Any) -> Any:
    """A copy of a model that computes in float32 what the model computes in half precision."""
    from onnx import AttributeProto, TensorProto, numpy_helper

    halves = {TensorProto.DataType.Value(name) for name in HALVES}
    copied = type(model)()
    copied.CopyFrom(model)

    def widen(tensor: Any) -> None:
        if tensor.data_type in halves:
            values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    for tensor in copied.graph.initializer:
        widen(tensor)
    for value in (*copied.graph.input, *copied.graph.output, *copied.graph.value_info):
        if value.type.tensor_type.elem_type in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in all_nodes(copied.graph):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in halves:
                attribute.i = TensorProto.FLOAT
    return copied


def smooth(
    model: Any, peaks: Mapping[str, np.ndarray], *, share: float, kept: Sequence[str] = ()
) -> int:
    """Makes the channels of products' inputs of like size, in place; returns how many products.

        x W = (x / s) (s W),   s_j = max|x_j|^share / max|W_j|^(1 - share)

    One scale for all channels of an input then rounds none of them away. s is the nearest power of
    two, so that in half precision too the product stays what it was, to the bit.

    Args:
        model: the graph.
        peaks: max|x_j| by the node's name.
        share: of the difficulty that moves from the inputs into the weights, 0 to 1.
        kept: names in weights that are left as they are.

    Source: Xiao et al. 2022, "SmoothQuant", arXiv 2211.10438.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, Any] = {}
    chosen = products(graph, kept=kept)
    for product in chosen:
        node, tensor = product.node, held[product.weight]
        values = np.asarray(numpy_helper.to_array(tensor))
        weight = values.astype(np.float32)
        heights = np.abs(weight).max(0 if product.turned else 1).clip(1e-5)
        wanted = share * np.log2(peaks[node.name].clip(1e-5)) - (1 - share) * np.log2(heights)
        scale_I = np.exp2(np.round(wanted - wanted.mean())).astype(np.float32)
        scaled = weight * (scale_I if product.turned else scale_I[:, None])
        tensor.CopyFrom(numpy_helper.from_array(scaled.astype(values.dtype), tensor.name))
        name = f"{node.name}{SMOOTHED}"
        _scale(graph, f"{name}.scale", 1 / scale_I, tensor.data_type)
        before[node.name] = helper.make_node("Mul", [node.input[0], f"{name}.scale"], [name], name)
        node.input[0] = name
    nodes = [
        one
        for node in graph.node
        for one in (*((before[node.name],) if node.name in before else ()), node)
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(chosen)


def fold_weights(model: Any) -> None:
    """Turns weights behind a Transpose into weights as MatMul takes them, in place: ModelOpt knows
    those for weights, and the others for inputs.
    """
    from onnx import numpy_helper

    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    made = set()
    for product in products(graph):
        if not product.turned:
            continue
        name = f"{product.weight}.turned"
        if name not in made:
            values = np.ascontiguousarray(numpy_helper.to_array(held[product.weight]).T)
            graph.initializer.append(numpy_helper.from_array(values, name))
            made.add(name)
        product.node.input[1] = name
    _drop_unused(graph)


def ranges_of(model: Any) -> dict[str, Ranges]:
    """Scales that a model with QuantizeLinear and DequantizeLinear has around each MatMul, by the
    node's name; of a MatMul whose two inputs both have some.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = next(one.t for one in node.attribute if one.name == "value")
    makers = {output: node for node in graph.node for output in node.output}

    def scale(value: str) -> np.ndarray | None:
        maker = makers.get(value)
        while maker is not None and maker.op_type == "Cast":
            maker = makers.get(maker.input[0])
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        return np.asarray(numpy_helper.to_array(constants[maker.input[1]])).astype(np.float64)

    found = {}
    for node in graph.node:
        if node.op_type == "MatMul":
            inputs, weight = scale(node.input[0]), scale(node.input[1])
            if inputs is not None and weight is not None and inputs.size == 1:
                found[node.name] = Ranges(inputs.reshape(()), weight)
    return found


def insert(model: Any, ranges: Mapping[str, Ranges], *, kind: str, kept: Sequence[str] = ()) -> int:
    """Quantises the products that `ranges` names, in place, and returns how many they are.

    Raises GateError when a product with a weight, not among `kept`, has no ranges, or ranges that
    are not positive numbers.
    """
    from onnx import helper

    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    chosen = products(graph, kept=kept)
    if lost := [one.weight for one in chosen if one.node.name not in ranges]:
        raise GateError(
            f"{len(lost)} of {len(chosen)} products were not measured ({', '.join(lost[:3])}): "
            "ModelOpt left them out"
        )
    before: dict[str, list[Any]] = {}
    rounded: dict[tuple[str, float], str] = {}
    stored: dict[str, str] = {}
    for product in chosen:
        node, found = product.node, ranges[product.node.name]
        if not all(
            np.isfinite(one).all() and (one > 0).all() for one in (found.inputs, found.weight)
        ):
            raise GateError(f"product '{product.weight}' has a range that is no positive number")
        own = held[product.weight].data_type
        new = before.setdefault(node.name, [])
        if product.weight not in stored:
            name = stored[product.weight] = f"{product.weight}.{kind}"
            axis = _store(graph, held[product.weight], product, found.weight, kind)
            extra = {} if axis is None else {"axis": axis}
            inputs = [f"{name}.values", f"{name}.scale", f"{name}.zero"]
            new.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}.dq", **extra))
        key = (node.input[0], float(found.inputs))
        if key not in rounded:
            name = rounded[key] = f"{node.input[0]}.{kind}.{len(rounded)}"
            scale = _scale(graph, f"{name}.scale", found.inputs, own)
            zero = _zero(graph, f"{name}.zero", (), kind)
            new += [
                helper.make_node(
                    "QuantizeLinear", [node.input[0], scale, zero], [f"{name}.q"], f"{name}.q"
                ),
                helper.make_node(
                    "DequantizeLinear", [f"{name}.q", scale, zero], [name], f"{name}.dq"
                ),
            ]
        node.input[0], node.input[1] = rounded[key], stored[product.weight]
    nodes = [one for node in graph.node for one in (*before.get(node.name, ()), node)]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return len(chosen)


def attentions_in_8_bits(model: Any) -> list[str]:
    """Names of Attention nodes that take something in 8 bits; none is as it must be."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Attention"
        and any(
            name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input
        )
    ]


def _store(graph: Any, tensor: Any, product: Product, scale: np.ndarray, kind: str) -> int | None:
    """Adds the weight [inputs, outputs] in 8 bits, its scales and zeros. Returns the axis of the
    scales, None for a single one.
    """
    from onnx import TensorProto, helper, numpy_helper

    name = f"{product.weight}.{kind}"
    values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
    values = values.T if product.turned else values
    scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
    _scale(graph, f"{name}.scale", scale, tensor.data_type)
    # what is divided by is the scale as it is stored
    exact = _stored_scale(scale, tensor.data_type)
    codes = _codes(values / exact, kind)
    number = TensorProto.FLOAT8E4M3FN if kind == "fp8" else TensorProto.INT8
    graph.initializer.append(
        helper.make_tensor(f"{name}.values", number, values.shape, codes.tobytes(), raw=True)
    )
    _zero(graph, f"{name}.zero", scale.shape, kind)
    return None if scale.ndim == 0 else 1


def _codes(values: np.ndarray, kind: str) -> np.ndarray:
    import ml_dtypes

    limit = LARGEST[kind]
    if kind == "fp8":
        return np.ascontiguousarray(values.clip(-limit, limit)).astype(ml_dtypes.float8_e4m3fn)
    return np.ascontiguousarray(np.rint(values).clip(-limit, limit)).astype(np.int8)


def _stored_scale(scale: np.ndarray, number: int) -> np.ndarray:
    """The scale as its type holds it, in float32."""
    import ml_dtypes
    from onnx import TensorProto

    kinds = {TensorProto.BFLOAT16: ml_dtypes.bfloat16, TensorProto.FLOAT16: np.float16}
    return np.asarray(scale).astype(kinds.get(number, np.float32)).astype(np.float32)


def _scale(graph: Any, name: str, scale: np.ndarray, number: int) -> str:
    from onnx import helper

    values = _stored_scale(scale, number)
    graph.initializer.append(
        helper.make_tensor(name, number, values.shape, values.reshape(-1).tolist())
    )
    return name


def _zero(graph: Any, name: str, shape: tuple[int, ...], kind: str) -> str:
    """Zero points say which 8 bits are meant, and shift nothing."""
    from onnx import TensorProto, helper

    number = TensorProto.FLOAT8E4M3FN if kind == "fp8" else TensorProto.INT8
    data = bytes(int(np.prod(shape)))
    graph.initializer.append(helper.make_tensor(name, number, shape, data, raw=True))
    return name


def _drop_unused(graph: Any) -> None:
    """Removes Transposes and initialisers that nothing reads any more."""
    read = {name for node in all_nodes(graph) for name in node.input}
    read |= {value.name for value in graph.output}
    left = [node for node in graph.node if node.op_type != "Transpose" or node.output[0] in read]
    if len(left) != len(graph.node):
        del graph.node[:]
        graph.node.extend(left)
        read = {name for node in all_nodes(graph) for name in node.input}
        read |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
