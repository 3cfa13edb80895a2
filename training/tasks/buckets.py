"""Micro-batches of few shapes: what is added to a pack so that its sizes are multiples of units.

    sizes = buckets.rounded(Sizes(songs=7, frames=15_900, fragments=31, lyrics=4_012, references=0))

Songs stay as they are, next to each other and without padding. Behind them come sequences that
count for nothing (*fillers*), which bring songs, frames, fragments, lyric tokens and reference
frames each up to a multiple of its unit, about the n-th part of what a full pack holds. Packs are
nearly full, so that few multiples occur: allocators, compilers and graph captures meet the same
sizes again and again.

    buckets = Buckets(8, pack_size=16384, frames=rows, lyrics=tokens, max_fragments=8, references=0)
    for filler in buckets.fillers(sizes): ...
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """Of a micro-batch, or of one sequence (songs=1)."""

    songs: int
    frames: int
    fragments: int
    lyrics: int
    references: int


class Buckets:
    """The units of a data set's packs.

    Args:
        count: parts that a full pack is divided into.
        pack_size: frames of a pack at most.
        frames: int [N], of the songs.
        lyrics: int [N], lyric tokens of the songs.
        max_fragments: of a sequence.
        references: whether songs may come with reference audio.
    """

    def __init__(
        self,
        count: int,
        *,
        pack_size: int,
        frames: np.ndarray,
        lyrics: np.ndarray,
        max_fragments: int,
        references: bool,
    ) -> None:
        self.max_fragments = max_fragments
        songs = -(-(pack_size / max(float(frames.mean()), 1.0) + 1) // count)
        tokens = pack_size * float(lyrics.sum()) / max(float(frames.sum()), 1.0)
        # fillers have a frame each, for which the last multiple has room beyond a full pack
        per_bucket = -(-(pack_size + 2 * songs) // count)
        self.unit = Sizes(
            songs=int(songs),
            frames=int(per_bucket),
            fragments=int(songs) * max_fragments,
            lyrics=int(-(-(tokens + 1) // count)),
            references=int(per_bucket) if references else 1,
        )

    def rounded(self, real: Sizes) -> Sizes:
        """What a micro-batch of these sizes becomes; larger in each of them."""
        fragments = _up(real.fragments + 1, self.unit.fragments)
        wanted = -(-(fragments - real.fragments) // self.max_fragments)
        songs = _up(real.songs + wanted, self.unit.songs)
        return Sizes(
            songs,
            _up(real.frames + songs - real.songs, self.unit.frames),
            fragments,
            _up(real.lyrics + 1, self.unit.lyrics),
            _up(real.references + 1, self.unit.references),
        )

    def fillers(self, real: Sizes) -> list[Sizes]:
        """The sequences that are added, the first with something of every kind."""
        whole = self.rounded(real)
        count = whole.songs - real.songs
        spare = whole.fragments - real.fragments
        found = []
        for _ in range(count):
            own = min(self.max_fragments, spare)
            spare -= own
            found.append(Sizes(1, 1, own, 0, 0))
        found[0] = Sizes(
            1,
            whole.frames - real.frames - count + 1,
            found[0].fragments,
            whole.lyrics - real.lyrics,
            whole.references - real.references,
        )
        return found


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
