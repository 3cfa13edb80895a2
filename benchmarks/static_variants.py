"""How often each kernel would be compiled for batches of ever new lengths: counted, with no GPU.

    TRITON_INTERPRET=0 python -m mudit_engine.benchmarks.static_variants --out variants.json

Every op runs forward and backward on random batches (1 to 20 songs of 1 to 2,800 frames, 0 to 1,024
lyric tokens) against a driver that only names an architecture, and the keys are counted that
Triton would compile for. A row count that reached a constant or a specialised argument shows as
a key for every batch.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mudit_engine.files import write_json
from mudit_engine.hardware import environment
from mudit_engine.kernels.adaln import layer_norm_modulate, residual_norm
from mudit_engine.kernels.attention import attention
from mudit_engine.kernels.bias_gelu import bias_gelu
from mudit_engine.kernels.guided_step import SongRows, guided_step
from mudit_engine.kernels.pack_qkv import pack_kv, pack_qkv
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling.aot import variants_for

HEADS, HEAD_DIM, CHANNELS = 12, 128, 96
WIDTH = HEADS * HEAD_DIM


def tensor(*shape: int, grad: bool, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Nothing reads or writes it, so that it is as large as it says and takes no time."""
    return torch.empty(shape, dtype=dtype, requires_grad=grad)


def run_ops(lengths: list[int], lyrics: list[int], *, training: bool) -> None:
    """Every op of a step on one batch."""
    rows, keys = sum(lengths), sum(lyrics)
    runs = Runs(tuple((count, song) for song, count in enumerate(lengths)))
    x, y = (tensor(rows, WIDTH, grad=training) for _ in range(2))
    mod = tensor(len(lengths), 6, WIDTH, grad=training)
    table = tensor(rows, HEAD_DIM // 2, grad=False, dtype=torch.float32)
    outputs = [layer_norm_modulate(x, mod[:, 0], mod[:, 1], runs)]
    outputs += residual_norm(x, y, mod[:, 2], mod[:, 3], mod[:, 4], runs, inplace=not training)
    outputs += residual_norm(x, y, mod[:, 2], None, None, runs, inplace=not training)
    gain = tensor(1, HEAD_DIM, grad=training)
    q, k, v = pack_qkv(
        tensor(rows, 3 * WIDTH, grad=training), gain, gain[0], table, table, heads=HEADS
    )
    outputs.append(attention(q, k, v, Segments.self_attention(lengths), table[None], table[None]))
    angles = tensor(keys, HEAD_DIM // 2, grad=False, dtype=torch.float32)
    lyric_k, lyric_v = pack_kv(
        tensor(keys, 2 * WIDTH, grad=training), gain[0], angles, angles, heads=HEADS
    )
    cross = Segments.cross_attention(lengths, lyrics)
    outputs.append(attention(q, lyric_k, lyric_v, cross, table[None], table[None]))
    hidden = tensor(rows, 4 * WIDTH, grad=training)
    outputs.append(bias_gelu(hidden, tensor(4 * WIDTH, grad=training)))
    if training:
        used = [one for one in outputs if one.requires_grad]
        torch.autograd.backward(used, [torch.empty_like(one) for one in used])
        return
    latents = tensor(rows, CHANNELS, grad=False, dtype=torch.float32)
    out = tensor(2 * rows, CHANNELS, grad=False)
    coefficients = torch.zeros(len(lengths), 7)
    spans, start = [], 0
    for count in lengths:
        spans.append((start, count, start, rows + start))
        start += count
    for noise in (None, latents.clone()):
        guided_step(latents, latents.clone(), out, noise, coefficients, SongRows(tuple(spans)))


def batches(count: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    draw = random.Random(seed)
    for _ in range(count):
        songs = draw.randint(1, 20)
        lengths = [draw.randint(1, 2800 // songs + 1) for _ in range(songs)]
        yield lengths, [draw.choice((0, draw.randint(1, 1024 // songs + 1))) for _ in lengths]


def count_variants(arch: str, *, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each kernel: how many keys inference and training compile it for."""
    rows = []
    for training in (False, True):
        with variants_for(arch) as found, torch.set_grad_enabled(training):
            for lengths, lyrics in batches(count, seed):
                run_ops(lengths, lyrics, training=training)
        mode = "training" if training else "inference"
        rows += [
            {"kernel": name, "mode": mode, "arch": arch, "batches": count, "variants": len(keys)}
            for name, keys in sorted(found.items())
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="sm_80,sm_90")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for arch in given.arch.split(","):
        rows += count_variants(arch, count=given.batches, seed=given.seed)
    for row in rows:
        print(f"{row['variants']:4d}  {row['arch']}  {row['mode']:9s}  {row['kernel']}")
    if given.out:
        write_json(given.out, {"schema_version": 1, "env": environment(), "results": rows})


if __name__ == "__main__":
    main()
