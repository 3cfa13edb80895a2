"""Short tunes, each of its own melody, chords and tempo, from one set of sounds; and what becomes
of recordings on their way around the world.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from mudit_engine.audio import resample

RATE = 16000
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))
CHANGES = ("ogg", "mp3", "quieter", "clipped", "trimmed", "rate", "everything")


def tune(seed: int, *, seconds: float = 12.0) -> np.ndarray:
    """float32 [samples, 2]: chords, a melody and one drum that all tunes share."""
    rng = np.random.default_rng(seed)
    beat = 60 / rng.uniform(70, 150)
    key, scale = int(rng.integers(12)), SCALES[int(rng.integers(2))]
    audio = np.zeros(int(seconds * RATE))
    drum = np.random.default_rng(0).normal(size=RATE // 5) * np.exp(-np.arange(RATE // 5) / 400)

    def add(start: float, sound: np.ndarray) -> None:
        first = int(start * RATE)
        piece = audio[first : first + len(sound)]
        piece += sound[: len(piece)]

    def note(pitch: int, lasts: float, level: float) -> np.ndarray:
        t = np.arange(int(lasts * RATE)) / RATE
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        partials = sum(np.sin(2 * np.pi * hertz * n * t) / n for n in range(1, 7))
        return level * partials * np.exp(-3 * t / lasts) * np.minimum(1, t * 100)

    for number in range(int(seconds / beat)):
        add(number * beat, drum * 0.2)
        if number % 4 == 0:
            root = int(rng.integers(7))
            for third in (0, 2, 4):
                degree = root + third
                pitch = 48 + key + scale[degree % 7] + 12 * (degree // 7)
                add(number * beat, note(pitch, 4 * beat, 0.08))
        for half in range(2):
            if rng.random() < 0.8:
                degree = int(rng.integers(10))
                pitch = 60 + key + scale[degree % 7] + 12 * (degree // 7)
                add((number + half / 2) * beat, note(pitch, beat / 2, 0.15))
    return (0.7 * audio / np.abs(audio).max())[:, None].repeat(2, 1).astype(np.float32)


def changed(audio_S2: np.ndarray, how: str, seed: int) -> tuple[np.ndarray, int]:
    """(audio, sample rate) of a copy that went through one of CHANGES."""
    rng = np.random.default_rng(seed)
    if how in ("ogg", "mp3"):
        kind = {"ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}[how]
        file = io.BytesIO()
        soundfile.write(file, audio_S2, RATE, format=kind[0], subtype=kind[1])
        file.seek(0)
        return soundfile.read(file, dtype="float32")[0], RATE
    if how == "quieter":
        return audio_S2 * rng.uniform(0.1, 0.9), RATE
    if how == "clipped":
        return np.clip(audio_S2 * rng.uniform(1.5, 3), -1, 1), RATE
    if how == "trimmed":
        first, last = (int(rng.uniform(0.2, 2.5) * RATE) for _ in range(2))
        return audio_S2[first : len(audio_S2) - last], RATE
    if how == "rate":
        rate = int(rng.choice([11025, 22050, 44100]))
        return resample(torch.from_numpy(audio_S2.T.copy()), RATE, rate).numpy().T, rate
    audio, _ = changed(changed(changed(audio_S2, "trimmed", seed)[0], "mp3", seed)[0], "ogg", seed)
    return changed(audio * 0.5, "rate", seed)


def own_songs(folder: Path, count: int = 6) -> Path:
    """Some seconds of music each, with lyrics and descriptions beside them."""
    folder.mkdir()
    for number in range(count):
        soundfile.write(folder / f"{number}.ogg", tune(number, seconds=3), RATE)
        (folder / f"{number}.txt").write_text(f"[verse]\nhello moon number {number}\n")
        described = {"professional": f"Indie rock, {90 + number} BPM", "amateur": "for the road"}
        (folder / f"{number}.json").write_text(json.dumps({"descriptions": described}))
    return folder
