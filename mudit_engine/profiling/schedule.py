"""The order of things in a hot loop of warp-group products (sm_90), read from machine code: which
exponentials run while products are in flight, which no ceiling of profiling/sass.py tells.

    trips = schedule(build.sass)                   # one for each loop, so one for each group
    trips[0].overlapped                            # exponentials under products, a share

A trip issues products in batches and waits until at most n of them are in flight. An exponential
between a wait that leaves some and the one that leaves none runs under products; one after the wait
that leaves none runs under nothing of its own group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mudit_engine.profiling.sass import hot_loops, parse


@dataclass(frozen=True)
class Trip:
    """One trip of a loop with products."""

    products: int
    waits: tuple[int, ...]
    """What each wait leaves in flight, in order."""
    exponentials: int
    hidden: int
    """Exponentials between a wait that leaves products in flight and the next."""
    registers: int
    """The highest register that the loop names, plus one."""

    @property
    def overlapped(self) -> float:
        """Share of the exponentials that run under products."""
        return self.hidden / self.exponentials if self.exponentials else 0.0


def schedule(sass: str) -> list[Trip]:
    """A trip of each hot loop, most FLOP first."""
    trips = []
    for loop in hot_loops(*parse(sass)):
        waits: list[int] = []
        products = exponentials = hidden = registers = 0
        in_flight = False
        for ins in loop:
            if ins.base in ("HGMMA", "QGMMA"):
                products += 1
                in_flight = True
            elif "WARPGROUP.DEPBAR" in ins.opcode:
                left = int(ins.operands.rpartition(",")[2], 16)
                waits.append(left)
                in_flight = left > 0
            elif ins.opcode.startswith("MUFU.EX2"):
                exponentials += 1
                hidden += in_flight
            named = (int(n) for n in re.findall(r"\bR(\d+)\b", ins.operands))
            registers = max([registers, *(n + 1 for n in named)])
        if products:
            trips.append(Trip(products, tuple(waits), exponentials, hidden, registers))
    return trips


def register_grants(sass: str) -> tuple[int, ...]:
    """Registers per thread that parts of a specialised kernel ask for, in the order of the code."""
    code, _ = parse(sass)
    asked = (ins.operands.rpartition(",")[2] for ins in code if ins.base == "USETMAXREG")
    return tuple(int(one, 16) for one in asked)
