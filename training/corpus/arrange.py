"""A plan, chords and a style -> notes for every instrument of the band.

Who plays in a section and how loud is planned as for a request (text/composition/arrangement.py).
Choruses open with a crash, a fill leads into a new section, and the last bar lets the tonic ring.

    parts = arrange(rng, arrangement)     {"chords": [PartNote, ...], "bass": [...], "drums": [...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mudit_engine.text.composition.arrangement import PlannedSection
from mudit_engine.text.harmony import QUALITIES, SCALES, ChordSymbol
from mudit_engine.training.corpus import styles
from mudit_engine.training.corpus.form import BEATS, TAIL_SECONDS, Plan
from mudit_engine.training.corpus.harmony import voice_leading
from mudit_engine.training.corpus.styles import (
    CLOSED,
    CRASH,
    LOW_TOM,
    SNARE,
    Hit,
    InstrumentSet,
    Style,
)

DRUMS = -1  # program of a drum note; the kit is chosen per song


@dataclass(frozen=True, slots=True)
class PartNote:
    """Seconds from the start of the song; `program` is General MIDI, or DRUMS with `pitch` a
    percussion key.
    """

    start: float
    end: float
    pitch: int
    velocity: int
    program: int


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What the band needs to know. `chords_per_bar` holds the chord of every unit; a bar has
    `units` of them.
    """

    plan: Plan
    style: Style
    instruments: InstrumentSet
    chords: tuple[ChordSymbol, ...]
    units: int
    key: int
    mode: str
    sections: tuple[PlannedSection, ...]  # one a part of the plan
    # (start, end, midi) the lead instrument plays: instrumentals
    lead: tuple[tuple[float, float, int], ...]


def swung(beats: float, style: Style) -> float:
    """Place of a beat with the style's feel:
    swing moves the second eighth of a beat to two thirds.
    """
    return beats + 1 / 6 if style.swing and abs(beats % 1 - 0.5) < 1e-6 else beats


class _Band:
    def __init__(self, rng: np.random.Generator, arrangement: Arrangement) -> None:
        self.rng, self.a = rng, arrangement
        self.beat = arrangement.plan.bar_seconds / BEATS
        self.notes: dict[str, list[PartNote]] = {"chords": [], "bass": [], "drums": []}

    def add(
        self, stem: str, at: float, length: float, pitch: int, velocity: float, program: int
    ) -> None:
        """`at` and `length` in beats of the song."""
        loud = int(np.clip(round(velocity + self.rng.integers(-5, 6)), 20, 127))
        self.notes[stem].append(
            PartNote(at * self.beat, (at + length) * self.beat, int(pitch), loud, program)
        )


def arrange(rng: np.random.Generator, arrangement: Arrangement) -> dict[str, list[PartNote]]:
    """Notes of the stems chords, bass and drums (empty without drums), in order of time."""
    band = _Band(rng, arrangement)
    style = arrangement.style
    comp = style.comps[int(rng.integers(len(style.comps)))]
    bass = style.basses[int(rng.integers(len(style.basses)))]
    drums = style.drums[int(rng.integers(len(style.drums)))]
    low, high = style.comp_range
    voicings = voice_leading(list(arrangement.chords), low=low, high=high)
    last_bar = arrangement.plan.bars - 1
    for part, section in zip(arrangement.plan.parts, arrangement.sections, strict=True):
        energy = _loudness(section.energy)
        plays = frozenset(section.plays)
        for bar in range(part.first_bar, part.first_bar + part.bars):
            if bar == last_bar:
                _final_bar(
                    band,
                    voicings[bar * arrangement.units],
                    arrangement.chords[bar * arrangement.units],
                    energy,
                    plays,
                )
                if "drums" in plays:
                    _hit(band, bar, 0.0, CRASH, 96)
                    _hit(band, bar, 0.0, styles.KICK, 104)
                continue
            if "chords" in plays:
                _comp_bar(band, bar, comp, voicings, energy)
            if "pad" in plays:
                _pad_bar(band, bar, voicings, energy)
            if "bass" in plays:
                _bass_bar(band, bar, bass, energy)
            if "drums" in plays:
                first, last = bar == part.first_bar, bar == part.first_bar + part.bars - 1
                if first and part.name == "chorus":
                    _hit(band, bar, 0.0, CRASH, 100)
                _drum_bar(band, bar, drums, energy, fill=last and section.fill)
    for start, end, midi in arrangement.lead:
        velocity = int(np.clip(104 + rng.integers(-6, 7), 1, 127))
        band.notes["chords"].append(
            PartNote(start, end, midi, velocity, arrangement.instruments.lead.program)
        )
    return {
        stem: sorted(notes, key=lambda note: (note.start, note.pitch))
        for stem, notes in band.notes.items()
    }


def _loudness(energy: float) -> float:
    """What an energy of 0 to 1 makes of velocities: a chorus plays about a fifth louder than a
    verse.
    """
    return 0.72 + 0.42 * energy


def _unit_of(arrangement: Arrangement, bar: int, beat: float) -> int:
    return bar * arrangement.units + min(
        arrangement.units - 1, int(beat * arrangement.units / BEATS)
    )


def _comp_bar(
    band: _Band,
    bar: int,
    pattern: Sequence[Hit],
    voicings: Sequence[tuple[int, ...]],
    energy: float,
) -> None:
    a = band.a
    for hit in pattern:
        unit = _unit_of(a, bar, hit.beat)
        for pitch in _picked(hit.pick, voicings[unit], a.chords[unit], a.style.comp_range[0]):
            band.add(
                "chords",
                bar * BEATS + hit.beat,
                hit.length,
                pitch,
                hit.velocity * energy,
                a.instruments.comp.program,
            )


def _pad_bar(band: _Band, bar: int, voicings: Sequence[tuple[int, ...]], energy: float) -> None:
    a = band.a
    assert a.instruments.pad is not None
    length = BEATS / a.units
    for place in range(a.units):
        for pitch in voicings[bar * a.units + place]:
            band.add(
                "chords",
                bar * BEATS + place * length,
                length * 0.98,
                pitch,
                62 * energy,
                a.instruments.pad.program,
            )


def _picked(
    pick: int | str, voicing: tuple[int, ...], chord: ChordSymbol, low: int
) -> tuple[int, ...]:
    if isinstance(pick, int):
        return (voicing[pick % len(voicing)],)
    if pick == "all":
        return voicing
    root = low + (chord.root - low) % 12
    return (root, root + 7, root + 12) if pick == "power" else (root, root + 7)


def _bass_root(chord: ChordSymbol) -> int:
    """The root between E1 and Eb2, where every bass program speaks."""
    return 28 + (chord.root - 28) % 12


def _bass_bar(band: _Band, bar: int, pattern: Sequence[Hit], energy: float) -> None:
    a = band.a
    for hit in pattern:
        unit = _unit_of(a, bar, hit.beat)
        chord = a.chords[unit]
        root = _bass_root(chord)
        tones = QUALITIES[chord.quality]
        if hit.pick == "walk":
            step = int(hit.beat * a.units) % BEATS
            following = a.chords[unit + 1] if unit + 1 < len(a.chords) else chord
            if step == BEATS - 1:
                goal = _bass_root(following)
                scale = [(a.key + s) % 12 for s in SCALES[a.mode]]
                near = [p for p in range(goal - 2, goal + 3) if p != goal and p % 12 in scale]
                pitch = near[int(band.rng.integers(len(near)))]
            else:
                pitch = root + tones[step % len(tones)]
        else:
            pitch = {
                "root": root,
                "fifth": root + 7,
                "octave": root + 12,
                "third": root + tones[1],
            }[str(hit.pick)]
        band.add(
            "bass",
            bar * BEATS + hit.beat,
            hit.length,
            pitch,
            hit.velocity * energy,
            a.instruments.bass.program,
        )


def _hit(band: _Band, bar: int, beat: float, key: int, velocity: float) -> None:
    band.add("drums", bar * BEATS + beat, 0.2, key, velocity, DRUMS)


def _drum_bar(band: _Band, bar: int, pattern: dict[int, str], energy: float, *, fill: bool) -> None:
    for key, steps in pattern.items():
        if steps == "swing":
            for beat, loud in ((0, 92), (1, 96), (1.667, 74), (2, 92), (3, 96), (3.667, 74)):
                _hit(band, bar, beat, key, loud * energy)
            continue
        for step, mark in enumerate(steps):
            if mark == "." or (fill and step >= 12 and key in (CLOSED, styles.OPEN)):
                continue
            accent = 104 if mark == "x" else 74
            if key in (CLOSED, styles.OPEN, styles.SHAKER, styles.TAMBOURINE):
                # cymbals keep time, kick and snare say where the beat is
                accent -= 24 if step % 4 else 16
            _hit(band, bar, step / 4, key, accent * energy)
    if fill:
        for place, key in enumerate((SNARE, SNARE, LOW_TOM, styles.BIG_TOM)):
            _hit(band, bar, 3 + place / 4, key, (84 + 6 * place) * energy)


def _final_bar(
    band: _Band,
    voicing: tuple[int, ...],
    chord: ChordSymbol,
    energy: float,
    plays: frozenset[str],
) -> None:
    """One long tonic chord, until the end of the tail."""
    a = band.a
    at = (a.plan.bars - 1) * BEATS
    length = BEATS + 0.5 * TAIL_SECONDS / band.beat
    for place, pitch in enumerate(voicing):
        # the last chord rings on something, whoever played before it
        if "chords" in plays or "pad" not in plays:
            band.add(
                "chords", at + 0.06 * place, length, pitch, 84 * energy, a.instruments.comp.program
            )
        if "pad" in plays:
            assert a.instruments.pad is not None
            band.add("chords", at, length, pitch, 66 * energy, a.instruments.pad.program)
    if "bass" in plays:
        band.add("bass", at, length, _bass_root(chord), 90 * energy, a.instruments.bass.program)
