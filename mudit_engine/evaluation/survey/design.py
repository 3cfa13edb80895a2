"""Who hears what in a listening test, and what is asked: forms that are balanced, shuffled, blind.

    design = rating_forms(["A", "B", "C"], requests, trials=12, forms=30, seed=0)
    design = pair_forms(["A", "B"], requests, trials=12, forms=30, seed=0)

Over all forms every song is heard as often as any other, give or take one; within a form every
system, and every request, as often as any other, give or take one, where the sizes allow. The order
is shuffled so that a system or request seldom follows itself. In pairs, each system is the first of
two as often as the second.

The questions below are eight, as many as the paper's Table 2 has columns; their wording is ours.
Another set comes from a file (`load_questions`).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

from mudit_engine.errors import InputError
from mudit_engine.files import read_text
from mudit_engine.request import refuse_unknown

Mode = Literal["rating", "pairs"]
SCALE = (1, 2, 3, 4, 5)
ORDERS_TRIED = 40


@dataclass(frozen=True)
class Question:
    """A criterion: its short id, and its wording in English and Chinese."""

    id: str
    en: str
    zh: str


QUESTIONS = (
    Question("quality", "Overall quality", "整体质量"),
    Question("relevance", "It matches the description", "与描述相符"),
    Question("melody", "The melody is pleasant and coherent", "旋律悦耳、连贯"),
    Question("rhythm", "The rhythm is steady and fitting", "节奏稳定、合适"),
    Question("harmony", "Voice and accompaniment fit together", "人声与伴奏协调"),
    Question("vocals", "The voice sounds natural", "人声自然"),
    Question("lyrics", "The lyrics can be understood", "歌词清晰可懂"),
    Question("structure", "The song has a clear and complete form", "结构清楚、完整"),
)
PAIR_QUESTIONS = (
    Question("prefer", "Which song do you like more?", "更喜欢哪一首?"),
    Question("relevance", "Which song matches the description better?", "哪一首更符合描述?"),
)


@dataclass(frozen=True)
class Trial:
    """What is heard at once: a request's song of one system, or of two. `check` is the answer that
    an attention check asks for (0: none); `repeats` says that the same was heard before.
    """

    request: str
    systems: tuple[str, ...]
    check: int = 0
    repeats: bool = False


def load_questions(path: Path) -> tuple[Question, ...]:
    """Questions from a JSON list of {id, en, zh}. Raises InputError that names what is wrong."""
    try:
        listed = json.loads(read_text(path, "questions"))
    except json.JSONDecodeError as error:
        raise InputError(f"questions '{path}' are not JSON: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise InputError(f'questions \'{path}\': a list of {{"id", "en", "zh"}} is needed')
    found = []
    for number, one in enumerate(listed, 1):
        where = f"questions '{path}' entry {number}"
        if not isinstance(one, dict):
            raise InputError(f'{where}: an object with "id", "en" and "zh" is needed')
        refuse_unknown(one, ("id", "en", "zh"), where=where)
        texts = [one.get(name) for name in ("id", "en", "zh")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f'{where}: "id", "en" and "zh" are texts that are not empty')
        found.append(Question(*map(str, texts)))
    if len({one.id for one in found}) < len(found):
        raise InputError(f"questions '{path}': two have the same id")
    return tuple(found)


def rating_forms(
    systems: Sequence[str],
    requests: Sequence[str],
    *,
    trials: int,
    forms: int,
    checks: int = 1,
    repeats: int = 1,
    seed: int = 0,
) -> list[list[Trial]]:
    """Forms of `trials` songs each, and the checks and repeats among them.

    Raises InputError where a form would hold a song twice.
    """
    songs = [(one,) for one in systems]
    return _forms(songs, requests, trials, forms, checks, repeats, random.Random(seed))


def pair_forms(
    systems: Sequence[str],
    requests: Sequence[str],
    *,
    trials: int,
    forms: int,
    checks: int = 1,
    repeats: int = 1,
    seed: int = 0,
) -> list[list[Trial]]:
    """Forms of `trials` pairs each. Raises InputError for one system, or as rating_forms."""
    if len(systems) < 2:
        raise InputError("pairs are of two systems: give two folders or more, or rate songs")
    rng = random.Random(seed)
    made = _forms(list(combinations(systems, 2)), requests, trials, forms, checks, repeats, rng)
    turned: Counter[tuple[str, ...]] = Counter()
    for form in made:
        for place, trial in enumerate(form):
            if trial.repeats or trial.check:
                continue
            pair = trial.systems
            back = turned[pair[::-1]] < turned[pair] or (
                turned[pair[::-1]] == turned[pair] and rng.random() < 0.5
            )
            shown = pair[::-1] if back else pair
            turned[shown] += 1
            form[place] = Trial(trial.request, shown, trial.check)
        # a repeat shows the same two songs in the other order
        first = {
            (t.request, frozenset(t.systems)): t.systems
            for t in form
            if not t.repeats and not t.check
        }
        for place, trial in enumerate(form):
            if trial.repeats:
                shown = first[trial.request, frozenset(trial.systems)][::-1]
                form[place] = Trial(trial.request, shown, repeats=True)
    return made


def _forms(
    stimuli: Sequence[tuple[str, ...]],
    requests: Sequence[str],
    trials: int,
    forms: int,
    checks: int,
    repeats: int,
    rng: random.Random,
) -> list[list[Trial]]:
    most = len(stimuli) * len(requests)
    if not 1 <= trials <= most:
        raise InputError(
            f"{trials} trials a listener: {len(requests)} requests give 1 to {most} different ones"
        )
    heard: Counter[tuple[tuple[str, ...], str]] = Counter()
    made = []
    for _ in range(forms):
        chosen = _one_form(stimuli, requests, trials, heard, rng)
        heard.update(chosen)
        plain = [Trial(request, stimulus) for stimulus, request in chosen]
        order = _ordered(plain, rng)
        made.append(_with_checks(order, checks, repeats, rng))
    return made


def _one_form(
    stimuli: Sequence[tuple[str, ...]],
    requests: Sequence[str],
    trials: int,
    heard: Counter[tuple[tuple[str, ...], str]],
    rng: random.Random,
) -> list[tuple[tuple[str, ...], str]]:
    """The least heard songs, as evenly as possible over systems and requests."""
    chosen: list[tuple[tuple[str, ...], str]] = []
    of_stimulus: Counter[tuple[str, ...]] = Counter()
    of_request: Counter[str] = Counter()
    left = [(stimulus, request) for stimulus in stimuli for request in requests]
    luck = {one: rng.random() for one in left}
    total = Counter(stimulus for stimulus, _ in heard.elements())
    while len(chosen) < trials:
        best = min(
            left,
            key=lambda one: (
                heard[one],
                of_stimulus[one[0]],
                of_request[one[1]],
                total[one[0]] + of_stimulus[one[0]],
                luck[one],
            ),
        )
        chosen.append(best)
        left.remove(best)
        of_stimulus[best[0]] += 1
        of_request[best[1]] += 1
    return chosen


def _ordered(trials: Sequence[Trial], rng: random.Random) -> list[Trial]:
    """The best of some shuffles: fewest neighbours of one system or request."""

    def clashes(order: Sequence[Trial]) -> int:
        return sum(
            (a.systems == b.systems) + 2 * (a.request == b.request) for a, b in pairwise(order)
        )

    shuffles = [rng.sample(list(trials), len(trials)) for _ in range(ORDERS_TRIED)]
    return min(shuffles, key=clashes)


def _with_checks(order: list[Trial], checks: int, repeats: int, rng: random.Random) -> list[Trial]:
    """Repeats of early trials go to the end, attention checks anywhere after the first trial."""
    form = list(order)
    early = order[: max(1, len(order) // 2)]
    for trial in rng.sample(early, min(repeats, len(early))):
        form.append(Trial(trial.request, trial.systems, repeats=True))
    for _ in range(checks):
        host = rng.choice(order)
        # never the middle: who answers the same to everything passes less easily
        asked = rng.choice((1, 2, 4, 5)) if len(host.systems) == 1 else rng.choice((1, 2))
        form.insert(rng.randint(1, len(form)), Trial(host.request, host.systems, check=asked))
    return form


def as_document(trial: Trial) -> dict[str, Any]:
    """What the key file keeps of a trial."""
    return {
        "request": trial.request,
        "systems": list(trial.systems),
        "check": trial.check,
        "repeats": trial.repeats,
    }
