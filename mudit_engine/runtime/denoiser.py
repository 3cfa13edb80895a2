"""Prepare once, step cheaply: what does not depend on the noisy latent is computed once a song, and
a step does the rest.

    denoiser = Denoiser(dit)
    # lyric keys and values, modulation of all steps, condition rows
    states = [denoiser.prepare(song) for song in songs]
    latents = denoise(denoiser, states)                          # [T, C] a song

A step takes any mix of songs, each at its own step of its own sampler table: conditional and
unconditional sequences are just more sequences of one ragged batch, and a song outside its guidance
interval has no unconditional one.

On a CUDA device the step of a layout is captured once and replayed (runtime/captured.py).

Every runtime (torch here; ONNX Runtime, OpenVINO, TensorRT) has the same two methods, and `denoise`
is the same loop for all.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mudit_engine import ops
from mudit_engine.diffusion.samplers import SamplerTable
from mudit_engine.errors import ModelError
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.layouts.packed import Span, lyric_positions, make_layout
from mudit_engine.models.dit import (
    DiT,
    JointKeys,
    Modulation,
    check_lyric_ids,
    pool_descriptions,
)
from mudit_engine.models.outline import OutlineRows, hold, no_outline
from mudit_engine.names import REFERENCE_KINDS, USER_TYPES
from mudit_engine.runtime.bucketed import bucket_graph
from mudit_engine.runtime.captured import (
    Capture,
    CaptureError,
    CudaCapture,
    GraphCache,
    Home,
    Placing,
    pack_lyrics,
    sequences_of,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SongInputs:
    """What the denoiser needs of one song. Tensors are on the CPU; latents are normalised.

    Args:
        frames: latent frames of the song.
        seconds: length of the song.
        table: of the sampler.
        seed: starts the song's own noise generator.
        descriptions: fp32 [fragments, W], vectors of the description.
        negative: fp32 [fragments, W] of what the song should not be; may have no rows.
        lyric_ids: phoneme ids; empty for an instrumental.
        user_type: whose words the description is in.
        reference: fp32 [frames, C], latents of reference audio.
        reference_kind: what that audio holds.
        outline: rows of beat, key, chord and syllable, read by a model with config.outline.
        texts: the fragments themselves, for a runtime that reads text; of `descriptions` it takes
            the number of rows alone.
        negative_texts: the same of `negative`.
        given: of a song that is edited, its latents fp32 [frames, C] and which of them stay as they
            are, bool [frames]; for a model with config.edits.

    Examples:
        >>> from mudit_engine.config import PathConfig, SamplerConfig
        >>> from mudit_engine.diffusion.samplers import sampler_table
        >>> table = sampler_table(PathConfig(), SamplerConfig(steps=4))
        >>> nothing = torch.zeros(0, 512)
        >>> song = SongInputs(11, 1.0, table, seed=1, descriptions=nothing, negative=nothing)
        >>> song.user_type
        'none'
    """

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
    given: tuple[Tensor, Tensor] | None = None  # [frames, C], [frames]


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
    rows: Tensor  # the sampler's rows on the network's device
    # of an edited song: its frames [T, C], and which of them stay [T, 1]
    given: tuple[Tensor, Tensor] | None = None
    home: Home | None = None  # in the buffers of a captured step
    _x: Tensor = field(init=False, repr=False)
    _kept: Tensor = field(init=False, repr=False)
    _drawn: Tensor | None = field(default=None, repr=False)
    # the generator's state after each step's noise
    _positions: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property  # type: ignore[misc]
    def x_TC(self) -> Tensor:
        """The latent as it is now: a tensor that no later step changes."""
        return self._x if self.home is None else self.home.x_TC.clone()

    @x_TC.setter
    def x_TC(self, latent: Tensor) -> None:
        self.move_out()
        self._x = latent

    @property  # type: ignore[misc]
    def kept_TC(self) -> Tensor:
        """The kept output as it is now."""
        return self._kept if self.home is None else self.home.kept_TC.clone()

    @kept_TC.setter
    def kept_TC(self, kept: Tensor) -> None:
        self.move_out()
        self._kept = kept

    def move_in(self, home: Home) -> None:
        """From here on a captured step works on this song."""
        self.home, self._x, self._kept = home, home.x_TC, home.kept_TC

    def move_out(self) -> None:
        """Leaves the captured step's buffers, with the latent and the kept output as they are."""
        if self.home is not None:
            self._x, self._kept, self.home = self.x_TC, self.kept_TC, None

    def draw_all(self) -> Tensor:
        """The noise of every step that needs some, [draws, T, C] on the network's device: the
        numbers that the generator will give, which stays where it is (`drew` moves it on). Zeros
        for steps that lie behind.
        """
        if self._drawn is None:
            ahead, before = torch.Generator(), self.generator.get_state()
            ahead.set_state(before)
            drawn = []
            for step in (i for i, needs in enumerate(self.table.needs_noise) if needs):
                noise = torch.zeros(self.x_TC.shape)
                if step >= self.step:
                    noise = torch.randn(noise.shape, generator=ahead)
                    self._positions[step] = ahead.get_state()
                drawn.append(noise)
            self._drawn = torch.stack(drawn).to(self.rows.device)
        return self._drawn

    def drew(self) -> None:
        """A captured step used this step's noise: the generator moves to where drawing it would
        have left it.
        """
        if (position := self._positions.get(self.step)) is not None:
            self.generator.set_state(position)


State = TypeVar("State", bound=SongProgress)


class Runtime(Protocol[State]):
    """What `denoise` needs of a runtime: songs are prepared once and stepped together.

    `Denoiser` (torch), `GraphDenoiser` (ONNX Runtime, OpenVINO) and the TensorRT engines are
    runtimes.

    Examples:
        A runtime is any object with these two methods:

        >>> sorted(name for name in vars(Runtime) if not name.startswith("_"))
        ['prepare', 'step']
    """

    def prepare(self, song: SongInputs) -> State:
        """What no step of the song changes, and its first noise."""

    def step(self, states: Sequence[State]) -> None:
        """Advances every song by one row of its table. No song may be done."""


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

    placing: Placing
    conditions_ND: Tensor
    kv: list[tuple[Tensor, Tensor] | JointKeys]


@dataclass
class Denoiser:
    """The runtime on PyTorch: any mix of songs, each at its own step, is one ragged batch.

    Args:
        dit: the song transformer; its device and dtype are those of the work.
        capture: makes graphs of steps; CudaCapture on a CUDA device unless it is given, none
            elsewhere.
        graph_bytes: what graphs and their buffers hold at most; a quarter of the device unless
            given.
        captures: False runs every step launch by launch.
        bucketed: a captured step serves all layouts of a size (runtime/bucketed.py).

    Examples:
        >>> from mudit_engine.runtime.load import open_model
        >>> denoiser = Denoiser(open_model("tiny", dtype=torch.float32).runtime.dit)
        >>> denoiser.device.type
        'cpu'
    """

    dit: DiT
    capture: Capture | None = None
    graph_bytes: int | None = None
    captures: bool = True
    bucketed: bool = False
    _packing: tuple[tuple[object, ...], _Packing] | None = field(default=None, repr=False)
    _graphs: GraphCache | None = field(default=None, repr=False)
    _uncapturable: bool = field(default=False, repr=False)

    @property
    def device(self) -> torch.device:
        return self.dit.final.weight.device

    @property
    def graphs(self) -> GraphCache | None:
        """The captured steps; None where none are made."""
        if self._graphs is None and self.captures and not self._uncapturable:
            cuda = self.device.type == "cuda"
            capture = self.capture or (CudaCapture() if cuda else None)
            if capture is not None:
                budget = self.graph_bytes
                if budget is None:
                    whole = (
                        torch.cuda.get_device_properties(self.device).total_memory if cuda else 0
                    )
                    budget = whole // 4 or 2**30
                bucketing = bucket_graph if self.bucketed else None
                self._graphs = GraphCache(
                    self.dit, capture, budget_bytes=budget, bucketing=bucketing
                )
        return self._graphs

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
            known = (song.outline or no_outline(song.frames, len(ids), dit.config)).to(
                device, dtype
            )
            unknown = no_outline(song.frames, 0, dit.config).to(device, dtype)
            if song.given is not None:
                held_T = song.given[1]
                known, unknown = (hold(rows, held_T, dit.config) for rows in (known, unknown))
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
        given = None
        if song.given is not None:
            given_TC, held_T1 = song.given[0], song.given[1][:, None]
            given = given_TC.to(device), held_T1.to(device)
            noise = torch.where(held_T1, given_TC, noise)
        return SongState(
            frames=song.frames,
            table=song.table,
            given=given,
            conditions=(conditions[0], conditions[1]),
            spans=spans,
            modulation=(modulation[0], modulation[1]),
            kv=kv,
            generator=generator,
            rows=song.table.rows.to(device),
            x_TC=noise.to(device),
            kept_TC=torch.zeros_like(noise, device=device),
        )

    @torch.inference_mode()
    def step(self, states: Sequence[SongState]) -> None:
        """Advances every song by one row of its table. No song may be done."""
        # a captured step knows no frames that stay
        if (graphs := self.graphs) is None or any(state.given is not None for state in states):
            return self._step(states)
        try:
            graphs.step(states, lambda: self._place(states))
        except CaptureError as error:
            log.warning("steps run uncaptured: %s", error)
            graphs.clear()
            self._graphs, self._uncapturable = None, True
            self._step(states)

    def _step(self, states: Sequence[SongState]) -> None:
        packing = self._pack(states)
        branches = [(states[song], branch) for song, branch in sequences_of(states)]
        rows = [
            state.modulation[branch].rows(slice(state.step, state.step + 1))
            for state, branch in branches
        ]
        modulation = Modulation(
            torch.cat([r.base for r in rows]), torch.cat([r.final for r in rows])
        )
        x_ND = self._embedded(states, packing)
        out_NC = self.dit.trunk(x_ND, modulation, packing.kv, packing.placing.layout)
        self.update(states, out_NC, packing.placing.spans)

    def _embedded(self, states: Sequence[SongState], packing: _Packing) -> Tensor:
        """Packed rows [N, D] of the network's input."""
        latents = self.dit.target_in(
            torch.cat([state.x_TC for state in states]).to(packing.conditions_ND.dtype)
        )
        parts = latents.split([state.frames for state in states])
        targets = torch.cat([parts[song] for song, _ in sequences_of(states)])
        return packing.conditions_ND.index_add(0, packing.placing.target_rows, targets)

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
            noise = torch.cat([one.to(out_NC.device) for one in drawn])
        rows = torch.stack([state.rows[state.step] for state in states])
        x = torch.cat([state.x_TC for state in states])
        kept = torch.cat([state.kept_TC for state in states])
        x, kept = ops.guided_step(x, kept, out_NC, noise, rows, spans)
        frames = [state.frames for state in states]
        for state, new_x, new_kept in zip(states, x.split(frames), kept.split(frames), strict=True):
            if state.given is not None:
                latents, held = state.given
                new_x = torch.where(held, latents, new_x)
            state.x_TC, state.kept_TC, state.step = new_x, new_kept, state.step + 1

    def _pack(self, states: Sequence[SongState]) -> _Packing:
        key = tuple((state.serial, state.guided) for state in states)
        if self._packing is None or self._packing[0] != key:
            self._packing = None  # the batch before this one goes as its songs leave it
            self._packing = (key, self._lay_out(states))
        return self._packing[1]

    def _lay_out(self, states: Sequence[SongState]) -> _Packing:
        """Songs keep views of what is packed, so that nothing lies in memory twice."""
        placing, sequences = self._place(states), sequences_of(states)
        conditions = [states[song].conditions[branch] for song, branch in sequences]
        conditions_ND = torch.cat(conditions)
        rows = conditions_ND.split([len(one) for one in conditions])
        for (song, branch), own in zip(sequences, rows, strict=True):
            first, second = states[song].conditions
            states[song].conditions = (own, second) if branch == 0 else (first, own)
        del conditions
        return _Packing(placing, conditions_ND, pack_lyrics(self.dit, states, placing.layout.rows))

    def _place(self, states: Sequence[SongState]) -> Placing:
        lyric_starts = list(
            itertools.accumulate((state.spans[0].lyrics for state in states), initial=0)
        )
        frame_starts = list(itertools.accumulate((state.frames for state in states), initial=0))
        spans: list[Span] = []
        for song, branch in sequences_of(states):
            span = states[song].spans[branch]
            spans.append(
                Span(
                    span.description,
                    span.reference,
                    span.target,
                    lyric_starts[song],
                    span.lyrics,
                    len(spans),
                )
            )
        # the unconditional outputs lie behind all conditional ones, in the songs' order
        song_spans: list[tuple[int, int, int, int]] = []
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
        target_rows = torch.cat(
            [torch.arange(rows.start, rows.stop) for rows in layout.targets]
        ).to(self.device)
        return Placing(layout, target_rows, SongRows(tuple(song_spans)))


def denoise(
    runtime: Runtime[State],
    states: Sequence[State],
    *,
    on_step: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Runs every song to the end of its table; songs leave the batch as they finish.

    Args:
        runtime: what prepared the songs.
        states: the songs, each at any step of its own table.
        on_step: called after each step with the number of sampler rows done.

    Returns:
        Normalised latents fp32 [T, C] of each song.

    Raises:
        ModelError: when a latent is not finite.

    Examples:
        >>> from mudit_engine import SongPipeline, SongRequest
        >>> pipeline = SongPipeline.from_pretrained("tiny", dtype=torch.float32)
        >>> request = SongRequest(description="钢琴", seconds=1, seed=1, sampler={"steps": 2})
        >>> song = pipeline.reader.inputs(pipeline.reader.read(request))
        >>> [latents] = denoise(pipeline.runtime, [pipeline.runtime.prepare(song)])
        >>> latents.shape
        torch.Size([11, 128])
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
