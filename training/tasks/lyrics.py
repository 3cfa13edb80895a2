"""The lyric model: a causal language model tuned on lyrics by QLoRA, LoRA, or as a whole.

    loss = sum over the answer's tokens of -log p(token | its own song's tokens before it)

The songs of a pack lie end to end; a mask of blocks keeps each song to itself and positions start
anew, so that a pack's loss is the sum of its songs' (no cross-contamination). Only weights that are
trained are saved in checkpoints; the base is read again when a run resumes, and its hash is part of
the run's identity.

    batch = LyricTask(recipe, songs).load([4, 17], moment)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from mudit_engine.availability import available, require
from mudit_engine.errors import ConfigError
from mudit_engine.files import write_text
from mudit_engine.lyric_model.base import find_base, weights_hash
from mudit_engine.lyric_model.causal import load_causal
from mudit_engine.training.dataset.lyric_set import SCRATCH, LyricSet
from mudit_engine.training.parallel.strategy import Logs, trained
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.recipe_stages import LyricsStage
from mudit_engine.training.tasks.task import Batch, Moment, Task

log = logging.getLogger(__name__)


class Tuned(BaseModel):
    """What is tuned: a part of the run's identity."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    stage: LyricsStage
    method: str
    base_sha256: str | None
    vocabulary: int
    shapes: dict[str, tuple[int, ...]]  # of the trained weights


class LyricRun(BaseModel):
    """config.json of a lyric run."""

    lyrics: Tuned


@dataclass(frozen=True)
class LyricInputs:
    """A pack. `kept` are the positions whose next token counts, `targets` those tokens."""

    tokens_1T: Tensor
    positions_1T: Tensor
    mask_11TT: Tensor
    kept_A: Tensor
    targets_A: Tensor


class LyricLoss(nn.Module):
    """A language model and its loss on packs; its state is what is trained."""

    def __init__(self, lyrics: nn.Module) -> None:
        super().__init__()
        self.lyrics = lyrics

    def forward(self, inputs: LyricInputs) -> tuple[Tensor, Logs]:
        """(sum over the answers' tokens, logs)."""
        logits_1AV = self.lyrics(
            input_ids=inputs.tokens_1T,
            attention_mask=inputs.mask_11TT,
            position_ids=inputs.positions_1T,
            logits_to_keep=inputs.kept_A,
            use_cache=False,
        ).logits
        logits_AV = logits_1AV[0].float()
        loss = F.cross_entropy(logits_AV, inputs.targets_A, reduction="sum")
        hits = (logits_AV.detach().argmax(-1) == inputs.targets_A).sum()
        return loss, {"accuracy": (hits, float(len(inputs.targets_A)))}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trained weights alone."""
        return {name: p.detach() for name, p in trained(self).items()}

    @torch.no_grad()
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        for name, p in trained(self).items():
            p.copy_(state_dict[name])
        return None


class LyricTask(Task):
    """Packs of lyrics."""

    part = "lyrics"  # type: ignore[assignment]
    needs = ("tokens",)
    averaged = ()

    def __init__(self, recipe: Recipe, shards: Any) -> None:
        require("transformers", "training the lyric model")
        assert isinstance(shards, LyricSet)
        self.recipe, self.shards = recipe, shards  # type: ignore[assignment]
        self.songs = shards
        self.stage = recipe.lyrics
        self.method = choose_method(self.stage)
        if (
            self.method == "qlora"
            and recipe.strategy == "deepspeed"
            and recipe.parallel.zero_stage == 3
        ):
            raise ConfigError(
                "parallel.zero_stage=3 with lyrics.method=qlora: ZeRO-3 would split weights that "
                "bitsandbytes has packed into 4 bits. Use zero_stage=2 (a 14 B base takes 7 GB, "
                "adapters are small), or lyrics.method=lora"
            )
        scratch = self.stage.base == SCRATCH
        self.base = None if scratch else find_base(self.stage.base)
        torch.manual_seed(recipe.seed)
        self.modules = self.build()
        self.config = LyricRun(  # type: ignore[assignment]
            lyrics=Tuned(
                stage=self.stage,
                method=self.method,
                base_sha256=None if self.base is None else weights_hash(self.base.folder),
                vocabulary=len(shards.tokenizer),
                shapes={name: tuple(p.shape) for name, p in trained(self.modules["model"]).items()},
            )
        )

    def build(self) -> dict[str, nn.Module]:
        if self.base is None:
            model = small_model(self.stage, self.songs.tokenizer)
        else:
            model = tuned_model(self.base.folder, self.stage, self.method, self.recipe)
        count = sum(p.numel() for p in trained(model).values())
        log.info("%s: %d weights are trained", self.method, count)
        return {"model": LyricLoss(model)}

    def save_config(self, folder: Path) -> None:
        write_text(folder / "config.json", self.config.model_dump_json(indent=2) + "\n")

    def costs(self) -> np.ndarray:
        return self.songs.lengths

    def weights(self) -> np.ndarray:
        return self.songs.lengths - np.asarray(self.songs.answers)

    def load(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        """A pack of these songs."""
        numbers = [int(number) for number in songs]
        inputs = pack(
            [self.songs.tokens[n] for n in numbers], [self.songs.answers[n] for n in numbers]
        )
        return Batch(
            ids=tuple(self.songs.songs[n].id for n in numbers),
            weight=float(len(inputs.targets_A)),
            inputs=inputs,
            tokens=inputs.tokens_1T.shape[1],
        )


def pack(tokens: Sequence[np.ndarray], answers: Sequence[int]) -> LyricInputs:
    """Songs end to end: `answers` are the places where each song's answer starts."""
    lengths = [len(own) for own in tokens]
    joined = torch.from_numpy(np.concatenate(tokens))
    song = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    place = torch.arange(len(joined))
    mask = (song[:, None] == song[None]) & (place[:, None] >= place[None])
    kept = torch.tensor(list(_kept(lengths, answers)))
    return LyricInputs(joined[None], positions[None], mask[None, None], kept, joined[kept + 1])


def _kept(lengths: Sequence[int], answers: Sequence[int]) -> Iterator[int]:
    start = 0
    for length, answer in zip(lengths, answers, strict=True):
        yield from range(start + answer - 1, start + length - 1)
        start += length


def choose_method(stage: LyricsStage) -> str:
    """The method that `auto` stands for here. Raises ConfigError or MissingError."""
    if stage.base == SCRATCH:
        if stage.method not in ("auto", "full"):
            raise ConfigError(
                f"lyrics.method={stage.method} tunes a base: give lyrics.base, or use full"
            )
        return "full"
    if stage.method == "auto":
        if available("bitsandbytes") and available("peft"):
            return "qlora"
        log.warning("bitsandbytes is not installed: LoRA on a base that is not quantised")
        return "lora"
    if stage.method == "qlora":
        require("bitsandbytes", "lyrics.method=qlora")
    if stage.method in ("qlora", "lora"):
        require("peft", f"lyrics.method={stage.method}")
    return stage.method


def small_config(stage: LyricsStage, tokenizer: Any) -> Any:
    """A Qwen3 of the recipe's size over a tokenizer."""
    from transformers import Qwen3Config

    small = stage.small
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=small.width,
        intermediate_size=small.mlp_width,
        num_hidden_layers=small.layers,
        num_attention_heads=small.heads,
        num_key_value_heads=small.heads,
        head_dim=small.head_width,
        max_position_embeddings=small.max_tokens,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        attn_implementation="sdpa",
    )


def small_model(stage: LyricsStage, tokenizer: Any) -> nn.Module:
    """An untrained model of the recipe's size."""
    from transformers import Qwen3ForCausalLM

    model: nn.Module = Qwen3ForCausalLM(small_config(stage, tokenizer))
    return model


def tuned_model(folder: Any, stage: LyricsStage, method: str, recipe: Recipe) -> nn.Module:
    """A base with adapters on every linear layer but the output (full: every weight)."""
    device = "cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    model = load_causal(folder, nf4=method == "qlora", dtype=dtype, device=device)
    if method == "full":
        whole: nn.Module = model.float()
        return whole
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if method == "qlora":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=stage.checkpointing
        )
    elif stage.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    adapters = LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    tuned: nn.Module = get_peft_model(model, adapters)
    for p in trained(tuned).values():  # adapters stay fp32 beside a bf16 base
        p.data = p.data.float()
    return tuned
