"""The graphs that leave PyTorch: the model's own forward on the dense layout
(mudit_engine/layouts/dense.py), and nothing else.

    once a song
      modulation   times, seconds, user types of all steps    -> modulation rows
      lyric_kv     phonemes and their places                  -> lyric rows, their keys and values
      conditions   descriptions, reference frames, outline    -> embedded rows
      chinmu_text  characters                                 -> description vectors
    every step
      step         latents, conditions, sampler coefficients  -> next latents, next kept output
    every chunk
      vae_decode   latents, number of phase refinements       -> audio

`step` is the network, guidance and the sampler's row: coefficients are inputs, so every sampler is
this graph. A song without guidance at a step names its conditional sequence as its unconditional
one, so guidance intervals need no second graph.

    spec = graphs(model, precision="fp32", opset=20)["step"]
    torch.onnx.export(spec.module, spec.example, dynamic_shapes=spec.dynamic, ...)

Shapes: S songs, B sequences, T target rows, E other rows of a sequence (descriptions, reference), L
lyric keys, M blocks, H heads, K head width, D width, C latent channels, R modulation rows, F
fragments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mudit_engine.layouts.dense import DenseKeys, DenseLayout
from mudit_engine.models.chinmu import CharacterEncoder, ChinMu
from mudit_engine.models.dit import DiT, Modulation
from mudit_engine.models.outline import TOKENS, OutlineRows, outline_width
from mudit_engine.models.vae import SpectralVAE

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GRAPHS = ("modulation", "lyric_kv", "conditions", "step", "vae_decode", "chinmu_text")


class TorchGraphs:
    """The graphs before they leave PyTorch, as a session (runtime/graph_denoiser.py): the layout's
    share of any difference.
    """

    def __init__(
        self,
        dit: DiT,
        vae: SpectralVAE,
        chinmu: ChinMu,
        *,
        precision: Precision = "fp32",
        expanded: bool = False,
    ) -> None:
        makers = graphs(dit, vae, chinmu, precision=precision, expanded=expanded)
        self.modules = {name: make().module.eval() for name, make in makers.items()}

    @torch.inference_mode()
    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = self.modules[graph](**inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True)
class Graph:
    """A module to be traced. `inputs` maps a name to an example; `dynamic` to the names of its
    dynamic axes.

    unrolled: how often the body of its loop stands in the graph instead of the loop.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    unrolled: int = 0


class ModulationGraph(nn.Module):
    """(base [R, 6 D] or [R, M, 6 D], final [R, 2 D]) of R steps."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(
        self, times: Tensor, seconds: Tensor, user: Tensor, pooled: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        modulation = self.dit.modulate(times, seconds, user, pooled)
        return modulation.base, modulation.final


class LyricGraph(nn.Module):
    """Lyric rows [L, E], keys and values [M, L, H, K] of one song; tables are (cos, sin) side by
    side in fp32.
    """

    def __init__(self, dit: DiT, *, expanded: bool) -> None:
        super().__init__()
        self.dit, self.expanded = dit, expanded

    def forward(
        self, ids: Tensor, mask: Tensor, token_tables: Tensor, share_tables: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        cos, sin = token_tables[None].chunk(2, -1)
        lyrics_1LE = self.dit.lyric_rows(ids[None], cos, sin, DenseKeys(mask[None], self.expanded))
        cos, sin = share_tables[None].chunk(2, -1)
        kv = [block.lyric_kv(lyrics_1LE, cos, sin) for block in self.dit.blocks]
        return lyrics_1LE[0], torch.cat([k for k, _ in kv]), torch.cat([v for _, v in kv])


class ConditionGraph(nn.Module):
    """Rows of descriptions and reference frames [F + frames, D] of one song, and of its outline [T,
    D] for a model that takes one.
    """

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(
        self,
        descriptions: Tensor,
        reference: Tensor,
        reference_kind: Tensor,
        features: Tensor | None = None,
        tokens: Tensor | None = None,
        weights: Tensor | None = None,
        lyrics: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        dit, dtype = self.dit, self.dit.final.weight.dtype
        described = (
            dit.description_in(descriptions.to(dtype))
            + dit.description_index.weight[: descriptions.shape[0]]
        )
        referenced = dit.reference_in(reference.to(dtype)) + dit.reference_kind(reference_kind)
        rows = torch.cat((described, referenced))
        if features is None or tokens is None or weights is None or lyrics is None:
            return (rows,)
        outline = OutlineRows(features.to(dtype), tokens, weights.to(dtype), features[:, 0])
        outlined = dit.embed_outline(outline, lyrics)
        assert outlined is not None
        return rows, outlined


class StepGraph(nn.Module):
    """One sampler row of S songs: network on B sequences, guidance, update."""

    def __init__(self, dit: DiT, *, expanded: bool) -> None:
        super().__init__()
        self.dit, self.expanded = dit, expanded

    def forward(
        self,
        x: Tensor,
        kept: Tensor,
        noise: Tensor,
        coefficients: Tensor,
        song: Tensor,
        unconditional: Tensor,
        target_rows: Tensor,
        other_rows: Tensor,
        target_mask: Tensor,
        other_mask: Tensor,
        target_tables: Tensor,
        other_tables: Tensor,
        lyric_keys: Tensor,
        lyric_values: Tensor,
        lyric_mask: Tensor,
        base: Tensor,
        final: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """x, kept, noise [S, T, C] fp32; coefficients [S, 7]; song [B] and unconditional [S] are
        rows of x and of the sequences.

        target_rows [B, T, D], other_rows [B, E, D], their masks [B, T] and [B, E], their tables [B,
        T or E, 2 K] (cos and sin of the frame, cos and sin of the share of the song); lyric_keys
        and lyric_values [M, B, L, H, K], lyric_mask [B, L]; modulation [B, ...].
        """
        dit = self.dit
        latents_BTD = dit.target_in(x.to(dit.final.weight.dtype))[song]
        rows_BND = torch.cat((target_rows + latents_BTD, other_rows), 1)
        cos, sin, cross_cos, cross_sin = torch.cat((target_tables, other_tables), 1)[None].chunk(
            4, -1
        )
        keys = DenseKeys(torch.cat((target_mask, other_mask), 1), self.expanded)
        layout = DenseLayout(
            cos, sin, cross_cos, cross_sin, keys, DenseKeys(lyric_mask, self.expanded), x.shape[1]
        )
        kv = list(zip(lyric_keys.unbind(), lyric_values.unbind(), strict=True))
        out_BTC = dit.trunk(rows_BND, Modulation(base, final), kv, layout).float()
        conditional, other = out_BTC[: x.shape[0]], out_BTC[unconditional]
        a, b, c, d, p, q, w = (one[:, None, None] for one in coefficients.unbind(1))
        out = other + w * (conditional - other)
        return a * x + b * out + c * kept + d * noise, p * x + q * out


class DecodeGraph(nn.Module):
    """Normalised latents [1, T, C] to audio [1, channels, T hop]. The inverse STFT is a matrix
    product and shifted adds.

    A codec that refines its phases loops over Griffin-Lim's steps; their number is an input, or
    what the configuration says without one.
    """

    def __init__(self, vae: SpectralVAE, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae)
        self.vae.stft.set_transform("matrix")
        self.vae.decoder.to(dtype)

    def forward(self, latents: Tensor, refinements: Tensor | None = None) -> Tensor:
        # statistics and phases stay fp32: only the decoder's layers run in the graph's precision
        vae = self.vae
        spectrum = vae.spectrum(vae.denormalise(latents))
        return vae.synthesise(
            spectrum,
            refinements=vae.config.phase_refinements if refinements is None else refinements,
        )


class TextGraph(nn.Module):
    """Character and pair rows [F, P] of fragments, padded where mask is False, to their unit
    vectors [F, embedding], fp32.
    """

    def __init__(self, text: CharacterEncoder, dtype: torch.dtype, *, expanded: bool) -> None:
        super().__init__()
        self.text, self.expanded = copy.deepcopy(text).to(dtype), expanded

    def forward(self, characters: Tensor, pairs: Tensor, mask: Tensor, tables: Tensor) -> Tensor:
        tower = self.text.tower
        x_FPD = self.text.single(characters) + self.text.pair(pairs)
        cos, sin = tables[None].chunk(2, -1)
        keys = DenseKeys(mask, self.expanded)
        for block in tower.blocks:
            x_FPD = block(x_FPD, keys, cos, sin)
        counted_FP1 = mask[..., None].float()
        mean_FD = (tower.norm(x_FPD).float() * counted_FP1).sum(1) / counted_FP1.sum(1)
        return nn.functional.normalize(tower.project(mean_FD.to(x_FPD.dtype)).float(), dim=-1)


def graphs(
    dit: DiT,
    vae: SpectralVAE,
    chinmu: ChinMu,
    *,
    precision: Precision = "fp32",
    expanded: bool = False,
) -> dict[str, Callable[[], Graph]]:
    """Makers of every graph of a model, by name: one at a time, so that a large model is held once.

    ChinMu's text tower is a graph when it reads characters; a transformers encoder is exported by
    its own library.

    Args:
        dit: the song transformer.
        vae: the codec.
        chinmu: the encoder of descriptions.
        precision: of the graphs: "fp32", "bf16" or "fp16".
        expanded: whether masks are written out for every query row (`DenseKeys`), as ONNX Runtime
            wants them.

    Returns:
        For each of modulation, lyric_kv, conditions, step, vae_decode and chinmu_text a function
        that makes the graph: its module, example inputs and dynamic axes.

    Examples:
        >>> from mudit_engine.runtime.load import open_model
        >>> opened = open_model("tiny", dtype=torch.float32)
        >>> makers = graphs(opened.runtime.dit, opened.vae, opened.chinmu)
        >>> sorted(makers)
        ['chinmu_text', 'conditions', 'lyric_kv', 'modulation', 'step', 'vae_decode']
    """
    dtype = DTYPES[precision]
    makers: dict[str, Callable[[], Graph]] = {
        "modulation": lambda: _modulation(dit),
        "lyric_kv": lambda: _lyric(dit, expanded),
        "conditions": lambda: _conditions(dit),
        "step": lambda: _step(dit, dtype, expanded),
        "vae_decode": lambda: _decode(vae, dtype),
    }
    if isinstance(chinmu.text, CharacterEncoder):
        makers["chinmu_text"] = lambda: _text(chinmu, dtype, expanded)
    return makers


def _modulation(dit: DiT) -> Graph:
    example = {
        "times": torch.linspace(1, 0.1, 5),
        "seconds": torch.full((5,), 30.0),
        "user": torch.zeros(5, dtype=torch.int64),
    }
    if dit.config.pooled_description:
        example["pooled"] = torch.zeros(5, dit.config.description_width)
    return Graph(
        ModulationGraph(dit), example, {name: {0: "rows"} for name in example}, ("base", "final")
    )


def _lyric(dit: DiT, expanded: bool) -> Graph:
    c, length = dit.config, 7
    example = {
        "ids": torch.arange(length),
        "mask": torch.ones(length, dtype=torch.bool),
        "token_tables": torch.zeros(length, c.lyric_head_dim),
        "share_tables": torch.zeros(length, c.head_dim),
    }
    return Graph(
        LyricGraph(dit, expanded=expanded),
        example,
        {name: {0: "tokens"} for name in example},
        ("lyrics", "keys", "values"),
    )


def _conditions(dit: DiT) -> Graph:
    c, dtype = dit.config, dit.final.weight.dtype
    example: dict[str, Tensor] = {
        "descriptions": torch.zeros(3, c.description_width),
        "reference": torch.zeros(5, c.latent_channels),
        "reference_kind": torch.tensor([0]),
    }
    dynamic: dict[str, dict[int, str]] = {
        "descriptions": {0: "fragments"},
        "reference": {0: "reference_frames"},
        "reference_kind": {},
    }
    outputs = ["rows"]
    if c.outline:
        frames = 11
        example |= {
            "features": torch.zeros(frames, outline_width(c)),
            "tokens": torch.zeros(frames, TOKENS, dtype=torch.int64),
            "weights": torch.zeros(frames, TOKENS),
            "lyrics": torch.zeros(7, c.lyric_width, dtype=dtype),
        }
        dynamic |= {
            "features": {0: "frames"},
            "tokens": {0: "frames"},
            "weights": {0: "frames"},
            "lyrics": {0: "tokens_of_song"},
        }
        outputs.append("outlined")
    return Graph(ConditionGraph(dit), example, dynamic, tuple(outputs))


def _step(dit: DiT, dtype: torch.dtype, expanded: bool) -> Graph:
    c = dit.config
    songs, sequences, targets, others, lyrics = 2, 4, 11, 5, 7
    base = (6 * c.width,) if c.modulation == "shared" else (c.blocks, 6 * c.width)
    example = {
        "x": torch.zeros(songs, targets, c.latent_channels),
        "kept": torch.zeros(songs, targets, c.latent_channels),
        "noise": torch.zeros(songs, targets, c.latent_channels),
        "coefficients": torch.zeros(songs, 7),
        "song": torch.tensor([0, 1, 0, 1]),
        "unconditional": torch.tensor([2, 3]),
        "target_rows": torch.zeros(sequences, targets, c.width, dtype=dtype),
        "other_rows": torch.zeros(sequences, others, c.width, dtype=dtype),
        "target_mask": torch.ones(sequences, targets, dtype=torch.bool),
        "other_mask": torch.ones(sequences, others, dtype=torch.bool),
        "target_tables": torch.zeros(sequences, targets, 2 * c.head_dim),
        "other_tables": torch.zeros(sequences, others, 2 * c.head_dim),
        "lyric_keys": torch.zeros(c.blocks, sequences, lyrics, c.heads, c.head_dim, dtype=dtype),
        "lyric_values": torch.zeros(c.blocks, sequences, lyrics, c.heads, c.head_dim, dtype=dtype),
        "lyric_mask": torch.ones(sequences, lyrics, dtype=torch.bool),
        "base": torch.zeros(sequences, *base, dtype=dtype),
        "final": torch.zeros(sequences, 2 * c.width, dtype=dtype),
    }
    song, sequence, target, other, lyric = "songs", "sequences", "targets", "others", "lyrics"
    dynamic: dict[str, dict[int, str]] = {
        name: {0: song, 1: target} for name in ("x", "kept", "noise")
    }
    dynamic |= {"coefficients": {0: song}, "song": {0: sequence}, "unconditional": {0: song}}
    dynamic |= {f"target_{name}": {0: sequence, 1: target} for name in ("rows", "mask", "tables")}
    dynamic |= {f"other_{name}": {0: sequence, 1: other} for name in ("rows", "mask", "tables")}
    dynamic |= {f"lyric_{name}": {1: sequence, 2: lyric} for name in ("keys", "values")}
    dynamic |= {
        "lyric_mask": {0: sequence, 1: lyric},
        "base": {0: sequence},
        "final": {0: sequence},
    }
    return Graph(StepGraph(dit, expanded=expanded), example, dynamic, ("next_x", "next_kept"))


def _decode(vae: SpectralVAE, dtype: torch.dtype) -> Graph:
    example: dict[str, Any] = {"latents": torch.zeros(1, 9, vae.config.latent_channels)}
    steps = vae.config.phase_refinements
    if steps and dtype == torch.float32:
        example["refinements"] = torch.tensor(steps)
    # a CUDA graph holds no loop that the host decides: TensorRT's flavours take the steps one after
    # the other
    return Graph(
        DecodeGraph(vae, dtype),
        example,
        {"latents": {1: "frames"}},
        ("audio",),
        unrolled=steps if dtype != torch.float32 else 0,
    )


def _text(chinmu: ChinMu, dtype: torch.dtype, expanded: bool) -> Graph:
    assert isinstance(chinmu.text, CharacterEncoder)
    fragments, length = 3, 6
    rows = torch.arange(fragments * length).view(fragments, length)
    example = {
        "characters": rows,
        "pairs": rows + 1,
        "mask": torch.ones_like(rows, dtype=torch.bool),
    }
    dynamic = {name: {0: "fragments", 1: "characters"} for name in example} | {
        "tables": {0: "characters"}
    }
    example["tables"] = torch.zeros(length, chinmu.text.tower.head_dim)
    return Graph(TextGraph(chinmu.text, dtype, expanded=expanded), example, dynamic, ("vectors",))
