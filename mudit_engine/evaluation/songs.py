"""What an evaluation knows of a song: where its audio is, what was asked for, what is sung; and the
edits that rows of tables are made of.

song = EvalSong(id="11-000001", audio=Path("mix.flac"), ...)
audio, rate = song.load()
shuffled(audio, rate), noise_like(audio)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mudit_engine.audio import load_audio
from mudit_engine.errors import InputError
from mudit_engine.metrics.ctc import SungSyllable

T = TypeVar("T")
USERS = ("professional", "amateur")
LEVELS = ("word", "phrase", "sentence")
PIECE_SECONDS = 0.1


class Track(Protocol):
    """Passes items through and shows how far they are."""

    def __call__(self, items: Sequence[T], text: str) -> Iterable[T]: ...


def silent_track(items: Sequence[T], text: str) -> Iterable[T]:
    """A Track that shows nothing."""
    return items


@dataclass(frozen=True)
class EvalSong:
    """A labelled song. `voice` is 'none' for an instrumental; `prompts` has a description a user
    type; `fragments` are their pieces.
    """

    id: str
    audio: Path
    held_out: bool
    seconds: float
    style: str
    bpm: float
    key: str  # "A minor"
    drums: bool
    voice: str
    language: str
    lyrics: str
    syllables: tuple[SungSyllable, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    fragments: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sung(self) -> bool:
        return self.voice != "none"

    def load(self) -> tuple[Tensor, int]:
        """Audio [channels, samples] and its rate."""
        return load_audio(self.audio)


LABELS: dict[str, Callable[[EvalSong], str | None]] = {
    "drums": lambda song: "on" if song.drums else "off",
    "vocals": lambda song: "on" if song.sung else "off",
    "voice": lambda song: song.voice if song.sung else None,
    "style": lambda song: song.style,
}
"""What the probes are asked; None leaves the song out."""


def parted(
    songs: Sequence[EvalSong], *, held_out: int, training: int
) -> tuple[list[EvalSong], list[EvalSong]]:
    """(held-out songs, training songs), at most so many of each, drawn evenly over the corpus.
    Raises InputError when too few are there.
    """
    test, train = (
        [song for song in songs if song.held_out],
        [song for song in songs if not song.held_out],
    )
    if len(test) < 4 or len(train) < 8:
        raise InputError(
            f"the corpus has {len(test)} held-out and {len(train)} training songs: at least 4 and "
            f"8 are needed, make more"
        )
    return evenly(test, held_out), evenly(train, training)


def evenly(songs: Sequence[T], count: int) -> list[T]:
    """`count` songs at most, drawn evenly, in their order."""
    count = min(count, len(songs))
    return [songs[i * len(songs) // count] for i in range(count)]


def shuffled(audio_cS: Tensor, sample_rate: int, *, seed: int = 0) -> Tensor:
    """The same sound in another order: pieces of 100 ms, permuted. Keeps timbre and loses
    everything that is music.
    """
    piece = round(PIECE_SECONDS * sample_rate)
    whole = audio_cS[:, : audio_cS.shape[1] // piece * piece].unflatten(1, (-1, piece))
    order = torch.randperm(whole.shape[1], generator=torch.Generator().manual_seed(seed))
    return whole[:, order].flatten(1)


def noise_like(audio_cS: Tensor, *, seed: int = 0) -> Tensor:
    """White noise as long and as loud."""
    noise = torch.randn(audio_cS.shape, generator=torch.Generator().manual_seed(seed))
    return noise * audio_cS.square().mean().sqrt()
