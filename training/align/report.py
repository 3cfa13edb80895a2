"""Did it help? Songs for held-out requests before and after, from the same plan and noise, judged
by what did not reward: a ChinMu of another training, what was asked, distances to real songs.

    report = judge(plan, held_out, chinmu=other, rewarded=own, keys=keys, listener=listener)
    report.wins[0].share.value          # share of requests that the aligned model does better

A reward can be gamed: what is rewarded rises, and nothing else, or something rises that nobody
asked for. `report.suspects` names what changed although it should not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mudit_engine.audio import load_audio
from mudit_engine.evaluation.adherence import adherence, mean_of
from mudit_engine.evaluation.listening import Listener, file_digest, source_digest
from mudit_engine.evaluation.retrieval import Encoder
from mudit_engine.evaluation.rewards import extremes, similarity
from mudit_engine.evaluation.songs import Track, silent_track
from mudit_engine.evaluation.systems import (
    EVERYBODY,
    MEASURES,
    Asked,
    Comparison,
    Similarity,
    System,
    compare,
)
from mudit_engine.files import sha256_of
from mudit_engine.metrics import figures
from mudit_engine.metrics.embeddings import open_embedder
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.significance import paired_permutation
from mudit_engine.models.folder import model_folder
from mudit_engine.models.parts import part_file
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest
from mudit_engine.training.align.asked import Requests
from mudit_engine.training.align.run import AlignPlan
from mudit_engine.training.seeding import seed64

BEFORE, AFTER = "before", "after"
BOTH = "chinmu and adherence"
# what no reward speaks of: it should stay as it is
WATCHED = ("loudness", "true_peak", "ending", "repetition")
VARIETY_LOST = 0.1


@dataclass(frozen=True)
class Wins:
    """On how many requests of a kind of user the aligned model's song is the better one by a
    measure. A draw counts half in `share`; p is of as many wins as losses.
    """

    measure: str
    user: str
    wins: int
    losses: int
    draws: int
    share: Figure
    p: float | None


@dataclass(frozen=True)
class AlignReport:
    """Wins by measure and user, the table of both models, how unlike each other a model's songs
    are (1 - mean cosine by the judge), and what should not have changed.
    """

    wins: list[Wins]
    comparison: Comparison
    variety: dict[str, float | None]
    suspects: list[str]


def sing(
    plan: AlignPlan, name: str, source: Path, held_out: Requests, *, track: Track = silent_track
) -> System:
    """A model's songs for held-out requests, made where they are missing. They lie in a folder of
    the weights' name, so that other weights make their own.
    """
    digest = sha256_of(part_file(source, "dit"))[:12]
    folder = plan.work / "judged" / f"{name}-{digest}"
    files = {wish.id: folder / f"{file_name(wish.id)}.flac" for wish in held_out.values()}
    missing = [wish for wish in held_out.values() if not files[wish.id].is_file()]
    if missing:
        pipeline = SongPipeline.from_pretrained(source)
        for wish in track(missing, f"songs {name}"):
            request = SongRequest(
                description=wish.description,
                lyrics=wish.lyrics,
                seconds=plan.seconds,
                user_type=wish.user_type,
                seed=seed64(plan.seed, "held out", wish.id),
            )
            [song] = pipeline.generate([request])
            song.save(files[wish.id])
    return System(name, files)


def file_name(wish: str) -> str:
    """A request's id as a file's name: itself, where it is one."""
    plain = all(char.isalnum() or char in "-_." for char in wish) and not wish.startswith(".")
    return wish if plain else hashlib.sha256(wish.encode()).hexdigest()[:16]


def judge(
    plan: AlignPlan,
    held_out: Requests,
    *,
    chinmu: Encoder,
    rewarded: Encoder,
    keys: tuple[str, str],
    listener: Listener,
    reference: Path | None = None,
    track: Track = silent_track,
) -> AlignReport:
    """Sings and compares.

    Args:
        plan: of the run, whose model folder is complete.
        held_out: requests that nothing was learned from.
        chinmu: the judge, best of another training than the reward's.
        rewarded: the ChinMu that rewarded.
        keys: digests of the two, by which measurements are kept.
        listener: measures songs.
        reference: folder of real songs for FAD and KAD; None leaves both out.
    """
    systems = [
        sing(plan, name, source, held_out, track=track)
        for name, source in ((BEFORE, model_folder(plan.model)), (AFTER, plan.out))
    ]
    comparison = compare(
        systems,
        System.of(reference, name="reference") if reference else System("none", systems[0].songs),
        held_out,
        listener,
        embedders=[open_embedder("musicnn")] if reference else [],
        similarities=[
            Similarity("chinmu", keys[0], _near(chinmu)),
            Similarity("reward", keys[1], _near(rewarded)),
            Similarity("adherence", source_digest("evaluation.adherence"), _done),
        ],
        track=track,
    )
    variety = {
        system.name: unlike(
            [_vector(path, chinmu, keys[0], listener) for path in system.songs.values()]
        )
        for system in systems
    }
    return AlignReport(
        wins_of(comparison, held_out), comparison, variety, suspects(comparison, variety)
    )


def _near(chinmu: Encoder) -> Callable[[Tensor, int, Asked], float | None]:
    def measure(audio: Tensor, rate: int, wish: Asked) -> float | None:
        return similarity(chinmu, audio, rate, wish.description) if wish.description else None

    return measure


def _done(audio: Tensor, rate: int, wish: Asked) -> float | None:
    return mean_of(adherence(audio, rate, wish))


def _vector(path: Path, chinmu: Encoder, key: str, listener: Listener) -> Tensor:
    @torch.inference_mode()
    def made() -> dict[str, Tensor]:
        audio, rate = load_audio(path)
        return {"vector": chinmu.encode_audio([audio], rate)[0]}

    return listener.keep(("chinmu vector", key, file_digest(path)), made)["vector"]


def unlike(vectors: Sequence[Tensor]) -> float | None:
    """1 - mean cosine of all pairs of unit vectors; None for fewer than two."""
    if len(vectors) < 2:
        return None
    stacked = torch.stack(list(vectors)).double()
    count = len(vectors)
    return float(1 - ((stacked @ stacked.T).sum() - count) / (count * (count - 1)))


def wins_of(comparison: Comparison, asked: Mapping[str, Asked]) -> list[Wins]:
    """Wins of "after" over "before", by measure and user type; requests that lack a measure are
    left out of it.
    """
    before, after = comparison.songs[BEFORE], comparison.songs[AFTER]
    users: dict[str, list[str]] = {EVERYBODY: list(asked)}
    for name, wish in asked.items():
        if wish.user_type != "none":
            users.setdefault(wish.user_type, []).append(name)
    found = []
    for user, ids in users.items():
        for measure in ("chinmu", "adherence", BOTH, "reward"):
            signs = [
                sign
                for one in ids
                if (sign := partial(_sign, measure)(before[one], after[one])) is not None
            ]
            wins, losses = signs.count(1), signs.count(-1)
            share = figures.mean([(sign + 1) / 2 for sign in signs]) if signs else figures.NOTHING
            p = paired_permutation(signs, [0] * len(signs)) if len(signs) > 1 else None
            draws = len(signs) - wins - losses
            found.append(Wins(measure, user, wins, losses, draws, share, p))
    return found


def _sign(measure: str, before: Mapping[str, float], after: Mapping[str, float]) -> int | None:
    """1 where the later song is better, -1 where it is worse, 0 where they are alike."""
    if measure != BOTH:
        if measure not in before or measure not in after:
            return None
        difference = after[measure] - before[measure]
        return 0 if abs(difference) < 1e-6 else (1 if difference > 0 else -1)
    parts = [
        {name: one[name] for name in ("chinmu", "adherence") if name in one}
        for one in (before, after)
    ]
    if not parts[0]:
        return None
    found = extremes(parts)
    return 0 if found is None else (1 if found[0] == 1 else -1)


def suspects(comparison: Comparison, variety: Mapping[str, float | None]) -> list[str]:
    """What changed although nobody asked for it, one sentence each."""
    # differences are a - b, and a is the model before
    moved = {one.measure: (-one.difference, one.p) for one in comparison.differences}
    found = []
    gained, judged = moved.get("reward", (0.0, 1.0)), moved.get("chinmu", (0.0, 1.0))
    if gained[0] > 0 and gained[1] < 0.05 and not (judged[0] > 0 and judged[1] < 0.05):
        found.append(
            f"the rewarding ChinMu's cosine rises by {gained[0]:.3f} (p = {gained[1]:.2g}), the "
            f"judge's moves by {judged[0]:+.3f} (p = {judged[1]:.2g}): the reward was gamed, or "
            "the judge cannot tell"
        )
    done = moved.get("adherence", (0.0, 1.0))
    if done[0] < 0 and done[1] < 0.05:
        found.append(f"adherence falls by {-done[0]:.3f} (p = {done[1]:.2g})")
    for name in WATCHED:
        difference, p = moved.get(name, (0.0, 1.0))
        if p < 0.05:
            found.append(f"{name} moves by {difference:+.3g} {MEASURES[name][0]} (p = {p:.2g})")
    rows = {row.system: row.figures for row in comparison.rows if row.user == EVERYBODY}
    for name, figure in rows[AFTER].items():
        high = rows[BEFORE][name].high
        if name.startswith("fad_") and None not in (high, figure.value) and figure.value > high:  # type: ignore[operator]
            found.append(f"{name} is {figure.value:.3g}, beyond the interval before ({high:.3g})")
    before, after = variety.get(BEFORE), variety.get(AFTER)
    if before and after is not None and after < (1 - VARIETY_LOST) * before:
        found.append(
            f"songs are more alike: 1 - mean cosine falls from {before:.3f} to {after:.3f}"
        )
    return found


__all__ = ["AlignReport", "Wins", "judge", "suspects", "wins_of"]
