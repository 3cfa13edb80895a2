"""What TensorRT engines are built for: GPUs by name, by compute capability, or by TensorRT-RTX.

    TARGETS["a100"].capability, TARGETS["sm_89"].package       # "8.0", "tensorrt"
    order("9.0", "NVIDIA H200")        # what this GPU runs, the best first: h200, sm_90, h100, ...

TensorRT builds on the GPU that runs the engine. TensorRT-RTX (rtx-*) builds ahead of time, without
one, for Ampere and later consumer architectures and A100; it has no SM90 and no SM100.
"""

from __future__ import annotations

from dataclasses import dataclass

# name -> compute capability
GPUS = {"a100": "8.0", "l40s": "8.9", "h100": "9.0", "h200": "9.0", "b200": "10.0"}
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
PORTABLE = "rtx-portable"


@dataclass(frozen=True)
class Target:
    """Where engines run. package is the builder's import name; capability that of the GPU, None for
    any that TensorRT-RTX supports.
    """

    name: str
    package: str
    capability: str | None = None

    @property
    def ahead_of_time(self) -> bool:
        return self.package == "tensorrt_rtx"

    @property
    def compiles_for(self) -> str | None:
        """What TensorRT-RTX is told to compile for, None for its default or another builder."""
        if not self.ahead_of_time or self.capability is None:
            return None
        return f"SM{self.capability.replace('.', '')}"


def _number(capability: str) -> str:
    return capability.replace(".", "")


TARGETS = {
    one.name: one
    for one in (
        *(Target(name, "tensorrt", capability) for name, capability in GPUS.items()),
        *(Target(f"sm_{_number(c)}", "tensorrt", c) for c in CAPABILITIES),
        *(Target(f"rtx-sm{_number(c)}", "tensorrt_rtx", c) for c in RTX),
        Target(PORTABLE, "tensorrt_rtx"),
    )
}


def target_of_gpu(name: str, capability: str) -> str | None:
    """The target of a GPU, as nvidia-smi names it: by name where we know it, else by compute
    capability; None for one that no target is for.
    """
    words = name.lower().replace("-", " ").split()
    for known, its in GPUS.items():
        if known in words and its == capability:
            return known
    return f"sm_{_number(capability)}" if capability in CAPABILITIES else None


def order(capability: str, gpu: str = "") -> list[str]:
    """Targets whose engines run on a GPU of this compute capability, the best first: its own, its
    architecture's, those of another GPU with it, TensorRT-RTX's.
    """
    fitting = [name for name, one in TARGETS.items() if one.capability == capability]
    own = target_of_gpu(gpu, capability)
    ranked = sorted(
        fitting,
        key=lambda name: (
            name != own,
            TARGETS[name].ahead_of_time,
            not name.startswith(("sm_", "rtx-")),
        ),
    )
    return [*ranked, PORTABLE]
