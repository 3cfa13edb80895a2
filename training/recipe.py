"""A training run as one typed document: model, data, optimiser, schedule, checkpoints. Unknown
fields are refused with the nearest name.

    recipe = load_recipe("tiny-dit-pretrain", overrides=["steps=2000", "optimizer.lr=1e-3"])

A recipe is JSON: a name from training/recipes or a file. `base` names a recipe whose fields it
changes.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mudit_engine.config import ModelConfig, load_config, parse_config
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training.recipe_stages import (
    AlignStage,
    ChinMuStage,
    DistillStage,
    DitStage,
    LoraConfig,
    LyricsStage,
    Section,
    VaeStage,
)
from mudit_engine.training.step_trace import parse_steps

FOLDER = Path(__file__).parent / "recipes"
_SECTIONS = {
    "vae": "vae",
    "chinmu": "chinmu",
    "dit-pretrain": "dit",
    "dit-finetune": "dit",
    "dit-align": "dit",
    "dit-distill": "dit",
    "lyrics": "lyrics",
}

TaskName = Literal[
    "vae", "chinmu", "dit-pretrain", "dit-finetune", "dit-align", "dit-distill", "lyrics"
]


class DataConfig(Section):
    """Where the songs are, and how they become batches."""

    folder: str = Field(
        description="a data set written by `mudit data encode`; lyrics: a JSONL file, or builtin:N"
    )
    pack_size: int = Field(
        4096,
        gt=0,
        description="cost of one micro-batch at most: latent frames (dit), crops (vae), songs "
        "(chinmu), tokens (lyrics)",
    )
    packs_per_step: int = Field(
        1, ge=1, description="micro-batches of a global batch, whatever the number of ranks"
    )
    loader_threads: int = Field(1, ge=1)
    prefetch: int = Field(2, ge=1, description="global batches prepared ahead")
    limit_songs: int | None = Field(None, gt=0, description="train on the first N songs only")
    buckets: int | None = Field(
        None,
        ge=1,
        description="dit tasks: parts of a full pack; the sizes of a micro-batch are rounded up to "
        "multiples of one, by sequences that count for nothing, so that few shapes occur; null: "
        "sizes as they come",
    )


class OptimizerConfig(Section):
    """AdamW, or Muon for the matrices of the song transformer's blocks and AdamW for the rest.
    Weight decay is for matrices; gains, biases and embeddings take none.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    muon_lr: float = Field(
        0.02, gt=0, description="muon: peak of its matrices' learning rate; it follows the schedule"
    )
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="global gradient norm at most")


class ScheduleConfig(Section):
    """Learning rate: linear warm-up, then constant, a cosine to `floor`, or warm-up / stable /
    decay (linear, the last `decay` share).
    """

    kind: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup: int = Field(100, ge=0, description="steps")
    decay: float = Field(0.2, gt=0, le=1, description="wsd: share of the steps that decay")
    floor: float = Field(0.0, ge=0, le=1, description="share of the peak at the end")
    steps: int | None = Field(
        None,
        gt=0,
        description="steps that the schedule is laid out for, whenever the run ends; null: the "
        "run's own",
    )


class ParallelConfig(Section):
    """How DeepSpeed spreads a run over ranks. Sizes that are null follow from the model's size
    (deepspeed_config.py).
    """

    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="what is partitioned: 0 nothing, 1 optimiser, 2 and gradients, 3 and weights"
    )
    sequence_parallel: int = Field(
        1,
        ge=1,
        description="ranks that share every song (Ulysses); the model's heads must divide by it",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="to host memory: optimiser state; all: weights too (stage 3)"
    )
    overlap_comm: bool | None = Field(
        None, description="reduce gradients while the backward pass runs; null: on a GPU"
    )
    reduce_bucket: int | None = Field(None, gt=0, description="elements of a gradient bucket")
    gather_bucket: int | None = Field(
        None, gt=0, description="elements gathered at once (stages 1 and 2) or prefetched (stage 3)"
    )
    persistence_threshold: int | None = Field(
        None, ge=0, description="stage 3: smaller tensors stay whole on every rank"
    )
    max_live_parameters: int = Field(
        1_000_000_000, ge=0, description="stage 3: gathered elements at a time"
    )
    hpz_partition_size: int = Field(
        1,
        ge=1,
        description="ZeRO++: ranks of a node that keep a second shard of the weights (stage 3)",
    )
    quantized_weights: bool = Field(
        False, description="ZeRO++: gather int8 weights (stage 3, CUDA)"
    )
    quantized_gradients: bool = Field(
        False, description="ZeRO++: reduce int4 gradients (stage 3, CUDA)"
    )
    mics_shard_size: int = Field(0, ge=0, description="MiCS, which DeepSpeed 0.19.8 has no more: 0")
    reduce_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="in which gradients are summed over the ranks; bf16 sends half, and adds about "
        "one percent of error over 64 ranks",
    )
    accumulate_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="in which the gradients of micro-batches are added up"
    )
    timeout_seconds: float = Field(
        1800.0, gt=0, description="a collective that takes longer ends the run"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        third = {
            "hpz_partition_size": 1,
            "quantized_weights": False,
            "quantized_gradients": False,
            "persistence_threshold": None,
        }
        for name, off in third.items():
            if getattr(self, name) != off and self.zero_stage != 3:
                raise ValueError(
                    f"parallel.{name}={getattr(self, name)} has an effect with zero_stage=3 only, "
                    f"not {self.zero_stage}"
                )
        if self.mics_shard_size:
            raise ValueError(
                f"parallel.mics_shard_size={self.mics_shard_size}: DeepSpeed took MiCS out before "
                f"0.19.8; parallel.hpz_partition_size "
                "(ZeRO++) keeps the gathering of weights inside a node too"
            )
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"parallel.offload=all moves weights, which zero_stage={self.zero_stage} does not "
                f"partition: use optimizer"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("parallel.offload=optimizer needs a zero_stage of 1 to 3")
        return self


class EmaConfig(Section):
    """Average of the weights, in fp32: decay min(decay, (1 + step) / (10 + step))."""

    enabled: bool = True
    decay: float = Field(0.999, ge=0, lt=1)


class CheckpointConfig(Section):
    every: int = Field(500, gt=0, description="steps")
    keep: int = Field(3, ge=1, description="newest checkpoints kept")
    asynchronous: bool | None = Field(
        None,
        description="write while training goes on, from a copy of the state in host memory; null: "
        "on a GPU",
    )
    local: str | None = Field(
        None,
        description="folder on a disk of the node, written before the run's folder (asynchronous)",
    )


class LogConfig(Section):
    every: int = Field(
        20,
        gt=0,
        description="steps between lines on the terminal and TensorBoard (metrics.jsonl has every "
        "step)",
    )
    tensorboard: bool = True
    wandb: str | None = Field(
        None, description="project of Weights & Biases to log to (WANDB_MODE=offline keeps it here)"
    )
    mlflow: str | None = Field(
        None, description="experiment of MLflow to log to (MLFLOW_TRACKING_URI says where)"
    )
    songs: bool = Field(False, description="write the ids of every step's songs into songs.jsonl")
    peak_tflops: float | None = Field(
        None, gt=0, description="of one device, for the MFU; null: its data sheet's, where known"
    )
    curve: bool = Field(True, description="draw loss.png at the end")
    profile: str | None = Field(
        None,
        description="FIRST:END of steps that torch's profiler traces into the run's folder (10:13: "
        "steps 10, 11 and 12)",
    )
    validate_every: int = Field(
        0,
        ge=0,
        description="steps between evaluations of the EMA weights on the validation split; 0 never",
    )
    validation_split: Literal["validation", "test"] = "validation"
    validation_packs: int = Field(8, ge=1)

    @field_validator("profile")
    @classmethod
    def _steps(cls, value: str | None) -> str | None:
        if value is not None:
            parse_steps(value)
        return value


class SongsConfig(Section):
    """Songs made from fixed requests while the song transformer trains (training/listening.py)."""

    every: int = Field(
        0, ge=0, description="steps between them, a multiple of checkpoint.every; 0 never"
    )
    requests: tuple[dict[str, Any], ...] = Field(
        (
            {
                "description": "流行抒情，女声，钢琴",
                "lyrics": "[verse]\n月亮升起来\n照在海面上",
            },
            {
                "description": "upbeat rock, male voice, electric guitar",
                "lyrics": "[verse]\nThe river runs to the sea\nand carries me home",
            },
        ),
        min_length=1,
        description="what is asked for: fields of a SongRequest (description, lyrics, seed, ...)",
    )
    seconds: float = Field(20.0, ge=1, description="of a song whose request does not say")
    device: Literal["cpu", "auto"] = Field(
        "cpu", description="auto: rank 0's GPU where it has one, whose memory it then shares"
    )
    threads: int = Field(1, ge=1, description="CPU threads of the process that makes them")
    wait: float = Field(
        300.0, ge=0, description="seconds that the end of a run waits for the last songs at most"
    )


class GuardConfig(Section):
    """What happens when a step goes wrong."""

    max_bad_steps: int = Field(
        8,
        ge=0,
        description="steps skipped (NaN, infinity, spikes) among the last 100 before training "
        "stops",
    )
    spike_factor: float = Field(
        5.0, gt=1, description="a loss or gradient norm this many times its running mean is a spike"
    )
    spikes: Literal["report", "skip"] = Field(
        "report", description="skip: a spike's step is left out and counts as a bad one"
    )
    patience: int = Field(
        0,
        ge=0,
        description="validations in a row without a new lowest loss after which training stops; "
        "0 never",
    )
    limits: dict[str, float] = Field(
        default_factory=dict,
        description="figures of a validation, such as mse or drift, and what each may be at most "
        "before training stops",
    )


class Recipe(Section):
    """Everything a run needs beside the machine."""

    name: str
    task: TaskName
    model: str = Field("tiny", description="a preset, a config.json or a model folder")
    model_overrides: dict[str, Any] = Field(
        default_factory=dict, description="fields of the model's configuration to change"
    )
    init: str | None = Field(
        None,
        description="model folder (or run folder) whose weights of this part the training starts "
        "from",
    )
    data: DataConfig
    steps: int = Field(gt=0)
    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = Field("auto", description="auto, cpu or cuda")
    strategy: Literal["single", "deepspeed"] = "single"
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    songs: SongsConfig = SongsConfig()
    guard: GuardConfig = GuardConfig()
    vae: VaeStage = VaeStage()
    chinmu: ChinMuStage = ChinMuStage()
    dit: DitStage = DitStage()
    lora: LoraConfig | None = Field(
        None, description="train low-rank additions to the weights of `init` only (dit tasks)"
    )
    lyrics: LyricsStage = LyricsStage()
    align: AlignStage = AlignStage()
    distill: DistillStage = DistillStage()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for section in set(_SECTIONS.values()) - {_SECTIONS[self.task]}:
            if section in self.model_fields_set:
                raise ValueError(
                    f"section '{section}' has no effect on task '{self.task}': remove it (its "
                    f"section is '{_SECTIONS[self.task]}')"
                )
        if self.data.buckets is not None and _SECTIONS[self.task] != "dit":
            raise ValueError(f"data.buckets is for the dit tasks, not '{self.task}': remove it")
        parallel = self.parallel
        if self.dit.compile == "blocks" and (
            parallel.zero_stage == 3 or parallel.sequence_parallel > 1
        ):
            raise ValueError(
                f"dit.compile=blocks with parallel.zero_stage={parallel.zero_stage} and "
                f"sequence_parallel={parallel.sequence_parallel}: compiled code needs whole "
                "weights and whole songs; use zero_stage 0 to 2 and sequence_parallel 1"
            )
        if self.songs.every and _SECTIONS[self.task] != "dit":
            raise ValueError(f"songs.every is for the dit tasks, not '{self.task}'")
        if self.songs.every % self.checkpoint.every:
            raise ValueError(
                f"songs.every={self.songs.every} must be a multiple of checkpoint.every="
                f"{self.checkpoint.every}: songs are made from checkpoints"
            )
        if self.vae.train == "decoder" and self.init is None:
            raise ValueError(
                "vae.train=decoder keeps the encoder of a trained codec: set init to its model "
                "folder"
            )
        for section in ("align", "distill"):
            if section in self.model_fields_set and self.task != f"dit-{section}":
                raise ValueError(
                    f"section '{section}' has no effect on task '{self.task}': remove it (it is "
                    f"for 'dit-{section}')"
                )
        if self.task in ("dit-align", "dit-distill") and self.lora is None:
            raise ValueError(
                f"task '{self.task}' trains a LoRA, whose base is what it is measured against: set "
                "init to a model folder, and lora, for example lora.rank=16"
            )
        if (self.guard.patience or self.guard.limits) and not self.log.validate_every:
            raise ValueError(
                "guard.patience and guard.limits watch validations, and there are none: set "
                "log.validate_every"
            )
        if self.lora is not None and (_SECTIONS[self.task] != "dit" or self.init is None):
            raise ValueError(
                "lora is for the dit tasks, and adds to trained weights: set init to a model "
                "folder, or remove it"
            )
        if self.optimizer.kind == "muon":
            self._check_muon()
        if (
            self.strategy == "single"
            and "parallel" in self.model_fields_set
            and self.parallel != ParallelConfig()
        ):
            raise ValueError(
                "section 'parallel' has no effect on strategy 'single': set strategy=deepspeed, or "
                "remove it"
            )
        if self.parallel.sequence_parallel > 1 and _SECTIONS[self.task] != "dit":
            raise ValueError(
                f"parallel.sequence_parallel={self.parallel.sequence_parallel} is for the dit "
                f"tasks, not '{self.task}'"
            )
        if (
            self.strategy == "deepspeed"
            and self.precision == "bf16"
            and self.parallel.zero_stage == 0
        ):
            raise ValueError(
                "bf16 with zero_stage=0 drifts (DeepSpeed accumulates gradients in bf16 there): "
                "use zero_stage 1, 2 or 3"
            )
        if self.schedule.warmup > (self.schedule.steps or self.steps):
            raise ValueError(
                f"schedule.warmup={self.schedule.warmup} is longer than steps={self.steps}: lower "
                f"the one or raise the other"
            )
        return self

    def _check_muon(self) -> None:
        if _SECTIONS[self.task] != "dit" or self.lora is not None:
            raise ValueError(
                "optimizer.kind=muon is for whole matrices of the song transformer (dit tasks "
                f"without lora), not for {'lora' if self.lora else self.task}: use adamw"
            )
        if self.strategy == "deepspeed" and self.parallel.zero_stage != 0:
            raise ValueError(
                f"optimizer.kind=muon with parallel.zero_stage={self.parallel.zero_stage}: "
                "DeepSpeed 0.19.8 clips Muon's orthogonal update there in place of the gradient, "
                "so that ranks would not train as one device does: use zero_stage=0, or adamw"
            )

    def resolved(self) -> dict[str, Any]:
        """Every field with its value, without the sections of other tasks: a document that
        load_recipe takes back.
        """
        others = set(_SECTIONS.values()) - {_SECTIONS[self.task]}
        others |= {one for one in ("align", "distill") if self.task != f"dit-{one}"}
        return self.model_dump(mode="json", exclude=others)

    def model_config_resolved(self) -> ModelConfig:
        """The model's configuration with model_overrides applied. Raises ConfigError."""
        base = load_config(self.model)
        fields = merge(base.model_dump(mode="json"), self.model_overrides)
        return parse_config(ModelConfig, fields, source=f"model of recipe '{self.name}'")


def recipe_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_recipe(source: str | Path, *, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A training run as one typed document, by name or file.

    Args:
        source: a name from training/recipes, or a .json file.
        overrides: "key=value" each; dots go into sections, values are JSON or else text.

    Returns:
        The recipe, frozen.

    Raises:
        ConfigError: for an unknown field (the nearest known one is named) or an impossible value.

    Examples:
        >>> recipe = load_recipe("tiny-dit-finetune", overrides=["steps=100", "optimizer.lr=1e-4"])
        >>> recipe.steps, recipe.optimizer.lr, recipe.task
        (100, 0.0001, 'dit-finetune')
    """
    fields = _read(source)
    for override in overrides:
        fields = merge(fields, parse_override(override))
    recipe = parse_recipe(fields, source=f"recipe '{fields.get('name', source)}'")
    recipe.model_config_resolved()
    return recipe


def parse_recipe(fields: dict[str, Any], *, source: str) -> Recipe:
    """A recipe from its fields. Raises ConfigError that names the field, what was given and the
    nearest known name.
    """
    return parse_config(Recipe, fields, source=source)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = (
            merge(out[key], value)
            if isinstance(value, dict) and isinstance(out.get(key), dict)
            else value
        )
    return out


def _read(source: str | Path, *, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = FOLDER / f"{source}.json"
    if not path.is_file():
        path = Path(source)
        if path.suffix != ".json" or not path.is_file():
            near = difflib.get_close_matches(str(source), recipe_names(), n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(
                f"no recipe '{source}': {hint}known are {', '.join(recipe_names())}, or give a "
                f".json file"
            )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"recipe '{path}' cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"recipe '{path}' must be a JSON object, not {type(fields).__name__}")
    base = fields.pop("base", None)
    if base is None:
        return fields
    if base in seen:
        raise ConfigError(f"recipe '{source}' is based on itself: {' -> '.join((*seen, base))}")
    return merge(_read(base, seen=(*seen, str(base))), fields)


def parse_override(text: str) -> dict[str, Any]:
    """`key=value` as fields: dots go into sections, values are JSON or else text. Raises
    InputError.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r} must be key=value, for example --set optimizer.lr=3e-4")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    fields: Any = parsed
    for part in reversed(key.strip().split(".")):
        fields = {part: fields}
    return dict(fields)
