"""What a cluster is made of, as its makers state it, and how long a collective takes on it by a
ring model.

    t(reduce-scatter or all-gather of S bytes on W ranks) = S (W - 1) / W / bus + latency
    t(all-reduce) = twice that
    bus = min(NVLink of a GPU, all NICs of a node), each times `link_efficiency`
    latency = hops log2 W

    cluster = make_cluster("a100-80g", nodes=8, gpus_per_node=8, nic_gbs=25, nics=1)
    cluster.pass_seconds(760e6)                     # one pass of 380 M bf16 gradients

Bandwidths are one way, in 10^9 bytes a second. NCCL runs as many rings as a node has NICs: together
they carry one copy of the data. Source: NVIDIA's data sheets of the A100 80 GB SXM, H100 SXM, H200
SXM, B200 (HGX) and L40S, the RTX Blackwell whitepaper, and the DGX system descriptions.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass

from mudit_engine.errors import InputError

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One accelerator and its links. Peaks are dense; fp32 is what matrix products take (TF32
    tensor cores).
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    hbm_gbs: float
    nvlink_gbs: float
    nic_gbs: float
    nics: int


GPUS = {
    # 80 GB are 79.15 GiB of the driver's count; NVLink 3: 600 GB/s both ways; DGX A100: eight HDR
    # InfiniBand ports of 200 Gb/s
    "a100-80g": Gpu("a100-80g", 79.15, 312.0, 156.0, 2039.0, 300.0, 25.0, 8),
    # NVLink 4: 900 GB/s both ways; DGX H100: eight NDR ports of 400 Gb/s
    "h100-80g": Gpu("h100-80g", 79.10, 989.4, 494.7, 3352.0, 450.0, 50.0, 8),
    # 141 GB of HBM3e; DGX H200
    "h200": Gpu("h200", 139.8, 989.4, 494.7, 4800.0, 450.0, 50.0, 8),
    # 180 GB of HBM3e (HGX B200); NVLink 5: 1,800 GB/s both ways; DGX B200: eight ports of 400 Gb/s
    "b200": Gpu("b200", 178.0, 2250.0, 1125.0, 8000.0, 900.0, 50.0, 8),
    # no NVLink: PCIe 5.0 x16, one way, through the host; one port of 100 Gb/s taken for a node
    "rtx-5090": Gpu("rtx-5090", 31.8, 209.5, 104.8, 1792.0, 63.0, 12.5, 1),
    # PCIe 4.0 x16; ECC takes its part of 48 GB
    "l40s": Gpu("l40s", 44.5, 362.05, 183.2, 864.0, 31.5, 25.0, 2),
}


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted: shares of a stated peak that are reached, and reserves. No
    GPU gave us these.
    """

    gemm: float = 0.65  # of the tensor-core peak, in matrix products
    attention: float = 0.45  # of the tensor-core peak, in attention
    hbm: float = 0.80  # of the memory bandwidth, in everything else
    link: float = 0.80  # of NVLink and NIC bandwidth, in collectives
    hop_us: float = 12.0  # latency of a collective, times log2 of its ranks
    host_us: float = 9.0  # that the host needs to launch one operation
    hook_us: float = 35.0  # of one of ZeRO-3's hooks, of which a module has four a pass
    overlap: float = 0.85  # of the backward pass that a collective can hide behind
    load_ms: float = 12.0  # CPU time that reading a song into a batch takes one thread
    storage_gbs: float = 2.0  # that a node writes into the shared folder
    copy_gbs: float = 20.0  # from a GPU into page-locked host memory
    context_gib: float = 1.2  # CUDA context, cuBLAS workspaces, NCCL buffers
    fragmentation: float = 0.05  # of what tensors take, lost between them by the caching allocator


# what the same figures may be on a machine that does worse, and on one that does better: the range
# of a plan
WORSE: dict[str, float] = {
    "gemm": 0.45,
    "attention": 0.25,
    "hbm": 0.65,
    "link": 0.55,
    "hop_us": 25.0,
    "host_us": 14.0,
    "hook_us": 70.0,
    "overlap": 0.5,
    "load_ms": 25.0,
    "storage_gbs": 0.5,
    "copy_gbs": 8.0,
}
BETTER: dict[str, float] = {
    "gemm": 0.75,
    "attention": 0.60,
    "hbm": 0.88,
    "link": 0.90,
    "hop_us": 8.0,
    "host_us": 5.0,
    "hook_us": 20.0,
    "overlap": 0.95,
    "load_ms": 6.0,
    "storage_gbs": 10.0,
    "copy_gbs": 25.0,
}


def within(assumptions: Assumptions, other: dict[str, float]) -> Assumptions:
    """The assumptions with the figures of WORSE or BETTER, but for those that somebody set."""
    base = Assumptions()
    open_ = {k: v for k, v in other.items() if getattr(assumptions, k) == getattr(base, k)}
    return dataclasses.replace(assumptions, **open_)


def assume(changes: list[str] | tuple[str, ...]) -> Assumptions:
    """The defaults with KEY=VALUE changes. Raises InputError that names what can be assumed."""
    fields = {field.name for field in dataclasses.fields(Assumptions)}
    given = {}
    for text in changes:
        key, equals, value = text.partition("=")
        if key not in fields or not equals:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise InputError(
                f"--assume {text!r}: {hint}write KEY=VALUE with one of {', '.join(sorted(fields))}"
            )
        try:
            given[key] = float(value)
        except ValueError:
            raise InputError(f"--assume {text!r}: '{value}' is not a number") from None
        if (
            not math.isfinite(given[key])
            or given[key] < 0
            or (key in ("gemm", "attention", "hbm", "link") and not 0 < given[key] <= 1)
        ):
            raise InputError(
                f"--assume {text!r}: shares lie in (0, 1], times and reserves are not negative"
            )
    return dataclasses.replace(Assumptions(), **given)


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    assumptions: Assumptions = Assumptions()

    @property
    def world(self) -> int:
        return self.nodes * self.gpus_per_node

    def bus_gbs(self, nodes: int, gpus_per_node: int) -> float:
        """What one ring pass over a group of ranks moves, GB/s; infinite for one rank."""
        if nodes * gpus_per_node == 1:
            return math.inf
        within = self.gpu.nvlink_gbs if gpus_per_node > 1 else math.inf
        across = self.gpu.nic_gbs * self.gpu.nics if nodes > 1 else math.inf
        return min(within, across) * self.assumptions.link

    def pass_seconds(self, size: float, *, calls: float = 1.0, world: int | None = None) -> float:
        """Seconds to reduce-scatter or all-gather `size` bytes in `calls` calls over all ranks, or
        over `world` neighbours.
        """
        ranks = self.world if world is None else world
        if ranks == 1:
            return 0.0
        nodes = max(1, math.ceil(ranks / self.gpus_per_node))
        bus = self.bus_gbs(nodes, min(ranks, self.gpus_per_node))
        return size * (ranks - 1) / ranks / (
            bus * 1e9
        ) + calls * self.assumptions.hop_us * 1e-6 * math.log2(ranks)

    def peak_flops(self, precision: str) -> float:
        return (self.gpu.bf16_tflops if precision == "bf16" else self.gpu.fp32_tflops) * 1e12


def make_cluster(
    gpu: str,
    *,
    nodes: int,
    gpus_per_node: int,
    assumptions: Assumptions | None = None,
    **figures: float | None,
) -> Cluster:
    """A preset with what was given in place of its figures (fields of Gpu), or any other GPU of
    which all are given. Raises InputError for an unknown preset or impossible numbers.
    """
    given = {name: value for name, value in figures.items() if value is not None}
    for name, value in {**given, "nodes": nodes, "gpus_per_node": gpus_per_node}.items():
        if not value > 0:
            raise InputError(f"{name}={value} must be positive")
    known = GPUS.get(gpu)
    if known is None:
        wanted = [field.name for field in dataclasses.fields(Gpu) if field.name != "name"]
        missing = [name for name in wanted if name not in given]
        if missing:
            near = difflib.get_close_matches(gpu, GPUS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise InputError(
                f"no GPU preset '{gpu}': {hint}there are {', '.join(GPUS)}; of another GPU give "
                f"all figures ({', '.join(missing)} are missing)"
            )
        known = Gpu(gpu, **given)  # type: ignore[arg-type]
    chosen = dataclasses.replace(known, **given)  # type: ignore[arg-type]
    return Cluster(chosen, nodes, gpus_per_node, assumptions or Assumptions())
