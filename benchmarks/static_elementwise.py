"""What the row-wise kernels compile to, for every architecture and with no GPU: registers, spills,
and the width of their memory accesses.

Every op is launched as training or a sampler step launches it (12,184 packed rows: eight whole
songs), compiled instead of run, and its machine code read. `narrow_in_loops` counts the global
accesses below 16 bytes inside loops (in the whole kernel where there is none). Ceilings are shares
of the DRAM bandwidth. Bytes are counted in the interpreter over one multiprocessor's share of an
A100's launch.

    python -m mudit_engine.benchmarks.static_elementwise --arch sm_80,sm_90 \\
      --out benchmarks/results/static_elementwise.json
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mudit_engine.benchmarks.static_figures import DTYPES, as_text, figures, write
from mudit_engine.kernels import adaln
from mudit_engine.kernels import pack_qkv as packing
from mudit_engine.kernels.adaln import layer_norm_modulate, residual_norm
from mudit_engine.kernels.bias_gelu import bias_gelu
from mudit_engine.kernels.guided_step import SongRows, guided_step
from mudit_engine.kernels.pack_qkv import pack_kv, pack_qkv
from mudit_engine.kernels.runs import Runs
from mudit_engine.profiling.aot import ARCHITECTURES, KernelBuild, compile_for
from mudit_engine.profiling.traffic import Traffic, count_traffic

Songs = Sequence[int]
SONGS = (323, 646, 969, 1292, 1615, 2100, 2439, 2800)
"""Frames of eight songs of 30 to 260 s."""
PROCESSORS_SHARE = (-(-sum(SONGS) // 108),)
"""What one of an A100's 108 multiprocessors gets of them, as one song."""
WIDTH = 1536
# mean and 1 / deviation of a row; spans and coefficients of a song
SCALARS = {"norm_fwd_kernel": 2, "norm_bwd_kernel": 2, "_guided_step_kernel": 11}


def _leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


def _differentiate(outputs: tuple[Tensor, ...]) -> None:
    torch.autograd.backward(outputs, [torch.zeros_like(o) for o in outputs])


def _modulation(dtype: torch.dtype, songs: Songs) -> tuple[Tensor, Runs]:
    return _leaf(len(songs), 6, WIDTH, dtype=dtype), Runs(
        tuple((frames, i) for i, frames in enumerate(songs))
    )


def _residual(dtype: torch.dtype, songs: Songs) -> None:
    mod, runs = _modulation(dtype, songs)
    x, y = _leaf(sum(songs), WIDTH, dtype=dtype), _leaf(sum(songs), WIDTH, dtype=dtype)
    _differentiate(residual_norm(x, y, mod[:, 2], mod[:, 0], mod[:, 1], runs))


def _residual_in_place(dtype: torch.dtype, songs: Songs) -> None:
    mod, runs = _modulation(dtype, songs)
    x = torch.zeros(sum(songs), WIDTH, dtype=dtype)
    with torch.no_grad():
        residual_norm(x, x.clone(), mod[:, 2], mod[:, 0], mod[:, 1], runs, inplace=True)


def _residual_plain(dtype: torch.dtype, songs: Songs) -> None:
    x, y = _leaf(sum(songs), WIDTH, dtype=dtype), _leaf(sum(songs), WIDTH, dtype=dtype)
    _differentiate(residual_norm(x, y, None, None, None, None))


def _norm(dtype: torch.dtype, songs: Songs) -> None:
    mod, runs = _modulation(dtype, songs)
    _differentiate(
        (layer_norm_modulate(_leaf(sum(songs), WIDTH, dtype=dtype), mod[:, 0], mod[:, 1], runs),)
    )


def _gelu(dtype: torch.dtype, songs: Songs) -> None:
    _differentiate(
        (bias_gelu(_leaf(sum(songs), 4 * WIDTH, dtype=dtype), _leaf(4 * WIDTH, dtype=dtype)),)
    )


def _pack(dtype: torch.dtype, songs: Songs, head_dim: int, *, streams: int = 1) -> None:
    rows, heads = sum(songs), WIDTH // head_dim
    table, qkv = torch.zeros(rows, head_dim // 2), _leaf(rows, (streams + 2) * WIDTH, dtype=dtype)
    q_gain, k_gain = _leaf(streams, head_dim, dtype=dtype), _leaf(head_dim, dtype=dtype)
    _differentiate(pack_qkv(qkv, q_gain, k_gain, table, table, heads=heads, q_streams=streams))


def _pack_joint(dtype: torch.dtype, songs: Songs, head_dim: int) -> None:
    """A sampler step: frames into the buffer that already holds the lyric keys; and those lyric
    keys, packed once per song.
    """
    rows, heads = sum(songs), WIDTH // head_dim
    lyrics = min(900, rows)
    table, gain = torch.zeros(rows, head_dim // 2), torch.zeros(head_dim, dtype=dtype)
    k, v = torch.zeros(2, rows + lyrics, heads, head_dim, dtype=dtype)
    qkv, kv = torch.zeros(rows, 3 * WIDTH, dtype=dtype), torch.zeros(lyrics, 2 * WIDTH, dtype=dtype)
    with torch.no_grad():
        pack_qkv(qkv, gain[None], gain, table, table, heads=heads, k_out=k[:rows], v_out=v[:rows])
        pack_kv(
            kv, gain, table[:lyrics], table[:lyrics], heads=heads, k_out=k[rows:], v_out=v[rows:]
        )


def _step(dtype: torch.dtype, songs: Songs) -> None:
    rows = sum(songs)
    starts = [sum(songs[:i]) for i in range(len(songs))]
    spans = SongRows(
        tuple(
            (start, frames, start, rows + start)
            for start, frames in zip(starts, songs, strict=True)
        )
    )
    x, kept, noise = torch.zeros(3, rows, 96)
    # every coefficient counts, so that every input is read
    guided_step(
        x, kept, torch.zeros(2 * rows, 96, dtype=dtype), noise, torch.ones(len(songs), 7), spans
    )


VARIANTS: dict[str, Callable[[torch.dtype, Songs], None]] = {
    "residual_norm": _residual,
    "residual_norm/in_place": _residual_in_place,
    "residual_norm/plain": _residual_plain,
    "layer_norm_modulate": _norm,
    "bias_gelu": _gelu,
    "pack/64": lambda dtype, songs: _pack(dtype, songs, 64),
    "pack/96": lambda dtype, songs: _pack(dtype, songs, 96),
    "pack/128": lambda dtype, songs: _pack(dtype, songs, 128),
    "pack/96x2": lambda dtype, songs: _pack(dtype, songs, 96, streams=2),
    "pack/96/joint": lambda dtype, songs: _pack_joint(dtype, songs, 96),
    "guided_step": _step,
}


def _live(constants: dict[str, Any]) -> float:
    """Share of lanes that are not masked off:
    blocks are powers of two, rows and heads need not be.
    """
    if "CHUNK" in constants:
        return float(constants["HEAD_DIM"] / (2 * constants["BLOCK"]))
    if "BLOCK_D" in constants:
        return float(
            constants["D"] / (-(-constants["D"] // constants["BLOCK_D"]) * constants["BLOCK_D"])
        )
    return 1.0


def row(variant: str, dtype: str, build: KernelBuild) -> dict[str, Any]:
    name = build.kernel.strip("_").removesuffix("_kernel")
    found = figures(
        build,
        op=name,
        variant=variant,
        head_dim=build.constants.get("HEAD_DIM"),
        dtype=dtype,
        live=_live(build.constants),
    )
    return found | {
        "width": build.constants.get("D"),
        "grid": list(build.grid),
        "scalars": SCALARS.get(build.kernel, 0),
    }


def compiled(arch: str, variant: str, dtype: str) -> list[dict[str, Any]]:
    """Rows of the launches of one variant, in their order."""
    with compile_for(arch) as builds:
        VARIANTS[variant](DTYPES[dtype], SONGS)
    return [row(variant, dtype, build) for build in builds]


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Launches inside are cut as for a GPU with one multiprocessor, so that its share of the rows
    gets the tiles of the whole.
    """
    with (
        mock.patch.object(adaln, "processors", lambda device: 1),
        mock.patch.object(packing, "processors", lambda device: 1),
    ):
        yield


def traffic(variant: str, dtype: str) -> list[Traffic]:
    """Bytes of the same launches, in their order, over one multiprocessor's share. For a process
    that interprets.
    """
    with one_processor(), count_traffic() as launches:
        VARIANTS[variant](DTYPES[dtype], PROCESSORS_SHARE)
    return launches


def with_bytes(rows: list[dict[str, Any]], launches: Sequence[Traffic]) -> list[dict[str, Any]]:
    """Rows with what their launches moved, and had to."""
    pairs = zip(rows, launches, strict=True)
    return [
        found | {"bytes_moved": launch.requested, "bytes_minimum": launch.distinct}
        for found, launch in pairs
    ]


def distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a kernel: the second pass of the sums is the same kernel for many ops."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in rows:
        variant = None if r["op"] == "segment_sum" else r["variant"]
        found.setdefault((r["arch"], r["op"], r["dtype"], variant, r["width"], *r["grid"][2:]), r)
    return list(found.values())


def run(
    *,
    arches: Sequence[str] = ARCHITECTURES,
    variants: Sequence[str] = tuple(VARIANTS),
    dtypes: Sequence[str] = ("bf16", "fp32"),
) -> list[dict[str, Any]]:
    """Rows of every distinct kernel that the variants launch."""
    return distinct(
        [
            r
            for arch in arches
            for variant in variants
            for dtype in dtypes
            for r in compiled(arch, variant, dtype)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--dtypes", default="bf16,fp32")
    parser.add_argument("--out", type=Path, help="write here instead of to the terminal")
    options = parser.parse_args()
    rows = run(
        arches=options.arch.split(","),
        variants=options.variants.split(","),
        dtypes=options.dtypes.split(","),
    )
    if options.out is None:
        print(as_text({"rows": rows}), end="")
        return
    about = (
        "compiled, not measured: machine code of the row-wise kernels; ceilings are shares of the "
        "DRAM bandwidth, not speeds"
    )
    write(
        options.out,
        rows,
        about=about,
        command="python -m mudit_engine.benchmarks.static_elementwise",
    )


if __name__ == "__main__":
    main()
