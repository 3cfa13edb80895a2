"""The form of a song: which sections, how many lyric lines each, how many bars.

A lyric line takes `bars_per_line` bars: one bar at slow tempos, two at fast ones, so that syllables
last 0.2-0.7 s at any BPM.

    plan = draw_form(rng, bpm=92, target_seconds=24.0)
    [(part.name, part.bars) for part in plan.parts]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BEATS = 4
MIN_SECONDS, MAX_SECONDS = 12.0, 240.0
LONG_SECONDS = 40.0  # longer songs have forms with more returns and longer sections
TAIL_SECONDS = 0.8  # after the last bar, for the last chord to ring

# Each section with the line counts it may have (0 lines: instrumental bars, counted in half lines
# for intro and outro).
_SKELETONS: tuple[tuple[str, ...], ...] = (
    ("verse", "chorus"),
    ("intro", "verse", "chorus"),
    ("intro", "verse", "chorus", "outro"),
    ("verse", "pre-chorus", "chorus"),
    ("intro", "verse", "pre-chorus", "chorus", "outro"),
    ("intro", "verse", "verse", "chorus"),
    ("intro", "chorus", "verse", "chorus"),
    ("verse", "chorus", "bridge", "chorus"),
    ("intro", "verse", "chorus", "bridge", "chorus", "outro"),
    ("intro", "verse", "chorus", "verse", "chorus", "outro"),
    ("intro", "verse", "pre-chorus", "chorus", "bridge", "chorus", "outro"),
    ("intro", "verse"),
    ("intro", "verse", "outro"),
    ("chorus", "outro"),
    ("verse", "bridge", "chorus"),
    ("intro", "verse", "bridge", "chorus"),
    ("chorus", "bridge", "chorus", "outro"),
    ("intro", "chorus", "bridge", "chorus"),
)
_LONG_SKELETONS: tuple[tuple[str, ...], ...] = (
    ("intro", "verse", "chorus", "verse", "chorus", "outro"),
    ("intro", "verse", "chorus", "verse", "chorus", "bridge", "chorus", "outro"),
    ("intro", "verse", "verse", "chorus", "verse", "chorus", "outro"),
    ("intro", "verse", "pre-chorus", "chorus", "verse", "pre-chorus", "chorus", "outro"),
    (
        *("intro", "verse", "pre-chorus", "chorus", "verse", "pre-chorus", "chorus"),
        *("bridge", "chorus", "outro"),
    ),
    (
        *("intro", "verse", "chorus", "verse", "chorus", "bridge", "verse", "chorus"),
        *("chorus", "outro"),
    ),
    (
        *("intro", "verse", "verse", "chorus", "verse", "verse", "chorus", "bridge", "chorus"),
        *("chorus", "outro"),
    ),
)
_LONG_LINES = {
    "intro": (0,),
    "outro": (0,),
    "verse": (4, 6, 8),
    "pre-chorus": (2,),
    "chorus": (4, 6, 8),
    "bridge": (2, 4),
}
_LINES = {
    "intro": (0,),
    "outro": (0,),
    "verse": (2, 4),
    "pre-chorus": (1, 2),
    "chorus": (2, 4),
    "bridge": (2,),
}


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    lines: int
    first_bar: int
    bars: int


@dataclass(frozen=True, slots=True)
class Plan:
    parts: tuple[Part, ...]
    bars_per_line: int
    bar_seconds: float

    @property
    def bars(self) -> int:
        return self.parts[-1].first_bar + self.parts[-1].bars

    @property
    def seconds(self) -> float:
        return self.bars * self.bar_seconds + TAIL_SECONDS


def bars_per_line(bpm: int) -> int:
    """1 up to 88 BPM (a bar is at least 2.7 s), 2 above."""
    return 1 if bpm <= 88 else 2


def _plans(bpm: int, *, long: bool) -> list[Plan]:
    """Every form at this tempo that lasts MIN_SECONDS..MAX_SECONDS. Equal section names have equal
    line counts.
    """
    per_line = bars_per_line(bpm)
    bar_seconds = 60.0 / bpm * BEATS
    found = []
    counts = _LONG_LINES if long else _LINES
    for skeleton in _LONG_SKELETONS if long else _SKELETONS:
        names = sorted(set(skeleton))
        choices: list[dict[str, int]] = [{}]
        for name in names:
            choices = [{**choice, name: lines} for choice in choices for lines in counts[name]]
        for choice in choices:
            for edge_bars in (2, 4) if long else (1, 2):
                if edge_bars != 1 and not {"intro", "outro"} & set(skeleton):
                    continue
                parts, bar = [], 0
                for name in skeleton:
                    lines = choice[name]
                    bars = lines * per_line if lines else edge_bars
                    if name == "outro" and not long:
                        bars = 1
                    parts.append(Part(name, lines, bar, bars))
                    bar += bars
                plan = Plan(tuple(parts), per_line, bar_seconds)
                if MIN_SECONDS <= plan.seconds <= MAX_SECONDS:
                    found.append(plan)
    return found


def draw_form(
    rng: np.random.Generator, *, bpm: int, target_seconds: float, longest: float = MAX_SECONDS
) -> Plan:
    """A form near `target_seconds` (within 2.5 s when the tempo has one) and of at most `longest`,
    drawn at random among those.
    """
    long = target_seconds > LONG_SECONDS
    most = longest if long else min(longest, LONG_SECONDS)
    plans = [plan for plan in _plans(bpm, long=long) if plan.seconds <= most]
    if not plans:  # at slow tempos the shortest whole song lasts more than a minute
        plans = _plans(bpm, long=False)
    near = [plan for plan in plans if abs(plan.seconds - target_seconds) <= 2.5]
    if not near:
        best = min(abs(plan.seconds - target_seconds) for plan in plans)
        near = [plan for plan in plans if abs(plan.seconds - target_seconds) <= best + 0.01]
    # Forms with more kinds of section are the rarer and the more telling ones.
    weights = np.array([len({part.name for part in plan.parts}) ** 1.5 for plan in near])
    return near[int(rng.choice(len(near), p=weights / weights.sum()))]
