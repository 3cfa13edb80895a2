"""Bytes of training state on one rank under DeepSpeed ZeRO, by kind, and what the ranks send each
other in a step. Closed forms.

    P parameters, W ranks, w bytes of a weight (2 or 4)
    g bytes of a gradient that is added up, r of one that is sent (2 or 4, by the recipe)
    b elements of a bucket (two of them when communication overlaps)

    stage  weights  gradients  master  moments  average  sent in a step of A micro-batches
    0      4 P      4 P        -       8 P (M)  4 P      all-reduce 4 P
    1      w P      g P        4 P/W   8 P/W    4 P/W    all-reduce r P, all-gather w P
    2      w P      g P/W (*)  4 P/W   8 P/W    4 P/W    A times all-reduce r P, all-gather w P
    3      w P/W    g P/W      4 P/W   8 P/W    4 P/W    A times (all-gather w P, and again what may
                                                         not live, reduce-scatter r P)

What is sent is counted in passes over the bytes.

    buckets = bucket_sizes(parameters.count)
    sharding = Sharding(stage=2, world=64, precision="bf16", buckets=buckets)
    state = state_bytes(parameters, sharding)

(M) 4 bytes less for each element that Muon trains, which only stage 0 takes.
(*) where gradients are added up in the weights' own type, whole tensors: those that reach into the
rank's part; twice while further micro-batches are added up. The closed forms follow DeepSpeed
0.19.8 (its padding included) and are held to its real engine by training/planning/rehearse.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mudit_engine.config import DitConfig
from mudit_engine.training.parallel.deepspeed_config import bucket_sizes
from mudit_engine.training.recipe import OptimizerConfig, ParallelConfig, Recipe
from mudit_engine.training.recipe_stages import LoraConfig

if TYPE_CHECKING:
    from torch import nn

KINDS = ("weights", "gradients", "master", "moments", "average", "buckets", "gathered")
STAGE0_BUCKET = 500_000_000  # elements that DeepSpeed flattens at once for stage 0's all-reduce


@dataclass(frozen=True)
class Parameters:
    """Sizes of the trained tensors, by the optimiser's groups (weight decay, none), how many
    elements are Muon's, which keeps one moment of each instead of two, how many modules hold them,
    and how many elements nothing trains (those below a LoRA).
    """

    groups: tuple[tuple[int, ...], ...]
    muon: int = 0
    modules: int = 0
    frozen: int = 0

    @property
    def count(self) -> int:
        return sum(sum(group) for group in self.groups)


def parameters_of(
    config: DitConfig, optimizer: OptimizerConfig | None = None, *, lora: LoraConfig | None = None
) -> Parameters:
    """Those of the song transformer, from the network itself without memory, or those of a LoRA on
    it. `optimizer` None is AdamW. Raises MissingError for a LoRA without peft.
    """
    import torch

    from mudit_engine.models.dit import DiT
    from mudit_engine.models.folder import NoInitialisers
    from mudit_engine.models.lora import add_lora

    with torch.device("meta"), NoInitialisers():
        dit = DiT(config)
        if lora is not None:
            add_lora(dit, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, parts=lora.parts)
    return parameters_in(dit, optimizer or OptimizerConfig())


def parameters_in(module: nn.Module, optimizer: OptimizerConfig) -> Parameters:
    """Those of a module, in the groups that `optimizer` makes. No optimiser is made: the first one
    of a process imports torch's compiler, which takes longer than the rest of a plan.
    """
    from mudit_engine.training.parallel.strategy import parameter_groups

    matrices, groups = parameter_groups(module, optimizer)
    lists = [*([matrices] if matrices else []), *(group["params"] for group in groups)]
    sizes = tuple(tuple(p.numel() for p in group) for group in lists)
    parameters = Parameters(
        sizes, sum(p.numel() for p in matrices), sum(1 for _ in module.modules())
    )
    whole = sum(p.numel() for p in module.parameters())
    return replace(parameters, frozen=whole - parameters.count)


@dataclass(frozen=True)
class Sharding:
    """How the state of a model is spread. `world` counts all ranks; sequence-parallel ranks are
    data ranks to ZeRO.
    """

    stage: int
    world: int
    precision: str = "bf16"
    average: bool = True
    overlap: bool = True
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    @classmethod
    def of(cls, recipe: Recipe, world: int, *, device: str = "cuda") -> Sharding:
        """What a recipe's DeepSpeed configuration comes to on `world` ranks."""
        parallel = recipe.parallel
        overlap = (
            device != "cpu" and parallel.zero_stage > 0
            if parallel.overlap_comm is None
            else parallel.overlap_comm
        )
        return cls(
            parallel.zero_stage, world, recipe.precision, recipe.ema.enabled, overlap, parallel
        )

    @property
    def weight_bytes(self) -> int:
        return 2 if self.precision == "bf16" else 4

    @property
    def added_bytes(self) -> int:
        """Of a gradient that micro-batches are added up in."""
        half = self.precision == "bf16" and self.parallel.accumulate_dtype == "bf16"
        return 2 if half else 4

    @property
    def sent_bytes(self) -> int:
        """Of a gradient on its way between ranks."""
        half = self.precision == "bf16" and self.parallel.reduce_dtype == "bf16"
        return 2 if half else 4

    def reduce_bucket(self, parameters: int) -> int:
        return self.parallel.reduce_bucket or bucket_sizes(parameters)["reduce"]

    def persistence(self, parameters: int) -> int:
        threshold = self.parallel.persistence_threshold
        return bucket_sizes(parameters)["persistence"] if threshold is None else threshold


def _share(sizes: Sequence[int], world: int) -> int:
    """Elements of a rank's part of a group that stages 1 and 2 flatten: aligned to two elements a
    rank.
    """
    return math.ceil(sum(sizes) / (2 * world)) * 2


def _touched(sizes: Sequence[int], share: int, world: int) -> list[int]:
    """Elements of the whole tensors that reach into each rank's part of a group."""
    totals = [0] * world
    start = 0
    for size in sizes:
        for rank in range(start // share, min(world - 1, (start + size - 1) // share) + 1):
            totals[rank] += size
        start += size
    return totals


def state_bytes(
    parameters: Parameters, sharding: Sharding, *, rank: int | None = None, micro_batches: int = 1
) -> dict[str, int]:
    """Bytes by kind (KINDS) on a rank (None: the fullest), with gradients in place: what stays
    while activations come and go.

    Ranks differ in stage 2's gradients alone. `gathered` is what stage 3 holds whole for a time;
    `buckets` live in the backward pass.
    """
    world, w, count = sharding.world, sharding.weight_bytes, parameters.count
    if sharding.stage == 0:
        state = {
            "weights": 4 * (count + parameters.frozen),
            "gradients": 4 * count,
            "master": 0,
            "moments": 8 * count - 4 * parameters.muon,
            "average": 4 * count,
        }
        return state | {"average": 4 * count * sharding.average, "buckets": 0, "gathered": 0}
    # stage 1 puts what it has added up into its buckets, stage 2 what a backward pass left
    element = sharding.added_bytes if sharding.stage == 1 else w
    bucket = sharding.reduce_bucket(count) * element * (2 if sharding.overlap else 1)
    if sharding.stage < 3:
        shares = [_share(group, world) for group in parameters.groups]
        part, whole = sum(shares), sum(shares) * world
        gradients = sharding.added_bytes * count
        if sharding.stage == 2 and sharding.added_bytes != w:
            gradients = sharding.added_bytes * part  # added up apart, in the rank's part alone
        elif sharding.stage == 2:
            groups = zip(parameters.groups, shares, strict=True)
            touched = [
                sum(ranks)
                for ranks in zip(
                    *(_touched(group, share, world) for group, share in groups), strict=True
                )
            ]
            gradients = (
                sharding.added_bytes
                * (max(touched) if rank is None else touched[rank])
                * (2 if micro_batches > 1 else 1)
            )
        weights = w * (whole + parameters.frozen)
        return _kinds(weights, gradients, part, bucket, 0, average=sharding.average)
    persistence = sharding.persistence(count)
    part = sum(math.ceil(size / world) for group in parameters.groups for size in group)
    kept = sum(size for group in parameters.groups for size in group if size <= persistence)
    live = min(count - kept, sharding.parallel.max_live_parameters)
    # one flat buffer, which is not doubled
    bucket = sharding.reduce_bucket(count) * w
    gradients = sharding.added_bytes * part
    held = part + kept + math.ceil(parameters.frozen / world)
    return _kinds(w * held, gradients, part, bucket, w * live, average=sharding.average)


def _kinds(
    weights: int, gradients: int, part: int, buckets: int, gathered: int, *, average: bool
) -> dict[str, int]:
    state = {
        "weights": weights,
        "gradients": gradients,
        "master": 4 * part,
        "moments": 8 * part,
        "average": 4 * part * average,
    }
    return state | {"buckets": buckets, "gathered": gathered}


def step_bytes(parameters: Parameters, sharding: Sharding) -> int:
    """What the optimiser's step adds, when no activation lives: fp32 gradients of the rank's part,
    or stage 0's flattened gradients.
    """
    if sharding.stage == 0:
        return 4 * min(parameters.count, STAGE0_BUCKET)
    return 4 * math.ceil(parameters.count / sharding.world)


@dataclass(frozen=True)
class Message:
    """One kind of collective of a step: `calls` calls that move `size` bytes in all, `passes` times
    around the ring.
    """

    kind: str
    what: str
    size: float
    calls: float
    passes: int
    hidden: bool  # behind computation, as far as there is any


def messages(parameters: Parameters, sharding: Sharding, *, micro_batches: int) -> list[Message]:
    """The collectives of one optimiser step. Scalars (norms, flags) are left out."""
    count, w, stage = parameters.count, sharding.weight_bytes, sharding.stage
    if sharding.world == 1:
        return []
    if stage == 0:
        return [
            Message(
                "all-reduce", "gradients", 4.0 * count, math.ceil(count / STAGE0_BUCKET), 2, False
            )
        ]
    calls = math.ceil(count / sharding.reduce_bucket(count))
    rounds = 1 if stage == 1 else micro_batches
    if stage < 3:
        return [
            Message(
                "all-reduce",
                "gradients",
                float(sharding.sent_bytes * count * rounds),
                calls * rounds,
                2,
                sharding.overlap,
            ),
            Message("all-gather", "weights", float(w * count), len(parameters.groups), 1, False),
        ]
    persistence = sharding.persistence(count)
    parted = sum(size for group in parameters.groups for size in group if size > persistence)
    # of the gathered weights as many as may be live outlive the forward pass; the backward pass
    # gathers the others again
    times = 2 - min(1.0, sharding.parallel.max_live_parameters / max(parted, 1))
    tensors = sum(size > persistence for group in parameters.groups for size in group)
    return [
        Message(
            "all-gather",
            "weights",
            float(w * parted * times * rounds),
            float(tensors * times * rounds),
            1,
            sharding.overlap,
        ),
        Message(
            "reduce-scatter",
            "gradients",
            float(sharding.sent_bytes * count * rounds),
            float(calls * rounds),
            1,
            sharding.overlap,
        ),
    ]
