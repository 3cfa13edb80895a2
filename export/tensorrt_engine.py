"""Builds TensorRT and TensorRT-RTX engines as a specification says. Needs the standard library and
the builder's package, nothing else: `mudit export tensorrt` runs this file in a child process, and
the build package for a GPU host holds a copy of it.

    python build_engines.py spec.json [--only step] [--measure]

Paths in the specification are relative to it. Each engine gives one JSON line on stdout: seconds,
bytes, the builder's memory and its "Total ... Memory" figures; built.json keeps them. The whole
log, with the fused kernels, lies beside the engine as NAME.log.gz.

    {"package": "tensorrt" | "tensorrt_rtx", "capability": "SM80" | null,
     "timing_cache": "timing.cache" | null,
     "engines": [{"name": "step", "onnx": "step.onnx", "engine": "step.engine",
                  "profiles": [{"x": [[1, 384, 96], ...min, opt, max]}],
                  "optimization_level": null}]}

--measure runs each engine (all profiles at their optimum) with CUDA graphs and adds p50, p90 and
p99 in milliseconds; it needs the GPU.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

MISSING, FAILED = 3, 1
BUILT = "built.json"  # rows of what was built, by name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the engines of a specification.")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--only", action="append", help="name of an engine; repeatable")
    parser.add_argument(
        "--measure", action="store_true", help="run and time each engine after it is built"
    )
    options = parser.parse_args(arguments)
    spec = json.loads(options.spec.read_text(encoding="utf-8"))
    folder = options.spec.resolve().parent
    try:
        trt = importlib.import_module(spec["package"])
    except ImportError as error:
        print(
            f"error: the package {spec['package']} cannot be imported ({error}): {spec['install']}",
            file=sys.stderr,
        )
        return MISSING
    for entry in spec["engines"]:
        if options.only and entry["name"] not in options.only:
            continue
        try:
            row = build(trt, spec, entry, folder)
            if options.measure:
                row["measured"] = measure(trt, spec, entry, folder)
        except BuildError as error:
            print(f"error: engine '{entry['name']}': {error}", file=sys.stderr)
            return FAILED
        _note(folder, row)
        print(json.dumps(row), flush=True)
    return 0


def _note(folder: Path, row: dict[str, Any]) -> None:
    """Adds the row to BUILT, which `mudit export tensorrt --record` reads."""
    path = folder / BUILT
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps({**rows, row["name"]: row}, indent=1), encoding="utf-8")
    os.replace(aside, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BuildError(RuntimeError):
    """The builder or the parser refused; the message is theirs."""


def build(trt: Any, spec: dict[str, Any], entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Builds one engine, writes it and its log, and returns its figures. Raises BuildError."""
    engine = folder / entry["engine"]
    engine.parent.mkdir(parents=True, exist_ok=True)
    log_path = engine.with_suffix(".log.gz")
    with gzip.open(log_path, "wt", encoding="utf-8", compresslevel=4) as file:
        logger = _logger(trt, file)
        builder = trt.Builder(logger)
        # TensorRT 11 knows no other networks and has dropped the flag
        strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if strongly is None else 1 << int(strongly))
        parser = trt.OnnxParser(network, logger)
        started = time.perf_counter()
        source = folder / entry["onnx"]
        if not parser.parse_from_file(str(source)):
            faults = [parser.get_error(i) for i in range(parser.num_errors)]
            raise BuildError(
                "; ".join(
                    f"{fault.node_name()} ({fault.node_operator()}): {fault.desc()}"
                    for fault in faults[:3]
                )
            )
        parsed = time.perf_counter() - started
        config = _config(trt, builder, spec, entry, folder)
        started, before = time.perf_counter(), time.process_time()
        serialized = builder.build_serialized_network(network, config)
        built, cpu = time.perf_counter() - started, time.process_time() - before
        if serialized is None:
            raise BuildError(
                "; ".join(logger.errors[:3]) or "the builder gave no engine and no reason"
            )
    data = memoryview(serialized)
    aside = engine.with_name(f".{engine.name}.{os.getpid()}")
    aside.write_bytes(data)
    os.replace(aside, engine)
    if spec.get("timing_cache"):
        cache = config.get_timing_cache().serialize()
        (folder / spec["timing_cache"]).write_bytes(memoryview(cache))
    return {
        "name": entry["name"],
        "engine": entry["engine"],
        "bytes": len(data),
        "profiles": len(entry["profiles"]),
        "layers": network.num_layers,
        "parse_seconds": round(parsed, 2),
        "build_seconds": round(built, 2),
        "build_cpu_seconds": round(cpu, 2),
        "builder_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "memory": logger.memory,
        "warnings": logger.warnings,
        "version": trt.__version__,
        "onnx_sha256": _sha256(folder / entry["onnx"]),
        "engine_sha256": _sha256(engine),
    }


def _config(
    trt: Any, builder: Any, spec: dict[str, Any], entry: dict[str, Any], folder: Path
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if spec["capability"]:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, spec["capability"]), 0)
    if entry.get("optimization_level") is not None:
        config.builder_optimization_level = entry["optimization_level"]
    if spec.get("timing_cache"):
        path = folder / spec["timing_cache"]
        config.set_timing_cache(
            config.create_timing_cache(path.read_bytes() if path.is_file() else b""),
            ignore_mismatch=False,
        )
    for shapes in entry["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)
    return config


def _logger(trt: Any, file: Any) -> Any:
    class Log(trt.ILogger):
        """Everything goes to the file; errors, warnings and memory figures are also kept."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.memory: dict[str, list[int]] = {}

        def log(self, severity: Any, message: str) -> None:
            name = str(severity).rsplit(".", 1)[-1]
            file.write(f"[{name}] {message}\n")
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING and message not in self.warnings:
                self.warnings.append(message)
            for title in ("Total Activation Memory", "Max Scratch Memory", "Total Weights Memory"):
                if message.startswith(f"{title}: "):  # once a profile
                    self.memory.setdefault(title, []).append(int(message.split(": ")[1].split()[0]))

    return Log()


def measure(
    trt: Any, spec: dict[str, Any], entry: dict[str, Any], folder: Path, *, runs: int = 100
) -> list[dict[str, Any]]:
    """Milliseconds of every profile at its optimum shapes, replayed from a CUDA graph on random
    inputs. Raises BuildError without a GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise BuildError(f"measuring needs torch with CUDA ({error})") from None
    if not torch.cuda.is_available():
        raise BuildError(
            "measuring needs an NVIDIA driver and a torch built for CUDA; "
            "torch.cuda.is_available() is False"
        )
    kinds = {
        "FLOAT": torch.float32,
        "HALF": torch.float16,
        "BF16": torch.bfloat16,
        "INT64": torch.int64,
        "INT32": torch.int32,
    }
    kinds |= {"BOOL": torch.bool, "INT8": torch.int8}
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(
        (folder / entry["engine"]).read_bytes()
    )
    if engine is None:
        raise BuildError(
            "the engine cannot be deserialised on this GPU: build it here, with this version"
        )
    rows = []
    for number, shapes in enumerate(entry["profiles"]):
        stream = torch.cuda.Stream()
        context = engine.create_execution_context()
        context.set_optimization_profile_async(number, stream.cuda_stream)
        held = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if is_input:
                context.set_input_shape(name, shapes[name][1])
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = kinds[str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]]
            shape = tuple(context.get_tensor_shape(name))
            # zeros are in range for every index input, ones would unmask nothing else
            tensor = (
                torch.randn(shape, device="cuda").to(kind)
                if kind.is_floating_point
                else torch.zeros(shape, dtype=kind, device="cuda")
            )
            if kind is torch.bool:
                tensor.fill_(True)
            held.append(tensor)
            context.set_tensor_address(name, tensor.data_ptr())
        with torch.cuda.stream(stream):
            for _ in range(3):  # the first call settles what a capture may not
                context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            context.execute_async_v3(stream.cuda_stream)
        times = []
        for _ in range(runs + 10):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            with torch.cuda.stream(stream):
                graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(start.elapsed_time(end))
        times = sorted(times[10:])
        pick = {
            f"p{p}_ms": round(times[min(len(times) - 1, len(times) * p // 100)], 4)
            for p in (50, 90, 99)
        }
        rows.append(
            {"profile": number, "runs": runs, "device": torch.cuda.get_device_name(), **pick}
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
