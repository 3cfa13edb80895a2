"""CLaMP 3, read from its published weights, for which there is no package: how near a song is to a
text of any of a hundred languages.

    clamp = Clamp3.load(Path("weights_clamp3_saas.pth"), mert="m-a-p/MERT-v1-95M")
    clamp.similarity(audio_cS, 44100, "一首慢的钢琴曲")                      # a cosine

    audio: MERT, all layers averaged, a row for each 5 s -> BERT over the rows -> mean -> projection
    text:  XLM-RoBERTa -> mean over tokens -> projection

Sizes come from the shapes of the weights. A song or text that is longer than the towers is heard in
parts, whose vectors are averaged by their lengths; the last part reaches back to be whole, and
counts as what it adds. The symbolic tower is left out. The tests hold this to tiny weights of the
published names; the published ones have not been run here. Licence of the weights: MIT; those of
MERT are for non-commercial use (CC BY-NC 4.0).

Source: Wu et al. 2025, "CLaMP 3: Universal Music Information Retrieval Across Unaligned Modalities
and Unseen Languages", arXiv 2502.10362.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mudit_engine.availability import require
from mudit_engine.errors import InputError, ModelError
from mudit_engine.metrics.embeddings import MERT_SECONDS, loaded, mono
from mudit_engine.metrics.published_weights import fill, readable, tensors_of, under

HEAD_WIDTH = 64
TEXT_TOKENS = 128  # of a part of a text
TEXT_MODEL = "FacebookAI/xlm-roberta-base"  # the tokenizer and the shape of the text tower


class Clamp3:
    """Both towers and MERT in front of the audio's. Make one with `load`."""

    def __init__(
        self, weights: Mapping[str, Tensor], *, tokenizer: Any, text: nn.Module, mert: Any
    ) -> None:
        """tokenizer, text: XLM-RoBERTa's, whose weights are replaced. mert: (model, its sample
        rate). Raises ModelError for weights of other names or shapes.
        """
        from transformers import BertConfig, BertModel

        own = under(weights, "audio_model.")
        try:
            rows = own["embeddings.position_embeddings.weight"]
            layers = 1 + max(
                int(found[1]) for name in own if (found := re.match(r"encoder\.layer\.(\d+)", name))
            )
            inner = own["encoder.layer.0.intermediate.dense.weight"]
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"these are no weights of CLaMP 3 ({error} is missing): give its "
                "weights_clamp3_*.pth"
            ) from None
        self.most, width = rows.shape
        self.audio: Any = BertModel(
            BertConfig(
                vocab_size=1,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=max(1, width // HEAD_WIDTH),
                intermediate_size=inner.shape[0],
                max_position_embeddings=self.most,
            )
        )
        self.text: Any = text
        self.tokenizer, (self.mert, self.rate) = tokenizer, mert
        self.heads = {}
        for name, tower in (("audio", self.audio), ("text", self.text)):
            _fill(tower, under(weights, f"{name}_model."), f"the {name} tower")
            matrix = weights.get(f"{name}_proj.weight", torch.zeros(1, 1))
            self.heads[name] = nn.Linear(matrix.shape[1], matrix.shape[0])
            _fill(self.heads[name], under(weights, f"{name}_proj."), f"the head {name}_proj")
        for module in (self.audio, self.text, *self.heads.values()):
            module.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, path: Path, *, mert: str, text: str = TEXT_MODEL, trust_remote_code: bool = False
    ) -> Clamp3:
        """Of its .pth, or of the same tensors as safetensors.

        Args:
            path: the weights.
            mert: folder or hub id of MERT-v1-95M, whose own code runs only with trust_remote_code.
            text: folder or hub id of XLM-RoBERTa, for its tokenizer and sizes.
            trust_remote_code: whether code that comes with MERT may run.

        Raises:
            MissingError: without transformers.
            ModelError: for what cannot be read or does not fit.
        """
        require("transformers", "CLaMP 3")
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoTokenizer

        remedy = "download a weights_clamp3_*.pth of sander-wood/clamp3 and give its path"
        with readable(path, "CLaMP 3", remedy):
            weights = tensors_of(path)
        trust = {"trust_remote_code": trust_remote_code}
        hears = loaded(AutoModel, mert, **trust).eval()
        rate = int(loaded(AutoFeatureExtractor, mert, **trust).sampling_rate)
        tower = AutoModel.from_config(loaded(AutoConfig, text))
        return cls(weights, tokenizer=loaded(AutoTokenizer, text), text=tower, mert=(hears, rate))

    def similarity(self, audio_cS: Tensor, sample_rate: int, text: str) -> float:
        """Cosine of a song [channels, samples] and a text. Raises InputError for an empty one."""
        return float(self.encode_audio(audio_cS, sample_rate) @ self.encode_text(text))

    @torch.inference_mode()
    def encode_audio(self, audio_cS: Tensor, sample_rate: int) -> Tensor:
        """A unit vector [D]."""
        wave = mono(audio_cS, sample_rate, self.rate)
        wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        parts = list(wave.split(round(MERT_SECONDS * self.rate)))
        # less than a second says little, as it does there
        parts = parts[:-1] if len(parts) > 1 and len(parts[-1]) < self.rate else parts
        rows = []
        for part in parts:
            states = self.mert(part[None], output_hidden_states=True).hidden_states
            rows.append(torch.stack(states)[:, 0].mean((0, 1)))
        nothing = torch.zeros(1, len(rows[0]))
        given_ND = torch.cat((nothing, torch.stack(rows), nothing))
        return self._pooled(
            given_ND, self.most, "audio", lambda part: self.audio(inputs_embeds=part[None])
        )

    @torch.inference_mode()
    def encode_text(self, text: str) -> Tensor:
        """A unit vector [D]. Lines of a text are read as sentences of one. Raises InputError for an
        empty text.
        """
        lines = list(dict.fromkeys(line for line in text.splitlines() if line.strip()))
        if not lines:
            raise InputError("the text is empty: CLaMP 3 compares songs with something said")
        ids = torch.tensor(self.tokenizer(self.tokenizer.sep_token.join(lines))["input_ids"])
        return self._pooled(ids, TEXT_TOKENS, "text", lambda part: self.text(part[None]))

    def _pooled(
        self, given: Tensor, most: int, name: str, tower: Callable[[Tensor], Any]
    ) -> Tensor:
        found = torch.zeros(self.heads[name].out_features)
        for start in range(0, len(given), most):
            counts = min(most, len(given) - start)
            # the last part reaches back to its full length
            part = given[start : start + most] if counts == most else given[-most:]
            said = tower(part).last_hidden_state[0].mean(0)
            found += counts * self.heads[name](said)
        return F.normalize(found, dim=0)


def _fill(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    # buffers that older versions of transformers kept among the weights
    given = {n: v for n, v in weights.items() if not n.endswith(("position_ids", "token_type_ids"))}
    remedy = "give weights_clamp3_*.pth, and the XLM-RoBERTa it was made of"
    fill(module, given, f"{what} of CLaMP 3", remedy)
