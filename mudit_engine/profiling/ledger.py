"""What a piece of work is made of, operation by operation: FLOPs, bytes, launches, living memory by
kind, and, when asked, the time of each.

    FLOPs    2 m k n of every product, 4 q k d of attention (2.5 times that backward), 0 of the rest
    bytes    what an operation is given and what it returns, each once
    launches operations that do work: neither views nor host scalars

Counts come from shapes (and the worklist of the engine's own attention), so they are the same on
every machine and in every run.

    with Ledger() as ledger:
        denoiser.step(states)
    ledger.flops, ledger.launches, ledger.peak_bytes
    with Ledger(timed=True) as ledger: ...        # ledger.ops: an entry an operation, with seconds

The ledger stands between torch and its operations while it is entered, and nowhere otherwise: code
that is not watched pays nothing.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("product", "attention", "norm", "pointwise", "copy", "random", "spectrum", "other")
"""What an operation is, for summaries. `copy` only moves or lays out data."""

_NAMES = {
    "product": """mm addmm bmm baddbmm mv addmv convolution _convolution convolution_backward
        _scaled_mm mkldnn_linear mkldnn_convolution""",
    "norm": "norm linalg_vector_norm _foreach_norm",
    "copy": """cat stack clone copy_ _to_copy index index_select index_add index_add_ index_put_
        index_fill_ constant_pad_nd pad zeros zeros_like zero_ fill_ new_zeros full full_like
        new_full ones_like repeat contiguous arange scatter gather flip roll slice_backward
        select_backward split_with_sizes_copy embedding embedding_dense_backward""",
    "random": "normal_ randn rand randint uniform_ bernoulli_ native_dropout",
    "spectrum": "_fft_r2c _fft_c2r _fft_c2c col2im im2col unfold_backward",
}
_KIND = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# an allocation and no more, or the question whether a tensor may be freed
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
BACKWARD_OF_ATTENTION = 2.5


@dataclass(frozen=True)
class Op:
    """One operation. `seconds` is 0 in a ledger that is not timed; `start` counts from its
    beginning.
    """

    name: str
    kind: str
    place: str
    """The ranges around it, "step/block"."""
    start: float
    seconds: float
    cpu_seconds: float
    flops: float
    bytes: int
    shapes: str


@dataclass(frozen=True)
class Moment:
    """Living bytes by kind at one time."""

    at: float
    place: str
    bytes: dict[str, int]


def kind_of(name: str) -> str:
    """One of KINDS for an operation's name without its overload."""
    bare = name.split("::")[-1]
    if "attention" in bare:
        return "attention"
    if bare in _KIND:
        return _KIND[bare]
    if "norm" in bare and "normal" not in bare:
        return "norm"
    return "pointwise"


def attention_flops(name: str, args: tuple[Any, ...]) -> float:
    """4 q k d over all heads of a fused attention, by its arguments: q, k first; backward 2.5 times
    that. Rows of the worklist for the engine's own kernels.
    """
    backward = "backward" in name or name.endswith("bwd")
    tensors = [a for a in args if isinstance(a, Tensor)]
    if name.startswith("mudit::"):
        q, table = _packed_query(tensors)
        # a tile is (first row, rows left in its segment, first key row, key rows, stream, place):
        # the one at place 0 stands for its whole segment
        first = table[table[:, 5] == 0].double()
        pairs = float((first[:, 1] * first[:, 3]).sum())
        heads = tensors[1 + backward].shape[1]
        return 4.0 * pairs * heads * q.shape[-1] * (BACKWARD_OF_ATTENTION if backward else 1.0)
    q, k = (tensors[1], tensors[2]) if backward else (tensors[0], tensors[1])
    if q.dim() != 4:
        return 0.0
    songs, heads, rows, width = q.shape
    flops = 4.0 * songs * heads * rows * k.shape[2] * width
    return flops * (BACKWARD_OF_ATTENTION if backward else 1.0)


def _packed_query(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    q = next(t for t in tensors if t.dim() == 3)
    table = next(t for t in tensors if t.dtype == torch.int32 and t.dim() == 2)
    return q, table


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


class Ledger(TorchDispatchMode):
    """Counts, and with `timed` times, everything that is dispatched inside. `keep_ops` keeps one Op
    an operation (implied by `timed`).
    """

    def __init__(self, *, timed: bool = False, keep_ops: bool = False) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry

        self._formulas = flop_registry
        self.timed, self.keep_ops = timed, timed or keep_ops
        self.ops: list[Op] = []
        self.moments: list[Moment] = []
        self.flops = 0.0
        self.bytes = self.launches = self.allocations = self.allocated_bytes = 0
        self.live: dict[str, int] = {}
        self.peak_bytes = 0
        self.peak: Moment | None = None
        self.kind = "activations"
        self._living: dict[int, tuple[str, int]] = {}
        self._places: list[str] = []
        self._began = time.perf_counter()

    @property
    def place(self) -> str:
        return "/".join(self._places)

    @contextlib.contextmanager
    def range(self, name: str) -> Iterator[None]:
        """Operations inside say where they ran."""
        self._places.append(name)
        try:
            yield
        finally:
            self._places.pop()

    def claim(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Files the storages of tensors under a kind ("weights", "plan", "K/V"), whether they were
        seen before or not.
        """
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._living:
                before, size = self._living[key]
                self.live[before] -= size
                self._living[key] = (kind, size)
                self.live[kind] = self.live.get(kind, 0) + size
            else:
                self._note(tensor, kind)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if func is torch.ops.prim.device.default or packet.__name__ in ("size", "stride", "numel"):
            return func(*args, **kwargs)
        if packet not in self._formulas and not func.namespace.startswith("mudit"):
            # in inference mode whole functions arrive: their parts are what there is to count
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        start, cpu = time.perf_counter(), time.process_time() if self.timed else 0.0
        out = func(*args, **kwargs)
        if self.timed and any(isinstance(a, Tensor) and a.is_cuda for a in tree_leaves(args)):
            torch.cuda.synchronize()
        end, cpu = time.perf_counter(), time.process_time() - cpu if self.timed else 0.0
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor in results:
            self._note(tensor, self.kind)
        name = packet.__name__
        if func.is_view or func is torch.ops.aten.detach.default or name in _FREE:
            return out
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not given and not results:
            return out
        self._count(func, args, kwargs, out, given, results, (start, end, cpu))
        return out

    def _count(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        out: Any,
        given: list[Tensor],
        results: list[Tensor],
        clock: tuple[float, float, float],
    ) -> None:
        packet = func._overloadpacket
        name = packet._qualified_op_name if func.namespace == "mudit" else packet.__name__
        kind = kind_of(name)
        if kind == "attention":
            flops = attention_flops(name, args)
        elif packet in self._formulas:
            flops = float(self._formulas[packet](*args, **kwargs, out_val=out))
            kind = "product"
        else:
            flops = 0.0
        moved = sum(map(size_of, given)) + sum(map(size_of, results))
        start, end, cpu = clock
        self.launches += 1
        self.flops += flops
        self.bytes += moved
        if self.keep_ops:
            shapes = " ".join("x".join(map(str, t.shape)) or "1" for t in given[:3])
            self.ops.append(
                Op(
                    name,
                    kind,
                    self.place,
                    start - self._began,
                    end - start if self.timed else 0.0,
                    cpu,
                    flops,
                    moved,
                    shapes,
                )
            )
            self.moments.append(Moment(end - self._began, self.place, dict(self.live)))

    def _note(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._living:
            return
        size = storage.nbytes()
        self._living[key] = (kind, size)
        self.live[kind] = self.live.get(kind, 0) + size
        self.allocations += 1
        self.allocated_bytes += size
        total = sum(self.live.values())
        if total > self.peak_bytes:
            self.peak_bytes = total
            self.peak = Moment(time.perf_counter() - self._began, self.place, dict(self.live))
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        kind, size = self._living.pop(key, (self.kind, 0))
        self.live[kind] = self.live.get(kind, 0) - size
