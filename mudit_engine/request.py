"""What somebody asks for: one song, every field checked by type and range when it is made.

    SongRequest(description="流行抒情，钢琴", lyrics="[verse]\n月亮升起来", seconds=30, seed=1)
    request_from_fields({"description": "...", "bpm": 84}, where="songs.jsonl line 3")

Requests come from the command line, a manifest, Python or a server: all of them end here, so that a
wrong value is refused with the same words everywhere, before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.names import REFERENCE_KINDS, STYLES, USER_TYPES, VOICES
from mudit_engine.text.descriptions import FASTEST_BPM, SLOWEST_BPM, requested_key
from mudit_engine.text.harmony import parse_chords

MIN_SECONDS = 1.0
LONGEST_TEXT = 1_000_000  # characters of a description, of what to avoid, or of chords
HIGHEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SongRequest:
    """One song that is wanted. A field of a wrong type or range raises InputError, which names it.

    Args:
        description: the song in somebody's own words, Chinese or English.
        lyrics: lines under section tags such as [verse]; None or '' asks for an instrumental.
        seconds: length in seconds, at least 1; None is as long as the lyrics need.
        user_type: who wrote the description: 'none', 'amateur' or 'professional'.
        reference: an audio file that the song should follow.
        reference_kind: what that file holds: 'mix', 'vocals', 'drums', 'chords' or 'bass'.
        negative: what the song should not be; acts only with guidance above 1.
        seed: 0 to 2^63 - 1; None draws one, which the sidecar names.
        bpm: beats a minute; None is as the description says.
        key: a tonic and a mode such as "C minor" or "降E大调"; None is as the description says.
        chords: a chord a bar, "C G Am F", or bars with more, "C | Am F | G" (text/harmony.py);
            None are planned in the key.
        melody: a note a syllable, "C4 D4 E4 | G4", where | ends a line (text/composition/given.py);
            None is planned by a model that follows melodies.
        melody_file: a MIDI or MusicXML file with the melody and its rhythm, instead.
        drums: whether there are some, whatever the description says.
        voice: 'female', 'male', 'child' or 'none', likewise.
        style: one of `names.STYLES`, likewise.
        planned: False for a song of which nothing is planned: the model is told the description,
            the lyrics and the length alone.
        edit: a song that this one changes or goes on from: the audio file or sidecar of an earlier
            song, or any audio file.
        repaint: with `edit`, the seconds that are made anew, such as "30-45" or "30-45, 60-62.5";
            all others stay.
        extend: with `edit`, how many seconds are added behind its end. With neither, the song
            begins with the edited one and goes on to its own length.
        ignore_times: whether LRC time stamps of the lyrics are dropped; else a line starts at its
            time.
        sampler: fields of SamplerConfig that differ from the model's own, such as {"steps": 20}.

    Examples:
        >>> SongRequest(description="慢歌，钢琴", bpm=72, seed=1).bpm
        72.0
    """

    description: str = ""
    lyrics: str | None = None
    seconds: float | None = None
    user_type: str = "none"
    reference: str | Path | None = None
    reference_kind: str = "mix"
    negative: str = ""
    seed: int | None = None
    bpm: float | None = None
    key: str | None = None
    chords: str | None = None
    melody: str | None = None
    melody_file: str | Path | None = None
    drums: bool | None = None
    voice: str | None = None
    style: str | None = None
    planned: bool = True
    edit: str | Path | None = None
    repaint: str | None = None
    extend: float | None = None
    ignore_times: bool = False
    sampler: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._text("description")
        self._text("negative")
        for name in ("lyrics", "key", "chords", "melody", "repaint"):
            if getattr(self, name) is not None:
                self._text(name)
        self._choice("user_type", USER_TYPES)
        self._choice("reference_kind", REFERENCE_KINDS)
        for name, accepted in (("voice", VOICES), ("style", STYLES)):
            if getattr(self, name) is not None:
                self._choice(name, accepted)
        for name in ("drums", "planned", "ignore_times"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "drums" and value is None):
                raise InputError(f"{name} {_shown(value)} is of a wrong type: give true or false")
        empty = not self.description.strip() and not (self.lyrics or "").strip()
        if empty and self.edit is None:
            raise InputError("the request is empty: give a description, lyrics, or both")
        for name, what in (
            ("reference", "an audio"),
            ("melody_file", "a MIDI or MusicXML"),
            ("edit", "an audio"),
        ):
            file = getattr(self, name)
            if file is not None and (not isinstance(file, (str, os.PathLike)) or not str(file)):
                raise InputError(
                    f"{name} {_shown(file)} is of a wrong type: give the path of {what} file"
                )
        if self.seconds is not None:
            self._number(
                "seconds", "a number of seconds, or leave it out for the lyrics' own length"
            )
            if not self.seconds >= MIN_SECONDS:
                raise InputError(
                    f"seconds={self.seconds:g} is too short: ask for at least {MIN_SECONDS:g}"
                )
        if self.bpm is not None:
            self._number("bpm", f"beats a minute, {SLOWEST_BPM:g} to {FASTEST_BPM:g}")
            if not SLOWEST_BPM <= self.bpm <= FASTEST_BPM:
                raise InputError(
                    f"bpm={self.bpm:g} is out of range: use {SLOWEST_BPM:g} to {FASTEST_BPM:g}"
                )
        if self.key is not None and requested_key(self.key) is None:
            raise InputError(
                f"key {_shown(self.key)} is unknown: write a tonic and a mode, such as 'C major', "
                "'F# minor' or '降E大调'"
            )
        if self.chords is not None:
            parse_chords(self.chords)
        if self.melody is not None:
            if self.melody_file is not None:
                raise InputError("melody and melody_file are both given: keep one of them")
            from mudit_engine.text.composition.given import parse_melody  # numpy: not for --help

            parse_melody(self.melody)
        if not self.planned:
            for name in ("bpm", "key", "chords", "melody", "melody_file"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{name} is part of a plan, and planned=false asks for none: leave one out"
                    )
        self._check_edit()
        if self.seed is not None:
            self._whole_number("seed", "a whole number from 0 to 2^63 - 1")
            if not 0 <= self.seed <= HIGHEST_SEED:
                raise InputError(
                    f"seed={self.seed} is out of range: use a whole number from 0 to 2^63 - 1"
                )
        if not isinstance(self.sampler, Mapping) or not all(
            isinstance(name, str) for name in self.sampler
        ):
            raise InputError(
                f"sampler {_shown(self.sampler)} is of a wrong type: give an object of its "
                'fields, such as {"name": "ode-heun", "steps": 20}'
            )
        # numpy's scalars as Python's, which the sampler's configuration takes
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in self.sampler.items()}
        object.__setattr__(self, "sampler", plain)

    def _check_edit(self) -> None:
        for name in ("repaint", "extend"):
            if getattr(self, name) is not None and self.edit is None:
                raise InputError(f"{name} changes a song: name it with edit")
        if self.repaint is not None:
            repaint_spans(self.repaint)
        if self.extend is not None:
            self._number("extend", "a number of seconds")
            if not self.extend >= MIN_SECONDS:
                raise InputError(
                    f"extend={self.extend:g} is too short: add at least {MIN_SECONDS:g} s"
                )

    def _text(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, str):
            wanted = (
                "write them as one text, such as 'C G Am F'" if name == "chords" else "give a text"
            )
            raise InputError(f"{name} {_shown(value)} is of a wrong type: {wanted}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name} holds a broken character at place {error.start + 1} (half of a surrogate "
                "pair): write it again as UTF-8"
            ) from None
        if name != "lyrics" and len(value) > LONGEST_TEXT:
            raise InputError(f"{name} has {len(value):,} characters: at most {LONGEST_TEXT:,}")

    def _choice(self, name: str, accepted: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in accepted:
            raise InputError(f"{name} {_shown(value)} is unknown: use one of {', '.join(accepted)}")

    def _number(self, name: str, wanted: str) -> None:
        """A float in place of any real number, numpy's included; its range decides on NaN."""
        value: Any = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputError(f"{name} {_shown(value)} is of a wrong type: give {wanted}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            raise InputError(f"{name}={number:g} is not finite: give {wanted}")
        object.__setattr__(self, name, number)

    def _whole_number(self, name: str, wanted: str) -> None:
        value: Any = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InputError(f"{name} {_shown(value)} is of a wrong type: give {wanted}")
        object.__setattr__(self, name, int(value))


FIELDS = tuple(one.name for one in dataclasses.fields(SongRequest))
# fields that name a file of the machine, and those that act on one: nobody else's request has them
FILE_FIELDS = ("reference", "melody_file", "edit", "repaint", "extend")
REMOTE_FIELDS = tuple(name for name in FIELDS if name not in FILE_FIELDS)


def request_from_fields(fields: Any, *, where: str) -> SongRequest:
    """A request of its fields by name, as JSON gives them; null is the field's default.

    Args:
        fields: an object with fields of SongRequest.
        where: names the source in messages, such as "songs.jsonl line 3".

    Returns:
        The request.

    Raises:
        InputError: for anything but an object, for unknown fields, and for what SongRequest
            refuses.

    Examples:
        >>> request_from_fields({"description": "慢歌", "bpm": 72}, where="line 1").bpm
        72.0
    """
    if not isinstance(fields, Mapping):
        raise InputError(
            f"{where} holds a {type(fields).__name__}: give an object of fields such as "
            '{"description": "..."}'
        )
    refuse_unknown(fields, FIELDS, where=where)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return SongRequest(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def refuse_unknown(fields: Mapping[str, Any], known: tuple[str, ...], *, where: str) -> None:
    """Raises InputError that names the unknown fields, with the known one nearest to the first."""
    unknown = [str(name) for name in fields if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f", did you mean '{near[0]}'?" if near else f": known are {', '.join(known)}"
        raise InputError(f"{where}: unknown field(s) {', '.join(unknown)}{hint}")


def repaint_spans(text: str) -> tuple[tuple[float, float], ...]:
    """Spans in seconds of "30-45, 60-62.5", in their order.

    Raises:
        InputError: for anything else, and for spans that end before they begin or overlap.

    Examples:
        >>> repaint_spans("30-45, 60-62.5")
        ((30.0, 45.0), (60.0, 62.5))
    """
    spans: list[tuple[float, float]] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*", part)
        if found is None:
            raise InputError(
                f"repaint {_shown(text)} holds '{part.strip()}': write seconds as 30-45, several "
                "with commas between them"
            )
        start, end = float(found[1]), float(found[2])
        if start >= end or (spans and start < spans[-1][1]):
            raise InputError(
                f"repaint {_shown(text)}: {part.strip()} ends before it begins, or before the one "
                "before it ends"
            )
        spans.append((start, end))
    return tuple(spans)


def _shown(value: object) -> str:
    """A value in a message: short, and with its type where that is the fault."""
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"
