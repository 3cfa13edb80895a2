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
MIN_SECONDS, MAX_SECONDS = 12.0, 40.0
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


def _plans(bpm: int) -> list[Plan]:
    """Every form at this tempo that lasts MIN_SECONDS..MAX_SECONDS. Equal section names have equal
    line counts.
    """
    per_line = bars_per_line(bpm)
    bar_seconds = 60.0 / bpm * BEATS
    found = []
    for skeleton in _SKELETONS:
        names = sorted(set(skeleton))
        choices: list[dict[str, int]] = [{}]
        for name in names:
            choices = [{**choice, name: lines} for choice in choices for lines in _LINES[name]]
        for choice in choices:
            for edge_bars in (1, 2):
                if edge_bars == 2 and not {"intro", "outro"} & set(skeleton):
                    continue
                parts, bar = [], 0
                for name in skeleton:
                    lines = choice[name]
                    bars = lines * per_line if lines else (edge_bars if name == "intro" else 1)
                    parts.append(Part(name, lines, bar, bars))
                    bar += bars
                plan = Plan(tuple(parts), per_line, bar_seconds)
                if MIN_SECONDS <= plan.seconds <= MAX_SECONDS:
                    found.append(plan)
    return found


def draw_form(rng: np.random.Generator, *, bpm: int, target_seconds: float) -> Plan:
    """A form near `target_seconds` (within 2.5 s when the tempo has one), drawn at random among
    those.
    """
    plans = _plans(bpm)
    near = [plan for plan in plans if abs(plan.seconds - target_seconds) <= 2.5]
    if not near:
        best = min(abs(plan.seconds - target_seconds) for plan in plans)
        near = [plan for plan in plans if abs(plan.seconds - target_seconds) <= best + 0.01]
    # Forms with more kinds of section are the rarer and the more telling ones.
    weights = np.array([len({part.name for part in plan.parts}) ** 1.5 for plan in near])
    return near[int(rng.choice(len(near), p=weights / weights.sum()))]
