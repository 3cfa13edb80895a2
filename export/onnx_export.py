"""A model folder becomes a deployment folder: ONNX graphs, the parts that stay PyTorch, and a
manifest that vouches for all of it.

    OUT/config.json, *.safetensors                  the model, as it was
    OUT/graphs/fp32/*.onnx                          opset 20, any lengths: ONNX Runtime, OpenVINO
    OUT/graphs/bf16/*.onnx  opset 23, ONNX Attention with boolean masks: TensorRT
    OUT/manifest.json  hashes, versions, inputs, parity (export/manifest.py)

    export_onnx(Path("models/mine"), Path("deploy"), flavours=("fp32",))

The whole folder is written aside and renamed. Every graph is checked before it is kept
(`check_graph`).
"""

from __future__ import annotations

import logging
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mudit_engine.availability import available, require
from mudit_engine.errors import GateError, InputError, OutputError
from mudit_engine.export.unroll import unroll

if TYPE_CHECKING:
    from mudit_engine.export.graphs import Graph

OPSETS = {"fp32": 20, "bf16": 23, "fp16": 23}
FLAVOURS = tuple(OPSETS)
EXTERNAL_BYTES = 2**31 - 2**20  # protobuf's own limit is 2 GiB
# what graphs of a flavour may hold beside the types of their inputs
FLOATS = {"fp32": {"FLOAT"}, "bf16": {"FLOAT", "BFLOAT16"}, "fp16": {"FLOAT", "FLOAT16"}}

Report = Callable[[str], None]


def export_onnx(
    model: str | Path,
    out: Path,
    *,
    flavours: Sequence[str] = ("fp32",),
    random_weights: bool = False,
    runtimes: Sequence[str] = (),
    report: Report = lambda text: None,
) -> Path:
    """Writes the deployment folder of a model: ONNX graphs, the model as it was, and a manifest.

    The folder is written aside and renamed. fp32 graphs are held to PyTorch by whole songs in
    `runtimes` (export/parity.py).

    Args:
        model: a name or a model folder; with random_weights a preset or a config.json.
        out: must not exist or must be an earlier export.
        flavours: "fp32" (opset 20) for ONNX Runtime and OpenVINO, "bf16" and "fp16" (opset 23) for
            TensorRT.
        random_weights: draws weights, to build and time engines of a size nobody has trained yet.
        runtimes: "onnxruntime", "openvino": what is held to PyTorch.
        report: told the name of each graph.

    Returns:
        out.

    Raises:
        InputError: for an unknown flavour or a folder that holds something else.
        GateError: for a graph that fails its checks or a runtime that makes another song; `out` is
            then as it was.
        MissingError: when the package onnx is not installed.

    Examples:
        >>> export_onnx("tiny", Path("deploy"), flavours=("fp32",))        # doctest: +SKIP
        PosixPath('deploy')
    """
    require("onnx", "exporting to ONNX")
    require("onnxscript", "exporting to ONNX")
    import torch

    from mudit_engine.config import load_config
    from mudit_engine.export.manifest import new_manifest, write_manifest
    from mudit_engine.export.parity import faults, measure_parity
    from mudit_engine.models.folder import model_folder, save_random_model

    unknown = [flavour for flavour in flavours if flavour not in OPSETS]
    if unknown or not flavours:
        raise InputError(
            f"unknown flavour(s) {', '.join(unknown) or '(none)'}: choose from {', '.join(OPSETS)}"
        )
    if out.is_file():
        raise InputError(f"'{out}' is a file: name a new folder")
    if out.exists() and not (out / "manifest.json").is_file() and any(out.iterdir()):
        raise InputError(f"'{out}' holds something that is not an export: name a new folder")
    source = None if random_weights else model_folder(model)
    with _folder_aside(out) as aside:
        if source is None:
            report("weights")
            # in half precision where no flavour could tell
            save_random_model(
                load_config(model),
                aside,
                dtype=torch.float32 if "fp32" in flavours else torch.bfloat16,
            )
        else:
            _copy_model(source, aside)
        exported = {
            flavour: export_graphs(
                aside, aside / "graphs" / flavour, flavour=flavour, report=report
            )
            for flavour in flavours
        }
        manifest = {**new_manifest(aside, exported), "random_weights": random_weights}
        write_manifest(aside, manifest)
        if runtimes and "fp32" in flavours:
            report("parity")
            manifest["parity"] = measure_parity(aside, runtimes=runtimes)
            if wrong := faults(manifest["parity"]):
                raise GateError(
                    f"the graphs are no faithful export of '{model}', nothing was written: "
                    f"{'; '.join(wrong)}"
                )
            write_manifest(aside, manifest)
    return out


def _copy_model(source: Path, folder: Path) -> None:
    """The model's files, those of parts that another model holds too; not its few-step student,
    which no graph knows, nor its graphs and engines where it is itself a deployment folder.
    """
    from mudit_engine.models.complete import copy_part
    from mudit_engine.models.contract import check_part
    from mudit_engine.models.fewstep import FOLDER
    from mudit_engine.models.parts import FILE, shared_parts

    for file in sorted(source.rglob("*")):
        name = file.relative_to(source)
        if (
            file.is_file()
            and file.suffix != ".md"
            and name.parts[0] not in ("graphs", "engines", "manifest.json", FILE, FOLDER)
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
    for part in shared_parts(source):
        copy_part(check_part(source, part), part, folder)


def export_graphs(
    source: Path, folder: Path, *, flavour: str, report: Report = lambda text: None
) -> dict[str, Any]:
    """Exports every graph of a model folder in one flavour;
    returns what the manifest says of them.
    """
    import torch

    from mudit_engine.config import load_config
    from mudit_engine.export.graphs import DTYPES, graphs
    from mudit_engine.models.chinmu import ChinMu
    from mudit_engine.models.dit import DiT
    from mudit_engine.models.folder import load_part
    from mudit_engine.models.vae import SpectralVAE

    config = load_config(source)
    dit = load_part("dit", config, source, dtype=DTYPES[flavour])
    vae, chinmu = (load_part(part, config, source) for part in ("vae", "chinmu"))
    assert isinstance(dit, DiT) and isinstance(vae, SpectralVAE) and isinstance(chinmu, ChinMu)
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {}
    precision: Any = flavour
    for name, make in graphs(
        dit, vae, chinmu, precision=precision, expanded=OPSETS[flavour] >= 23
    ).items():
        report(f"{flavour} {name}")
        with torch.no_grad():
            described[name] = export_graph(make(), folder / f"{name}.onnx", flavour=flavour)
    return {"opset": OPSETS[flavour], "precision": flavour, "graphs": described}


def export_graph(graph: Graph, path: Path, *, flavour: str) -> dict[str, Any]:
    """Exports one graph and checks the file.
    Raises GateError when something is not as it must be.
    """
    import onnx
    import torch

    names = {axis for axes in graph.dynamic.values() for axis in axes.values()}
    dims = {name: torch.export.Dim(name, min=1) for name in names}
    # in the order of the inputs: the exporter pairs names of axes with inputs by place, and
    # TensorRT takes axes of one name for equal
    dynamic = {
        name: {axis: dims[dim] for axis, dim in graph.dynamic.get(name, {}).items()}
        for name in graph.inputs
    }
    opset = OPSETS[flavour]
    with _quiet(), _without_cache():
        program = torch.onnx.export(
            graph.module.eval(),
            args=(),
            kwargs=graph.inputs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=dynamic,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        weights = _weights_read(program.exported_program)
        _simplify(program.model, weights)
    size = sum(
        value.const_value.nbytes
        for value in program.model.graph.initializers.values()
        if value.const_value is not None
    )
    if graph.unrolled:
        proto = program.model_proto
        unroll(proto, graph.unrolled)
        onnx.save(proto, str(path))
    else:
        program.save(str(path), external_data=size > EXTERNAL_BYTES)
    # external data stay where they are: their values are not what is checked
    model = onnx.load(str(path), load_external_data=False)
    faults = check_graph(
        model, expected_inputs(graph), opset=opset, floats=FLOATS[flavour], weights=weights
    )
    if faults := [*faults, *valid_onnx(path)]:
        raise GateError(
            f"graph '{path.name}' ({flavour}) is not as it must be: {'; '.join(faults)}"
        )
    return {
        "inputs": {value.name: _described(value) for value in model.graph.input},
        "outputs": {value.name: _described(value) for value in model.graph.output},
        "nodes": len(model.graph.node),
        "weights": {name: list(shape) for name, shape in weights.items()},
    }


def _weights_read(program: Any) -> dict[str, tuple[int, ...]]:
    """Parameters that a traced module reads, by their own names."""
    names = program.graph_signature.inputs_to_parameters
    read = {
        names[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and node.users
    }
    return {name: tuple(program.state_dict[name].shape) for name in sorted(read)}


def _simplify(model: Any, weights: Mapping[str, Any]) -> None:
    """The exporter's own optimisation, but that every weight keeps its name and its shape: what
    replaces weights in a built engine finds them by name. The exporter folds a transposed weight
    into a constant without a name, and lets equal weights share one.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter import onnx_fusions

    def should_fold(node: Any) -> bool | None:
        return (
            False
            if any(value is not None and value.name in weights for value in node.inputs)
            else None
        )

    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, should_fold=should_fold)
        rewriter.rewrite(model)
        optimizer.remove_unused_nodes(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)
    onnx_fusions.fuse(model)
    _agree_norms(model)
    # stack traces with this machine's paths, larger than a small graph
    common.ClearMetadataAndDocStringPass()(model)


def _agree_norms(model: Any) -> None:
    """Widens the input of every RMSNormalization whose scale is wider. The exporter's fusion drops
    that cast, and a norm of two types is no valid ONNX: its output would have the scale's.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type != "RMSNormalization" or node.inputs[0].dtype == node.inputs[1].dtype:
            continue
        x, scale = node.inputs
        wide = ir.node("Cast", [x], {"to": scale.dtype}, name=f"{node.name}_wide")
        wide.outputs[0].name = f"{x.name}_wide_{node.name}"
        wide.outputs[0].type, wide.outputs[0].shape = ir.TensorType(scale.dtype), x.shape
        model.graph.insert_before(node, wide)
        node.replace_input_with(0, wide.outputs[0])
        node.outputs[0].type = ir.TensorType(scale.dtype)


def expected_inputs(graph: Graph) -> dict[str, list[int | str]]:
    """Shapes of a graph's inputs, dynamic axes by name."""
    return {
        name: [graph.dynamic.get(name, {}).get(axis, size) for axis, size in enumerate(value.shape)]
        for name, value in graph.inputs.items()
    }


def check_file(folder: Path, flavour: str, name: str, described: dict[str, Any]) -> list[str]:
    """What is wrong with a graph of a deployment folder, of which the manifest says `described`."""
    import onnx

    path = folder / "graphs" / flavour / f"{name}.onnx"
    if faults := valid_onnx(path):
        return faults
    model = onnx.load(str(path), load_external_data=False)
    shapes = {key: one["shape"] for key, one in described["inputs"].items()}
    return check_graph(
        model,
        shapes,
        opset=OPSETS[flavour],
        floats=FLOATS[flavour],
        weights=described.get("weights", {}),
    )


def valid_onnx(path: Path) -> list[str]:
    """What ONNX's own full check (types and shapes of every value) and ONNX Runtime say against a
    graph.

    ONNX Runtime opens a copy whose larger weights are inputs, so that a model of any size is opened
    in little memory, and whose bfloat16 is float32, for which its CPU provider has the operators.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # onnx and protobuf raise several unrelated types
        return [str(error).splitlines()[0]]
    if not available("onnxruntime"):
        return []
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(
            _without_weights(model).SerializeToString(), options, ["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises its own unrelated exception types
        return [f"ONNX Runtime does not open it: {' '.join(str(error).split())}"]
    return []


def _without_weights(model: Any, *, most: int = 1024) -> Any:
    """A copy of the graph in which initialisers of more than `most` elements are inputs, bfloat16
    float32.
    """
    import numpy as np
    from onnx import AttributeProto, TensorProto, helper, numpy_helper

    half, whole = TensorProto.BFLOAT16, TensorProto.FLOAT
    copied = type(model)()
    copied.CopyFrom(model)
    graph, kept = copied.graph, []
    for tensor in graph.initializer:
        kind = whole if tensor.data_type == half else tensor.data_type
        if tensor.external_data or np.prod(tensor.dims) > most:
            graph.input.append(helper.make_tensor_value_info(tensor.name, kind, tensor.dims))
        elif tensor.data_type == half:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            kept.append(numpy_helper.from_array(values, tensor.name))
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = whole
    for node in all_nodes(graph):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.INT and node.op_type == "Cast":
                attribute.i = whole if attribute.i == half else attribute.i
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == half:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
    return copied


def check_graph(
    model: Any,
    inputs: Mapping[str, Sequence[int | str]],
    *,
    opset: int,
    floats: set[str],
    weights: Mapping[str, Sequence[int]] | None = None,
) -> list[str]:
    """What is wrong with an exported graph: opset, types, inputs, initialisers, operators that
    runtimes get silently wrong.

    `inputs` are the shapes that it must take, dynamic axes by name; `weights` the parameters that
    it must hold, by their own names.
    """
    import onnx

    faults = []
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if versions.get("ai.onnx") != opset:
        faults.append(f"opset {versions.get('ai.onnx')} instead of {opset}")
    if foreign := sorted(versions.keys() - {"ai.onnx"}):
        faults.append(f"operators outside ONNX: {', '.join(foreign)}")
    used = {name for node in all_nodes(model.graph) for name in node.input}
    if unused := [value.name for value in model.graph.input if value.name not in used]:
        faults.append(f"unused inputs {', '.join(unused)}")
    if (given := [value.name for value in model.graph.input]) != list(inputs):
        faults.append(f"inputs {', '.join(given)} instead of {', '.join(inputs)}")
    for value in model.graph.input:
        # the tracer fixes an axis that some code compared with a number, and TensorRT takes axes of
        # one name for equal
        shape, wanted = _described(value)["shape"], list(inputs.get(value.name, ()))
        if wanted and shape != wanted:
            faults.append(f"{value.name} is {shape} instead of {wanted}")
    names = [tensor.name for tensor in model.graph.initializer]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"initialisers of one name: {', '.join(doubled)}")
    held = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    if lost := [name for name, shape in (weights or {}).items() if held.get(name) != list(shape)]:
        faults.append(f"{len(lost)} weights without their names and shapes ({', '.join(lost[:3])})")
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    kinds |= {
        onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in model.graph.input
    }
    kinds |= {
        onnx.TensorProto.DataType.Name(one.i)
        for node in all_nodes(model.graph)
        for one in node.attribute
        if node.op_type == "Cast"
    }
    if odd := sorted(kinds & {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"} - floats):
        faults.append(f"values of type {', '.join(odd)}")
    for node in all_nodes(model.graph):
        # TensorRT ignores this input in silence, and padding would be attended to
        if node.op_type == "Attention" and len(node.input) > 6 and node.input[6]:
            faults.append(f"{node.name} has nonpad_kv_seqlen")
    return faults


def all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, those of its loops and branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def _described(value: Any) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    return {
        "type": onnx.TensorProto.DataType.Name(kind.elem_type).lower(),
        "shape": [dim.dim_param or dim.dim_value for dim in kind.shape.dim],
    }


@contextmanager
def _folder_aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is removed when it
    does not.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        aside.mkdir()
        yield aside
        if out.exists():
            old = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
            out.rename(old)
            aside.rename(out)
            shutil.rmtree(old)
        else:
            aside.rename(out)
    except OSError as error:
        raise OutputError(
            f"'{out}' could not be written: {error.strerror or error}. Free some space or name "
            f"another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes about packages that are not used, and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_cache() -> Iterator[None]:
    """torch remembers what an operator gave for fake tensors. With named axes that takes longer
    than it spares: without it a small network's six graphs are traced in four fifths of the time.
    """
    import torch._dynamo.config

    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield
