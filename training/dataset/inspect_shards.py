"""What a data set holds, and what is wrong with it: counts, hours, lengths, lyric density, damaged
shards, unusable songs.

report = inspect(Shards("data/tiny/latents"), verify=True)
draw(report, Path("latents.png"))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mudit_engine.files import atomic_path
from mudit_engine.training.dataset.shards import SPLITS, Shards

# phonemes a second: more cannot be sung (two phonemes a syllable, four syllables a second)
FASTEST = 8.0


@dataclass
class Report:
    """Lengths are rows of `unit` ('latents' or 'audio'). `bad` maps song ids to what is wrong."""

    songs: int
    splits: dict[str, int]
    unit: str
    hours: float
    percentiles: dict[str, float]
    rows: dict[str, int]
    bytes: int
    damaged: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    seconds: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    density: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)


def inspect(shards: Shards, *, verify: bool = False) -> Report:
    """Reads every song's metadata, and with `verify` every byte. Bad songs are empty, silent, or
    sung faster than anyone can.
    """
    unit = "latents" if "latents" in shards.fields else next(iter(shards.fields))
    lengths = np.asarray(shards.rows(unit))
    seconds, density, bad = np.zeros(len(shards)), np.zeros(len(shards)), {}
    for number in range(len(shards)):
        record = shards.read(number)
        try:
            seconds[number] = float(record.metadata.get("seconds", 0.0))
        except (ValueError, TypeError, AttributeError) as error:
            bad[record.id] = f"its metadata cannot be read ({error})"
            continue
        phonemes = len(record["phonemes"]) if "phonemes" in shards.fields else 0
        density[number] = phonemes / seconds[number] if seconds[number] else 0.0
        if not lengths[number]:
            bad[record.id] = f"it has no {unit}"
        elif not seconds[number]:
            bad[record.id] = "its metadata has no seconds"
        elif verify and float(np.abs(record[unit].astype(np.float32)).max()) == 0:
            bad[record.id] = f"its {unit} are all zero"
        elif density[number] > FASTEST:
            bad[record.id] = (
                f"{density[number]:.1f} phonemes a second: its lyrics do not belong to it, or only "
                f"a part of it was encoded"
            )
    if verify:
        bad |= {song_id: fault for song_id, fault in shards.verify_songs() if fault is not None}
    return Report(
        songs=len(shards),
        splits={split: len(shards.numbers(split)) for split in SPLITS},
        unit=unit,
        hours=round(float(seconds.sum()) / 3600, 3),
        percentiles={
            f"p{p}": round(float(np.percentile(seconds, p)), 2) for p in (0, 10, 50, 90, 100)
        },
        rows={name: int(shards.rows(name).sum()) for name in shards.fields},
        bytes=sum(size for _, size, _ in shards.files),
        damaged=[name for name, good in shards.verify() if not good] if verify else [],
        bad=bad,
        seconds=seconds,
        density=density,
    )


def draw(report: Report, path: Path) -> None:
    """A picture of the lengths, and of how dense the lyrics are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    left.hist(report.seconds, bins=40, color="C0")
    left.set(xlabel="seconds", ylabel="songs", title=f"{report.songs} songs, {report.hours:.2f} h")
    sung = report.density[report.density > 0]
    if len(sung):
        right.hist(sung, bins=40, color="C1")
        right.axvline(FASTEST, color="0.5", linestyle="--", label="faster cannot be sung")
        right.legend()
    right.set(xlabel="phonemes a second", title=f"{len(sung)} songs with lyric tokens")
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=110)
    plt.close(figure)
