"""Songs that change another: which of its frames stay, and what is known of it.

    edit = open_edit(request)             # None where nothing is edited
    request = edit.merged(request)        # what the sidecar says and the request does not
    held = edit.held(frames, frame_rate, bpm=bpm)        # bool [frames]

A song of this engine is known from its sidecar: its request, tempo, key and the seed of its plan,
and its latents where they were kept (`mudit generate --latents`). Of any other audio only the sound
is known, which the VAE encodes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mudit_engine.audio import audio_seconds
from mudit_engine.errors import InputError
from mudit_engine.request import SongRequest, repaint_spans
from mudit_engine.text.composition.arrangement import PlannedSection
from mudit_engine.text.harmony import TimedChord
from mudit_engine.text.length import TAIL_SECONDS
from mudit_engine.text.outline import SongPlan

Timed = TypeVar("Timed", TimedChord, PlannedSection)

# what a new request takes from the edited song's own, where it says nothing else
INHERITED = (
    *("description", "lyrics", "user_type", "negative", "chords", "melody", "melody_file"),
    *("drums", "voice", "style", "planned", "ignore_times"),
)


@dataclass(frozen=True)
class Edit:
    """A song that is edited.

    Args:
        audio: its file.
        seconds: how long it is.
        latents: file of its latents; None where they were not kept.
        info: its sidecar; None for other audio.
        repaint: spans that are made anew; None where the song goes on.
        extend: seconds that are added; None where it goes on to its own length.
    """

    audio: Path
    seconds: float
    latents: Path | None
    info: dict[str, Any] | None
    repaint: tuple[tuple[float, float], ...] | None
    extend: float | None

    @property
    def plan_seed(self) -> int | None:
        """The seed that the song was planned with."""
        if self.info is None:
            return None
        seed = self.info.get("edited", {}).get("plan_seed", self.info["request"]["seed"])
        return int(seed)

    @property
    def total(self) -> float | None:
        """How long the new song is; None where its own plan decides."""
        if self.extend is not None:
            return self.seconds + self.extend
        return self.seconds if self.repaint is not None else None

    def merged(self, request: SongRequest) -> SongRequest:
        """The request with what the edited song's sidecar says and it does not."""
        if self.info is None:
            return request
        theirs = self.info["request"]
        defaults = {one.name: one.default for one in dataclasses.fields(SongRequest)}
        found = {
            name: theirs[name]
            for name in INHERITED
            if getattr(request, name) == defaults[name] and theirs.get(name) is not None
        }
        outline = self.info.get("outline") or {}
        if found.get("planned", request.planned):
            found |= {
                name: outline[name]
                for name in ("bpm", "key")
                if getattr(request, name) is None and outline.get(name) is not None
            }
        return replace(request, **found)

    def kept_seconds(self, bpm: float | None) -> float:
        """How much of the beginning stays where the song goes on: whole bars, without its end."""
        if self.info is None or not bpm:
            return self.seconds
        bar = 240.0 / bpm
        bars = math.floor((self.seconds - TAIL_SECONDS) / bar + 0.05)
        return bars * bar if bars > 0 else self.seconds

    @property
    def level(self) -> float:
        """What the file's samples are multiplied by to be those that the song was decoded to."""
        mastering = (self.info or {}).get("mastering")
        gain = mastering.get("gain_db") if isinstance(mastering, dict) else None
        return 10 ** (-float(gain) / 20) if isinstance(gain, int | float) else 1.0

    def held(self, frames: int, frame_rate: float, *, bpm: float | None) -> np.ndarray:
        """Which frames of the new song stay, bool [frames]."""
        centre_T = (np.arange(frames) + 0.5) / frame_rate
        if self.repaint is None:
            return centre_T < self.kept_seconds(bpm)
        held = np.ones(frames, bool)
        for start, end in self.repaint:
            held &= (centre_T < start) | (centre_T >= end)
        if self.extend is not None:
            held &= centre_T < self.kept_seconds(bpm)
        return held


def open_edit(request: SongRequest) -> Edit | None:
    """What a request edits; None where it edits nothing.

    Raises:
        InputError: for a file that is missing or is no song, and for spans behind its end.
    """
    if request.edit is None:
        return None
    path = Path(request.edit)
    side = path if path.suffix == ".json" else path.with_suffix(".json")
    info = _sidecar(side, wanted=path.suffix == ".json")
    audio, latents = path, None
    if info is not None:
        audio = side.with_name(info["file"]) if path.suffix == ".json" else path
        name = info.get("latents")
        if isinstance(name, str) and Path(name).name == name and side.with_name(name).is_file():
            latents = side.with_name(name)
    seconds = audio_seconds(audio) if info is None else float(info["request"]["seconds"])
    spans = None if request.repaint is None else repaint_spans(request.repaint)
    if spans and spans[-1][1] > seconds + 1e-6:
        raise InputError(
            f"repaint {request.repaint}: '{audio.name}' is {seconds:g} s long, use extend to go "
            "beyond"
        )
    return Edit(audio, seconds, latents, info, spans, request.extend)


def _sidecar(path: Path, *, wanted: bool) -> dict[str, Any] | None:
    """The sidecar of a song of this engine; None where there is none, unless it was named."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        float(info["request"]["seconds"])
        int(info["request"]["seed"])
        if not isinstance(info["file"], str) or Path(info["file"]).name != info["file"]:
            raise ValueError("it names no file beside it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not wanted:
            return None
        raise InputError(
            f"'{path}' is no sidecar of a song ({error}): give the song's audio file, or the .json "
            "that was written beside it"
        ) from None
    return dict(info)


def went_on(plan: SongPlan, tail: SongPlan, *, kept: float, seconds: float) -> SongPlan:
    """A plan that follows `plan` for `kept` seconds and `tail` from there to `seconds`."""
    before, after = plan.outline, tail.outline

    def later(one: Timed) -> Timed:
        return replace(one, start=one.start + kept, end=one.end + kept)

    sections = [replace(one, end=min(one.end, kept), ends=False) for one in before.arrangement]
    outline = replace(
        before,
        chords=[
            *(replace(one, end=min(one.end, kept)) for one in before.chords if one.start < kept),
            *map(later, after.chords),
        ],
        melody=[
            *(
                (start, min(end, kept), pitch)
                for start, end, pitch in before.melody
                if start < kept
            ),
            *((s + kept, e + kept, pitch) for s, e, pitch in after.melody),
        ],
        arrangement=[
            *(one for one in sections if one.start < one.end),
            *map(later, after.arrangement),
        ],
    )
    return replace(plan, seconds=seconds, outline=outline)
