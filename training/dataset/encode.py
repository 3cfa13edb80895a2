"""Songs -> shards: audio for the VAE and ChinMu, latents with phonemes and description vectors for
the DiT. Resumable, in parts.

    encode_audio(open_source("corpus"), Path("data/tiny/audio"), sample_rate=22050, channels=1)
    encode_latents(open_source("corpus"), Path("data/tiny/latents"), model=Path("models/mine"))

Part i of n takes every n-th song and writes shards of its own number, so parts can run on as many
machines as there are (encode_ray.py runs them on a Ray cluster); the index is rebuilt at the end of
each, or once with index=False. Songs that cannot be encoded are left out and reported.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mudit_engine.errors import InputError, ModelError
from mudit_engine.training.dataset.shards import (
    LANGUAGES,
    LEVELS,
    USER_TYPES,
    ShardWriter,
    audio_fields,
    song_fields,
)
from mudit_engine.training.dataset.sources import SourceDescription, SourceSong

if TYPE_CHECKING:
    from torch import Tensor

    from mudit_engine.models.chinmu import ChinMu
    from mudit_engine.models.vae import SpectralVAE
    from mudit_engine.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

TEXT_BATCH = 256
KNOWN_TEXTS = 1 << 16  # whose vectors are kept: 64 MiB


@dataclass
class Encoded:
    """What an encoding did. `refused` maps ids to reasons."""

    songs: int = 0
    skipped: int = 0
    seconds: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)


OnSong = Callable[[str, float], None]


def encode_audio(
    songs: Iterable[SourceSong],
    out: Path,
    *,
    sample_rate: int,
    channels: int,
    part: tuple[int, int] = (0, 1),
    index: bool = True,
    on_song: OnSong = lambda song_id, seconds: None,
) -> Encoded:
    """Mixes as 16-bit samples, with descriptions in the metadata. Raises OutputError on a full
    disk; what is finished stays.
    """
    from mudit_engine.audio import to_int16

    done = Encoded()
    with ShardWriter(out, audio_fields(channels=channels), writer=part[0], index=index) as writer:
        for song in _share(songs, part):
            if song.id in writer:
                done.skipped += 1
                continue
            try:
                audio = _load(song.audio, sample_rate, channels)
            except InputError as error:
                _refuse(done, song, error)
                continue
            described = [
                {
                    "language": d.language,
                    "user": d.user,
                    **{
                        level: [f.text for f in d.fragments if f.level == level] for level in LEVELS
                    },
                }
                for d in song.descriptions
            ]
            seconds = audio.shape[1] / sample_rate
            metadata = {
                **song.metadata,
                "seconds": seconds,
                "sample_rate": sample_rate,
                "descriptions": described,
            }
            writer.add(song.id, {"audio": to_int16(audio)[0]}, metadata=metadata, split=song.split)
            done.songs, done.seconds = done.songs + 1, done.seconds + seconds
            on_song(song.id, seconds)
    return done


def encode_latents(
    songs: Iterable[SourceSong],
    out: Path,
    *,
    model: Path,
    stems: bool = True,
    descriptions: bool = True,
    part: tuple[int, int] = (0, 1),
    index: bool = True,
    device: str = "cpu",
    separate: str | None = None,
    transcribe: str | None = None,
    on_song: OnSong = lambda song_id, seconds: None,
) -> Encoded:
    """Normalised latents of mix and stems, phonemes (and their times where the source knows them),
    vectors of all description fragments.

    `model` is a folder with a trained VAE, and with a trained ChinMu unless `descriptions` is False
    (enough for pre-training). Songs without stems are separated by the demucs model `separate`,
    those without lyrics are heard by `transcribe` (listen.py).
    """
    from mudit_engine.config import load_config
    from mudit_engine.models.folder import load_part
    from mudit_engine.text.vocabulary import Vocabulary

    config = load_config(model)
    vae = load_part("vae", config, model, device=device)
    texts = TextVectors(load_part("chinmu", config, model, device=device)) if descriptions else None
    vocabulary = Vocabulary.load(config.dit.vocabulary)
    ears = None
    if separate or transcribe:
        from mudit_engine.training.dataset.transcribe import Ears

        ears = Ears(separate if stems else None, transcribe, device=device)
    done, written = (
        Encoded(),
        song_fields(
            latent_channels=config.vae.latent_channels, description_width=config.chinmu.embedding
        ),
    )
    rate, channels = config.vae.sample_rate, config.vae.channels
    with ShardWriter(out, written, writer=part[0], index=index) as writer:
        for song in _share(songs, part):
            if song.id in writer:
                done.skipped += 1
                continue
            try:
                audio = _load(song.audio, rate, channels)
                parts = (
                    {kind: _load(path, rate, channels) for kind, path in song.stems.items()}
                    if stems
                    else {}
                )
                if ears is not None:
                    heard = ears.hear(audio, rate, stems=not parts, lyrics=not song.lyrics.strip())
                    parts, song = (
                        parts or heard.stems,
                        _with_heard(song, heard.lyrics, vocabulary, transcribe),
                    )
                arrays = {"latents": latents_of(vae, audio), **_phonemes(song, vocabulary)}
                for kind, part_cS in parts.items():
                    arrays[f"stem.{kind}"] = latents_of(vae, part_cS)[: len(arrays["latents"])]
            except InputError as error:
                _refuse(done, song, error)
                continue
            if texts is not None and song.descriptions:
                arrays |= texts.of(song.descriptions)
            seconds = audio.shape[1] / rate
            writer.add(
                song.id,
                arrays,
                metadata={**song.metadata, "seconds": seconds, "lyrics": song.lyrics},
                split=song.split,
            )
            done.songs, done.seconds = done.songs + 1, done.seconds + seconds
            on_song(song.id, seconds)
    return done


def latents_of(vae: SpectralVAE, audio_cS: Tensor) -> np.ndarray:
    """fp16 [T, C]: the posterior mean, normalised. Raises ModelError when the VAE gives what fp16
    cannot hold.
    """
    import torch

    with torch.inference_mode():
        mean, _ = vae.encode(audio_cS[None].to(vae.latent_mean.device))
        latents: np.ndarray = vae.normalise(mean)[0].cpu().numpy().astype(np.float16)
    if not np.isfinite(latents).all():
        raise ModelError(
            "the VAE gives latents that are NaN or beyond 65504: train it further, or use an "
            "earlier checkpoint"
        )
    return latents


class TextVectors:
    """Vectors of description fragments; those of the texts that came last are kept, since songs
    share words and phrases.
    """

    def __init__(self, chinmu: ChinMu) -> None:
        self.chinmu = chinmu
        self.known: dict[str, np.ndarray] = {}

    def of(self, descriptions: Iterable[SourceDescription]) -> dict[str, np.ndarray]:
        """fragments [F, W] and fragment_kinds [F, 5]: level, language, user type, number of the
        description, asked.
        """
        import torch

        rows = [(part, d, number) for number, d in enumerate(descriptions) for part in d.fragments]
        known, texts = self.known, dict.fromkeys(part.text for part, _, _ in rows)
        missing = [text for text in texts if text not in known]
        with torch.inference_mode():
            for start in range(0, len(missing), TEXT_BATCH):
                chunk = missing[start : start + TEXT_BATCH]
                vectors = self.chinmu.encode_text(chunk).cpu().numpy().astype(np.float16)
                known |= dict(zip(chunk, vectors, strict=True))
        for text in texts:  # the last in use are the last to go
            known[text] = known.pop(text)
        kinds = [
            (
                LEVELS.index(part.level),
                LANGUAGES.index(d.language),
                USER_TYPES.index(d.user),
                number,
                int(part.asked),
            )
            for part, d, number in rows
        ]
        fragments = np.stack([known[part.text] for part, _, _ in rows])
        for text in list(itertools.islice(known, max(0, len(known) - KNOWN_TEXTS))):
            del known[text]
        return {"fragments": fragments, "fragment_kinds": np.array(kinds, np.uint8)}


def _with_heard(
    song: SourceSong, lyrics: str, vocabulary: Vocabulary, by: str | None
) -> SourceSong:
    """The song with lyrics that were heard in it. What has no phonemes (another language) leaves it
    without words.
    """
    if not lyrics:
        return song
    named = dataclasses.replace(
        song, lyrics=lyrics, metadata={**song.metadata, "lyrics_heard_by": by}
    )
    try:
        _phonemes(named, vocabulary)
    except InputError as error:
        log.warning("song '%s': what was heard is left out: %s", song.id, error)
        return song
    return named


def _phonemes(song: SourceSong, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    from mudit_engine.text.lyrics import parse_lyrics
    from mudit_engine.text.phonemes import phonemize

    if not song.lyrics.strip():
        return {}
    sequence = phonemize(parse_lyrics(song.lyrics), vocabulary=vocabulary)
    arrays: dict[str, np.ndarray] = {"phonemes": np.array(sequence.ids, np.int32)}
    if len(song.syllables) == sequence.syllables:
        # tokens that are not sung have no time: -1
        times = [
            song.syllables[number] if number >= 0 else (-1.0, -1.0)
            for number in sequence.syllable_of
        ]
        arrays["phoneme_times"] = np.array(times, np.float32).reshape(-1, 2)
    elif song.syllables:
        log.warning(
            "song '%s': %d sung syllables, %d in its lyrics; their times are left out",
            song.id,
            len(song.syllables),
            sequence.syllables,
        )
    return arrays


def _load(path: Path, sample_rate: int, channels: int) -> Tensor:
    from mudit_engine.audio import load_audio, resample, to_channels

    audio, rate = load_audio(path)
    return to_channels(
        audio if rate == sample_rate else resample(audio, rate, sample_rate), channels
    )


def _share(songs: Iterable[SourceSong], part: tuple[int, int]) -> Iterator[SourceSong]:
    number, parts = part
    if not 0 <= number < parts:
        raise InputError(f"part {number} of {parts}: parts are counted from 0 to {parts - 1}")
    return itertools.islice(songs, number, None, parts)


def _refuse(done: Encoded, song: SourceSong, error: InputError) -> None:
    done.refused[song.id] = str(error)
    log.warning("song '%s' is left out: %s", song.id, error)
