"""How much of what was to be sung was heard: errors of phonemes, line by line.

    asked = phonemes_by_line("[verse]\\n月亮升起来\\n银行长大了")     # [['ve', 'l', ...], ...]
    line_errors(asked, heard)                                     # [0.0, 0.25]
    lyric_error("[verse]\\n月亮升起来", "月亮升起了")               # the lines' mean

All phonemes of the song are aligned with all that were heard by fewest edits (Levenshtein), so that
a line which was left out costs its own line and none after it. A line's error is its edits over its
phonemes, at most 1: substitutions and deletions of its own phonemes, and what was heard between one
of them and the next (of a line that was sung twice, the line before may pay). Tones and stress do
not count: the melody overrides them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.phonemes import phonemize


def phonemes_by_line(lyrics: str) -> list[list[str]]:
    """Phonemes of every sung line, without tones and stress.

    Args:
        lyrics: with or without section tags.

    Returns:
        A list a line; lines of which nothing can be sung are left out.

    Raises:
        InputError: for readings in braces that are none.

    Examples:
        >>> phonemes_by_line("月亮")
        [['ve', 'l', 'iang']]
    """
    if not lyrics.strip():
        return []
    song = phonemize(parse_lyrics(lyrics))
    lines: list[list[str]] = [[]]
    for token, syllable in zip(song.tokens, song.syllable_of, strict=True):
        if token == "<line>":
            lines.append([])
        elif syllable >= 0:
            lines[-1].append(token.rstrip("0123456789"))
    return [line for line in lines if line]


def line_errors(asked: Sequence[Sequence[str]], heard: Sequence[str]) -> list[float]:
    """Error of each asked line, 0 to 1; see the module's docstring. Raises InputError for an empty
    line.
    """
    if not all(asked):
        raise InputError("a line without phonemes has no error: leave it out")
    wanted = [phoneme for line in asked for phoneme in line]
    line_of = [number for number, line in enumerate(asked) for _ in line]
    edits = [0] * len(asked)
    for place in _edited(wanted, list(heard)):
        if wanted:
            edits[line_of[place]] += 1
    return [min(1.0, count / len(line)) for count, line in zip(edits, asked, strict=True)]


def lyric_error(lyrics: str, heard: str) -> float | None:
    """Mean error of the lines of `lyrics` in a text that was heard; None where nothing is to be
    sung.
    """
    asked = phonemes_by_line(lyrics)
    if not asked:
        return None
    found = [phoneme for line in phonemes_by_line(heard) for phoneme in line]
    return float(np.mean(line_errors(asked, found)))


def _edited(wanted: Sequence[str], heard: Sequence[str]) -> list[int]:
    """The place among `wanted` of each edit; insertions are at the place before them."""
    rows, columns = len(wanted), len(heard)
    known = {name: number for number, name in enumerate(dict.fromkeys([*wanted, *heard]))}
    other = np.array([known[name] for name in heard])
    cost = np.zeros((rows + 1, columns + 1), np.int32)
    cost[0] = ramp = np.arange(columns + 1)
    for i, name in enumerate(wanted, 1):
        best = np.empty(columns + 1, np.int64)
        best[0] = i
        best[1:] = np.minimum(cost[i - 1, 1:] + 1, cost[i - 1, :-1] + (other != known[name]))
        # insertions chain to the right: the least of all earlier ones plus the way from there
        cost[i] = np.minimum.accumulate(best - ramp) + ramp
    places, i, j = [], rows, columns
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (wanted[i - 1] != heard[j - 1]):
            if wanted[i - 1] != heard[j - 1]:
                places.append(i - 1)
            i, j = i - 1, j - 1
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            places.append(i - 1)
            i -= 1
        else:
            places.append(max(0, i - 1))
            j -= 1
    return places
