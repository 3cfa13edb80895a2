"""Pairs of songs for one request, of which one is better: how they are made, and how they become a
data set for training (training/tasks/align.py).

    made = Candidates(folder, pipeline, reward, count=8, seconds=10.0, seed=0)
    pairs = ranked_songs([made.of(wish) for wish in wishes], each=2, least=1.0)
    write_pairs(pairs, out=data, model=folder)

The songs of a request share its plan (tempo, key, chords, times) and differ in their noise, and in
their guidance where several are given. Some may be made in the words of a request for another style
(`mismatched`), so that a pair differs in what the words say, and not by chance alone. All are
ranked as they would be written, all equally loud: an encoder takes a louder song for a nearer one.
What is made is kept, a file a request, so that a run that was stopped goes on. Listeners'
preferences (`preferences.jsonl` of `mudit eval survey read`) name songs in folders, which are
encoded instead (listeners.py); a data set's songs are preferred to the model's own (originals.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mudit_engine.errors import InputError
from mudit_engine.evaluation.rewards import Reward, ranked_pairs, spreads, standing
from mudit_engine.evaluation.systems import Asked
from mudit_engine.files import atomic_path
from mudit_engine.loudness import mastered
from mudit_engine.names import USER_TYPES
from mudit_engine.pipeline import SongPipeline
from mudit_engine.reading import Understood
from mudit_engine.request import SongRequest
from mudit_engine.runtime.denoiser import SongInputs, denoise
from mudit_engine.text.harmony import key_parts
from mudit_engine.text.outline import Outline
from mudit_engine.training.align.asked import as_understood
from mudit_engine.training.dataset.encoded_with import note_encoder
from mudit_engine.training.dataset.shard_files import Field
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import LEVELS, song_fields
from mudit_engine.training.seeding import seed64

SENTENCE = LEVELS.index("sentence")
HELD_OUT_SHARE = 8  # one request of so many validates
HEAVIEST = 3.0  # weight of a pair, where the mean is 1


@dataclass(frozen=True)
class Pair:
    """Two songs for one request. Latents are normalised, float16 [T, C], of one length. `weight`
    says how much the pair counts in training; 1 is the mean.
    """

    id: str
    user_type: str
    inputs: SongInputs
    outline: Outline
    won_TC: np.ndarray
    lost_TC: np.ndarray
    request: str = ""  # pairs of one request validate together; the pair's id where it is empty
    weight: float = 1.0


@dataclass(frozen=True)
class Songs:
    """The songs of one request, float16 [N, T, C], and the parts of the reward of each."""

    wish: Asked
    inputs: SongInputs
    outline: Outline
    latents_NTC: np.ndarray
    parts: list[dict[str, float]]


class Candidates:
    """Makes songs and measures their reward.

    Args:
        folder: where they are kept.
        pipeline: of the model that is to learn.
        reward: what measures them.
        count: songs a request.
        seconds: of each song.
        seed: of their noise.
        sampler: fields of the sampler that differ from the model's.
        guidance: scales of the guidance, which the songs of a request have in turn; none is the
            model's.
        mismatched: of the songs, so many are made in another request's words.
    """

    def __init__(
        self,
        folder: Path,
        pipeline: SongPipeline,
        reward: Reward,
        *,
        count: int,
        seconds: float,
        seed: int,
        sampler: Mapping[str, Any],
        guidance: Sequence[float] = (),
        mismatched: int = 0,
    ) -> None:
        self.folder, self.pipeline, self.reward = folder, pipeline, reward
        self.count, self.seconds, self.seed, self.sampler = count, seconds, seed, dict(sampler)
        self.mismatched = mismatched
        self.guidance = tuple(guidance) or (pipeline.config.sampler.guidance,)

    def request(self, wish: Asked, *, guidance: float | None = None) -> SongRequest:
        """The request of a wish; its seed decides on the plan."""
        scale = {} if guidance is None else {"guidance": guidance}
        return SongRequest(
            description=wish.description,
            lyrics=wish.lyrics,
            seconds=self.seconds,
            user_type=wish.user_type,
            seed=seed64(self.seed, "request", wish.id),
            sampler={**self.sampler, **scale},
        )

    def of(self, wish: Asked, others: Sequence[Asked] = ()) -> Songs:
        """The songs of a wish. What the reader understands of it is what they are held against.

        others: whose words mismatched songs are made in: of one that asks for another style.
            Raises InputError where there is none.
        """
        reader = self.pipeline.reader
        understood = reader.read(self.request(wish))
        inputs = reader.inputs(understood)
        asked = as_understood(wish, understood)
        makings = [inputs] * (self.count - self.mismatched)
        if self.mismatched:
            makings += [
                self._in_words_of(self._other(wish, understood, others), understood)
            ] * self.mismatched
        latents, parts = self._made(asked, makings, understood.seconds)
        return Songs(asked, inputs, understood.outline, latents, parts)

    def _other(self, wish: Asked, understood: Understood, others: Sequence[Asked]) -> Understood:
        """The first of the wishes, in an order drawn for this one, that asks for another style and,
        like this one, is sung or is not.
        """
        drawn = np.random.default_rng(seed64(self.seed, "mismatched", wish.id))
        for place in drawn.permutation(len(others)):
            other = others[place]
            if bool(other.lyrics.strip()) != bool(wish.lyrics.strip()):
                continue
            read = self.pipeline.reader.read(self.request(other))
            if read.outline.controls.style != understood.outline.controls.style:
                return read
        raise InputError(
            f"no request asks for another style than '{wish.id}': give more requests, or take "
            "--mismatched 0"
        )

    def _in_words_of(self, other: Understood, understood: Understood) -> SongInputs:
        """A request's inputs, but with another's description and style."""
        outline = understood.outline
        controls = replace(outline.controls, style=other.outline.controls.style)
        told = replace(
            understood,
            fragments=other.fragments,
            outline=replace(outline, controls=controls),
        )
        return self.pipeline.reader.inputs(told)

    def _made(
        self, asked: Asked, makings: Sequence[SongInputs], seconds: float
    ) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Latents float16 [songs, T, C] and the parts of the reward of each song."""
        path = self.folder / f"{seed64(asked.id):016x}.safetensors"
        if path.is_file():
            with safe_open(path, "pt") as kept:
                return kept.get_tensor("latents").numpy(), json.loads(kept.metadata()["parts"])
        tables = [
            self.pipeline.reader.read(self.request(asked, guidance=scale)).table
            for scale in self.guidance
        ]
        with torch.inference_mode():
            runtime = self.pipeline.runtime
            states = [
                runtime.prepare(
                    replace(
                        told,
                        table=tables[number % len(tables)],
                        seed=seed64(self.seed, "candidate", asked.id, number),
                    )
                )
                for number, told in enumerate(makings)
            ]
            made = [one.half().cpu() for one in denoise(runtime, states)]
        rate, parts = self.pipeline.config.vae.sample_rate, []
        for one in made:
            audio, _ = mastered(self.pipeline.decode(one.float(), seconds), rate)
            parts.append(self.reward.parts(audio, rate, asked))
        with atomic_path(path) as aside:
            save_file({"latents": torch.stack(made)}, aside, {"parts": json.dumps(parts)})
        return torch.stack(made).numpy(), parts


def ranked_songs(requests: Sequence[Songs], *, each: int, least: float) -> list[Pair]:
    """Pairs of better and worse songs of each request, weighed by how far they are apart.

    Args:
        requests: the songs of all requests, whose common spread is the measure of a difference.
        each: pairs of a request at most.
        least: how far apart a pair's songs must be, in spreads (evaluation/rewards.py).
    """
    spread = spreads([one.parts for one in requests])
    found, gaps = [], []
    for one in requests:
        ranked = ranked_pairs(standing(one.parts, spread), each=each, least=least)
        for number, (best, worst, gap) in enumerate(ranked):
            won, lost = one.latents_NTC[best], one.latents_NTC[worst]
            name = one.wish.id if each == 1 else f"{one.wish.id}.{number}"
            user = one.wish.user_type
            found.append(Pair(name, user, one.inputs, one.outline, won, lost, one.wish.id))
            gaps.append(gap)
    mean = sum(gaps) / max(1, len(gaps))
    return [
        replace(pair, weight=min(HEAVIEST, gap / mean))
        for pair, gap in zip(found, gaps, strict=True)
    ]


def write_pairs(pairs: Iterable[Pair], out: Path, *, model: Path, width: int) -> int:
    """Writes pairs as a data set, those of every eighth request for validation. Returns how many it
    holds. Raises InputError for pairs of fewer than two requests.

    width: of a description's vectors.
    """
    known = list(pairs)
    requests = list(dict.fromkeys(pair.request or pair.id for pair in known))
    if len(requests) < 2:
        raise InputError(
            f"{len(requests)} requests have a song that is better than another: give more "
            "requests, more songs of each, or a lower least gap"
        )
    channels = known[0].won_TC.shape[1]
    fields = song_fields(latent_channels=channels, description_width=width)
    note_encoder(out, model, parts=("vae", "chinmu"))
    with ShardWriter(out, {**fields, "lost": Field("float16", channels)}) as writer:
        for pair in known:
            if pair.id not in writer:
                arrays, metadata = conditions(pair)
                number = requests.index(pair.request or pair.id)
                split = "validation" if number % HELD_OUT_SHARE == 0 else "train"
                writer.add(pair.id, arrays, metadata=metadata, split=split)
    return len(known)


def conditions(pair: Pair) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A pair's arrays and metadata, as training reads a song's (tasks/dit.py)."""
    inputs, outline = pair.inputs, pair.outline
    fragments = inputs.descriptions.numpy().astype(np.float16)
    kind = [SENTENCE, 0, USER_TYPES.index(pair.user_type), 0, 1]
    arrays = {
        "latents": pair.won_TC,
        "lost": pair.lost_TC,
        "phonemes": np.asarray(inputs.lyric_ids, np.int32),
        "fragments": fragments,
        "fragment_kinds": np.array([kind] * len(fragments), np.uint8).reshape(-1, 5),
    }
    if outline.token_times is not None and len(inputs.lyric_ids):
        arrays["phoneme_times"] = outline.token_times
    metadata: dict[str, Any] = {"seconds": inputs.seconds, "weight": pair.weight}
    if outline.bpm is not None:
        metadata["bpm"] = outline.bpm
    if outline.key is not None:
        metadata["key"], metadata["mode"] = key_parts(outline.key)
    metadata["chords"] = [[one.start, one.end, one.symbol.name] for one in outline.chords]
    if len(outline.melody):
        metadata["melody"] = [list(note) for note in outline.melody]
    if outline.arrangement:
        metadata["arrangement"] = [asdict(one) for one in outline.arrangement]
    for name in ("drums", "voice", "style"):
        if getattr(outline.controls, name) is not None:
            metadata[name] = getattr(outline.controls, name)
    return arrays, metadata


__all__ = ["Candidates", "Pair", "Songs", "conditions", "ranked_songs", "write_pairs"]
