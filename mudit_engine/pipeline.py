"""A request becomes a song: text -> ChinMu -> DiT / SiT -> sampler -> VAE decode -> audio.

    pipeline = SongPipeline.from_pretrained("tiny")
    request = SongRequest(description="流行抒情，钢琴，女声", lyrics=text, seconds=30, seed=1)
    [song] = pipeline.generate([request])
    song.save("song.wav")                    # song.wav and song.json

The same song comes out alone or in any batch: lengths are never padded and every song has its own
noise generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine.audio import save_audio, save_spectrogram
from mudit_engine.config import ModelConfig, VaeConfig
from mudit_engine.errors import InputError, ModelError
from mudit_engine.files import write_json
from mudit_engine.hardware import environment
from mudit_engine.loudness import TARGET_LUFS, mastered
from mudit_engine.models.chinmu import ChinMu
from mudit_engine.models.complete import save_model
from mudit_engine.models.fewstep import Student
from mudit_engine.models.folder import model_folder
from mudit_engine.models.lora import LoraSet, LoraSpec
from mudit_engine.models.saved_latents import save_latents
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.reading import RequestReader, Understood
from mudit_engine.request import SongRequest
from mudit_engine.runtime.decode import LatentDecoder, TorchDecoder, decode_song
from mudit_engine.runtime.denoiser import (
    Denoiser,
    Runtime,
    SongProgress,
    TextEncoder,
    WholeSongs,
    denoise,
)
from mudit_engine.runtime.limits import Limited
from mudit_engine.runtime.load import Deploy, open_model

BATCH_FRAMES = 16384  # latent frames denoised together, guidance branches not counted

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Song:
    """A finished song.

    Args:
        audio: float32 [channels, samples] as it was decoded; peaks may lie beyond full scale.
        sample_rate: samples a second.
        latents: float32 [frames, latent channels], normalised.
        info: what the sidecar JSON holds: everything that made the song.

    Examples:
        >>> audio, latents = np.zeros((1, 22050), np.float32), np.zeros((11, 128), np.float32)
        >>> song = Song(audio, 22050, latents, {})
        >>> song.seconds
        1.0
    """

    audio: np.ndarray
    sample_rate: int
    latents: np.ndarray
    info: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return self.audio.shape[1] / self.sample_rate

    def save(
        self,
        path: str | Path,
        *,
        spectrogram: bool = False,
        latents: bool = False,
        loudness: float | None = TARGET_LUFS,
    ) -> list[Path]:
        """Writes the audio and its sidecar .json.

        Args:
            path: of the audio; its suffix is the format: .wav, .flac, .ogg or .mp3.
            spectrogram: also write a .png of its spectrum.
            latents: also write its latents, by which it can be edited without a loss.
            loudness: LUFS that the written song has, its true peaks limited to -1 dB of full scale;
                None writes it as it was decoded, cut off at full scale.

        Returns:
            The files.
        """
        path = Path(path)
        audio, mastering = torch.from_numpy(self.audio), None
        if loudness is not None:
            audio, mastering = mastered(audio, self.sample_rate, target=loudness)
        save_audio(path, audio, self.sample_rate)
        files = [path, path.with_suffix(".json")]
        kept = {}
        if latents:
            files.append(path.with_suffix(".safetensors"))
            save_latents(files[-1], self.latents, VaeConfig(**self.info["model"]["vae"]))
            kept = {"latents": files[-1].name}
        if spectrogram:
            files.append(path.with_suffix(".png"))
            save_spectrogram(files[-1], audio, self.sample_rate, title=path.stem)
        level = None if mastering is None else asdict(mastering)
        write_json(files[1], {**self.info, **kept, "mastering": level, "file": path.name})
        return files


class SongPipeline:
    """The engine as one object: every part loaded once, songs generated in batches without padding.

    Args:
        config: the model's configuration.
        vae: the codec.
        chinmu: the encoder of descriptions.
        runtime: what denoises.
        decoder: what makes audio of normalised latents; None is the VAE.
        text: what reads descriptions; None is ChinMu.
        runtime_name: of the runtime, for the sidecar.
        precision: of the networks' products, for the sidecar.
        folder: where the weights lie; None for parts put together by hand.
        student: the few-step student that is in the weights and whose sampler `config` has.

    Examples:
        >>> pipeline = SongPipeline.from_pretrained("tiny", dtype=torch.float32)
        >>> request = SongRequest(description="钢琴", seconds=1, seed=1, sampler={"steps": 2})
        >>> [song] = pipeline.generate([request])
        >>> song.audio.shape, song.sample_rate
        ((1, 22050), 22050)
    """

    def __init__(
        self,
        config: ModelConfig,
        vae: SpectralVAE,
        chinmu: ChinMu,
        *,
        runtime: Runtime[Any],
        decoder: LatentDecoder | None = None,
        text: TextEncoder | None = None,
        runtime_name: str = "torch",
        precision: torch.dtype = torch.float32,
        folder: Path | None = None,
        student: Student | None = None,
    ) -> None:
        """`runtime` denoises, `decoder` makes audio of normalised latents (None: the VAE), `text`
        reads descriptions (None: ChinMu); `folder` is where the weights lie.
        """
        self.folder, self.student = folder, student
        self._loras: LoraSet | None = None
        self.config, self.vae, self.chinmu = config, vae, chinmu
        self.runtime, self.runtime_name, self.precision = runtime, runtime_name, precision
        self.decoder = decoder or TorchDecoder(vae)
        check = runtime.check if isinstance(runtime, Limited) else None
        self.reader = RequestReader(
            config, vae, text=text or chinmu, check=check, fast=student is not None
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "tiny",
        *,
        runtime: str = "torch",
        device: str | None = None,
        dtype: torch.dtype | None = None,
        deploy: Deploy | None = None,
        revision: str | None = None,
        fast: bool = False,
    ) -> SongPipeline:
        """Loads a model by name or folder.

        Args:
            source: an embedded model's name, a model folder, `org/name` of the Hugging Face Hub,
                or for other runtimes than torch a folder made by `mudit export`.
            runtime: what runs the networks; `open_model` (runtime/load.py) says more of this and
                the rest.
            device: of torch.
            dtype: of torch's networks.
            deploy: makes the graphs of a model folder that has none.
            revision: of a model of the hub: a branch, a tag or a commit.
            fast: with the model's few-step student, whose sampler is then the default of requests
                (models/fewstep.py).

        Raises:
            InputError: for an unknown runtime or options that it does not take, and for a model
                that has no student.
            MissingError: for a package or device that is not here.
            ModelError: for a folder that does not fit.
        """
        folder = model_folder(source, revision=revision)
        opened = open_model(
            folder, runtime=runtime, device=device, dtype=dtype, deploy=deploy, fast=fast
        )
        return cls(
            opened.config,
            opened.vae,
            opened.chinmu,
            runtime=opened.runtime,
            decoder=opened.decoder,
            text=opened.text,
            runtime_name=opened.name,
            precision=opened.precision,
            folder=folder,
            student=opened.student,
        )

    def set_loras(self, loras: Sequence[LoraSpec], *, merged: bool = True) -> None:
        """Makes these LoRAs act, and no others; nothing is loaded anew, and [] gives the model as
        it was (models/lora.py), with its few-step student where it was opened with that.

        merged False keeps them apart from the weights, with peft, and stays so for this pipeline.
        Raises InputError for another runtime than torch or in FP8, ModelError for a LoRA of another
        model.
        """
        if not isinstance(self.runtime, Denoiser):
            raise InputError(
                f"runtime '{self.runtime_name}' runs the weights it was exported with: take "
                "runtime 'torch', or export a model with the LoRA in it"
            )
        if self.precision is torch.float8_e4m3fn:
            raise InputError("LoRAs are merged into weights that FP8 has rounded away: take bf16")
        if self._loras is None:
            self._loras = LoraSet(self.runtime.dit, merged=merged)
        elif self._loras.merged != merged:
            raise InputError("LoRAs of one pipeline are either merged or kept apart: make another")
        self._loras.use(loras)

    @property
    def loras(self) -> tuple[LoraSpec, ...]:
        """The LoRAs that act now."""
        return self._loras.specs if self._loras is not None else ()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a whole model folder, the LoRAs that act merged into it, and the few-step student
        where it does, with its sampler. Returns it.

        Raises ModelError for a pipeline that was not made by from_pretrained.
        """
        if self.folder is None:
            raise ModelError("this pipeline was put together by hand: save its parts one by one")
        return save_model(self.folder, Path(folder), loras=self.loras, student=self.student)

    def check(self, request: SongRequest) -> list[str]:
        """Reads a request as `generate` would, references included, without running the song's
        networks: its notes and warnings. Raises what `generate` would raise.
        """
        return list(self.understand(request).notes)

    def understand(self, request: SongRequest, *, compose: bool = False) -> Understood:
        """What `check` reads, whole: plan, notes and what was understood of the description.
        `compose` plans melody and arrangement even for a model that is not told them.
        """
        return self.reader.understand(request, compose=compose)

    def generate(
        self, requests: Sequence[SongRequest], *, progress: Progress | None = None
    ) -> list[Song]:
        """Songs of all requests, in their order.

        Args:
            requests: the songs that are wanted.
            progress: called with (stage, amount, total), as `stream` says.

        Raises:
            InputError: for a request that the model cannot take; no song is made then.
        """
        return list(self.stream(requests, progress=progress))

    def stream(
        self, requests: Sequence[SongRequest], *, progress: Progress | None = None
    ) -> Iterator[Song]:
        """Yields the songs in the requests' order, each as soon as it is decoded.

        All requests are read before any network runs.

        Args:
            requests: the songs that are wanted.
            progress: called with (stage, amount, total), which counts up 'denoise' (sampler rows)
                and 'decode' (latent frames).
        """
        understood = [self.reader.read(request) for request in requests]
        report = progress or (lambda stage, amount, total: None)
        total_rows = sum(len(one.table.times) for one in understood)
        total_frames = sum(one.frames for one in understood)
        for batch in batches_of(understood):
            if isinstance(self.runtime, WholeSongs):
                yield from self._render(self.runtime, batch, report, total_rows, total_frames)
                continue
            timings = {"text": -time.perf_counter()}
            states = [self._prepare(one) for one in batch]
            timings["text"] += time.perf_counter()
            start = time.perf_counter()
            latents = denoise(
                self.runtime, states, on_step=lambda rows: report("denoise", rows, total_rows)
            )
            timings["denoise"] = time.perf_counter() - start
            for one, latent in zip(batch, latents, strict=True):
                start = time.perf_counter()
                audio = self.decode(
                    latent,
                    one.seconds,
                    on_chunk=lambda frames: report("decode", frames, total_frames),
                )
                spent = {**timings, "decode": time.perf_counter() - start}
                yield self._song(one, latent, audio, spent, len(batch))

    def decode(
        self, latents_TC: Tensor, seconds: float, *, on_chunk: Callable[[int], None] | None = None
    ) -> Tensor:
        """Audio fp32 [channels, samples] of normalised latents [T, C], cut to `seconds` (see
        runtime/decode.py).
        """
        return decode_song(self.decoder, latents_TC, seconds=seconds, on_chunk=on_chunk)

    def _render(
        self,
        runtime: WholeSongs,
        batch: Sequence[Understood],
        report: Progress,
        total_rows: int,
        total_frames: int,
    ) -> Iterator[Song]:
        """Songs of a runtime that makes each in one go."""
        for one in batch:
            start = time.perf_counter()
            song = self.reader.inputs(one)
            ready = time.perf_counter()
            latents, pcm = runtime.render(song)
            timings = {"text": ready - start, "denoise and decode": time.perf_counter() - ready}
            report("denoise", len(one.table.times), total_rows)
            report("decode", one.frames, total_frames)
            audio = pcm[:, : round(one.seconds * self.config.vae.sample_rate)].float() / 32767
            yield self._song(one, latents, audio, timings, 1)

    @torch.inference_mode()
    def _prepare(self, one: Understood) -> SongProgress:
        state: SongProgress = self.runtime.prepare(self.reader.inputs(one))
        return state

    def _song(
        self,
        one: Understood,
        latents: Tensor,
        audio: Tensor,
        timings: dict[str, float],
        batch: int,
    ) -> Song:
        return Song(
            audio.numpy(),
            self.config.vae.sample_rate,
            latents.float().cpu().numpy(),
            self.info(one, timings, batch),
        )

    def info(self, one: Understood, timings: dict[str, float], batch: int) -> dict[str, Any]:
        """What the sidecar of a song says: the request as it was understood, and all that made it.
        `timings` are seconds by stage, `batch` how many songs were stepped together at most.
        """
        return song_info(self.config, one, self.maker(), timings, batch)

    def maker(self) -> dict[str, Any]:
        """What a sidecar says of the machine and the networks that made the song."""
        return {
            "env": environment(),
            "device": str(self.vae.latent_mean.device),
            "runtime": self.runtime_name,
            "precision": str(self.precision).removeprefix("torch."),
            "loras": [{"folder": str(one.folder), "scale": one.scale} for one in self.loras],
            "fast": None if self.student is None else self.student.record,
        }


def song_info(
    config: ModelConfig,
    one: Understood,
    maker: dict[str, Any],
    timings: dict[str, float],
    batch: int,
) -> dict[str, Any]:
    """The sidecar of a song that `maker` (SongPipeline.maker) made, perhaps in another process."""
    request = replace(one.request, seconds=one.seconds, seed=one.seed, sampler={})
    return {
        "schema_version": 1,
        **maker,
        "request": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(request).items()
            if name != "sampler"
        },
        "sampler": one.sampler.model_dump(mode="json"),
        "fragments": list(one.fragments),
        "understood": one.read,
        "outline": one.plan if config.dit.outline else None,
        "phonemes": len(one.phonemes.ids) if one.phonemes else 0,
        "syllables": one.phonemes.syllables if one.phonemes else 0,
        "lyrics_accounting": [fate.row() for fate in one.fates],
        **_edited(one),
        "frames": one.frames,
        "notes": list(one.notes),
        "model": config.model_dump(mode="json"),
        "timings_seconds": {stage: round(t, 4) for stage, t in timings.items()},
        "batch_songs": batch,
    }


def _edited(one: Understood) -> dict[str, Any]:
    """What a sidecar says of the song that was edited; nothing where none was."""
    if one.edit is None:
        return {}
    return {
        "edited": {
            "file": str(one.edit.audio),
            "kept_latents": one.edit.latents is not None,
            "plan_seed": one.plan_seed,
        }
    }


def batches_of(understood: Sequence[Understood]) -> list[list[Understood]]:
    """Consecutive songs whose frames fit BATCH_FRAMES."""
    batches: list[list[Understood]] = []
    room = 0
    for one in understood:
        if not batches or one.frames > room:
            batches.append([])
            room = BATCH_FRAMES
        batches[-1].append(one)
        room -= one.frames
    return batches


__all__ = ["Song", "SongPipeline", "SongRequest"]
