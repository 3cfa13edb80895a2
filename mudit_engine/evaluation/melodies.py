"""Are songs sung on the melody that was planned for them, do choruses come back with the same
notes, and does another seed sing another tune?

    report = judge_melodies(pipeline, codec, held_out, training, seed=0)
    report.rows["generated"].value        # share of syllables on the planned pitch

What is sung is heard in the mix by a probe that is trained on the corpus' own melodies
(metrics/sung_pitch.py); the rows of originals and of the codec say how well it hears. A syllable is
right when its pitch is the planned one, octave and all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.evaluation.codec import Codec
from mudit_engine.evaluation.songs import EvalSong, Track, silent_track
from mudit_engine.metrics import figures
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.sung_pitch import PitchProbe, excerpts, train_probe
from mudit_engine.pipeline import SongPipeline
from mudit_engine.reading import Understood
from mudit_engine.request import SongRequest

SHORTEST = 0.15  # seconds: a shorter syllable is not judged


@dataclass(frozen=True)
class Tune:
    """A song of the corpus with its sung notes: (start, end, MIDI pitch), and for each the kind and
    number of its section.
    """

    song: EvalSong
    notes: tuple[tuple[float, float, int], ...]
    sections: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        assert len(self.notes) == len(self.sections)


@dataclass(frozen=True)
class MelodyReport:
    """Shares of syllables: `rows` on the planned pitch, `returns` equal between two sections, and
    `seeds` of the same pitch class where two seeds sing the same words.
    """

    rows: dict[str, Figure]
    returns: dict[str, Figure]
    seeds: Figure
    chance: Figure
    songs: int
    syllables: int


def judge_melodies(
    pipeline: SongPipeline,
    codec: Codec,
    held_out: Sequence[Tune],
    training: Sequence[Tune],
    *,
    seed: int = 0,
    track: Track = silent_track,
) -> MelodyReport:
    """Judges a model that follows melodies. Raises InputError for one that does not."""
    if not pipeline.config.dit.melody:
        raise InputError(f"model '{pipeline.config.name}' follows no melody (dit.melody)")
    if len(held_out) < 2:
        raise InputError(f"{len(held_out)} held-out songs are sung: at least 2 are needed")
    probe = _probe(codec, training, seed=seed, track=track)
    hits: dict[str, list[float]] = {}
    returns: dict[str, list[float]] = {}
    seeds: list[float] = []
    plans: list[np.ndarray] = []
    heard_of: list[np.ndarray] = []
    syllables = 0
    for number, tune in enumerate(track(held_out, "singing")):
        audio, rate = tune.song.load()
        label = _pitches(tune.notes)
        for name, sound in (("original", (audio, rate)), ("codec", codec(audio, rate))):
            heard = _heard(probe, sound, tune.notes)
            _add(hits, name, heard == label)
            _returns(returns, name, heard, tune.sections)
        request = _request(pipeline, tune.song, seed=seed + 2 * number)
        notes, sections, sound = _sing(pipeline, request)
        heard, plan = _heard(probe, sound, notes), _pitches(notes)
        syllables += len(plan)
        _add(hits, "generated", heard == plan)
        _returns(returns, "generated", heard, sections)
        plans.append(plan)
        heard_of.append(heard)
        other_notes, _, other = _sing(pipeline, replace(request, seed=seed + 2 * number + 1))
        again = _heard(probe, other, other_notes)
        if len(again) == len(heard):
            seeds.append(float(np.mean(again % 12 == heard % 12)))
        free_audio, free_rate = _make(pipeline, replace(request, planned=False))
        _add(hits, "without a plan", _heard(probe, (free_audio, free_rate), notes) == plan)
    for number, heard in enumerate(heard_of):
        other_plan = plans[(number + 1) % len(plans)]
        _add(hits, "another song's plan", heard == np.resize(other_plan, len(heard)))
    chance = [
        float((np.bincount(plan % 12, minlength=12) / len(plan) @ _share(other)).item())
        for plan, other in zip(plans, plans[1:] + plans[:1], strict=True)
    ]
    return MelodyReport(
        {name: figures.mean(found) for name, found in hits.items()},
        {name: figures.mean(found) for name, found in returns.items()},
        figures.mean(seeds),
        figures.mean(chance),
        len(held_out),
        syllables,
    )


def _probe(codec: Codec, songs: Sequence[Tune], *, seed: int, track: Track) -> PitchProbe:
    """Trained on the songs and on what the codec leaves of them, since it hears both."""
    examples = []
    for tune in track(songs, "listening to the corpus"):
        audio, rate = tune.song.load()
        for sound, its_rate in ((audio, rate), codec(audio, rate)):
            spectra = excerpts(sound, its_rate, _spans(tune.notes))
            examples.append((spectra, [pitch for _, _, pitch in tune.notes]))
    return train_probe(examples, seed=seed)


def _spans(notes: Sequence[tuple[float, float, int]]) -> list[tuple[float, float]]:
    return [(start, end) for start, end, _ in notes]


def _pitches(notes: Sequence[tuple[float, float, int]]) -> np.ndarray:
    return np.array([pitch for _, _, pitch in notes], int)


def _share(pitches: np.ndarray) -> np.ndarray:
    return np.bincount(pitches % 12, minlength=12) / max(len(pitches), 1)


def _heard(
    probe: PitchProbe, sound: tuple[Tensor, int], notes: Sequence[tuple[float, float, int]]
) -> np.ndarray:
    return probe.pitches(excerpts(sound[0], sound[1], _spans(notes)))


def _request(pipeline: SongPipeline, song: EvalSong, *, seed: int) -> SongRequest:
    return SongRequest(
        description=song.prompts["professional"],
        lyrics=song.lyrics,
        user_type="professional",
        seconds=min(song.seconds, pipeline.config.max_seconds),
        seed=seed,
    )


def _make(pipeline: SongPipeline, request: SongRequest) -> tuple[Tensor, int]:
    [song] = pipeline.generate([request])
    return torch.from_numpy(song.audio), song.sample_rate


def _sing(
    pipeline: SongPipeline, request: SongRequest
) -> tuple[list[tuple[float, float, int]], list[tuple[str, int]], tuple[Tensor, int]]:
    """The planned notes of the syllables, the section of each, and the song."""
    understood = pipeline.understand(request)
    notes, sections = sung_notes(understood)
    return notes, sections, _make(pipeline, request)


def sung_notes(
    understood: Understood,
) -> tuple[list[tuple[float, float, int]], list[tuple[str, int]]]:
    """The notes of a plan that are sung, and (kind, number) of the section that each lies in."""
    times, song = understood.outline.token_times, understood.phonemes
    assert times is not None and song is not None
    starts = {round(float(start), 3) for start, _ in times if start >= 0}
    notes, sections = [], []
    for start, end, pitch in understood.outline.melody:
        if round(float(start), 3) in starts and end - start >= SHORTEST:
            notes.append((float(start), float(end), int(pitch)))
            inside = [
                (one.kind, number)
                for number, one in enumerate(understood.outline.arrangement)
                if one.start <= start + 1e-3 < one.end
            ]
            sections.append(inside[0] if inside else ("other", -1))
    return notes, sections


def _add(hits: dict[str, list[float]], name: str, right: np.ndarray) -> None:
    if len(right):
        hits.setdefault(name, []).append(float(right.mean()))


def _returns(
    found: dict[str, list[float]],
    name: str,
    heard: np.ndarray,
    sections: Sequence[tuple[str, int]],
) -> None:
    """Shares of equal notes between the first chorus and the second, and the first verse."""
    parts: dict[tuple[str, int], list[int]] = {}
    for pitch, section in zip(heard, sections, strict=True):
        parts.setdefault(section, []).append(int(pitch))
    first: dict[str, list[list[int]]] = {}
    for (kind, _), pitches in parts.items():
        first.setdefault(kind, []).append(pitches)
    choruses, verses = first.get("chorus", []), first.get("verse", [])
    if len(choruses) > 1 and len(choruses[0]) == len(choruses[1]):
        found.setdefault(f"{name}: chorus and chorus", []).append(_equal(*choruses[:2]))
    if choruses and verses:
        found.setdefault(f"{name}: chorus and verse", []).append(_equal(choruses[0], verses[0]))


def _equal(a: Sequence[int], b: Sequence[int]) -> float:
    shared = min(len(a), len(b))
    return float(np.mean(np.equal(a[:shared], b[:shared])))
