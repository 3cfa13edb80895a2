"""Reading machine code: loops, pipes, ceilings and occupancy, on listings small enough to count by
hand.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from mudit_engine.errors import InputError, MuditError
from mudit_engine.profiling.aot import compile_for
from mudit_engine.profiling.sass import (
    MACHINES,
    Instruction,
    blocks_per_sm,
    hot_loops,
    parse,
    rate_loop,
)

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/                   HMMA.16816.F32.BF16 R12, R4, R6, R12 ;
        /*0040*/                   MUFU.EX2 R3, R3 ;
        /*0050*/                   FFMA R3, R3, R5, R7 ;
        /*0060*/               @P0 CALL.REL.NOINC `(.L_x_2) ;
        /*0070*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*0080*/                   STG.E.128 [R2.64], R8 ;
.L_x_3:
        /*0090*/                   LDL R1, [R1] ;
        /*00a0*/               @P1 BRA `(.L_x_3) ;
        /*00b0*/                   EXIT ;
"""


def instruction(text: str) -> Instruction:
    return parse(f"        /*0000*/                   {text} ;")[0][0]


def test_the_hot_loop_is_the_one_with_matrix_instructions():
    code, labels = parse(LISTING)
    (loop,) = hot_loops(code, labels)
    assert [i.address for i in loop] == list(range(0x10, 0x80, 0x10))


WAITING = """
.L_x_1:
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
.L_x_3:
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2 ;
        /*0070*/              @!P0 BRA `(.L_x_2) ;
        /*0080*/                   BRA `(.L_x_3) ;
"""


def test_retries_of_a_wait_are_no_part_of_a_trip():
    (loop,) = hot_loops(*parse(WAITING))
    assert [i.address for i in loop] == [0x10, 0x20, 0x30, 0x40]


def test_a_wait_that_every_trip_passes_counts():
    spinning = WAITING.replace("@!P0 BRA `(.L_x_2) ;\n.L_x_3", "BRA `(.L_x_2) ;\n.L_x_3")
    (loop,) = hot_loops(*parse(spinning))
    assert [i.address for i in loop] == list(range(0x10, 0x50, 0x10)) + [0x60, 0x70, 0x80]


def test_cycles_and_ceilings_of_a_loop():
    (loop,) = hot_loops(*parse(LISTING))
    rated = rate_loop(loop, MACHINES["sm_80"], warps=4, useful_flops=4 * 4096)
    # 2 HMMA of 4096 FLOP in 4 warps at 2048 FLOP a clock; one MUFU in 128 lanes at 16 a clock; one
    # ldmatrix.x4 of 512 bytes a warp
    assert (
        rated.cycles["tensor"] == 16 and rated.cycles["mufu"] == 8 and rated.cycles["shared"] == 16
    )
    assert rated.flops == 32768 and rated.useful == 1.0  # two tile pairs of 4 * 4096 in a trip
    assert rated.overlap == 1.0 and rated.serial == pytest.approx(16 / 24)
    padded = rate_loop(loop, MACHINES["sm_80"], warps=4, useful_flops=0.75 * 32768)
    assert padded.useful == 0.75 and padded.overlap == 0.75


@pytest.mark.parametrize(
    ("text", "pipe", "flops"),
    [
        ("HMMA.1688.F32.TF32 R8, R4, R6, R8", "mma", 2048),
        ("HGMMA.64x96x16.F32.BF16 R24, gdesc[UR4].tnspB, R24", "mma", 2 * 64 * 96 * 16 / 4),
        ("LDL.LU R4, [R1]", "local", 0),
        ("UTMALDG.2D [UR8], [UR4]", "tma", 0),
        ("UIADD3 UR4, UR4, 0x1, URZ", "uniform", 0),
        ("FMNMX R1, R2, R3, !PT", "alu", 0),
    ],
)
def test_pipes_and_work(text, pipe, flops):
    assert instruction(text).pipe == pipe and instruction(text).flops == flops


def test_wgmma_reads_shared_memory():
    b_only = instruction("HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR4], R24")
    both = instruction("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24")
    assert b_only.bytes_per_warp == 128 * 16 * 2 / 4
    assert both.bytes_per_warp == (128 + 64) * 16 * 2 / 4


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "blocks"),
    [(255, 4, 49152, 2), (128, 4, 0, 4), (32, 4, 163 << 10, 1), (16, 4, 0, 16)],
)
def test_occupancy(registers, warps, shared, blocks):
    assert (
        blocks_per_sm(MACHINES["sm_80"], registers=registers, warps=warps, shared_bytes=shared)
        == blocks
    )


def test_unknown_architecture_is_named():
    with (
        pytest.raises(InputError, match="arch='sm_70' is not known: choose from sm_80"),
        compile_for("sm_70"),
    ):
        pass


def test_compiling_under_the_interpreter_says_what_to_unset():
    program = "from mudit_engine.profiling.aot import compile_for\nwith compile_for('sm_80'): pass"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"TRITON_INTERPRET": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode != 0
        and "TRITON_INTERPRET=1 is set" in done.stderr
        and issubclass(MuditError, Exception)
    )
