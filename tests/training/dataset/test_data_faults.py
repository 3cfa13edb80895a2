"""Whatever goes wrong between songs and shards, every song that is read back is its own, or is
named.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_faults import KINDS, Trial


@pytest.mark.parametrize("seed", range(2 * len(KINDS)))
def test_no_fault_shifts_a_song(seed: int, tmp_path: Path) -> None:
    Trial(seed, tmp_path / "trial").run()


@pytest.mark.slow
def test_hundreds_of_faults(tmp_path: Path) -> None:
    """420 faults of ten kinds; counts of what became of them are printed."""
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(1000, 1420):
        report = Trial(seed, tmp_path / str(seed)).run()
        outcome = next(
            (name for name in ("stopped", "bad", "refused") if report.get(name)), "all right"
        )
        counts[report["kind"], outcome] += 1
    print(dict(counts))
    assert sum(counts.values()) == 420 and {kind for kind, _ in counts} == set(KINDS)
