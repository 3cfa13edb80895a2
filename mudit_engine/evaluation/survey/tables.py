"""What a listening test says: the paper's Table 2 with its t-tests, and tests that fit the data.

    report = judge_ratings(key, heard)            # or judge_preferences
    report.rows, report.differences, report.agreement

Table 2's cell is a mean with its standard deviation over ratings, for each system and question, of
all listeners and of each user type. Every pair of systems is tested in each question four ways:

- `p_paper`: Student's t over all ratings, as tables in the literature do; it takes ratings of one
  listener, or of one song, for independent and finds too much,
- `p_paired`: paired t over the means of listeners who heard both,
- `p_rank`: Wilcoxon's signed ranks of the same means,
- `p_mixed`: a mixed model with random intercepts of listener, request, song, and listener by
  system, which speaks of other listeners and other songs. This one is adjusted (Holm) and told.

With the spread of the listeners' differences it says how many listeners would find `difference`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.evaluation.survey.answers import Heard, Key, Preference, Rating
from mudit_engine.metrics import ratings as tests
from mudit_engine.metrics.figures import Figure, ratio
from mudit_engine.metrics.mixed_model import fit_mixed
from mudit_engine.metrics.significance import holm

EVERYBODY = "all"


@dataclass(frozen=True)
class Cell:
    """Ratings of one system to one question: mean, standard deviation, and the mean's interval
    from a bootstrap over listeners.
    """

    system: str
    user: str
    question: str
    mean: float
    sd: float
    low: float | None
    high: float | None
    ratings: int
    listeners: int


@dataclass(frozen=True)
class RatingDifference:
    """System a less system b in one question. `effect` is Cohen's d of the listeners' means (None
    without spread), `needed` the listeners that would find the asked difference.
    """

    a: str
    b: str
    question: str
    listeners: int
    difference: float
    p_paper: float | None
    p_paired: float | None
    p_rank: float | None
    p_mixed: float | None
    effect: float | None
    cliffs_delta: float
    needed: int | None
    adjusted_p: float | None = None


@dataclass(frozen=True)
class Wins:
    """How often a was preferred to b among decided answers, and the sign test of the listeners'
    majorities.
    """

    a: str
    b: str
    user: str
    question: str
    wins: int
    losses: int
    draws: int
    share: Figure
    p: float
    adjusted_p: float | None = None


@dataclass(frozen=True)
class SurveyReport:
    """Everything that a test says. Agreement is Krippendorff's alpha by question (ratings), or of
    the choices (pairs); strengths are Bradley and Terry's by question.
    """

    mode: str
    rows: list[Cell] = field(default_factory=list)
    differences: list[RatingDifference] = field(default_factory=list)
    wins: list[Wins] = field(default_factory=list)
    strengths: dict[str, dict[str, float]] = field(default_factory=dict)
    agreement: dict[str, float | None] = field(default_factory=dict)
    friedman: dict[str, float | None] = field(default_factory=dict)
    repeat_error: float | None = None  # mean distance of a listener's two answers to one song
    facts: dict[str, Any] = field(default_factory=dict)


def judge(key: Key, heard: Heard, *, difference: float = 0.5) -> SurveyReport:
    """The report of a test of either mode. `difference` is what listeners should be able to find,
    in points of the scale. Raises InputError when no listener counts.
    """
    if not heard.listeners:
        reasons = "; ".join(f"{who}: {why}" for who, why in list(heard.left_out.items())[:5])
        raise InputError(f"no listener's answers count ({reasons or 'no answers'})")
    facts = {
        "listeners": len(heard.listeners),
        "by_user_type": dict(Counter(heard.listeners.values())),
        "left_out": heard.left_out,
        "backgrounds": heard.backgrounds,
        "difference_to_find": difference,
    }
    error = float(np.mean([abs(a - b) for a, b in heard.repeats])) if heard.repeats else None
    report = (
        _judge_ratings(key, heard.ratings, difference)
        if key.mode == "rating"
        else _judge_preferences(key, heard.preferences)
    )
    return replace(report, repeat_error=error, facts=facts)


def _judge_ratings(key: Key, ratings: Sequence[Rating], difference: float) -> SurveyReport:
    users = sorted({one.user for one in ratings})
    rows = []
    for user in (EVERYBODY, *users) if len(users) > 1 else (EVERYBODY,):
        for system, question in itertools.product(key.systems, key.questions):
            chosen = [
                one
                for one in ratings
                if one.system == system
                and one.question == question
                and user in (EVERYBODY, one.user)
            ]
            if chosen:
                rows.append(_cell(system, user, question, chosen))
    found, agreement, alike = [], {}, {}
    for question in key.questions:
        own = [one for one in ratings if one.question == question]
        agreement[question] = tests.krippendorff_alpha(_matrix(own), level="ordinal")
        means = _listener_means(own)
        whole = [
            [row[name] for name in key.systems]
            for row in means.values()
            if len(row) == len(key.systems)
        ]
        alike[question] = tests.friedman(np.array(whole)) if whole else None
        found += _differences(key, question, own, means, difference)
    return SurveyReport("rating", rows, _adjusted(found), agreement=agreement, friedman=alike)


def _cell(system: str, user: str, question: str, chosen: Sequence[Rating]) -> Cell:
    values = np.array([one.value for one in chosen], float)
    number = {name: place for place, name in enumerate(sorted({one.listener for one in chosen}))}
    interval = ratio([number[one.listener] for one in chosen], values.tolist(), [1.0] * len(values))
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    low, high = (interval.low, interval.high) if len(number) > 1 else (None, None)
    return Cell(
        system, user, question, float(values.mean()), sd, low, high, len(values), len(number)
    )


def _matrix(ratings: Sequence[Rating]) -> np.ndarray:
    """[listeners, songs], NaN where a listener did not hear one."""
    listeners = {name: n for n, name in enumerate(sorted({one.listener for one in ratings}))}
    songs = {name: n for n, name in enumerate(sorted({(r.system, r.request) for r in ratings}))}
    rows = np.full((len(listeners), len(songs)), np.nan)
    for one in ratings:
        rows[listeners[one.listener], songs[one.system, one.request]] = one.value
    return rows


def _listener_means(ratings: Sequence[Rating]) -> dict[str, dict[str, float]]:
    held: dict[str, dict[str, list[int]]] = {}
    for one in ratings:
        held.setdefault(one.listener, {}).setdefault(one.system, []).append(one.value)
    return {
        listener: {system: float(np.mean(values)) for system, values in own.items()}
        for listener, own in held.items()
    }


def _differences(
    key: Key,
    question: str,
    ratings: Sequence[Rating],
    means: dict[str, dict[str, float]],
    difference: float,
) -> list[RatingDifference]:
    present = [name for name in key.systems if any(one.system == name for one in ratings)]
    fit = _fit(present, ratings)
    found = []
    for a, b in itertools.combinations(present, 2):
        ours, theirs = ([one.value for one in ratings if one.system == name] for name in (a, b))
        both = [(row[a], row[b]) for row in means.values() if a in row and b in row]
        first, second = ([pair[n] for pair in both] for n in (0, 1))
        enough = len(both) >= 2
        spread = float(np.std(np.subtract(first, second), ddof=1)) if enough else 0.0
        contrast = [(name == a) - (name == b) for name in present]
        mixed = fit.test(contrast) if fit else None
        found.append(
            RatingDifference(
                a,
                b,
                question,
                len(both),
                mixed.estimate if mixed else float(np.mean(ours) - np.mean(theirs)),
                tests.students_t(ours, theirs) if min(len(ours), len(theirs)) > 1 else None,
                tests.paired_t(first, second) if enough else None,
                tests.signed_rank(first, second) if enough else None,
                mixed.p if mixed else None,
                tests.cohens_d(first, second) if enough else None,
                tests.cliffs_delta(ours, theirs),
                tests.listeners_needed(difference, spread) if spread > 0 else None,
            )
        )
    return found


def _fit(present: Sequence[str], ratings: Sequence[Rating]) -> Any:
    """The mixed model, or None where there are too few ratings or listeners for one."""
    if len({one.listener for one in ratings}) < 2 or len(present) < 2:
        return None
    x = np.array([[float(one.system == name) for name in present] for one in ratings])
    groups = {
        "listener": [one.listener for one in ratings],
        "request": [one.request for one in ratings],
        "song": [f"{one.system}\n{one.request}" for one in ratings],
        "listener by system": [f"{one.listener}\n{one.system}" for one in ratings],
    }
    # a grouping of as many groups as ratings is the residual under another name
    useful = {name: labels for name, labels in groups.items() if len(set(labels)) < len(ratings)}
    if len(ratings) <= len(present) + 1:
        return None
    return fit_mixed(np.array([one.value for one in ratings], float), x, useful)


def _adjusted(found: Sequence[RatingDifference]) -> list[RatingDifference]:
    tested = [one for one in found if one.p_mixed is not None]
    adjusted = iter(holm([one.p_mixed for one in tested if one.p_mixed is not None]))
    return [
        one if one.p_mixed is None else replace(one, adjusted_p=next(adjusted)) for one in found
    ]


def _judge_preferences(key: Key, preferences: Sequence[Preference]) -> SurveyReport:
    users = sorted({one.user for one in preferences})
    found = []
    for user in (EVERYBODY, *users) if len(users) > 1 else (EVERYBODY,):
        for question, (a, b) in itertools.product(
            key.questions, itertools.combinations(key.systems, 2)
        ):
            own = [
                one
                for one in preferences
                if one.question == question
                and {one.winner, one.loser} == {a, b}
                and user in (EVERYBODY, one.user)
            ]
            if own:
                found.append(_wins(a, b, user, question, own))
    adjusted = iter(holm([one.p for one in found if one.user == EVERYBODY]))
    found = [
        replace(one, adjusted_p=next(adjusted)) if one.user == EVERYBODY else one for one in found
    ]
    strengths, agreement = {}, {}
    for question in key.questions:
        own = [one for one in preferences if one.question == question]
        wins: dict[tuple[str, str], float] = {}
        for one in own:
            for pair, won in (((one.winner, one.loser), 1.0), ((one.loser, one.winner), 0.0)):
                wins[pair] = wins.get(pair, 0.0) + (0.5 if one.draw else won)
        if wins:
            strengths[question] = tests.bradley_terry(wins)
        agreement[question] = _choice_agreement(own)
    return SurveyReport("pairs", wins=found, strengths=strengths, agreement=agreement)


def _wins(a: str, b: str, user: str, question: str, own: Sequence[Preference]) -> Wins:
    decided = [one for one in own if not one.draw]
    number = {name: place for place, name in enumerate(sorted({one.listener for one in decided}))}
    wins = sum(one.winner == a for one in decided)
    share = ratio(
        [number[one.listener] for one in decided],
        [float(one.winner == a) for one in decided],
        [1.0] * len(decided),
    )
    # a listener's answers are not independent: each listener is one vote
    votes = Counter[str]()
    for one in decided:
        votes[one.listener] += 1 if one.winner == a else -1
    p = tests.sign_test(sum(v > 0 for v in votes.values()), sum(v < 0 for v in votes.values()))
    return Wins(a, b, user, question, wins, len(decided) - wins, len(own) - len(decided), share, p)


def _choice_agreement(own: Sequence[Preference]) -> float | None:
    listeners = {name: n for n, name in enumerate(sorted({one.listener for one in own}))}
    pairs = {
        name: n
        for n, name in enumerate(
            sorted({(one.request, *sorted((one.winner, one.loser))) for one in own})
        )
    }
    if not own:
        return None
    rows = np.full((len(listeners), len(pairs)), np.nan)
    for one in own:
        first, second = sorted((one.winner, one.loser))
        value = 0 if one.draw else (1 if one.winner == first else -1)
        rows[listeners[one.listener], pairs[one.request, first, second]] = value
    return tests.krippendorff_alpha(rows, level="ordinal")
