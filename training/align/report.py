"""Did it help? Songs for held-out requests before and after, from the same plan and noise, judged
by what did not reward: a ChinMu of another training, what was asked, distances to real songs.

    report = judge(plan, held_out, chinmu=other, rewarded=own, keys=keys, listener=listener)
    report.wins[0].share.value          # share of pairs in which the aligned model's is the better

A request is sung several times (`AlignPlan.held_out_songs`), each time a pair of its own; intervals
are of requests, since the songs of one are not independent. Two measures together are a sum in
units of their spreads among one model's songs of one request (evaluation/rewards.py).

A reward can be gamed: what is rewarded rises, and nothing else, or something rises that nobody
asked for. `report.suspects` names what changed although it should not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mudit_engine.audio import load_audio
from mudit_engine.evaluation.adherence import adherence, mean_of
from mudit_engine.evaluation.listening import Listener, file_digest, source_digest
from mudit_engine.evaluation.retrieval import Encoder
from mudit_engine.evaluation.rewards import similarity, spreads, standing
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
from mudit_engine.evaluation.telling import Telling
from mudit_engine.files import sha256_of
from mudit_engine.metrics import figures
from mudit_engine.metrics.embeddings import open_embedder
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.significance import paired_permutation
from mudit_engine.models.folder import model_folder
from mudit_engine.models.parts import part_file
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest
from mudit_engine.training.align.asked import Requests, as_understood, repeated
from mudit_engine.training.align.run import AlignPlan
from mudit_engine.training.seeding import seed64

BEFORE, AFTER = "before", "after"
BOTH = "chinmu and adherence"
JUDGED = ("chinmu", "adherence", BOTH, "reward")
TOLD = ("style", "voice")  # what the judge takes a song for
# what no reward speaks of: it should stay as it is
WATCHED = ("loudness", "true_peak", "ending", "repetition")
VARIETY_LOST = 0.1


@dataclass(frozen=True)
class Wins:
    """In how many pairs of songs of a kind of user's requests the aligned model's is the better one
    by a measure. A draw counts half in `share`, whose interval is of `share.n` requests; p is of as
    many wins as losses.
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
) -> tuple[System, dict[str, Asked]]:
    """A model's songs for held-out requests, made where they are missing, and what its reader
    understood of each. They lie in a folder of the weights' name, so that other weights make their
    own.
    """
    digest = sha256_of(part_file(source, "dit"))[:12]
    steps = plan.judged_steps
    folder = plan.work / "judged" / f"{name}-{digest}{'' if steps is None else f'-{steps}'}"
    files = {wish.id: folder / f"{file_name(wish.id)}.flac" for wish in held_out.values()}
    requests = {
        wish.id: SongRequest(
            description=wish.description,
            lyrics=wish.lyrics,
            seconds=plan.seconds,
            user_type=wish.user_type,
            seed=seed64(plan.seed, "held out", wish.id),
            sampler={} if steps is None else {"steps": steps},
        )
        for wish in held_out.values()
    }
    pipeline = SongPipeline.from_pretrained(source)
    missing = [name for name in requests if not files[name].is_file()]
    for one in track(missing, f"songs {name}"):
        [song] = pipeline.generate([requests[one]])
        song.save(files[one])
    read = pipeline.reader.read
    understood = {
        one: as_understood(held_out[one], read(request)) for one, request in requests.items()
    }
    return System(name, files), understood


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
    wishes = repeated(held_out, plan.held_out_songs)
    sources = ((BEFORE, model_folder(plan.model)), (AFTER, plan.out))
    sung = [sing(plan, name, source, wishes, track=track) for name, source in sources]
    systems, asked = [system for system, _ in sung], sung[0][1]  # one reader understood them all
    telling = Telling(chinmu)
    comparison = compare(
        systems,
        System.of(reference, name="reference") if reference else System("none", systems[0].songs),
        asked,
        listener,
        embedders=[open_embedder("musicnn")] if reference else [],
        similarities=[
            Similarity("chinmu", keys[0], _near(chinmu)),
            Similarity("reward", keys[1], _near(rewarded)),
            Similarity("adherence", _code_of(keys[0]), _done(telling)),
            *(Similarity(f"told_{name}", _code_of(keys[0]), _told(telling, name)) for name in TOLD),
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
        wins_of(comparison, asked, songs=plan.held_out_songs),
        comparison,
        variety,
        suspects(comparison, variety),
    )


def _near(chinmu: Encoder) -> Callable[[Tensor, int, Asked], float | None]:
    def measure(audio: Tensor, rate: int, wish: Asked) -> float | None:
        return similarity(chinmu, audio, rate, wish.description) if wish.description else None

    return measure


def _done(telling: Telling) -> Callable[[Tensor, int, Asked], float | None]:
    def measure(audio: Tensor, rate: int, wish: Asked) -> float | None:
        return mean_of(adherence(audio, rate, wish, telling=telling))

    return measure


def _told(telling: Telling, name: str) -> Callable[[Tensor, int, Asked], float | None]:
    def measure(audio: Tensor, rate: int, wish: Asked) -> float | None:
        return telling.of(audio, rate, **{name: getattr(wish, name)}).get(name)

    return measure


def _code_of(key: str) -> str:
    """By what adherence is measured: our code, and the judge of style and voice."""
    return f"{source_digest('evaluation.adherence', 'evaluation.telling')}-{key}"


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


def wins_of(comparison: Comparison, asked: Mapping[str, Asked], *, songs: int = 1) -> list[Wins]:
    """Wins of "after" over "before", by measure and user type; songs that lack a measure are left
    out of it. `asked` holds each request `songs` times in a row (asked.repeated).
    """
    before, after = comparison.songs[BEFORE], comparison.songs[AFTER]
    ids = list(asked)
    requests = [ids[first : first + songs] for first in range(0, len(ids), songs)]
    users = [EVERYBODY]
    for one in asked.values():
        if one.user_type not in (*users, "none"):
            users.append(one.user_type)
    signs = {name: _signs(name, before, after, requests) for name in JUDGED}
    found = []
    for user in users:
        own = [one for one in requests if user in (EVERYBODY, asked[one[0]].user_type)]
        for measure in JUDGED:
            known = [[s for one in of if (s := signs[measure].get(one)) is not None] for of in own]
            known = [one for one in known if one]
            every = [sign for one in known for sign in one]
            wins, losses = every.count(1), every.count(-1)
            places = [place for place, one in enumerate(known) for _ in one]
            shares = [(sign + 1) / 2 for sign in every]
            share = figures.ratio(places, shares, [1.0] * len(shares))
            means = [sum(one) / len(one) for one in known]
            p = paired_permutation(means, [0.0] * len(means)) if len(means) > 1 else None
            draws = len(every) - wins - losses
            found.append(Wins(measure, user, wins, losses, draws, share, p))
    return found


def _signs(
    measure: str,
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    requests: Sequence[Sequence[str]],
) -> dict[str, int]:
    """1 where the later song is better, -1 where it is worse, 0 where they are alike, by song."""
    names = ("chinmu", "adherence") if measure == BOTH else (measure,)
    parts = [
        {one: {n: of[one][n] for n in names if n in of[one]} for one in before}
        for of in (before, after)
    ]
    # where the songs of a request do not differ, or are one, the measure's spread among all of them
    spread: dict[str, float] = {}
    for name in names:
        known = [{name: own[name]} for of in parts for own in of.values() if name in own]
        spread |= spreads([known])
    spread |= spreads([[own[one] for one in of] for own in parts for of in requests])
    found = {}
    for one in before:
        if parts[0][one] and parts[1][one]:
            old, new = standing([parts[0][one], parts[1][one]], spread)
            found[one] = 0 if abs(new - old) < 1e-6 else (1 if new > old else -1)
    return found


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
