"""The end-to-end benchmark: its FLOP count, its gate, its figures."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mudit_engine.benchmarks import end_to_end, workloads
from mudit_engine.benchmarks.workloads import Workload, step_flops
from mudit_engine.config import load_config
from mudit_engine.errors import GateError, InputError
from mudit_engine.runtime.denoiser import Denoiser

SMALL = Workload("tiny", ((20, 5), (33, 9)), True, "two short songs")


def test_flops_equal_torchs_own_count() -> None:
    denoiser = Denoiser(end_to_end.make_network("tiny"))
    states = end_to_end.make_states(denoiser, SMALL, steps=2)
    # the counter does not know the CPU's fused attention, but it does know the products it is made
    # of
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoiser.step(states)
    assert (
        step_flops(load_config("tiny").dit, SMALL.songs, guidance=True) == counter.get_total_flops()
    )


def test_rows_hold_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setitem(workloads.WORKLOADS, "small", SMALL)
    (row,) = end_to_end.run(["small"], rounds=2)
    assert row.workload == "small" and row.rounds == 2 and row.threads == torch.get_num_threads()
    assert 0 < row.seconds_p20 <= row.seconds_p50 <= row.seconds_p80
    assert row.gemm_peak_fraction == pytest.approx(
        row.tflop * 1e3 / row.seconds_p50 / row.gemm_peak_gflops
    )
    assert row.peer_seconds_p50 > 0 and row.ratio_to_peer > 0 and row.peak_memory_mib > 100


def test_no_speed_is_reported_when_the_batch_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Denoiser.update

    def wrong(self: Denoiser, states: list, out: torch.Tensor, spans: object) -> None:
        update(self, states, out * (1.01 if len(states) > 1 else 1.0), spans)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "update", wrong)
    monkeypatch.setitem(workloads.WORKLOADS, "small", SMALL)
    monkeypatch.setattr(end_to_end, "StableAudioPeer", lambda config: None)
    with pytest.raises(GateError, match="no speed is reported"):
        end_to_end.run(["small"], rounds=1)


def test_unknown_workload_is_named() -> None:
    with pytest.raises(InputError, match="published-1536"):
        end_to_end.run(["published"])
