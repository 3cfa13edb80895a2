"""The outline of a song before a note of it exists: tempo, key, chords, and when each syllable of
the lyrics is sung.

Lines take whole bars of 4/4 and begin on their first beat, syllables lie on a grid of eighths, and
what time is left over goes to the parts that are only played. A model with `dit.outline` is told
beat, key, chord and syllable of every frame (models/outline.py).

    wishes = read_description("慢慢的钢琴曲")
    plan = plan_song(wishes, phonemize(parse_lyrics(text)), longest=60.0, seed=1)
    plan.seconds, plan.outline.bpm                            # 76.0, as no number says otherwise
    plan.outline.token_times, plan.outline.chords             # [tokens, 2] seconds, TimedChord's
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.text.composition.arrangement import PlannedSection, played_form
from mudit_engine.text.composition.compose import compose
from mudit_engine.text.composition.given import GivenMelody, sung_as_given
from mudit_engine.text.descriptions import requested_key
from mudit_engine.text.harmony import (
    TONIC_NAMES,
    Bars,
    TimedChord,
    parse_chords,
    planned_chords,
    repeated_chords,
)
from mudit_engine.text.length import (
    BEATS,
    EDGE_BARS,
    GRID,
    TAIL_SECONDS,
    fit,
    line_bars,
    planned_seconds,
    shortest_unit,
    timed_lines,
)
from mudit_engine.text.phonemes import PhonemeSequence, lines_of_sections
from mudit_engine.text.wish_tables import ANY_STYLE_BPM, STYLE_BPM
from mudit_engine.text.wishes import FAST_BPM, MEDIUM_BPM, SLOW_BPM, Wishes

LONGEST_NOTE_SECONDS, LONGEST_LAST_SECONDS = 0.9, 1.5
SHORTEST_SONG = 1.0
# share of major keys among the drawn ones, by the mode that the mood suggests
MAJOR_SHARE: dict[str | None, float] = {"major": 0.85, "minor": 0.15, None: 0.5}
MAJOR_TONICS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MINOR_TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
DEFAULT_SECONDS = 30.0  # of a song with no lyrics and no requested length


@dataclass(frozen=True)
class Controls:
    """What is said of a song beside its words: drums or none, who sings, the style. None is not
    said.

    Examples:
        >>> Controls(drums=True).voice is None
        True
    """

    drums: bool | None = None
    voice: str | None = None  # one of names.VOICES
    style: str | None = None  # one of names.STYLES


@dataclass(frozen=True)
class Outline:
    """What is known of a song's course before a note of it exists.

    Args:
        bpm: beats a minute.
        key: tonic and mode, such as "Eb major".
        token_times: float32 [L, 2], start and end in seconds of each lyric token, -1 for tokens
            that are not sung.
        chords: which chord sounds when.
        melody: notes that are sung or led.
        arrangement: sections, and who plays in them.
        controls: drums, voice and style.

    Examples:
        >>> Outline(bpm=84.0, key="A minor").chords
        ()
    """

    bpm: float | None = None
    key: str | None = None  # "Eb major", as text.descriptions.requested_key gives it
    token_times: np.ndarray | None = None  # [L, 2]
    chords: Sequence[TimedChord] = ()
    melody: Sequence[tuple[float, float, int]] = ()  # Note's
    arrangement: Sequence[PlannedSection] = ()
    controls: Controls = Controls()


@dataclass(frozen=True)
class SongPlan:
    """How long a song is and what happens when.

    `source` says of bpm, key, chords and seconds where each came from: "request", "words" of the
    description, "lyrics", "drawn" by the seed, "planned" or "default". `notes` are warnings for
    who asked for the song.
    """

    seconds: float
    outline: Outline
    source: dict[str, str]
    notes: tuple[str, ...] = ()


def plan_song(
    wishes: Wishes,
    phonemes: PhonemeSequence | None,
    *,
    longest: float,
    seed: int,
    outlined: bool = True,
    seconds: float | None = None,
    bpm: float | None = None,
    key: str | None = None,
    chords: str | None = None,
    composed: bool = False,
    melody: GivenMelody | None = None,
    controls: Controls | None = None,
) -> SongPlan:
    """Plans a song of wishes and lyrics: its length, tempo, key, chords and syllables.

    What is None is taken from the wishes, else planned: the length as the lyrics need, the tempo
    drawn by `seed` from the style's range, the key drawn by `seed` in the mode of the mood, chords
    in that key. Chords that were given choose their own key.

    Args:
        wishes: what the description asks for (text/wishes.py).
        phonemes: what is sung; None for an instrumental.
        longest: seconds that a song may have at most.
        seed: draws what nobody named.
        outlined: False for a model that takes no outline, which gets an empty one.
        seconds: the length that is wanted.
        bpm: the tempo that is wanted, beats a minute.
        key: the key that is wanted, such as "A minor".
        chords: the chords that are wanted, as `parse_chords` reads them.
        composed: whether melody and arrangement are planned too.
        melody: notes that are wanted; those of a file bring their rhythm, and their tempo where no
            other is asked for.
        controls: what is said of drums, voice and style.

    Returns:
        Length, outline, where each value came from, and notes for who sent the request.

    Raises:
        InputError: for chords that cannot be read, and a melody that does not fit the lyrics.

    Examples:
        >>> from mudit_engine.text.wishes import read_description
        >>> wishes = read_description("钢琴，C 大调，BPM 120")
        >>> plan = plan_song(wishes, None, longest=60.0, seed=1, seconds=16.8)
        >>> plan.outline.bpm, plan.outline.key, len(plan.outline.chords)
        (120.0, 'C major', 8)
        >>> plan.source["bpm"], plan.source["chords"]
        ('words', 'planned')
    """
    source = {"bpm": "request", "key": "request", "chords": "request", "seconds": "request"}
    said = controls or Controls()
    tempo = bpm
    if tempo is None and melody is not None and melody.bpm and wishes.bpm is None:
        tempo, source["bpm"] = melody.bpm, "melody"
    if tempo is None:
        tempo, source["bpm"] = planned_tempo(wishes, seed=seed)
    in_key = requested_key(key) if key else None
    if in_key is None and wishes.key:
        in_key, source["key"] = wishes.key, "words"
    elif in_key is None and not chords:
        in_key, source["key"] = drawn_key(wishes.mood, seed=seed), "drawn"
    notes: list[str] = []
    needed = DEFAULT_SECONDS if phonemes is None else planned_seconds(phonemes, bpm=tempo)
    if melody is not None and melody.timed:
        needed = melody.end_beat * 60 / tempo + TAIL_SECONDS
    length = seconds
    if length is None and wishes.seconds is not None:
        length, source["seconds"] = min(max(wishes.seconds, SHORTEST_SONG), longest), "words"
        if wishes.seconds > longest:
            notes.append(
                f"{wishes.seconds:g} s are asked for, and this model makes at most {longest:g} s"
            )
    elif length is None:
        length = min(needed, longest)
        source["seconds"] = "default" if phonemes is None else "lyrics"
        if needed > longest:
            notes.append(
                f"the lyrics need {needed:g} s: the model's limit of {longest:g} s decides the "
                "length, not the lyrics"
            )
    if phonemes is not None and (message := fit(phonemes, bpm=tempo, seconds=length).message):
        notes.append(message)
    if not outlined:
        return SongPlan(length, Outline(), source, tuple(notes))
    bars = plan_bars(phonemes, bpm=tempo, seconds=length)
    if composed and phonemes is None:
        total = sum(count for _, count in bars.sections)
        bars = Bars(bars.seconds, played_form(total, seed=seed))
    sounding: Sequence[TimedChord] = ()
    if chords:
        sounding = repeated_chords(bars, parse_chords(chords))
    elif in_key:
        sounding, source["chords"] = planned_chords(bars, in_key, seed=seed), "planned"
    syllables = times = None
    if phonemes is not None:
        syllables = plan_syllables(phonemes, bpm=tempo, seconds=length)
    if not composed:
        if phonemes is not None and syllables is not None:
            times = token_times(phonemes, syllables)
        outline = Outline(tempo, in_key, times, sounding, controls=said)
        return SongPlan(length, outline, source, tuple(notes))
    given = None
    if melody is not None:
        given = sung_as_given(melody, phonemes, syllables, bpm=tempo, seconds=length)
        syllables = given.syllables
    whole = compose(
        phonemes,
        bars,
        chords=sounding,
        syllables=syllables,
        key=in_key or _key_of(sounding),
        bpm=tempo,
        seed=seed,
        voice=said.voice or wishes.voice,
        drums=said.drums is not False and wishes.drums is not False,
        seconds=length,
    )
    source |= {"melody": "planned" if given is None else "request", "arrangement": "planned"}
    if phonemes is not None and syllables is not None:
        times = token_times(phonemes, syllables)
    outline = Outline(
        tempo,
        in_key,
        times,
        sounding,
        melody=whole.notes if given is None else given.notes,
        arrangement=whole.sections,
        controls=said,
    )
    return SongPlan(length, outline, source, tuple(notes))


def _key_of(chords: Sequence[TimedChord]) -> str:
    """The key that chords which were given without one are in: that of the first chord."""
    if not chords:
        raise InputError("a melody is planned in a key, or over chords: name one of them")
    first = chords[0].symbol
    minor = first.quality in ("min", "min7", "dim")
    return f"{TONIC_NAMES[first.root]} {'minor' if minor else 'major'}"


def planned_tempo(wishes: Wishes, *, seed: int) -> tuple[float, str]:
    """(beats a minute, where they come from): a number or words of the description, else drawn from
    the range in which the style is at home.
    """
    if wishes.bpm is not None:
        return wishes.bpm, "words"
    if wishes.tempo is not None:
        return {"slow": SLOW_BPM, "medium": MEDIUM_BPM, "fast": FAST_BPM}[wishes.tempo], "words"
    low, high = STYLE_BPM.get(wishes.style or "", ANY_STYLE_BPM)
    return float(random.Random(f"tempo {seed}").randint(low, high)), "drawn"


def drawn_key(mood: str | None, *, seed: int) -> str:
    """A key for a song that names none: any of the 24, its mode more often that of the mood."""
    chooser = random.Random(f"key {seed}")
    major = chooser.random() < MAJOR_SHARE[mood]
    tonics = MAJOR_TONICS if major else MINOR_TONICS
    return f"{chooser.choice(tonics)} {'major' if major else 'minor'}"


def token_times(song: PhonemeSequence, syllables: np.ndarray) -> np.ndarray:
    """(start, end) of each token [L, 2] from those of its syllable; -1 where none is sung."""
    times = np.full((len(song), 2), -1.0, np.float32)
    for token, number in enumerate(song.syllable_of):
        if number >= 0:
            times[token] = syllables[number]
    return times


def plan_syllables(song: PhonemeSequence, *, bpm: float, seconds: float) -> np.ndarray:
    """When each syllable is sung.

    Lines with a time stamp begin at it; those that would begin after the end are not sung (-1).
    Without stamps, bars that are left over go to played parts, then before the first and behind the
    last sung one. Where the lyrics need more bars than there are, all times shrink in proportion.

    Args:
        song: what is sung.
        bpm: beats a minute.
        seconds: length of the song.

    Returns:
        float32 [syllables, 2], start and end in seconds, within the song.

    Examples:
        >>> from mudit_engine.text.lyrics import parse_lyrics
        >>> from mudit_engine.text.phonemes import phonemize
        >>> song = phonemize(parse_lyrics("[verse]\\n月亮升起来"))
        >>> times = plan_syllables(song, bpm=80.0, seconds=12.0)
        >>> times.shape, bool((times[1:, 0] >= times[:-1, 1]).all())
        ((5, 2), True)
    """
    if song.timed:
        return _timed_syllables(song, bpm, seconds)
    plan = _plan(song, bpm, seconds)
    times: list[tuple[float, float]] = []
    start = float(plan.before)
    for (_, lines), lengths in zip(plan.sections, plan.bars, strict=True):
        for count, length in zip(lines, lengths, strict=False):
            rhythm = _rhythm(count, length, bpm)
            times += [(start + a / GRID, start + b / GRID) for a, b in rhythm]
            start += length
        if not lines:
            start += lengths[0]
    return (np.array(times, np.float64).reshape(-1, 2) * plan.bar_seconds).astype(np.float32)


def plan_bars(song: PhonemeSequence | None, *, bpm: float, seconds: float) -> Bars:
    """The whole bars of a song's plan at its tempo, section by section.

    What is left of the song behind them is its last chord's to ring. Sections of hurried lyrics
    take their shares of the bars there are.

    Args:
        song: what is sung; None gives one long verse.
        bpm: beats a minute.
        seconds: length of the song.

    Returns:
        The length of a bar in seconds, and (name, bars) of each section.

    Examples:
        >>> plan_bars(None, bpm=120.0, seconds=16.8)
        Bars(seconds=2.0, sections=(('verse', 8),))
    """
    bar = BEATS * 60 / bpm
    total = max(1, _whole_bars(seconds, bar))
    if song is None:
        return Bars(bar, (("verse", total),))
    if song.timed:
        return Bars(bar, tuple(_timed_bars(song, bpm, total)))
    plan = _plan(song, bpm, seconds)
    named = [
        ("intro", plan.before),
        *(
            (name, sum(lengths))
            for (name, _), lengths in zip(plan.sections, plan.bars, strict=True)
        ),
    ]
    needed = sum(count for _, count in named)
    ends = [
        round(end * min(1.0, total / needed))
        for end in itertools.accumulate(count for _, count in named)
    ]
    named = [
        (name, end - start) for (name, _), start, end in zip(named, [0, *ends], ends, strict=False)
    ]
    return Bars(
        bar, tuple((name, count) for name, count in (*named, ("outro", total - ends[-1])) if count)
    )


def _timed_syllables(song: PhonemeSequence, bpm: float, seconds: float) -> np.ndarray:
    times: list[tuple[float, float]] = []
    for line in timed_lines(song, bpm=bpm):
        if line.start >= seconds:
            times += [(-1.0, -1.0)] * line.syllables
            continue
        grid = line.seconds / line.bars / GRID
        rhythm = _rhythm(line.syllables, line.bars, bpm)
        times += [
            (min(line.start + a * grid, seconds), min(line.start + b * grid, seconds))
            for a, b in rhythm
        ]
    return np.array(times, np.float64).reshape(-1, 2).astype(np.float32)


def _timed_bars(song: PhonemeSequence, bpm: float, total: int) -> Iterator[tuple[str, int]]:
    """Sections from the bar in which their first line begins to that of the next."""
    bar = BEATS * 60 / bpm
    names = [kind for kind, _ in lines_of_sections(song)]
    begins: list[tuple[str, int]] = [("intro", 0)]
    seen = -1
    for line in timed_lines(song, bpm=bpm):
        if line.section != seen:
            seen = line.section
            begins.append((names[seen], int(line.start / bar + 0.05)))
    ends = [begin for _, begin in begins[1:]] + [total]
    for (name, begin), end in zip(begins, ends, strict=True):
        if min(end, total) > min(begin, total):
            yield name, min(end, total) - min(begin, total)


def _whole_bars(seconds: float, bar: float) -> int:
    return int((seconds - TAIL_SECONDS) / bar + 0.05)


@dataclass(frozen=True)
class _Plan:
    """`bars` are those of each line of a section, or its one number of bars; `before` the first
    section come played ones.
    """

    sections: list[tuple[str, list[int]]]
    bars: list[list[int]]
    before: int
    bar_seconds: float


def _plan(song: PhonemeSequence, bpm: float, seconds: float) -> _Plan:
    sections = lines_of_sections(song)
    bar = BEATS * 60 / bpm
    bars = [[line_bars(count, bpm) for count in lines] or [EDGE_BARS] for _, lines in sections]
    needed = sum(map(sum, bars))
    spare = _whole_bars(seconds, bar) - needed
    before = 0
    if spare > 0:
        played = [number for number, (_, lines) in enumerate(sections) if not lines]
        if played:
            for number, extra in zip(played, _shares(spare, len(played)), strict=True):
                bars[number] = [bars[number][0] + extra]
        else:
            before = (spare + 1) // 2
    elif spare < 0:
        bar = max(seconds - TAIL_SECONDS, 0.5 * seconds) / needed
    return _Plan(sections, bars, before, bar)


def _shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole shares, the first the larger ones."""
    return [total // parts + (number < total % parts) for number in range(parts)]


def _rhythm(syllables: int, bars: int, bpm: float) -> Sequence[tuple[int, int]]:
    """(start, end) in eighths: even notes of whole units, the longer ones last, none longer than
    can be held.
    """
    unit = shortest_unit(bpm)
    slots = bars * GRID // unit - 1  # the last one is for the breath
    seconds = 30 / bpm * unit
    longest = max(1, int(LONGEST_NOTE_SECONDS / seconds))
    lengths = [min(longest, slots // max(syllables, 1))] * syllables
    spare = slots - sum(lengths)
    while (
        spare
        and lengths[-1] * seconds + seconds <= LONGEST_LAST_SECONDS
        and lengths[-1] <= lengths[0]
    ):
        lengths[-1], spare = lengths[-1] + 1, spare - 1
    for place in range(syllables - 2, -1, -2):  # every other note, from the end
        if spare and lengths[place] < longest:
            lengths[place], spare = lengths[place] + 1, spare - 1
    ends = np.cumsum(lengths) * unit
    return [(int(end) - length * unit, int(end)) for end, length in zip(ends, lengths, strict=True)]
