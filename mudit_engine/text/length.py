"""How long lyrics last: the one estimate that check, generate and every warning go by.

Lines take whole bars of 4/4 at the song's tempo: one or two, doubled until their syllables fit with
a breath behind them. Parts with no words last a bar at least. Lyrics with time stamps last until
their last line is sung.

    planned_seconds(phonemes, bpm=100)              29.0
    fit(phonemes, bpm=100, seconds=20).message      '228 syllables do not fit into 20 s ...'
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from mudit_engine.errors import InputError
from mudit_engine.text.phonemes import PhonemeSequence, lines_of_sections

BEATS = 4  # of a bar
GRID = 2 * BEATS  # eighths of a bar
ONE_BAR_BPM = 88.0  # up to this tempo a line fits one bar; above, two
SHORTEST_NOTE_SECONDS = 0.26
EDGE_BARS = 1  # of an intro, an outro or another part with no words, where nothing asks for more
TAIL_SECONDS = 0.8  # behind the last bar, for the last chord to ring
# Syllables a second while a line lasts: what sounds hurried where much less time is left than
# planned, and what cannot be understood.
HURRIED_RATE, HURRIED_RAP_RATE, HURRIED_SHARE = 2.0, 4.0, 0.75
FASTEST_RATE, FASTEST_RAP_RATE = 4.5, 7.0
SHORTEST_LINE_REST_SECONDS = 0.2  # behind every line
SPARSE_SECONDS = 30.0  # so many more than twice what lyrics fill are worth a word
INSTRUMENTAL_SECONDS = 30.0  # the least for a song with no words at all
PLAYED_SECONDS = {"inst": 16.0, "solo": 12.0, "break": 4.0}  # of such a song
PLAYED_SECONDS_OTHERWISE = 8.0


@dataclass(frozen=True)
class LyricFit:
    """Whether lyrics fit a length.

    `rate`: syllables a second while lines last, `needed`: the seconds that the lyrics fill when
    nothing is stretched or cut; `fits` is False when lines would be lost; `message`: what to tell
    the user, if anything.
    """

    syllables: int
    seconds: float
    needed: float
    rate: float
    fits: bool
    message: str | None


def fit(song: PhonemeSequence, *, bpm: float, seconds: float) -> LyricFit:
    """Holds lyrics against a length. Raises InputError for one that is no positive number."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"a song cannot last {seconds} seconds: give a positive number")
    needed, least = planned_seconds(song, bpm=bpm), shortest_seconds(song)
    parts = lines_of_sections(song)
    bars = sum(line_bars(count, bpm) for _, lines in parts for count in lines)
    pressed = min(1.0, seconds / needed)
    sung_seconds = bars * BEATS * 60 / bpm * pressed
    rate = song.syllables / sung_seconds if bars else 0.0
    hurried = HURRIED_RAP_RATE if all(kind == "rap" for kind, n in parts if n) else HURRIED_RATE
    message = None
    if song.timed:
        late = sum(start is not None and start >= seconds for start in song.starts)
        if late:
            message = (
                f"{late} lines start after the end of the song at {seconds:g} s and are not sung: "
                f"ask for {needed:g} s, or drop the times"
            )
        return LyricFit(song.syllables, seconds, needed, rate, not late, message)
    if seconds < least:
        message = (
            f"{song.syllables} syllables do not fit into {seconds:g} s: lines would be skipped or "
            f"swallowed. They need at least {math.ceil(least)} s; comfortable are {needed:g} s. "
            f"Ask for more seconds or shorten the lyrics"
        )
    elif pressed < HURRIED_SHARE and rate > hurried:
        message = (
            f"{song.syllables} syllables in {seconds:g} s will sound hurried ({rate:.1f} a second "
            f"while a line lasts): comfortable are {needed:g} s"
        )
    elif seconds > 2 * needed + SPARSE_SECONDS and song.syllables:
        message = (
            f"the lyrics fill about {needed:g} s of {seconds:g} s: the rest is played without a "
            f"voice"
        )
    return LyricFit(song.syllables, float(seconds), needed, rate, seconds >= least, message)


def planned_seconds(song: PhonemeSequence, *, bpm: float) -> float:
    """Whole seconds of the plan when nothing is stretched or cut (text/outline.py)."""
    parts = lines_of_sections(song)
    if not song.syllables:
        return max(
            INSTRUMENTAL_SECONDS,
            sum(PLAYED_SECONDS.get(kind, PLAYED_SECONDS_OTHERWISE) for kind, _ in parts),
        )
    bar = BEATS * 60 / bpm
    if song.timed:
        timed = timed_lines(song, bpm=bpm)
        behind = EDGE_BARS * sum(1 for _ in itertools.takewhile(lambda p: not p[1], parts[::-1]))
        return float(math.ceil(timed[-1].start + timed[-1].seconds + behind * bar + TAIL_SECONDS))
    bars = sum(sum(line_bars(count, bpm) for count in lines) or EDGE_BARS for _, lines in parts)
    return float(math.ceil(bars * bar + TAIL_SECONDS))


def shortest_seconds(song: PhonemeSequence) -> float:
    """Seconds below which lines are lost: nothing but words at the fastest rate."""
    total = 0.0
    for kind, lines in lines_of_sections(song):
        rate = FASTEST_RAP_RATE if kind == "rap" else FASTEST_RATE
        total += sum(count / rate + SHORTEST_LINE_REST_SECONDS for count in lines)
    return total


def shortest_unit(bpm: float) -> int:
    """Shortest note in eighths."""
    return 1 if 30 / bpm >= SHORTEST_NOTE_SECONDS else 2


def line_bars(syllables: int, bpm: float) -> int:
    """Bars of a line: one or two by the tempo, doubled until its syllables fit with a breath behind
    them.
    """
    bars = 1 if bpm <= ONE_BAR_BPM else 2
    while syllables > bars * GRID // shortest_unit(bpm) - 1:
        bars *= 2
    return bars


@dataclass(frozen=True)
class TimedLine:
    """When a line is sung. `section`: its number; `bars` of the rhythm that `seconds` hold."""

    section: int
    syllables: int
    start: float
    seconds: float
    bars: int


def timed_lines(song: PhonemeSequence, *, bpm: float) -> list[TimedLine]:
    """Lines at their own times, those without behind the line before.

    A line is as long as its bars at this tempo, but ends where the next begins. A start before that
    of the line ahead is not heeded.
    """
    bar = BEATS * 60 / bpm
    starts = iter(song.starts)
    lines: list[TimedLine] = []
    end = 0.0
    for number, (_, counts) in enumerate(lines_of_sections(song)):
        if not counts:
            end += EDGE_BARS * bar
        for count in counts:
            start = next(starts, None)
            if start is None or (lines and start <= lines[-1].start):
                start = end
            bars = line_bars(count, bpm)
            lines.append(TimedLine(number, count, start, bars * bar, bars))
            end = start + bars * bar
    for place, (line, following) in enumerate(itertools.pairwise(lines)):
        if line.start + line.seconds > following.start:
            cut = following.start - line.start
            lines[place] = TimedLine(line.section, line.syllables, line.start, cut, line.bars)
    return lines
