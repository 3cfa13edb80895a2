"""Runs a warp-specialised Gluon kernel for Hopper on the CPU, with everything asynchronous as late
and as early as it may be. Triton's interpreter does not run Gluon; this runs the subset that
kernels/attention_hopper_kernels.py and attention_hopper_backward_kernels.py are written in, from
their source.

    with simulated(seed=3) as kernel:                     # what attention_hopper.forward launches
        out, lse = attention_hopper.forward(q, k, v, cos, sin, tiles, config, ...)
    with simulated(seed=3, backward=True):
        attention_hopper_backward.key_gradients(q, k, v, d_out, state, dk, dv, tiles, scale=scale)

Partitions are threads of which one runs at a time; at every synchronisation a random one goes on
(some are starved, by the seed). A fault is raised where a program

- issues a product of shared memory whose copy has not landed, that nobody wrote, or that was
  written by stores and not fenced,
- overwrites an operand of a product, or gives its registers up, before the wait that covers it,
- uses a product before that wait,
- changes a descriptor while a copy that uses it is in flight,
- arrives at a barrier more often than it counts, completes it again before anybody saw it, or ends
  with copies or products in flight,
- waits for ever,
- touches memory outside its tensors, or an element that another program wrote.

It knows nothing of layouts, swizzles, registers, or the order in which the hardware shows writes of
one thread to another: machine code and a GPU decide those.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

KERNELS = "mudit_engine.kernels.attention_hopper_kernels"
BACKWARD = "mudit_engine.kernels.attention_hopper_backward_kernels"


class SynchronisationFault(AssertionError):
    """The kernel relied on an order that nothing guarantees."""


class _Stopped(BaseException):
    """Ends the other partitions when one has failed."""


class Memory:
    """A tensor in global memory: what may be touched, and which program wrote what."""

    def __init__(self, x: Tensor) -> None:
        size = x.untyped_storage().nbytes() // x.element_size()
        self.flat = x.as_strided((size,), (1,), 0)
        self.allowed = torch.zeros(size, dtype=torch.bool)
        self.allowed.as_strided(x.shape, x.stride(), x.storage_offset())[...] = True
        self.writer = torch.full((size,), -1, dtype=torch.int32)


class Pointer:
    """An address, or a tensor of them, in elements."""

    def __init__(self, memory: Memory, at: Any) -> None:
        self.memory, self.at = memory, at
        self.dtype = SimpleNamespace(element_ty=memory.flat.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.at + offset)

    def places(self, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(self.at)
        mask = torch.ones_like(at, dtype=torch.bool) if mask is None else mask.expand(at.shape)
        touched = at[mask]
        outside = (touched < 0) | (touched >= self.memory.flat.numel())
        if outside.any() or not self.memory.allowed[touched].all():
            raise SynchronisationFault("an address outside the tensors of the launch")
        return at, mask


class Shared:
    """A tile of shared memory, or a stack of them."""

    def __init__(self, x: Tensor, tile: Tensor | None = None) -> None:
        self.x = x
        self.tile = x if tile is None else tile

    def index(self, i: Any) -> Shared:
        return Shared(self.x[int(i)])

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.x.permute(*order), self.tile)

    @property
    def key(self) -> int:
        return self.tile.data_ptr()

    def store(self, x: Tensor) -> None:
        block = Block.current
        if x.shape != self.x.shape or x.dtype != self.x.dtype:
            raise SynchronisationFault(f"{x.dtype} {tuple(x.shape)} is stored to another tile")
        self.x.copy_(x)
        block.written.add(self.key)
        block.unfenced[self.key] = block.running

    def load(self, layout: Any) -> Tensor:
        return self.x.clone()


class Barrier:
    """An mbarrier: counts arrivals and bytes, and has phases; or a stack of them."""

    def __init__(self, stack: int = 0) -> None:
        self.stack = [Barrier() for _ in range(stack)]
        self.count = self.pending = self.bytes = self.phase = 0
        self.unseen = False

    def index(self, i: Any) -> Barrier:
        return self.stack[int(i)]

    def settle(self) -> None:
        if self.pending < 0:
            raise SynchronisationFault("a barrier has more arrivals than it counts")
        if self.pending == 0 and self.bytes == 0:
            if self.unseen:
                raise SynchronisationFault("a barrier completes again before anybody saw it")
            self.phase, self.pending, self.unseen = self.phase ^ 1, self.count, True


class Descriptor:
    """A tensor map: rows from `extent` on are read as 0."""

    def __init__(self, pointer: Pointer, extent: int, width: int, stride: int, box: Any) -> None:
        self.pointer, self.extent, self.width = pointer, extent, width
        self.stride, self.box, self.in_flight = stride, box, 0

    def read(self, row: int, column: int) -> Tensor:
        memory = self.pointer.memory
        rows, cols = (torch.arange(n) for n in self.box)
        mask = ((rows + row < self.extent)[:, None]) & ((cols + column < self.width)[None, :])
        at = int(self.pointer.at) + (rows[:, None] + row) * self.stride + cols[None, :] + column
        at, mask = Pointer(memory, at).places(mask)
        return torch.where(mask, memory.flat[at.where(mask, at.new_zeros(()))], 0)


class Product:
    """A wgmma in flight. Its value is there after the wait that covers it."""

    def __init__(self, a: Any, b: Shared, acc: Any, use_acc: bool) -> None:
        self.a, self.b, self.acc, self.use_acc = a, b, acc, use_acc
        self.value: Tensor | None = None
        block = Block.current
        self.seen = []
        for operand in (a, b):
            if isinstance(operand, Shared):
                if operand.key in block.landing:
                    raise SynchronisationFault("a product is issued before its copy has landed")
                if operand.key not in block.written:
                    raise SynchronisationFault("a product reads what nobody has written")
                if operand.key in block.unfenced:
                    raise SynchronisationFault("a product reads stores that were not fenced")
                self.seen.append((operand, operand.x.clone()))

    def finish(self, kept: Sequence[Any]) -> None:
        for operand, before in self.seen:
            same = (operand.x == before) | (operand.x.isnan() & before.isnan())
            if not same.all():
                raise SynchronisationFault("an operand is overwritten while a product reads it")
        if isinstance(self.a, Tensor) and not any(x is self.a for x in kept):
            raise SynchronisationFault("registers of an operand are not kept until the wait")
        a = self.a if isinstance(self.a, Tensor) else self.a.x
        acc = self.acc.value if isinstance(self.acc, Product) else self.acc
        product = a.float() @ self.b.x.float()
        self.value = product + acc if self.use_acc else product


class Partition:
    """Warps that run one function; a thread here."""

    def __init__(self, name: str) -> None:
        self.name, self.turn = name, threading.Semaphore(0)
        self.finished = False
        self.ready: Callable[[], bool] | None = None
        self.products: list[Product] = []


class Block:
    """One program: its partitions, its shared memory, and what is in flight."""

    current: Block

    def __init__(self, program: int, programs: int, seed: int) -> None:
        self.program, self.programs = program, programs
        self.rng = random.Random(seed * 7919 + program)
        self.partitions: list[Partition] = []
        self.running: Partition | None = None
        self.copies: list[Callable[[], None]] = []
        self.landing: set[int] = set()
        self.written: set[int] = set()
        self.unfenced: dict[int, Partition | None] = {}
        self.descriptors: dict[tuple[int, ...], Descriptor] = {}
        self.fault: BaseException | None = None
        self.haste = self.rng.choice((0.02, 0.3, 0.9))  # how soon copies land
        self.weights: list[float] = []

    def land(self) -> None:
        self.copies.pop(self.rng.randrange(len(self.copies)))()

    def choose(self) -> Partition | None:
        """Who goes on; None when all have finished."""
        while True:
            live = [p for p in self.partitions if not p.finished]
            able = [p for p in live if p.ready is None or p.ready()]
            if able:
                weights = [self.weights[self.partitions.index(p)] for p in able]
                return self.rng.choices(able, weights)[0]
            if not live:
                return None
            if not self.copies:
                raise SynchronisationFault("every partition waits: a deadlock")
            self.land()

    def pause(self, ready: Callable[[], bool] | None = None) -> None:
        """A point where others may run, or must until `ready`."""
        me = self.running
        if me is None:
            return
        while self.copies and self.rng.random() < self.haste:
            self.land()
        me.ready = ready
        after = self.choose()
        if after is not me and after is not None:
            self.running = after
            after.turn.release()
            me.turn.acquire()
            if self.fault:
                raise _Stopped
        me.ready = None

    def run(self, work: Sequence[tuple[Callable[..., Any], Sequence[Any]]]) -> None:
        self.partitions = [Partition(f"{f.__name__} {i}") for i, (f, _) in enumerate(work)]
        self.weights = [self.rng.choice((0.02, 1.0, 1.0)) for _ in work]
        done = threading.Semaphore(0)

        @torch.no_grad()  # which a thread does not inherit
        def body(me: Partition, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
            me.turn.acquire()
            try:
                if self.fault is None:
                    function(*arguments)
                    if me.products:
                        raise SynchronisationFault("a product was never waited for")
                me.finished = True
                after = self.choose() if self.fault is None else None
                if after is not None:
                    self.running = after
                    after.turn.release()
            except _Stopped:
                pass
            except BaseException as error:
                error.add_note(f"in {me.name} of program {self.program}")
                self.fault = self.fault or error
            me.finished = True
            if self.fault is not None:
                for other in self.partitions:
                    other.turn.release()
            done.release()

        threads = [
            threading.Thread(target=body, args=(p, f, a), daemon=True)
            for p, (f, a) in zip(self.partitions, work, strict=True)
        ]
        for thread in threads:
            thread.start()
        self.running = self.rng.choice(self.partitions)
        self.running.turn.release()
        for _ in threads:
            done.acquire()
        self.running = None
        if self.fault is not None:
            raise self.fault
        if self.copies:
            raise SynchronisationFault("a copy is in flight when the program ends")


def _language() -> SimpleNamespace:
    """triton.experimental.gluon.language, as far as it is used."""

    def load(
        pointer: Pointer,
        mask: Tensor | None = None,
        other: float | None = None,
        volatile: bool = False,
    ) -> Tensor:
        at, mask = pointer.places(mask)
        flat = pointer.memory.flat
        if other is None:
            other = float("nan") if flat.is_floating_point() else 0
        safe = torch.where(mask, at, 0)
        return torch.where(mask, flat[safe], torch.as_tensor(other, dtype=flat.dtype))

    def store(pointer: Pointer, x: Tensor, mask: Tensor | None = None) -> None:
        at, mask = pointer.places(mask)
        memory, touched = pointer.memory, at[mask]
        writers = memory.writer[touched]
        if ((writers != -1) & (writers != Block.current.program)).any():
            raise SynchronisationFault("two programs write the same element")
        memory.writer[touched] = Block.current.program
        memory.flat[touched] = x.to(memory.flat.dtype)[mask]

    def maximum(a: Any, b: Any) -> Any:
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))

    def where(condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, Tensor):
            return torch.where(condition, a, b)
        return a if condition else b

    def allocate(dtype: Any, shape: Sequence[int], layout: Any) -> Shared | Barrier:
        if layout == "barrier":
            return Barrier(shape[0])
        return Shared(torch.full(tuple(shape), float("nan"), dtype=dtype))

    def warp_specialize(work: Any, warps: Any, registers: Any) -> None:
        Block.current.run([(function.body, arguments) for function, arguments in work])

    def layout(*_: Any, **__: Any) -> None:
        return None

    return SimpleNamespace(
        constexpr=lambda value: value,
        float32=torch.float32,
        int64=torch.int64,
        BlockedLayout=layout,
        SliceLayout=layout,
        DotOperandLayout=layout,
        NVMMADistributedLayout=layout,
        NVMMASharedLayout=SimpleNamespace(get_default_for=layout),
        program_id=lambda axis: Block.current.program,
        num_programs=lambda axis: Block.current.programs,
        arange=lambda a, b, layout: torch.arange(a, b),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        # another tensor object: whose registers are kept is a question of its own
        convert_layout=lambda x, layout, assert_trivial=False: x.view_as(x),
        cdiv=lambda a, b: (a + b - 1) // b,
        exp2=torch.exp2,
        log=torch.log,
        max=lambda x, axis: x.amax(axis),
        sum=lambda x, axis: x.sum(axis),
        maximum=maximum,
        where=where,
        load=load,
        store=store,
        static_range=range,
        allocate_shared_memory=allocate,
        warp_specialize=warp_specialize,
    )


def _hopper() -> SimpleNamespace:
    """triton.experimental.gluon.language.nvidia.hopper, as far as it is used."""

    def init(barrier: Barrier, count: int) -> None:
        barrier.count = barrier.pending = count

    def expect(barrier: Barrier, count: int) -> None:
        barrier.bytes += int(count)
        barrier.pending -= 1
        barrier.settle()
        Block.current.pause()

    def arrive(barrier: Barrier, count: int) -> None:
        barrier.pending -= count
        barrier.settle()
        Block.current.pause()

    def wait(barrier: Barrier, parity: Any) -> None:
        wanted = int(parity) & 1
        Block.current.pause()
        Block.current.pause(lambda: barrier.phase != wanted)
        barrier.unseen = False

    def make_descriptor(
        pointer: Pointer, shape: Any, strides: Any, box: Any, layout: Any
    ) -> Descriptor:
        # every place in the source, and every place that it is called from, has a map of its own
        site, frame = [], sys._getframe(1)
        while frame is not None and frame.f_code.co_filename == sys._getframe(1).f_code.co_filename:
            site.append(frame.f_lineno)
            frame = frame.f_back  # type: ignore[assignment]
        block = Block.current
        before = block.descriptors.get(tuple(site))
        if before is not None and before.in_flight:
            raise SynchronisationFault("a descriptor changes while a copy uses it")
        made = Descriptor(pointer, int(shape[0]), int(shape[1]), int(strides[0]), box)
        block.descriptors[tuple(site)] = made
        return made

    def copy(descriptor: Descriptor, at: Any, barrier: Barrier, place: Shared) -> None:
        block = Block.current
        row, column = (int(i) for i in at)
        place.x.fill_(float("nan"))
        block.landing.add(place.key)
        descriptor.in_flight += 1

        def land() -> None:
            place.x.copy_(descriptor.read(row, column))
            descriptor.in_flight -= 1
            block.landing.discard(place.key)
            block.written.add(place.key)
            barrier.bytes -= place.x.numel() * place.x.element_size()
            barrier.settle()

        block.copies.append(land)
        block.pause()

    def fence() -> None:
        block = Block.current
        block.unfenced = {k: p for k, p in block.unfenced.items() if p is not block.running}

    def mma(a: Any, b: Shared, acc: Any, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async, "a synchronous product would overlap with nothing"
        product = Product(a, b, acc, use_acc)
        running = Block.current.running
        assert running is not None
        running.products.append(product)
        Block.current.pause()
        return product

    def mma_wait(left: int, deps: Sequence[Any]) -> Any:
        running = Block.current.running
        assert running is not None
        while len(running.products) > left:
            running.products.pop(0).finish(deps)
        values = []
        for one in deps:
            value = one.value if isinstance(one, Product) else one
            if value is None:
                raise SynchronisationFault("a product is used before its wait")
            values.append(value)
        Block.current.pause()
        return values[0] if len(values) == 1 else tuple(values)

    return SimpleNamespace(
        mbarrier=SimpleNamespace(
            MBarrierLayout=lambda: "barrier", init=init, expect=expect, arrive=arrive, wait=wait
        ),
        tma=SimpleNamespace(
            make_tensor_descriptor=make_descriptor, async_copy_global_to_shared=copy
        ),
        fence_async_shared=fence,
        warpgroup_mma=mma,
        warpgroup_mma_wait=mma_wait,
    )


class Kernel:
    """What gluon.jit makes of a function: called by others, or launched on a grid."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body, self.seed = body, 0

    def __call__(self, *arguments: Any) -> Any:
        return self.body(*arguments)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, maxnreg: int, **named: Any) -> None:
            given = [
                Pointer(Memory(x), x.storage_offset()) if isinstance(x, Tensor) else x
                for x in arguments
            ]
            for program in range(grid[0]):
                Block.current = Block(program, grid[0], self.seed)
                self.body(*given, **named)

        return launch


def _jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return Kernel if function is None else Kernel(function)


def load(
    change: Callable[[ast.Module], ast.Module] | None = None, *, kernels: str = KERNELS
) -> dict[str, Any]:
    """The names of a kernel file, executed with the simulated language in the place of Triton's.
    change: edits its syntax tree before.
    """
    found = importlib.util.find_spec(kernels)
    assert found is not None and found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    tree = change(tree) if change else tree
    language = _language()
    modules = {
        "triton.experimental": SimpleNamespace(gluon=SimpleNamespace(jit=_jit, language=language)),
        "triton.experimental.gluon": SimpleNamespace(jit=_jit, language=language),
        "triton.experimental.gluon.language.nvidia.hopper": _hopper(),
    }
    if kernels != KERNELS:  # which imports from the forward's file
        modules[KERNELS.rpartition(".")[2]] = SimpleNamespace(**load())

    def bring(name: str, *rest: Any) -> Any:
        return modules[name] if name in modules else builtins.__import__(name, *rest)

    scope = ModuleType(kernels).__dict__
    scope |= {
        "__package__": kernels.rpartition(".")[0],
        "__builtins__": {**vars(builtins), "__import__": bring},
    }
    exec(compile(ast.fix_missing_locations(tree), found.origin, "exec"), scope)
    return scope


@contextlib.contextmanager
def simulated(
    seed: int = 0,
    *,
    change: Callable[[ast.Module], ast.Module] | None = None,
    backward: bool = False,
) -> Iterator[Kernel]:
    """Within the block kernels/attention_hopper.py, or attention_hopper_backward.py, launches here
    instead of on a GPU, on CPU tensors. seed: of the schedule; change: see load().
    """
    from mudit_engine.kernels import attention_hopper, attention_hopper_backward

    launcher: Any = attention_hopper_backward if backward else attention_hopper
    names = load(change, kernels=BACKWARD if backward else KERNELS)
    kernel: Kernel = names[f"attention_hopper_{'dkv_' if backward else ''}kernel"]
    kernel.seed = seed
    before, launcher.simulated_kernel = launcher.simulated_kernel, kernel
    try:
        yield kernel
    finally:
        launcher.simulated_kernel = before
