"""Pre-training and fine-tuning of DiT / SiT on latents: whole songs, any lengths, no padding.

    x_t = alpha(t) x0 + sigma(t) eps;  loss = sum over target frames of mean_C (net(x_t) - target)^2

Where a model is told which frames are given (dit.edits), a share of the songs is an edit: all but a
span, the end, the beginning or scattered lines comes without noise, and the loss is that of these.

Conditions are dropped for classifier-free guidance in exclusive cases: no description, no lyrics,
or neither (user type none). A batch draws, for every song, the noise level, the noise, the
fragments, the dropped conditions and the reference stem from (seed, step, song id).

    batch = DitTask(recipe, shards).load([4, 17], moment)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mudit_engine.diffusion.loss import (
    contrasted_rows,
    diffusion_loss,
    min_snr_weights,
    sample_times,
)
from mudit_engine.diffusion.paths import DdpmPath, Path, make_path
from mudit_engine.errors import InputError
from mudit_engine.models.compiled import compile_blocks
from mudit_engine.models.dit import DiT, DitBatch, check_lyric_ids
from mudit_engine.models.lora import add_lora, begin_lora
from mudit_engine.models.outline import OutlineRows, hold, outline_rows, pack_outlines
from mudit_engine.names import REFERENCE_KINDS, USER_TYPES
from mudit_engine.text.composition.typed import CONTROLS
from mudit_engine.text.outline import Controls, Outline
from mudit_engine.text.vocabulary import Vocabulary
from mudit_engine.training.dataset import shards as layout
from mudit_engine.training.dataset.encoded_with import check_encoder
from mudit_engine.training.dataset.shards import SongRecord
from mudit_engine.training.dataset.told import outline_of
from mudit_engine.training.parallel.deepspeed_config import check_heads
from mudit_engine.training.parallel.strategy import Logs, Strategy
from mudit_engine.training.parallel.ulysses import make_exchange
from mudit_engine.training.recipe_stages import DitStage
from mudit_engine.training.tasks.buckets import Buckets, Sizes
from mudit_engine.training.tasks.task import Batch, Moment, Task
from mudit_engine.training.throughput import forward_flops

NOISE_BANDS = 3  # the loss is also reported by thirds of the noise level


@dataclass(frozen=True)
class DitInputs:
    """A batch before noise is added: the network's inputs with clean latents, the noise and its
    level.

    The loss is that of the first `songs` sequences (None: of all), without the frames that are
    held (bool [T]), which are given as they are.
    """

    clean: DitBatch
    noise_TC: Tensor
    times_B: Tensor
    songs: int | None = None
    held_T: Tensor | None = None


class DitLoss(nn.Module):
    """The network and its training loss as one module, which is what engines wrap."""

    def __init__(self, dit: DiT, path: Path, stage: DitStage) -> None:
        super().__init__()
        self.dit, self.path, self.stage = dit, path, stage

    def forward(self, inputs: DitInputs) -> tuple[Tensor, Logs]:
        """(sum over frames, logs) of a batch."""
        clean = inputs.clean
        noisy, target_TC, unheld_T = noised(self.path, inputs)
        out_TC = self.dit(
            noisy, checkpointing=self.stage.checkpointing if self.training else "none"
        )
        weights = None
        if self.stage.min_snr_gamma is not None:
            weights = min_snr_weights(self.path, inputs.times_B, gamma=self.stage.min_snr_gamma)
        if inputs.songs is not None and inputs.songs < len(clean.frames):
            counted = torch.arange(len(clean.frames), device=out_TC.device) < inputs.songs
            weights = counted.float() if weights is None else weights * counted
        loss, _ = diffusion_loss(
            out_TC, target_TC, clean.frames, song_weights=weights, frame_weights=unheld_T
        )
        songs = list(clean.frames)[: inputs.songs]
        if self.training and self.stage.contrastive and len(songs) > 1:
            rows_T = torch.arange(len(out_TC))  # a filler's stay: it counts for nothing
            rows_T[: sum(songs)] = contrasted_rows(songs)
            other_TC = target_TC[rows_T.to(out_TC.device, non_blocking=True)]
            distance, _ = diffusion_loss(
                out_TC, other_TC, clean.frames, song_weights=weights, frame_weights=unheld_T
            )
            loss = loss - self.stage.contrastive * distance
        if unheld_T is not None:  # a held frame has no error in the figures either
            target_TC = torch.where(inputs.held_T[:, None], out_TC.detach(), target_TC)  # type: ignore[index]
        return loss, self._logs(out_TC.detach(), target_TC, inputs)

    def _logs(self, out_TC: Tensor, target_TC: Tensor, inputs: DitInputs) -> Logs:
        counted = list(inputs.clean.frames)[: inputs.songs]
        # every figure stays on the device: reading one would have it run dry once a micro-batch
        error_T = (out_TC.float() - target_TC).square().mean(1)[: sum(counted)]
        songs = torch.stack([part.sum() for part in error_T.split(counted)])
        band = (inputs.times_B[: inputs.songs] * NOISE_BANDS).long().clamp_max(NOISE_BANDS - 1)
        frames = torch.tensor(counted, dtype=torch.float32).to(band.device, non_blocking=True)
        logs: Logs = {"mse": (songs.sum(), float(sum(counted)))}
        for number in range(NOISE_BANDS):
            here = band == number
            logs[f"mse_noise{number + 1}of{NOISE_BANDS}"] = (
                (songs * here).sum(),
                (frames * here).sum(),
            )
        return logs


def noised(path: Path, inputs: DitInputs) -> tuple[DitBatch, Tensor, Tensor | None]:
    """(what the network takes, its target [T, C], 1 where a frame is not held [T] or None)."""
    clean, noise_TC = inputs.clean, inputs.noise_TC
    counts = torch.tensor(clean.frames).to(noise_TC.device, non_blocking=True)
    times_T = inputs.times_B.repeat_interleave(counts, output_size=len(noise_TC))
    noisy_TC = path.add_noise(clean.latents_TC, noise_TC, times_T)
    unheld_T = None
    if inputs.held_T is not None:
        noisy_TC = torch.where(inputs.held_T[:, None], clean.latents_TC, noisy_TC)
        unheld_T = (~inputs.held_T).to(noisy_TC.dtype)
    target_TC = path.target(clean.latents_TC, noise_TC, times_T)
    fields = {
        **clean.__dict__,
        "latents_TC": noisy_TC,
        "times_B": path.network_time(inputs.times_B),
    }
    return DitBatch(**fields), target_TC, unheld_T


class DitTask(Task):
    """Stages 2 and 3. Needs latents, phonemes, and for descriptions fragments with their kinds;
    stems for references.
    """

    part = "dit"
    needs: tuple[str, ...] = ("latents", "phonemes", "fragments", "fragment_kinds")

    def build(self) -> dict[str, nn.Module]:
        self.stage = self.recipe.dit
        self.path = make_path(self.config.path)
        for name, width in (
            ("latents", self.config.dit.latent_channels),
            ("fragments", self.config.dit.description_width),
        ):
            if self.shards.fields[name].width != width:
                raise InputError(
                    f"'{self.shards.folder}' holds {name} of width "
                    f"{self.shards.fields[name].width}, the model takes {width}: "
                    "encode the songs with this model's VAE and ChinMu"
                )
        if (init := self.recipe.init) is not None:
            check_encoder(self.shards.folder, init, named=f"init='{init}'")
        vocabulary = Vocabulary.load(self.config.dit.vocabulary)
        self.sections = np.array(
            [i for i in range(len(vocabulary)) if vocabulary.family(i) == "section"]
        )
        self.dit, self.on_ranks = DiT(self.config.dit), False
        data = self.recipe.data
        self.training_songs = self.shards.numbers("train")
        self.buckets = None
        if data.buckets is not None:
            self.buckets = Buckets(
                data.buckets,
                pack_size=data.pack_size,
                frames=np.asarray(self.shards.rows("latents")),
                lyrics=np.asarray(self.shards.rows("phonemes")),
                max_fragments=self.config.dit.max_fragments,
                references=self.stage.reference > 0,
            )
        self.initialise(self.dit)
        if self.recipe.lora is not None:
            lora = self.recipe.lora
            add_lora(
                self.dit,
                rank=lora.rank,
                alpha=lora.alpha,
                dropout=lora.dropout,
                parts=lora.parts,
            )
            if lora.init is not None:
                begin_lora(self.dit, lora.init)
        if self.stage.compile == "blocks":
            compile_blocks(self.dit)
        return {"model": DitLoss(self.dit, self.path, self.stage)}

    def join_ranks(self, strategy: Strategy) -> None:
        shares = strategy.shares
        check_heads(self.config.dit.heads, shares)
        self.dit.exchange = make_exchange(strategy)
        self.on_ranks = True

    def costs(self) -> np.ndarray:
        return np.asarray(self.shards.rows("latents"))

    def load(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        records = [self.shards.read(number) for number in songs]
        conditions = [self._conditions(record, moment) for record in records]
        latents, seconds = (
            [record["latents"] for record in records],
            [float(record.metadata["seconds"]) for record in records],
        )
        channels = self.config.dit.latent_channels
        noise = [
            torch.randn(len(z), channels, generator=moment.generator("noise", record.id))
            for z, record in zip(latents, records, strict=True)
        ]
        times = self._times(records, moment)
        for filler in self._fillers(conditions, latents):
            conditions.append(self._filler_sequence(filler))
            latents.append(np.zeros((filler.frames, channels), np.float16))
            noise.append(torch.zeros(filler.frames, channels))
            seconds.append(1.0)
            times = torch.cat((times, torch.full((1,), 0.5)))
        frames = [len(z) for z in latents]
        lyric_ids = np.concatenate([c.lyrics for c in conditions]).astype(np.int64)
        check_lyric_ids(lyric_ids, self.config.dit)
        clean = DitBatch(
            latents_TC=_pack(latents, channels),
            frames=frames,
            times_B=torch.zeros(len(frames)),
            seconds_B=torch.tensor(seconds),
            user_B=torch.tensor([c.user for c in conditions]),
            descriptions=_pack(
                [c.fragments for c in conditions], self.config.dit.description_width
            ),
            fragments=[len(c.fragments) for c in conditions],
            lyric_ids=torch.from_numpy(lyric_ids),
            lyrics=[len(c.lyrics) for c in conditions],
            references=_pack([c.reference for c in conditions], channels),
            reference_frames=[len(c.reference) for c in conditions],
            reference_kinds=[c.reference_kind for c in conditions],
            outline=pack_outlines([c.outline for c in conditions])
            if self.config.dit.outline
            else None,
        )
        held_T = torch.from_numpy(np.concatenate([c.held for c in conditions]))
        # buckets have one form of batch: with the frames that are held, or none, in every one
        tells = held_T.any() or (self.buckets is not None and self.config.dit.edits)
        count = len(records)
        inputs = DitInputs(clean, torch.cat(noise), times, count, held_T if tells else None)
        counted = replace(
            clean,
            frames=clean.frames[:count],
            fragments=clean.fragments[:count],
            lyrics=clean.lyrics[:count],
            reference_frames=clean.reference_frames[:count],
        )
        return Batch(
            tuple(record.id for record in records),
            float(sum(counted.frames)),
            inputs,
            tokens=sum(counted.frames) + sum(counted.reference_frames) + sum(counted.fragments),
            seconds=sum(seconds[:count]),
            flops=forward_flops(self.config.dit, counted),
        )

    def _fillers(
        self, conditions: Sequence[Conditions], latents: Sequence[np.ndarray]
    ) -> list[Sizes]:
        """Sequences that count for nothing behind the songs. On ranks, one with a row of every
        kind: with it every rank uses every weight in every pass, in the same order, whatever its
        songs lack; the collectives of ZeRO 2 and 3 would mix up or wait for ever otherwise. With
        buckets, what rounds the sizes.
        """
        if self.buckets is not None:
            return self.buckets.fillers(
                Sizes(
                    len(latents),
                    sum(len(z) for z in latents),
                    sum(len(c.fragments) for c in conditions),
                    sum(len(c.lyrics) for c in conditions),
                    sum(len(c.reference) for c in conditions),
                )
            )
        return [Sizes(1, 1, 1, 1, 1)] if self.on_ranks else []

    def _filler_sequence(self, sizes: Sizes) -> Conditions:
        dit = self.config.dit
        outline = outline_rows(
            Outline(),
            frames=sizes.frames,
            frame_rate=self.config.vae.frame_rate,
            tokens=sizes.lyrics,
            config=dit,
        )
        return Conditions(
            np.zeros(sizes.lyrics, np.int64),
            np.zeros((sizes.fragments, dit.description_width), np.float16),
            0,
            np.zeros((sizes.references, dit.latent_channels), np.float16),
            0,
            outline,
            np.zeros(sizes.frames, bool),
        )

    def _times(self, records: Sequence[SongRecord], moment: Moment) -> Tensor:
        if not moment.training:  # an even spread of noise levels, the same at every evaluation
            even = (torch.arange(len(records)) + 0.5) / len(records)
            if isinstance(self.path, DdpmPath):
                steps = self.config.path.train_steps
                return ((even * steps).floor() + 1) / steps
            return self.path.t_min + (1 - self.path.t_min) * even
        s = self.stage
        return torch.cat(
            [
                sample_times(
                    1,
                    self.path,
                    generator=moment.generator("time", record.id),
                    distribution=s.times,
                    logit_mean=s.logit_mean,
                    logit_std=s.logit_std,
                )
                for record in records
            ]
        )

    def _conditions(self, record: SongRecord, moment: Moment) -> Conditions:
        """What a song is conditioned on at this step."""
        s = self.stage
        choose = moment.chooser("conditions", record.id)
        case = choose.random() if moment.training else 1.0
        no_both = case < s.drop_both
        no_description = no_both or s.drop_both <= case < s.drop_both + s.drop_descriptions
        no_lyrics = (
            no_both
            or s.drop_both + s.drop_descriptions
            <= case
            < s.drop_both + s.drop_descriptions + s.drop_lyrics
        )
        if s.dropping == "independent" and moment.training:
            drops = moment.chooser("drops", record.id)
            no_both = drops.random() < s.drop_both
            no_description = no_both or drops.random() < s.drop_descriptions
            no_lyrics = no_both or drops.random() < s.drop_lyrics
        lyrics = record["phonemes"]
        kept = np.full(len(lyrics), not no_lyrics)
        if not s.structured_lyrics:
            kept &= ~np.isin(lyrics, self.sections)
        lyrics, times = (
            lyrics[kept],
            record["phoneme_times"][kept] if len(record["phoneme_times"]) else None,
        )
        rows = np.empty(0, np.int64)
        described = record
        if s.use_descriptions and not no_description:
            described = self._described(record, moment)
            whole = s.whole_description if moment.training else 1.0
            rows = choose_fragments(
                described["fragment_kinds"], s.levels, s.max_fragments, whole, choose
            )[: self.config.dit.max_fragments]
        say_user = len(rows) and not (moment.training and choose.random() < s.drop_user)
        user = USER_TYPES[int(described["fragment_kinds"][rows[0], 2])] if say_user else "none"
        kind, reference = (
            self._reference(record, choose)
            if choose.random() < s.reference
            else ("mix", record["latents"][:0])
        )
        known = Outline()
        if not no_both:
            heard = kind if len(reference) else "nothing"
            known = self._known(record, times, moment, heard)
            if len(rows) and described is not record:
                known = replace(known, controls=outline_of(record.metadata).controls)
        outline = self._outline(record, len(lyrics), known)
        held = self._held(record, moment)
        if held.any():
            outline = hold(outline, held, self.config.dit)
        return Conditions(
            lyrics,
            described["fragments"][rows],
            USER_TYPES.index(user),
            reference,
            REFERENCE_KINDS.index(kind),
            outline,
            held,
        )

    def _described(self, record: SongRecord, moment: Moment) -> SongRecord:
        """The song whose description this one has: itself, but in a share of the described songs
        of which all controls are known, in the training of a model that takes them.
        """
        choose = moment.chooser("misworded", record.id)
        if not (
            moment.training and self.config.dit.controls and choose.random() < self.stage.misworded
        ):
            return record
        known = outline_of(record.metadata).controls
        if not len(record["fragments"]) or any(getattr(known, n) is None for n in CONTROLS):
            return record
        number = int(self.training_songs[choose.randrange(len(self.training_songs))])
        other = self.shards.read(number, ("fragments", "fragment_kinds"))
        return other if len(other["fragments"]) else record

    def _held(self, record: SongRecord, moment: Moment) -> np.ndarray:
        """Which frames of a song are given, bool [T]: none but in a share of the training songs of
        a model that is told.
        """
        frames = len(record["latents"])
        held = np.zeros(frames, bool)
        choose = moment.chooser("edit", record.id)
        if not (moment.training and self.config.dit.edits and choose.random() < self.stage.edit):
            return held
        return edited_frames(frames, record["phoneme_times"], self.config.vae.frame_rate, choose)

    def _known(
        self, record: SongRecord, times: np.ndarray | None, moment: Moment, heard: str
    ) -> Outline:
        """What this step says of the song's course: tempo, key and chords are left out now and
        then, as requests leave them out; and so is what the reference `heard` decides.
        """
        choose, s = moment.chooser("outline", record.id), self.stage
        dropped = (s.drop_tempo, s.drop_key, s.drop_chords)
        say_tempo, say_key, say_chords = (
            not moment.training or choose.random() >= share for share in dropped
        )
        triads = moment.training and choose.random() < 0.5  # planned chords are triads
        whole = outline_of(record.metadata, times, triads=triads)
        said = Outline(
            whole.bpm if say_tempo else None,
            whole.key if say_key else None,
            times,
            whole.chords if say_chords else (),
        )
        return self._composed(said, whole, moment, record.id, heard)

    def _composed(
        self, outline: Outline, whole: Outline, moment: Moment, record_id: str, heard: str
    ) -> Outline:
        """The outline with what else is known of the song, each part left out now and then."""
        dit, s, choose = self.config.dit, self.stage, moment.chooser("composition", record_id)

        def says(share: float) -> bool:
            return not moment.training or choose.random() >= share

        if dit.melody and says(s.drop_melody):
            outline = replace(outline, melody=whole.melody)
        if dit.arrangement and says(s.drop_arrangement):
            outline = replace(outline, arrangement=whole.arrangement)
        if dit.controls:
            said = {n: getattr(whole.controls, n) for n in CONTROLS if says(s.drop_controls)}
            outline = replace(outline, controls=Controls(**said))
        hides = _HEARD_IN.get(heard, {})
        if hides and moment.training and choose.random() < s.drop_referenced:
            outline = replace(outline, **hides)
        return outline

    def _outline(self, record: SongRecord, tokens: int, outline: Outline) -> OutlineRows:
        return outline_rows(
            outline,
            frames=len(record["latents"]),
            frame_rate=self.config.vae.frame_rate,
            tokens=tokens,
            config=self.config.dit,
        )

    def _reference(self, record: SongRecord, choose: random.Random) -> tuple[str, np.ndarray]:
        """One stem of the song, aligned with it; or an excerpt of the mix at another place, since
        the whole mix would be the answer.
        """
        kinds = [
            kind
            for kind in layout.STEMS
            if f"stem.{kind}" in self.shards.fields and len(record[f"stem.{kind}"])
        ]
        kind = choose.choice(["mix", *kinds])
        if kind != "mix":
            return kind, record[f"stem.{kind}"]
        total = len(record["latents"])
        length = max(1, round(total * choose.uniform(0.2, 0.5)))
        start = choose.randrange(total - length + 1)
        return kind, record["latents"][start : start + length]


@dataclass(frozen=True)
class Conditions:
    """Conditions of one song at one step."""

    lyrics: np.ndarray
    fragments: np.ndarray
    user: int
    reference: np.ndarray
    reference_kind: int
    outline: OutlineRows
    held: np.ndarray  # bool, a frame of the song each


# what a reference decides, so that the outline need not say it: the beat and all that is timed by
# it where drums are heard, harmony and what is sung over it where bass or chords are
_HEARD_IN: dict[str, dict[str, Any]] = {
    "drums": {
        "bpm": None,
        "token_times": None,
        "chords": (),
        "melody": (),
        "arrangement": (),
    },
    "bass": {"chords": (), "key": None, "melody": ()},
    "chords": {"chords": (), "key": None, "melody": ()},
    "vocals": {"token_times": None, "melody": ()},
    "mix": {"key": None, "bpm": None},
}


def edited_frames(
    frames: int, times_L2: np.ndarray, frame_rate: float, choose: random.Random
) -> np.ndarray:
    """The frames that are given where a song is edited.

    Args:
        frames: of the song.
        times_L2: seconds of its lyric tokens, -1 for those that are not sung; may have no rows.
        frame_rate: frames a second.
        choose: draws the kind of edit: a span is made anew, the song goes on behind its beginning,
            its beginning is made, or the lines of some seconds are sung anew.

    Returns:
        bool [frames], neither all nor none True where there are two frames or more.
    """
    held = np.ones(frames, bool)
    kind = choose.choice(("span", "span", "end", "beginning", "lines"))
    length = max(1, round(frames * choose.uniform(0.1, 0.6)))
    sung = times_L2[times_L2[:, 0] >= 0] if len(times_L2) else np.zeros((0, 2))
    if kind == "end":
        held[frames - length :] = False
    elif kind == "beginning":
        held[:length] = False
    elif kind == "lines" and len(sung):
        for _ in range(choose.randint(1, 3)):
            first = float(sung[choose.randrange(len(sung)), 0])
            last = first + choose.uniform(1.5, 6.0)
            held[int(first * frame_rate) : int(last * frame_rate) + 1] = False
    else:
        start = choose.randrange(frames - length + 1)
        held[start : start + length] = False
    if not held.any() and frames > 1:
        held[0] = True
    return held


def choose_fragments(
    kinds_F5: np.ndarray, levels: Sequence[float], most: int, whole: float, choose: random.Random
) -> np.ndarray:
    """Rows of the fragments that describe a song at one step. Empty when it has no description.

    One description at random; with probability `whole` the fragments that the engine makes of it in
    a request, else 1 to `most` of its fragments, each of a level drawn by its odds, in their order.
    """
    if not len(kinds_F5):
        return np.empty(0, np.int64)
    number = choose.randrange(int(kinds_F5[:, 3].max()) + 1)
    rows = np.flatnonzero(kinds_F5[:, 3] == number)
    if choose.random() < whole:
        return rows[kinds_F5[rows, 4] == 1]
    by_level = {
        level: rows[kinds_F5[rows, 0] == level].tolist()
        for level in range(len(levels))
        if levels[level] > 0
    }
    chosen: list[int] = []
    for _ in range(choose.randint(1, min(most, len(rows)))):
        left = [level for level, members in by_level.items() if members]
        if not left:
            break
        members = by_level[choose.choices(left, weights=[levels[level] for level in left])[0]]
        chosen.append(members.pop(choose.randrange(len(members))))
    return np.array(sorted(chosen), np.int64)


def _pack(parts: Sequence[np.ndarray], width: int) -> Tensor:
    """fp32 [sum of rows, width] of fp16 arrays: the copy out of the mapped files."""
    rows = (
        np.concatenate([np.asarray(part).reshape(-1, width) for part in parts])
        if parts
        else np.empty((0, width), np.float16)
    )
    return torch.from_numpy(rows).float()
