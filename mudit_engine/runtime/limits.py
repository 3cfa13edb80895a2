"""What of a song may be more than a runtime takes, known before any network runs.

    if isinstance(runtime, Limited):
        runtime.check(SongShape.of(song))      # InputError for a song that it cannot make

PyTorch takes every song of its model; graphs and engines have limits, and know no edits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mudit_engine.errors import InputError
from mudit_engine.names import EDITS_NEED_TORCH

if TYPE_CHECKING:
    from mudit_engine.runtime.denoiser import SongInputs


@dataclass(frozen=True)
class SongShape:
    """What of a song may be more than a runtime takes, known before any network runs.

    Args:
        frames: latent frames.
        tokens: of the lyrics.
        reference: frames of reference audio.
        rows: of its sampler's table.
        edited: whether frames of another song stay in it.
    """

    frames: int
    tokens: int
    reference: int
    rows: int
    edited: bool

    @classmethod
    def of(cls, song: SongInputs) -> SongShape:
        """The shape of a song whose text was encoded."""
        reference = 0 if song.reference is None else len(song.reference)
        rows = len(song.table.times)
        return cls(song.frames, len(song.lyric_ids), reference, rows, song.given is not None)


@runtime_checkable
class Limited(Protocol):
    """A runtime that cannot make every song of its model: `check` raises InputError for those, as
    `prepare` does.
    """

    def check(self, shape: SongShape) -> None: ...


def refuse_edit(shape: SongShape) -> None:
    """Raises InputError for an edited song, of a runtime whose graphs know no frames that stay."""
    if shape.edited:
        raise InputError(EDITS_NEED_TORCH)
