"""(seed, index) -> a score: everything about a song except its sound.

Each song has its own generator, numpy's Philox keyed by (seed, index), so a song does not depend on
which process makes it or when.

    score = compose(seed=0, index=17, sample_rate=22050)
    score.song.lyrics, score.parts["bass"]
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mudit_engine.names import BAND, STYLES
from mudit_engine.text.composition.arrangement import PlannedSection, plan_arrangement
from mudit_engine.text.composition.melody import Phrase, plan_melody
from mudit_engine.text.harmony import (
    OTHER_PART,
    PART_OF,
    TONIC_NAMES,
    Bars,
    ChordSymbol,
    realise,
)
from mudit_engine.training.corpus import labels, lyrics, melody
from mudit_engine.training.corpus.arrange import Arrangement, PartNote, arrange, swung
from mudit_engine.training.corpus.form import (
    BEATS,
    LONG_SECONDS,
    MAX_SECONDS,
    MIN_SECONDS,
    Plan,
    draw_form,
)
from mudit_engine.training.corpus.harmony import progressions
from mudit_engine.training.corpus.labels import (
    HELD_OUT_SHARE,
    Chord,
    Line,
    Note,
    Section,
    Song,
    Syllable,
)
from mudit_engine.training.corpus.styles import STYLE_BOOK, Style

_VOICE_SHARES = {"none": 0.25, "male": 0.25, "female": 0.28, "child": 0.22}
_NO_DRUMS_SHARE = 0.28
_MANDARIN_SHARE = 0.7
_LONG_SHARE = 0.25  # of songs longer than LONG_SECONDS


@dataclass(frozen=True, slots=True)
class Score:
    """`song.stems` and `song.descriptions` are final; `parts` holds the notes of chords, bass and
    drums; `kit` is the drum program.
    """

    song: Song
    parts: dict[str, list[PartNote]]
    kit: int


def song_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of one song. Philox is counter based and its stream is fixed across numpy
    versions.
    """
    return np.random.Generator(np.random.Philox(key=[seed, index]))


def is_held_out(seed: int, index: int) -> bool:
    """Whether a song is one of those that are held out, without composing it (labels.split).

    Examples:
        >>> sum(is_held_out(0, index) for index in range(100))
        13
    """
    return _is_held_out(song_rng(seed, index))


def _is_held_out(rng: np.random.Generator) -> bool:
    return bool(rng.random() < HELD_OUT_SHARE)


def compose(*, seed: int, index: int, sample_rate: int, longest: float = MAX_SECONDS) -> Score:
    """The song `index` of the corpus `seed`, of at most `longest` seconds."""
    rng = song_rng(seed, index)
    held_out = _is_held_out(rng)
    style_name = str(rng.choice(STYLES))
    style = STYLE_BOOK[style_name]
    set_name = str(rng.choice(sorted(style.sets)))
    instruments = style.sets[set_name]
    bpm = int(rng.integers(style.bpm[0], style.bpm[1] + 1))
    key = int(rng.integers(12))
    mode = "minor" if rng.random() < 0.5 else "major"
    drums = bool(rng.random() >= _NO_DRUMS_SHARE)
    voice = str(rng.choice(list(_VOICE_SHARES), p=list(_VOICE_SHARES.values())))
    timbre = (
        "none"
        if voice == "none"
        else str(rng.choice(["clear", "breathy", "bright"], p=[0.5, 0.25, 0.25]))
    )
    language = "none" if voice == "none" else ("zh" if rng.random() < _MANDARIN_SHARE else "en")
    plan = draw_form(rng, bpm=bpm, target_seconds=_draw_seconds(rng, longest), longest=longest)

    most = melody.most_syllables(bpm, plan.bars_per_line, swing=style.swing)
    units = 2 if plan.bar_seconds > 2.9 and rng.random() < 0.5 else 1
    chords, used = _draw_chords(
        rng, plan, key=key, mode=mode, units=units, held_out=held_out, sevenths=style.sevenths
    )
    words: list[tuple[lyrics.LyricLine, ...]] = [() for _ in plan.parts]
    if voice != "none":
        words = lyrics.write_lyrics(
            rng, plan, language=language, held_out=held_out, most_syllables=most
        )
    tune = _draw_melody(
        rng,
        plan,
        words,
        chords,
        units=units,
        bpm=bpm,
        key=f"{TONIC_NAMES[key]} {mode}",
        voice=None if voice == "none" else voice,
        seed=seed * 1_000_003 + index,
        style=style,
        most=most,
    )

    beat = plan.bar_seconds / BEATS
    lines: list[Line] = []
    syllables: list[Syllable] = []
    notes: list[Note] = []
    for part_number, line_number, played in tune:
        notes += [Note(_ms(start * beat), _ms(end * beat), pitch) for start, end, pitch in played]
        if voice == "none":
            continue
        line = words[part_number][line_number]
        lines.append(
            Line(
                line.id,
                line.text,
                part_number,
                line.rhyme,
                _ms(played[0][0] * beat),
                _ms(played[-1][1] * beat),
            )
        )
        for syllable, note in zip(line.syllables, notes[-len(played) :], strict=True):
            syllables.append(
                Syllable(
                    note.start,
                    note.end,
                    note.midi,
                    syllable.text,
                    syllable.phonemes,
                    syllable.word,
                    len(lines) - 1,
                )
            )

    lead = tuple((note.start, note.end, note.midi) for note in notes) if voice == "none" else ()
    sections = _draw_sections(
        plan,
        seed=seed * 1_000_003 + index,
        drums=drums,
        pad=instruments.pad is not None,
        sung=voice != "none",
    )
    parts = arrange(
        rng, Arrangement(plan, style, instruments, tuple(chords), units, key, mode, sections, lead)
    )
    playing = [instruments.comp, instruments.bass]
    if instruments.pad is not None:
        playing.append(instruments.pad)
    if voice == "none":
        playing.append(instruments.lead)
    unit_seconds = plan.bar_seconds / units
    song = Song(
        schema=labels.SCHEMA_VERSION,
        id=f"{seed}-{index:06d}",
        seed=seed,
        index=index,
        held_out=held_out,
        style=style_name,
        instrument_set=set_name,
        instruments=tuple(instrument.en for instrument in playing),
        bpm=bpm,
        key=key,
        mode=mode,  # type: ignore[arg-type]
        seconds=_ms(plan.seconds),
        sample_rate=sample_rate,
        drums=drums,
        voice=voice,
        timbre=timbre,
        language=language,  # type: ignore[arg-type]
        progressions=tuple(used),
        bars=tuple(_ms(bar * plan.bar_seconds) for bar in range(plan.bars)),
        form=tuple(
            Section(
                p.name,
                _ms(p.first_bar * plan.bar_seconds),
                _ms((p.first_bar + p.bars) * plan.bar_seconds),
                p.first_bar,
                p.bars,
            )
            for p in plan.parts
        ),
        chords=tuple(
            Chord(
                _ms(n * unit_seconds),
                _ms((n + 1) * unit_seconds),
                chord.root,
                chord.quality,
                chord.roman,
            )
            for n, chord in enumerate(chords)
        ),
        melody=tuple(notes),
        arrangement=sections,
        lyrics=lyrics.canonical_text(plan, words),
        lines=tuple(lines),
        syllables=tuple(syllables),
        descriptions=(),
        stems=tuple(
            stem
            for stem in labels.STEMS
            if (stem != "vocals" or voice != "none") and (stem != "drums" or drums)
        ),
    )
    from mudit_engine.training.corpus.descriptions import describe

    return Score(
        dataclasses.replace(song, descriptions=describe(rng, song)), parts, instruments.kit
    )


def _draw_seconds(rng: np.random.Generator, longest: float) -> float:
    """How long a song should be: most are pieces of half a minute, which cost little, and some are
    whole songs.
    """
    shortest = LONG_SECONDS + 4  # of the whole ones
    if longest > shortest + 4 and rng.random() < _LONG_SHARE:
        return float(np.exp(rng.uniform(np.log(shortest), np.log(longest - 4))))
    return float(np.clip(rng.gamma(9.0, 2.5), MIN_SECONDS + 0.5, min(LONG_SECONDS, longest) - 1))


def _draw_sections(
    plan: Plan, *, seed: int, drums: bool, pad: bool, sung: bool
) -> tuple[PlannedSection, ...]:
    """Who plays in each part, as the engine plans it for a request: without the players that this
    band lacks, and never without bass throughout, or without drums where the song has them.
    """
    planned = plan_arrangement(
        Bars(plan.bar_seconds, tuple((part.name, part.bars) for part in plan.parts)),
        seed=seed,
        drums=drums,
        sung=[sung and part.lines > 0 for part in plan.parts] if sung else None,
        seconds=plan.seconds,
    )
    found = []
    for part, section in zip(plan.parts, planned, strict=True):
        plays = set(section.plays) - {"lead"}
        if not pad and "pad" in plays:
            plays = plays - {"pad"} | {"chords"}
        if not sung and part.lines:
            plays.add("lead")
        found.append((section, plays))
    for player in ("drums", "bass") if drums else ("bass",):
        if not any(player in plays for _, plays in found):
            for section, plays in found:
                if section.kind not in ("intro", "outro"):
                    plays.add(player)
    return tuple(
        dataclasses.replace(
            section,
            start=_ms(section.start),
            end=_ms(section.end),
            plays=tuple(one for one in BAND if one in plays),
            fill="drums" in plays and not section.ends,
        )
        for section, plays in found
    )


def _ms(seconds: float) -> float:
    """Labels are rounded to a tenth of a millisecond; the sound is made from the rounded times."""
    return round(float(seconds), 4)


def _draw_chords(
    rng: np.random.Generator,
    plan: Plan,
    *,
    key: int,
    mode: str,
    units: int,
    held_out: bool,
    sevenths: bool,
) -> tuple[list[ChordSymbol], list[str]]:
    """A chord per unit: one progression for verses, one for choruses, one for the rest; the last
    bar is the tonic.
    """
    pool = progressions(mode, held_out=held_out)
    chosen = [str(p) for p in rng.choice(pool, size=3, replace=False)]
    chords: list[ChordSymbol] = []
    used: list[str] = []
    for part in plan.parts:
        name = chosen[PART_OF.get(part.name, OTHER_PART)]
        numerals = name.split()
        count = part.bars * units
        if f"{mode}: {name}" not in used:
            used.append(f"{mode}: {name}")
        # Short sections play the end of the progression, so that it still leads on.
        offset = max(0, len(numerals) - count) if part.name in ("pre-chorus", "bridge") else 0
        chords += realise(
            [numerals[(offset + n) % len(numerals)] for n in range(count)],
            key=key,
            mode=mode,
            sevenths=sevenths,
        )
    tonic = realise(["I" if mode == "major" else "i"], key=key, mode=mode, sevenths=False)[0]
    chords[-units:] = [tonic] * units
    return chords, used


def _draw_melody(
    rng: np.random.Generator,
    plan: Plan,
    words: list[tuple[lyrics.LyricLine, ...]],
    chords: list[ChordSymbol],
    *,
    units: int,
    bpm: int,
    key: str,
    voice: str | None,
    seed: int,
    style: Style,
    most: int,
) -> list[tuple[int, int, list[tuple[float, float, int]]]]:
    """(part, line, [(start, end, midi)]) with times in beats. Repeated choruses repeat their
    rhythm, lines of one length share one; the pitches are those of the engine's own planner
    (text/composition/melody.py), so that a model hears in training what requests will plan.
    """
    known: dict[tuple[str, int], list[tuple[int, int]]] = {}
    places: list[tuple[int, int, int, list[tuple[int, int]]]] = []
    phrases: list[Phrase] = []
    for part_number, part in enumerate(plan.parts):
        rhythms: dict[int, list[tuple[int, int]]] = {}
        for line in range(part.lines):
            own = words[part_number][line].syllables if words[part_number] else ()
            count = len(own) or min(most, int(rng.integers(5, 9)))
            first_bar = part.first_bar + line * plan.bars_per_line
            before = known.get((part.name, line), [])
            if part.name == "chorus" and len(before) == count:
                rhythm = before
            else:
                if count not in rhythms:
                    rhythms[count] = melody.draw_rhythm(
                        rng, syllables=count, bars=plan.bars_per_line, bpm=bpm, swing=style.swing
                    )
                rhythm = rhythms[count]
            known[part.name, line] = rhythm
            places.append((part_number, line, first_bar, rhythm))
            sounding = tuple(
                chords[int((first_bar + start / melody.GRID) * units + 1e-9)] for start, _ in rhythm
            )
            phrases.append(
                Phrase(
                    part.name,
                    part_number,
                    tuple((start / 2, (start + length) / 2) for start, length in rhythm),
                    sounding,
                    tuple(_tone(syllable.phonemes) for syllable in own),
                    led=voice is None,
                )
            )
    result: list[tuple[int, int, list[tuple[float, float, int]]]] = []
    tunes = plan_melody(phrases, key=key, voice=voice, seed=seed)
    for (part_number, line, first_bar, rhythm), pitches in zip(places, tunes, strict=True):
        base = first_bar * BEATS
        times = [
            (base + swung(start / 2, style), base + swung((start + length) / 2, style))
            for start, length in rhythm
        ]
        # A rhythm never overlaps itself, swung or not.
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(times))
        notes = [(*span, pitch) for span, pitch in zip(times, pitches, strict=True)]
        result.append((part_number, line, notes))
    return result


def _tone(phonemes: str) -> int:
    """The tone of a syllable in pinyin; 0 of an English one."""
    return int(phonemes[-1]) if phonemes[-1:].isdigit() else 0
