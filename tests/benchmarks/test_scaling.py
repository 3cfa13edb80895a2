"""The scale page: the law is found again, counts follow it exactly, and the page says so."""

from __future__ import annotations

from typing import Any

import pytest

from mudit_engine.benchmarks import scaling
from mudit_engine.benchmarks.end_to_end import make_network
from mudit_engine.benchmarks.registry import Options
from mudit_engine.benchmarks.scaling import by_model, fit, scale, worst_miss
from mudit_engine.benchmarks.scaling_page import html, in_words, law_of
from mudit_engine.benchmarks.workloads import network_config
from mudit_engine.config import DitConfig
from mudit_engine.runtime.denoiser import Denoiser

SMALL = DitConfig(width=64, blocks=1, heads=1, lyric_width=64, lyric_blocks=1)


def test_a_law_is_found_again() -> None:
    lengths = [100, 300, 1000, 3000, 6000]
    law = [5.0, 0.25, 3e-5]
    values = [law_of(law)(t) for t in lengths]
    assert fit(lengths, values, power=2) == pytest.approx(law, rel=1e-6)
    assert worst_miss(lengths, values, law) == pytest.approx(0, abs=1e-12)


def test_no_coefficient_is_negative() -> None:
    lengths = [100, 200, 400, 800]
    found = fit(lengths, [0.9 * t - 20 + 0.0001 * t * t for t in lengths], power=2)
    assert min(found) >= 0 and found[1] > 0


def test_memory_of_a_step_is_linear_in_the_song() -> None:
    denoiser = Denoiser(make_network(SMALL))
    lengths = (200, 400, 800, 1600)
    peaks = [scaling.counted_peak(denoiser, [(t, 40)]) for t in lengths]
    law = fit(lengths, peaks, power=1)
    assert worst_miss(lengths, peaks, law) < 0.02
    # and the square, were anything of it kept, would be seen
    square = fit(lengths, [p + 4 * t * t for p, t in zip(peaks, lengths, strict=True)], power=1)
    assert square != pytest.approx(law, rel=0.1)


def test_presets_grow_as_their_parameters() -> None:
    rows = {row["preset"]: row for row in by_model(Options())}
    assert rows["musit-3b"]["parameters"] == pytest.approx(3.2e9, rel=0.02)
    ratio = rows["musit-3b"]["tflop_30s"] / rows["musit-380m"]["tflop_30s"]
    assert 7 < ratio < 9
    # attention's share falls with the width and grows with the length
    shares = [rows["musit-380m"][f"attention_share_{s}s"] for s in (30, 120, 260)]
    assert shares == sorted(shares) and shares[2] == pytest.approx(0.24, abs=0.03)


def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "network_config", lambda size: SMALL)
    monkeypatch.setattr(scaling, "SECONDS", (5, 10, 20))
    monkeypatch.setattr(scaling, "BATCHES", (1, 2))
    monkeypatch.setattr(scaling, "PRESETS", ("tiny",))
    document: dict[str, Any] = scale(Options(size="tiny", rounds=1, seconds=10))
    rows = document["length"]["rows"]
    assert [("cpu_seconds_least" in row) for row in rows] == [True, True, False]
    assert document["length"]["worst_miss"]["flops"] < 0.05
    page = html(document)
    assert page.count("<svg") == 4 and "http://" not in page and page.count("<script") == 1
    assert "T^2" in in_words("x", document["length"]["laws"]["flops"], "FLOP")


def test_small_and_tiny_are_what_they_say() -> None:
    assert network_config("tiny").width < network_config("small").width < 1536
