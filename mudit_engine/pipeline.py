"""A request becomes a song: text -> ChinMu -> DiT / SiT -> sampler -> VAE decode -> audio.

    pipeline = SongPipeline.from_pretrained("tiny")
    lyrics = Path("song.txt").read_text()
    request = SongRequest(description="流行抒情，钢琴，女声", lyrics=lyrics, seconds=30, seed=1)
    songs = pipeline.generate([request])
    songs[0].save("song.wav")                    # song.wav and song.json

The same song comes out alone or in any batch: lengths are never padded and every song has its own
noise generator.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mudit_engine.audio import load_audio, resample, save_audio, save_spectrogram, to_channels
from mudit_engine.config import ModelConfig, SamplerConfig, check_sampler, load_config, parse_config
from mudit_engine.diffusion.samplers import SamplerTable, sampler_table
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.files import write_json
from mudit_engine.hardware import environment
from mudit_engine.models.chinmu import CHARACTERS, ChinMu
from mudit_engine.models.dit import REFERENCE_KINDS, USER_TYPES, DiT
from mudit_engine.models.folder import load_part, model_folder
from mudit_engine.models.outline import outline_rows
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.runtime.decode import LatentDecoder, TorchDecoder, decode_chunked
from mudit_engine.runtime.denoiser import Denoiser, Runtime, SongInputs, SongProgress, denoise
from mudit_engine.runtime.graph_denoiser import GraphDecoder, GraphDenoiser, GraphTextEncoder
from mudit_engine.runtime.load import open_session
from mudit_engine.text.descriptions import (
    FASTEST_BPM,
    SLOWEST_BPM,
    description_fragments,
    requested_key,
)
from mudit_engine.text.harmony import chord_names, parse_chords, planned_chords, repeated_chords
from mudit_engine.text.lyrics import Lyrics, parse_lyrics
from mudit_engine.text.outline import (
    Outline,
    plan_bars,
    plan_syllables,
    planned_bpm,
    planned_seconds,
    token_times,
)
from mudit_engine.text.phonemes import PhonemeSequence, budget, phonemize, seconds_for
from mudit_engine.text.vocabulary import Vocabulary

DEFAULT_SECONDS = 30.0  # of a song with no lyrics and no requested length
MIN_SECONDS = 1.0
BATCH_FRAMES = 16384  # latent frames denoised together, guidance branches not counted
DECODE_FRAMES = 128  # latent frames decoded at once, at least

Progress = Callable[[str, int, int], None]


def decode_frames(receptive_field: int) -> int:
    """Latent frames decoded at once. What a chunk reads beyond itself is decoded in vain: at most a
    quarter as much again.
    """
    return max(DECODE_FRAMES, 8 * receptive_field)


@dataclass(frozen=True)
class SongRequest:
    """What somebody asks for. lyrics None or '' is an instrumental; seconds None is as long as the
    lyrics need.

    bpm and key ("C minor") None are as the description says; chords ("C | Am F | G",
    text/harmony.py) None are planned in that key.
    """

    description: str = ""
    lyrics: str | None = None
    seconds: float | None = None
    user_type: str = "none"
    reference: str | Path | None = None
    reference_kind: str = "mix"
    negative: str = ""
    seed: int | None = None
    bpm: float | None = None
    key: str | None = None
    chords: str | None = None
    # fields of SamplerConfig that differ from the model's
    sampler: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.user_type not in USER_TYPES:
            raise InputError(
                f"user_type '{self.user_type}' is unknown: use one of {', '.join(USER_TYPES)}"
            )
        if self.reference_kind not in REFERENCE_KINDS:
            raise InputError(
                f"reference_kind '{self.reference_kind}' is unknown: use one of "
                f"{', '.join(REFERENCE_KINDS)}"
            )
        if not self.description.strip() and not (self.lyrics or "").strip():
            raise InputError("the request is empty: give a description, lyrics, or both")
        if self.seconds is not None and not (
            math.isfinite(self.seconds) and self.seconds >= MIN_SECONDS
        ):
            raise InputError(
                f"seconds={self.seconds:g} is too short: ask for at least {MIN_SECONDS:g}"
            )
        if self.bpm is not None and not SLOWEST_BPM <= self.bpm <= FASTEST_BPM:
            raise InputError(
                f"bpm={self.bpm:g} is out of range: use {SLOWEST_BPM:g} to {FASTEST_BPM:g}"
            )
        if self.key is not None and requested_key(self.key) is None:
            raise InputError(
                f"key '{self.key}' is unknown: write a tonic and a mode, such as 'C major', 'F# "
                f"minor' or '降E大调'"
            )
        if self.chords is not None:
            if not isinstance(self.chords, str):
                raise InputError(
                    f"chords {self.chords!r}: write them as one text, such as 'C G Am F'"
                )
            parse_chords(self.chords)
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(
                f"seed={self.seed} is out of range: use a whole number from 0 to 2^63 - 1"
            )


@dataclass(frozen=True)
class Song:
    """A finished song. audio is float32 [channels, samples] within [-1, 1]; info is what the
    sidecar JSON holds.
    """

    audio: np.ndarray
    sample_rate: int
    latents: np.ndarray  # float32 [frames, latent channels], normalised
    info: dict[str, Any]

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.sample_rate

    def save(self, path: str | Path, *, spectrogram: bool = False) -> list[Path]:
        """Writes the audio (format by suffix: .wav .flac .ogg .mp3), its sidecar .json and, if
        asked, a .png. Returns the files.
        """
        path = Path(path)
        save_audio(path, torch.from_numpy(self.audio), self.sample_rate)
        files = [path, path.with_suffix(".json")]
        if spectrogram:
            files.append(path.with_suffix(".png"))
            save_spectrogram(
                files[-1], torch.from_numpy(self.audio), self.sample_rate, title=path.stem
            )
        write_json(files[1], {**self.info, "file": path.name})
        return files


@dataclass(frozen=True)
class _Prepared:
    """A request after its text was read, before any network ran."""

    request: SongRequest
    lyrics: Lyrics | None
    phonemes: PhonemeSequence | None
    fragments: tuple[str, ...]
    outline: Outline
    seconds: float
    frames: int
    seed: int
    sampler: SamplerConfig
    table: SamplerTable
    notes: tuple[str, ...]


class TextEncoder(Protocol):
    """What reads descriptions: ChinMu, or a runtime that stands in for it."""

    def encode_text(self, texts: Sequence[str]) -> Tensor: ...


@runtime_checkable
class WholeSongs(Protocol):
    """A runtime that makes a song in one go:
    latents fp32 [T, C] and audio int16 [channels, T hop].
    """

    def render(self, song: SongInputs) -> tuple[Tensor, Tensor]: ...


class SongPipeline:
    """The engine as one object: every part loaded once, songs generated in ragged batches."""

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
    ) -> None:
        """`runtime` denoises, `decoder` makes audio of normalised latents (None: the VAE), `text`
        reads descriptions (None: ChinMu).
        """
        self.config, self.vae, self.chinmu = config, vae, chinmu
        self.runtime, self.runtime_name, self.precision = runtime, runtime_name, precision
        self.decoder, self.text = decoder or TorchDecoder(vae), text or chinmu

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "tiny",
        *,
        runtime: str = "torch",
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SongPipeline:
        """Loads an embedded model by name, a model folder, or for other runtimes than torch a
        folder made by `mudit export`.

        torch runs on CUDA where there is one, else on the CPU, its networks in `dtype` (None:
        fast_dtype); tensorrt on the GPU its engines were built for; the other runtimes
        (mudit_engine/runtime/load.py) on the CPU in fp32. All but torch take no device or dtype.
        """
        folder = model_folder(source)
        config = load_config(folder)
        if runtime != "torch" and (device is not None or dtype is not None):
            raise InputError(
                f"runtime '{runtime}' chooses device and dtype itself: leave them out, or take "
                f"runtime 'torch'"
            )
        if runtime == "tensorrt":
            from mudit_engine.runtime.trt_denoiser import NoText, TrtDecoder, open_tensorrt

            vae, chinmu = load_codec_and_text(config, folder, torch.device("cpu"), torch.float32)
            engines = open_tensorrt(folder, halo=vae.receptive_field)
            return cls(
                config,
                vae,
                chinmu,
                runtime=engines,
                decoder=TrtDecoder(engines),
                text=NoText(config.dit.description_width) if engines.reads_text else None,
                runtime_name=runtime,
                precision=engines.dtype,
            )
        if runtime != "torch":
            session = open_session(folder, runtime)
            vae, chinmu = load_codec_and_text(config, folder, torch.device("cpu"), torch.float32)
            return cls(
                config,
                vae,
                chinmu,
                runtime=GraphDenoiser(config.dit, session),
                decoder=GraphDecoder(config.vae, vae.receptive_field, session),
                text=GraphTextEncoder(config.chinmu, session)
                if config.chinmu.text_encoder == CHARACTERS
                else None,
                runtime_name=runtime,
            )
        place = usual_device(device)
        dtype = dtype or fast_dtype(place)
        dit = load_part("dit", config, folder, device=place, dtype=dtype)
        assert isinstance(dit, DiT)
        return cls(
            config,
            *load_codec_and_text(config, folder, place, dtype),
            runtime=Denoiser(dit),
            precision=dtype,
        )

    def check(self, request: SongRequest) -> list[str]:
        """Reads a request without running a network: the notes and warnings `generate` would give.
        Raises what it would raise.
        """
        return list(self._prepare(request).notes)

    def generate(
        self, requests: Sequence[SongRequest], *, progress: Progress | None = None
    ) -> list[Song]:
        """Songs of all requests, in their order (see `stream`)."""
        return list(self.stream(requests, progress=progress))

    def stream(
        self, requests: Sequence[SongRequest], *, progress: Progress | None = None
    ) -> Iterator[Song]:
        """Yields the songs in the requests' order, each as soon as it is decoded. All requests are
        read before any network runs.

        progress(stage, amount, total) counts up 'denoise' (sampler rows) and 'decode' (latent
        frames).
        """
        prepared = [self._prepare(request) for request in requests]
        report = progress or (lambda stage, amount, total: None)
        total_rows = sum(len(p.table.times) for p in prepared)
        total_frames = sum(p.frames for p in prepared)
        for batch in _batches(prepared):
            if isinstance(self.runtime, WholeSongs):
                yield from self._render(self.runtime, batch, report, total_rows, total_frames)
                continue
            timings = {"text": -time.perf_counter()}
            states = [self._encode(p) for p in batch]
            timings["text"] += time.perf_counter()
            start = time.perf_counter()
            latents = denoise(
                self.runtime, states, on_step=lambda rows: report("denoise", rows, total_rows)
            )
            timings["denoise"] = time.perf_counter() - start
            for p, latent in zip(batch, latents, strict=True):
                start = time.perf_counter()
                audio = self.decode(
                    latent,
                    p.seconds,
                    on_chunk=lambda frames: report("decode", frames, total_frames),
                )
                yield self._song(
                    p, latent, audio, {**timings, "decode": time.perf_counter() - start}, len(batch)
                )

    @torch.inference_mode()
    def decode(
        self, latents_TC: Tensor, seconds: float, *, on_chunk: Callable[[int], None] | None = None
    ) -> Tensor:
        """Audio [channels, samples] of normalised latents, cut to `seconds`."""
        done = 0

        def count(now: int, total: int) -> None:
            nonlocal done
            if on_chunk:
                on_chunk(now - done)
            done = now

        # an engine is built for some frames and no more
        chunk = getattr(self.decoder, "chunk_frames", None) or decode_frames(
            self.decoder.receptive_field
        )
        audio = decode_chunked(self.decoder, latents_TC.float(), chunk_frames=chunk, progress=count)
        return audio[:, : round(seconds * self.config.vae.sample_rate)].clamp(-1, 1).cpu()

    @torch.inference_mode()
    def encode_reference(self, path: str | Path, *, max_frames: int) -> Tensor:
        """Normalised latents [frames, C] of an audio file, at most as long as the song."""
        c = self.config.vae
        audio, rate = load_audio(path)
        audio = to_channels(resample(audio, rate, c.sample_rate), c.channels)[
            :, : max_frames * c.hop
        ]
        mean, _ = self.vae.encode(audio[None].to(self.vae.latent_mean.device))
        return self.vae.normalise(mean)[0, :max_frames]

    def _prepare(self, request: SongRequest) -> _Prepared:
        config, notes = self.config, []
        lyrics = phonemes = None
        if (request.lyrics or "").strip():
            lyrics = parse_lyrics(request.lyrics or "")
            phonemes = phonemize(lyrics, vocabulary=Vocabulary.load(config.dit.vocabulary))
            notes += [*lyrics.notes, *phonemes.notes]
        bpm = request.bpm or planned_bpm(request.description)
        planned, needed = False, DEFAULT_SECONDS
        if phonemes is not None:
            planned = config.dit.outline and phonemes.syllables > 0
            needed = planned_seconds(phonemes, bpm=bpm) if planned else seconds_for(phonemes)
        seconds = (
            request.seconds if request.seconds is not None else min(needed, config.max_seconds)
        )
        if seconds > config.max_seconds:
            raise InputError(
                f"seconds={seconds:g} is longer than model '{config.name}' makes (at most "
                f"{config.max_seconds:g} s): "
                "ask for less, or use a larger model"
            )
        if (
            phonemes is not None
            and not (planned and seconds >= needed)
            and (message := budget(phonemes, seconds).message)
        ):
            notes.append(message)
        fragments: tuple[str, ...] = ()
        if request.description.strip():
            fragments = description_fragments(request.description, config.dit.max_fragments)
        seed = request.seed if request.seed is not None else secrets.randbelow(2**31)
        outline = Outline()
        if config.dit.outline:
            outline = _outline(request, phonemes, bpm=bpm, seconds=seconds, seed=seed)
        elif asked := [
            name for name in ("bpm", "key", "chords") if getattr(request, name) is not None
        ]:
            notes.append(
                f"model '{config.name}' takes no outline: {' and '.join(asked)} are not followed, "
                f"only what the description says"
            )
        sampler = self._sampler(request.sampler)
        return _Prepared(
            request=request,
            lyrics=lyrics,
            phonemes=phonemes,
            fragments=fragments,
            outline=outline,
            seconds=seconds,
            frames=max(1, math.ceil(seconds * config.vae.frame_rate)),
            seed=seed,
            sampler=sampler,
            table=sampler_table(config.path, sampler),
            notes=tuple(notes),
        )

    def _sampler(self, changes: dict[str, Any]) -> SamplerConfig:
        # a file's values win over the model's; the whole is validated again
        sampler = parse_config(
            SamplerConfig, {**self.config.sampler.model_dump(), **changes}, source="sampler"
        )
        try:
            check_sampler(self.config.path, sampler)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return sampler

    def _render(
        self,
        runtime: WholeSongs,
        batch: Sequence[_Prepared],
        report: Progress,
        total_rows: int,
        total_frames: int,
    ) -> Iterator[Song]:
        """Songs of a runtime that makes each in one go."""
        for p in batch:
            start = time.perf_counter()
            song = self._inputs(p)
            ready = time.perf_counter()
            latents, pcm = runtime.render(song)
            timings = {"text": ready - start, "denoise and decode": time.perf_counter() - ready}
            report("denoise", len(p.table.times), total_rows)
            report("decode", p.frames, total_frames)
            audio = pcm[:, : round(p.seconds * self.config.vae.sample_rate)].float() / 32767
            yield self._song(p, latents, audio, timings, 1)

    @torch.inference_mode()
    def _encode(self, p: _Prepared) -> SongProgress:
        state: SongProgress = self.runtime.prepare(self._inputs(p))
        return state

    @torch.inference_mode()
    def _inputs(self, p: _Prepared) -> SongInputs:
        request = p.request
        negative = (
            description_fragments(request.negative, self.config.dit.max_fragments)
            if request.negative.strip()
            else ()
        )
        reference = (
            self.encode_reference(request.reference, max_frames=p.frames)
            if request.reference is not None
            else None
        )
        tokens = len(p.phonemes) if p.phonemes else 0
        rows = outline_rows(
            p.outline, frames=p.frames, frame_rate=self.config.vae.frame_rate, tokens=tokens
        )
        return SongInputs(
            frames=p.frames,
            seconds=p.seconds,
            table=p.table,
            seed=p.seed,
            descriptions=self.text.encode_text(p.fragments),
            negative=self.text.encode_text(negative),
            lyric_ids=p.phonemes.ids if p.phonemes else (),
            user_type=request.user_type,
            reference=reference,
            reference_kind=request.reference_kind,
            outline=rows,
            texts=p.fragments,
            negative_texts=negative,
        )

    def _song(
        self, p: _Prepared, latents: Tensor, audio: Tensor, timings: dict[str, float], batch: int
    ) -> Song:
        request = replace(p.request, seconds=p.seconds, seed=p.seed, sampler={})
        outline = {
            "bpm": p.outline.bpm,
            "key": p.outline.key,
            "chords": p.request.chords or chord_names(p.outline.chords),
        }
        info = {
            "schema_version": 1,
            "env": environment(),
            "device": str(self.vae.latent_mean.device),
            "runtime": self.runtime_name,
            "precision": str(self.precision).removeprefix("torch."),
            "request": {
                k: str(v) if isinstance(v, Path) else v
                for k, v in asdict(request).items()
                if k != "sampler"
            },
            "sampler": p.sampler.model_dump(mode="json"),
            "fragments": list(p.fragments),
            "outline": outline if self.config.dit.outline else None,
            "phonemes": len(p.phonemes.ids) if p.phonemes else 0,
            "syllables": p.phonemes.syllables if p.phonemes else 0,
            "frames": p.frames,
            "notes": list(p.notes),
            "model": self.config.model_dump(mode="json"),
            "timings_seconds": {stage: round(t, 4) for stage, t in timings.items()},
            "batch_songs": batch,
        }
        return Song(audio.numpy(), self.config.vae.sample_rate, latents.float().cpu().numpy(), info)


def _outline(
    request: SongRequest, phonemes: PhonemeSequence | None, *, bpm: float, seconds: float, seed: int
) -> Outline:
    """When what is sung over which chord. Without a key there is no plan of chords: the
    description's mood decides.
    """
    key = requested_key(request.key or request.description)
    bars = plan_bars(phonemes, bpm=bpm, seconds=seconds)
    chords = (
        repeated_chords(bars, parse_chords(request.chords))
        if request.chords
        else planned_chords(bars, key, seed=seed)
        if key
        else ()
    )
    times = (
        None
        if phonemes is None
        else token_times(phonemes, plan_syllables(phonemes, bpm=bpm, seconds=seconds))
    )
    return Outline(bpm, key, times, chords)


def usual_device(name: str | None = None) -> torch.device:
    """The device of this name; without one CUDA where there is a GPU, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_codec_and_text(
    config: ModelConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[SpectralVAE, ChinMu]:
    """The decoder's network in `dtype`; spectra keep fp32, as do the encoders, which are a small
    share of the work.
    """
    vae, chinmu = (load_part(part, config, folder, device=device) for part in ("vae", "chinmu"))
    assert isinstance(vae, SpectralVAE) and isinstance(chinmu, ChinMu)
    vae.decoder.to(dtype)
    return vae, chinmu


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies matrices of it in hardware (CUDA, CPUs with AMX),
    else fp32.
    """
    fast = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def _batches(prepared: Sequence[_Prepared]) -> list[list[_Prepared]]:
    """Consecutive songs whose frames fit BATCH_FRAMES."""
    batches: list[list[_Prepared]] = []
    room = 0
    for p in prepared:
        if not batches or p.frames > room:
            batches.append([])
            room = BATCH_FRAMES
        batches[-1].append(p)
        room -= p.frames
    return batches
