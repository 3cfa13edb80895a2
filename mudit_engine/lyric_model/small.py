"""The small lyric model that ships: a causal language model on characters, in plain torch.

The network is Qwen3's (RMS norms, rotary positions, gated MLP, norms on queries and keys), so that
its folder is one of transformers' too; nothing but torch is needed to run it here.

    model = CharacterModel.load(SHIPPED)
    past = model.read(model.encode("..."))        past.logits_V
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.errors import ModelError
from mudit_engine.lyric_model.prompts import END

SHIPPED = Path(__file__).parent.parent / "assets" / "lyrics" / "small"


@dataclass(frozen=True)
class Past:
    """What was read: keys and values of every layer [K, H, T, D], and the logits of what comes next
    [K, V]. Continuing it leaves it as it was.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    logits_KV: Tensor

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2]


class CharacterModel:
    """A trained model of characters and its vocabulary."""

    borrows_ends = True  # rhyming lines end in a phrase of the templates that it learned from

    def __init__(
        self, config: dict[str, Any], weights: dict[str, Tensor], document: dict[str, Any]
    ) -> None:
        self.config, self.name = config, "small"
        self.weights = {name: value.float() for name, value in weights.items()}
        self.vocabulary: dict[str, int] = dict(document["model"]["vocab"])
        self.marks = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
        self.unknown = self.vocabulary[document["model"]["unk_token"]]
        self.end = self.marks[END]
        self.size = self.weights["model.embed_tokens.weight"].shape[0]
        self.max_tokens = int(config["max_position_embeddings"])
        longest_first = sorted(self.marks, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, longest_first)))
        self.texts = {n: text for text, n in (self.vocabulary | self.marks).items()}

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> CharacterModel:
        """The model of a folder in transformers' layout. Raises ModelError."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            weights = load_file(folder / "model.safetensors")
        except (OSError, ValueError) as error:
            raise ModelError(f"lyric model '{folder}' cannot be read: {error}") from None
        if config.get("model_type") != "qwen3" or document["model"]["type"] != "WordLevel":
            raise ModelError(
                f"'{folder}' is no small lyric model (a Qwen3 on characters, as `mudit lyrics "
                f"train --base scratch` makes)"
            )
        return cls(config, weights, document)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import llguidance

        marks = sorted({*self.marks.values(), self.unknown})
        special = set(marks)
        tokens = [
            b"" if n in special or n not in self.texts else self.texts[n].encode()
            for n in range(self.size)
        ]
        model = self

        class Bytes:
            eos_token_id, bos_token_id, special_token_ids = model.end, None, marks

            def __init__(self) -> None:
                self.tokens = [token or f"<|{n}|>".encode() for n, token in enumerate(tokens)]

            def __call__(self, text: bytes | str) -> list[int]:
                return model.encode(text.decode() if isinstance(text, bytes) else text)

        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(Bytes()), n_vocab=self.size, slices=[]
        )

    def tokenizer(self) -> Any:
        """The vocabulary as llguidance reads it."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        """Tokens of a text: fixed pieces, then single characters."""
        found: list[int] = []
        place = 0
        for match in [*self._marks.finditer(text), None]:
            end = len(text) if match is None else match.start()
            found += [self.vocabulary.get(char, self.unknown) for char in text[place:end]]
            if match is not None:
                found.append(self.marks[match[0]])
                place = match.end()
        return found

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.texts.get(token, "") for token in tokens)

    def read(self, tokens: list[int], past: Past | None = None) -> Past:
        """Reads further tokens [T] of one text."""
        return self._forward(torch.tensor([tokens]), past)

    def branch(self, past: Past, count: int) -> Past:
        """The same past, `count` times."""
        layers = tuple(
            (keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1))
            for keys, values in past.layers
        )
        return Past(layers, past.logits_KV.expand(count, -1))

    def step(self, branches: Past, tokens: list[int]) -> Past:
        """One further token for each branch."""
        return self._forward(torch.tensor(tokens)[:, None], branches)

    @torch.inference_mode()
    def _forward(self, tokens_KT: Tensor, past: Past | None) -> Past:
        w, c = self.weights, self.config
        heads, width = c["num_attention_heads"], c["head_dim"]
        shared = c["num_key_value_heads"]
        start = 0 if past is None else past.length
        cos_TD, sin_TD = self._angles(start, tokens_KT.shape[1])
        x = F.embedding(tokens_KT, w["model.embed_tokens.weight"])
        layers = []
        for number in range(c["num_hidden_layers"]):
            name = f"model.layers.{number}"
            y = self._norm(x, f"{name}.input_layernorm")
            q, k, v = (
                F.linear(y, w[f"{name}.self_attn.{part}_proj.weight"])
                .unflatten(-1, (count, width))
                .transpose(1, 2)
                for part, count in (("q", heads), ("k", shared), ("v", shared))
            )
            q = _rotate(self._norm(q, f"{name}.self_attn.q_norm"), cos_TD, sin_TD)
            k = _rotate(self._norm(k, f"{name}.self_attn.k_norm"), cos_TD, sin_TD)
            if past is not None:
                k = torch.cat([past.layers[number][0], k], 2)
                v = torch.cat([past.layers[number][1], v], 2)
            layers.append((k, v))
            rows, seen = q.shape[2], k.shape[2]
            mask = torch.ones(rows, seen, dtype=torch.bool).tril(seen - rows)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, enable_gqa=heads != shared
            )
            mixed = mixed.transpose(1, 2).flatten(2)
            x = x + F.linear(mixed, w[f"{name}.self_attn.o_proj.weight"])
            y = self._norm(x, f"{name}.post_attention_layernorm")
            gate = F.silu(F.linear(y, w[f"{name}.mlp.gate_proj.weight"]))
            up = F.linear(y, w[f"{name}.mlp.up_proj.weight"])
            x = x + F.linear(gate * up, w[f"{name}.mlp.down_proj.weight"])
        last = self._norm(x[:, -1], "model.norm")
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return Past(tuple(layers), F.linear(last, head))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.config["rms_norm_eps"]
        )

    def _angles(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        width = self.config["head_dim"]
        base = (self.config.get("rope_parameters") or self.config)["rope_theta"]
        inverse = base ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = torch.arange(start, start + count, dtype=torch.float32)[:, None] * inverse
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
