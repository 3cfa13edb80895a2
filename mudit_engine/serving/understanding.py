"""What the engine understood of a request, for people to see and correct: sections, the reading of
every character, the lines' times, tempo, key, chords and description terms.

    shown = understanding(understood, config)        # JSON values
    shown["sections"][0]["lines"][0]["syllables"]    # text, reading, other readings of each

A reading is corrected in the lyrics themselves, behind the character: 长{zhang3}, 长[zhang3].
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mudit_engine.config import ModelConfig
from mudit_engine.reading import Understood
from mudit_engine.text.length import LyricFit, fit
from mudit_engine.text.lyrics import LyricLine
from mudit_engine.text.mandarin import is_han, parse_syllable, read_han
from mudit_engine.text.phonemes import GIVEN_READING, PhonemeSequence, given_in
from mudit_engine.text.wishes import MEDIUM_BPM


def understanding(understood: Understood, config: ModelConfig) -> dict[str, Any]:
    """The request as the model reads it."""
    outline, phonemes = understood.outline, understood.phonemes
    found: LyricFit | None = None
    if phonemes is not None:
        bpm = outline.bpm or MEDIUM_BPM
        found = fit(phonemes, bpm=bpm, seconds=understood.seconds)
    return {
        "seconds": understood.seconds,
        "max_seconds": config.max_seconds,
        "bpm": outline.bpm,
        "key": outline.key,
        "chords": understood.chords,
        "outline": config.dit.outline,
        "tags": list(understood.fragments),
        "steps": len(understood.table.times),
        "notes": list(understood.notes),
        "budget": None
        if found is None
        else {
            "syllables": found.syllables,
            "rate": round(found.rate, 2),
            "fits": found.fits,
            "suggested_seconds": found.needed,
        },
        "sections": _sections(understood),
    }


def _sections(understood: Understood) -> list[dict[str, Any]]:
    if understood.lyrics is None or understood.phonemes is None:
        return []
    spans = iter(line_times(understood.phonemes, understood.outline.token_times))
    shown = []
    for section in understood.lyrics.sections:
        lines = []
        for line in section.lines:
            start, end = next(spans, (None, None))
            lines.append(
                {
                    "number": line.number,
                    "text": GIVEN_READING.sub("", line.text),
                    "syllables": readings(line),
                    "start": start,
                    "end": end,
                }
            )
        shown.append({"kind": section.kind, "lines": lines})
    return shown


def line_times(
    song: PhonemeSequence, times: np.ndarray | None
) -> list[tuple[float | None, float | None]]:
    """(first, last) second of every line of words, None where nothing is planned."""
    spans: list[tuple[float | None, float | None]] = []
    own: list[int] = []
    for place, token in enumerate(song.tokens):
        if token == "<line>":
            spans.append(_span(own, times))
            own = []
        elif song.syllable_of[place] >= 0:
            own.append(place)
    return spans


def _span(places: list[int], times: np.ndarray | None) -> tuple[float | None, float | None]:
    if times is None or not places:
        return None, None
    sung = times[places]
    sung = sung[sung[:, 0] >= 0]
    if not len(sung):
        return None, None
    return round(float(sung[:, 0].min()), 3), round(float(sung[:, 1].max()), 3)


def readings(line: LyricLine) -> list[dict[str, Any]]:
    """Every Han character of a line with its reading and the others it may have; other text is one
    piece without a reading.
    """
    shown: list[dict[str, Any]] = []
    text, place = line.text, 0
    while place < len(text):
        if not is_han(text[place]):
            stop = place + 1
            while stop < len(text) and not is_han(text[stop]):
                stop += 1
            shown.append({"text": text[place:stop], "at": place})
            place = stop
            continue
        characters: list[dict[str, Any]] = []
        while place < len(text):
            if is_han(text[place]):
                characters.append({"text": text[place], "at": place, "end": place + 1})
                place += 1
            elif match := GIVEN_READING.match(text, place):
                _given(characters, match)
                place = match.end()
            else:
                break
        found = read_han("".join(one["text"] for one in characters))
        for one, reading in zip(characters, found, strict=True):
            one.setdefault("reading", reading.syllable)
            one.setdefault("confidence", round(reading.confidence, 2))
            known = (reading.syllable, *reading.others)
            one["others"] = [other for other in known if other and other != one["reading"]]
        shown += characters
    return shown


def _given(characters: list[dict[str, Any]], match: re.Match[str]) -> None:
    """Readings in braces are of the characters before them."""
    written = given_in(match).split()
    for one, syllable in zip(characters[-len(written) :] if written else [], written, strict=False):
        own = parse_syllable(syllable) or syllable
        one |= {"reading": own, "corrected": True, "confidence": 1.0}
    if characters:
        characters[-1]["end"] = match.end()
