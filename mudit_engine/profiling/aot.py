"""Compiles Triton kernels for any NVIDIA architecture on a machine with no GPU and no driver.

The launchers themselves run, on CPU tensors, against a driver that only names an architecture;
every launch is compiled with the specialisation it would have on the device (alignment, constants,
tensor descriptors, tile heuristics) and recorded instead of run.

    with compile_for("sm_90") as builds:
        attention(q, k, v, segments)
    builds[0].registers, builds[0].spill_bytes, builds[0].sass
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError, MuditError

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class KernelBuild:
    """One compiled launch. Sizes in bytes; spills and registers are per thread, shared memory per
    block.
    """

    kernel: str
    arch: str
    grid: tuple[int, ...]
    warps: int
    stages: int
    shared_bytes: int
    scratch_bytes: int
    """Global memory per block that Triton asks its allocator for (device-side tensor descriptors
    do; host-side ones do not).
    """
    constants: dict[str, Any]
    flops: float | None
    """Useful work of the launch, from the kernel's launch_metadata, or None."""
    bytes_moved: float | None
    ptx: str
    ptxas_options: tuple[str, ...] = ()

    @cached_property
    def _assembled(self) -> tuple[str, bytes]:
        """ptxas' verbose log and the cubin. Triton assembles with the same flags but drops the log,
        and the warnings with it.
        """
        with tempfile.TemporaryDirectory() as folder:
            source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
            source.write_text(self.ptx)
            target = re.search(r"^\.target (\w+)", self.ptx, re.MULTILINE)
            assert target
            command = [
                _tool("ptxas", self.arch),
                "-v",
                "-lineinfo",
                "--regAllocOptLevel=2",
                *self.ptxas_options,
            ]
            done = subprocess.run(
                [*command, f"--gpu-name={target[1]}", source, "-o", cubin],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise MuditError(
                    f"ptxas rejects {self.kernel} for {self.arch}: {done.stderr.strip()}"
                )
            return done.stderr + done.stdout, cubin.read_bytes()

    @property
    def block_warps(self) -> int:
        """Warps of a block: more than `warps` where a kernel is specialised by warps."""
        found = re.search(r"^\.(?:req|max)ntid (\d+)", self.ptx, re.MULTILINE)
        return int(found[1]) // 32 if found else self.warps

    def _logged(self, pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, self._assembled[0]))

    @property
    def registers(self) -> int:
        return self._logged(r"Used (\d+) registers")

    @property
    def spill_bytes(self) -> int:
        """Spill stores plus spill loads of the instruction text (not times executed)."""
        return self._logged(r"(\d+) bytes spill stores") + self._logged(r"(\d+) bytes spill loads")

    @property
    def stack_bytes(self) -> int:
        return self._logged(r"(\d+) bytes stack frame")

    @property
    def ptxas_warnings(self) -> tuple[str, ...]:
        """Lines such as C7510, "Potential Performance Loss: wgmma.mma_async instructions are
        serialized".
        """
        lines = (line.strip() for line in self._assembled[0].splitlines())
        return tuple(
            line
            for line in lines
            if re.search(r"warning|\bC75\d\d\b|Performance Loss", line, re.IGNORECASE)
        )

    @cached_property
    def sass(self) -> str:
        """nvdisasm's listing of the machine code."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self._assembled[1])
            file.flush()
            done = subprocess.run(
                [_tool("nvdisasm", self.arch), "-c", file.name], capture_output=True, text=True
            )
        if done.returncode:
            raise MuditError(
                f"nvdisasm fails on {self.kernel} for {self.arch}: {done.stderr.strip()}"
            )
        return done.stdout


def _tool(name: str, arch: str) -> str:
    """ptxas or nvdisasm as Triton finds them: in its wheel, or where TRITON_PTXAS_PATH and friends
    point.
    """
    from triton import knobs

    if name == "ptxas" and _capability(arch) >= 100:
        name = "ptxas_blackwell"
    return str(getattr(knobs.nvidia, name).path)


def _capability(arch: str) -> int:
    if arch not in ARCHITECTURES:
        raise InputError(f"arch={arch!r} is not known: choose from {', '.join(ARCHITECTURES)}")
    return int(arch.removeprefix("sm_"))


def _driver(capability: int) -> Any:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class NamedTarget(DriverBase):
        """Says which GPU to compile for, and nothing else."""

        utils = None

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return capability  # Triton's kernel caches are per device: one for each architecture

        def get_current_stream(self, device: int | None = None) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_benchmarker(self) -> Any:
            return lambda fn, **_: [1.0, 1.0, 1.0]

    return NamedTarget()


@contextlib.contextmanager
def compile_for(arch: str, *, all_configs: bool = False) -> Iterator[list[KernelBuild]]:
    """Within the block launches are compiled for `arch` and appended to the list; nothing runs, and
    outputs stay unwritten.

    Autotuned kernels are built with their first config, or with each of them (`all_configs`).
    Raises InputError for an unknown architecture, and MuditError under TRITON_INTERPRET=1, because
    kernels imported then can't be compiled.
    """
    capability = _capability(arch)
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    if knobs.runtime.interpret:
        raise MuditError(
            "TRITON_INTERPRET=1 is set, which replaces the compiler by an interpreter: unset it to "
            "compile kernels"
        )
    builds: list[KernelBuild] = []
    stock_run, stock_tune, previous = JITFunction.run, Autotuner.run, driver._active

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        compiled = stock_run(self, *args, grid=grid, warmup=True, **kwargs)
        bound = self.signature.bind_partial(
            *args, **{k: v for k, v in kwargs.items() if k in self.signature.parameters}
        )
        bound.apply_defaults()
        named = dict(bound.arguments)
        shape = tuple(grid(named) if callable(grid) else grid)
        meta = compiled.metadata
        work = self.launch_metadata(shape, meta, named) if self.launch_metadata else {}
        # Proton counts FLOPs by operand width: flops8, flops16, flops32
        flops = [v for k, v in work.items() if k.startswith("flops")]
        builds.append(
            KernelBuild(
                kernel=self.fn.__name__,
                arch=arch,
                grid=shape,
                warps=meta.num_warps,
                stages=meta.num_stages,
                shared_bytes=meta.shared,
                scratch_bytes=meta.global_scratch_size,
                constants={
                    p.name: named[p.name] for p in self.params if p.is_constexpr and p.name in named
                },
                flops=sum(flops) if flops else None,
                bytes_moved=work.get("bytes"),
                ptx=compiled.asm["ptx"],
                ptxas_options=tuple((meta.ptx_options or "").split()),
            )
        )
        return compiled

    def tune(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs) if all_configs else self.configs[:1]:
            options = {**kwargs, **config.all_kwargs()}
            if config.pre_hook:
                config.pre_hook({**self.nargs, **options})
            compiled = self.fn.run(*args, **options)
        return compiled

    JITFunction.run, Autotuner.run = run, tune
    driver.set_active(_driver(capability))
    try:
        yield builds
    finally:
        JITFunction.run, Autotuner.run = stock_run, stock_tune
        driver._active = previous


@contextlib.contextmanager
def variants_for(arch: str) -> Iterator[dict[str, set[str]]]:
    """Within the block launches are counted instead of run or compiled: the dictionary holds, for
    each kernel, the keys that `arch` would compile it for. Raises as compile_for does.

    A kernel that gets another key for another row count is compiled again and again in training.
    """
    capability = _capability(arch)
    from triton import knobs
    from triton.runtime import driver

    if knobs.runtime.interpret:
        raise MuditError(
            "TRITON_INTERPRET=1 is set: unset it, interpreted kernels have no variants"
        )
    found: dict[str, set[str]] = {}

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        found.setdefault(fn.name, set()).add(key)
        return True  # "somebody else compiles it": nothing is compiled, nothing launched

    previous, hook = driver._active, knobs.runtime.jit_cache_hook
    driver.set_active(_driver(capability))
    knobs.runtime.jit_cache_hook = note
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = hook
        driver._active = previous


@contextlib.contextmanager
def launches_stubbed(arch: str = "sm_90") -> Iterator[None]:
    """Within the block a launch returns at once: what is left is the host's work around it, which
    can be timed without a GPU. Raises as compile_for does.
    """
    capability = _capability(arch)
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if knobs.runtime.interpret:
        raise MuditError(
            "TRITON_INTERPRET=1 is set: unset it, interpreted launches are not stubbed"
        )
    stock_run, previous = JITFunction.run, driver._active
    JITFunction.run = lambda self, *args, **kwargs: None
    driver.set_active(_driver(capability))
    try:
        yield
    finally:
        JITFunction.run, driver._active = stock_run, previous
