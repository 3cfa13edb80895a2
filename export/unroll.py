"""Loops of an ONNX graph whose count is known, written out: for runtimes that capture a graph only
without control flow.

    unroll(model, 64)               # every Loop becomes 64 copies of its body

The body may read values of the graph around it; its trip count and condition are ignored, `count`
stands for both.
"""

from __future__ import annotations

from typing import Any


def unroll(model: Any, count: int) -> None:
    """Replaces every Loop of an onnx.ModelProto, in place. Raises ValueError for a loop that
    collects outputs of every turn.
    """
    import onnx

    graph = model.graph
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "Loop":
            nodes.append(node)
            continue
        body = node.attribute[0].g
        turn, _, *carried = (value.name for value in body.input)
        _, *results = (value.name for value in body.output)
        if len(results) != len(carried):
            raise ValueError(
                f"loop '{node.name}' collects outputs of every turn: only carried values are "
                f"unrolled"
            )
        graph.initializer.extend(body.initializer)
        state = list(node.input[2:])
        for number in range(count):
            names = dict(zip(carried, state, strict=True))
            if any(turn in one.input for one in body.node):
                names[turn] = f"{node.name}/turn.{number}"
                graph.initializer.append(
                    onnx.helper.make_tensor(names[turn], onnx.TensorProto.INT64, [], [number])
                )
            for inner in body.node:
                copied = onnx.NodeProto()
                copied.CopyFrom(inner)
                copied.name = f"{inner.name}.{number}"
                copied.input[:] = [names.get(name, name) for name in inner.input]
                names |= {name: f"{name}.{number}" for name in inner.output if name}
                copied.output[:] = [names.get(name, name) for name in inner.output]
                nodes.append(copied)
            state = [names.get(name, name) for name in results]
        nodes += [
            onnx.helper.make_node("Identity", [last], [name], name=f"{node.name}/{name}")
            for last, name in zip(state, node.output, strict=True)
        ]
    # what only decided whether to go on is left without a reader
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    read = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(read)
