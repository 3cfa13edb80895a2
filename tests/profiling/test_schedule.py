"""The order of a hot loop, on listings small enough to count by hand."""

from __future__ import annotations

from mudit_engine.profiling.schedule import Trip, register_grants, schedule

HEAD = """
        /*0000*/                   USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0 ;
        /*0010*/                   BRX R2 -0x20 (*"BRANCH_TARGETS .L_x_1,.L_x_9"*);
.L_x_1:
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R88, R152, gdesc[UR12].tnspB, R88 ;
"""
TAIL = """
        /*00a0*/               @P0 BRA `(.L_x_1) ;
        /*00b0*/                   EXIT ;
.L_x_9:
        /*00c0*/                   USETMAXREG.DEALLOC.CTAPOOL 0x18 ;
        /*00d0*/                   EXIT ;
"""
FIRST = "        /*0040*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;\n"
EXPONENTIALS = """
        /*0050*/                   MUFU.EX2 R3, R3 ;
        /*0060*/                   MUFU.EX2 R4, R4 ;
"""
LAST = "        /*0070*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n"


def test_exponentials_before_the_last_wait_are_hidden():
    (trip,) = schedule(HEAD + FIRST + EXPONENTIALS + LAST + TAIL)
    assert trip == Trip(products=2, waits=(1, 0), exponentials=2, hidden=2, registers=153)
    assert trip.overlapped == 1.0


def test_a_wait_that_was_hoisted_shows():
    """What ptxas makes of it where no barrier stands between the exponentials and the wait."""
    (trip,) = schedule(HEAD + FIRST + LAST + EXPONENTIALS + TAIL)
    assert trip.waits == (1, 0) and trip.overlapped == 0.0


def test_loops_of_another_part_are_found():
    """A part is entered by a table of branches alone."""
    other = (HEAD + FIRST + EXPONENTIALS + LAST).partition(".L_x_1:\n")[2].replace("/*00", "/*10")
    code = (
        HEAD
        + FIRST
        + EXPONENTIALS
        + LAST
        + TAIL.replace(
            ".L_x_9:\n",
            ".L_x_9:\n" + other + "        /*1080*/               @P0 BRA `(.L_x_9) ;\n",
        )
    )
    assert len(schedule(code)) == 2


def test_what_parts_ask_for():
    assert register_grants(HEAD + TAIL) == (240, 24)
