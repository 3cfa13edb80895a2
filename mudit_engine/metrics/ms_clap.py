"""MS-CLAP, read from its published weights; its package pins old versions of numpy and of
transformers.

    clap = MsClap.load(Path("CLAP_weights_2023.pth"))
    rows_ND = clap.windows(audio_cS, 44100)                     # a row for each 7 s
    clap.encode_text(["a slow piano ballad"])                   # needs GPT-2's tokenizer

    audio: mel of 64 bands -> HTSAT (a Swin transformer over an image of 256 x 256) -> mean -> head
    text:  GPT-2 -> state of the last token -> head
    head:  e = linear1(x);  layer_norm(e + linear2(gelu(e)))

The towers are those of transformers (CLAP's audio encoder is HTSAT too), filled by name; sizes come
from the shapes. The mel filters are those in the weights, whatever rate they were made for. The
tests hold this to weights of the published names and shapes; the published ones have not been run
here. Licence of the weights: MIT (Microsoft).

Source: Elizalde et al. 2023, "Natural language supervision for general-purpose audio
representations"; Chen et al. 2022, HTS-AT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mudit_engine.audio import resample
from mudit_engine.availability import require
from mudit_engine.errors import InputError, ModelError
from mudit_engine.metrics.published_weights import fill, readable, tensors_of, under

RATE, N_FFT, HOP, MELS, SECONDS = 44100, 1024, 320, 64, 7
SPEC_SIZE, TEXT_TOKENS, HEAD_WIDTH = 256, 77, 64
END = " <|endoftext|>"
AUDIO, TEXT = "audio_encoder.", "caption_encoder."
MEL = f"{AUDIO}base.htsat.logmel_extractor.melW"
# what of HTSAT is no part of its embedding, or is made anew
_LEFT_OUT = re.compile(r"(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|.*attn_mask$")
_RENAMED = (
    (r"^bn0\.", "batch_norm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.relative", ".attention.self.relative"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


class Projection(nn.Module):
    """The head of a tower."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, embedding, bias=False)
        self.linear2 = nn.Linear(embedding, embedding, bias=False)
        self.layer_norm = nn.LayerNorm(embedding)

    def forward(self, x_ND: Tensor) -> Tensor:
        first = self.linear1(x_ND)
        return self.layer_norm(first + self.linear2(F.gelu(first)))


class MsClap:
    """Both towers. Make one with `load` or of a state dict."""

    def __init__(self, weights: Mapping[str, Tensor], *, tokenizer: str = "gpt2") -> None:
        """tokenizer: folder or hub id of GPT-2's, loaded when a text is first encoded. Raises
        ModelError for weights of other names or shapes, MissingError without transformers.
        """
        require("transformers", "MS-CLAP")
        from transformers import ClapAudioConfig, ClapAudioModel, GPT2Config, GPT2Model

        try:
            self.filters_FM = weights[MEL].float()
            htsat = _htsat(weights)
            patch = weights[f"{AUDIO}base.htsat.patch_embed.proj.weight"]
            layers = _count(htsat, r"audio_encoder\.layers\.(\d+)\.")
            table = "audio_encoder.layers.{}.blocks.0.attention.self.relative_position_bias_table"
            tables = [htsat[table.format(n)] for n in range(layers)]
            text = under(weights, f"{TEXT}base.", r".*\.attn\.(masked_)?bias$")
            words, places = text["wte.weight"], text["wpe.weight"]
        except KeyError as error:
            raise ModelError(
                f"these are no weights of MS-CLAP 2023: {error} is missing. Give its "
                "CLAP_weights_2023.pth"
            ) from None
        depths = [
            _count(htsat, rf"audio_encoder\.layers\.{n}\.blocks\.(\d+)\.") for n in range(layers)
        ]
        self.audio: Any = ClapAudioModel(
            ClapAudioConfig(
                num_mel_bins=self.filters_FM.shape[1],
                spec_size=SPEC_SIZE,
                patch_size=patch.shape[2],
                patch_stride=list(patch.shape[2:]),
                patch_embeds_hidden_size=patch.shape[0],
                hidden_size=patch.shape[0] * 2 ** (layers - 1),
                window_size=(round(tables[0].shape[0] ** 0.5) + 1) // 2,
                depths=depths,
                num_attention_heads=[one.shape[1] for one in tables],
                num_hidden_layers=layers,
            )
        )
        self.text: Any = GPT2Model(
            GPT2Config(
                vocab_size=words.shape[0],
                n_positions=places.shape[0],
                n_embd=words.shape[1],
                n_layer=_count(text, r"h\.(\d+)\."),
                n_head=max(1, words.shape[1] // HEAD_WIDTH),
            )
        )
        self.heads = {}
        _fill(self.audio, htsat, "the audio tower", may_lack=r".*relative_position_index$")
        _fill(self.text, text, "the text tower")
        for prefix in (AUDIO, TEXT):
            own = under(weights, f"{prefix}projection.")
            first = own.get("linear1.weight", torch.zeros(1, 1))
            self.heads[prefix] = Projection(first.shape[1], first.shape[0])
            _fill(self.heads[prefix], own, f"the head '{prefix}projection'")
        for module in (self.audio, self.text, *self.heads.values()):
            module.eval().requires_grad_(False)
        self._source = tokenizer
        self._tokenizer: Any = None

    @classmethod
    def load(cls, path: Path, *, tokenizer: str = "gpt2") -> MsClap:
        """Of CLAP_weights_2023.pth, or of the same tensors as safetensors. Raises ModelError."""
        remedy = "download CLAP_weights_2023.pth of microsoft/msclap and give its path"
        with readable(path, "MS-CLAP", remedy):
            return cls(tensors_of(path), tokenizer=tokenizer)

    @torch.inference_mode()
    def windows(self, audio_cS: Tensor, sample_rate: int) -> Tensor:
        """A row for each 7 s of audio [channels, samples]; what is shorter is repeated."""
        mono = resample(audio_cS.mean(0, keepdim=True).float(), sample_rate, RATE)[0]
        size = SECONDS * RATE
        parts = list(mono.split(size))
        # a short rest would be repeated often and say little
        parts = parts[:-1] if len(parts) > 1 and len(parts[-1]) < size // 2 else parts
        whole = [part.repeat(-(-size // max(1, len(part))))[:size] for part in parts]
        rows = [self._heard(part) for part in whole]
        return torch.cat(rows)

    def _heard(self, mono_S: Tensor) -> Tensor:
        window = torch.hann_window(N_FFT)
        power = torch.stft(mono_S, N_FFT, HOP, window=window, return_complex=True).abs().square()
        mel_TM = 10 * torch.log10((power.T @ self.filters_FM).clamp_min(1e-10))
        # [songs, 1, frames, bands], of which none is "longer": that is another CLAP's
        heard = self.audio(mel_TM[None, None], is_longer=torch.zeros(1, 1, dtype=torch.bool))
        return self.heads[AUDIO](heard.pooler_output)

    def encode_audio(self, songs: Sequence[Tensor], sample_rate: int) -> Tensor:
        """Unit vectors [N, D] of songs: means of their windows' unit vectors."""
        rows = [F.normalize(self.windows(song, sample_rate), dim=-1).mean(0) for song in songs]
        return F.normalize(torch.stack(rows), dim=-1)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, D]. Raises InputError for an empty text, ModelError when GPT-2's
        tokenizer cannot be loaded.
        """
        if not all(text.strip() for text in texts):
            raise InputError("a text is empty: write at least one word")
        rows = []
        for text in texts:
            # as published: the state before the padding, which is token 0
            ids = self.tokens(text + END)
            states = self.text(input_ids=torch.tensor([ids])).last_hidden_state[0]
            rows.append(states[max(0, sum(one != 0 for one in ids) - 1)])
        return F.normalize(self.heads[TEXT](torch.stack(rows)), dim=-1)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, at most 77."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._source)
            except (OSError, ValueError) as error:
                raise ModelError(
                    f"the tokenizer '{self._source}' cannot be loaded "
                    f"({str(error).splitlines()[0]}): MS-CLAP reads texts by GPT-2's; give its "
                    "folder, or a hub id that is reachable"
                ) from None
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids[:TEXT_TOKENS]


def _htsat(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """HTSAT's tensors by the names of transformers."""
    found = {}
    for name, value in under(weights, f"{AUDIO}base.htsat.").items():
        if _LEFT_OUT.match(name):
            continue
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        name = f"audio_encoder.{name}"
        if ".attn.qkv." in name:
            for kind, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".attention.self.{kind}.")] = part
        else:
            found[name] = value
    return found


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    numbers = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    return max(numbers) + 1 if numbers else 0


def _fill(
    module: nn.Module, weights: Mapping[str, Tensor], what: str, *, may_lack: str = r"$^"
) -> None:
    fill(module, weights, f"{what} of MS-CLAP", "give CLAP_weights_2023.pth", may_lack=may_lack)


__all__ = ["MsClap", "Projection"]
