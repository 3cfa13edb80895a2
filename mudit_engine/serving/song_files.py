"""A song's audio on its way out: written piece by piece beside its job, streamed as WAV while it is
decoded, brought to one loudness when it is whole, converted when somebody asks for another form.

    writer = SongWriter(folder, rate=22050, channels=1)
    writer.write(piece_cS); writer.finish(loudness=-16.0)  # folder/song.wav, whole or not at all
    wav_header(rate=22050, channels=1, samples=220500)     # 44 bytes: PCM follows
    converted(folder / "song.wav", "mp3")                  # folder/song.mp3

Until it is whole a song is kept as float32, so that peaks beyond full scale are turned down and not
cut off.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mudit_engine.audio import load_audio, save_audio, to_int16
from mudit_engine.files import atomic_path
from mudit_engine.loudness import Mastering, mastered

MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
}
SONG, PART = "song.wav", ".song.wav.part"
HEADER = 44  # bytes
INT16, FLOAT32 = 1, 3  # of WAV's kinds of samples


def wav_header(*, rate: int, channels: int, samples: int, kind: int = INT16) -> bytes:
    """The 44 bytes before this many samples a channel, of 16-bit PCM or float32."""
    width = 2 if kind == INT16 else 4
    size = samples * channels * width
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + size,
        b"WAVE",
        b"fmt ",
        16,
        kind,
        channels,
        rate,
        rate * channels * width,
        channels * width,
        8 * width,
        b"data",
        size,
    )


def pcm(piece_cS: Tensor) -> bytes:
    """16-bit little-endian PCM, channels interleaved, cut off at full scale."""
    return to_int16(piece_cS)[0].astype("<i2", copy=False).tobytes()


def floats(piece_cS: Tensor) -> bytes:
    """Little-endian float32, channels interleaved."""
    return piece_cS.float().T.contiguous().numpy().astype("<f4", copy=False).tobytes()


def unpacked(data: bytes, channels: int) -> Tensor:
    """Audio [channels, samples] of what `floats` made."""
    samples = np.frombuffer(data, "<f4").astype(np.float32)
    return torch.from_numpy(samples.reshape(-1, channels).T)


class SongWriter:
    """song.wav of a job while it is decoded: a part file until it is whole."""

    def __init__(self, folder: Path, *, rate: int, channels: int) -> None:
        self.folder, self.rate, self.channels, self.samples = folder, rate, channels, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / PART).open("wb")
        header = wav_header(rate=rate, channels=channels, samples=0, kind=FLOAT32)
        self._file.write(header)

    def write(self, piece_cS: Tensor) -> None:
        """Appends a piece of audio, as it was decoded."""
        self._file.write(floats(piece_cS))
        self._file.flush()
        self.samples += piece_cS.shape[1]

    def finish(self, *, loudness: float | None) -> Mastering | None:
        """Makes song.wav, on the disk, of all pieces: at this loudness (LUFS), or None as they are.
        Returns what was done to the level; None where nothing was.
        """
        self._file.close()
        part = self.folder / PART
        audio_cS, done = unpacked(part.read_bytes()[HEADER:], self.channels), None
        if loudness is not None:
            audio_cS, done = mastered(audio_cS, self.rate, target=loudness)
        with atomic_path(self.folder / SONG) as aside:
            header = wav_header(rate=self.rate, channels=self.channels, samples=self.samples)
            aside.write_bytes(header + pcm(audio_cS))
        part.unlink()
        return done

    def drop(self) -> None:
        """Leaves nothing behind."""
        self._file.close()
        for name in (PART, SONG):
            with suppress(FileNotFoundError):
                (self.folder / name).unlink()


def part_of(folder: Path) -> bytes | None:
    """A WAV of what is decoded so far, or None where nothing is."""
    try:
        data = (folder / PART).read_bytes()
    except FileNotFoundError:
        return None
    if len(data) <= HEADER:
        return None
    channels, rate = struct.unpack("<HI", data[22:28])
    samples = (len(data) - HEADER) // (4 * channels)
    audio_cS = unpacked(data[HEADER : HEADER + samples * 4 * channels], channels)
    return wav_header(rate=rate, channels=channels, samples=samples) + pcm(audio_cS)


def converted(wav: Path, kind: str) -> Path:
    """The song in another form, made once. Raises InputError for a form that has not its rate."""
    path = wav.with_suffix(f".{kind}")
    if kind != "wav" and not path.is_file():
        audio, rate = load_audio(wav)
        save_audio(path, audio, rate)
    return path
