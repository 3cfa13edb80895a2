"""The sections of a recipe that belong to one task each: what the codec, ChinMu, the song
transformer and the lyric model are trained on and with. The rest is in recipe.py.

    DitStage(min_snr_gamma=5.0)
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mudit_engine.config import check_interval


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VaeStage(Section):
    """Weights of the loss terms, and how the codec starts and ends (training/tasks/vae.py)."""

    train: Literal["codec", "decoder"] = Field(
        "codec",
        description="decoder: the encoder and the latents' statistics stay as `init` has them, so "
        "that song models trained on its latents still fit; a decoder of another size begins anew",
    )
    crop_seconds: float = Field(4.0, gt=0)
    features: float = Field(1.0, ge=0, description="standardised compressed magnitudes")
    features_distance: Literal["l1", "l2"] = Field(
        "l1", description="l2 keeps the peaks of soft partials that l1 gives up"
    )
    emphasis: float = Field(
        1.0,
        ge=0,
        description="of low frequencies in the features: (mel bands per Hz)^emphasis (SpectralVAE)",
    )
    spectral: float = Field(1.0, ge=0, description="multi-resolution STFT of the audio")
    mel: float = Field(1.0, ge=0)
    refined: bool = Field(
        False,
        description="judge the audio after the phase refinements that a decode makes, through "
        "which gradients flow; if not, the audio of the decoder's own phases",
    )
    kl: float = Field(1e-3, ge=0)
    adversarial: float = Field(0.0, ge=0, description="0 trains without discriminators")
    feature_matching: float = Field(2.0, ge=0, description="share of the adversarial weight")
    adversarial_seconds: float = Field(
        1.0, gt=0, description="of each crop that the discriminators judge"
    )
    discriminator_width: int = Field(32, gt=0)
    adversarial_from: int = Field(0, ge=0, description="step at which the discriminators join")
    discriminator_lr: float = Field(2e-4, gt=0, description="peak; it follows the schedule")
    warm_start: Literal["pca", "none"] = Field(
        "pca", description="fit the linear path in closed form before the first step"
    )
    statistics_songs: int = Field(
        128, gt=0, description="songs for the warm start and for the latents' statistics at the end"
    )


class ChinMuStage(Section):
    crop_seconds: float = Field(10.0, gt=0)
    levels: tuple[float, float, float] = Field(
        (1.0, 1.0, 1.0), description="odds of a word, a phrase, a sentence as the text of a pair"
    )
    mixing: Literal["minibatch", "batch"] = Field(
        "minibatch",
        description="minibatch: the level is drawn for each song; batch: once for a whole batch",
    )
    registers: float = Field(
        0.0,
        ge=0,
        description="weight of the loss that draws a song's professional and amateur texts "
        "together, away from other songs' texts of both kinds; needs texts >= 2",
    )
    encode_at_once: int = Field(
        0,
        ge=0,
        description="songs or texts that a tower works on at a time (0: all); their activations "
        "are computed again in the backward pass, so that the batch may be large",
    )
    attributes: dict[str, float] = Field(
        default_factory=dict,
        description="metadata fields (style, voice, ...) that both vectors must tell, and their "
        "weights in the loss",
    )
    texts: int = Field(
        2, ge=1, description="texts of a song in a step; each makes a pair with the song's audio"
    )

    @model_validator(mode="after")
    def _two_registers(self) -> ChinMuStage:
        if self.registers and self.texts < 2:
            raise ValueError(
                f"chinmu.registers={self.registers} compares two texts of a song: set chinmu.texts "
                "to 2 or more"
            )
        return self


class DitStage(Section):
    times: Literal["uniform", "logit-normal"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = Field(1.0, gt=0)
    min_snr_gamma: float | None = Field(None, gt=0)
    contrastive: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share at which the squared distance from another song's target is taken off "
        "the loss (contrastive flow matching; its paper: 0.05)",
    )
    structured_lyrics: bool = Field(
        True, description="keep section tokens (<verse>) among the phonemes"
    )
    use_descriptions: bool = True
    max_fragments: int = Field(
        8,
        ge=1,
        description="random fragments at most; a whole description has as many as the model takes",
    )
    levels: tuple[float, float, float] = Field(
        (1.0, 1.0, 1.0), description="odds of a word, a phrase, a sentence"
    )
    whole_description: float = Field(
        0.3, ge=0, le=1, description="share of steps that describe a song as a request would"
    )
    dropping: Literal["exclusive", "independent"] = Field(
        "exclusive",
        description="exclusive: a step drops the description, the lyrics, or both as drop_both "
        "says; independent: each by its own draw, so that all mixtures are seen",
    )
    drop_descriptions: float = Field(0.1, ge=0, le=1)
    drop_lyrics: float = Field(0.1, ge=0, le=1)
    drop_both: float = Field(
        0.1,
        ge=0,
        le=1,
        description="the unconditional sequence of guidance: no description, user type none, no "
        "lyrics",
    )
    drop_user: float = Field(
        0.2, ge=0, le=1, description="a description is kept, its user type is not said"
    )
    drop_tempo: float = Field(0.1, ge=0, le=1, description="the outline's tempo is not said")
    drop_key: float = Field(0.2, ge=0, le=1, description="the outline's key is not said")
    drop_chords: float = Field(0.3, ge=0, le=1, description="the outline's chords are not said")
    drop_melody: float = Field(
        0.2, ge=0, le=1, description="the notes of the melody are not said (dit.melody)"
    )
    drop_arrangement: float = Field(
        0.2, ge=0, le=1, description="sections and who plays are not said (dit.arrangement)"
    )
    drop_controls: float = Field(
        0.3,
        ge=0,
        le=1,
        description="each of drums, voice and style is left to the words (dit.controls)",
    )
    misworded: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a described song has another song's description, and its own drums, voice and "
        "style, where all are known, are said (dit.controls): what was read of a request goes "
        "before words that the text encoder misunderstands",
    )
    drop_referenced: float = Field(
        0.5,
        ge=0,
        le=1,
        description="what a reference lets hear is not said by the outline: the beat where it is "
        "drums, chords and key where it is chords or bass, the melody where it is vocals",
    )
    edit: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a part of the song is given and the rest is made: a span, "
        "the end, the beginning, or scattered lines (dit.edits)",
    )
    reference: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that one stem (or the mix) is given as reference audio",
    )
    checkpointing: Literal["none", "full", "selective"] = Field(
        "none",
        description="recomputed in the backward pass: full, whole blocks; selective, all but the "
        "products of matrices",
    )

    compile: Literal["none", "blocks"] = Field(
        "none",
        description="blocks: torch.compile of what lies between two attentions of a block, once "
        "for all batches (models/compiled.py)",
    )

    @field_validator("checkpointing", mode="before")
    @classmethod
    def _was_a_switch(cls, value: Any) -> Any:
        # recipes inside checkpoints of 0.1 runs hold true or false
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.compile == "blocks" and self.checkpointing == "selective":
            raise ValueError(
                "compile=blocks with checkpointing=selective: what is kept is chosen operation by "
                "operation, which compiled code has not; use checkpointing none or full"
            )
        exclusive = self.dropping == "exclusive"
        if exclusive and self.drop_descriptions + self.drop_lyrics + self.drop_both > 1:
            raise ValueError(
                "drop_descriptions + drop_lyrics + drop_both must be at most 1: they are exclusive "
                "cases"
            )
        if not any(self.levels) or min(self.levels) < 0:
            raise ValueError(
                f"levels={self.levels} must be odds of word, phrase, sentence, not all 0"
            )
        return self


class AlignStage(Section):
    """Learning from pairs of songs (training/tasks/align.py)."""

    beta: float = Field(
        200.0,
        gt=0,
        description="how hard a pair pulls away from the base: of differences of mean squared "
        "errors",
    )
    anchor: float = Field(
        0.0,
        ge=0,
        description="weight of the better songs' own denoising error, less the base's, beside the "
        "preference, which alone may let both songs' errors rise; at beta / 2 both begin with as "
        "much pull on the better song",
    )
    blind: float = Field(
        0.0,
        ge=0,
        description="weight of how far the unconditional branch's outputs move (mean squares): "
        "guidance plays what the conditional branch learns beyond the unconditional one",
    )


class DistillStage(Section):
    """Fewer steps by a LoRA (training/tasks/distill.py): those of model_overrides.sampler."""

    substeps: int = Field(
        6, ge=1, description="steps of the teacher, which is the base, for one of the student"
    )
    guidance: float = Field(
        3.0, ge=1, description="of the teacher; the student learns it and runs without"
    )
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="noise levels between which the teacher's guidance acts"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_interval("distill.guidance_interval", self.guidance_interval)
        return self


def teacher_passes(stage: DistillStage) -> int:
    """Forward passes of the teacher for one of the student, at most: guidance runs two a step."""
    return stage.substeps * (1 if stage.guidance == 1 else 2)


class LoraConfig(Section):
    """Low-rank additions to the song transformer's matrices; everything else stays as `init` has
    it (models/lora.py).
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(16, gt=0, description="the additions are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into the additions")
    parts: tuple[Literal["attention", "mlp", "modulation"], ...] = Field(
        ("attention", "mlp", "modulation"), min_length=1
    )
    init: str | None = Field(
        None, description="a LoRA folder of the same rank and parts that training goes on from"
    )


class SmallModel(Section):
    """A language model that is trained from nothing, on characters (lyrics.base=scratch)."""

    width: int = Field(192, gt=0)
    layers: int = Field(4, ge=1)
    heads: int = Field(6, ge=1)
    head_width: int = Field(32, gt=0)
    mlp_width: int = Field(512, gt=0)
    max_tokens: int = Field(2048, gt=0)


class LyricsStage(Section):
    """The lyric model: what is tuned, and how (training/tasks/lyrics.py)."""

    base: str = Field(
        "scratch", description="a model folder, an id of the Hugging Face hub, or scratch"
    )
    method: Literal["auto", "qlora", "lora", "full"] = Field(
        "auto",
        description="qlora: NF4 base with double quantisation; lora: base in bf16 or fp32; full: "
        "every weight; auto: qlora where bitsandbytes runs, else lora; full from scratch",
    )
    rank: int = Field(16, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    checkpointing: bool = Field(False, description="recompute layers in the backward pass")
    small: SmallModel = SmallModel()
