"""Songs by TensorRT engines: the same `prepare` and `step` as every runtime, and a whole song in
one launch.

    runtime = open_tensorrt(folder, *check_engines(folder), halo=vae.receptive_field)
    latents = denoise(runtime, [runtime.prepare(song)])          # row by row, as everywhere
    latents, pcm = runtime.render(song)  # one CUDA graph: text, all steps, decode, int16, copy out

A graph is captured the first time a mode is seen (a bucket, which rows are guided, noise or none,
reference or none) and kept. Guidance, its intervals, negative descriptions, reference audio and
every sampler are inside it, and so is ChinMu's text tower where it reads characters, in the
engines' precision; a transformers encoder runs before, and descriptions arrive as its vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.availability import require
from mudit_engine.config import ModelConfig, VaeConfig, load_config
from mudit_engine.errors import InputError, MissingError, ModelError
from mudit_engine.hardware import machine
from mudit_engine.models.chinmu import CHARACTERS, check_texts
from mudit_engine.runtime.buckets import CHUNK, MODULATION_ROWS, Bucket, choose
from mudit_engine.runtime.denoiser import SongInputs, SongProgress
from mudit_engine.runtime.limits import SongShape, refuse_edit
from mudit_engine.runtime.manifest import check_deployment
from mudit_engine.runtime.trt_program import Device, Mode, Program, mode_of
from mudit_engine.runtime.trt_targets import PORTABLE, order, target_of_gpu

ENGINES = ("lyric_kv", "conditions", "modulation", "step", "vae_decode")
KEPT_BYTES = 2 << 30
TEXT_ENGINE = "chinmu_text"  # of a model whose text tower reads characters
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(kw_only=True)
class TrtSong(SongProgress):
    """A song on the device. x_TC holds its latents once it is done."""

    mode: Mode
    program: Program


@dataclass
class TrtDenoiser:
    """`halo` is the codec's receptive field in latent frames."""

    config: ModelConfig
    device: Device
    buckets: Sequence[Bucket]
    halo: int
    dtype: torch.dtype = torch.bfloat16
    reads_text: bool = False  # whether descriptions are read on the device; else they are vectors
    # of programs that no song uses now, captured ones with them; the longest unused goes first
    kept_bytes: int = KEPT_BYTES
    idle: dict[Mode, list[Program]] = field(default_factory=dict, repr=False)
    _used: list[tuple[Mode, Program]] = field(default_factory=list, repr=False)

    def check(self, shape: SongShape) -> None:
        """Raises InputError for an edited song, a sampler of too many rows, and a song that no
        bucket holds.
        """
        refuse_edit(shape)
        if 2 * shape.rows > MODULATION_ROWS:
            raise InputError(
                f"a sampler of {shape.rows} rows: the engines take at most {MODULATION_ROWS // 2}; "
                "use fewer steps"
            )
        self._bucket(shape)

    def _bucket(self, shape: SongShape) -> Bucket:
        return choose(
            self.buckets, frames=shape.frames, tokens=shape.tokens, reference=shape.reference
        )

    def prepare(self, song: SongInputs) -> TrtSong:
        """Raises InputError for what `check` refuses."""
        mode, program = self._take(song)
        generator = program.fill(song)
        program.prepare()
        x = program.host["x"][0, : song.frames]
        return TrtSong(
            frames=song.frames,
            table=song.table,
            generator=generator,
            x_TC=x,
            kept_TC=torch.zeros(0),
            mode=mode,
            program=program,
        )

    def step(self, states: Sequence[TrtSong]) -> None:
        """Advances every song by one row of its table. No song may be done."""
        for state in states:
            state.program.step(state.step)
            state.step += 1
        if finished := [state for state in states if state.done]:
            self.device.wait()
            for state in finished:
                last = state.program.x[state.step % 2][0, : state.frames]
                state.x_TC = last.to("cpu", copy=True)
                self._keep(state.mode, state.program)

    def render(self, song: SongInputs) -> tuple[Tensor, Tensor]:
        """Latents fp32 [T, C] and audio int16 [channels, T hop] of one song, in one launch. Raises
        ModelError when it is not finite.
        """
        mode, program = self._take(song)
        program.fill(song)
        if program.replay is None:
            program.replay = self.device.capture(program.whole)
        program.replay()
        self.device.wait()
        latents, pcm = (
            program.final_x[: song.frames].clone(),
            program.pcm[:, : song.frames * self.config.vae.hop].clone(),
        )
        self._keep(mode, program)
        if not torch.isfinite(latents).all():
            raise ModelError(
                "the song became NaN or infinite while sampling: check the weights, lower the "
                "guidance or take more steps"
            )
        return latents, pcm

    def release(self, state: TrtSong) -> None:
        """Takes back what a song used that will not be finished."""
        if not state.done:
            self.device.wait()
            self._keep(state.mode, state.program)

    def _keep(self, mode: Mode, program: Program) -> None:
        """Keeps a program for the next song of its mode, within the budget."""
        self.idle.setdefault(mode, []).append(program)
        self._used = [(one, other) for one, other in self._used if other is not program]
        self._used.append((mode, program))
        held = sum(other.bytes for _, other in self._used)
        while held > self.kept_bytes and len(self._used) > 1:
            oldest, unused = self._used.pop(0)
            held -= unused.bytes
            # one that a song uses now is in no list, and is counted again when it comes back
            if unused in self.idle.get(oldest, []):
                self.idle[oldest].remove(unused)

    def _take(self, song: SongInputs) -> tuple[Mode, Program]:
        shape = SongShape.of(song)
        self.check(shape)
        if self.reads_text and (len(song.texts), len(song.negative_texts)) != (
            len(song.descriptions),
            len(song.negative),
        ):
            raise InputError(
                f"{len(song.descriptions)} descriptions and {len(song.negative)} negative ones, "
                f"but {len(song.texts)} and "
                f"{len(song.negative_texts)} texts: these engines read the texts themselves"
            )
        bucket = self._bucket(shape)
        mode = mode_of(song, bucket, list(self.buckets).index(bucket), halo=self.halo)
        waiting = self.idle.setdefault(mode, [])
        if not waiting:
            return mode, Program(
                self.device,
                self.config,
                mode,
                halo=self.halo,
                dtype=self.dtype,
                reads_text=self.reads_text,
            )
        # a captured one first: capturing costs more than a song
        waiting.sort(key=lambda program: program.replay is not None)
        return mode, waiting.pop()


@dataclass(frozen=True)
class NoText:
    """Stands where the runtime itself reads descriptions: they have as many vectors as texts, and
    nothing is in them.
    """

    width: int

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """[N, width]. Raises InputError for an empty text."""
        check_texts(texts)
        return torch.zeros(len(texts), self.width)


@dataclass(frozen=True)
class TrtDecoder:
    """The VAE's decoder of a runtime, for chunks of latents (runtime/decode.py); latents are
    normalised.
    """

    runtime: TrtDenoiser

    @property
    def config(self) -> VaeConfig:
        return self.runtime.config.vae

    @property
    def receptive_field(self) -> int:
        return self.runtime.halo

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk that fits the engine with its halo."""
        return CHUNK - 2 * self.runtime.halo

    def decode(self, latents_NTC: Tensor) -> Tensor:
        """Audio [1, channels, T hop], on the CPU. Raises InputError for more frames than an engine
        decodes at once.
        """
        device, frames = self.runtime.device, latents_NTC.shape[1]
        if frames > CHUNK:
            raise InputError(
                f"{frames} latent frames at once: the engine decodes {CHUNK}; use smaller chunks"
            )
        given = device.empty((1, frames, self.runtime.config.dit.latent_channels), torch.float32)
        audio = device.empty((1, self.config.channels, frames * self.config.hop), torch.float32)
        device.run(partial(given.copy_, latents_NTC))
        device.launch("vae_decode", 0, {"latents": given}, {"audio": audio})
        device.wait()
        return audio.to("cpu", copy=True)


def check_engines(folder: Path) -> tuple[ModelConfig, str, dict[str, Any]]:
    """(configuration, target, its entry in the manifest) of the engines of a deployment folder that
    fit this machine's GPU.

    Raises MissingError without a GPU or the engines' package, ModelError when none is for this GPU
    or the folder differs from its manifest.
    """
    if not machine().gpus:
        raise MissingError(
            "runtime 'tensorrt' needs an NVIDIA GPU, and nvidia-smi names none: use --runtime "
            "torch or onnxruntime on this machine"
        )
    manifest = check_deployment(folder)
    config = load_config(folder)
    target, entry = engines_here(manifest, config)
    require(entry["package"], f"engines of target '{target}'")
    return config, target, entry


def open_tensorrt(
    folder: Path, config: ModelConfig, target: str, entry: dict[str, Any], *, halo: int
) -> TrtDenoiser:
    """The engines that `check_engines` found, loaded onto this machine's GPU."""
    from mudit_engine.runtime.trt_device import CudaDevice

    buckets = [Bucket(**bucket) for bucket in entry["buckets"]]
    engines = engines_of(config)
    device = CudaDevice(folder / "engines" / target, entry["package"], engines)
    return TrtDenoiser(
        config, device, buckets, halo, DTYPES[entry["flavour"]], TEXT_ENGINE in engines
    )


def engines_of(config: ModelConfig) -> tuple[str, ...]:
    """The engines a model needs."""
    return (*ENGINES, TEXT_ENGINE) if config.chinmu.text_encoder == CHARACTERS else ENGINES


def engines_here(manifest: dict[str, Any], config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """(target, its entry in the manifest) for this machine's first GPU. Raises ModelError when
    there is none.
    """
    gpu = machine().gpus[0]
    return pick_target(manifest, gpu.compute_capability, engines_of(config), gpu=gpu.name)


def pick_target(
    manifest: dict[str, Any], capability: str, engines: Sequence[str] = ENGINES, *, gpu: str = ""
) -> tuple[str, dict[str, Any]]:
    """The target with all of `engines` that run on a GPU of this compute capability ("8.0") and
    name: its own first, portable ones last.

    Raises ModelError that names what the folder has.
    """
    targets: dict[str, dict[str, Any]] = manifest.get("engines") or {}
    whole = {
        name: entry for name, entry in targets.items() if set(engines) <= set(entry["engines"])
    }
    for name in order(capability, gpu):
        if name in whole:
            return name, whole[name]
    part = {
        name: sorted(set(engines) - set(entry["engines"]))
        for name, entry in targets.items()
        if name not in whole
    }
    lacks = "; ".join(f"{name} lacks {', '.join(missing)}" for name, missing in part.items())
    raise ModelError(
        f"no engines for a GPU of compute capability {capability}: this folder has "
        f"{', '.join(whole) or 'no complete set'}"
        f"{f' ({lacks})' if lacks else ''}. Build them with `mudit export tensorrt FOLDER --target "
        f"{target_of_gpu(gpu, capability) or PORTABLE}`"
    )
