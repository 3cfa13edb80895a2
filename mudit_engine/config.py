"""Typed configuration: frozen, unknown fields refused with the nearest known name, read from and
written to JSON.

    config = load_config("musit-380m")            # a preset, a config.json, or a model folder
    config.dit.width

A preset is a JSON file in mudit_engine/presets; fields left out take the defaults below.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mudit_engine.errors import ConfigError
from mudit_engine.names import EMBEDDED_MODELS, SamplerName

PRESETS = (
    *EMBEDDED_MODELS,
    "mudit-380m",
    "musit-380m",
    "musit-380m-parallel",
    "musit-1b",
    "musit-3b",
    "published",
)
# groups of columns of the outline that a model takes or not (models/outline_columns.py)
OUTLINE_GROUPS = ("melody", "arrangement", "controls", "edits")
PRESET_FOLDER = Path(__file__).parent / "presets"

C = TypeVar("C", bound=BaseModel)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DitConfig(_Config):
    """The diffusion / interpolant transformer. Widths are in channels."""

    latent_channels: int = Field(96, gt=0)
    width: int = Field(1536, gt=0)
    blocks: int = Field(10, gt=0)
    heads: int = Field(12, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    modulation: Literal["shared", "per_block"] = "shared"
    cross_attention: Literal["serial", "parallel"] = "serial"
    qk_norm: bool = True
    lyric_width: int = Field(512, gt=0)
    lyric_blocks: int = Field(
        4, ge=0, description="transformer blocks of the lyric encoder; 0 embeds only"
    )
    lyric_head_dim: int = Field(64, gt=0)
    description_width: int = Field(512, gt=0)
    max_fragments: int = Field(32, gt=0, description="description tokens at most")
    pooled_description: bool = Field(
        False, description="the mean description vector modulates every block, beside the tokens"
    )
    rope_base: float = Field(10000.0, gt=0)
    outline: bool = Field(
        False,
        description="beat, key and the syllable of every frame are inputs (models/outline.py)",
    )
    melody: bool = Field(
        False, description="the outline says which notes are sung (models/outline_columns.py)"
    )
    arrangement: bool = Field(
        False, description="the outline says sections, who plays in them, fills and the end"
    )
    controls: bool = Field(
        False, description="the outline says drums, voice and style, beside the words"
    )
    edits: bool = Field(
        False, description="frames that are given are said to be, and come without noise"
    )
    lyric_rope_scale: float = Field(
        256.0, gt=0, description="both cross-attention axes run from 0 to this"
    )
    vocabulary: str = "v1"
    vocabulary_size: int = Field(
        512, gt=0, description="rows of the embedding; at least the size of the vocabulary"
    )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads or self.head_dim % 2:
            raise ValueError(
                f"width={self.width} does not split into heads={self.heads} of an even size: make "
                f"width a multiple of 2 x heads"
            )
        said = [name for name in OUTLINE_GROUPS if getattr(self, name)]
        if said and not self.outline:
            raise ValueError(f"{' and '.join(said)} are columns of the outline: set outline=true")
        if self.lyric_width % self.lyric_head_dim:
            raise ValueError(
                f"lyric_width={self.lyric_width} is not a multiple of "
                f"lyric_head_dim={self.lyric_head_dim}"
            )
        return self


class VaeConfig(_Config):
    """The spectral VAE. One latent frame covers `fold` STFT frames of `stft_hop` samples each."""

    sample_rate: int = Field(44100, gt=0)
    channels: int = Field(2, ge=1, le=2)
    n_fft: int = Field(2048, gt=0)
    stft_hop: int = Field(512, gt=0)
    fold: int = Field(8, gt=0)
    latent_channels: int = Field(96, gt=0)
    frame_width: int = Field(384, gt=0, description="width at the STFT frame rate")
    frame_blocks: int = Field(4, ge=0)
    decoder_width: int | None = Field(
        None, gt=0, description="the decoder's own width at the STFT frame rate; null: frame_width"
    )
    decoder_blocks: int | None = Field(
        None, ge=0, description="its own blocks at that rate; null: frame_blocks"
    )
    latent_width: int = Field(1024, gt=0, description="width at the latent frame rate")
    latent_blocks: int = Field(8, ge=0)
    kernel_size: int = Field(7, gt=0)
    floor: float = Field(
        1e-5,
        gt=0,
        lt=1,
        description="added to magnitudes before the logarithm; a full-scale sine has magnitude 0.5",
    )
    compression: float = Field(
        0.0,
        ge=0,
        le=1,
        description="features are magnitude ^ compression; 0: log(magnitude + floor)",
    )
    phase_head: bool = Field(
        True,
        description="the decoder predicts phases; if not, refinement starts from each bin's own "
        "frequency",
    )
    phase_refinements: int = Field(0, ge=0, description="Griffin-Lim steps on the phases")

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.stft_hop * self.fold

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_fft % self.stft_hop or self.n_fft // self.stft_hop < 2:
            raise ValueError(
                f"n_fft={self.n_fft} must be a multiple of stft_hop={self.stft_hop}, at least "
                f"twice it"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd")
        if not self.phase_head and not self.phase_refinements:
            raise ValueError(
                "phase_head=false needs phase_refinements: 32 or more, or the phases would be "
                "nobody's"
            )
        if not self.phase_head and self.channels == 2:
            raise ValueError(
                "phase_head=false is for one channel: the sides of a stereo sound take their angle "
                "from it"
            )
        return self


class ChinMuConfig(_Config):
    """The text-audio contrastive encoder. `text_encoder` is 'characters' or the path or hub id of a
    transformers encoder.
    """

    text_encoder: str = "hfl/chinese-roberta-wwm-ext"
    text_width: int = Field(
        384,
        gt=0,
        description="width of the character encoder; a transformers encoder brings its own",
    )
    text_blocks: int = Field(4, gt=0)
    audio_width: int = Field(512, gt=0)
    audio_blocks: int = Field(8, gt=0)
    head_dim: int = Field(64, gt=0)
    sample_rate: int = Field(22050, gt=0)
    n_fft: int = Field(1024, gt=0)
    mel_hop: int = Field(512, gt=0)
    mels: int = Field(96, gt=0)
    mel_fold: int = Field(4, gt=0, description="log-mel frames per transformer token")
    embedding: int = Field(512, gt=0)
    max_characters: int = Field(256, gt=0)


class PathConfig(_Config):
    """How data turns into noise, and what the network predicts."""

    kind: Literal["ddpm", "linear", "bezier"] = "bezier"
    prediction: Literal["eps", "v", "x0", "velocity"] = "velocity"
    betas: Literal["linear", "cosine"] = "linear"
    train_steps: int = Field(500, gt=1, description="ddpm only")
    beta_start: float = Field(1e-4, gt=0)
    beta_end: float = Field(0.02, gt=0, lt=1)
    zero_terminal_snr: bool = False
    bezier_control: float = Field(
        0.5,
        ge=0,
        le=1,
        description="t~ of the Bezier path; 0 is the linear interpolant under u = t^2",
    )
    t_min: float = Field(
        1e-3, gt=0, lt=1, description="continuous paths stop here: the velocity is singular at 0"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "ddpm" and self.prediction == "velocity":
            raise ValueError(
                "prediction='velocity' belongs to the linear and bezier paths: ddpm takes eps, v "
                "or x0"
            )
        if self.kind != "ddpm" and self.prediction != "velocity":
            raise ValueError(
                f"prediction={self.prediction!r} belongs to ddpm: the {self.kind} path takes "
                f"velocity"
            )
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "zero_terminal_snr cannot be used with prediction='eps' (eps says nothing at zero "
                "SNR): use v or x0"
            )
        return self


def check_interval(name: str, interval: tuple[float, float]) -> None:
    """Raises ValueError unless it is one of noise levels, from 0 to 1."""
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name}={interval} must hold 0 <= low <= high <= 1")


class SamplerConfig(_Config):
    """How a trained network is sampled; the defaults of `mudit generate` for this model."""

    name: SamplerName = "ode-euler"
    # strict: a text or a truth value in a request is a mistake, not a number
    steps: int = Field(25, ge=1, le=1000, strict=True)
    guidance: float = Field(3.0, ge=0, le=100, strict=True)
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="fractions of the noise level between which guidance acts"
    )
    eta: float = Field(
        0.0, ge=0, le=1, strict=True, description="ddim: 0 deterministic, 1 ancestral"
    )
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    diffusion: Literal[
        "sigma", "constant", "linear", "sbdm", "decreasing", "increasing-decreasing"
    ] = Field("sigma", description="sde-euler: the diffusion coefficient w(t)")
    diffusion_norm: float = Field(1.0, gt=0, strict=True)
    shift: float = Field(
        1.0, gt=0, description="continuous paths: time warp t -> shift t / (1 + (shift - 1) t)"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_interval("guidance_interval", self.guidance_interval)
        return self


class ModelConfig(_Config):
    """Everything that a model folder's config.json says."""

    name: str
    dit: DitConfig = DitConfig()
    vae: VaeConfig = VaeConfig()
    chinmu: ChinMuConfig = ChinMuConfig()
    path: PathConfig = PathConfig()
    sampler: SamplerConfig = SamplerConfig()
    max_seconds: float = Field(300.0, gt=0, description="the longest song the model was made for")
    licence: str = "Apache-2.0"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dit.latent_channels != self.vae.latent_channels:
            raise ValueError(
                f"dit.latent_channels={self.dit.latent_channels} differs from "
                f"vae.latent_channels={self.vae.latent_channels}"
            )
        if self.dit.description_width != self.chinmu.embedding:
            raise ValueError(
                f"dit.description_width={self.dit.description_width} differs from "
                f"chinmu.embedding={self.chinmu.embedding}"
            )
        check_sampler(self.path, self.sampler)
        return self


def check_sampler(path: PathConfig, sampler: SamplerConfig) -> None:
    """Raises ValueError where a sampler does not run on a path."""
    if path.kind == "ddpm" and sampler.name not in ("ddim", "dpmpp-2m"):
        raise ValueError(
            f"sampler {sampler.name!r} needs a linear or bezier path: a ddpm model takes ddim or "
            f"dpmpp-2m"
        )


def parse_config(kind: type[C], fields: dict[str, Any], *, source: str) -> C:
    """Validates `fields` as `kind`. ConfigError names the field, what was given, what is accepted
    and the nearest known name.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(
            f"{source}: " + "; ".join(_explain(kind, e) for e in error.errors())
        ) from None


def _explain(kind: type[BaseModel], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(kind, error["loc"][:-1]))
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown field '{where}'" + (
            f": did you mean '{near[0]}'?" if near else f": known are {', '.join(known)}"
        )
    given = "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r})"
    return f"{where + ': ' if where else ''}{error['msg'].removeprefix('Value error, ')}{given}"


def _fields_at(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        inner = kind.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        kind = inner
    return list(kind.model_fields)


def load_config(source: str | Path) -> ModelConfig:
    """A ModelConfig from a preset's name, a config.json or a model folder. Raises ConfigError."""
    path = PRESET_FOLDER / f"{source}.json" if str(source) in PRESETS else Path(source)
    if path.is_dir():
        path = path / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(str(source), PRESETS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        known = f"Give a preset ({', '.join(PRESETS)}), a config.json or a model folder"
        raise ConfigError(f"no configuration '{source}': {hint}{known}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"configuration '{path}' cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"configuration '{path}' must be a JSON object, not {type(fields).__name__}"
        )
    return parse_config(ModelConfig, fields, source=str(path.name))
