"""A small listening test and its listeners, for tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine.audio import save_audio
from mudit_engine.evaluation.survey.make import Made, Options, make_survey
from mudit_engine.evaluation.systems import System, load_requests

RATE = 16000


def systems_in(root: Path, names: tuple[str, ...], requests: int, seconds: float) -> Path:
    """Folders of tones under `root`, and requests.jsonl; system n is n times as loud."""
    t = torch.arange(round(RATE * seconds)) / RATE
    for place, name in enumerate(names, 1):
        for number in range(requests):
            tone = 0.1 * place * torch.sin(2 * math.pi * (200 + 30 * number) * t)
            save_audio(root / name / f"wish{number}.wav", tone[None], RATE)
    lines = [
        {"id": f"wish{n}", "description": f"a calm song {n}", "lyrics": f"[verse]\n月亮 {n}"}
        for n in range(requests)
    ]
    (root / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return root / "requests.jsonl"


def made_in(root: Path, names: tuple[str, ...] = ("ours", "theirs"), **sizes: Any) -> Made:
    requests = systems_in(root, names, sizes.pop("requests", 6), sizes.pop("seconds", 1.0))
    systems = [System.of(root / name) for name in names]
    options = Options(**{"trials": 6, "forms": 6, **sizes})
    return make_survey(systems, load_requests(requests), root / "survey", options)


def answered(
    key_file: Path, folder: Path, *, gains: dict[str, float], seed: int = 0, **change: Any
) -> Path:
    """Files of answers, a form each: 3 + the system's gain + the listener's and the song's own."""
    key = json.loads(key_file.read_text("utf-8"))
    rng = np.random.default_rng(seed)
    songs = {name: rng.normal(0, 0.3) for name in key["songs"]}
    forms = sorted({int(name.split("-")[0]) for name in key["trials"]})
    folder.mkdir(parents=True, exist_ok=True)
    for form in forms:
        own = rng.normal(0, 0.4)
        answers = []
        for name, trial in key["trials"].items():
            if int(name.split("-")[0]) != form:
                continue
            scores = {}
            for question in key["questions"]:
                heard = [
                    own + gains[s] + songs[f"{s}/{trial['request']}"] + rng.normal(0, 0.6)
                    for s in trial["systems"]
                ]
                if trial["check"]:
                    value = (
                        trial["check"] if key["mode"] == "rating" else (1, 3)[trial["check"] - 1]
                    )
                elif key["mode"] == "rating":
                    value = int(np.clip(round(3 + heard[0]), 1, 5))
                else:
                    value = 1 if heard[0] > heard[1] else 3
                scores[question["id"]] = value
            answers.append({"trial": name, "scores": scores, "played": [9], "spent": 9})
        user = ("amateur", "professional")[form % 2]
        told = {
            "schema_version": 1,
            "survey": key["survey"],
            "form": form - 1,
            "listener": f"listener{form}",
            "background": {"user": user, "device": "headphones"},
            "answers": answers,
            **change,
        }
        (folder / f"answers-{form}.json").write_text(json.dumps(told), "utf-8")
    return folder
