"""Which kernels a piece of work launches on a GPU, how many programs each, and how many variants of
them would be compiled; without a GPU and without compiling any.

    with count_launches("sm_90") as counted, ops.use("triton"):
        denoiser.step(states)                      # on CPU tensors; outputs stay unwritten
    len(counted.launches), counted.programs, len(counted.variants)

The host code runs as it would (tile heuristics, specialisation, grids); a launch is written down in
place of compiled. A variant is what Triton would compile anew: a kernel with its constants, types
and alignments.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mudit_engine.errors import MuditError
from mudit_engine.profiling.aot import _capability, _driver


@dataclass
class Launches:
    """launches: (kernel, programs) in order; variants: (kernel, specialisation)."""

    launches: list[tuple[str, int]] = field(default_factory=list)
    variants: set[tuple[str, str]] = field(default_factory=set)

    @property
    def programs(self) -> int:
        """Tiles that blocks execute, over all launches."""
        return sum(count for _, count in self.launches)

    def by_kernel(self) -> dict[str, dict[str, int]]:
        """{kernel: {"launches": ..., "programs": ..., "variants": ...}}"""
        programs: Counter[str] = Counter()
        for name, count in self.launches:
            programs[name] += count
        launches = Counter(name for name, _ in self.launches)
        variants = Counter(name for name, _ in self.variants)
        return {
            name: {
                "launches": launches[name],
                "programs": programs[name],
                "variants": variants[name],
            }
            for name in sorted(launches)
        }


@contextlib.contextmanager
def count_launches(arch: str) -> Iterator[Launches]:
    """Launches inside are written down. Raises InputError for an unknown architecture, MuditError
    under TRITON_INTERPRET=1, where kernels are not launched but interpreted.
    """
    capability = _capability(arch)
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if knobs.runtime.interpret:
        raise MuditError(
            "TRITON_INTERPRET=1 is set, which replaces launches by an interpreter: unset it to "
            "count them"
        )
    counted = Launches()
    stock_run, stock_compile, previous = JITFunction.run, JITFunction._do_compile, driver._active
    named = _driver(capability)
    # a device of its own: Triton keeps kernels by device, and must not find these again
    named.get_current_device = lambda: -capability

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        stub = stock_run(self, *args, grid=grid, warmup=True, **kwargs)
        counted.variants.add((self.fn.__name__, stub.key))
        bound = self.signature.bind_partial(
            *args, **{k: v for k, v in kwargs.items() if k in self.signature.parameters}
        )
        bound.apply_defaults()
        shape = tuple(grid(dict(bound.arguments)) if callable(grid) else grid)
        programs = 1
        for extent in shape:
            programs *= int(extent)
        counted.launches.append((self.fn.__name__, programs))
        return stub

    def compiled(self: Any, key: Any, signature: Any, device: Any, *rest: Any) -> Any:
        stub = SimpleNamespace(key=str(key))
        self.device_caches[device][0][key] = stub
        return stub

    JITFunction.run, JITFunction._do_compile = run, compiled
    driver.set_active(named)
    try:
        yield counted
    finally:
        JITFunction.run, JITFunction._do_compile = stock_run, stock_compile
        driver._active = previous
