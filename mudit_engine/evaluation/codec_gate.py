"""The codec gate: do held-out songs keep their key, notes, vocals and drums when they go through
the VAE? Asked before any song is trained.

    report = judge_codec(codec, held_out, training, Listener(Path("runs/eval")))
    report.rows, report.verdicts

Rows: original, codec, Griffin-Lim from mels of as many values a second as the latents, permuted
requests, shuffled, noise. Probes of the row "original" are trained on originals of training songs,
those of all others on the codec's audio of them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mudit_engine.audio import resample
from mudit_engine.evaluation.bars import CODEC, Verdict, verdicts
from mudit_engine.evaluation.codec import (
    BASELINE_FRAME_RATES,
    Codec,
    mel_griffin_lim,
    spectral_distance,
)
from mudit_engine.evaluation.listening import Audio, Heard, Listener, file_digest, source_digest
from mudit_engine.evaluation.songs import EvalSong, Track, noise_like, shuffled, silent_track
from mudit_engine.evaluation.tables import (
    Judge,
    Pair,
    Probes,
    Row,
    fit_probes,
    permuted,
    reference_of,
    windows_of,
)
from mudit_engine.metrics import figures
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.notes import note_f1


@dataclass(frozen=True)
class Report:
    """Tables and verdicts, and what else is worth knowing."""

    rows: list[Row]
    verdicts: list[Verdict]
    facts: dict[str, float | int | str | None]


@dataclass(frozen=True)
class Background:
    """What the training songs give: the reference of FAD, the FAD between two halves, probes on
    originals and on the codec's audio.
    """

    judge: Judge  # with the probes on the codec's audio
    original_probes: Probes
    halves: Figure
    through_codec: list[Heard]

    def facts(self) -> dict[str, float | int | str | None]:
        return {
            "training_songs": len(self.through_codec),
            "fad_between_halves": self.halves.value,
            **{
                f"probe_{name}_left_out": probe.left_out
                for name, probe in self.judge.probes.items()
            },
            "threads": torch.get_num_threads(),
        }


def background(
    codec: Codec,
    training: Sequence[EvalSong],
    listener: Listener,
    *,
    rivals: int,
    track: Track = silent_track,
) -> Background:
    """Every second training song is the reference; `rivals` of the others are the second half, as
    many as there are songs to be judged, since a Frechet distance depends on the size of the set.
    """
    originals = [
        listener.hear(song.audio) for song in track(training, "listening to training songs")
    ]
    through = [
        hear_codec(codec, song, listener)
        for song in track(training, "training songs through the codec")
    ]
    reference = reference_of(originals[::2])
    halves = figures.fad(reference, [h.penultimate_PD for h in originals[1::2][:rivals]])
    return Background(
        Judge(reference, fit_probes(training, through)),
        fit_probes(training, originals),
        halves,
        through,
    )


def hear_codec(codec: Codec, song: EvalSong, listener: Listener) -> Heard:
    return listener.hear_made((codec.id, file_digest(song.audio)), lambda: codec(*song.load()))


def own_pairs(heard: Sequence[Heard], songs: Sequence[EvalSong]) -> list[Pair]:
    """Audio against its own song's labels."""
    return [
        Pair(number, h, song, song.syllables, windows=windows_of(song.syllables))
        for number, (h, song) in enumerate(zip(heard, songs, strict=True))
    ]


def control_rows(
    judge: Judge, songs: Sequence[EvalSong], listener: Listener, *, track: Track = silent_track
) -> list[Row]:
    """The rows that no model should resemble:
    the originals in 100 ms pieces, shuffled, and noise.
    """

    edits: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
        "shuffled": shuffled,
        "noise": lambda audio, rate: noise_like(audio),
    }
    rows = []
    for name, edit in edits.items():
        heard = [
            listener.hear_made(
                (name, file_digest(song.audio)), functools.partial(_edited, edit, song)
            )
            for song in track(songs, name)
        ]
        rows.append(judge.row(name, own_pairs(heard, songs)))
    return rows


def _edited(edit: Callable[[torch.Tensor, int], torch.Tensor], song: EvalSong) -> Audio:
    audio, rate = song.load()
    return edit(audio, rate), rate


def judge_codec(
    codec: Codec,
    held_out: Sequence[EvalSong],
    training: Sequence[EvalSong],
    listener: Listener,
    *,
    track: Track = silent_track,
) -> Report:
    """Runs the gate. Raises MissingError when notes cannot be transcribed."""
    listener.transcriber  # noqa: B018  a missing package is told before an hour of work
    known = background(codec, training, listener, rivals=len(held_out), track=track)
    originals = [
        listener.hear(song.audio) for song in track(held_out, "listening to held-out songs")
    ]
    pairs = own_pairs(originals, held_out)
    rows = [known.judge.row("original", pairs, probes=known.original_probes)]

    ways: dict[str, tuple[str, Callable[[torch.Tensor, int], Audio]]] = {"codec": (codec.id, codec)}
    for frame_rate in BASELINE_FRAME_RATES:
        key = f"mel {frame_rate} {codec.values_per_second} {source_digest('evaluation.codec')}"
        baseline = functools.partial(
            mel_griffin_lim, values_per_second=codec.values_per_second, frame_rate=frame_rate
        )
        ways[f"Griffin-Lim, mel at {frame_rate:g} Hz"] = key, baseline
    for name, (key, way) in ways.items():
        heard, f1, fidelity = [], [], []
        for song in track(held_out, name):
            made = _Made(way, song)
            origin = (key, file_digest(song.audio))
            heard.append(listener.hear_made(origin, made.sound))
            f1.append(
                note_f1(
                    listener.notes(("file", origin[1]), song.load),
                    listener.notes(origin, made.sound),
                )
            )
            fidelity.append(listener.keep(("fidelity", *origin), made.fidelity))
        extra = {"notes": figures.mean(f1)} | {
            name: figures.mean(float(f[name]) for f in fidelity) for name in ("spectrum", "seconds")
        }
        rows.append(known.judge.row(name, own_pairs(heard, held_out), extra=extra))
    rows.append(known.judge.row("permuted requests", permuted(pairs, held_out)))
    rows += control_rows(known.judge, held_out, listener, track=track)
    facts = {"values_per_second": codec.values_per_second, **known.facts()}
    return Report(rows, _verdicts(rows, known.halves), facts)


@dataclass(frozen=True)
class _Made:
    """A song sent through `way`, when somebody asks for it."""

    way: Callable[[torch.Tensor, int], Audio]
    song: EvalSong

    @functools.cached_property
    def _timed(self) -> tuple[Audio, float]:
        audio, rate = self.song.load()
        start = time.perf_counter()
        return self.way(audio, rate), time.perf_counter() - start

    def sound(self) -> Audio:
        return self._timed[0]

    def fidelity(self) -> dict[str, torch.Tensor]:
        (made, made_rate), seconds = self._timed
        audio, rate = self.song.load()
        distance = spectral_distance(resample(audio, rate, made_rate), made)
        return {"spectrum": torch.tensor(distance), "seconds": torch.tensor(seconds)}


def _verdicts(rows: list[Row], halves: Figure) -> list[Verdict]:
    original, codec, *rest = rows
    baselines = [row for row in rest if row.name.startswith("Griffin-Lim")]

    def rival(column: str, best: Callable[[list[float]], float]) -> float | None:
        values = [v for row in baselines if (v := row.value(column)) is not None]
        return best(values) if values else None

    def lost(label: str) -> float | None:
        return _minus(original.value(label), codec.value(label))

    measured = {
        "key": codec.value("key"),
        "notes": codec.value("notes"),
        "drums": lost("drums"),
        "vocals": lost("vocals"),
        "fad": over(codec.value("fad"), halves.value),
        "beats_fad": over(codec.value("fad"), rival("fad", min)),
        "beats_notes": _minus(codec.value("notes"), rival("notes", max)),
        "beats_spectrum": over(codec.value("spectrum"), rival("spectrum", min)),
    }
    notes = {
        "key": f"originals {original.figures['key']}",
        "fad": f"halves {halves}, held-out originals {original.figures['fad']}",
    }
    for label in ("drums", "vocals"):
        if label in original.figures and label in codec.figures:
            notes[label] = f"originals {original.figures[label]}, codec {codec.figures[label]}"
    return verdicts(CODEC, measured, notes)


def over(a: float | None, b: float | None) -> float | None:
    """a / b, None where either is."""
    return None if a is None or not b else a / b


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
