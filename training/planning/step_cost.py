"""What one micro-batch costs the song transformer: bytes kept for the backward pass, peak bytes,
FLOPs, traffic. Found by running it.

The network and its loss run forward and backward on *fake* tensors (shapes without storage), on the
Triton path that a GPU takes, so no formula can drift from the code; `fake=False` runs the same on
real tensors and measures. Everything grows linearly with the rows of a micro-batch and the number
of blocks (attention's FLOPs aside, which are counted in closed form), so two small runs give every
size:

    cost(blocks, rows, lyrics) = a0 + a1 rows + a2 lyrics + blocks (b0 + b1 rows + b2 lyrics)
    attention, forward = 4 D sum over songs of (n^2 + n l) a block + 4 E sum of l^2 a lyric block
    attention, backward = 2.5 times that

The runs differ in their blocks. What of a size goes with the rows and what with the lyrics is read
off the size itself: a song of such a run has a prime number of rows, one of frames and one of lyric
tokens, which no width of the network has as a factor (`Primes`).

    run_once(config, Pack.of([2800], [900]), precision="bf16", checkpointing="full").peak_bytes
    costs = fit(config, precision="bf16", checkpointing="full")
    costs.at(Pack.of([2800, 1500], [900, 500])).peak_bytes

Bytes are of tensor storages other than the weights and their gradients; what a kernel's launcher
takes for itself is not seen (attention's backward: one more copy of the queries). Autocast is the
CPU's, whose list of fp32 operations differs from the GPU's in the lyric encoder's two LayerNorms
alone.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mudit_engine import ops
from mudit_engine.config import DitConfig, ModelConfig
from mudit_engine.diffusion.paths import make_path
from mudit_engine.errors import InputError
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.models.folder import NoInitialisers
from mudit_engine.models.outline import TOKENS, OutlineRows, outline_width
from mudit_engine.training.recipe_stages import DitStage
from mudit_engine.training.tasks.dit import DitInputs, DitLoss

Checkpointing = Literal["none", "selective", "full"]
Precision = Literal["fp32", "bf16"]
LINEAR = (
    "saved_bytes",
    "kept_bytes",
    "peak_bytes",
    "gemm_flops",
    "forward_gemm_flops",
    "gemm_bytes",
    "moved_bytes",
    "launches",
    "recomputed_attention",
)
ARCH = "sm_80"  # tile sizes do not change what is kept
FRAGMENTS = 8
PRIMES = ((1039, 499), (1117, 457), (1021, 397))  # rows and lyric tokens of a song
Parts = tuple[float, float, float]  # constant, a row, a lyric token


@dataclass(frozen=True)
class Pack:
    """A micro-batch: target frames, lyric tokens and description fragments of each song."""

    frames: tuple[int, ...]
    lyrics: tuple[int, ...]
    fragments: tuple[int, ...]

    @classmethod
    def of(cls, frames: Sequence[int], lyrics: Sequence[int], fragments: int = 8) -> Pack:
        return cls(tuple(frames), tuple(lyrics), (fragments,) * len(frames))

    @property
    def rows(self) -> int:
        """Rows that self-attend: frames and description tokens."""
        return sum(self.frames) + sum(self.fragments)

    @property
    def tokens(self) -> int:
        return sum(self.lyrics)

    def attention_flops(self, config: DitConfig) -> tuple[float, float]:
        """Of one forward pass: through all blocks, and through the lyric encoder."""
        lengths = np.array(
            [n + f for n, f in zip(self.frames, self.fragments, strict=True)], np.float64
        )
        lyrics = np.array(self.lyrics, np.float64)
        blocks = 4.0 * config.blocks * config.width * float((lengths**2 + lengths * lyrics).sum())
        return blocks, 4.0 * config.lyric_blocks * config.lyric_width * float((lyrics**2).sum())


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass, recomputation included.

    saved_bytes: for the backward pass, as saved_tensors_hooks see it (not the products that
    selective checkpointing keeps). kept_bytes: all that lives when the forward pass ends.
    peak_bytes: the most that lives at once. gemm_flops and gemm_bytes: matrix products and what
    they read and write; forward_gemm_flops: those of the first forward pass; moved_bytes: what
    every other operation reads and writes; launches: operations that do work; recomputed_attention:
    calls of attention's forward after the first.
    """

    saved_bytes: float
    kept_bytes: float
    peak_bytes: float
    gemm_flops: float
    forward_gemm_flops: float
    gemm_bytes: float
    moved_bytes: float
    launches: float
    recomputed_attention: float


@dataclass(frozen=True)
class Primes:
    """Sizes of two equal songs, such that a product of dimensions says what it is made of: rows,
    frames = rows - FRAGMENTS, lyrics and (rows + lyrics) / 2 of a song are different primes.

    >>> Primes(1039, 499).parts(1539 * 16)          # a buffer of both songs' rows and lyrics
    (0.0, 8.0, 8.0)
    """

    rows: int
    lyrics: int

    @property
    def pack(self) -> Pack:
        return Pack.of([self.rows - FRAGMENTS] * 2, [self.lyrics] * 2, FRAGMENTS)

    def parts(self, size: int) -> tuple[float, float, float]:
        """(constant, a row, a lyric token) of a size that goes with one of the primes, or none:
        constant + rows a_row + tokens a_token is the size, for the rows and tokens of both songs.
        """
        for base, constant, row, token in (
            (self.rows, 0.0, 0.5, 0.0),
            (self.rows - FRAGMENTS, -float(FRAGMENTS), 0.5, 0.0),
            (self.lyrics, 0.0, 0.0, 0.5),
            ((self.rows + self.lyrics) // 2, 0.0, 0.25, 0.25),
        ):
            if size and size % base == 0:
                count = size // base
                return count * constant, count * row, count * token
        return float(size), 0.0, 0.0

    @classmethod
    def of(cls, config: DitConfig) -> Primes:
        """A pair that shares no factor with a size of the network."""
        sizes = [v for v in config.model_dump().values() if isinstance(v, int) and v]
        for rows, lyrics in PRIMES:
            bases = (rows, rows - FRAGMENTS, lyrics, (rows + lyrics) // 2)
            if not any(size % base == 0 for size in sizes for base in bases):
                return cls(rows, lyrics)
        raise InputError(
            f"every pair of {PRIMES} shares a factor with a size of the network: plan a vocabulary "
            f"or a width that is no multiple of them"
        )


class Ledger(TorchDispatchMode):
    """Adds up living storages, FLOPs and traffic of what is dispatched."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: nothing here is compiled, and its guard against that costs more than
        most of what is dispatched.
        """
        return False

    def __init__(
        self, parts: Callable[[int], Parts] = lambda size: (float(size), 0.0, 0.0)
    ) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry

        self._flops = flop_registry
        self.parts = cache(lambda size: np.array(parts(size)))
        self.living: dict[int, int] = {}
        self.live = self.peak = 0
        self.kept, self.peak_parts = np.zeros(3), np.zeros(3)
        self.gemm_flops, self.gemm_bytes, self.moved_bytes = np.zeros(3), np.zeros(3), np.zeros(3)
        self.launches = self.attention = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most of what is dispatched, and no work
            return torch.device("cpu")
        # of host indices; its size is data, which a fake tensor has not
        counting = func is torch.ops.aten.bincount.default
        out = (
            args[0].new_empty(kwargs.get("minlength") or args[2])
            if counting
            else func(*args, **kwargs)
        )
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor in results:
            self.note(tensor)
        # views and host scalars move nothing; detach is an alias of its input as well
        if func.is_view or func is torch.ops.aten.detach.default:
            return out
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        moved = sum(self.parts(_bytes(t)) for t in (*given, *results))
        packet = func._overloadpacket
        self.launches += 1
        if packet in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.gemm_flops += self.parts(self._flops[packet](*args, **kwargs, out_val=out))
            self.gemm_bytes += moved
        elif "attention" in packet.__name__:
            # its FLOPs are counted in closed form; its traffic is small beside them
            self.attention += "backward" not in packet.__name__ and not packet.__name__.endswith(
                "bwd"
            )
        else:
            self.moved_bytes += moved
        return out

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.living:
            size = self.living[key] = storage.nbytes()
            self.live += size
            self.kept += self.parts(size)
            if self.live > self.peak:
                self.peak, self.peak_parts = self.live, self.kept.copy()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        size = self.living.pop(key, 0)
        self.live -= size
        self.kept -= self.parts(size)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def make_inputs(config: DitConfig, pack: Pack) -> DitInputs:
    """A micro-batch of the pack's sizes, random values."""
    songs, frames, fragments, lyrics = (
        len(pack.frames),
        sum(pack.frames),
        sum(pack.fragments),
        sum(pack.lyrics),
    )
    outline = None
    if config.outline:
        outline = OutlineRows(
            torch.randn(frames, outline_width(config)),
            torch.zeros(frames, TOKENS, dtype=torch.int64),
            torch.rand(frames, TOKENS),
            torch.rand(lyrics),
        )
    clean = DitBatch(
        latents_TC=torch.randn(frames, config.latent_channels),
        frames=list(pack.frames),
        times_B=torch.zeros(songs),
        seconds_B=torch.full((songs,), 100.0),
        user_B=torch.zeros(songs, dtype=torch.int64),
        descriptions=torch.randn(fragments, config.description_width),
        fragments=list(pack.fragments),
        lyric_ids=torch.zeros(lyrics, dtype=torch.int64),
        lyrics=list(pack.lyrics),
        references=torch.zeros(0, config.latent_channels),
        reference_frames=[0] * songs,
        reference_kinds=[0] * songs,
        outline=outline,
    )
    return DitInputs(
        clean, torch.randn(frames, config.latent_channels), torch.full((songs,), 0.5), songs
    )


@contextlib.contextmanager
def _world(*, backend: str, fake: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if backend == "triton":
            from triton import knobs

            from mudit_engine.profiling.aot import compile_for

            if not knobs.runtime.interpret:  # which names an architecture of its own
                stack.enter_context(compile_for(ARCH))
        if fake:
            from torch._subclasses.fake_tensor import FakeTensorMode

            stack.enter_context(FakeTensorMode())
        stack.enter_context(ops.use(backend))
        yield


def run_once(
    config: ModelConfig,
    pack: Pack,
    *,
    precision: Precision = "bf16",
    checkpointing: Checkpointing = "none",
    backend: str = "triton",
    fake: bool = True,
) -> Cost:
    """Runs the network and its loss forward and backward on a pack. Real tensors (fake=False) need
    a backend that runs here.
    """
    with _world(backend=backend, fake=fake):
        module = _network(config, precision=precision, checkpointing=checkpointing, fake=fake)
        found = _measure(module, make_inputs(config.dit, pack), Ledger(), precision=precision)
    return Cost(**{name: float(parts[0]) for name, parts in found.items()})


def _network(
    config: ModelConfig, *, precision: Precision, checkpointing: Checkpointing, fake: bool
) -> DitLoss:
    """The network and its loss, in the weights' type. Fake ones are not filled: drawing values that
    no one sees takes longer than the rest.
    """
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if precision == "bf16" else torch.float32)
    try:
        with NoInitialisers() if fake else contextlib.nullcontext():
            dit = DiT(config.dit)
    finally:
        torch.set_default_dtype(kept)
    module = DitLoss(dit, make_path(config.path), DitStage(checkpointing=checkpointing))
    for p in module.parameters():
        # gradients belong to the engine's part of the memory: here each is dropped as soon as
        # it is whole
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    return module


def _measure(
    module: DitLoss, inputs: DitInputs, ledger: Ledger, *, precision: Precision
) -> dict[str, np.ndarray]:
    """Of one forward and backward pass, each figure in the parts that the ledger tells apart."""
    weights = {p.untyped_storage()._cdata for p in module.parameters()}
    weights |= {t.untyped_storage()._cdata for t in tree_leaves(_tensors(inputs))}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    autocast = torch.autocast(
        "cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
    with ledger:
        ledger.living.update(dict.fromkeys(weights, 0))
        with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = module(inputs)
        forward, passes = ledger.gemm_flops.copy(), ledger.attention
        kept = ledger.kept.copy()
        loss.backward()
    return {
        "saved_bytes": sum(map(ledger.parts, saved.values()), np.zeros(3)),
        "kept_bytes": kept,
        "peak_bytes": ledger.peak_parts,
        "gemm_flops": ledger.gemm_flops,
        "gemm_bytes": ledger.gemm_bytes,
        "moved_bytes": ledger.moved_bytes,
        "launches": np.array([ledger.launches, 0.0, 0.0]),
        "forward_gemm_flops": forward,
        "recomputed_attention": np.array([ledger.attention - passes, 0.0, 0.0]),
    }


def _tensors(inputs: DitInputs) -> list[Tensor]:
    outline = inputs.clean.outline
    own = [t for t in inputs.clean.__dict__.values() if isinstance(t, Tensor)]
    return [
        *own,
        inputs.noise_TC,
        inputs.times_B,
        *(t for t in (outline.__dict__.values() if outline is not None else ())),
    ]


@dataclass(frozen=True)
class CostModel:
    """Costs of any micro-batch of a network, from small runs of it (see the module's formula)."""

    config: DitConfig
    checkpointing: Checkpointing
    precision: Precision
    outer: dict[str, tuple[float, float, float]]
    inner: dict[str, tuple[float, float, float]]

    def at(self, pack: Pack) -> Cost:
        x = (1.0, float(pack.rows), float(pack.tokens))
        blocks = self.config.blocks

        def value(name: str) -> float:
            pairs = zip(self.outer[name], self.inner[name], x, strict=True)
            return sum((outer + blocks * inner) * one for outer, inner, one in pairs)

        return Cost(**{name: value(name) for name in LINEAR})

    def attention_flops(self, pack: Pack) -> float:
        """Forward, backward and recomputed forward."""
        blocks, lyrics = pack.attention_flops(self.config)
        calls = self.config.blocks * (2 if self.config.cross_attention == "serial" else 1)
        return blocks * (3.5 + self.at(pack).recomputed_attention / calls) + lyrics * 3.5

    def per_row(self, name: str) -> float:
        """Slope with the rows of a micro-batch."""
        return self.outer[name][1] + self.config.blocks * self.inner[name][1]

    def largest_rows(self, budget: float, *, tokens_per_row: float) -> int:
        """Rows of the largest micro-batch whose peak stays within `budget` bytes; 0 when nothing
        fits.
        """
        blocks = self.config.blocks
        a, b, c = (
            o + blocks * i
            for o, i in zip(self.outer["peak_bytes"], self.inner["peak_bytes"], strict=True)
        )
        return max(0, int((budget - a) / (b + c * tokens_per_row)))


def fit(
    config: ModelConfig,
    *,
    precision: Precision = "bf16",
    checkpointing: Checkpointing = "none",
    backend: str = "triton",
) -> CostModel:
    """Two runs on fake tensors, of networks of 3 and 4 blocks."""
    depths = (3, 4)  # below three blocks the peak may lie elsewhere
    primes = Primes.of(config.dit)
    planes = []
    for blocks in depths:
        shallow = config.model_copy(
            update={"dit": config.dit.model_copy(update={"blocks": blocks})}
        )
        with _world(backend=backend, fake=True):
            module = _network(shallow, precision=precision, checkpointing=checkpointing, fake=True)
            inputs, ledger = make_inputs(shallow.dit, primes.pack), Ledger(primes.parts)
            planes.append(_measure(module, inputs, ledger, precision=precision))
    inner = {name: (planes[1][name] - planes[0][name]) / (depths[1] - depths[0]) for name in LINEAR}
    outer = {name: planes[0][name] - depths[0] * inner[name] for name in LINEAR}
    return CostModel(
        config.dit,
        checkpointing,
        precision,
        {name: tuple(float(v) for v in value) for name, value in outer.items()},  # type: ignore[misc]
        {name: tuple(float(v) for v in value) for name, value in inner.items()},  # type: ignore[misc]
    )
