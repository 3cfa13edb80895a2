"""Plans an arrangement: who plays in each section, how loud, where a fill leads on, and the end.

    sections = plan_arrangement(bars, seed=1)
    sections[0].plays, sections[0].energy, sections[0].fill

A song grows: a first verse is thinner than a second, a chorus has everybody, a bridge drops out or
builds, an outro thins. In songs of some length neighbours differ (`contrasted`). Songs without
words have a form of their own, with returns (`played_form`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.names import BAND
from mudit_engine.text.harmony import Bars

# the kinds of section that the networks have a column for; others read as "other"
SECTION_KINDS = (
    "intro",
    "verse",
    "pre-chorus",
    "chorus",
    "bridge",
    "solo",
    "outro",
    "other",
)
_KIND_OF = {
    "hook": "chorus",
    "post-chorus": "chorus",
    "rap": "verse",
    "interlude": "solo",
    "inst": "solo",
    "drop": "chorus",
}
LED = ("solo", "interlude", "inst", "drop")  # an instrument plays the tune where nobody sings
ENERGY = {
    "intro": 0.35,
    "verse": 0.5,
    "pre-chorus": 0.65,
    "chorus": 0.85,
    "bridge": 0.55,
    "solo": 0.8,
    "outro": 0.4,
    "other": 0.5,
}
CONTRASTED_SECONDS = 60.0  # of a song whose neighbouring sections are made to differ
_RHYTHM = {"drums", "bass"}
_LOUD, _THINNED = ("chorus", "solo"), ("verse", "bridge")
FILL_BEATS = 2.0  # the last ones of a section
_UNIT_BARS = 4
# forms of music without words, by how many units of four bars there are
_PLAYED_FORMS: dict[int, tuple[str, ...]] = {
    1: ("verse",),
    2: ("verse chorus", "verse verse"),
    3: ("verse chorus verse", "verse chorus chorus", "intro verse chorus"),
    4: ("verse chorus verse chorus", "verse verse chorus verse", "intro verse chorus outro"),
    5: ("intro verse chorus verse chorus", "verse chorus bridge chorus outro"),
    6: ("intro verse chorus verse chorus outro", "verse chorus verse chorus bridge chorus"),
    7: ("intro verse chorus verse chorus bridge chorus", "verse chorus verse chorus solo chorus"),
    8: (
        "intro verse chorus verse chorus bridge chorus outro",
        "intro verse verse chorus verse chorus solo chorus",
    ),
}


@dataclass(frozen=True, slots=True)
class PlannedSection:
    """One section of an arrangement.

    Args:
        name: as the lyrics or the form call it, such as "chorus".
        start, end: in seconds.
        plays: who of BAND plays in it.
        energy: 0 (hardly there) to 1 (as loud as it gets).
        fill: whether its last two beats lead on to the next section.
        ends: whether the song ends with it, on a chord that rings.

    Examples:
        >>> PlannedSection("chorus", 8.0, 16.0, ("drums", "bass", "chords"), 0.85).fill
        False
    """

    name: str
    start: float
    end: float
    plays: tuple[str, ...]
    energy: float
    fill: bool = False
    ends: bool = False

    @property
    def kind(self) -> str:
        """One of SECTION_KINDS."""
        return section_kind(self.name)


def section_kind(name: str) -> str:
    """The kind of section that a name stands for: "hook" is a chorus."""
    kind = _KIND_OF.get(name, name)
    return kind if kind in SECTION_KINDS else "other"


def section_of(fields: Mapping[str, Any]) -> PlannedSection:
    """A section of its fields, as JSON gives them.

    Raises:
        InputError: for unknown or missing fields, and players that are none.

    Examples:
        >>> section_of({"name": "verse", "start": 0, "end": 4, "plays": ["bass"], "energy": 0.5})
        PlannedSection(name='verse', start=0, end=4, plays=('bass',), energy=0.5, fill=False, \
ends=False)
    """
    try:
        one = PlannedSection(**{**fields, "plays": tuple(fields["plays"])})
    except (TypeError, KeyError) as error:
        raise InputError(
            f"section {dict(fields)!r} is no section of an arrangement ({error}): write name, "
            "start, end, plays, energy, and perhaps fill and ends"
        ) from None
    if unknown := set(one.plays) - set(BAND):
        raise InputError(f"section '{one.name}': {sorted(unknown)} are none of {', '.join(BAND)}")
    if not 0 <= one.start < one.end:
        raise InputError(f"section '{one.name}' lasts from {one.start} to {one.end} s")
    return one


def played_form(total: int, *, seed: int) -> tuple[tuple[str, int], ...]:
    """Sections (name, bars) of a song of `total` bars that nobody sings, with returns.

    Examples:
        >>> form = played_form(26, seed=1)
        >>> sum(bars for _, bars in form), len({name for name, _ in form}) >= 3
        (26, True)
    """
    chooser = random.Random(f"form {seed}")
    units = max(1, round(total / _UNIT_BARS))
    names = chooser.choice(_PLAYED_FORMS[min(units, max(_PLAYED_FORMS))]).split()
    edge = min(4, max(1, total // 16))
    bars = {name: edge if name in ("intro", "outro") else 2 for name in names}
    order = sorted(set(names), key=lambda name: (name in ("intro", "outro"), -names.count(name)))
    rest = total - sum(bars[name] for name in names)
    while rest > 0:  # two bars more for every section of a name, so that what returns is as long
        grown = False
        for name in order:
            if name not in ("intro", "outro") and 2 * names.count(name) <= rest:
                bars[name] += 2
                rest -= 2 * names.count(name)
                grown = True
        if not grown:
            break
    counts = [bars[name] for name in names]
    counts[-1] += rest  # a longer end, or a shorter one where there are hardly any bars
    while counts[-1] < 1:
        short = counts.pop()
        names.pop()
        if not counts:
            return (("verse", max(1, total)),)
        counts[-1] += short
    return tuple(zip(names, counts, strict=True))


def plan_arrangement(
    bars: Bars,
    *,
    seed: int,
    drums: bool = True,
    sung: Sequence[bool] | None = None,
    seconds: float | None = None,
) -> tuple[PlannedSection, ...]:
    """Who plays when.

    Args:
        bars: the sections of the song.
        seed: the song's.
        drums: False for a song without any.
        sung: of each section, whether somebody sings; None where nobody does in any.
        seconds: length of the song; the last chord rings until then.

    Returns:
        A section each.

    Examples:
        >>> bars = Bars(2.0, (("intro", 2), ("verse", 4), ("chorus", 4)))
        >>> [one.name for one in plan_arrangement(bars, seed=1)]
        ['intro', 'verse', 'chorus']
        >>> any("drums" in one.plays for one in plan_arrangement(bars, seed=1, drums=False))
        False
    """
    chooser = random.Random(f"arrangement {seed}")
    # the song's own habits, drawn once
    entrance = chooser.choice(("intro", "verse", "verse", "second verse", "chorus"))
    bare = chooser.choice((("chords",), ("chords", "pad"), ("chords", "bass"), ("pad",)))
    padded = chooser.choice(("always", "chorus", "late"))
    bridge = chooser.choice(("no drums", "no bass", "bare", "full"))
    times: dict[str, int] = {}
    planned: list[PlannedSection] = []
    start = 0.0
    last = len(bars.sections) - 1
    for number, (name, count) in enumerate(bars.sections):
        kind = section_kind(name)
        time = times[kind] = times.get(kind, 0) + 1
        plays = {"bass", "chords"}
        if kind == "intro":
            plays = {*bare} | ({"drums"} if entrance == "intro" else set())
        elif kind == "verse":
            plays |= {"pad"} if padded == "always" or (padded == "late" and time > 1) else set()
            if entrance in ("intro", "verse") or time > 1:
                plays |= {"drums"}
            elif entrance == "second verse":
                plays = {*bare}
        elif kind == "bridge":
            plays |= {"drums", "pad"}
            plays -= {"no drums": {"drums"}, "no bass": {"bass"}, "full": set()}.get(
                bridge, {"drums", "bass"}
            )
        elif kind == "outro":
            plays |= {"pad"}
            plays |= {"drums"} if chooser.random() < 0.4 else set()
        else:  # choruses, and what leads to them or is played as loud
            plays |= {"drums", "pad"}
        here_sung = sung is not None and sung[number]
        if not here_sung and (sung is None or name in LED):
            plays |= {"lead"}
        if not drums:
            plays -= {"drums"}
        energy = ENERGY[kind] + 0.07 * (time - 1) * (kind in ("verse", "chorus"))
        energy = min(1.0, max(0.1, energy + chooser.uniform(-0.05, 0.05)))
        end = start + count * bars.seconds
        planned.append(
            PlannedSection(
                name,
                round(start, 4),
                round(end if number < last or seconds is None else max(end, seconds), 4),
                tuple(one for one in BAND if one in plays),
                round(energy, 3),
                fill="drums" in plays and number < last,
                ends=number == last,
            )
        )
        start = end
    return tuple(planned)


def contrasted(sections: Sequence[PlannedSection], *, seed: int) -> tuple[PlannedSection, ...]:
    """The sections of a song of some length, with verses and bridges thinned beside what is loud:
    where neither drums nor bass would enter or leave at such a border, the quieter side goes
    without one of them, or without both. A song drops the same ones everywhere, but for what leads
    from a verse to a chorus, which differs from both.

    Args:
        sections: of an arrangement; below CONTRASTED_SECONDS they stay as they are.
        seed: the song's.

    Examples:
        >>> bars = Bars(2.0, (("verse", 8), ("chorus", 8), ("verse", 8), ("chorus", 8)))
        >>> found = contrasted(plan_arrangement(bars, seed=2), seed=2)
        >>> [{"drums", "bass"} - set(one.plays) != set() for one in found]
        [True, False, True, False]
    """
    if sections[-1].end < CONTRASTED_SECONDS:
        return tuple(sections)
    drums = any("drums" in one.plays for one in sections)
    habits = (("drums",), ("bass",), ("drums", "bass")) if drums else (("bass",),)
    dropped = random.Random(f"contrast {seed}").choice(habits)
    found = list(sections)
    for number in range(1, len(found)):
        before, here = found[number - 1], found[number]
        if _rhythm(before) != _rhythm(here):
            continue  # what enters or leaves is heard
        if here.kind in _LOUD and before.kind == "pre-chorus" and number > 1:
            ahead = _rhythm(found[number - 2])  # it differs from its verse as well
            thinner = (_without(before, one) for one in habits)
            found[number - 1] = next(
                (one for one in thinner if _rhythm(one) != ahead), _without(before, dropped)
            )
        elif here.kind in _LOUD and before.kind in (*_THINNED, "pre-chorus"):
            found[number - 1] = _without(before, dropped)
        elif before.kind in _LOUD and here.kind in _THINNED:
            found[number] = _without(here, dropped)
        elif before.kind == "verse" and here.kind == "pre-chorus":
            found[number - 1] = _without(before, dropped)
    return tuple(found)


def _rhythm(section: PlannedSection) -> set[str]:
    return _RHYTHM & {*section.plays}


def _without(section: PlannedSection, dropped: Sequence[str]) -> PlannedSection:
    plays = {*section.plays, "chords"} - {*dropped}
    fill = section.fill and "drums" in plays
    return replace(section, plays=tuple(one for one in BAND if one in plays), fill=fill)
