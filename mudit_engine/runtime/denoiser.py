"""Prepare once, step cheaply: what does not depend on the noisy latent is computed once a song, and
a step does the rest.

    denoiser = Denoiser(dit)
    # lyric keys and values, modulation of all steps, condition rows
    states = [denoiser.prepare(song) for song in songs]
    latents = denoise(denoiser, states)                          # [T, C] a song

A step takes any mix of songs, each at its own step of its own sampler table: conditional and
unconditional sequences are just more sequences of one ragged batch, and a song outside its guidance
interval has no unconditional one.

Every runtime (torch here; ONNX Runtime, OpenVINO, TensorRT) has the same two methods, and `denoise`
is the same loop for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mudit_engine import ops
from mudit_engine.diffusion.samplers import SamplerTable
from mudit_engine.errors import ModelError
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.layouts.packed import Layout, Span, lyric_positions, make_layout
from mudit_engine.models.dit import DiT, Modulation, check_lyric_ids, pool_descriptions
from mudit_engine.models.outline import OutlineRows, no_outline
from mudit_engine.names import REFERENCE_KINDS, USER_TYPES


@dataclass(frozen=True)
class SongInputs:
    """What the denoiser needs of one song. Tensors are on the CPU; latents are normalised."""

    frames: int
    seconds: float
    table: SamplerTable
    seed: int
    descriptions: Tensor  # [fragments, description_width]
    # [fragments, description_width] of what the song should not be; may have no rows
    negative: Tensor
    lyric_ids: Sequence[int] = ()
    user_type: str = "none"
    reference: Tensor | None = None  # [frames, C]
    reference_kind: str = "mix"
    outline: OutlineRows | None = None  # read by a model with config.outline
    # the fragments themselves: of a runtime that reads text, which takes from descriptions and
    # negative their number of rows alone
    texts: Sequence[str] = ()
    negative_texts: Sequence[str] = ()


@dataclass(kw_only=True)
class SongProgress:
    """A song on its way, whatever runs it: the latent, the kept output and the generator that steps
    change.
    """

    frames: int
    table: SamplerTable
    generator: torch.Generator
    x_TC: Tensor
    kept_TC: Tensor
    step: int = 0
    serial: int = field(default_factory=itertools.count().__next__)

    @property
    def done(self) -> bool:
        return self.step >= len(self.table.times)

    @property
    def guided(self) -> bool:
        return self.table.guided[self.step]

    def draw(self, scale: float = 1.0) -> Tensor:
        """Noise [T, C] from the song's own generator, on the CPU in fp32: the same alone, in any
        batch and on any device.
        """
        return torch.randn(self.x_TC.shape, generator=self.generator) * scale


@dataclass(kw_only=True)
class SongState(SongProgress):
    """A song in the torch runtime, with its plan."""

    # packed condition rows [n + T, D] of the conditional and the unconditional sequence
    conditions: tuple[Tensor, Tensor]
    spans: tuple[Span, Span]
    modulation: tuple[Modulation, Modulation]  # a row a step
    kv: list[tuple[Tensor, Tensor]]  # rotated lyric keys and values of every block


State = TypeVar("State", bound=SongProgress)


class Runtime(Protocol[State]):
    """What `denoise` asks of a runtime."""

    def prepare(self, song: SongInputs) -> State: ...

    def step(self, states: Sequence[State]) -> None: ...


@runtime_checkable
class WholeSongs(Protocol):
    """A runtime that makes a song in one go: latents fp32 [T, C] and audio int16 [channels, T
    hop].
    """

    def render(self, song: SongInputs) -> tuple[Tensor, Tensor]: ...


class TextEncoder(Protocol):
    """What reads descriptions: ChinMu, or a runtime that stands in for it."""

    def encode_text(self, texts: Sequence[str]) -> Tensor: ...


def initial_noise(song: SongInputs, channels: int) -> tuple[torch.Generator, Tensor]:
    """The song's generator, and its latent [T, C] at the first noise level, drawn on the CPU in
    fp32.
    """
    generator = torch.Generator().manual_seed(song.seed)
    return generator, torch.randn(
        (song.frames, channels), generator=generator
    ) * song.table.noise_scale


@dataclass(frozen=True)
class _Packing:
    """A batch of sequences laid out: valid as long as the same songs run with the same guidance
    flags.
    """

    layout: Layout
    conditions_ND: Tensor
    target_rows: Tensor
    kv: list[tuple[Tensor, Tensor]]
    spans: SongRows


@dataclass
class Denoiser:
    """The torch runtime."""

    dit: DiT
    _packing: tuple[tuple[object, ...], _Packing] | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        return self.dit.final.weight.device

    @torch.inference_mode()
    def prepare(self, song: SongInputs) -> SongState:
        """Everything of a song that no step changes, and its initial noise."""
        dit, device, dtype = self.dit, self.device, self.dit.final.weight.dtype
        check_lyric_ids(song.lyric_ids, dit.config)
        ids = torch.tensor(song.lyric_ids, dtype=torch.int64, device=device)
        lyrics_LE = dit.encode_lyrics(ids, [len(ids)])
        outlines: tuple[Tensor | None, Tensor | None] = (None, None)
        positions_L = lyric_positions([len(ids)], device=device)
        if dit.config.outline:
            known = (song.outline or no_outline(song.frames, len(ids))).to(device, dtype)
            unknown = no_outline(song.frames, 0).to(device, dtype)
            outlines = (
                dit.embed_outline(known, lyrics_LE),
                dit.embed_outline(unknown, lyrics_LE[:0]),
            )
            positions_L = known.positions_L
        kv = dit.lyric_kv(lyrics_LE, positions_L)
        reference = (
            song.reference
            if song.reference is not None
            else torch.zeros(0, dit.config.latent_channels)
        )
        kind, nothing = (
            REFERENCE_KINDS.index(song.reference_kind),
            torch.zeros(0, dit.config.latent_channels),
        )
        spans = (
            Span(len(song.descriptions), len(reference), song.frames, 0, len(ids), 0),
            Span(len(song.negative), 0, song.frames, 0, 0, 0),
        )
        conditions = tuple(
            dit.embed_conditions(
                d.to(device, dtype),
                r.to(device, dtype),
                [kind],
                make_layout([span], dit.config),
                outline_TD,
            )
            for d, r, span, outline_TD in zip(
                (song.descriptions, song.negative),
                (reference, nothing),
                spans,
                outlines,
                strict=True,
            )
        )
        times = song.table.times.to(device)
        seconds = torch.full_like(times, song.seconds)
        modulation = tuple(
            dit.modulate(
                times,
                seconds,
                torch.full(times.shape, user, dtype=torch.int64, device=device),
                pool_descriptions(d.to(device), [len(d)]).expand(len(times), -1)
                if dit.config.pooled_description
                else None,
            )
            for user, d in (
                (USER_TYPES.index(song.user_type), song.descriptions),
                (0, song.negative),
            )
        )
        generator, noise = initial_noise(song, dit.config.latent_channels)
        return SongState(
            frames=song.frames,
            table=song.table,
            conditions=(conditions[0], conditions[1]),
            spans=spans,
            modulation=(modulation[0], modulation[1]),
            kv=kv,
            generator=generator,
            x_TC=noise.to(device),
            kept_TC=torch.zeros_like(noise, device=device),
        )

    @torch.inference_mode()
    def step(self, states: Sequence[SongState]) -> None:
        """Advances every song by one row of its table. No song may be done."""
        packing = self._pack(states)
        branches = [
            (state, branch) for branch in (0, 1) for state in states if branch == 0 or state.guided
        ]
        rows = [
            state.modulation[branch].rows(slice(state.step, state.step + 1))
            for state, branch in branches
        ]
        modulation = Modulation(
            torch.cat([r.base for r in rows]), torch.cat([r.final for r in rows])
        )
        latents = self.dit.target_in(
            torch.cat([state.x_TC for state in states]).to(packing.conditions_ND.dtype)
        )
        parts = latents.split([state.frames for state in states])
        order = {state.serial: i for i, state in enumerate(states)}
        x_ND = packing.conditions_ND.index_add(
            0, packing.target_rows, torch.cat([parts[order[state.serial]] for state, _ in branches])
        )
        out_NC = self.dit.trunk(x_ND, modulation, packing.kv, packing.layout)
        self.update(states, out_NC, packing.spans)

    def update(self, states: Sequence[SongState], out_NC: Tensor, spans: SongRows) -> None:
        """Guidance and the sampler rows, on the network's packed output."""
        noise = None
        if any(state.table.needs_noise[state.step] for state in states):
            drawn = [
                state.draw()
                if state.table.needs_noise[state.step]
                else torch.zeros(state.x_TC.shape)
                for state in states
            ]
            noise = torch.cat(drawn).to(out_NC.device)
        rows = torch.stack([state.table.rows[state.step] for state in states]).to(out_NC.device)
        x = torch.cat([state.x_TC for state in states])
        kept = torch.cat([state.kept_TC for state in states])
        x, kept = ops.guided_step(x, kept, out_NC, noise, rows, spans)
        frames = [state.frames for state in states]
        for state, new_x, new_kept in zip(states, x.split(frames), kept.split(frames), strict=True):
            state.x_TC, state.kept_TC, state.step = new_x, new_kept, state.step + 1

    def _pack(self, states: Sequence[SongState]) -> _Packing:
        key = tuple((state.serial, state.guided) for state in states)
        if self._packing is None or self._packing[0] != key:
            self._packing = (key, self._lay_out(states))
        return self._packing[1]

    def _lay_out(self, states: Sequence[SongState]) -> _Packing:
        lyric_starts = list(
            itertools.accumulate((state.spans[0].lyrics for state in states), initial=0)
        )
        frame_starts = list(itertools.accumulate((state.frames for state in states), initial=0))
        spans: list[Span] = []
        conditions: list[Tensor] = []
        song_spans: list[tuple[int, int, int, int]] = []
        for branch in (0, 1):
            for i, state in enumerate(states):
                if branch == 0 or state.guided:
                    span = state.spans[branch]
                    spans.append(
                        Span(
                            span.description,
                            span.reference,
                            span.target,
                            lyric_starts[i],
                            span.lyrics,
                            len(spans),
                        )
                    )
                    conditions.append(state.conditions[branch])
        # the unconditional outputs lie behind all conditional ones, in the songs' order
        uncond_start = frame_starts[-1]
        for i, state in enumerate(states):
            song_spans.append(
                (
                    frame_starts[i],
                    state.frames,
                    frame_starts[i],
                    uncond_start if state.guided else -1,
                )
            )
            uncond_start += state.frames if state.guided else 0
        layout = make_layout(spans, self.dit.config, device=self.device)
        kv = [
            (
                torch.cat([state.kv[block][0] for state in states]),
                torch.cat([state.kv[block][1] for state in states]),
            )
            for block in range(len(self.dit.blocks))
        ]
        target_rows = torch.cat(
            [torch.arange(rows.start, rows.stop) for rows in layout.targets]
        ).to(self.device)
        return _Packing(layout, torch.cat(conditions), target_rows, kv, SongRows(tuple(song_spans)))


def denoise(
    runtime: Runtime[State],
    states: Sequence[State],
    *,
    on_step: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Runs every song to the end of its table and returns its latents [T, C]; songs leave the batch
    as they finish.

    on_step is called after each step with the number of sampler rows done. Raises ModelError when a
    latent is not finite.
    """
    while active := [state for state in states if not state.done]:
        runtime.step(active)
        if on_step:
            on_step(len(active))
    for i, state in enumerate(states):
        if not torch.isfinite(state.x_TC).all():
            raise ModelError(
                f"song {i} of the batch became NaN or infinite while sampling: check the weights, "
                f"lower the guidance or take more steps"
            )
    return [state.x_TC for state in states]
