"""Singing: a speech synthesiser says each syllable once, WORLD takes it apart, and a singer puts it
on a note.

espeak-ng speaks a syllable (pinyin in tone 1, or phoneme mnemonics for English). The WORLD analysis
(F0, spectral envelope, aperiodicity at 5 ms) is kept on disk. To sing a note the vowel is
stretched, consonants keep their length, and F0 follows
    f(t) = 440 * 2^((midi(t) - 69) / 12),   midi(t) = note + glide from the last note + vibrato
A voice differs by its range, by formants (the frequency axis of the envelope), spectral tilt and
breath (aperiodicity).

    voice = Singer(cache_folder); audio = voice.sing(song)      float64 [samples] at ANALYSIS_RATE
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mudit_engine.availability import require, require_tool
from mudit_engine.errors import MissingError
from mudit_engine.training.corpus.labels import Song, Syllable

ANALYSIS_RATE = 22050  # of espeak-ng
FRAME = 0.005  # seconds
_FLOOR = 1e-10
_CACHE_VERSION = 3
_SHORTEST_VOWEL = 40  # frames
_PURPOSE = "making sung vocals"

# ARPAbet -> espeak-ng mnemonics of its English voice.
_MNEMONICS = {
    "AA": "A:", "AE": "a", "AH": "V", "AO": "O:", "AW": "aU", "AY": "aI", "EH": "E", "ER": "3:",
    "EY": "eI", "IH": "I", "IY": "i:", "OW": "oU", "OY": "OI", "UH": "U", "UW": "u:", "B": "b",
    "CH": "tS", "D": "d", "DH": "D", "F": "f", "G": "g", "HH": "h", "JH": "dZ", "K": "k", "L": "l",
    "M": "m", "N": "n", "NG": "N", "P": "p", "R": "r", "S": "s", "SH": "S", "T": "t", "TH": "T",
    "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "Z",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timbre:
    """`formant` scales the frequency axis of the envelope, `breath` 0..1 moves aperiodicity towards
    1 above 1-4 kHz, `tilt` is dB per octave above 1 kHz, `vibrato` is its depth in semitones."""

    formant: float
    tilt: float
    breath: float
    vibrato: float


_VOICES = {
    "male": Timbre(0.97, 0.0, 0.0, 0.30),
    "female": Timbre(1.16, 0.5, 0.03, 0.30),
    "child": Timbre(1.34, 1.0, 0.05, 0.12),
}
_COLOURS = {
    "clear": Timbre(1.0, 0.0, 0.0, 1.0),
    "breathy": Timbre(1.0, -1.5, 0.45, 0.8),
    "bright": Timbre(1.02, 2.5, 0.0, 1.15),
}


@dataclass(frozen=True, slots=True)
class SyllableSound:
    """WORLD parameters of one spoken syllable: frames [0, vowel) are its consonants, voiced or not,
    [vowel, coda) the vowel with what voiced sound follows it, [coda, end) voiceless."""

    log_envelope: np.ndarray  # float32 [frames, bins], natural log of power
    aperiodicity: np.ndarray  # float32 [frames, bins]
    voiced: np.ndarray  # bool [frames]
    vowel: int
    coda: int


def spoken_form(phonemes: str, language: str) -> tuple[str, str]:
    """(espeak-ng voice, what to give it) of a labels.Syllable: ("cmn-latn-pinyin", "yue1"),
    ("en-us", "[[m'u:n]]").
    """
    if language == "zh":
        # Melody replaces the tone; tone 1 is the long level one, whose frames stretch best.
        return "cmn-latn-pinyin", phonemes.rstrip("12345").replace("v", "ü") + "1"
    sounds = phonemes.split()
    at = next((place for place, sound in enumerate(sounds) if sound[0] in "AEIOU"), len(sounds))
    return "en-us", "[[" + "".join(
        ("'" if place == at else "") + _MNEMONICS[sound] for place, sound in enumerate(sounds)
    ) + "]]"


def speak(voice: str, text: str) -> np.ndarray:
    """What espeak-ng says: float64 [samples] at ANALYSIS_RATE. Raises MissingError when it is
    absent or has no such voice.
    """
    program = require_tool("espeak-ng", _PURPOSE)
    done = subprocess.run(
        [program, "-v", voice, "-s", "110", "-p", "50", "--stdout", text],
        capture_output=True,
        check=False,
    )
    if done.returncode or len(done.stdout) <= 44:
        raise MissingError(
            f"espeak-ng has no voice '{voice}' (version 1.51 or newer is needed): apt-get install "
            f"espeak-ng espeak-ng-data"
        )
    # A stream has no length in its header, so the 44 bytes are skipped rather than parsed.
    return np.frombuffer(done.stdout[44:], dtype="<i2").astype(np.float64) / 32768.0


def _pyworld() -> Any:
    require("pyworld", _PURPOSE)
    try:
        # pyworld 0.3.5 imports pkg_resources: setuptools 80 warns that it is going, 81 dropped it.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            import pyworld
    except ModuleNotFoundError as error:
        raise MissingError(
            f"pyworld cannot be imported ({error}): pip install 'setuptools<81'"
        ) from error
    return pyworld


def analyse(voice: str, text: str) -> SyllableSound:
    """Says the syllable, trims silence and takes it apart."""
    world = _pyworld()
    spoken = speak(voice, text)
    loud = np.flatnonzero(np.abs(spoken) > 0.005)
    if loud.size == 0:
        raise MissingError(
            f"espeak-ng says nothing for '{text}' with voice '{voice}': apt-get install "
            f"--reinstall espeak-ng-data"
        )
    spoken = np.ascontiguousarray(spoken[max(0, loud[0] - 110) : loud[-1] + 221])
    # The wide search finds where voicing begins best, but now and then loses the vowel; the narrow
    # one around the speaker's 97 Hz does not.
    for floor, ceiling in ((60.0, 300.0), (70.0, 150.0)):
        f0, times = world.harvest(
            spoken, ANALYSIS_RATE, f0_floor=floor, f0_ceil=ceiling, frame_period=FRAME * 1000
        )
        voiced = _longest_run(f0 > 0)
        if voiced.sum() >= _SHORTEST_VOWEL:
            break
    else:
        raise MissingError(
            f"'{text}' of espeak-ng voice '{voice}' has no vowel that can be sung: version 1.51 is "
            f"known to work"
        )
    envelope = world.cheaptrick(spoken, f0, times, ANALYSIS_RATE)
    aperiodicity = world.d4c(spoken, f0, times, ANALYSIS_RATE)
    coda = len(voiced) - int(np.argmax(voiced[::-1]))
    # Voiced consonants are weaker than the vowel: it begins where the power first comes within 6 dB
    # of the syllable's upper quartile.
    frame_power = np.where(voiced, envelope.mean(axis=1), 0.0)
    vowel = int(np.argmax(frame_power >= 0.25 * np.quantile(frame_power[voiced], 0.75)))
    # Every syllable is sung equally loud: its vowel's mean power becomes 1.
    power = envelope[vowel:coda].mean()
    return SyllableSound(
        np.log(envelope / power + _FLOOR).astype(np.float32),
        aperiodicity.astype(np.float32),
        voiced,
        vowel,
        coda,
    )


def _longest_run(mask: np.ndarray) -> np.ndarray:
    """Keeps the longest run of True, which is the vowel with its voiced neighbours."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    if edges.size == 0:
        return mask
    starts, ends = edges[::2], edges[1::2]
    best = int(np.argmax(ends - starts))
    kept = np.zeros_like(mask)
    kept[starts[best] : ends[best]] = True
    return kept


def cache_folder() -> Path:
    """$MUDIT_CACHE/syllables, else ~/.cache/mudit-engine/syllables."""
    base = os.environ.get("MUDIT_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "mudit-engine") / "syllables"


class Singer:
    """Sings labels. Analyses are read from and added to `folder`, which several processes may
    share.
    """

    def __init__(self, folder: Path | None = None) -> None:
        require_tool("espeak-ng", _PURPOSE)
        self._world = _pyworld()
        self._folder = folder or cache_folder()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sound = functools.lru_cache(maxsize=2048)(self._load)

    def _load(self, voice: str, text: str) -> SyllableSound:
        name = hashlib.sha256(f"{_CACHE_VERSION}/{voice}/{text}".encode()).hexdigest()[:20]
        path = self._folder / f"{name}.npz"
        if not path.exists():
            sound = analyse(voice, text)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".tmp", delete=False) as file:
                np.savez(
                    file,
                    e=sound.log_envelope,
                    a=sound.aperiodicity,
                    v=sound.voiced,
                    edges=np.array([sound.vowel, sound.coda]),
                )
            os.replace(file.name, path)
        with np.load(path) as data:
            return SyllableSound(
                data["e"], data["a"], data["v"], int(data["edges"][0]), int(data["edges"][1])
            )

    def sing(self, song: Song) -> np.ndarray:
        """The vocal of a song, float64 [round(seconds * ANALYSIS_RATE)], dry, RMS of long notes
        near 0.1.
        """
        frames = int(np.ceil(song.seconds / FRAME)) + 1
        bins = self._world.get_cheaptrick_fft_size(ANALYSIS_RATE) // 2 + 1
        log_envelope = np.full((frames, bins), np.log(_FLOOR))
        aperiodicity = np.ones((frames, bins))
        f0 = np.zeros(frames)
        rng = np.random.Generator(np.random.Philox(key=[song.seed, (1 << 32) + song.index]))
        timbre = _combine(song.voice, song.timbre)
        for place, note in enumerate(song.syllables):
            before = song.syllables[place - 1] if place else None
            after = song.syllables[place + 1] if place + 1 < len(song.syllables) else None
            sound = self._sound(*spoken_form(note.phonemes, song.language))
            _place(note, before, after, sound, timbre, rng, log_envelope, aperiodicity, f0)
        envelope = np.exp(log_envelope) * _tilt(bins, timbre.tilt)
        aperiodicity = np.clip(
            aperiodicity + (1 - aperiodicity) * _breath(bins, timbre.breath), 0.001, 1.0
        )
        # WORLD's synthesis keeps the power of the envelope; unit power per bin would be far too
        # loud for [-1, 1].
        audio = self._world.synthesize(
            f0, envelope * 1e-4, aperiodicity, ANALYSIS_RATE, FRAME * 1000
        )
        length = round(song.seconds * ANALYSIS_RATE)
        return np.pad(audio, (0, max(0, length - len(audio))))[:length]


def _combine(voice: str, colour: str) -> Timbre:
    base, change = _VOICES[voice], _COLOURS[colour]
    breath = min(0.8, base.breath + change.breath)
    return Timbre(
        base.formant * change.formant,
        base.tilt + change.tilt,
        breath,
        base.vibrato * change.vibrato,
    )


def _frequencies(bins: int) -> np.ndarray:
    return np.linspace(0, ANALYSIS_RATE / 2, bins)


def _tilt(bins: int, slope: float) -> np.ndarray:
    """Power gain per bin: `slope` dB per octave above 1 kHz, at most 8 dB either way."""
    octaves = np.log2(np.maximum(_frequencies(bins), 1000.0) / 1000.0)
    return 10 ** (np.clip(slope * octaves, -8, 8) / 10)


def _breath(bins: int, amount: float) -> np.ndarray:
    """Share of periodic energy turned into noise: none below 1 kHz, all of `amount` above 4 kHz."""
    return amount * np.clip((_frequencies(bins) - 1000.0) / 3000.0, 0, 1)


def _place(
    note: Syllable,
    before: Syllable | None,
    after: Syllable | None,
    sound: SyllableSound,
    timbre: Timbre,
    rng: np.random.Generator,
    log_envelope: np.ndarray,
    aperiodicity: np.ndarray,
    f0: np.ndarray,
) -> None:
    """Writes one note into the frame matrices: consonant before the beat, vowel on it, voiceless
    coda before its end.
    """
    first, last = round(note.start / FRAME), round(note.end / FRAME)
    onset = sound.vowel
    # A consonant may take at most 0.15 s and a third of the note before.
    room = (
        30
        if before is None
        else round((note.start - before.end) / FRAME)
        + round((before.end - before.start) / FRAME / 3)
    )
    onset = min(onset, 30, room, first)
    voiced = sound.coda - sound.vowel
    closing = min(len(sound.voiced) - sound.coda, 24, (last - first) // 3)
    joined = after is not None and after.start - note.end < 2 * FRAME
    stretch = max(4, last - first - closing - (0 if joined else 2))
    # The first 50 ms carry the consonant's transition and the last 60 ms the ending; only what lies
    # between is stretched.
    head, tail = min(10, voiced // 3, stretch // 3), min(12, voiced // 3, stretch // 3)
    middle = stretch - head - tail
    source = np.concatenate(
        [
            np.arange(sound.vowel - onset, sound.vowel + head),
            np.linspace(sound.vowel + head, sound.coda - tail - 1, middle),
            np.arange(sound.coda - tail, sound.coda + closing),
        ]
    )
    start = first - onset
    count = min(len(source), len(f0) - start)
    source, target = source[:count], slice(start, start + count)
    lower = np.floor(source).astype(int)
    weight = (source - lower)[:, None]
    upper = np.minimum(lower + 1, len(sound.voiced) - 1)
    bins = log_envelope.shape[1]
    warp = np.minimum(np.arange(bins) / timbre.formant, bins - 1)
    left = np.floor(warp).astype(int)
    share = warp - left
    right = np.minimum(left + 1, bins - 1)

    def resampled(values: np.ndarray) -> np.ndarray:
        rows = values[lower] * (1 - weight) + values[upper] * weight
        return rows[:, left] * (1 - share) + rows[:, right] * share

    log_envelope[target] = resampled(sound.log_envelope)
    aperiodicity[target] = resampled(sound.aperiodicity)
    if not joined:
        fade = min(10, count)
        log_envelope[start + count - fade : start + count] -= np.linspace(0, 5, fade)[:, None]

    seconds = (np.arange(start, start + count) * FRAME) - note.start
    midi = np.full(count, float(note.midi)) + rng.normal(0, 0.03)
    if before is not None and note.start - before.end < 0.05:
        midi += (before.midi - note.midi) * np.clip(1 - (seconds + 0.02) / 0.06, 0, 1)
    depth = timbre.vibrato * np.clip((seconds - 0.25) / 0.3, 0, 1)
    midi += depth * np.sin(2 * np.pi * (5.4 + rng.normal(0, 0.15)) * seconds)
    sounding = sound.voiced[lower]
    sounding[onset : onset + stretch] = True
    f0[target] = np.where(sounding, 440.0 * 2 ** ((midi - 69) / 12), 0.0)
