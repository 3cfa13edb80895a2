"""Reads the answers of a listening test: which listeners count, and what they said of which song.

    key = load_key(Path("survey/key.json"))
    heard = read_answers(key, sorted(Path("answers").glob("*.json")))
    heard.ratings, heard.preferences, heard.left_out

A listener counts who passed every attention check and answered all of the form (partial forms are
counted too with `partial`). Checks and repeats are no ratings; the repeats say how well listeners
agree with themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.files import read_text

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Key:
    """What a test hides from its listeners. Trials by id: {request, systems, check, repeats}."""

    survey: str
    mode: str
    scale: tuple[int, ...]
    questions: tuple[str, ...]
    wording: Mapping[str, str]
    systems: tuple[str, ...]
    requests: Mapping[str, Mapping[str, str]]
    trials: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Rating:
    """What one listener said to one question about one song."""

    listener: str
    user: str
    question: str
    system: str
    request: str
    value: int


@dataclass(frozen=True)
class Preference:
    """Which of two songs of a request a listener prefers; `draw` where neither."""

    listener: str
    user: str
    question: str
    request: str
    winner: str
    loser: str
    draw: bool


@dataclass(frozen=True)
class Heard:
    """Answers that count; why others do not (listener -> reason); listeners by user type."""

    ratings: list[Rating] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    listeners: dict[str, str] = field(default_factory=dict)
    repeats: list[tuple[int, int]] = field(default_factory=list)  # first and second answer
    backgrounds: dict[str, dict[str, int]] = field(default_factory=dict)


def load_key(path: Path) -> Key:
    """The key of a test. Raises InputError for a file that is none."""
    fields = _json(path, "key")
    try:
        return Key(
            str(fields["survey"]),
            str(fields["mode"]),
            tuple(fields["scale"]),
            tuple(one["id"] for one in fields["questions"]),
            {one["id"]: one["en"] for one in fields["questions"]},
            tuple(fields["systems"]),
            dict(fields["requests"]),
            dict(fields["trials"]),
        )
    except (KeyError, TypeError):
        raise InputError(
            f"'{path}' is no key of a listening test: give the key.json that "
            "`mudit eval survey make` wrote beside the page"
        ) from None


def answer_files(paths: Sequence[Path]) -> list[Path]:
    """Files, and the JSON files of folders. Raises InputError for a path that is missing."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.glob("*.json"))
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"no answers at '{path}': check the path")
    if not found:
        raise InputError("no answers: give the files that listeners saved, or their folder")
    return found


def read_answers(
    key: Key, files: Sequence[Path], *, keep_failed: bool = False, partial: bool = False
) -> Heard:
    """Reads files of answers. With keep_failed those who failed a check count too.

    Raises InputError that names the file: not JSON, of another test, a listener twice, a value
    beyond the scale.
    """
    heard = Heard()
    seen: dict[str, Path] = {}
    for path in files:
        told = _json(path, "answers")
        if told.get("survey") != key.survey:
            raise InputError(
                f"answers '{path}' are of another test (survey {told.get('survey')!r}, the key's "
                f"is '{key.survey}'): give the key.json of theirs"
            )
        listener = str(told.get("listener") or path.stem)
        if listener in seen:
            raise InputError(
                f"answers '{path}' and '{seen[listener]}' are of one listener "
                f"('{listener}'): keep the later one"
            )
        seen[listener] = path
        _read_one(key, told, listener, path, heard, keep_failed=keep_failed, partial=partial)
    return heard


def _read_one(
    key: Key,
    told: Mapping[str, Any],
    listener: str,
    path: Path,
    heard: Heard,
    *,
    keep_failed: bool,
    partial: bool,
) -> None:
    background = told.get("background") or {}
    user = str(background.get("user") or UNKNOWN)
    known: dict[str, dict[str, int]] = {}
    answers = told.get("answers")
    if not isinstance(answers, list):
        raise InputError(f"answers '{path}' hold no list of answers: save the page's file again")
    failed = 0
    for one in answers:
        trial = key.trials.get(str(one.get("trial")))
        if trial is None:
            raise InputError(f"answers '{path}' name a trial '{one.get('trial')}' of no form")
        scores = _scores(key, one, path)
        if trial["check"]:
            # in pairs the page's values are 1 = A, 2 = no difference, 3 = B
            wanted = trial["check"] if key.mode == "rating" else (1, 3)[trial["check"] - 1]
            failed += bool(scores) and any(value != wanted for value in scores.values())
        elif scores:
            known[str(one["trial"])] = scores
    expected = [name for name in key.trials if name.startswith(f"{int(told.get('form', 0)) + 1}-")]
    whole = all(
        any(
            str(one.get("trial")) == name and len(one.get("scores", {})) == len(key.questions)
            for one in answers
        )
        for name in expected
    )
    if failed and not keep_failed:
        heard.left_out[listener] = f"failed {failed} attention check(s)"
        return
    if not whole and not partial:
        heard.left_out[listener] = f"answered {len(answers)} of {len(expected)} trials"
        return
    heard.listeners[listener] = user
    for name, value in background.items():
        counts = heard.backgrounds.setdefault(str(name), {})
        counts[str(value)] = counts.get(str(value), 0) + 1
    first: dict[tuple[str, frozenset[str]], tuple[Mapping[str, Any], dict[str, int]]] = {}
    for name, scores in known.items():
        trial = key.trials[name]
        same = (str(trial["request"]), frozenset(trial["systems"]))
        if trial["repeats"]:
            if same in first:
                _repeat(key, trial, scores, *first[same], heard)
            continue
        first[same] = (trial, scores)
        for question, value in scores.items():
            if key.mode == "rating":
                heard.ratings.append(
                    Rating(listener, user, question, trial["systems"][0], trial["request"], value)
                )
            else:
                a, b = trial["systems"]
                winner, loser = (b, a) if value == 3 else (a, b)
                heard.preferences.append(
                    Preference(
                        listener, user, question, trial["request"], winner, loser, value == 2
                    )
                )


def _repeat(
    key: Key,
    trial: Mapping[str, Any],
    scores: Mapping[str, int],
    first: Mapping[str, Any],
    before: Mapping[str, int],
    heard: Heard,
) -> None:
    for question, value in scores.items():
        if question in before:
            turned = key.mode == "pairs" and trial["systems"] != first["systems"]
            heard.repeats.append((before[question], 4 - value if turned else value))


def _scores(key: Key, one: Mapping[str, Any], path: Path) -> dict[str, int]:
    accepted = key.scale if key.mode == "rating" else (1, 2, 3)
    found = {}
    for question, value in (one.get("scores") or {}).items():
        if question not in key.questions or value not in accepted or isinstance(value, bool):
            raise InputError(
                f"answers '{path}', trial {one.get('trial')}: {question!r} = {value!r} is no "
                f"answer of this test (questions {', '.join(key.questions)}; values "
                f"{accepted[0]} to {accepted[-1]})"
            )
        found[question] = int(value)
    return found


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise InputError(f"{what} file '{path}' is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{what} file '{path}' is not an object")
    return fields
