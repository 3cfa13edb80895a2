"""The static report around the compiler:
what is planned, how bytes are counted, what a page shows.
"""

from __future__ import annotations

import io

import matplotlib.image
import pytest
import torch

from attention_cases import make_case
from mudit_engine.benchmarks import peers_kernels
from mudit_engine.benchmarks.report_kernels import html
from mudit_engine.benchmarks.report_plots import ceilings, roofline
from mudit_engine.benchmarks.static_attention import requested_bytes
from mudit_engine.benchmarks.static_elementwise import distinct
from mudit_engine.benchmarks.static_figures import skipped
from mudit_engine.benchmarks.static_kernels import Job, merge, plan
from mudit_engine.errors import MuditError
from mudit_engine.kernels.attention import attention
from mudit_engine.kernels.attention_backward import backward_configs
from mudit_engine.kernels.attention_forward import forward_config
from mudit_engine.kernels.bias_gelu import bias_gelu
from mudit_engine.profiling import strict
from mudit_engine.profiling.sass import MACHINES, hot_loops, parse, rate_loop
from mudit_engine.profiling.traffic import count_traffic

COPY = """
.L_x_1:
        /*0000*/                   LDG.E.128 R4, [R2.64] ;
        /*0010*/                   FFMA R4, R4, R5, R7 ;
        /*0020*/                   STG.E.128 [R8.64], R4 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   STG.E [R8.64], R4 ;
        /*0050*/                   EXIT ;
"""
interpreted = pytest.mark.skipif(not strict.INTERPRETED, reason="the interpreter counts the bytes")


def test_ceilings_of_a_loop_that_streams():
    (loop,) = hot_loops(*parse(COPY), streaming=True)
    rated = rate_loop(loop, MACHINES["sm_80"], warps=4, live=0.5)
    # 128 threads, half of them live, 32 bytes each; 2039 GB/s over 108 multiprocessors of 1.41 GHz
    dram = 128 * 0.5 * 32 / (2039 / 108 / 1.41)
    assert rated.goal == rated.bound == "dram" and rated.cycles["dram"] == pytest.approx(dram)
    assert rated.accesses == {16: 2} and rated.overlap == 1.0
    # 128 FMA at 64 a clock, and four instructions of four warps at four a clock
    assert rated.serial == pytest.approx(dram / (dram + 4))


@pytest.mark.parametrize("arch", MACHINES)
def test_machines_reach_what_their_data_sheets_say(arch):
    tflops = {
        "sm_80": 312,
        "sm_86": 149.7,
        "sm_89": 362,
        "sm_90": 989.4,
        "sm_100": 2250,
        "sm_120": 209.5,
    }
    assert MACHINES[arch].tensor_tflops == pytest.approx(tflops[arch], rel=0.003)


@interpreted
def test_traffic_counts_lanes_and_bytes():
    x, bias = torch.randn(5, 264), torch.randn(264)
    with count_traffic() as launches:
        bias_gelu(x, bias)
    (launch,) = launches
    # two blocks of 256 columns, each with the bias; a tile of 8 rows has 5
    assert (launch.kernel, launch.requested, launch.distinct) == (
        "_bias_gelu_fwd_kernel",
        *2 * [4 * 264 * (5 + 1 + 5)],
    )
    assert launch.live == pytest.approx(264 * 11 / (512 * (8 + 1 + 8)))


@interpreted
def test_bytes_read_by_every_tile_count_every_time():
    x, bias = torch.randn(130, 64), torch.randn(64)
    with count_traffic() as (launches):
        bias_gelu(x, bias)
    # three tiles of 64 rows, one bias
    assert launches[0].requested - launches[0].distinct == 2 * 64 * 4


@interpreted
@pytest.mark.parametrize("rotate", [True, False], ids=["rotated", "plain"])
def test_attention_asks_for_what_its_worklist_says(rotate):
    case = make_case(
        [70, 33], keys=[20, 5], head_dim=64, heads=2, dtype=torch.bfloat16, rotate=rotate
    )
    with count_traffic() as launches:
        case.run(attention)
    by_query, by_key = backward_configs(64, torch.bfloat16, 80)
    forward = forward_config(64, torch.bfloat16, 80)
    segments = case.segments
    tables = {
        "fwd": (forward, segments.query_tiles(forward.block_q, "cpu")),
        "bwd_dq": (by_query, segments.query_tiles(by_query.block_q, "cpu")),
        "bwd_dkv": (by_key, segments.key_tiles(by_key.block_k, "cpu")),
    }
    for launch, (op, (config, table)) in zip(launches, tables.items(), strict=True):
        asked = requested_bytes(op, table, config, head_dim=64, heads=2, element=2, rotate=rotate)
        # a masked tile of a descriptor or pointer load asks for no row past the end
        assert launch.requested == asked, op


def test_traffic_needs_the_interpreter(monkeypatch):
    monkeypatch.setattr(strict, "INTERPRETED", False)
    with pytest.raises(MuditError, match="TRITON_INTERPRET=1"), count_traffic():
        pass


def test_a_peer_that_cannot_be_had_is_a_row_with_the_reason(monkeypatch):
    monkeypatch.setattr(peers_kernels, "available", lambda module: False)
    monkeypatch.delenv(peers_kernels.FLASH_ATTN, raising=False)
    jobs, missing = plan(
        arches=("sm_80",),
        ops=("attention", "norm"),
        head_dims=(64, 96),
        dtypes=("bf16",),
        peers=True,
    )
    assert {job.kind for job in jobs} == {"attention", "tutorial", "elementwise"}
    assert {(r["op"], r["variant"], r["head_dim"]) for r in missing} == {
        ("norm_fwd", "peer:liger", None), ("norm_bwd", "peer:liger", None),
        ("norm_fwd", "peer:flash-attn", None), ("attention_fwd", "peer:flash-attn", 64),
        ("attention_fwd", "peer:flash-attn", 96),
    }  # fmt: skip
    assert all("pip install" in r["skipped"] and "bytes_moved" not in r for r in missing)


def test_a_folder_without_flash_attn_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(peers_kernels.FLASH_ATTN, str(tmp_path))
    assert (
        peers_kernels._flash_missing()
        == f"{peers_kernels.FLASH_ATTN}={tmp_path} holds no flash_attn/flash_attn_triton.py"
    )


def test_the_plan_takes_only_what_was_asked_for():
    jobs, _ = plan(
        arches=("sm_80",),
        ops=("pack", "gelu"),
        head_dims=(96,),
        dtypes=("bf16", "fp32"),
        peers=False,
    )
    assert {job.name for job in jobs} == {"bias_gelu", "pack/96", "pack/96x2", "pack/96/joint"}
    assert len(jobs) == 4 * 2 * 2  # each compiled and counted in each dtype


def row(op, variant, *, arch="sm_80", overlap=1.0, serial=0.7, goal="dram", head_dim=None, **more):
    base = skipped(op=op, variant=variant, arch=arch, dtype="bf16", head_dim=head_dim, reason="")
    base |= {
        "ceiling_overlap": overlap, "ceiling_serial": serial, "ceiling_of": goal,
        "intensity": 700.0 if goal == "tensor" else 1.3, "flops": None, "bytes_minimum": None,
        "bytes_moved": None, "width": None, "grid": [1],
    }  # fmt: skip
    del base["skipped"]
    return base | more


def test_rows_meet_their_bytes_and_peers_their_work():
    attention_job, tutorial = (
        Job("attention", "attention", "sm_80", "bf16", 96),
        Job("tutorial", "tutorial", "sm_80", "bf16", 96),
    )
    gelu, count = (
        Job("elementwise", "bias_gelu", "sm_80", "bf16"),
        Job("elementwise", "bias_gelu", None, "bf16"),
    )
    ours = row(
        "attention_fwd",
        "bf16",
        goal="tensor",
        head_dim=96,
        flops=8.0,
        bytes_minimum=2.0,
        bytes_moved=5.0,
    )
    theirs = row("attention_fwd", "peer:tutorial", goal="tensor", head_dim=96, intensity=None)
    found = merge(
        [attention_job, tutorial, gelu, count],
        {
            attention_job: [ours],
            tutorial: [theirs],
            gelu: [row("bias_gelu_fwd", "bias_gelu")],
            count: [(110, 100)],
        },
    )
    assert [r["variant"] for r in found] == ["bf16", "bias_gelu", "peer:tutorial"]
    assert (found[1]["bytes_moved"], found[1]["bytes_minimum"]) == (110, 100)
    assert (found[2]["flops"], found[2]["bytes_minimum"], found[2]["bytes_moved"]) == (
        8.0,
        2.0,
        None,
    )


def test_the_second_pass_of_sums_is_listed_once():
    sums = [
        row("segment_sum", variant, width=width)
        for variant, width in (("a", 64), ("b", 64), ("b", 96))
    ]
    assert distinct([*sums, row("norm_fwd", "a"), row("norm_fwd", "b")]) == [
        sums[0],
        sums[2],
        row("norm_fwd", "a"),
        row("norm_fwd", "b"),
    ]


ROWS = [
    row("attention_fwd", "bf16", goal="tensor", head_dim=96, arch="sm_90"),
    row(
        "attention_fwd",
        "peer:tutorial",
        goal="tensor",
        head_dim=96,
        overlap=0.75,
        serial=0.5,
        arch="sm_90",
    ),
    row("norm_fwd", "residual_norm", arch="sm_90", ptxas_warnings=["<C7510>"]),
    skipped(
        op="attention_fwd",
        variant="peer:flash-attn",
        arch="sm_90",
        dtype="bf16",
        head_dim=96,
        reason="not <here>",
    ),
]
ENV = {
    "versions": {"torch": "2"},
    "commit": "abc",
    "cpu": "x",
    "gpus": [],
    "command": "mudit bench kernels",
}


def test_plots_are_pictures_with_something_on_them():
    for png in (roofline(ROWS), ceilings(ROWS)):
        pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
        assert (
            pixels.shape[0] > 100
            and pixels.shape[1] > 500
            and 0.001 < (pixels[..., :3].min(2) < 0.7).mean() < 0.2
        )
    assert roofline(ROWS[-1:]) is None and ceilings(ROWS[2:]) is None


def test_the_page_escapes_and_says_what_it_is():
    page = html(ROWS, [], ENV)
    assert "not &lt;here&gt;" in page and "&lt;C7510&gt;" in page and "<C7510>" not in page
    assert "Compiled, not measured" in page and "no GPU" in page and page.count("<img") == 2


def test_the_page_marks_what_was_interpreted():
    rows = [{"op": "norm_fwd", "variant": "", "measured": False, "note": None}]
    assert "Not measured" in html([], rows, ENV) and "<h2>Measured" not in html([], rows, ENV)
    assert "<h2>Measured" in html([], [rows[0] | {"measured": True}], ENV)
