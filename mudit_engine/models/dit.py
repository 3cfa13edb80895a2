"""The song transformer: DiT and SiT are one network, told apart only by the path it is trained on.

    sequence of a song: [description tokens | reference frames | target frames]
    block (serial):     x += g1 SelfAttn(mod(LN x));  x += CrossAttn(LN x, lyrics)
                        x += g2 MLP(mod(LN x))
    block (parallel):   x += g1 W [SelfAttn(h), CrossAttn(h, lyrics)] with h = mod(LN x)
                        x += g2 MLP(mod(LN x))

All tokens of a sequence attend to each other, and to the lyrics by cross-attention. A song's
modulation comes from time, length, user type and, with pooled_description, its mean description
vector.

    out = DiT(config.dit)(batch)                # training: everything at once
    # sampling: lyric_kv once a song, modulation once a step, trunk each step (runtime/denoiser.py)

Sources: Peebles and Xie 2023 (adaLN-Zero); Ma et al. 2024 (SiT); Dehghani et al. 2023 (QK-norm).

Shapes: N packed rows, T target rows, C latent channels, D width, H heads, K head width, L lyric
tokens, E lyric width, B sequences. Angles, times and modulation inputs stay fp32; the rest runs in
the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from mudit_engine import ops
from mudit_engine.config import DitConfig
from mudit_engine.errors import InputError
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.worklist import Segments
from mudit_engine.layouts.dense import DenseKeys, DenseLayout
from mudit_engine.layouts.packed import Layout, Span, lyric_positions, make_layout
from mudit_engine.layouts.sharded import Exchange, ShardedLayout, shard
from mudit_engine.models.by_rows import by_rows, each_row, row_pieces
from mudit_engine.models.compiled import AnyRuns, compilable, compiled, plain, recorded
from mudit_engine.models.layers import EncoderBlock, fourier_features, linear_gelu
from mudit_engine.models.outline import OutlineRows, aligned, outline_width
from mudit_engine.names import REFERENCE_KINDS, USER_TYPES

TIME_FEATURES = 256
TIME_SCALE = 1000.0  # network times lie in [0, 1]; the Fourier features were made for step indices


Checkpointing = Literal["none", "full", "selective"]


@dataclass(frozen=True)
class DitBatch:
    """Inputs of B sequences, each kind packed end to end. Counts are on the host."""

    latents_TC: Tensor
    frames: Sequence[int]  # target frames of each sequence
    times_B: Tensor  # fp32 network times
    seconds_B: Tensor  # fp32 length of each song
    user_B: Tensor  # int64 index into USER_TYPES
    descriptions: Tensor  # [sum of fragments, description_width]
    fragments: Sequence[int]
    lyric_ids: Tensor  # int64 [L]
    lyrics: Sequence[int]
    references: Tensor  # [sum of reference frames, C]
    reference_frames: Sequence[int]
    # index into REFERENCE_KINDS (any value where there are no frames)
    reference_kinds: Sequence[int]
    # of all target frames; wanted by a model with config.outline
    outline: OutlineRows | None = None


class JointKeys(NamedTuple):
    """Keys and values of a parallel block in one buffer, [N + ..., H, K] each: the sequences' rows,
    which every block of every step writes, and from row `offset` on this block's lyrics.
    """

    k: Tensor
    v: Tensor
    offset: int


@dataclass(frozen=True)
class Modulation:
    """Shift, scale and gate of every block for R modulation rows, from one pass over the times."""

    base: Tensor  # [R, 6 D] (shared) or [R, blocks, 6 D] (per_block)
    final: Tensor  # [R, 2 D]

    def rows(self, index: slice | Tensor) -> Modulation:
        return Modulation(self.base[index], self.final[index])


def check_lyric_ids(ids: Sequence[int] | np.ndarray, config: DitConfig) -> None:
    """Raises InputError for an id outside the embedding. For ids on the host: the network would
    wait for the device to look at them.
    """
    if len(ids) and (last := int(np.max(ids))) >= config.vocabulary_size:
        raise InputError(
            f"lyric token {last} is outside the model's {config.vocabulary_size}: it was made with "
            f"another vocabulary"
        )


def pool_descriptions(descriptions_FE: Tensor, fragments: Sequence[int]) -> Tensor:
    """Mean description vector [B, E] of each sequence's fragments, packed end to end; zeros for a
    sequence without any.
    """
    means = [
        part.mean(0) if len(part) else part.new_zeros(part.shape[1])
        for part in descriptions_FE.split(list(fragments))
    ]
    return torch.stack(means)


class DitBlock(nn.Module):
    """One transformer block. The residual stream comes with its modulated norm, so that each norm
    is fused with the residual before it.
    """

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width, self.heads, self.parallel = (
            config.width,
            config.heads,
            config.cross_attention == "parallel",
        )
        streams = 2 if self.parallel else 1
        self.streams = streams
        self.qkv = nn.Linear(width, (streams + 2) * width, bias=False)
        self.out = nn.Linear(streams * width, width)
        self.cross_kv = nn.Linear(config.lyric_width, 2 * width, bias=False)
        if not self.parallel:
            self.cross_q = nn.Linear(width, width, bias=False)
            self.cross_out = nn.Linear(width, width)
        gain = (
            (lambda *shape: nn.Parameter(torch.ones(*shape)))
            if config.qk_norm
            else (lambda *shape: None)
        )
        self.q_gain = gain(streams, config.head_dim)
        self.k_gain = gain(config.head_dim)
        self.cross_q_gain = None if self.parallel else gain(config.head_dim)
        self.cross_k_gain = gain(config.head_dim)
        self.up = nn.Linear(width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, width)
        self.compiled = False  # models/compiled.py
        if config.modulation == "shared":
            self.table = nn.Parameter(torch.zeros(6 * width))
            self.modulation = None
        else:
            self.table = None
            self.modulation = nn.Linear(width, 6 * width)

    def lyric_kv(self, lyrics_LE: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of the lyrics, [L, H, K] each: computed once a song."""
        return ops.pack_kv(self.cross_kv(lyrics_LE), self.cross_k_gain, cos, sin, heads=self.heads)

    def forward(
        self,
        x_ND: Tensor,
        h_ND: Tensor,
        mod: tuple[Tensor, ...],
        next_shift: Tensor,
        next_scale: Tensor,
        lyrics: tuple[Tensor, Tensor] | JointKeys,
        layout: Layout | DenseLayout | ShardedLayout,
    ) -> tuple[Tensor, Tensor]:
        """x is the residual stream and h = mod(LN x) for this block; returns the same pair for the
        next one. Both are overwritten where nothing needs a gradient.
        """
        rows = compiled if self.compiled and torch.is_grad_enabled() else plain
        gate1, shift2, scale2, gate2 = mod[2:]
        joint = lyrics if isinstance(lyrics, JointKeys) else None
        q, k, v = rows(DitBlock._enter)(self, h_ND, layout.cos[0], layout.sin[0], joint)
        if self.parallel:
            offset = layout.rows
            if isinstance(lyrics, JointKeys):
                k, v, offset = lyrics
            else:
                k, v = torch.cat((k, lyrics[0]), -3), torch.cat((v, lyrics[1]), -3)
            cos, sin = layout.joint_tables()
            y = ops.attention(q, k, v, layout.joint_segments(offset), cos, sin)
            del q, k, v  # as wide as the rows each, and of no use to the MLP
        else:
            y = ops.attention(q, k, v, layout.self_segments, layout.cos, layout.sin)
            del q, k, v
            x_ND, q = rows(DitBlock._between)(self, x_ND, y, gate1, layout.runs)
            y = ops.attention(
                q, *lyrics[:2], layout.cross_segments, layout.cross_cos, layout.cross_sin
            )
            del q
            y = recorded(y) if rows is compiled else y
        tables = (gate1, shift2, scale2, gate2, next_shift, next_scale)
        return rows(DitBlock._leave)(self, x_ND, y, *tables, layout.runs)

    # What lies between the attentions of a block. It works row by row, and no part of it knows how
    # the rows lie, so that it can be compiled once for all batches (models/compiled.py).

    def _enter(
        self, h_ND: Tensor, cos: Tensor, sin: Tensor, joint: JointKeys | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention."""
        k_out = joint.k[: h_ND.shape[-2]] if joint is not None else None
        v_out = joint.v[: h_ND.shape[-2]] if joint is not None else None
        if (pieces := row_pieces(h_ND)) is None:
            return self._packed(h_ND, cos, sin, k_out, v_out)
        q, k, v = by_rows(
            lambda rows: self._packed(h_ND[rows], cos[rows], sin[rows]),
            pieces,
            into=(h_ND, k_out, v_out),
        )
        return q, k, v

    def _packed(
        self,
        h_ND: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_out: Tensor | None = None,
        v_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.pack_qkv(
            self.qkv(h_ND),
            self.q_gain,
            self.k_gain,
            cos,
            sin,
            heads=self.heads,
            q_streams=self.streams,
            k_out=k_out,
            v_out=v_out,
        )

    def _between(
        self, x_ND: Tensor, y_THK: Tensor, gate1: Tensor, runs: AnyRuns
    ) -> tuple[Tensor, Tensor]:
        """The residual stream behind self-attention, and the queries of cross-attention."""
        x_ND, h_ND = ops.residual_norm(x_ND, self.out(y_THK.flatten(-2)), gate1, None, None, runs)
        return x_ND, each_row(self._cross_queries, h_ND)

    def _cross_queries(self, h_ND: Tensor) -> Tensor:
        q = self.cross_q(h_ND).unflatten(-1, (self.heads, -1))
        return q if self.cross_q_gain is None else ops.rms_norm(q, self.cross_q_gain)

    def _leave(
        self,
        x_ND: Tensor,
        y_THK: Tensor,
        gate1: Tensor,
        shift2: Tensor,
        scale2: Tensor,
        gate2: Tensor,
        next_shift: Tensor,
        next_scale: Tensor,
        runs: AnyRuns,
    ) -> tuple[Tensor, Tensor]:
        """From the last attention's output to the residual stream and its modulated norm behind the
        block.
        """
        last, gate = (self.out, gate1) if self.parallel else (self.cross_out, None)
        x_ND, h_ND = ops.residual_norm(x_ND, last(y_THK.flatten(-2)), gate, shift2, scale2, runs)
        y_ND = each_row(lambda rows_ND: self.down(linear_gelu(self.up, rows_ND)), h_ND)
        del h_ND
        return ops.residual_norm(x_ND, y_ND, gate2, next_shift, next_scale, runs)


def joint_keys(
    kv: Sequence[Sequence[tuple[Tensor, Tensor]]], rows: int
) -> list[tuple[Tensor, Tensor] | JointKeys]:
    """One buffer for all parallel blocks: `rows` rows for the sequences, then the lyrics of every
    block. kv: of every song, the lyric keys and values of every block (DiT.lyric_kv).
    """
    counts = [len(song[0][0]) for song in kv]
    total, first = sum(counts), kv[0][0]
    shape = (rows + len(kv[0]) * total, *first[0].shape[1:])
    k, v = first[0].new_zeros(shape), first[1].new_zeros(shape)
    joint = [JointKeys(k, v, rows + block * total) for block in range(len(kv[0]))]
    for block, own in enumerate(joint):
        place = slice(own.offset, own.offset + total)
        for song, song_k, song_v in zip(
            kv, k[place].split(counts), v[place].split(counts), strict=True
        ):
            song_k.copy_(song[block][0])
            song_v.copy_(song[block][1])
    return list(joint)


class DiT(nn.Module):
    """Predicts the noise or the velocity of the target frames of any mix of songs."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.target_in = nn.Linear(config.latent_channels, width)
        self.reference_in = nn.Linear(config.latent_channels, width)
        self.reference_kind = nn.Embedding(len(REFERENCE_KINDS), width)
        self.description_in = nn.Linear(config.description_width, width)
        self.outline_in = (
            nn.Linear(outline_width(config), width, bias=False) if config.outline else None
        )
        self.sung_in = nn.Linear(config.lyric_width, width, bias=False) if config.outline else None
        self.description_index = nn.Embedding(config.max_fragments, width)
        self.time_in = nn.Sequential(
            nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.seconds_in = nn.Sequential(
            nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.user_type = nn.Embedding(len(USER_TYPES), width)
        self.pooled_in = (
            nn.Linear(config.description_width, width, bias=False)
            if config.pooled_description
            else None
        )
        self.modulation = nn.Linear(width, 6 * width) if config.modulation == "shared" else None
        self.lyric_embedding = nn.Embedding(config.vocabulary_size, config.lyric_width)
        self.lyric_blocks = nn.ModuleList(
            EncoderBlock(config.lyric_width, head_dim=config.lyric_head_dim)
            for _ in range(config.lyric_blocks)
        )
        self.lyric_norm = nn.LayerNorm(config.lyric_width)
        self.blocks = nn.ModuleList(DitBlock(config) for _ in range(config.blocks))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, config.latent_channels)
        # with the ranks that share songs, in training (training/parallel/ulysses.py)
        self.exchange: Exchange | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier matrices; adaLN-Zero: gates, modulation and the last projection start at 0, so
        that each block starts as the identity.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.lyric_embedding.weight, std=1.0)
        zeroed = [
            self.modulation,
            self.final_modulation,
            self.final,
            self.pooled_in,
            *(block.modulation for block in self.blocks),
        ]
        zeroed += (
            []
            if self.config.cross_attention == "parallel"
            else [block.cross_out for block in self.blocks]
        )
        for module in zeroed:
            if module is not None:
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def encode_lyrics(self, ids_L: Tensor, counts: Sequence[int]) -> Tensor:
        """Lyric tokens [L, E] of songs packed end to end. Ids outside the embedding: see
        check_lyric_ids.
        """
        position = [torch.arange(n, dtype=torch.float32, device=ids_L.device) for n in counts if n]
        cos, sin = rope_table(
            torch.cat(position) if position else ids_L.float(),
            self.config.lyric_head_dim,
            base=self.config.rope_base,
        )
        return self.lyric_rows(ids_L, cos, sin, Segments.self_attention(counts))

    def lyric_rows(
        self, ids_L: Tensor, cos: Tensor, sin: Tensor, segments: Segments | DenseKeys
    ) -> Tensor:
        """Lyric tokens [L, E]; tables of each token's place in its own song."""
        x_LE = self.lyric_embedding(ids_L)
        if x_LE.shape[0]:
            for block in self.lyric_blocks:
                x_LE = block(x_LE, segments, cos, sin)
        return self.lyric_norm(x_LE)

    def lyric_kv(self, lyrics_LE: Tensor, positions_L: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [L, H, K] of every block. Positions are shares of the song in (0, 1)
        (mudit_engine/layouts/packed.py).
        """
        cos, sin = rope_table(
            positions_L * self.config.lyric_rope_scale,
            self.config.head_dim,
            base=self.config.rope_base,
        )
        return [block.lyric_kv(lyrics_LE, cos, sin) for block in self.blocks]

    def modulate(
        self, times_R: Tensor, seconds_R: Tensor, user_R: Tensor, pooled_RE: Tensor | None = None
    ) -> Modulation:
        """Modulation of R (time, length, user type) rows; all steps of a song can be one call.

        pooled_RE: mean description vectors (pool_descriptions), wanted by a model with
        config.pooled_description. Raises InputError without them.
        """
        dtype = self.final.weight.dtype
        t = self.time_in(fourier_features(times_R * TIME_SCALE, TIME_FEATURES).to(dtype))
        # the logarithm: 20 s against 30 s matters as much as 200 s against 300 s
        s = self.seconds_in(
            fourier_features(torch.log(seconds_R.clamp_min(0.1)) * 100.0, TIME_FEATURES).to(dtype)
        )
        c = t + s + self.user_type(user_R)
        if self.pooled_in is not None:
            if pooled_RE is None:
                raise InputError(
                    "this model's modulation takes the mean description vector: give modulate(..., "
                    "pool_descriptions(...))"
                )
            c = c + self.pooled_in(pooled_RE.to(dtype))
        c = nn.functional.silu(c)
        base = (
            self.modulation(c)
            if self.modulation is not None
            else torch.stack([block.modulation(c) for block in self.blocks], 1)
        )
        return Modulation(base, self.final_modulation(c))

    def _block_modulation(self, modulation: Modulation, index: int) -> tuple[Tensor, ...]:
        """shift1, scale1, gate1, shift2, scale2, gate2 of one block, [R, D] each."""
        table = self.blocks[index].table
        rows = modulation.base + table if table is not None else modulation.base[:, index]
        return rows.chunk(6, -1)

    def embed_outline(self, outline: OutlineRows | None, lyrics_LE: Tensor) -> Tensor | None:
        """What the outline says of each target frame, [T, D]; None for a model that takes no
        outline. Raises InputError without one.
        """
        if self.outline_in is None or self.sung_in is None:
            return None
        if outline is None:
            raise InputError(
                "this model takes an outline (beat, key, syllables) of every song: give "
                "DitBatch.outline"
            )
        return self.outline_in(outline.features_TF) + self.sung_in(aligned(lyrics_LE, outline))

    def embed_conditions(
        self,
        descriptions: Tensor,
        references: Tensor,
        reference_kinds: Sequence[int],
        layout: Layout,
        outline_TD: Tensor | None = None,
    ) -> Tensor:
        """What is the same at every step, as packed rows [N, D]: descriptions, references, and the
        outline on the target rows or zeros.
        """
        described = self.description_in(descriptions)
        referenced = self.reference_in(references)
        parts, d, r, t = [], 0, 0, 0
        for span, kind in zip(layout.spans, reference_kinds, strict=True):
            parts.append(
                described[d : d + span.description]
                + self.description_index.weight[: span.description]
            )
            parts.append(referenced[r : r + span.reference] + self.reference_kind.weight[kind])
            target = (
                described.new_zeros(span.target, described.shape[1])
                if outline_TD is None
                else outline_TD[t : t + span.target]
            )
            parts.append(target)
            d, r, t = d + span.description, r + span.reference, t + span.target
        return torch.cat(parts)

    def trunk(
        self,
        x_ND: Tensor,
        modulation: Modulation,
        kv: Sequence[tuple[Tensor, Tensor] | JointKeys],
        layout: Layout | DenseLayout | ShardedLayout,
        *,
        checkpointing: Checkpointing = "none",
    ) -> Tensor:
        """All blocks on embedded rows, then the output [T, C] of the target rows.

        checkpointing "full" keeps the rows between blocks and computes the blocks again in
        backward; "selective" keeps the products of matrices too, so that norms, attention and
        elementwise work are done again.
        """
        plain_runs = layout.runs
        if self.blocks and self.blocks[0].compiled and torch.is_grad_enabled():
            modulation, layout = compilable(modulation, layout)
        mod = self._block_modulation(modulation, 0)
        h_ND = ops.layer_norm_modulate(x_ND, mod[0], mod[1], plain_runs)
        final_shift, final_scale = modulation.final.chunk(2, -1)
        for i, block in enumerate(self.blocks):
            following = (
                self._block_modulation(modulation, i + 1)
                if i + 1 < len(self.blocks)
                else (final_shift, final_scale)
            )
            args = (x_ND, h_ND, mod, following[0], following[1], kv[i], layout)
            if checkpointing == "none":
                x_ND, h_ND = block(*args)
            elif checkpointing == "full":
                x_ND, h_ND = checkpoint(block, *args, use_reentrant=False)
            else:
                x_ND, h_ND = checkpoint(
                    block, *args, use_reentrant=False, context_fn=_keep_products
                )
            mod = following
        return self.final(layout.gather_targets(h_ND))

    def forward(self, batch: DitBatch, *, checkpointing: Checkpointing = "none") -> Tensor:
        """Output [T, C] of every sequence's target frames: what training calls."""
        starts = [sum(batch.lyrics[:i]) for i in range(len(batch.lyrics))]
        spans = [
            Span(description=d, reference=r, target=t, lyric_start=start, lyrics=count, row=row)
            for row, (d, r, t, start, count) in enumerate(
                zip(
                    batch.fragments,
                    batch.reference_frames,
                    batch.frames,
                    starts,
                    batch.lyrics,
                    strict=True,
                )
            )
        ]
        device = batch.latents_TC.device
        layout = make_layout(spans, self.config, device=device)
        lyrics_LE = self.encode_lyrics(batch.lyric_ids, batch.lyrics)
        outline = batch.outline
        positions_L = (
            lyric_positions(batch.lyrics, device=device) if outline is None else outline.positions_L
        )
        pooled_BE = (
            pool_descriptions(batch.descriptions, batch.fragments)
            if self.config.pooled_description
            else None
        )
        modulation = self.modulate(batch.times_B, batch.seconds_B, batch.user_B, pooled_BE)
        outline_TD = self.embed_outline(outline, lyrics_LE)
        conditions_ND = self.embed_conditions(
            batch.descriptions, batch.references, batch.reference_kinds, layout, outline_TD
        )
        target_rows = torch.cat(
            [torch.arange(rows.start, rows.stop) for rows in layout.targets]
        ).to(device, non_blocking=True)
        x_ND = conditions_ND.index_add(
            0, target_rows, self.target_in(batch.latents_TC).to(conditions_ND.dtype)
        )
        if self.exchange is None:
            return self.trunk(
                x_ND,
                modulation,
                self.lyric_kv(lyrics_LE, positions_L),
                layout,
                checkpointing=checkpointing,
            )
        own = shard(layout, self.exchange, lyric_rows=lyrics_LE.shape[0])
        kv = self.lyric_kv(own.own_lyrics(lyrics_LE), own.own_lyrics(positions_L))
        return own.collect(
            self.trunk(own.own(x_ND), modulation, kv, own, checkpointing=checkpointing)
        )


def _keep_products() -> Any:
    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
