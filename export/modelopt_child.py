"""NVIDIA's ModelOpt on a float32 graph, in an environment of its own: it pins other packages than
this project, so that this file imports none of it.

    python modelopt_child.py folder fp8

The folder holds twin.onnx, calibration.npz (inputs of one call a number: "3/x") and products.json
(names of the nodes that are quantised); measured.onnx is what ModelOpt makes of it. The graph lies
in a folder of its own because ModelOpt rewrites what it is given.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MISSING = 3


class Calls:
    """Recorded inputs, one call after the other, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, path: Path) -> None:
        import numpy

        self.held: Any = numpy.load(path)
        self.names: dict[int, list[str]] = {}
        for key in self.held.files:
            number, name = key.split("/", 1)
            self.names.setdefault(int(number), []).append(name)
        self.rewind()

    def rewind(self) -> None:
        self.left = sorted(self.names)

    def get_first(self) -> dict[str, Any]:
        return self._call(min(self.names))

    def get_next(self) -> dict[str, Any] | None:
        return self._call(self.left.pop(0)) if self.left else None

    def _call(self, number: int) -> dict[str, Any]:
        return {name: self.held[f"{number}/{name}"] for name in self.names[number]}


def main(folder: Path, kind: str) -> int:
    try:
        from modelopt import __version__
        from modelopt.onnx.quantization import quantize
        from onnxruntime.quantization.calibrate import CalibrationDataReader
    except ImportError as error:
        print(f"ModelOpt cannot be imported ({error})", file=sys.stderr)
        return MISSING

    class Reader(Calls, CalibrationDataReader):
        pass

    names = json.loads((folder / "products.json").read_text(encoding="utf-8"))
    quantize(
        onnx_path=str(folder / "twin.onnx"),
        output_path=str(folder / "measured.onnx"),
        quantize_mode=kind,
        calibration_data_reader=Reader(folder / "calibration.npz"),
        calibration_method="max",
        calibration_eps=["cpu"],
        op_types_to_quantize=["MatMul"],
        op_types_to_exclude=["Attention"],
        nodes_to_quantize=[f"^{name}$" for name in names],
        disable_mha_qdq=True,
        high_precision_dtype="fp32",
        use_external_data_format=(folder / "twin.onnx.data").is_file(),
    )
    (folder / "modelopt.json").write_text(json.dumps({"modelopt": __version__}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
