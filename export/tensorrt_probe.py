"""Does TensorRT build attention on packed rows here? Songs end to end, no padding, no mask:

    query, key, value [rows, heads, width]      the rows of all songs, one song after the other
    lengths [songs + 1] int32                   where each song begins; the last is `rows`

    python -m mudit_engine.export.tensorrt_probe                   # TensorRT, on this GPU
    python -m mudit_engine.export.tensorrt_probe --package tensorrt_rtx --capability SM120

The engines of `mudit export tensorrt` pad a song to its bucket and mask what is padded. This form
of TensorRT 11's attention (AttentionIOForm.PACKED_NHD) would pad nothing; no network of this
project is built on it, and whether a GPU's builder has kernels for it is what this asks, with the
widths of heads that the presets have. One JSON line a width; exit code 0 when all are built, 1 when
one is refused, 3 without the package or a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

MISSING, REFUSED = 3, 1
WIDTHS = (64, 96, 128)
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")  # that TensorRT-RTX builds for
HEADS, SONGS, ROWS = 4, 8, 4096  # of the profile at its largest


def define(trt: Any, network: Any, width: int) -> Any:
    """Adds the attention to an empty network. Returns its layer. Raises RuntimeError where this
    version has no such form.
    """
    if not hasattr(trt, "AttentionIOForm"):
        raise RuntimeError(f"{trt.__name__} {trt.__version__} has no packed attention: take 11")
    rows = [
        network.add_input(name, trt.DataType.BF16, (-1, HEADS, width))
        for name in ("query", "key", "value")
    ]
    lengths = network.add_input("lengths", trt.DataType.INT32, (-1,))
    layer = network.add_attention_v2(
        *rows, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    )
    packed = trt.AttentionIOForm.PACKED_NHD
    layer.query_form, layer.key_value_form = packed, packed
    layer.query_lengths, layer.key_value_lengths = lengths, lengths
    layer.decomposable = False  # one kernel or none
    layer.name = "packed"
    out = layer.get_output(0)
    out.name = "out"
    network.mark_output(out)
    return layer


def probe(trt: Any, width: int, *, capability: str | None = None) -> dict[str, Any]:
    """Defines and builds the attention for one width of heads. `capability` is what TensorRT-RTX
    builds for; TensorRT builds for this machine's GPU.

    Returns {"width", "package", "version", "built", "bytes" or "reason"}.
    """
    errors: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    row = {"width": width, "package": trt.__name__, "version": trt.__version__}
    if capability:
        row["capability"] = capability
    builder = trt.Builder(Log())
    network = builder.create_network(0)
    define(trt, network, width)
    config = builder.create_builder_config()
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    for name in ("query", "key", "value"):
        shapes = [(rows, HEADS, width) for rows in (1, ROWS // 2, ROWS)]
        profile.set_shape(name, *shapes)
    profile.set_shape("lengths", (2,), (SONGS // 2 + 1,), (SONGS + 1,))
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        reason = errors[0] if errors else "the builder gave no engine and no reason"
        return {**row, "built": False, "reason": reason[:400]}
    return {**row, "built": True, "bytes": len(memoryview(built))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ask a builder for attention on packed rows.")
    parser.add_argument("--package", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt")
    parser.add_argument(
        "--capability",
        choices=CAPABILITIES,
        help="of tensorrt_rtx, which needs no GPU; none is SM80",
    )
    parser.add_argument("--width", type=int, action="append", help="of a head; repeatable")
    options = parser.parse_args(arguments)
    if options.package == "tensorrt" and options.capability:
        parser.error("--capability is for tensorrt_rtx: TensorRT builds for the GPU that is here")
    if options.package == "tensorrt" and not _gpu():
        print(
            "no GPU here: TensorRT builds on the GPU that runs the engine; take --package "
            "tensorrt_rtx to ask TensorRT-RTX's builder, which needs none",
            file=sys.stderr,
        )
        return MISSING
    try:
        trt = importlib.import_module(options.package)
    except ImportError as error:
        print(f"the package {options.package} cannot be imported ({error})", file=sys.stderr)
        return MISSING
    capability = options.capability
    if options.package == "tensorrt_rtx" and capability is None:
        capability = "SM80"
    built = True
    for width in options.width or WIDTHS:
        row = probe(trt, width, capability=capability)
        built = built and row["built"]
        print(json.dumps(row), flush=True)
    return 0 if built else REFUSED


def _gpu() -> bool:
    from mudit_engine.hardware import machine

    return bool(machine().gpus)


if __name__ == "__main__":
    sys.exit(main())
