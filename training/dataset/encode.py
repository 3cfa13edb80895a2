"""Songs -> shards: audio for the VAE and ChinMu, latents with phonemes and description vectors for
the DiT. Resumable, in parts.

    encode_audio(open_source("corpus"), Path("data/tiny/audio"), sample_rate=22050, channels=1)
    encode_latents(open_source("corpus"), Path("data/tiny/latents"), model=Path("models/mine"))

Part i of n takes every n-th song and writes shards of its own number, so parts can run on as many
machines as there are (encode_ray.py runs them on a Ray cluster); the index is rebuilt at the end of
each, or once with index=False. A song that cannot be encoded is one refusal, named with its
reason; the others follow.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mudit_engine.errors import (
    GateError,
    InputError,
    MissingError,
    ModelError,
    MuditError,
    OutputError,
)
from mudit_engine.names import USER_TYPES
from mudit_engine.training.dataset.encoded_with import note_encoder
from mudit_engine.training.dataset.read_song import MAX_SECONDS, read_song
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import (
    LANGUAGES,
    LEVELS,
    audio_fields,
    song_fields,
)
from mudit_engine.training.dataset.sources import SourceDescription, SourceSong
from mudit_engine.training.dataset.told import labels_read
from mudit_engine.training.run_lock import RunLock

if TYPE_CHECKING:
    from torch import Tensor

    from mudit_engine.models.chinmu import ChinMu
    from mudit_engine.models.vae import SpectralVAE
    from mudit_engine.text.accounting import Fate
    from mudit_engine.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

TEXT_BATCH = 256
KNOWN_TEXTS = 1 << 16  # whose vectors are kept: 64 MiB
BROKEN_IN_A_ROW = 8


@dataclass
class Encoded:
    """What an encoding did. `refused` maps ids to reasons, `flagged` ids of songs that were encoded
    to what a person should look at; `unsung` counts letters of scripts that no model sings.
    """

    songs: int = 0
    skipped: int = 0
    seconds: float = 0.0
    with_lyrics: int = 0
    with_descriptions: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    flagged: dict[str, str] = field(default_factory=dict)
    unsung: dict[str, int] = field(default_factory=dict)

    def refuse(self, name: str, reason: str) -> None:
        """Takes down a song that is left out; names that are not UTF-8 are written escaped."""
        name, reason = (
            text.encode("utf-8", "backslashreplace").decode() for text in (name, reason)
        )
        self.refused[name] = reason
        log.warning("song '%s' is left out: %s", name, reason)

    def add(self, other: Encoded) -> None:
        """Joins what another part did."""
        self.songs += other.songs
        self.skipped += other.skipped
        self.seconds += other.seconds
        self.with_lyrics += other.with_lyrics
        self.with_descriptions += other.with_descriptions
        self.refused |= other.refused
        self.flagged |= other.flagged
        for script, letters in other.unsung.items():
            self.unsung[script] = self.unsung.get(script, 0) + letters


OnSong = Callable[[str, float], None]


@dataclass(frozen=True)
class Ready:
    """A song as it goes into a shard, and what is worth telling of it."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    seconds: float
    flags: tuple[str, ...] = ()
    unsung: Mapping[str, int] = field(default_factory=dict)


def encode_audio(
    songs: Iterable[SourceSong],
    out: Path,
    *,
    sample_rate: int,
    channels: int,
    part: tuple[int, int] = (0, 1),
    index: bool = True,
    max_seconds: float = MAX_SECONDS,
    leave_out: Mapping[str, str] | None = None,
    done: Encoded | None = None,
    on_song: OnSong = lambda song_id, seconds: None,
) -> Encoded:
    """Mixes as 16-bit samples, with descriptions in the metadata. Raises OutputError on a full
    disk; what is finished stays.

    leave_out: ids that are not encoded, with the reason; done: counts to go on from.
    """
    from mudit_engine.audio import to_int16

    def prepare(song: SourceSong) -> Ready:
        audio = _load(song.audio, sample_rate, channels, max_seconds)
        described = [
            {
                "language": d.language,
                "user": d.user,
                **{level: [f.text for f in d.fragments if f.level == level] for level in LEVELS},
            }
            for d in song.descriptions
        ]
        seconds = audio.shape[1] / sample_rate
        samples, clipped = to_int16(audio)
        metadata = {
            **song.metadata,
            "seconds": seconds,
            "sample_rate": sample_rate,
            "descriptions": described,
        }
        flags = (f"{clipped} samples are beyond full scale and were clipped",) if clipped else ()
        return Ready({"audio": samples}, metadata, seconds, flags)

    with (
        writer_lock(out, part),
        ShardWriter(out, audio_fields(channels=channels), writer=part[0], index=index) as writer,
    ):
        return encode_songs(
            songs, writer, prepare, part=part, leave_out=leave_out, done=done, on_song=on_song
        )


def encode_latents(
    songs: Iterable[SourceSong],
    out: Path,
    *,
    model: str | Path,
    stems: bool = True,
    descriptions: bool = True,
    part: tuple[int, int] = (0, 1),
    index: bool = True,
    device: str = "cpu",
    separate: str | None = None,
    transcribe: str | None = None,
    max_seconds: float = MAX_SECONDS,
    leave_out: Mapping[str, str] | None = None,
    done: Encoded | None = None,
    on_song: OnSong = lambda song_id, seconds: None,
) -> Encoded:
    """Normalised latents of mix and stems, phonemes (and their times where the source knows them),
    vectors of all description fragments.

    `model` is a name or folder with a trained VAE, and with a trained ChinMu unless `descriptions`
    is False (enough for pre-training). Songs without stems are separated by the demucs model
    `separate`, those without lyrics are heard by `transcribe` (transcribe.py). leave_out: ids that
    are not encoded, with the reason; done: counts to go on from.
    """
    from mudit_engine.models.folder import load_config, load_part, model_folder
    from mudit_engine.text.vocabulary import Vocabulary

    folder = model_folder(model)
    config = load_config(folder)
    vae = load_part("vae", config, folder, device=device)
    texts = (
        TextVectors(load_part("chinmu", config, folder, device=device)) if descriptions else None
    )
    vocabulary = Vocabulary.load(config.dit.vocabulary)
    transcriber = None
    if separate or transcribe:
        from mudit_engine.training.dataset.transcribe import Transcriber

        transcriber = Transcriber(separate if stems else None, transcribe, device=device)
    written = song_fields(
        latent_channels=config.vae.latent_channels, description_width=config.chinmu.embedding
    )
    rate, channels = config.vae.sample_rate, config.vae.channels

    def prepare(song: SourceSong) -> Ready:
        audio = _load(song.audio, rate, channels, max_seconds)
        parts = (
            {kind: _load(path, rate, channels, max_seconds) for kind, path in song.stems.items()}
            if stems
            else {}
        )
        if transcriber is not None:
            found = transcriber.transcribe(
                audio, rate, stems=not parts, lyrics=not song.lyrics.strip()
            )
            parts, song = (
                parts or found.stems,
                _with_transcript(song, found.lyrics, vocabulary, transcribe),
            )
        phonemes, sung, unsung, fates = _sung(song, vocabulary)
        arrays = {"latents": latents_of(vae, audio), **phonemes}
        flags = []
        for kind, part_cS in parts.items():
            arrays[f"stem.{kind}"] = latents_of(vae, part_cS)[: len(arrays["latents"])]
        if unsung:
            letters = ", ".join(f"{count} {script}" for script, count in unsung.items())
            flags.append(f"letters of its lyrics that cannot be sung: {letters}")
        if song.lyrics.strip() and unsung and not sung:
            flags.append("nothing of its lyrics can be sung")
        if texts is not None and song.descriptions:
            arrays |= texts.of(song.descriptions)
        seconds = audio.shape[1] / rate
        if seconds > config.max_seconds:
            flags.append(f"it lasts {seconds:.0f} s, the model was made for {config.max_seconds:g}")
        metadata = {**_labels(song), "seconds": seconds, "lyrics": song.lyrics}
        if fates:
            metadata["lyrics_accounting"] = [fate.row() for fate in fates]
        return Ready(arrays, metadata, seconds, tuple(flags), unsung)

    note_encoder(out, folder, parts=("vae", "chinmu") if descriptions else ("vae",))
    with (
        writer_lock(out, part),
        ShardWriter(out, written, writer=part[0], index=index) as writer,
    ):
        return encode_songs(
            songs, writer, prepare, part=part, leave_out=leave_out, done=done, on_song=on_song
        )


def _labels(song: SourceSong) -> dict[str, Any]:
    """A song's own labels; those that are read of its descriptions are named in "read"."""
    read = labels_read(one.text for one in song.descriptions)
    if "key" in song.metadata or "mode" in song.metadata:
        read = {name: value for name, value in read.items() if name not in ("key", "mode")}
    new = {name: value for name, value in read.items() if song.metadata.get(name) is None}
    return {**song.metadata, **new, **({"read": sorted(new)} if new else {})}


def writer_lock(out: Path, part: tuple[int, int]) -> RunLock:
    """Held while a part is written: two processes with one number would write the same shards."""
    return RunLock(out, f"writer-{part[0]:03d}.lock")


def encode_songs(
    songs: Iterable[SourceSong],
    writer: ShardWriter,
    prepare: Callable[[SourceSong], Ready],
    *,
    part: tuple[int, int],
    leave_out: Mapping[str, str] | None,
    done: Encoded | None,
    on_song: OnSong,
) -> Encoded:
    """Prepares the songs of a part one by one and hands them to the writer."""
    done = Encoded() if done is None else done
    broken = 0  # songs in a row that the model could not encode
    for song in _share(songs, part):
        if song.id in writer:
            done.skipped += 1
            continue
        if leave_out and song.id in leave_out:
            done.refuse(song.id, leave_out[song.id])
            continue
        try:
            ready = prepare(song)
            writer.add(song.id, ready.arrays, metadata=ready.metadata, split=song.split)
        except OutputError:
            raise
        except (MissingError, GateError):
            raise
        except (MuditError, OSError, RuntimeError, ValueError) as error:
            broken = broken + 1 if isinstance(error, ModelError) else 0
            if broken > BROKEN_IN_A_ROW:
                raise  # the model is at fault, not the songs
            done.refuse(song.id, str(error))
            continue
        broken = 0
        done.songs, done.seconds = done.songs + 1, done.seconds + ready.seconds
        done.with_lyrics += bool(song.lyrics.strip())
        done.with_descriptions += bool(song.descriptions)
        for script, letters in ready.unsung.items():
            done.unsung[script] = done.unsung.get(script, 0) + letters
        if ready.flags:
            done.flagged[song.id] = "; ".join(ready.flags)
            log.warning("song '%s': %s", song.id, done.flagged[song.id])
        on_song(song.id, ready.seconds)
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
        description, whether a request would use it.
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
                int(part.in_request),
            )
            for part, d, number in rows
        ]
        fragments = np.stack([known[part.text] for part, _, _ in rows])
        for text in list(itertools.islice(known, max(0, len(known) - KNOWN_TEXTS))):
            del known[text]
        return {"fragments": fragments, "fragment_kinds": np.array(kinds, np.uint8)}


def _with_transcript(
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
    return _sung(song, vocabulary)[0]


def _sung(
    song: SourceSong, vocabulary: Vocabulary
) -> tuple[dict[str, np.ndarray], int, dict[str, int], tuple[Fate, ...]]:
    """(phonemes and their times, syllables, letters that cannot be sung by script, what became of
    every character of the lyrics).
    """
    from mudit_engine.text.lyrics import raise_errors
    from mudit_engine.text.phonemes import examine_lyrics

    if not song.lyrics.strip():
        return {}, 0, {}, ()
    # lyrics in another language are flagged, not refused: the music is worth learning from
    read, errors = examine_lyrics(song.lyrics, vocabulary=vocabulary)
    raise_errors(errors)
    sequence = read.phonemes
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
    unsung = {script: count for script, count in sequence.unsung if script != "symbols"}
    return arrays, sequence.syllables, unsung, read.fates


def _load(path: Path, sample_rate: int, channels: int, max_seconds: float) -> Tensor:
    from mudit_engine.audio import resample, to_channels

    audio, rate = read_song(path, max_seconds=max_seconds)
    return to_channels(
        audio if rate == sample_rate else resample(audio, rate, sample_rate), channels
    )


def _share(songs: Iterable[SourceSong], part: tuple[int, int]) -> Iterator[SourceSong]:
    number, parts = part
    if not 0 <= number < parts:
        raise InputError(f"part {number} of {parts}: parts are counted from 0 to {parts - 1}")
    return itertools.islice(songs, number, None, parts)
