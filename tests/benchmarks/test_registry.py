"""The registry of benchmarks: one list, one form of rows, gates before speeds, turns that favour
nobody.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from forked import forking
from mudit_engine.benchmarks import serving_rows, step_memory, step_peers, timing, waterfall
from mudit_engine.benchmarks.registry import BENCHMARKS, Options, Row, rows_of, run
from mudit_engine.benchmarks.timing import Times, interleave, quantile, ratio, turns
from mudit_engine.cli.main import run as mudit
from mudit_engine.errors import GateError
from mudit_engine.runtime.denoiser import Denoiser


@pytest.fixture(autouse=True)
def short_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "GEMM_SIZE", (64, 64, 64))


@pytest.fixture
def small_songs(monkeypatch: pytest.MonkeyPatch) -> None:
    songs = ((8, 4), (33, 9))
    for module in (step_peers, waterfall):
        monkeypatch.setattr(module, "mixed_songs", lambda size: songs)


def test_the_list_needs_no_torch() -> None:
    code = (
        "import sys; from mudit_engine.benchmarks.registry import BENCHMARKS as b; "
        "[e.document() for e in b.values()]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_list_names_every_part_of_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert mudit(["bench", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["name"] for row in rows] == list(BENCHMARKS)
    parts = {"kernels", "e2e", "runtimes", "train", "data", "decode", "memory", "cold-start"}
    assert parts | {"serve", "serve-load", "serve-soak"} <= set(BENCHMARKS)
    assert all(row["about"] and row["peers"] for row in rows)


def test_an_unknown_name_is_told_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert mudit(["bench", "run", "step", "stepp"]) == 2
    assert "no benchmark 'stepp': choose from step" in capsys.readouterr().err


def test_every_provider_leads_as_often() -> None:
    orders = list(turns(["a", "b", "c"], 6))
    assert [order[0] for order in orders] == ["a", "b", "c"] * 2
    assert list(turns(["a", "b"], 3, aba=True)) == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_ratios_hold_when_the_machine_slows_for_everyone() -> None:
    times = {"ours": Times([1.0, 10.0, 1.0], [1, 1, 1]), "peer": Times([2.0, 20.0, 2.0], [2, 2, 2])}
    assert ratio(times, "ours", "peer") == 2.0 and ratio(times, "peer", "ours") == 0.5
    (row, _) = rows_of("x", "y", times, reference="peer", roles={"ours": "ours"}, audio_seconds=4.0)
    assert (row.ratio, row.role, row.seconds_p50, row.real_time_factor) == (2.0, "ours", 1.0, 0.25)
    assert row.seconds_p90 == pytest.approx(8.2) and row.samples == [1.0, 10.0, 1.0]


def test_quantiles_are_numpys() -> None:
    import numpy as np

    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    for share in (0.0, 0.2, 0.5, 0.9, 0.99, 1.0):
        assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)))


def test_interleave_runs_each_once_a_round_and_warms_up() -> None:
    calls: list[str] = []
    found = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert all(len(times.walls) == len(times.cpus) == 2 for times in found.values())


def test_shares_of_the_yardstick_are_of_the_same_rounds() -> None:
    times = {"ours": Times([2.0, 4.0], [1.0, 1.0])}
    gemm = (Times([1.0, 2.0], [0.5, 0.5]), 100.0)
    (row,) = rows_of("x", "y", times, reference="ours", roles={}, flops={"ours": 150.0}, gemm=gemm)
    assert row.gemm_peak_fraction == pytest.approx(0.75)
    assert row.gemm_cpu_fraction == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["data", pytest.param("serve", marks=pytest.mark.slow)])
def test_rows_have_one_form(name: str) -> None:
    rows = run(name, Options(size="tiny", rounds=2))
    assert len(rows) >= 3 and {"ours"} <= {row.role for row in rows}
    keys = Row("", "", "", "").document().keys()
    for row in rows:
        document: dict[str, Any] = row.document()
        assert document.keys() == keys and json.dumps(document, allow_nan=False)
        assert row.seconds_p50 and row.ratio and row.rounds == 2
    assert [row.ratio for row in rows if row.provider == row.reference] == [1.0]


def test_the_waterfall_computes_one_step_on_every_rung(small_songs: None) -> None:
    rows = {row.provider: row for row in run("waterfall", Options(size="tiny", rounds=1))}
    assert list(rows) == ["padded", "ragged", "prepared", "fused", "bf16"]
    flops = [rows[name].flops for name in ("padded", "ragged", "prepared", "fused")]
    assert flops[0] > flops[1] > flops[2] == flops[3]  # type: ignore[operator]
    assert rows["fused"].figures["bytes_moved"] < rows["prepared"].figures["bytes_moved"]
    assert rows["ragged"].error < 1e-4 and rows["prepared"].error < 1e-4  # type: ignore[operator]


def test_a_rung_that_computes_something_else_stops_the_waterfall(
    small_songs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = waterfall.whole_batch

    def other(*args: Any) -> Any:
        batch = plain(*args)
        return type(batch)(**{**batch.__dict__, "times_B": batch.times_B + 0.1})

    monkeypatch.setattr(waterfall, "whole_batch", other)
    with pytest.raises(GateError, match="'ragged' differs"):
        run("waterfall", Options(size="tiny", rounds=1))


def test_no_speed_when_the_batch_is_wrong(
    small_songs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    update = Denoiser.update

    def wrong(self: Denoiser, states: Any, out: torch.Tensor, *rest: Any, **more: Any) -> None:
        update(self, states, out * (1.01 if len(states) > 1 else 1.0), *rest, **more)

    monkeypatch.setattr(Denoiser, "update", wrong)
    with pytest.raises(GateError, match="no speed is reported"):
        run("step", Options(size="tiny", rounds=1, peers=False))


def test_out_is_a_document(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert (
        mudit(["bench", "run", "data", "--size", "tiny", "--rounds", "1", "--out", str(out)]) == 0
    )
    document = json.loads(out.read_text())
    assert document["env"]["versions"]["torch"] and document["results"][0]["benchmark"] == "data"
    assert "mudit shards" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "decode", "train", "stages", "cold-start"])
def test_peers_run(name: str) -> None:
    pytest.importorskip("diffusers")
    rows = run(name, Options(size="tiny", rounds=1, seconds=2.0))
    assert {"ours", "peer"} == {row.role for row in rows}


def test_a_load_gives_rows_of_every_way() -> None:
    waits = {"p50": 2.0, "p90": 3.0, "p95": 3.5, "p99": 4.0}
    found = [
        {
            "rate": 0.8,
            "way": way,
            "song_seconds_per_second": 3.0,
            "cpu_seconds": 10.0 * slower,
            "all": {"songs": 4, "to_song": {q: slower * one for q, one in waits.items()}},
            "short": {"to_song": waits, "to_first_audio": waits},
        }
        for way, slower in (("continuous", 1), ("one-at-a-time", 3))
    ]
    ours, alone = (serving_rows.load_row(one, found) for one in found)
    assert (ours.role, ours.ratio, ours.cpu_ratio) == ("ours", 3.0, 3.0)
    assert (ours.seconds_p50, ours.seconds_p90, ours.seconds_p99) == (2.0, 3.0, 4.0)
    assert (alone.role, alone.ratio, alone.seconds_p99) == ("peer", 1.0, 12.0)
    json.dumps(ours.document())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["serve-load", "serve-soak"])
def test_the_service_is_measured(name: str) -> None:
    rows = run(name, Options(size="tiny", rounds=30 if name == "serve-soak" else 4))
    assert rows and all(row.benchmark == name and row.seconds_p99 is not None for row in rows)


def test_memory_is_each_providers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks hold the weights and what a step holds; at a few rows the two are near each other."""
    monkeypatch.setattr(step_memory, "multiprocessing", forking())
    rows = {row.provider: row for row in run("memory", Options(size="tiny"))}
    ours, peer = rows["mudit"], rows["diffusers StableAudioDiT"]
    assert ours.error is not None and ours.error < 1e-4
    for row in rows.values():
        figures = row.figures
        assert row.memory_bytes == figures["weight_bytes"] + figures["work_bytes"]
        assert 0 < figures["work_bytes"] < 1 << 30
    assert ours.figures["weight_bytes"] > 20 << 20  # tiny: about 6 M parameters in fp32
    assert peer.figures["peak_of_reference"] == peer.figures["work_of_reference"] == 1.0
