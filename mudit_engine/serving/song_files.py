"""A song's audio on its way out: written piece by piece beside its job, streamed as WAV while it is
decoded, converted when somebody asks for another form.

    writer = SongWriter(folder, rate=22050, channels=1)
    writer.write(piece_cS); writer.finish()  # folder/song.wav, whole or not at all
    wav_header(rate=22050, channels=1, samples=220500)         # 44 bytes: PCM follows
    converted(folder / "song.wav", "mp3")                      # folder/song.mp3
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mudit_engine.audio import load_audio, save_audio, to_int16

MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
}
SONG, PART = "song.wav", ".song.wav.part"


def wav_header(*, rate: int, channels: int, samples: int) -> bytes:
    """The 44 bytes before 16-bit PCM of this many samples a channel."""
    size = samples * channels * 2
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + size,
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        rate,
        rate * channels * 2,
        channels * 2,
        16,
        b"data",
        size,
    )


def pcm(piece_cS: Tensor) -> bytes:
    """16-bit little-endian PCM, channels interleaved."""
    return to_int16(piece_cS)[0].astype("<i2", copy=False).tobytes()


class SongWriter:
    """song.wav of a job while it is decoded: a part file until it is whole."""

    def __init__(self, folder: Path, *, rate: int, channels: int) -> None:
        self.folder, self.rate, self.channels, self.samples = folder, rate, channels, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / PART).open("wb")
        self._file.write(wav_header(rate=rate, channels=channels, samples=0))

    def write(self, data: bytes) -> None:
        """Appends PCM."""
        self._file.write(data)
        self._file.flush()
        self.samples += len(data) // (2 * self.channels)

    def finish(self) -> Path:
        """Makes the file whole, on the disk, under its name."""
        self._file.seek(0)
        self._file.write(wav_header(rate=self.rate, channels=self.channels, samples=self.samples))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.folder / PART, self.folder / SONG)
        return self.folder / SONG

    def drop(self) -> None:
        """Leaves nothing behind."""
        self._file.close()
        with suppress(FileNotFoundError):
            (self.folder / PART).unlink()


def part_of(folder: Path) -> bytes | None:
    """A WAV of what is decoded so far, or None where nothing is."""
    try:
        data = (folder / PART).read_bytes()
    except FileNotFoundError:
        return None
    if len(data) <= 44:
        return None
    channels, rate = struct.unpack("<HI", data[22:28])
    samples = (len(data) - 44) // (2 * channels)
    header = wav_header(rate=rate, channels=channels, samples=samples)
    return header + data[44 : 44 + samples * 2 * channels]


def converted(wav: Path, kind: str) -> Path:
    """The song in another form, made once. Raises InputError for a form that has not its rate."""
    path = wav.with_suffix(f".{kind}")
    if kind != "wav" and not path.is_file():
        audio, rate = load_audio(wav)
        save_audio(path, audio, rate)
    return path


def encoded(data: bytes, kind: str, *, rate: int, channels: int, folder: Path) -> bytes:
    """PCM in another form, in memory."""
    samples = torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)
    path = folder / f"encoded.{kind}"
    save_audio(path, samples.reshape(-1, channels).T, rate)
    return path.read_bytes()
