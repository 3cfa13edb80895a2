"""A causal language model of transformers as a writer of lyrics, with or without an adapter.

model = TransformersModel.load("Qwen/Qwen3-8B")          a folder or an id of the hub
model = TransformersModel.load("runs/lyrics/model")      an adapter folder (its base is found by it)
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.availability import require
from mudit_engine.errors import ModelError
from mudit_engine.lyric_model.base import (
    adapter_base,
    check_tokenizer,
    find_base,
    is_adapter,
    read_note,
)
from mudit_engine.lyric_model.prompts import END


@dataclass(frozen=True)
class CachedPast:
    """What was read, and the logits of what comes next [K, V]. Reading on uses the cache up."""

    cache: Any
    logits_KV: Tensor


def load_causal(folder: Path, *, nf4: bool, dtype: torch.dtype, device: str) -> Any:
    """A causal language model of a folder; `nf4` quantises its linear layers as QLoRA does (NF4,
    double quantisation). Raises ModelError or MissingError.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if nf4:
        require("bitsandbytes", "a base in NF4")
        from transformers import BitsAndBytesConfig

        options["device_map"] = {"": device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"the model '{folder}' cannot be loaded: {error}") from None
    if not nf4:
        return model.to(device)
    for module in model.modules():
        # bitsandbytes 0.50.2 repacks weights in place when an AVX512-bf16 CPU first evaluates them,
        # which rounds their scales: what was evaluated once would train on other weights
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


class TransformersModel:
    """A model and its tokenizer. Raises ModelError for one that cannot be used."""

    max_tokens: int | None = None
    borrows_ends = False

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        check_tokenizer(tokenizer, name)
        self.model, self.hub_tokenizer, self.name = model.eval(), tokenizer, name
        self.end = int(tokenizer.convert_tokens_to_ids(END))
        self.size = int(model.get_output_embeddings().weight.shape[0])
        self.device = next(model.parameters()).device

    @classmethod
    def load(
        cls, source: str | Path, *, base: str | None = None, device: str | None = None
    ) -> TransformersModel:
        """A base model, or an adapter over its base. Raises ModelError or MissingError."""
        require("transformers", f"the lyric model '{source}'")
        from transformers import AutoTokenizer

        folder = Path(source)
        adapter = folder if is_adapter(folder) else None
        found = adapter_base(adapter, base=base) if adapter else find_base(source)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        # an adapter goes with the base as it was trained on it
        nf4 = adapter is not None and read_note(adapter).get("method") == "qlora"
        model = load_causal(found.folder, nf4=nf4, dtype=dtype, device=device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(found.folder)
        except (OSError, ValueError) as error:
            raise ModelError(f"the tokenizer of '{found.name}' cannot be read: {error}") from None
        if adapter is not None:
            require("peft", f"the adapter '{adapter}'")
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
        return cls(model, tokenizer, name=str(source))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self.hub_tokenizer, n_vocab=self.size)

    def tokenizer(self) -> Any:
        """The vocabulary as llguidance reads it."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.hub_tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        return str(self.hub_tokenizer.decode(tokens))

    def read(self, tokens: list[int], past: CachedPast | None = None) -> CachedPast:
        """Reads further tokens of one text."""
        return self._forward(torch.tensor([tokens]), None if past is None else past.cache)

    def branch(self, past: CachedPast, count: int) -> CachedPast:
        """The same past, `count` times; `past` stays as it was."""
        cache = copy.deepcopy(past.cache)
        cache.batch_repeat_interleave(count)
        return CachedPast(cache, past.logits_KV.expand(count, -1))

    def step(self, branches: CachedPast, tokens: list[int]) -> CachedPast:
        """One further token for each branch."""
        return self._forward(torch.tensor(tokens)[:, None], branches.cache)

    @torch.inference_mode()
    def _forward(self, tokens_KT: Tensor, cache: Any) -> CachedPast:
        out = self.model(
            input_ids=tokens_KT.to(self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return CachedPast(out.past_key_values, out.logits[:, -1].float().cpu())
