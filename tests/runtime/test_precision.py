"""The precision of a processor: measured once, kept, and taken only where it pays."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mudit_engine.runtime import precision
from mudit_engine.runtime.precision import Finding, auto_dtype, measure, measured


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured.cache_clear()
    yield
    measured.cache_clear()


def kept(tmp_path: Path) -> dict[str, dict[str, float]]:
    return json.loads((tmp_path / "mudit-engine/precision.json").read_text())


@pytest.mark.parametrize(
    ("bf16", "dtype"),
    [(2.0, torch.bfloat16), (1.31, torch.bfloat16), (1.29, torch.float32), (0.02, torch.float32)],
)
def test_bf16_only_where_it_pays(bf16: float, dtype: torch.dtype) -> None:
    assert Finding(100.0, 100.0 * bf16).dtype == dtype


def test_measured_once_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def once() -> Finding:
        calls.append(1)
        return Finding(100.0, 230.0)

    monkeypatch.setattr(precision, "measure", once)
    assert auto_dtype() == auto_dtype() == torch.bfloat16
    measured.cache_clear()  # another process
    assert auto_dtype() == torch.bfloat16 and len(calls) == 1
    assert list(kept(tmp_path).values()) == [{"fp32_gflops": 100.0, "bf16_gflops": 230.0}]


def test_another_torch_or_other_threads_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "measure", lambda: Finding(1.0, 2.0))
    measured()
    measured.cache_clear()
    monkeypatch.setattr(torch, "__version__", "9.9")
    measured()
    measured.cache_clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 61)
    measured()
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"fp32_gflops": "x"}}'])
def test_a_broken_cache_is_made_again(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mudit-engine").mkdir()
    (tmp_path / "mudit-engine/precision.json").write_text(text)
    monkeypatch.setattr(precision, "measure", lambda: Finding(1.0, 2.0))
    assert auto_dtype() == torch.bfloat16 and len(kept(tmp_path)) == 1


def test_a_home_that_cannot_be_written_only_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mudit-engine").write_text("a file where a folder should be")
    monkeypatch.setattr(precision, "measure", lambda: Finding(1.0, 0.5))
    assert auto_dtype() == torch.float32


def test_a_measurement_ends_in_time() -> None:
    measure()  # warm
    start = time.process_time()
    found = measure()
    # one turn of products may begin just before the time is up
    assert time.process_time() - start < 4 * precision.SECONDS * torch.get_num_threads() + 2
    assert found.fp32_gflops > 0 and found.bf16_gflops > 0


def test_emulated_bf16_is_seen_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def rates(shape: tuple[int, int, int], **options: object) -> Finding:
        shapes.append(shape)
        return Finding(100.0, 2.0)

    monkeypatch.setattr(precision, "_rates", rates)
    assert measure().dtype == torch.float32 and shapes == [precision.PROBE]
