"""A song's melody and arrangement from what is planned of it: bars, chords, and when each syllable
is sung.

    composed = compose(song, bars, chords=chords, syllables=times, key="A minor", bpm=96, seed=1)
    composed.pitches        # MIDI pitch a syllable
    composed.notes          # sung and led notes in order of time
    composed.sections       # who plays when
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mudit_engine.text.composition.arrangement import PlannedSection, contrasted, plan_arrangement
from mudit_engine.text.composition.melody import Phrase, plan_melody
from mudit_engine.text.composition.notes import Note
from mudit_engine.text.harmony import Bars, ChordSymbol, TimedChord
from mudit_engine.text.phonemes import PhonemeSequence, lines_of_sections

BEATS = 4
_EARLY = 1e-3  # seconds: a note that begins with a chord belongs to it, whatever was rounded
# Rhythms of a led phrase of two bars, as lengths in beats with a rest at the end: they end early
# enough to breathe.
_LED_RHYTHMS = (
    (1, 1, 1, 1, 2),
    (1.5, 0.5, 1, 1, 1, 1, 1),
    (2, 1, 1, 3),
    (0.5, 0.5, 1, 1, 1, 1.5, 0.5, 1),
    (1, 0.5, 0.5, 1, 1, 2),
    (1.5, 1.5, 1, 2),
    (0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1),
    (3, 1, 1.5, 0.5, 1),
)


@dataclass(frozen=True)
class Composition:
    """`pitches`: MIDI, a syllable each, -1 for one that is not sung; `notes`: all of the melody;
    `phrases` and `tunes`: what the planner was given and gave.
    """

    pitches: tuple[int, ...]
    notes: tuple[Note, ...]
    sections: tuple[PlannedSection, ...]
    phrases: tuple[Phrase, ...] = ()
    tunes: tuple[tuple[int, ...], ...] = ()


def compose(
    song: PhonemeSequence | None,
    bars: Bars,
    *,
    chords: Sequence[TimedChord],
    syllables: np.ndarray | None,
    key: str,
    bpm: float,
    seed: int,
    voice: str | None = None,
    drums: bool = True,
    seconds: float | None = None,
) -> Composition:
    """Plans who plays and which notes are sung and led.

    Args:
        song: what is sung; None for an instrumental.
        bars: the song's sections.
        chords: which sounds when.
        syllables: [syllables, 2] seconds of each, -1 for those that are not sung.
        key: tonic and mode.
        bpm: beats a minute.
        seed: the song's.
        voice: who sings; None or "none" is drawn by the seed where somebody does.
        drums: whether there are some.
        seconds: length of the song.

    Returns:
        Pitches, notes and sections.

    Raises:
        InputError: for an unknown key.
    """
    starts = _section_starts(bars)
    sung = None
    if song is not None and syllables is not None:
        begun = {bisect_right(starts, at + _EARLY) - 1 for at, _ in syllables if at >= 0}
        sung = [number in begun for number in range(len(starts))]
    planned = plan_arrangement(bars, seed=seed, drums=drums, sung=sung, seconds=seconds)
    sections = contrasted(planned, seed=seed)
    lines: list[_Line] = []
    if song is not None and syllables is not None:
        lines += _sung_lines(song, syllables, chords, bpm)
    lines += _led_lines(sections, bars, chords, bpm, seed)
    lines.sort(key=lambda line: line.times[0])
    if voice not in ("female", "male", "child"):
        voice = random.Random(f"voice {seed}").choice(("female", "male")) if song else None
    tunes = plan_melody([line.phrase for line in lines], key=key, voice=voice, seed=seed)
    pitches = [-1] * (song.syllables if song is not None else 0)
    notes: list[Note] = []
    for line, tune in zip(lines, tunes, strict=True):
        for place, ((start, end), pitch) in enumerate(zip(line.times, tune, strict=True)):
            notes.append(Note(round(float(start), 4), round(float(end), 4), pitch))
            if not line.phrase.led:
                pitches[line.syllables[place]] = pitch
    return Composition(
        tuple(pitches),
        tuple(notes),
        sections,
        tuple(line.phrase for line in lines),
        tuple(tunes),
    )


@dataclass(frozen=True)
class _Line:
    phrase: Phrase
    times: tuple[tuple[float, float], ...]  # seconds
    syllables: tuple[int, ...] = ()  # their numbers in the song


def _section_starts(bars: Bars) -> list[float]:
    starts, at = [], 0.0
    for _, count in bars.sections:
        starts.append(at)
        at += count * bars.seconds
    return starts


def _sung_lines(
    song: PhonemeSequence, syllables: np.ndarray, chords: Sequence[TimedChord], bpm: float
) -> Iterator[_Line]:
    tones = syllable_tones(song)
    first = 0
    for section, (kind, counts) in enumerate(lines_of_sections(song)):
        for count in counts:
            numbers = [n for n in range(first, first + count) if syllables[n, 0] >= 0]
            first += count
            if not numbers:
                continue
            times = tuple((float(syllables[n, 0]), float(syllables[n, 1])) for n in numbers)
            yield _Line(
                Phrase(
                    kind,
                    section,
                    _beats(times, times[0][0], bpm),
                    _sounding(times, chords),
                    tuple(tones[n] for n in numbers),
                ),
                times,
                tuple(numbers),
            )


def syllable_tones(song: PhonemeSequence) -> list[int]:
    """The tone (1 to 5) of each Mandarin syllable, 0 for others."""
    tones = [0] * song.syllables
    for token, number in zip(song.tokens, song.syllable_of, strict=True):
        if number >= 0 and ":" not in token and token[-1:] in "12345" and token[:-1].isalpha():
            tones[number] = int(token[-1])
    return tones


def _led_lines(
    sections: Sequence[PlannedSection],
    bars: Bars,
    chords: Sequence[TimedChord],
    bpm: float,
    seed: int,
) -> Iterator[_Line]:
    """Two bars a phrase in every section that an instrument leads."""
    chooser = random.Random(f"led {seed}")
    known: dict[str, list[tuple[float, ...]]] = {}
    beat = bars.seconds / BEATS
    # at fast tempi half as many notes: none is shorter than can be heard as one
    slow = 2.0 if 30 / bpm < 0.17 else 1.0
    for number, ((name, count), one) in enumerate(zip(bars.sections, sections, strict=True)):
        if "lead" not in one.plays:
            continue
        if name not in known:
            first, second = chooser.sample(_LED_RHYTHMS, 2)
            known[name] = chooser.choice(([first, first, first, second], [first, second] * 2))
        for place, bar in enumerate(range(0, count, 2)):
            lengths = known[name][place % 4]
            room = min(2, count - bar) * BEATS
            at, played = 0.0, []
            for length in lengths:
                held = length * slow
                if at + held > room + 1e-9:
                    break
                played.append((at, at + 0.95 * held))
                at += held
            begin = one.start + bar * bars.seconds
            times = tuple((begin + a * beat, begin + b * beat) for a, b in played)
            if times:
                # sections of the lyrics and these are told apart: both count from 0
                yield _Line(
                    Phrase(
                        name,
                        1000 + number,
                        tuple(played),
                        _sounding(times, chords),
                        led=True,
                    ),
                    times,
                )


def _beats(
    times: Sequence[tuple[float, float]], zero: float, bpm: float
) -> tuple[tuple[float, float], ...]:
    """Beats from `zero`, rounded to a twelfth: a chorus that returns has the same ones."""
    return tuple(
        (round((a - zero) * bpm / 5) / 12, round((b - zero) * bpm / 5) / 12) for a, b in times
    )


def _sounding(
    times: Sequence[tuple[float, float]], chords: Sequence[TimedChord]
) -> tuple[ChordSymbol, ...]:
    """The chord at the start of each note; the last one behind the end of all."""
    if not chords:
        return (ChordSymbol(0, "maj"),) * len(times)
    starts = [chord.start for chord in chords]
    places = (bisect_right(starts, at + _EARLY) - 1 for at, _ in times)
    return tuple(chords[max(0, place)].symbol for place in places)
