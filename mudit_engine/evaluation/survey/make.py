"""Makes a listening test: a folder with a static page that any web server can show, or a browser
from the disk, and a key that stays at home.

    made = make_survey(systems, asked, Path("survey"), Options(trials=12, forms=30))
    made.page               # survey/page/index.html?form=1 .. 30, a link for each listener
    made.key                # survey/key.json: which song is whose; not for listeners

Songs are written anew under names that tell nothing, without tags, at one loudness, so that no
system is preferred for being louder. The page holds neither names of systems nor ids of requests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mudit_engine.audio import load_audio, save_audio
from mudit_engine.errors import InputError
from mudit_engine.evaluation.songs import Track, silent_track
from mudit_engine.evaluation.survey.design import (
    PAIR_QUESTIONS,
    QUESTIONS,
    SCALE,
    Mode,
    Question,
    Trial,
    as_document,
    pair_forms,
    rating_forms,
)
from mudit_engine.evaluation.systems import Asked, System, check_paired
from mudit_engine.files import atomic_path, write_json, write_text
from mudit_engine.loudness import loudness

PAGE = Path(__file__).parent / "page"
ASSETS = ("index.html", "survey.css", "survey.js", "words.js")
SCHEMA = 1


@dataclass(frozen=True)
class Options:
    """Sizes and rules of a test. Loudness in LUFS (None: as the songs are), times in seconds."""

    mode: Mode = "rating"
    trials: int = 12
    forms: int = 30
    checks: int = 1
    repeats: int = 1
    listen_seconds: float = 15.0
    loudness: float | None = -20.0
    suffix: str = ".flac"
    submit: str = ""
    questions: tuple[Question, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """Where the page and the key lie, and how often each song is heard, at least and at most."""

    page: Path
    key: Path
    songs: int
    heard: tuple[int, int]


def make_survey(
    systems: Sequence[System],
    asked: Mapping[str, Asked],
    folder: Path,
    options: Options,
    *,
    track: Track = silent_track,
) -> Made:
    """Writes the test. Raises InputError for unpaired songs by name, or for a folder that holds a
    test already: answers belong to the test that asked.
    """
    if (folder / "key.json").exists():
        raise InputError(f"'{folder}' holds a listening test already: choose another --out")
    if len({system.name for system in systems}) < len(systems):
        raise InputError("two systems are named alike: rename a folder")
    check_paired(systems, asked)
    make_forms = pair_forms if options.mode == "pairs" else rating_forms
    forms = make_forms(
        [system.name for system in systems],
        list(asked),
        trials=options.trials,
        forms=options.forms,
        checks=options.checks,
        repeats=options.repeats,
        seed=options.seed,
    )
    questions = options.questions or (PAIR_QUESTIONS if options.mode == "pairs" else QUESTIONS)
    used = sorted(
        {(name, trial.request) for form in forms for trial in form for name in trial.systems}
    )
    by_name = {system.name: system for system in systems}
    names: dict[tuple[str, str], str] = {}
    for name, request in track(used, "writing songs"):
        names[name, request] = _song(
            by_name[name].songs[request], folder / "page/songs", options, f"{name}/{request}"
        )
    document = [
        [_shown(trial, number, place, asked, names) for place, trial in enumerate(form)]
        for number, form in enumerate(forms)
    ]
    described = {
        "mode": options.mode,
        "scale": list(SCALE),
        "questions": [asdict(question) for question in questions],
        "listen_seconds": options.listen_seconds,
        "submit": options.submit,
        "forms": document,
    }
    identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    for name in ASSETS:
        with atomic_path(folder / "page" / name) as aside:
            shutil.copyfile(PAGE / name, aside)
    plan = json.dumps({"id": identity, **described}, ensure_ascii=False)
    write_text(folder / "page/plan.js", f'"use strict";\nconst SURVEY = {plan};\n')
    links = "".join(f"{n + 1},index.html?form={n + 1}\n" for n in range(len(forms)))
    write_text(folder / "links.csv", f"form,link\n{links}")
    write_json(
        folder / "key.json",
        {
            "schema_version": SCHEMA,
            "survey": identity,
            "mode": options.mode,
            "scale": list(SCALE),
            "listen_seconds": options.listen_seconds,
            "questions": described["questions"],
            "systems": [system.name for system in systems],
            "requests": {name: _kept(one) for name, one in asked.items()},
            "songs": {f"{name}/{request}": file for (name, request), file in names.items()},
            "trials": {
                shown["id"]: as_document(trial)
                for form, shown_form in zip(forms, document, strict=True)
                for trial, shown in zip(form, shown_form, strict=True)
            },
        },
    )
    counts = dict.fromkeys(used, 0)
    for form in forms:
        for trial in form:
            if not trial.check and not trial.repeats:
                for name in trial.systems:
                    counts[name, trial.request] += 1
    heard = (min(counts.values()), max(counts.values()))
    return Made(folder / "page/index.html", folder / "key.json", len(used), heard)


def _kept(one: Asked) -> dict[str, str]:
    return {"description": one.description, "user_type": one.user_type}


def _shown(
    trial: Trial,
    form: int,
    place: int,
    asked: Mapping[str, Asked],
    names: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    """What the page knows of a trial."""
    return {
        "id": f"{form + 1}-{place + 1}",
        "songs": [f"songs/{names[name, trial.request]}" for name in trial.systems],
        "description": asked[trial.request].description,
        "lyrics": asked[trial.request].lyrics,
        "check": trial.check,
    }


def _song(source: Path, folder: Path, options: Options, identity: str) -> str:
    """Writes a song; returns its file's name, which tells nothing."""
    digest = hashlib.sha256(f"{options.seed}/{identity}".encode()).hexdigest()[:16]
    audio, rate = load_audio(source)
    if options.loudness is not None:
        gain = 10 ** ((options.loudness - loudness(audio, rate)) / 20)
        peak = float(audio.abs().max())
        if peak > 0:  # silence has no loudness; a song that would clip stays below it
            audio = audio * min(gain, 0.99 / peak)
    save_audio(folder / f"{digest}{options.suffix}", audio, rate)
    return f"{digest}{options.suffix}"
