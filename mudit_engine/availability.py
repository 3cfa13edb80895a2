"""Which optional packages are here, and the command that installs the others. Nothing is imported
to find out.

if available("onnxruntime"): ...
require("deepspeed", "training with ZeRO")
requirements()["train"]                     # what the extra pins: packaging Requirements
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from mudit_engine.errors import MissingError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

CORE = "core"

# import name -> (name on the package index, extra of this project that installs it)
PACKAGES = {
    "torch": ("torch", None),
    "triton": ("triton", None),
    "numpy": ("numpy", None),
    "pydantic": ("pydantic", None),
    "safetensors": ("safetensors", None),
    "soundfile": ("soundfile", None),
    "pypinyin": ("pypinyin", None),
    "llguidance": ("llguidance", None),
    "matplotlib": ("matplotlib", None),
    "flash_attn": ("flash-attn", "flash"),
    "deepspeed": ("deepspeed", "train"),
    "tensorboard": ("tensorboard", "train"),
    "wandb": ("wandb", "track"),
    "mlflow": ("mlflow", "track"),
    "ray": ("ray", "ray"),
    "vllm_omni": ("vllm-omni", "omni"),
    "demucs": ("demucs", "listen"),
    "faster_whisper": ("faster-whisper", "listen"),
    "funasr": ("funasr", "listen"),
    "muq": ("muq", "judges"),
    "audiobox_aesthetics": ("audiobox-aesthetics", "judges"),
    "transformers": ("transformers", "lyrics"),
    "peft": ("peft", "lora"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "bitsandbytes": ("bitsandbytes", "lyrics"),
    "accelerate": ("accelerate", "lyrics"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "openvino": ("openvino", "export"),
    "tensorrt_rtx": ("tensorrt-rtx", "export"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tritonclient": ("tritonclient", "dev"),
    "modelopt": ("nvidia-modelopt", "quantize"),
    "fastapi": ("fastapi", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "python_multipart": ("python-multipart", "serve"),
    "prometheus_client": ("prometheus-client", "serve"),
    "opentelemetry": ("opentelemetry-sdk", "trace"),
    "httpx": ("httpx", "dev"),
    "selenium": ("selenium", "dev"),
    "schemathesis": ("schemathesis", "dev"),
    "scipy": ("scipy", "eval"),
    "diffusers": ("diffusers", "bench"),
    "liger_kernel": ("liger-kernel", "peers"),
    "pyworld": ("pyworld", "corpus"),
    "mido": ("mido", "corpus"),
    "mkdocs": ("mkdocs", "docs"),
    "pesq": ("pesq", "quality"),
    "visqol": ("visqol-python", "quality"),
}
# Releases that the whole suite runs on: those of constraints.txt, and the oldest of setup.py.
TESTED = {
    "constraints": {"torch": "2.13.0", "triton": "3.7.1"},
    "floor": {"torch": "2.11.0", "triton": "3.6.0"},
}
# command -> Debian package
TOOLS = {"espeak-ng": "espeak-ng", "fluidsynth": "fluidsynth"}


@functools.cache
def available(module: str) -> bool:
    """True when `module` can be found (it is not imported)."""
    return importlib.util.find_spec(module) is not None


@functools.cache
def version(module: str) -> str | None:
    """The installed version of an import name, or None. Read once: a run notes fifty of them,
    which takes a tenth of a second.
    """
    import importlib.metadata  # here: it costs every command 50 ms, and most ask for no version

    try:
        return importlib.metadata.version(PACKAGES.get(module, (module, None))[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def tested_set() -> str:
    """Which set of TESTED torch and Triton are: "constraints", "floor", "between" where each lies
    in its range, "other" where one does not.
    """
    from packaging.version import Version

    # a local label such as 2.13.0+cpu names a build, not a release
    here = {name: Version(found).public for name in ("torch", "triton") if (found := version(name))}
    for name, releases in TESTED.items():
        if here == releases:
            return name
    within = len(here) == 2 and all(
        Version(TESTED["floor"][name]) <= Version(found) <= Version(TESTED["constraints"][name])
        for name, found in here.items()
    )
    return "between" if within else "other"


@functools.cache
def requirements() -> dict[str, tuple[Requirement, ...]]:
    """What each extra (and CORE) pins for this platform, from the installed metadata. Empty in a
    checkout that is not installed.
    """
    import importlib.metadata

    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata("mudit-engine")
    except importlib.metadata.PackageNotFoundError:
        return {}
    stated = [Requirement(line) for line in metadata.get_all("Requires-Dist") or ()]
    found = {CORE: tuple(r for r in stated if r.marker is None or r.marker.evaluate({"extra": ""}))}
    for extra in metadata.get_all("Provides-Extra") or ():
        found[extra] = tuple(
            r
            for r in stated
            if r not in found[CORE] and r.marker is not None and r.marker.evaluate({"extra": extra})
        )
    return found


def pip_install(*wanted: str) -> str:
    """The pip command that installs into the environment that runs now: `pip` on the PATH may
    belong to another.
    """
    first = shutil.which("python")
    python = (
        "python"
        if first and os.path.dirname(first) == os.path.dirname(sys.executable)
        else os.path.relpath(sys.executable)
    )
    return shlex.join(
        [python if not python.startswith("..") else sys.executable, "-m", "pip", "install", *wanted]
    )


def pinned(module: str) -> str:
    """`module` as this project pins it, in pip's form; its bare name in a checkout that is not
    installed.
    """
    name, extra = PACKAGES.get(module, (module, None))
    stated = requirements()
    pins = [*stated.get(extra or CORE, ()), *(pin for more in stated.values() for pin in more)]
    return next((f"{pin.name}{pin.specifier}" for pin in pins if pin.name == name), name)


def install_command(module: str) -> str:
    """The command that installs `module` as this project pins it."""
    return pip_install(pinned(module))


def require(module: str, purpose: str) -> None:
    """Raises MissingError with the install command when `module` is not installed."""
    if not available(module):
        raise MissingError(
            f"{purpose} needs the package '{module}', which is not installed: "
            f"{install_command(module)}"
        )


def require_tool(command: str, purpose: str) -> str:
    """Path of an external program. Raises MissingError with the install command when it is not on
    the PATH.
    """
    path = shutil.which(command)
    if path is None:
        package = TOOLS.get(command, command)
        raise MissingError(
            f"{purpose} needs the program '{command}', which is not on the PATH: apt-get install "
            f"{package}"
        )
    return path
