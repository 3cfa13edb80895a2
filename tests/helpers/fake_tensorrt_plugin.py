"""The part of tensorrt.plugin that export/tensorrt_plugins.py touches, with sizes that are numbers.
Run as a script, it compiles all plugins for an architecture and prints what TensorRT would be
given: PTX, launch parameters and scalars.

Names and rules are those of the package's own source
(python/packaging/bindings_wheel/tensorrt/plugin in NVIDIA/TensorRT).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class Size:
    """A ShapeExpr: a constant of the network, or one whose value is known when a song runs."""

    def __init__(self, value: int, *, constant: bool = True) -> None:
        self.value, self.is_constant, self.is_fake = value, constant, False

    def constant_value(self) -> int:
        if not self.is_constant:
            raise RuntimeError("not accessible for non-constant shape expressions")
        return self.value

    def __mul__(self, other: Any) -> Size:
        return Size(self.value * number(other), constant=self.is_constant)


def number(size: Any) -> int:
    return size.value if isinstance(size, (Size, SymInt32)) else size


class ShapeExprs(list):
    @classmethod
    def from_tuple(cls, sizes: tuple[Any, ...]) -> ShapeExprs:
        return cls(one if isinstance(one, Size) else Size(one) for one in sizes)


class TensorDesc:
    def __init__(self, shape_expr: ShapeExprs, dtype: Any) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape_expr, self.dtype)


class SymInt32:
    def __init__(self, value: Any) -> None:
        self.value = number(value)


class SymIntExprs(list):
    @classmethod
    def from_tuple(cls, scalars: list[SymInt32]) -> SymIntExprs:
        assert all(isinstance(one, SymInt32) for one in scalars)
        return cls(scalars)


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        for name in self.NAMES:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.NAMES:
            raise AttributeError(f"KernelLaunchParams object has no attribute '{name}'")
        self.__dict__[name] = SymInt32(value)


class Plugins:
    """The module: `register` checks annotations as the real one does."""

    TensorDesc, ShapeExprs, SymInt32, SymIntExprs, KernelLaunchParams = (
        TensorDesc,
        ShapeExprs,
        SymInt32,
        SymIntExprs,
        KernelLaunchParams,
    )

    def __init__(self) -> None:
        self.described: dict[str, Any] = {}
        self.implemented: dict[str, Any] = {}

    @staticmethod
    def cdiv(a: Size, b: int) -> Size:
        return Size(-(-a.value // b), constant=a.is_constant)

    def register(self, name: str) -> Any:
        def keep(function: Any) -> Any:
            namespace, _, plain = name.partition("::")
            assert namespace and plain and name not in self.described
            code, notes = function.__code__, function.__annotations__
            names = code.co_varnames[: code.co_argcount]
            assert notes.pop("return") == tuple[TensorDesc, TensorDesc]
            assert list(notes) == list(names), "every argument is annotated, tensors first"
            kinds = [notes[one] is TensorDesc for one in names]
            assert kinds == sorted(kinds, reverse=True) and all(
                notes[one] in (TensorDesc, int, float, str, bool) for one in names
            )
            self.described[name] = function
            return function

        return keep

    def aot_impl(self, name: str) -> Any:
        def keep(function: Any) -> Any:
            names = function.__code__.co_varnames[: function.__code__.co_argcount]
            assert names[-2:] == ("outputs", "tactic"), "as get_launch_params calls it"
            self.implemented[name] = function
            return function

        return keep

    def build(self, name: str, inputs: list[TensorDesc], **attributes: Any) -> dict[str, Any]:
        """What TensorRT learns of a plugin: its outputs, kernel, launch."""
        outputs = self.described[name](*inputs, *attributes.values())
        kernel, ptx, launch, scalars = self.implemented[name](
            *inputs, *attributes.values(), outputs, None
        )
        return {
            "plugin": name,
            "outputs": [[number(size) for size in one.shape_expr] for one in outputs],
            "kernel": kernel.decode(),
            "ptx": ptx.decode(),
            "inputs": len(inputs),
            "scalars": [one.value for one in scalars],
            **{one: getattr(launch, one).value for one in KernelLaunchParams.NAMES},
        }


def main(arch: str) -> None:
    import torch

    from mudit_engine.export.tensorrt_plugins import register
    from mudit_engine.profiling.aot import _tool

    trtp = Plugins()
    names = register(
        trtp,
        arch=arch,
        dtypes={"BF16": torch.bfloat16, "FLOAT": torch.float32, "HALF": torch.float16},
    )
    assert names == ("mudit::attention", "mudit::residual_norm", "mudit::guided_step")

    def desc(kind: str, *sizes: Any) -> TensorDesc:
        return TensorDesc(ShapeExprs.from_tuple(sizes), kind)

    rows, songs = Size(832, constant=False), Size(2, constant=False)
    q, kv = desc("BF16", rows, 12, 128), desc("BF16", Size(264, constant=False), 12, 128)
    built = [
        trtp.build(
            "mudit::attention", [q, kv, kv, desc("INT32", Size(7, constant=False), 6)], scale=0.0884
        )
    ]
    x, table = desc("BF16", rows, 1536), desc("BF16", songs, 1536)
    built.append(
        trtp.build(
            "mudit::residual_norm",
            [x, x, table, table, table, desc("INT32", Size(53, constant=False), 3)],
        )
    )
    state, out = (
        desc("FLOAT", Size(768, constant=False), 96),
        desc("BF16", Size(1536, constant=False), 96),
    )
    built.append(
        trtp.build(
            "mudit::guided_step",
            [state, state, out, state, desc("FLOAT", songs, 7), desc("INT32", songs, 4)],
        )
    )
    for one in built:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "kernel.ptx")
            source.write_text(one["ptx"])
            target = re.search(r"^\.target (\w+)", one["ptx"], re.MULTILINE)
            assert target
            command = [
                _tool("ptxas", arch),
                "-v",
                f"--gpu-name={target[1]}",
                source,
                "-o",
                f"{folder}/cubin",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            one["ptxas"] = done.returncode, done.stderr + done.stdout
    try:
        trtp.build(
            "mudit::attention",
            [desc("BF16", rows, 12, Size(128, constant=False)), kv, kv, desc("INT32", 7, 6)],
            scale=1.0,
        )
        refused = ""
    except ValueError as error:
        refused = str(error)
    print(json.dumps({"built": built, "refused": refused}))


if __name__ == "__main__":
    main(sys.argv[1])
