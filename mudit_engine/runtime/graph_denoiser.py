"""The exported graphs (export/graphs.py) as a runtime: the same `prepare` and `step` as the torch
denoiser, whatever executes the graphs.

    session = OnnxSession(folder)  # or OpenVinoSession
    denoiser = GraphDenoiser(config.dit, session)
    latents = denoise(denoiser, [denoiser.prepare(song)])

Songs of the same padded length are one call a step: their conditional and, where they are guided,
their unconditional sequences, padded to each other's length and, for engines built for length
buckets, to the bucket. Padding is masked, so it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.config import ChinMuConfig, DitConfig, VaeConfig
from mudit_engine.errors import InputError
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.layouts.packed import lyric_positions
from mudit_engine.models.chinmu import character_rows, check_texts
from mudit_engine.models.dit import check_lyric_ids, pool_descriptions
from mudit_engine.models.outline import no_outline
from mudit_engine.names import REFERENCE_KINDS, USER_TYPES
from mudit_engine.runtime.denoiser import SongInputs, SongProgress, initial_noise
from mudit_engine.runtime.limits import SongShape, refuse_edit


class Session(Protocol):
    """Something that runs graphs by name. Inputs and outputs are CPU tensors."""

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Lengths:
    """Rows of a step's sequences: target frames, other rows (descriptions, reference), lyric keys
    with the null key.
    """

    targets: int
    others: int
    lyrics: int


Padding = Callable[[Lengths], Lengths]


def unpadded(lengths: Lengths) -> Lengths:
    """What a graph of any length takes; it wants at least one other row."""
    return Lengths(lengths.targets, max(lengths.others, 1), lengths.lyrics)


@dataclass(frozen=True)
class Branch:
    """What one sequence of a song brings to every step."""

    target_rows: Tensor  # [T, D]
    other_rows: Tensor  # [E, D]
    target_tables: Tensor  # fp32 [T, 2 K]
    other_tables: Tensor
    keys: Tensor  # [M, L, H, K]
    values: Tensor
    base: Tensor  # [R, ...] a row a step
    final: Tensor


@dataclass(kw_only=True)
class GraphSong(SongProgress):
    """A song in a graph runtime."""

    branches: tuple[Branch, Branch]

    @property
    def acting(self) -> tuple[Branch, ...]:
        """Branches of the present step."""
        return self.branches[: 1 + self.guided]

    @property
    def lengths(self) -> Lengths:
        """What the present step takes, before padding."""
        return Lengths(
            self.frames,
            max(len(b.other_rows) for b in self.acting),
            1 + max(b.keys.shape[1] for b in self.acting),
        )


@dataclass
class GraphDenoiser:
    """Prepares and steps songs through a session."""

    config: DitConfig
    session: Session
    padding: Padding = unpadded
    # stepped in one call at most: a CPU gains nothing by more, and fp32 graphs hold every score of
    # attention at once
    songs: int = 1
    _packings: dict[tuple[tuple[int, bool], ...], dict[str, Tensor]] = field(
        default_factory=dict, repr=False
    )

    def check(self, shape: SongShape) -> None:
        """Raises InputError for an edited song."""
        refuse_edit(shape)

    def prepare(self, song: SongInputs) -> GraphSong:
        """Everything of a song that no step changes, and its initial noise. Raises InputError for
        what the graphs cannot take.
        """
        self.check(SongShape.of(song))
        c = self.config
        count = len(song.lyric_ids)
        check_lyric_ids(song.lyric_ids, c)  # a runtime reads past the end of a table in silence
        if (most := max(len(song.descriptions), len(song.negative))) > c.max_fragments:
            raise InputError(
                f"{most} description fragments are more than the model's {c.max_fragments}: say it "
                f"in fewer"
            )
        known = song.outline or no_outline(song.frames, count, c)
        positions = known.positions_L if c.outline else lyric_positions([count])
        lyrics = torch.zeros(0, c.lyric_width)
        keys = values = torch.zeros(c.blocks, 0, c.heads, c.head_dim)
        if count:
            lyrics, keys, values = self.session.run(
                "lyric_kv",
                {
                    "ids": torch.tensor(song.lyric_ids, dtype=torch.int64),
                    "mask": torch.ones(count, dtype=torch.bool),
                    "token_tables": torch.cat(
                        rope_table(torch.arange(count), c.lyric_head_dim, base=c.rope_base), -1
                    ),
                    "share_tables": torch.cat(
                        rope_table(positions * c.lyric_rope_scale, c.head_dim, base=c.rope_base), -1
                    ),
                },
            )
        reference = (
            song.reference if song.reference is not None else torch.zeros(0, c.latent_channels)
        )
        kind = REFERENCE_KINDS.index(song.reference_kind)
        branches = []
        # the unconditional sequence knows the negative description alone
        for guided in (
            False,
            True,
        ):
            descriptions = song.negative if guided else song.descriptions
            frames = reference[:0] if guided else reference
            outline = no_outline(song.frames, 0, c) if guided else known
            inputs = {
                "descriptions": descriptions.float(),
                "reference": frames,
                "reference_kind": torch.tensor([kind]),
            }
            if c.outline:
                inputs |= {
                    "features": outline.features_TF,
                    "tokens": outline.tokens_T4,
                    "weights": outline.weights_T4,
                }
                # a frame in which nothing sounds points at row 0 with weight 0
                inputs["lyrics"] = (
                    lyrics
                    if len(lyrics) and not guided
                    else torch.zeros(1, c.lyric_width, dtype=lyrics.dtype)
                )
            rows, *outlined = self.session.run("conditions", inputs)
            user = 0 if guided else USER_TYPES.index(song.user_type)
            times = song.table.times.float()
            modulation = {
                "times": times,
                "seconds": torch.full_like(times, song.seconds),
                "user": torch.full(times.shape, user),
            }
            if c.pooled_description:
                modulation["pooled"] = pool_descriptions(
                    descriptions.float(), [len(descriptions)]
                ).expand(len(times), -1)
            base, final = self.session.run("modulation", modulation)
            target_tables, other_tables = self._tables(song.frames, len(descriptions), len(frames))
            branches.append(
                Branch(
                    outlined[0]
                    if outlined
                    else torch.zeros(song.frames, c.width, dtype=rows.dtype),
                    rows,
                    target_tables,
                    other_tables,
                    keys[:, :0] if guided else keys,
                    values[:, :0] if guided else values,
                    base,
                    final,
                )
            )
        generator, noise = initial_noise(song, c.latent_channels)
        return GraphSong(
            frames=song.frames,
            table=song.table,
            generator=generator,
            x_TC=noise,
            kept_TC=torch.zeros_like(noise),
            branches=(branches[0], branches[1]),
        )

    def step(self, states: Sequence[GraphSong]) -> None:
        """Advances every song by one row of its table. No song may be done."""
        packings = {}
        for group in self._groups(states):
            key = tuple((state.serial, state.guided) for state in group)
            packings[key] = self._packings.get(key) or self._pack(group)
            x, kept = self.session.run("step", self._inputs(group, packings[key]))
            for i, state in enumerate(group):
                state.x_TC, state.kept_TC, state.step = (
                    x[i, : state.frames],
                    kept[i, : state.frames],
                    state.step + 1,
                )
        self._packings = packings

    def step_inputs(self, states: Sequence[GraphSong]) -> dict[str, Tensor]:
        """Inputs of the step graph for songs padded to the same number of target rows, at their
        present rows.
        """
        return self._inputs(states, self._pack(states))

    def _groups(self, states: Sequence[GraphSong]) -> list[list[GraphSong]]:
        """Songs that pad to the same number of target rows share a call."""
        groups: dict[int, list[GraphSong]] = {}
        for state in states:
            groups.setdefault(self.padding(state.lengths).targets, []).append(state)
        return [
            group[i : i + self.songs]
            for group in groups.values()
            for i in range(0, len(group), self.songs)
        ]

    def _inputs(self, states: Sequence[GraphSong], fixed: dict[str, Tensor]) -> dict[str, Tensor]:
        targets = fixed["target_mask"].shape[1]
        noise = [
            state.draw() if state.table.needs_noise[state.step] else torch.zeros_like(state.x_TC)
            for state in states
        ]
        changing = {
            "x": [state.x_TC for state in states],
            "kept": [state.kept_TC for state in states],
            "noise": noise,
        }
        branches = _sequences(states)
        return {
            **{
                name: torch.stack([_rows(value, targets) for value in values])
                for name, values in changing.items()
            },
            "coefficients": torch.stack([state.table.rows[state.step] for state in states]).float(),
            **fixed,
            "base": torch.stack([branch.base[states[song].step] for song, branch in branches]),
            "final": torch.stack([branch.final[states[song].step] for song, branch in branches]),
        }

    def _pack(self, states: Sequence[GraphSong]) -> dict[str, Tensor]:
        """What stays the same while the same songs run with the same guidance flags."""
        every = [state.lengths for state in states]
        to = self.padding(
            Lengths(
                max(n.targets for n in every),
                max(n.others for n in every),
                max(n.lyrics for n in every),
            )
        )
        songs = [song for song, _ in _sequences(states)]
        branches = [branch for _, branch in _sequences(states)]
        guided = [song for song, state in enumerate(states) if state.guided]
        # a song without guidance is its own unconditional sequence: out = cond, whatever w is
        unconditional = [
            len(states) + guided.index(song) if song in guided else song
            for song in range(len(states))
        ]
        return {
            "song": torch.tensor(songs),
            "unconditional": torch.tensor(unconditional),
            "target_rows": torch.stack([_rows(b.target_rows, to.targets) for b in branches]),
            "other_rows": torch.stack([_rows(b.other_rows, to.others) for b in branches]),
            "target_mask": torch.stack([_first(len(b.target_rows), to.targets) for b in branches]),
            "other_mask": torch.stack([_first(len(b.other_rows), to.others) for b in branches]),
            "target_tables": torch.stack([_rows(b.target_tables, to.targets) for b in branches]),
            "other_tables": torch.stack([_rows(b.other_tables, to.others) for b in branches]),
            "lyric_keys": torch.stack([_lyric_rows(b.keys, to.lyrics) for b in branches], 1),
            "lyric_values": torch.stack([_lyric_rows(b.values, to.lyrics) for b in branches], 1),
            "lyric_mask": torch.stack([_lyric_mask(b.keys.shape[1], to.lyrics) for b in branches]),
        }

    def _tables(self, frames: int, descriptions: int, reference: int) -> tuple[Tensor, Tensor]:
        """Positions as mudit_engine/layouts/packed.py gives them: (cos, sin) of the frame, then of
        the share of the song, side by side.
        """
        target, other = (
            torch.arange(frames, dtype=torch.float32),
            torch.arange(reference, dtype=torch.float32),
        )
        nowhere = torch.zeros(descriptions)
        return (
            self._table(target, (target + 0.5) / max(frames, 1)),
            self._table(
                torch.cat((nowhere, other)), torch.cat((nowhere, (other + 0.5) / max(reference, 1)))
            ),
        )

    def _table(self, frame: Tensor, share: Tensor) -> Tensor:
        c = self.config
        own = rope_table(frame, c.head_dim, base=c.rope_base)
        return torch.cat(
            (*own, *rope_table(share * c.lyric_rope_scale, c.head_dim, base=c.rope_base)), -1
        )


@dataclass(frozen=True)
class GraphDecoder:
    """The VAE's decoder through a session; latents are normalised."""

    config: VaeConfig
    receptive_field: int
    session: Session

    def decode(self, latents_NTC: Tensor, *, refinements: int | None = None) -> Tensor:
        """Audio [N, channels, T hop]. `refinements`: of the phases, where not as many as the
        codec's own.
        """
        inputs = {"latents": latents_NTC.float()}
        if own := self.config.phase_refinements:
            inputs["refinements"] = torch.tensor(own if refinements is None else refinements)
        (audio,) = self.session.run("vae_decode", inputs)
        return audio


@dataclass(frozen=True)
class GraphTextEncoder:
    """ChinMu's character tower through a session."""

    config: ChinMuConfig
    session: Session

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, embedding]. Raises InputError for an empty text."""
        check_texts(texts)
        if not texts:
            return torch.zeros(0, self.config.embedding)
        length = max(len(character_rows(text, self.config.max_characters)[0]) for text in texts)
        return self.session.run(
            "chinmu_text", text_inputs(texts, self.config, fragments=len(texts), length=length)
        )[0]


def text_inputs(
    texts: Sequence[str], config: ChinMuConfig, *, fragments: int, length: int
) -> dict[str, Tensor]:
    """Inputs of the graph chinmu_text: characters, pairs and mask [fragments, length], tables
    [length, K]; behind the texts is padding.

    A row of padding alone keeps one character: attention that sees no key at all would give NaN.
    """
    inputs = {
        name: torch.zeros(fragments, length, dtype=torch.int64) for name in ("characters", "pairs")
    }
    mask = torch.zeros(fragments, length, dtype=torch.bool)
    mask[:, 0] = True
    for row, text in enumerate(texts):
        found = character_rows(text, length)
        for values, name in zip(found, inputs, strict=True):
            inputs[name][row, : len(values)] = torch.tensor(values)
        mask[row, : len(found[0])] = True
    return inputs | {
        "mask": mask,
        "tables": torch.cat(rope_table(torch.arange(length), config.head_dim), -1),
    }


def _sequences(states: Sequence[GraphSong]) -> list[tuple[int, Branch]]:
    """(song, branch) of a call's sequences: the conditional ones of all songs, then the
    unconditional ones of the guided.
    """
    return [
        (song, state.branches[branch])
        for branch in (0, 1)
        for song, state in enumerate(states)
        if branch == 0 or state.guided
    ]


def _rows(x: Tensor, length: int) -> Tensor:
    """[length, ...] with zeros behind x's rows."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, length - len(x)))


def _first(count: int, length: int, skipped: int = 0) -> Tensor:
    """bool [length]: `count` rows from `skipped` on."""
    index = torch.arange(length)
    return (index >= skipped) & (index < skipped + count)


def _lyric_mask(tokens: int, length: int) -> Tensor:
    """The song's own keys, or the null key where there are none."""
    return _first(tokens, length, 1) if tokens else _first(1, length)


def _lyric_rows(x_MLHK: Tensor, length: int) -> Tensor:
    """The null key, the song's own, zeros."""
    return F.pad(x_MLHK, (0, 0, 0, 0, 1, length - 1 - x_MLHK.shape[1]))
