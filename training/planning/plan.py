"""A training run on a cluster before it is rented: memory of a rank, token budget, what is sent, a
model of the step's time, GPU-hours.

    bytes of a rank = (state + activations) (1 + fragmentation) + context
    step = A micro-batch imbalance + exposed communication + optimiser + data + checkpoint
    micro-batch = max(host, products / peak + attention / peak + traffic / bandwidth) + hooks

state_bytes.py computes the state, step_cost.py the activations; each peak and bandwidth is taken
with the share of it that is assumed to be reached. A range goes with every time: the same model
under the figures of WORSE and BETTER machines (clusters.py). `hooks` is what ZeRO-3 adds: four
hooks a module and pass on the host, and the gathered weights' way through memory. `data` is what
reading songs takes beyond a step, `checkpoint` what a save takes of the step's thread.

    cluster = make_cluster("a100-80g", nodes=8, gpus_per_node=8)
    plan = make_plan(Request(preset="musit-380m", cluster=cluster), lengths)
    plan.best.step_seconds

Memory is computed from the network itself and the engine's rules, and held to them by measurement
(benchmarks/plan_memory.py). Time is a model: no GPU gave a number here (a CPU did:
benchmarks/plan_time.py). Alternatives (stage,
checkpointing, micro-batches of a step) share one global batch, so their GPU-hours compare; those
within 3 % are as good as equal to such a model, and the simplest of them (lowest stage, fewest
micro-batches) is put first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mudit_engine.config import ModelConfig
from mudit_engine.errors import InputError
from mudit_engine.training.dataset.batching import plan_packs
from mudit_engine.training.dataset.lengths import Lengths
from mudit_engine.training.parallel.deepspeed_config import bucket_sizes
from mudit_engine.training.planning.clusters import BETTER, GIB, WORSE, Cluster, within
from mudit_engine.training.planning.kept_costs import fit
from mudit_engine.training.planning.state_bytes import (
    Message,
    Parameters,
    Sharding,
    messages,
    parameters_of,
    state_bytes,
    step_bytes,
)
from mudit_engine.training.planning.step_cost import Checkpointing, CostModel, Pack
from mudit_engine.training.recipe import OptimizerConfig, ParallelConfig, Recipe
from mudit_engine.training.recipe_stages import LoraConfig, teacher_passes

MODES: tuple[Checkpointing, ...] = ("none", "selective", "full")
MOST_MICRO_BATCHES = 16
FRAGMENTS = 8
SAME = 0.03  # of the time, which the model cannot tell apart
GRANULE = 64  # a pack size is a multiple of it


@dataclass(frozen=True)
class Request:
    """What is to be trained on what."""

    preset: str
    config: ModelConfig
    cluster: Cluster
    precision: str = "bf16"
    songs: int = 1_500_000
    epochs: float = 10.0
    batch_songs: int = 512
    average: bool = True
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    stages: tuple[int, ...] = (1, 2, 3)
    modes: tuple[Checkpointing, ...] = MODES
    batch: tuple[int, int] | None = None  # pack size and packs of a step, of a recipe
    steps: int | None = None  # of a recipe; None: what the epochs take
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loader_threads: int = 4
    save_every: int = 500
    lora: LoraConfig | None = None  # activations and time are taken as those of whole weights
    asynchronous: bool = False  # whether a save is written beside the steps
    taught: int = 0  # forward passes of a teacher in each micro-batch


def of_recipe(request: Request, recipe: Recipe) -> Request:
    """The request with what a recipe says: precision, average, stage, checkpointing, batch, steps,
    loading and saving.
    """
    return dataclasses.replace(
        request,
        config=recipe.model_config_resolved(),
        average=recipe.ema.enabled,
        parallel=recipe.parallel,
        stages=(recipe.parallel.zero_stage,),
        modes=(recipe.dit.checkpointing,),
        batch=(recipe.data.pack_size, recipe.data.packs_per_step),
        steps=recipe.steps,
        optimizer=recipe.optimizer,
        lora=recipe.lora,
        loader_threads=recipe.data.loader_threads,
        save_every=recipe.checkpoint.every,
        asynchronous=recipe.checkpoint.asynchronous is not False,  # a plan is of GPUs
        taught=teacher_passes(recipe.distill) if recipe.task == "dit-distill" else 0,
    )


@dataclass(frozen=True)
class Packing:
    """How the lengths fill packs, from the sampler itself on the sample of songs."""

    pack_size: int
    efficiency: float
    frames: float  # of a mean pack
    tokens: float
    songs: float
    attention: float  # sum of n^2 + n l of a mean pack
    imbalance: float  # of the slowest rank's time over the mean rank's


@dataclass(frozen=True)
class Option:
    """One way to run the global batch. Times are of the model."""

    stage: int
    checkpointing: Checkpointing
    micro_batches: int
    pack_size: int
    packs_per_step: int
    efficiency: float
    memory: dict[str, int]  # bytes by kind, activations and reserve among them
    fits: bool
    seconds: dict[str, float]  # of a step by part
    gpu_hours: float
    frames_per_second: float
    flops_share: float  # model FLOPs of a step / (peak x GPUs x step time)
    messages: tuple[Message, ...]
    seconds_range: tuple[float, float] = (0.0, 0.0)  # of a step, on a better and a worse machine

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def overrides(self) -> list[str]:
        """What `mudit train --set` takes to run so."""
        return [
            "strategy=deepspeed",
            f"parallel.zero_stage={self.stage}",
            f"dit.checkpointing={self.checkpointing}",
            f"data.pack_size={self.pack_size}",
            f"data.packs_per_step={self.packs_per_step}",
        ]


@dataclass(frozen=True)
class Plan:
    """Every option, the best first; those that do not fit last."""

    request: Request
    lengths: Lengths
    parameters: Parameters
    costs: dict[str, CostModel]
    packings: dict[int, Packing]
    options: tuple[Option, ...]

    @property
    def best(self) -> Option:
        return self.options[0]

    @property
    def epochs(self) -> float:
        """Times that the songs are gone through."""
        request, best = self.request, self.best
        if request.steps is None:
            return request.epochs
        frames = self.packings[best.pack_size].frames * best.packs_per_step
        return request.steps * frames / (request.songs * float(self.lengths.frames.mean()))

    @property
    def frames_per_step(self) -> float:
        if self.request.batch is not None:
            return self.packings[self.request.batch[0]].frames * self.request.batch[1]
        return self.request.batch_songs * float(self.lengths.frames.mean())


def make_plan(
    request: Request,
    lengths: Lengths,
    *,
    on_step: Callable[[str], None] | None = None,
    find: Callable[..., CostModel] | None = None,
) -> Plan:
    """Ranks the options. `find` gives the costs of the network, by default on a GPU's path, as
    kept_costs.fit does. Raises InputError when the global batch is too small for the cluster, or
    no option holds the longest song.
    """
    say = on_step or (lambda text: None)
    world = request.cluster.world
    longest = int(lengths.frames.max())
    frames_per_step = request.batch_songs * float(lengths.frames.mean())
    if request.batch is not None:
        pack_size, packs = request.batch
        if pack_size < longest:
            raise InputError(
                f"a pack of {pack_size:,} frames does not hold the longest song's {longest:,}: "
                f"raise data.pack_size, or leave such songs out"
            )
        sizes = [(math.ceil(packs / world), pack_size)]
    else:
        sizes = list(_pack_sizes(frames_per_step, world, longest))
    if not sizes:
        enough = math.ceil(longest * world / float(lengths.frames.mean()))
        raise InputError(
            f"a global batch of {request.batch_songs} songs ({frames_per_step:,.0f} frames) leaves "
            f"{frames_per_step / world:,.0f} "
            f"frames to each of {world} ranks, fewer than the longest song's {longest:,}: raise "
            f"--batch-songs to {enough}, or take fewer"
        )
    parameters = parameters_of(request.config.dit, request.optimizer, lora=request.lora)
    costs: dict[str, CostModel] = {}
    for mode in request.modes:
        say(f"running the network on fake tensors, checkpointing {mode}")
        precision: Any = request.precision
        costs[mode] = (find or fit)(request.config, precision=precision, checkpointing=mode)
    packings = {}
    options = []
    for micro_batches, pack_size in sizes:
        say(f"packing songs into {pack_size:,} frames")
        packing = packings[pack_size] = _pack(
            lengths, pack_size, micro_batches, world, costs[request.modes[0]], request.cluster
        )
        for stage in request.stages:
            for mode in request.modes:
                options.append(
                    _option(
                        request,
                        lengths,
                        parameters,
                        costs[mode],
                        packing,
                        stage,
                        mode,
                        micro_batches,
                    )
                )
    return Plan(request, lengths, parameters, costs, packings, tuple(_ranked(options)))


def scaling(plan: Plan, nodes: Sequence[int]) -> list[tuple[int, Option]]:
    """The best option's stage and checkpointing on other numbers of nodes, the same global batch:
    (nodes, option) where it can be run.
    """
    found = []
    for count in nodes:
        cluster = dataclasses.replace(plan.request.cluster, nodes=count)
        request = dataclasses.replace(plan.request, cluster=cluster, batch=None)
        options = []
        for micro_batches, pack_size in _pack_sizes(
            plan.frames_per_step, cluster.world, int(plan.lengths.frames.max())
        ):
            cost = plan.costs[plan.best.checkpointing]
            packing = _pack(plan.lengths, pack_size, micro_batches, cluster.world, cost, cluster)
            mode = plan.best.checkpointing
            options.append(
                _option(
                    request,
                    plan.lengths,
                    plan.parameters,
                    cost,
                    packing,
                    plan.best.stage,
                    mode,
                    micro_batches,
                )
            )
        fitting = [option for option in options if option.fits]
        if fitting:
            found.append((count, _ranked(fitting)[0]))
    return found


def _ranked(options: Sequence[Option]) -> list[Option]:
    fastest = min(option.gpu_hours for option in options)

    def key(option: Option) -> tuple[float, ...]:
        if not option.fits:
            return (1, option.peak_bytes)
        band = int(math.log(option.gpu_hours / fastest) / math.log(1 + SAME))
        return (0, band, option.stage, option.micro_batches, option.gpu_hours)

    return sorted(options, key=key)


def _pack_sizes(frames_per_step: float, world: int, longest: int) -> Iterator[tuple[int, int]]:
    """(micro-batches of a rank, frames of a pack) that share the global batch."""
    micro_batches = 1
    while micro_batches <= MOST_MICRO_BATCHES:
        size = math.ceil(frames_per_step / (world * micro_batches) / GRANULE) * GRANULE
        if size < longest:
            return
        yield micro_batches, size
        micro_batches *= 2


def _pack(
    lengths: Lengths,
    pack_size: int,
    micro_batches: int,
    world: int,
    cost: CostModel,
    cluster: Cluster,
) -> Packing:
    order = np.random.default_rng(0).permutation(len(lengths.frames))
    plan = plan_packs(order, lengths.frames, pack_size)
    rows, tokens = (
        (lengths.frames[plan.songs] + FRAGMENTS).astype(np.float64),
        lengths.tokens[plan.songs].astype(np.float64),
    )
    starts = np.concatenate(([0], plan.ends[:-1]))
    squares = np.add.reduceat(rows**2 + rows * tokens, starts)
    frames = np.add.reduceat(lengths.frames[plan.songs], starts)
    # how a pack's time goes with its frames and its squares, up to a factor
    config, assumed = cost.config, cluster.assumptions
    linear = (
        frames
        * 6.0
        * config.blocks
        * config.width
        * (6 * config.width + 2 * config.mlp_width)
        / assumed.gemm
    )
    quadratic = squares * 4.0 * 3.5 * config.blocks * config.width / assumed.attention
    times = linear + quadratic
    group = world * micro_batches
    whole = len(times) // group * group
    imbalance = 1.0
    if whole:
        ranks = times[:whole].reshape(-1, micro_batches, world).sum(1)
        imbalance = float((ranks.max(1) / ranks.mean(1)).mean())
    elif world > 1:
        # a sample of fewer songs than a step takes: ranks are drawn from it
        drawn = np.random.default_rng(1).choice(times, (64, micro_batches, world)).sum(1)
        imbalance = float((drawn.max(1) / drawn.mean(1)).mean())
    packs = len(plan)
    return Packing(
        pack_size,
        plan.efficiency,
        float(frames.mean()),
        float(tokens.sum()) / packs,
        len(plan.songs) / packs,
        float(squares.mean()),
        imbalance,
    )


def fullest_pack(packing: Packing, lengths: Lengths) -> Pack:
    """A pack filled to the brim with mean songs, the lyrics of the wordiest tenth: what memory is
    planned for.
    """
    songs = max(1, round(packing.songs))
    frames = [packing.pack_size // songs] * songs
    frames[0] += packing.pack_size - sum(frames)
    ratio = float(np.percentile(lengths.tokens / lengths.frames, 90))
    return Pack.of(frames, [round(ratio * n) for n in frames], FRAGMENTS)


def _option(
    request: Request,
    lengths: Lengths,
    parameters: Parameters,
    cost: CostModel,
    packing: Packing,
    stage: int,
    mode: Checkpointing,
    micro_batches: int,
) -> Option:
    cluster = request.cluster
    parallel = request.parallel.model_copy(update={"zero_stage": stage})
    sharding = Sharding(
        stage, cluster.world, request.precision, request.average, stage > 0, parallel
    )
    activations = cost.at(fullest_pack(packing, lengths)).peak_bytes
    memory = memory_by_kind(
        parameters, sharding, activations, micro_batches=micro_batches, cluster=cluster
    )
    sent = tuple(messages(parameters, sharding, micro_batches=micro_batches))

    def seconds_on(cluster: Cluster) -> tuple[dict[str, float], float]:
        seconds, flops = step_seconds(
            parameters, sharding, cost, packing, sent, micro_batches, cluster
        )
        if request.taught:
            rate = cluster.peak_flops(request.precision) * cluster.assumptions.gemm
            seconds["teacher"] = request.taught * flops / 3 / rate * micro_batches
        seconds["data"] = data_seconds(request, packing, micro_batches, cluster, seconds)
        seconds["checkpoint"] = save_seconds(request, memory, cluster, seconds)
        return seconds, flops

    seconds, flops = seconds_on(cluster)
    low, high = (
        sum(seconds_on(dataclasses.replace(cluster, assumptions=assumed))[0].values())
        for assumed in (within(cluster.assumptions, kind) for kind in (BETTER, WORSE))
    )
    step, packs = sum(seconds.values()), cluster.world * micro_batches
    if request.batch is not None:
        packs = request.batch[1]
    frames = packing.frames * packs
    steps = request.steps or (
        request.songs * request.epochs * float(lengths.frames.mean()) / frames
    )
    return Option(
        stage=stage,
        checkpointing=mode,
        micro_batches=micro_batches,
        pack_size=packing.pack_size,
        packs_per_step=packs,
        efficiency=packing.efficiency,
        memory=memory,
        fits=sum(memory.values()) <= cluster.gpu.memory_gib * GIB,
        seconds=seconds,
        gpu_hours=steps * step * cluster.world / 3600,
        frames_per_second=frames / step,
        flops_share=flops * packs / (cluster.peak_flops(request.precision) * cluster.world * step),
        messages=sent,
        seconds_range=(low, high),
    )


def data_seconds(
    request: Request,
    packing: Packing,
    micro_batches: int,
    cluster: Cluster,
    seconds: dict[str, float],
) -> float:
    """What reading a step's songs takes beyond the step, which it runs beside."""
    songs = packing.songs * micro_batches
    reading = songs * cluster.assumptions.load_ms * 1e-3 / request.loader_threads
    return max(0.0, reading - sum(seconds.values()))


def save_seconds(
    request: Request, memory: dict[str, int], cluster: Cluster, seconds: dict[str, float]
) -> float:
    """What a checkpoint takes of the step's thread, spread over the steps between two: all of the
    writing, or the copy into host memory and what is not written when the next save comes.
    """
    own = sum(memory.get(kind, 0) for kind in ("master", "moments", "average"))
    assumed, every = cluster.assumptions, request.save_every
    writing = own * cluster.gpus_per_node / (assumed.storage_gbs * 1e9)
    if not request.asynchronous:
        return writing / every
    late = max(0.0, writing - every * sum(seconds.values()))
    return (own / (assumed.copy_gbs * 1e9) + late) / every


def memory_by_kind(
    parameters: Parameters,
    sharding: Sharding,
    activations: float,
    *,
    micro_batches: int,
    cluster: Cluster,
) -> dict[str, int]:
    """Bytes of the fullest rank when it is fullest: in the backward pass, or in the optimiser's
    step where that needs more.
    """
    state = state_bytes(parameters, sharding, micro_batches=micro_batches)
    backward = {"activations": round(activations)}
    step = step_bytes(parameters, sharding)
    if step > sum(backward.values()) + state["buckets"] + state["gathered"]:
        state |= {"buckets": 0, "gathered": 0}
        backward = {"step": step}
    memory = {kind: size for kind, size in (state | backward).items() if size}
    assumed = cluster.assumptions
    return memory | {
        "reserve": round(sum(memory.values()) * assumed.fragmentation + assumed.context_gib * GIB)
    }


def step_seconds(
    parameters: Parameters,
    sharding: Sharding,
    cost: CostModel,
    packing: Packing,
    sent: Sequence[Message],
    micro_batches: int,
    cluster: Cluster,
) -> tuple[dict[str, float], float]:
    """(seconds of a step by part, FLOPs of a mean pack's forward and backward without
    recomputation).
    """
    assumed, peak, config = cluster.assumptions, cluster.peak_flops(sharding.precision), cost.config
    # rows and tokens of a mean pack, as one song: what is linear does not ask how they are split
    mean = cost.at(
        Pack.of(
            [round(packing.frames + FRAGMENTS * (packing.songs - 1))],
            [round(packing.tokens)],
            FRAGMENTS,
        )
    )
    calls = config.blocks * (2 if config.cross_attention == "serial" else 1)
    forward_attention = 4.0 * config.blocks * config.width * packing.attention
    products = mean.gemm_flops / (peak * assumed.gemm)
    attention = (
        forward_attention * (3.5 + mean.recomputed_attention / calls) / (peak * assumed.attention)
    )
    traffic = mean.moved_bytes / (cluster.gpu.hbm_gbs * 1e9 * assumed.hbm)
    device = products + attention + traffic
    hooks = 4 * parameters.modules * assumed.hook_us * 1e-6 if sharding.stage == 3 else 0.0
    host = mean.launches * assumed.host_us * 1e-6 + hooks
    seconds = {
        "products": products,
        "attention": attention,
        "traffic": traffic,
        "host": max(0.0, host - device),
    }
    if sharding.stage == 3 and sharding.world > 1:
        # a hook ends where the device waits for the weights it gathered; these are written and
        # read once more than weights that lie whole, in both passes
        gathered = 4.0 * sharding.weight_bytes * parameters.count
        gathered /= cluster.gpu.hbm_gbs * 1e9 * assumed.hbm
        # and nothing runs yet that could hide the first weights of either pass
        bucket = sharding.parallel.gather_bucket or bucket_sizes(parameters.count)["gather"]
        first = 2 * cluster.pass_seconds(sharding.weight_bytes * bucket)
        seconds["hooks"] = (1 - assumed.overlap) * hooks + gathered + first
    seconds = {part: value * micro_batches for part, value in seconds.items()}
    compute = sum(seconds.values())
    seconds["imbalance"] = compute * (packing.imbalance - 1)
    hidden = sum(message_seconds(m, cluster) for m in sent if m.hidden)
    open_ = sum(message_seconds(m, cluster) for m in sent if not m.hidden)
    # stage 1 reduces in the last backward pass only, stages 2 and 3 in every one
    rounds = 1 if sharding.stage == 1 else micro_batches
    room = assumed.overlap * compute / micro_batches * rounds * (2 / 3 if sharding.stage < 3 else 1)
    seconds["communication"] = open_ + max(0.0, hidden - room)
    # AdamW and the average: reads and writes master weights, moments and average, reads gradients,
    # writes weights
    touched = 4 * (2 + 4 + (2 if sharding.average else 0) + 1) + 2 * sharding.weight_bytes
    part = parameters.count / (sharding.world if sharding.stage else 1)
    seconds["optimiser"] = part * touched / (cluster.gpu.hbm_gbs * 1e9 * assumed.hbm)
    return seconds, 3 * (mean.forward_gemm_flops + forward_attention)


def message_seconds(message: Message, cluster: Cluster) -> float:
    return message.passes * cluster.pass_seconds(message.size, calls=message.calls)
