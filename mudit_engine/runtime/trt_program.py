"""A song as a fixed sequence of engine launches on persistent buffers, so that it can be captured
whole as one CUDA graph.

    program = Program(device, config, mode, halo=halo)
    program.fill(song)                  # host: everything of one song into pinned memory
    # pinned -> device; description vectors, lyric keys, conditions, modulation of all steps
    program.prepare()
    for row in range(len(mode.guided)): program.step(row)
    program.decode()                    # chunks with halo, int16, device -> pinned
    device.wait(); program.pcm

Nothing between `fill` and `wait` looks at a value or allocates: shapes, launches and addresses
follow from the mode alone. What differs between songs of a mode (lengths, lyrics, coefficients,
which frames a chunk decodes) is in the buffers, as masks and indices.

A step runs one sequence, or two where guidance acts. Latents go back and forth between two buffers.
Frames that no chunk owns are written to a row behind the last one. Shapes: T frames of the bucket,
B sequences, F descriptions, R rows of the sampler, P frames of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from mudit_engine.config import ModelConfig
from mudit_engine.errors import InputError
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.layouts.packed import lyric_positions
from mudit_engine.models.dit import pool_descriptions
from mudit_engine.models.outline import TOKENS, no_outline, outline_width
from mudit_engine.names import REFERENCE_KINDS, USER_TYPES
from mudit_engine.runtime.buckets import CHUNK, CHUNK_STEP, NULL_KEYS, Bucket
from mudit_engine.runtime.denoiser import SongInputs, initial_noise
from mudit_engine.runtime.graph_denoiser import text_inputs

INT16 = 32767.0


class Device(Protocol):
    """A stream on which everything happens in order. Only `wait` waits for it."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...

    def run(self, work: Callable[[], object]) -> None:
        """In-place torch operations on existing tensors."""

    def launch(
        self, graph: str, profile: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` as one graph: nothing runs now, and each call of the result runs all of it."""

    def wait(self) -> None: ...


@dataclass(frozen=True)
class Mode:
    """What a captured graph is for. Songs of one mode differ in values alone."""

    profile: int  # of the step engine: the number of the bucket
    bucket: Bucket
    guided: tuple[bool, ...]
    noise: bool
    reference: bool
    chunk: int  # frames decoded at once (chunk_of)

    @property
    def branches(self) -> int:
        return 1 + any(self.guided)


def chunk_of(frames: int, *, halo: int) -> int:
    """Frames that are decoded at once for a song of this many: CHUNK, or for a shorter song a
    multiple of CHUNK_STEP of which two cover it, so that songs of many lengths share a program.
    Where halos leave no room for that, the song's own length.
    """
    if frames >= CHUNK:
        return CHUNK
    chunk = frames // CHUNK_STEP * CHUNK_STEP
    return chunk if _paired(chunk, halo) else frames


def _paired(chunk: int, halo: int) -> bool:
    """Whether two chunks cover every song of up to CHUNK_STEP - 1 more frames."""
    return chunk % CHUNK_STEP == 0 and 2 * (chunk - halo) >= chunk + CHUNK_STEP - 1


def chunks_of(chunk: int, *, bucket: int, halo: int) -> int:
    """How many chunks a program decodes, whatever the song."""
    if chunk < CHUNK:
        return 2 if _paired(chunk, halo) else 1
    return max(1, -(-(bucket - 2 * halo) // (chunk - 2 * halo)))


def mode_of(song: SongInputs, bucket: Bucket, profile: int, *, halo: int) -> Mode:
    """The mode of a song in a bucket."""
    has_reference = song.reference is not None and len(song.reference) > 0
    return Mode(
        profile,
        bucket,
        song.table.guided,
        any(song.table.needs_noise),
        has_reference,
        chunk_of(song.frames, halo=halo),
    )


def plan_chunks(frames: int, *, bucket: int, chunk: int, halo: int) -> tuple[Tensor, Tensor]:
    """int64 [chunks, chunk]: which latent frames each chunk decodes, and where each decoded frame
    goes (`bucket`: nowhere).

    All chunks are equally long: the last ends with the song, so that both ends of the song meet the
    codec's own padding and every other frame is decoded with `halo` frames on either side. Their
    number depends on chunk and bucket alone; those beyond the song repeat the last. Raises
    InputError when a chunk is too short to hold a frame between two halos.
    """
    if chunk > frames or (chunk < frames and chunk <= 2 * halo):
        raise InputError(
            f"chunks of {chunk} frames cannot decode {frames} frames with a halo of {halo}"
        )
    own = chunk - 2 * halo
    count = chunks_of(chunk, bucket=bucket, halo=halo)
    gather, place = torch.zeros(count, chunk, dtype=torch.int64), torch.full((count, chunk), bucket)
    done = 0
    for number in range(count):
        start = min(number * own, frames - chunk)
        stop = frames if start + chunk == frames else start + chunk - halo
        gather[number] = torch.arange(start, start + chunk)
        if done < stop:
            place[number, done - start : stop - start] = torch.arange(done, stop)
            done = stop
    assert done == frames
    return gather, place


class Program:
    """Buffers and launches of one mode. `dtype` is the network's; the state of the sampler and the
    codec's input are fp32.

    reads_text: descriptions are read by the engine chinmu_text; else they are vectors.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        mode: Mode,
        *,
        halo: int,
        dtype: torch.dtype = torch.bfloat16,
        reads_text: bool = False,
    ) -> None:
        self.device, self.config, self.mode, self.halo, self.dtype, self.reads_text = (
            device,
            config,
            mode,
            halo,
            dtype,
            reads_text,
        )
        self.replay: Callable[[], None] | None = None
        c, vae, bucket = config.dit, config.vae, mode.bucket
        b, t, few, rows = mode.branches, bucket.frames, c.max_fragments, len(mode.guided)
        reference = bucket.reference if mode.reference else 1
        e = few + reference if mode.reference else few
        f32, i64, flag = torch.float32, torch.int64, torch.bool
        chunks = chunks_of(mode.chunk, bucket=t, halo=halo)
        given: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "x": ((1, t, c.latent_channels), f32),
            "coefficients": ((rows, 1, 7), f32),
            "ids": ((bucket.tokens,), i64),
            "token_mask": ((bucket.tokens,), flag),
            "token_tables": ((bucket.tokens, c.lyric_head_dim), f32),
            "share_tables": ((bucket.tokens, c.head_dim), f32),
            "reference": ((b, reference, c.latent_channels), f32),
            "reference_kind": ((1,), i64),
            "times": ((rows, b), f32),
            "seconds": ((rows, b), f32),
            "user": ((rows, b), i64),
            "target_mask": ((b, t), flag),
            "other_mask": ((b, e), flag),
            "lyric_mask": ((b, bucket.lyrics), flag),
            "target_tables": ((b, t, 2 * c.head_dim), f32),
            "other_tables": ((b, e, 2 * c.head_dim), f32),
            "gather": ((chunks, mode.chunk), i64),
            "place": ((chunks, mode.chunk), i64),
        }
        if mode.noise:
            given["noise"] = ((rows, 1, t, c.latent_channels), f32)
        if reads_text:
            longest = config.chinmu.max_characters
            given |= dict.fromkeys(("characters", "pairs"), ((b, few, longest), i64)) | {
                "mask": ((b, few, longest), flag)
            }
            given["tables"] = ((longest, config.chinmu.head_dim), f32)
        else:
            given["descriptions"] = ((b, few, c.description_width), f32)
        if c.pooled_description and reads_text:
            given["shares"] = ((b, 1, few), f32)
        elif c.pooled_description:
            given["pooled"] = ((b, 1, c.description_width), f32)
        if c.outline:
            given |= {
                "features": ((b, t, outline_width(c)), f32),
                "tokens": ((b, t, TOKENS), i64),
                "weights": ((b, t, TOKENS), f32),
            }
        self.host = {name: device.pinned(*size) for name, size in given.items()}
        self.given = {name: device.empty(*size) for name, size in given.items()}
        zeros: list[Tensor] = []

        def zero(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            zeros.append(device.empty(shape, kind))
            return zeros[-1]

        self.descriptions = (
            zero(b, few, c.description_width, kind=f32)
            if reads_text
            else self.given["descriptions"]
        )
        self.pooled = self.pooled_rows = None
        if c.pooled_description:
            self.pooled = (
                zero(b, 1, c.description_width, kind=f32) if reads_text else self.given["pooled"]
            )
            self.pooled_rows = zero(rows, b, c.description_width, kind=f32)
        counts = sorted({1 + one for one in mode.guided})
        kv = (c.blocks, bucket.tokens, c.heads, c.head_dim)
        base = (6 * c.width,) if c.modulation == "shared" else (c.blocks, 6 * c.width)
        self.lyrics = [zero(bucket.tokens, c.lyric_width) for _ in range(b if c.outline else 1)]
        self.kv = [zero(*kv), zero(*kv)]
        self.step_kv = {
            n: [zero(c.blocks, n, bucket.lyrics, c.heads, c.head_dim) for _ in range(2)]
            for n in counts
        }
        self.rows = zero(few + reference, c.width)
        self.other_rows, self.target_rows = zero(b, e, c.width), zero(b, t, c.width)
        self.base, self.final = zero(rows, b, *base), zero(rows, b, 2 * c.width)
        self.x = [zero(1, t, c.latent_channels, kind=f32) for _ in range(2)]
        self.kept = [zero(1, t, c.latent_channels, kind=f32) for _ in range(2)]
        self.no_noise = zero(1, t, c.latent_channels, kind=f32)
        self.song = zero(2, kind=i64)
        # [0]: of a step without guidance, [1]: of one with it
        self.unconditional = zero(2, kind=i64)
        self.latents = zero(1, mode.chunk, c.latent_channels, kind=f32)
        self.chunk_audio = zero(1, vae.channels, mode.chunk * vae.hop, kind=f32)
        self.audio = zero(vae.channels, t + 1, vae.hop, kind=f32)
        self.narrow = zero(vae.channels, t * vae.hop, kind=torch.int16)
        self.pcm = device.pinned((vae.channels, t * vae.hop), torch.int16)
        self.final_x = device.pinned((t, c.latent_channels), f32)
        for tensor in zeros:
            device.run(tensor.zero_)
        device.run(lambda: self.unconditional[1:].fill_(1))

    @property
    def bytes(self) -> int:
        """Of its tensors, on the device and pinned."""

        def held(value: object) -> int:
            if isinstance(value, Tensor):
                return value.numel() * value.element_size()
            if isinstance(value, dict):
                return sum(map(held, value.values()))
            return sum(map(held, value)) if isinstance(value, (list, tuple)) else 0

        return held(list(vars(self).values()))

    def fill(self, song: SongInputs) -> torch.Generator:
        """Writes a song into pinned memory; returns its generator. The stream must be idle: the
        memory may still be read.
        """
        c, mode, host = self.config.dit, self.mode, self.host
        bucket, count, few = mode.bucket, len(song.lyric_ids), c.max_fragments
        for tensor in host.values():
            tensor.zero_()
        generator, noise = initial_noise(song, c.latent_channels)
        host["x"][0, : song.frames] = noise
        if mode.noise:
            for row, needed in enumerate(song.table.needs_noise):
                if needed:  # in the order in which the other runtimes draw
                    host["noise"][row, 0, : song.frames] = torch.randn(
                        noise.shape, generator=generator
                    )
        host["coefficients"][:, 0] = song.table.rows.float()
        host["times"][:] = song.table.times.float()[:, None]
        host["seconds"].fill_(song.seconds)
        host["user"][:, 0] = USER_TYPES.index(song.user_type)
        known = song.outline or no_outline(song.frames, count, c)
        host["ids"][:count] = torch.tensor(song.lyric_ids, dtype=torch.int64)
        # an encoder that sees no key at all would give NaN; nothing sees what it makes of an
        # instrumental's first token
        host["token_mask"][: max(count, 1)] = True
        host["token_tables"][:count] = torch.cat(
            rope_table(torch.arange(count), c.lyric_head_dim, base=c.rope_base), -1
        )
        places = known.positions_L if c.outline else lyric_positions([count])
        host["share_tables"][:count] = torch.cat(
            rope_table(places * c.lyric_rope_scale, c.head_dim, base=c.rope_base), -1
        )
        reference = (
            song.reference
            if mode.reference and song.reference is not None
            else torch.zeros(0, c.latent_channels)
        )
        host["reference_kind"][0] = REFERENCE_KINDS.index(song.reference_kind)
        # the unconditional sequence knows the negative description alone
        for branch in range(mode.branches):
            described = song.negative if branch else song.descriptions
            frames, tokens = (0, 0) if branch else (len(reference), count)
            if self.reads_text:
                texts = song.negative_texts if branch else song.texts
                for name, value in text_inputs(
                    texts, self.config.chinmu, fragments=few, length=host["mask"].shape[2]
                ).items():
                    (host[name] if name == "tables" else host[name][branch])[:] = value
            else:
                host["descriptions"][branch, : len(described)] = described.float()
            if "shares" in host:
                host["shares"][branch, 0, : len(described)] = 1 / max(len(described), 1)
            if "pooled" in host:
                host["pooled"][branch] = pool_descriptions(described.float(), [len(described)])
            host["reference"][branch, :frames] = reference[:frames]
            host["target_mask"][branch, : song.frames] = True
            host["other_mask"][branch, : len(described)] = True
            host["other_mask"][branch, few : few + frames] = True
            host["lyric_mask"][branch, NULL_KEYS : NULL_KEYS + tokens] = True
            host["lyric_mask"][branch, 0] = not tokens
            index = torch.arange(song.frames, dtype=torch.float32)
            host["target_tables"][branch, : song.frames] = self._table(
                index, (index + 0.5) / song.frames
            )
            nowhere, index = torch.zeros(few), torch.arange(frames, dtype=torch.float32)
            places = torch.cat((nowhere, (index + 0.5) / max(frames, 1)))
            host["other_tables"][branch, : few + frames] = self._table(
                torch.cat((nowhere, index)), places
            )
            if c.outline:
                outline = no_outline(song.frames, 0, c) if branch else known
                for name, rows in (
                    ("features", outline.features_TF),
                    ("tokens", outline.tokens_T4),
                    ("weights", outline.weights_T4),
                ):
                    host[name][branch, : song.frames] = rows.to(host[name].dtype)
        host["gather"][:], host["place"][:] = plan_chunks(
            song.frames, bucket=bucket.frames, chunk=mode.chunk, halo=self.halo
        )
        return generator

    def prepare(self) -> None:
        """What a song needs once: its inputs on the device, lyric keys and values, condition rows,
        modulation of all steps.
        """
        device, given, mode, outline = self.device, self.given, self.mode, self.config.dit.outline
        for name, source in self.host.items():
            device.run(partial(given[name].copy_, source, non_blocking=True))
        lyric_inputs = {
            "ids": given["ids"],
            "mask": given["token_mask"],
            "token_tables": given["token_tables"],
        }
        lyric_inputs["share_tables"] = given["share_tables"]
        outputs = {"lyrics": self.lyrics[0], "keys": self.kv[0], "values": self.kv[1]}
        device.launch("lyric_kv", 0, lyric_inputs, outputs)
        for targets in self.step_kv.values():
            for target, source in zip(targets, self.kv, strict=True):
                device.run(partial(target[:, 0, NULL_KEYS:].copy_, source))
        if self.reads_text:
            for branch in range(mode.branches):
                inputs = {name: given[name][branch] for name in ("characters", "pairs", "mask")} | {
                    "tables": given["tables"]
                }
                device.launch("chinmu_text", 0, inputs, {"vectors": self.descriptions[branch]})
                if self.pooled is not None:
                    device.run(
                        partial(
                            torch.mm,
                            given["shares"][branch],
                            self.descriptions[branch],
                            out=self.pooled[branch],
                        )
                    )
        for branch in range(mode.branches):
            inputs = {
                "descriptions": self.descriptions[branch],
                "reference": given["reference"][branch],
            }
            inputs["reference_kind"] = given["reference_kind"]
            results = {"rows": self.rows}
            if outline:
                inputs |= {name: given[name][branch] for name in ("features", "tokens", "weights")}
                inputs["lyrics"] = self.lyrics[branch]
                results["outlined"] = self.target_rows[branch]
            device.launch("conditions", mode.profile if outline else 0, inputs, results)
            # without a reference its one row is left out
            device.run(
                partial(self.other_rows[branch].copy_, self.rows[: self.other_rows.shape[1]])
            )
        flat: dict[str, Any] = {
            name: given[name].flatten(0, 1) for name in ("times", "seconds", "user")
        }
        if self.pooled is not None and self.pooled_rows is not None:
            device.run(partial(self.pooled_rows.copy_, self.pooled[:, 0]))  # the same at every step
            flat["pooled"] = self.pooled_rows.flatten(0, 1)
        device.launch(
            "modulation",
            0,
            flat,
            {"base": self.base.flatten(0, 1), "final": self.final.flatten(0, 1)},
        )
        device.run(partial(self.x[0].copy_, given["x"]))
        device.run(self.kept[0].zero_)

    def step(self, row: int) -> None:
        """One row of the sampler's table."""
        given, n, now = self.given, 1 + self.mode.guided[row], row % 2
        inputs = {
            "x": self.x[now],
            "kept": self.kept[now],
            "noise": given["noise"][row] if self.mode.noise else self.no_noise,
            "coefficients": given["coefficients"][row],
            "song": self.song[:n],
            "unconditional": self.unconditional[n - 1 : n],
            "target_rows": self.target_rows[:n],
            "other_rows": self.other_rows[:n],
            **{
                name: given[name][:n]
                for name in (
                    "target_mask",
                    "other_mask",
                    "target_tables",
                    "other_tables",
                    "lyric_mask",
                )
            },
            "lyric_keys": self.step_kv[n][0],
            "lyric_values": self.step_kv[n][1],
            "base": self.base[row, :n],
            "final": self.final[row, :n],
        }
        self.device.launch(
            "step",
            self.mode.profile,
            inputs,
            {"next_x": self.x[1 - now], "next_kept": self.kept[1 - now]},
        )

    def decode(self) -> None:
        """Latents to int16 audio in pinned memory, and the latents themselves."""
        device, given = self.device, self.given
        x = self.x[len(self.mode.guided) % 2][0]
        frames = self.chunk_audio[0].unflatten(1, (self.mode.chunk, -1))
        for number in range(len(given["gather"])):
            gather, place = given["gather"][number], given["place"][number]
            device.run(partial(torch.index_select, x, 0, gather, out=self.latents[0]))
            device.launch("vae_decode", 0, {"latents": self.latents}, {"audio": self.chunk_audio})
            device.run(partial(self.audio.index_copy_, 1, place, frames))
        device.run(lambda: self.audio.clamp_(-1, 1).mul_(INT16).round_())
        device.run(
            partial(self.narrow.unflatten(1, (-1, self.config.vae.hop)).copy_, self.audio[:, :-1])
        )
        device.run(partial(self.pcm.copy_, self.narrow, non_blocking=True))
        device.run(partial(self.final_x.copy_, x, non_blocking=True))

    def whole(self) -> None:
        """The song from pinned memory to pinned memory: what is captured."""
        self.prepare()
        for row in range(len(self.mode.guided)):
            self.step(row)
        self.decode()

    def _table(self, frame: Tensor, share: Tensor) -> Tensor:
        c = self.config.dit
        own = rope_table(frame, c.head_dim, base=c.rope_base)
        return torch.cat(
            (*own, *rope_table(share * c.lyric_rope_scale, c.head_dim, base=c.rope_base)), -1
        )
