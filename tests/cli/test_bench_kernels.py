"""`mudit bench kernels`: without a GPU it says what works, compiles for any GPU, or interprets; no
speed that was not measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mudit_engine.benchmarks import measure_kernels
from mudit_engine.benchmarks.measure_kernels_cases import EAGER, OURS, TINY, Case, cases
from mudit_engine.cli.main import run
from mudit_engine.profiling import strict

STATIC_KEYS = {
    "op", "variant", "head_dim", "dtype", "arch", "machine", "registers", "spill_bytes",
    "loop_local_accesses", "shared_bytes", "blocks_per_sm", "mma_instructions", "mma_useful_ratio",
    "loop_counts", "ceiling_overlap", "ceiling_serial", "bytes_moved", "bytes_minimum",
    "access_bytes", "ptxas_warnings",
}  # fmt: skip
SPEEDS = (
    "ms_p50",
    "ms_p20",
    "ms_p80",
    "tflops",
    "gemm_peak_fraction",
    "gigabytes_per_second",
    "copy_peak_fraction",
    "speedup_of_ours",
)

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
interpreted = pytest.mark.skipif(not strict.INTERPRETED, reason="the interpreter is off")


def results(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)["results"]


@no_gpu
def test_without_a_gpu_it_names_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "kernels"]) == 3
    said = capsys.readouterr().err
    assert all(part in said for part in ("CUDA device", "make gpu", "--static", "--interpret"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--static", "--arch", "sm_70"], "arch 'sm_70' is not known: choose from sm_80"),
        (["--static", "--ops", "atention"], "op 'atention' is not known: choose from attention"),
        (
            ["--static", "--head-dims", "80"],
            "head width '80' is not known: choose from 64, 96, 128",
        ),
        (["--static", "--head-dims", "wide"], "'wide' is no list of integers"),
        (["--static", "--dtypes", "int8"], "dtype 'int8' is not known"),
        (["--interpret", "--ops", "atention"], "op 'atention' is not known"),
        (["--static", "--arch", ","], "',' names nothing"),
        (["--static", "--interpret"], "pass one of them"),
    ],
    ids=["arch", "op", "head", "integer", "dtype", "op_measured", "nothing", "both"],
)
def test_refuses_what_it_does_not_know(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "kernels", *arguments]) == 2
    assert says in capsys.readouterr().err


def hold_static(row: dict[str, Any]) -> None:
    assert row.keys() >= STATIC_KEYS and row["machine"] == "H100" and row["registers"] > 0
    assert (
        row["bytes_moved"] >= row["bytes_minimum"]
        and 0.3 < row["ceiling_serial"] < row["ceiling_overlap"] <= 1.0
    )


def test_compiles_for_a_gpu_that_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "kernels.html"
    assert (
        run(
            [
                "bench",
                "kernels",
                "--static",
                "--arch",
                "sm_90",
                "--ops",
                "guided_step",
                "--json",
                "--html",
                str(page),
            ]
        )
        == 0
    )
    (row,) = results(capsys)
    assert row["op"] == "guided_step"
    hold_static(row)
    text = page.read_text()
    # no attention, no plot of its peers
    assert text.count("data:image/png;base64,") == 1 and "not speeds" in text
    assert "http" not in text and "<script" not in text and "<link" not in text
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_peers_stand_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "bench",
                "kernels",
                "--static",
                "--arch",
                "sm_90",
                "--ops",
                "attention,norm,gelu",
                "--head-dims",
                "96",
                "--json",
            ]
        )
        == 0
    )
    rows = results(capsys)
    ours, found = (
        {(r["op"], r["head_dim"]) for r in rows if r["variant"].startswith("peer:") == peer}
        for peer in (False, True)
    )
    assert found <= ours and {op for op, _ in found} >= {
        "attention_fwd",
        "attention_bwd_dkv",
        "norm_bwd",
        "bias_gelu_fwd",
    }
    for row in rows:
        if "skipped" in row:
            assert "flash-attn" in row["variant"] and (
                "not installed" in row["skipped"] or "does not compile" in row["skipped"]
            )
        elif not row["op"].startswith("attention"):
            hold_static(row)


@interpreted
def test_interpreted_rows_carry_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "bench",
                "kernels",
                "--interpret",
                "--ops",
                "gelu,guided_step,pack",
                "--head-dims",
                "64",
                "--json",
            ]
        )
        == 0
    )
    rows = results(capsys)
    assert {
        "bias_gelu_fwd",
        "bias_gelu_bwd",
        "guided_step_fwd",
        "pack_qkv_fwd",
        "pack_qkv_bwd",
    } <= {r["op"] for r in rows}
    for row in rows:
        assert row["measured"] is False and all(row[figure] is None for figure in SPEEDS)
        assert row["note"] or 0 < row["error"] <= 2 * row["error_eager"] + 1e-3
    assert any(
        row["provider"] == "torch.compile" and "nothing is timed" in row["note"] for row in rows
    )


def small_case() -> Case:
    return next(cases(TINY, ops=("gelu",), head_dims=(), dtype=torch.float32, device="cpu"))


def measured(case: Case) -> list[dict[str, Any]]:
    return measure_kernels.measure(case, "fp32", peers=True, rounds=3, peak=None)


@interpreted
def test_wrong_results_of_ours_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(size: Any, **options: Any) -> list[Case]:
        case = small_case()
        right = case.providers[OURS]
        case.providers[OURS] = lambda *x: (right(*x)[0] * 1.001,)
        return [case]

    monkeypatch.setattr(measure_kernels, "cases", broken)
    assert run(["bench", "kernels", "--interpret", "--json"]) == 4
    assert "no time is given" in json.loads(capsys.readouterr().out)["error"]["message"]


@interpreted
def test_a_peer_that_is_wrong_or_fails_gets_a_note() -> None:
    case = small_case()
    right = case.providers[EAGER]

    def fails(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError("no such kernel")

    def undefined(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (right(*x)[0] * float("nan"),)

    case.providers |= {
        "crooked": lambda *x: (right(*x)[0] * 1.01,),
        "undefined": undefined,
        "failing": fails,
    }
    rows = measured(case)
    notes = {
        name: [r["note"] for r in rows if r["provider"] == name]
        for name in ("crooked", "undefined", "failing", OURS)
    }
    assert all("no time is given" in note for note in notes["crooked"] + notes["undefined"])
    assert notes["failing"] == ["NotImplementedError: no such kernel"] and notes[OURS] == [
        None,
        None,
    ]


@interpreted
def test_times_become_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says 2 ms for ours and 3 ms for everyone else."""

    def clock(
        calls: dict[Any, Any], *, rounds: int
    ) -> tuple[dict[Any, list[float]], dict[Any, int]]:
        for call in calls.values():
            call()
        return {key: [2.0 if key[1] == OURS else 3.0] * rounds for key in calls}, dict.fromkeys(
            calls, 7
        )

    monkeypatch.setattr(measure_kernels, "timed", clock)
    case = small_case()
    case.providers.pop("torch.compile")
    rows = measure_kernels.measure(
        case, "fp32", peers=True, rounds=3, peak={"tflops": 100.0, "gigabytes": 1000.0}
    )
    assert [(r["op"], r["provider"], r["ms_p50"], r["speedup_of_ours"]) for r in rows] == [
        ("bias_gelu_fwd", OURS, 2.0, 1.0),
        ("bias_gelu_fwd", EAGER, 3.0, 1.5),
        ("bias_gelu_bwd", OURS, 2.0, 1.0),
        ("bias_gelu_bwd", EAGER, 3.0, 1.5),
    ]
    rows_bytes = 4 * 58 * 4 * 384
    assert rows[0]["gigabytes_per_second"] == pytest.approx(
        (2 * rows_bytes + 4 * 4 * 384) / 2e-3 / 1e9
    )
    assert rows[0]["copy_peak_fraction"] == pytest.approx(rows[0]["gigabytes_per_second"] / 1000)
    attention = Case("attention", 64, 1, [], {}, flops=4e9)
    forward = measure_kernels.speeds(attention, "attention_fwd", [1.0], [1.0], {"tflops": 8.0})
    backward = measure_kernels.speeds(attention, "attention_bwd", [1.0], [1.0], {"tflops": 8.0})
    assert (
        forward["tflops"] == 4.0
        and backward["tflops"] == 10.0
        and forward["gemm_peak_fraction"] == 0.5
    )
