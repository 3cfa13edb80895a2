"""Static ceilings of a kernel from its machine code: what share of the machine's peak its hot loop
could reach, at the very best.

The hot loops are the innermost loops that hold matrix instructions. Their instructions are counted
per execution pipe and turned into cycles of one multiprocessor for one trip of one block:

    overlap = tensor / max(all pipes)          every pipe works behind the tensor cores
    serial  = tensor / (tensor + softmax)      nothing does

with softmax = max(pipes other than tensor and memory). A kernel without matrix instructions
streams: its goal is the DRAM bandwidth, and its hot loops are those with global accesses (the whole
kernel, if there is none). With dram = bytes of a trip / the multiprocessor's share of the
bandwidth:

    overlap = dram / max(all pipes, dram)      serial = dram / (dram + max(pipes))

Neither sees latency, bank conflicts, or overlap between warp groups: they are ceilings, not speeds.

    report = analyse(build, useful_flops=4 * 128 * 64 * 96)          # useful FLOP of one trip
    report.loops[0].overlap, report.loops[0].serial, report.blocks_per_sm
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mudit_engine.profiling.aot import KernelBuild


@dataclass(frozen=True)
class Machine:
    """Throughput of one multiprocessor per clock: FLOP (dense bf16) of the tensor cores, lanes of
    the other pipes, bytes of shared memory.

    Sources: CUDA C++ Programming Guide, tables of arithmetic throughput and of technical
    specifications; the products' data sheets for multiprocessors, DRAM bandwidth in GB/s, and dense
    bf16 TFLOP/s, from which the clock in GHz follows (SXM boards where there are any).
    """

    name: str
    tensor: int
    fma: int
    max_warps: int
    max_blocks: int
    shared_bytes: int
    processors: int
    clock: float
    bandwidth: int
    alu: int = 64
    mufu: int = 16
    convert: int = 64
    shared_bandwidth: int = 128
    issue: int = 4
    registers: int = 65536
    reserved_shared: int = 1024

    @property
    def tensor_tflops(self) -> float:
        """Peak of the whole chip, dense bf16."""
        return self.tensor * self.processors * self.clock / 1e3

    @property
    def dram_bytes(self) -> float:
        """One multiprocessor's share of the DRAM bandwidth, bytes per clock."""
        return self.bandwidth / (self.processors * self.clock)


MACHINES = {
    "sm_80": Machine(
        "A100",
        tensor=2048,
        fma=64,
        max_warps=64,
        max_blocks=32,
        shared_bytes=164 << 10,
        processors=108,
        clock=1.41,
        bandwidth=2039,
    ),
    "sm_86": Machine(
        "A40",
        tensor=1024,
        fma=128,
        max_warps=48,
        max_blocks=16,
        shared_bytes=100 << 10,
        processors=84,
        clock=1.74,
        bandwidth=696,
    ),
    "sm_89": Machine(
        "L40S",
        tensor=1024,
        fma=128,
        max_warps=48,
        max_blocks=24,
        shared_bytes=100 << 10,
        processors=142,
        clock=2.49,
        bandwidth=864,
    ),
    "sm_90": Machine(
        "H100",
        tensor=4096,
        fma=128,
        max_warps=64,
        max_blocks=32,
        shared_bytes=228 << 10,
        processors=132,
        clock=1.83,
        bandwidth=3350,
    ),
    "sm_100": Machine(
        "B200",
        tensor=8192,
        fma=128,
        max_warps=64,
        max_blocks=32,
        shared_bytes=228 << 10,
        processors=148,
        clock=1.856,
        bandwidth=8000,
    ),
    "sm_120": Machine(
        "RTX 5090",
        tensor=512,
        fma=128,
        max_warps=48,
        max_blocks=24,
        shared_bytes=100 << 10,
        processors=170,
        clock=2.407,
        bandwidth=1792,
    ),
}
# Loops are rated where the matrix instructions run on the warps' own issue slots; tcgen05 (sm_100)
# is asynchronous and is not.
RATED = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")

PIPES = {
    "mma": ("HMMA", "HGMMA", "QGMMA", "QMMA", "IMMA", "IGMMA", "UTCHMMA", "UTCQMMA", "OMMA"),
    "mufu": ("MUFU",),
    # IMAD and the packed half operations issue to the FMA pipe
    "fma": (
        "FFMA",
        "FMUL",
        "FADD",
        "FFMA2",
        "FMUL2",
        "FADD2",
        "HFMA2",
        "HADD2",
        "HMUL2",
        "IMAD",
        "IMUL",
    ),
    "convert": ("F2FP", "F2F", "I2F", "F2I", "I2FP", "FRND", "F2IP"),
    "shared": ("LDSM", "STSM", "LDS", "STS", "ATOMS"),
    "async_copy": ("LDGSTS",),
    "tma": ("UTMALDG", "UTMASTG", "UBLKCP"),
    "global": ("LDG", "STG", "LD", "ST", "RED", "ATOMG", "ATOM", "REDG"),
    "local": ("LDL", "STL"),
    "shuffle": ("SHFL",),
    "sync": (
        "BAR",
        "WARPSYNC",
        "WARPGROUP",
        "BSYNC",
        "BSSY",
        "MEMBAR",
        "FENCE",
        "SYNCS",
        "ARRIVES",
        "DEPBAR",
        "LDGDEPBAR",
    ),
    "control": (
        "BRA",
        "EXIT",
        "RET",
        "CALL",
        "JMP",
        "BRX",
        "NANOSLEEP",
        "YIELD",
        "NOP",
        "WARPGROUPDEPBAR",
    ),
}
WAITING = ("SYNCS", "BRA", "NANOSLEEP", "YIELD", "NOP")
"""All that the retry loop of a barrier holds."""
PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes}

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(?:@(!?U?P\w+)\s+)?(\S+)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_TARGETS = re.compile(r"BRANCH_TARGETS ([^\"]+)")


@dataclass(frozen=True)
class Instruction:
    """One line of SASS."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def pipe(self) -> str:
        # what is in no list is integer, logic, comparison or move: the ALU; the U family runs on
        # the uniform datapath
        return PIPE_OF.get(self.base) or (
            "uniform" if self.base.startswith("U") or self.base in ("R2UR", "S2UR") else "alu"
        )

    @property
    def flops(self) -> float:
        """FLOP per warp; a warp-group instruction counts a quarter for each of its four warps."""
        if found := re.search(r"\bHMMA\.(\d+)", self.opcode):
            m, n, k = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}.get(
                found[1], (0, 0, 0)
            )
            return 2.0 * m * n * k
        if found := re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", self.opcode):
            return 2.0 * int(found[1]) * int(found[2]) * int(found[3]) / 4
        return 0.0

    @property
    def streams(self) -> bool:
        """Whether it moves data between global memory and the multiprocessor, as row-wise kernels
        do.
        """
        return self.base in ("LDG", "STG", "LDGSTS")

    @property
    def tensor_share(self) -> float:
        """Relative rate against bf16: tf32 runs at half speed."""
        return 0.5 if "TF32" in self.opcode else 1.0

    @property
    def bytes_per_warp(self) -> float:
        """Traffic through shared memory's port."""
        if self.base in ("LDSM", "STSM"):
            return 512 if ".4" in self.opcode else 256 if ".2" in self.opcode else 128
        if self.pipe in ("shared", "async_copy"):
            return max(128, 32 * self.access_bytes)
        if self.pipe == "shuffle":
            return 128
        if found := re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", self.opcode):
            # B always comes from shared memory, A too unless it is named as plain registers
            m, n, k = (int(g) for g in found.groups())
            width = 4 if "TF32" in self.opcode else 2
            a_in_registers = re.match(r"R\d+(\.reuse)?, R\d+", self.operands) is not None
            return width * (n * k + (0 if a_in_registers else m * k)) / 4
        return 0.0

    @property
    def access_bytes(self) -> int:
        """Bytes that one thread moves."""
        found = re.search(r"\.(U8|S8|U16|S16|64|128)\b", self.opcode)
        return {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[found[1]] if found else 4


@dataclass(frozen=True)
class Loop:
    """A hot loop: instructions by pipe for one trip of one warp, cycles of one multiprocessor for
    one trip of one block.
    """

    instructions: int
    counts: dict[str, int]
    flops: float
    """Executed by the block in a trip."""
    cycles: dict[str, float]
    useful: float
    """Useful FLOP / executed FLOP (1.0 when no tile column is padding)."""
    accesses: dict[int, int]
    """Bytes per thread of the global loads and stores -> how many of them."""
    goal: str = "tensor"
    """What a perfect kernel is bound by: "tensor" or "dram"."""

    @property
    def local_accesses(self) -> int:
        return self.counts.get("local", 0)

    @property
    def softmax_cycles(self) -> float:
        """Of the busiest pipe that does not feed the goal."""
        feeding = ("tensor", "shared", "issue") if self.goal == "tensor" else ("dram", "issue")
        return max(v for k, v in self.cycles.items() if k not in feeding)

    @property
    def overlap(self) -> float:
        return self.useful * self.cycles[self.goal] / max(self.cycles.values())

    @property
    def serial(self) -> float:
        return self.useful * self.cycles[self.goal] / (self.cycles[self.goal] + self.softmax_cycles)

    @property
    def bound(self) -> str:
        """The pipe that limits the overlap ceiling."""
        return max(self.cycles, key=lambda k: self.cycles[k])


@dataclass(frozen=True)
class Report:
    """Machine code of one kernel, summed up."""

    loops: list[Loop]
    """Loops with matrix instructions, most FLOP first (none on sm_100); of a kernel without them,
    the streaming loops, most bytes first.
    """
    counts: dict[str, int]
    global_access_bytes: dict[int, int]
    """Width of the global loads and stores per thread -> how many."""
    tma_loads: int
    blocks_per_sm: int

    @property
    def loop_local_accesses(self) -> int:
        return sum(loop.local_accesses for loop in self.loops)


def parse(sass: str) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions in order, and the index that each label stands before."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if found := _LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(int(found[1], 16), found[2] or "", found[3], found[4]))
    return instructions, labels


def _blocks(code: list[Instruction], labels: dict[str, int]) -> tuple[list[range], list[list[int]]]:
    """Basic blocks and their successors."""
    jumps = {"BRA", "EXIT", "RET", "JMP", "BRX"}
    # ptxas also leaves loops by a predicated CALL.REL.NOINC to a local label
    target = {
        i: labels.get(t[1])
        for i, ins in enumerate(code)
        if ins.base in ("BRA", "CALL") and (t := _TARGET.search(ins.operands))
    }
    ends = (i for i, ins in enumerate(code[:-1]) if ins.base in jumps or i in target)
    cuts = {0, *(i for i in labels.values() if i < len(code)), *(i + 1 for i in ends)}
    starts = sorted(cuts)
    blocks = [range(a, b) for a, b in zip(starts, [*starts[1:], len(code)], strict=True)]
    number = {block.start: n for n, block in enumerate(blocks)}
    successors: list[list[int]] = []
    for n, block in enumerate(blocks):
        last, end = code[block[-1]], block[-1]
        # besides @P, a branch may carry its condition as first operand (BRA P1, ...; BRA.DIV)
        conditional = (
            bool(last.predicate)
            or ".DIV" in last.opcode
            or re.match(r"!?U?P\d", last.operands) is not None
        )
        out = [number[t] for t in [target.get(end)] if t is not None and t in number]
        if last.base == "BRX" and (table := _TARGETS.search(last.operands)):
            # how the warps of a specialised kernel find their part
            out += [number[labels[name]] for name in table[1].split(",") if name in labels]
        if (last.base not in jumps or conditional) and n + 1 < len(blocks):
            out.append(n + 1)
        successors.append(out)
    return blocks, successors


def _dominators(successors: list[list[int]]) -> list[set[int]]:
    """dominators[b]: the blocks on every path from the entry to b (empty when unreachable)."""
    n = len(successors)
    predecessors: list[list[int]] = [[] for _ in range(n)]
    for a, out in enumerate(successors):
        for b in out:
            predecessors[b].append(a)
    reachable, stack = {0}, [0]
    while stack:
        for b in successors[stack.pop()]:
            if b not in reachable:
                reachable.add(b)
                stack.append(b)
    dominators = [set(reachable) if b in reachable else set() for b in range(n)]
    dominators[0], changed = {0}, True
    while changed:
        changed = False
        for b in sorted(reachable - {0}):
            new = set.intersection(*(dominators[p] for p in predecessors[b] if p in reachable)) | {
                b
            }
            changed |= new != dominators[b]
            dominators[b] = new
    return dominators


def hot_loops(
    code: list[Instruction], labels: dict[str, int], *, streaming: bool = False
) -> list[list[Instruction]]:
    """Innermost natural loops with matrix instructions, most FLOP first; `streaming`: with global
    accesses, most bytes first.

    What a trip passes only while it waits for a barrier (the retries beside a try_wait) is latency,
    which no ceiling sees: left out.
    """

    def hot(ins: Instruction) -> bool:
        return ins.streams if streaming else ins.pipe == "mma"

    if not code:
        return []
    blocks, successors = _blocks(code, labels)
    dominators = _dominators(successors)
    bodies: dict[int, set[int]] = {}
    for tail, out in enumerate(successors):
        for head in out:
            if head in dominators[tail]:
                body, stack = bodies.setdefault(head, {head}), [tail]
                while stack:
                    b = stack.pop()
                    if b not in body:
                        body.add(b)
                        stack += [p for p, s in enumerate(successors) if b in s and dominators[p]]
    spins = {
        h for h, b in bodies.items() if all(code[i].base in WAITING for n in b for i in blocks[n])
    }
    loops = {h: b for h, b in bodies.items() if any(hot(code[i]) for n in b for i in blocks[n])}
    found = []
    for head, body in loops.items():
        if any(g != head and c < body for g, c in loops.items()):
            continue  # not an innermost one
        latches = [n for n in body if head in successors[n]]
        asides = {g for g in spins & body if not any(g in dominators[n] for n in latches)}
        found.append(
            [code[i] for n in sorted(body) if not dominators[n] & asides for i in blocks[n]]
        )
    return sorted(
        found,
        key=lambda loop: (
            -sum((ins.access_bytes if hot(ins) else 0) if streaming else ins.flops for ins in loop)
        ),
    )


def rate_loop(
    loop: list[Instruction],
    machine: Machine,
    *,
    warps: int,
    useful_flops: float | None = None,
    live: float | None = None,
) -> Loop:
    """Cycles of each pipe for one trip. useful_flops is the useful work of a block in one trip; an
    unrolled loop counts as several.

    live: the loop streams, and this share of its lanes moves data (the others are masked off).
    """
    counts = Counter(ins.pipe for ins in loop)
    executed = warps * sum(ins.flops for ins in loop)
    lanes = 32 * warps
    cycles = {
        "tensor": warps * sum(ins.flops / ins.tensor_share for ins in loop) / machine.tensor,
        "mufu": counts["mufu"] * lanes / machine.mufu,
        "fma": counts["fma"] * lanes / machine.fma,
        "alu": counts["alu"] * lanes / machine.alu,
        "convert": counts["convert"] * lanes / machine.convert,
        "shared": warps * sum(ins.bytes_per_warp for ins in loop) / machine.shared_bandwidth,
        "issue": len(loop) * warps / machine.issue,
    }
    cycles["other issue"] = (len(loop) - counts["mma"]) * warps / machine.issue
    if live is not None:
        cycles["dram"] = (
            live * lanes * sum(ins.access_bytes for ins in loop if ins.streams) / machine.dram_bytes
        )
    useful = 1.0
    if useful_flops and executed:
        trips = max(1, int(executed / useful_flops + 0.01))
        useful = trips * useful_flops / executed
    accesses = dict(Counter(ins.access_bytes for ins in loop if ins.streams))
    return Loop(
        len(loop),
        dict(counts),
        executed,
        cycles,
        useful,
        accesses,
        "tensor" if live is None else "dram",
    )


def blocks_per_sm(machine: Machine, *, registers: int, warps: int, shared_bytes: int) -> int:
    """Blocks that fit one multiprocessor at once.
    Registers are given out per warp in units of 256.
    """
    warps_by_registers = machine.registers // (-(-registers * 32 // 256) * 256)
    by_shared = machine.shared_bytes // (shared_bytes + machine.reserved_shared)
    return min(
        warps_by_registers // warps, by_shared, machine.max_warps // warps, machine.max_blocks
    )


def analyse(
    build: KernelBuild, *, useful_flops: float | None = None, live: float | None = None
) -> Report:
    """Reads a compiled kernel. useful_flops: useful FLOP of one trip of its hot loop by one block,
    None to take all as useful.

    live: share of the lanes that move data, which rates a kernel without matrix instructions as one
    that streams.
    """
    machine = MACHINES[build.arch]
    code, labels = parse(build.sass)
    if any(ins.pipe == "mma" for ins in code):
        loops = [
            rate_loop(loop, machine, warps=build.warps, useful_flops=useful_flops)
            for loop in hot_loops(code, labels)
        ]
        loops = [loop for loop in loops if loop.flops] if build.arch in RATED else []
    elif live is None:
        loops = []
    else:
        # nothing is executed after the last EXIT but a branch to itself
        whole = code[
            : max((i + 1 for i, ins in enumerate(code) if ins.base == "EXIT"), default=len(code))
        ]
        streams = hot_loops(code, labels, streaming=True) or [whole]
        loops = [
            rate_loop(loop, machine, warps=build.warps, live=live)
            for loop in streams
            if any(ins.streams for ins in loop)
        ]
    return Report(
        loops=loops,
        counts=dict(Counter(ins.pipe for ins in code)),
        global_access_bytes=dict(Counter(ins.access_bytes for ins in code if ins.streams)),
        tma_loads=sum(ins.base == "UTMALDG" for ins in code),
        blocks_per_sm=blocks_per_sm(
            machine,
            registers=build.registers,
            warps=build.block_warps,
            shared_bytes=build.shared_bytes,
        ),
    )
