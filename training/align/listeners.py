"""Pairs that listeners made: `preferences.jsonl` of `mudit eval survey read`, and the songs that
they heard.

    pairs = preferred_pairs(Path("preferences.jsonl"), systems, asked, pipeline)

A line names a request and two systems, whose songs are encoded by the model's codec. Where both
songs came from this engine and their sidecars hold one plan, the model is told it; else it is told
the description and the lyrics alone, since nobody knows the songs' tempi, keys and chords.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mudit_engine.audio import load_audio, resample, to_channels
from mudit_engine.errors import InputError
from mudit_engine.evaluation.systems import Asked, System
from mudit_engine.files import read_text
from mudit_engine.names import USER_TYPES
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import MIN_SECONDS, SongRequest, request_from_fields
from mudit_engine.training.align.pairs import Pair
from mudit_engine.training.dataset.encode import latents_of

MOST_APART = 0.1  # relative difference of two songs' lengths


def preferred_pairs(
    preferences: Path,
    systems: Sequence[System],
    asked: Mapping[str, Asked],
    pipeline: SongPipeline,
    *,
    user_type: str = "all",
) -> Iterator[Pair]:
    """The pairs of a file. user_type: of listeners who are taken.

    Raises InputError that names the line: not JSON, an unknown system or song, lengths apart, or a
    song that the model cannot make.
    """
    known = {system.name: system for system in systems}
    for number, line in enumerate(read_text(preferences, "preferences").splitlines(), 1):
        if not line.strip():
            continue
        where = f"preferences '{preferences}' line {number}"
        try:
            told = json.loads(line)
            request, winner, loser = (str(told[name]) for name in ("request", "winner", "loser"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"{where} is no preference ({error}): give the preferences.jsonl that "
                "`mudit eval survey read --out` wrote"
            ) from None
        if user_type not in ("all", told.get("user_type")):
            continue
        won, lost = (_song(known, name, request, where) for name in (winner, loser))
        wish = asked.get(request) or Asked(request, str(told.get("description") or ""))
        who = f"{told.get('user_type')}-{told.get('question')}"
        try:
            yield _pair(f"{request}-{who}-{winner}-{loser}", wish, won, lost, pipeline)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def _song(known: Mapping[str, System], name: str, request: str, where: str) -> Path:
    if name not in known or request not in known[name].songs:
        raise InputError(
            f"{where} names song '{request}' of '{name}', which no --system holds: they are "
            f"{', '.join(known) or 'none'}"
        )
    return known[name].songs[request]


def _pair(name: str, wish: Asked, won: Path, lost: Path, pipeline: SongPipeline) -> Pair:
    config = pipeline.config.vae
    heard = []
    for path in (won, lost):
        audio, rate = load_audio(path)
        heard.append(to_channels(resample(audio, rate, config.sample_rate), config.channels))
    lengths = [one.shape[1] / config.sample_rate for one in heard]
    if max(lengths) > (1 + MOST_APART) * min(lengths) or min(lengths) < MIN_SECONDS:
        raise InputError(
            f"'{won.name}' lasts {lengths[0]:.1f} s and '{lost.name}' {lengths[1]:.1f} s: songs "
            "that are compared must be about as long as each other, and a second at least"
        )
    reader = pipeline.reader
    understood = reader.read(_request(wish, won, lost, min(lengths)))
    latents = [latents_of(pipeline.vae, one) for one in heard]
    frames = min(understood.frames, *map(len, latents))
    if frames < understood.frames:  # the plan's frames are those of the latents
        understood = reader.read(_unplanned(wish, frames / config.frame_rate))
        frames = min(understood.frames, frames)
    won_TC, lost_TC = (one[:frames] for one in latents)
    return Pair(
        name,
        wish.user_type if wish.user_type in USER_TYPES else "none",
        reader.inputs(understood),
        understood.outline,
        won_TC,
        lost_TC,
    )


def _request(wish: Asked, won: Path, lost: Path, seconds: float) -> SongRequest:
    sidecars = [_sidecar(path) for path in (won, lost)]
    plans = [one.get("outline") for one in sidecars]
    if plans[0] and plans[0] == plans[1]:
        fields = {**sidecars[0].get("request", {}), "reference": None}
        return request_from_fields(fields, where=f"'{won.with_suffix('.json')}'")
    return _unplanned(wish, seconds)


def _unplanned(wish: Asked, seconds: float) -> SongRequest:
    return SongRequest(
        description=wish.description,
        lyrics=wish.lyrics,
        seconds=max(MIN_SECONDS, seconds),
        user_type=wish.user_type,
        seed=0,
        planned=False,
    )


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a song of another system
    return fields if isinstance(fields, dict) else {}


__all__ = ["preferred_pairs"]
