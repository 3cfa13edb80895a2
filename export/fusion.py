"""What the engine builder made of a graph, read from its log, and a gate on it.

    every ONNX Attention is one fused kernel (2 x blocks in `step`), under the mask of its keys
    every weight matrix is read by one gemm; queries, keys and values of a block are one gemm
    every LayerNorm that a product reads and the modulation between them are one kernel (adaLN)

    model = onnx.load("step.onnx", load_external_data=False)
    fusion_reports(log_text, model, "step")[0].faults           # [] or sentences
    mask_faults(model, "step")  # the masks' values, computed from the graph

A DETAILED log lists every kernel with its tensors, weights and the ONNX nodes it came from
("Metadata"). TensorRT 10 and 11 and TensorRT-RTX write the same form. What is fused says nothing
about speed; what is not fused is a known loss of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mudit_engine.config import ModelConfig
from mudit_engine.export.quantized_graph import SMOOTHED

# names of kernels that hold a whole attention
ATTENTION = re.compile(r"mha|fmha|flash|fused_attention", re.IGNORECASE)
# a value in 8 bits
ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear"})
# what stands between a LayerNorm and the product that reads it
MODULATE = ROUNDING | {"Mul", "Add", "Reshape", "Cast", "Unsqueeze", "Squeeze", "Flatten"}
PRODUCTS = frozenset({"Gemm", "MatMul", "Conv"})
# key input -> masks that must decide what its attention sees; None is every other attention of the
# graph
MASKS: dict[str, dict[str | None, tuple[str, ...]]] = {
    "step": {"lyric_keys": ("lyric_mask",), None: ("target_mask", "other_mask")},
    "lyric_kv": {None: ("mask",)},
    "chinmu_text": {None: ("mask",)},
}

_LAYER = re.compile(r"^(?:\[\w+\] )?Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<rest>.*)$")
_FIELD = re.compile(
    r"(Inputs|Constants|Outputs): \[(.*?)\](?=, (?:Constants|Outputs|TacticName): )"
)
_TENSOR = re.compile(r"\{ Name: (.+?), Dimensions: \[([^\]]*)\]")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_PROFILE = re.compile(r" \[profile (\d+)\]")
# kernels of one optimised subgraph; a profile has its own
_SUBGRAPH = re.compile(r"_(myl\d+)_\d+$")


@dataclass(frozen=True)
class Kernel:
    """One launch of the engine: ONNX nodes it computes, tensors it reads and writes."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    profile: int = 0


@dataclass(frozen=True)
class FusionReport:
    """Counts of one profile, wanted counts beside them, and what is wrong."""

    profile: int
    kernels: int
    kinds: dict[str, int]
    attentions: int
    attentions_wanted: int
    matrices: int
    matrices_wanted: int
    qkv: int
    qkv_wanted: int
    norms: int
    norms_wanted: int
    faults: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Wanted:
    """What of a graph has to come out fused, by names of ONNX nodes."""

    attentions: dict[str, tuple[str, ...]]  # node -> graph inputs that must mask it
    matrices: dict[str, tuple[str, ...]]  # weight -> products that read it
    norms: dict[str, tuple[str, ...]]  # LayerNormalization -> the Mul and Add of its modulation
    qkv: tuple[str, ...]  # products that queries, keys and values of one attention all come from


def parse_kernels(log: str) -> list[Kernel]:
    """Kernels of all profiles in the order they run.
    A log without DETAILED verbosity gives none.
    """
    lines = [match for line in log.splitlines() if (match := _LAYER.match(line))]
    profile_of: dict[str, int] = {}
    for match in lines:
        subgraph, profile = _SUBGRAPH.search(match["name"]), _PROFILE.search(match[0])
        if subgraph and profile:
            profile_of[subgraph[1]] = int(profile[1])
    kernels = []
    for match in lines:
        rest, subgraph, own = (
            _PROFILE.sub("", match["rest"]),
            _SUBGRAPH.search(match["name"]),
            _PROFILE.search(match[0]),
        )
        fields = {
            name: tuple(tensor for tensor, _ in _TENSOR.findall(body))
            for name, body in _FIELD.findall(rest)
        }
        nodes = tuple(dict.fromkeys(_NODE.findall(rest.rpartition("Metadata:")[2])))
        inputs, constants, outputs = (
            fields.get(name, ()) for name in ("Inputs", "Constants", "Outputs")
        )
        profile_number = int(own[1]) if own else profile_of.get(subgraph[1], 0) if subgraph else 0
        kernels.append(
            Kernel(
                _PROFILE.sub("", match["name"]),
                match["kind"],
                nodes,
                inputs,
                constants,
                outputs,
                profile_number,
            )
        )
    return kernels


def wanted(model: Any, graph: str) -> Wanted:
    """What has to be fused in an ONNX model exported as `graph`. Weights need not be loaded."""
    nodes = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rules = MASKS.get(graph, {})
    attentions: dict[str, tuple[str, ...]] = {}
    qkv: list[str] = []
    # no further than a product: the residual stream reaches every input
    near = {
        name: each for name, each in nodes.items() if each.op_type not in PRODUCTS | {"Attention"}
    }
    for node in model.graph.node:
        if node.op_type == "Attention":
            sources = [
                {name for each in _slice(one, near) for name in each.input} | {one}
                for one in node.input[:3]
            ]
            attentions[node.name] = next(
                (masks for key, masks in rules.items() if key in sources[1]), rules.get(None, ())
            )
            origins = [
                {
                    nodes[name].name
                    for name in own
                    if name in nodes and nodes[name].op_type in PRODUCTS
                }
                for own in sources
            ]
            if origins[0] == origins[1] == origins[2] and len(origins[0]) == 1:
                qkv += origins[0]
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    matrices: dict[str, tuple[str, ...]] = {}
    for name in weights:
        # a Linear exported as MatMul reads its weight through a Transpose, in 8 bits through the
        # node that widens it
        using = [node for reader in readers.get(name, ()) for node in _through(reader, readers)]
        products = tuple(node.name for node in using if node.op_type in PRODUCTS)
        # the constants of a Fourier transform are read wherever it is computed, at every turn of a
        # phase search
        if products and not (len(products) > 1 and ".dft." in name):
            matrices[name] = products
    # the last norm's rows are cut to the targets before they are read, and that cut may part it: it
    # is not counted
    chains = {
        node.name: _modulation(node, readers)
        for node in model.graph.node
        if node.op_type == "LayerNormalization"
    }
    return Wanted(
        attentions,
        matrices,
        {norm: chain for norm, chain in chains.items() if chain is not None},
        tuple(dict.fromkeys(qkv)),
    )


def network_counts(config: ModelConfig, graph: str) -> dict[str, int]:
    """How many attentions, QKV products and adaLN norms a graph must have: an exporter that takes
    them apart leaves none to look for.
    """
    c = config.dit
    match graph:
        case "step":
            norms = c.blocks * (3 if c.cross_attention == "serial" else 2)
            return {"attentions": 2 * c.blocks, "qkv": c.blocks, "norms": norms}
        case "lyric_kv":
            return {
                "attentions": c.lyric_blocks,
                "qkv": c.lyric_blocks,
                "norms": 2 * c.lyric_blocks + 1,
            }
        case "chinmu_text":
            return {"attentions": config.chinmu.text_blocks, "qkv": config.chinmu.text_blocks}
    return {}


def fusion_reports(
    log: str, model: Any, graph: str, *, counts: Mapping[str, int] | None = None
) -> list[FusionReport]:
    """A report for each profile of an engine's log. A log that lists no kernels is one report with
    that fault.

    counts: what `network_counts` says of the graph; a graph that holds another number is a fault.
    """
    want = wanted(model, graph)
    kernels = parse_kernels(log)
    profiles = sorted({kernel.profile for kernel in kernels}) or [0]
    reports = [
        _report(profile, [k for k in kernels if k.profile == profile], want) for profile in profiles
    ]
    for report in reports:
        for name, count in (counts or {}).items():
            if (found := getattr(report, f"{name}_wanted")) != count:
                report.faults.append(f"the graph has {found} {name} where the network has {count}")
    return reports


def _report(profile: int, kernels: Sequence[Kernel], want: Wanted) -> FusionReport:
    faults: list[str] = []
    if not kernels:
        faults.append(
            "the log lists no kernels: build with detailed profiling verbosity and a verbose logger"
        )
    of_node: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for node in kernel.nodes:
            of_node.setdefault(node, []).append(kernel)
    fused = [kernel for kernel in kernels if ATTENTION.search(kernel.name)]
    made_by = {output: kernel for kernel in kernels for output in kernel.outputs}
    attended = 0
    for node, masks in want.attentions.items():
        own = [kernel for kernel in fused if node in kernel.nodes]
        if len(own) != 1:
            faults.append(f"attention {node} is {len(own)} fused kernels instead of one")
            continue
        attended += 1
        if lost := [mask for mask in masks if mask not in _ancestors(own[0], made_by)]:
            faults.append(
                f"attention {node} does not depend on {', '.join(lost)}: keys of padding would be "
                f"seen"
            )
    if len(fused) != len(want.attentions) and not faults:
        faults.append(f"{len(fused)} attention kernels for {len(want.attentions)} attentions")
    read_once = {}
    for weight, products in want.matrices.items():
        readers = {
            kernel.name
            for kernel in kernels
            for name in kernel.constants
            if _is_weight(name, weight)
        }
        read_once[weight] = len(readers) == 1 or (
            not readers and _one_kernel_each(products, of_node)
        )
        if not read_once[weight]:
            faults.append(f"weight {weight} is read by {len(readers)} kernels instead of one gemm")
    norms = 0
    for norm, modulation in want.norms.items():
        own = of_node.get(norm, [])
        apart = [
            node
            for node in modulation
            if own and not any(kernel is own[0] for kernel in of_node.get(node, []))
        ]
        if len(own) != 1 or apart:
            faults.append(
                f"LayerNorm {norm} is {len(own)} kernels"
                + (f", with {', '.join(apart)} in another" if apart else "")
            )
        else:
            norms += 1
    together = [product for product in want.qkv if _one_kernel_each([product], of_node)]
    faults += [
        f"queries, keys and values of {product} are several gemms"
        for product in want.qkv
        if product not in together
    ]
    return FusionReport(
        profile=profile,
        kernels=len(kernels),
        kinds=dict(Counter(kernel.kind for kernel in kernels).most_common()),
        attentions=attended,
        attentions_wanted=len(want.attentions),
        matrices=sum(read_once.values()),
        matrices_wanted=len(want.matrices),
        qkv=len(together),
        qkv_wanted=len(want.qkv),
        norms=norms,
        norms_wanted=len(want.norms),
        faults=faults,
    )


def mask_faults(model: Any, graph: str, *, seed: int = 0) -> list[str]:
    """Whether every attention's mask, computed from the graph on random key masks, is those masks
    for every query, and nothing else.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    want = wanted(model, graph)
    nodes = {output: node for node in model.graph.node for output in node.output}
    inputs = {value.name: value for value in model.graph.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    draw = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    for value in inputs.values():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, 3 + 2 * len(sizes))
    feeds: dict[str, Any] = {}
    for name, value in inputs.items():
        kind = value.type.tensor_type
        shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
        is_bool = kind.elem_type == onnx.TensorProto.BOOL
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[name] = draw.random(shape) < 0.6 if is_bool else np.zeros(shape, dtype)
    faults, seen = [], {}
    for node in model.graph.node:
        if node.op_type != "Attention" or not want.attentions[node.name]:
            continue
        if len(node.input) < 4 or not node.input[3]:
            faults.append(f"attention {node.name} has no mask")
            continue
        mask = node.input[3]
        if mask not in seen:
            needed = _slice(mask, nodes)
            reached = {name for each in needed for name in each.input} | {mask}
            part = onnx.helper.make_model(
                onnx.helper.make_graph(
                    needed,
                    "mask",
                    [value for name, value in inputs.items() if name in reached],
                    [onnx.helper.make_empty_tensor_value_info(mask)],
                    [tensor for name, tensor in constants.items() if name in reached],
                ),
                opset_imports=model.opset_import,
            )
            used = {name: value for name, value in feeds.items() if name in reached}
            seen[mask] = (
                feeds[mask] if mask in feeds else ReferenceEvaluator(part).run(None, used)[0]
            )
        keys = np.concatenate([feeds[name] for name in want.attentions[node.name]], -1)
        keys = keys.reshape(-1, 1, 1, keys.shape[-1])
        found = seen[mask]
        if (
            found.dtype != bool
            or found.ndim != 4
            or found.shape[-1] != keys.shape[-1]
            or not (found == keys).all()
        ):
            faults.append(
                f"attention {node.name} is masked by something else than "
                f"{' and '.join(want.attentions[node.name])}"
            )
    return faults


def _is_weight(constant: str, weight: str) -> bool:
    """The builder appends type and network to a weight's name."""
    return constant == weight or constant.startswith(f"{weight}_constant")


def _one_kernel_each(products: Iterable[str], of_node: dict[str, list[Kernel]]) -> bool:
    return all(
        len({kernel.name for kernel in of_node.get(node, []) if kernel.kind != "kgen"}) == 1
        for node in products
    )


def _through(node: Any, readers: dict[str, list[Any]]) -> list[Any]:
    passed = ("Transpose", "DequantizeLinear")
    return readers.get(node.output[0], []) if node.op_type in passed else [node]


def _modulation(norm: Any, readers: dict[str, list[Any]]) -> tuple[str, ...] | None:
    """Names of the Mul, Add and QuantizeLinear between a LayerNorm and the product that reads it;
    None where no product reads it directly.
    """
    found: list[str] = []
    output = norm.output[0]
    while len(using := readers.get(output, [])) == 1 and using[0].op_type in MODULATE:
        node = using[0]
        if node.op_type == "QuantizeLinear":
            # a factor right before the rounding is folded into it, and no kernel names it
            found = [name for name in found if not name.endswith(SMOOTHED)]
        if node.op_type in ("Mul", "Add", "QuantizeLinear"):
            found.append(node.name)
        output = node.output[0]
    return tuple(found) if any(node.op_type in PRODUCTS for node in using) else None


def _slice(tensor: str, nodes: dict[str, Any]) -> list[Any]:
    """Nodes that compute a tensor, in order."""
    order: dict[int, Any] = {}

    def visit(name: str) -> None:
        node = nodes.get(name)
        if node is None or id(node) in order:
            return
        for source in node.input:
            visit(source)
        order[id(node)] = node

    visit(tensor)
    return list(order.values())


def _ancestors(kernel: Kernel, made_by: dict[str, Kernel]) -> set[str]:
    """Names of all tensors that a kernel's inputs depend on."""
    found: set[str] = set()
    waiting = list(kernel.inputs)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in made_by:
            waiting += made_by[name].inputs
    return found
