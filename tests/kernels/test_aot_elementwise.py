"""Row-wise kernels as machine code, with no GPU: no spills, 16-byte accesses, no more bytes than the operation needs.

The committed figures are benchmarks/results/static_elementwise.json; a kernel that needs more than they say is a regression.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import strict
from elementwise import bytes_moved
from mudit_engine.kernels import adaln, rope
from mudit_engine.kernels.adaln import Runs, layer_norm_modulate, residual_norm
from mudit_engine.kernels.bias_gelu import bias_gelu
from mudit_engine.kernels.guided_step import Spans, guided_step
from mudit_engine.kernels.rope import pack_kv, pack_qkv
from mudit_engine.profiling.aot import ARCHITECTURES

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads((ROOT / "benchmarks/results/static_elementwise.json").read_text())["rows"]
KEY = ("op", "variant", "dtype", "arch")


def figures(arch: str, variants: str, dtypes: str, folder: Path) -> list[dict]:
    """Compiled in a process of its own: this one interprets."""
    out = folder / "static.json"
    command = [sys.executable, "-m", "mudit_engine.benchmarks.static_elementwise", "--arch", arch, "--variants", variants]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--dtypes", dtypes, "--out", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())["rows"]


def hold_bars(row: dict) -> None:
    name = "-".join(row[k] for k in KEY)
    assert row["spill_bytes"] == 0 and row["loop_local_accesses"] == 0, f"{name} spills"
    assert not row["ptxas_warnings"], name
    assert row["wide_in_loops"] > 0 and row["narrow_in_loops"] <= row["scalars"], f"{name} has accesses below 16 bytes"


def hold_committed(rows: list[dict]) -> None:
    committed = {tuple(row[k] for k in KEY): row for row in COMMITTED}
    for row in rows:
        hold_bars(row)
        bar = committed[tuple(row[k] for k in KEY)]
        for figure in ("wide_in_loops", "narrow_in_loops", "shared_bytes"):
            assert row[figure] <= bar[figure], f"{'-'.join(row[k] for k in KEY)}: {figure} {row[figure]}, committed {bar[figure]}"
        assert row["blocks_per_sm"] >= bar["blocks_per_sm"], f"{'-'.join(row[k] for k in KEY)}: fewer blocks fit a multiprocessor"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_committed_figures_hold_the_bars(arch):
    rows = [row for row in COMMITTED if row["arch"] == arch]
    assert rows
    for row in rows:
        hold_bars(row)


@pytest.mark.parametrize(("arch", "variants"), [("sm_80", "residual_norm,pack/96"), ("sm_90", "bias_gelu,pack/96,guided_step")])
def test_compiles_to_the_committed_figures(arch, variants, tmp_path):
    hold_committed(figures(arch, variants, "bf16", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles_to_the_committed_figures(arch, tmp_path):
    variants = ",".join(dict.fromkeys(row["variant"] for row in COMMITTED))
    rows = figures(arch, variants, "bf16,fp32", tmp_path)
    assert len(rows) == sum(row["arch"] == arch for row in COMMITTED)
    hold_committed(rows)


# Bytes are counted lane by lane in the interpreter (elements under a live mask, every program), the tiles being those of eight whole songs;
# the minimum reads every input and writes every output once. Second passes count in full.
TILE = 57
TRAINING_ROWS = 12184


def residual(width=1536):
    x, y = (torch.randn(2 * TILE, width).bfloat16().requires_grad_() for _ in range(2))
    mod = torch.randn(1, 6, width).bfloat16().requires_grad_()
    runs, row = Runs(((2 * TILE, 0),)), 2 * width
    total, h = residual_norm(x, y, mod[:, 2], mod[:, 0], mod[:, 1], runs)
    torch.autograd.backward((total, h), (total.detach(), h.detach()))
    # forward x, y -> sum, h and three table rows; backward dsum, dh, sum, y -> dx, dy, two table rows in and three out
    return row * (4 * 2 * TILE + 3) + row * (6 * 2 * TILE + 5)


def modulated_norm(width=1536):
    x, mod = torch.randn(2 * TILE, width).bfloat16().requires_grad_(), torch.randn(1, 6, width).bfloat16().requires_grad_()
    h = layer_norm_modulate(x, mod[:, 0], mod[:, 1], Runs(((2 * TILE, 0),)))
    h.backward(h.detach())
    return 2 * width * ((2 * 2 * TILE + 2) + (6 * TILE + 3))


def in_place_step(width=1536):
    x, mod = torch.randn(2 * 29, width).bfloat16(), torch.randn(1, 6, width).bfloat16()
    residual_norm(x, x.clone(), mod[:, 2], mod[:, 0], mod[:, 1], Runs(((2 * 29, 0),)), inplace=True)
    return 2 * width * (4 * 2 * 29 + 3)


def gelu(width=512):
    x, bias = torch.randn(256, width).bfloat16().requires_grad_(), torch.randn(width).bfloat16().requires_grad_()
    h = bias_gelu(x, bias)
    h.backward(h.detach())
    return 2 * width * ((2 * 256 + 1) + (3 * 256 + 2))


def pack(head_dim=96, heads=16, rows=48):
    table = torch.randn(rows, head_dim // 2)
    qkv, q_gain, k_gain = (torch.randn(*s).bfloat16().requires_grad_() for s in ((rows, 3 * heads * head_dim), (1, head_dim), (head_dim,)))
    outputs = pack_qkv(qkv, q_gain, k_gain, table, table, heads=heads)
    torch.autograd.backward(outputs, [o.detach() for o in outputs])
    tables, section, gains = 8 * table.numel(), 2 * rows * heads * head_dim, 2 * 2 * head_dim
    # backward: q and k of qkv and all three gradients in, dqkv out
    return (6 * section + tables + gains) + (8 * section + tables + 2 * gains)


def lyric_keys(head_dim=96, heads=16, rows=48):
    table, joint = torch.randn(rows, head_dim // 2), torch.zeros(2, rows + 8, heads, head_dim).bfloat16()
    kv, gain = torch.randn(rows, 2 * heads * head_dim).bfloat16(), torch.randn(head_dim).bfloat16()
    pack_kv(kv, gain, table, table, heads=heads, k_out=joint[0, 8:], v_out=joint[1, 8:])
    return 2 * 4 * rows * heads * head_dim + 8 * table.numel() + 2 * head_dim


def step(channels=96, rows=300):
    x, kept, noise = torch.randn(3, rows, channels)
    guided_step(x, kept, torch.randn(2 * rows, channels).bfloat16(), noise, torch.ones(1, 7), Spans(((0, rows, 0, rows),)))
    return rows * channels * (5 * 4 + 2 * 2) + 4 * 11


@pytest.mark.skipif(not strict.INTERPRETED, reason="the interpreter counts the bytes")
@pytest.mark.parametrize("launch", [residual, modulated_norm, in_place_step, gelu, pack, lyric_keys, step])
def test_bytes_moved_are_within_5_percent_of_the_minimum(launch, monkeypatch):
    monkeypatch.setattr(rope, "processors", lambda device: 1)
    monkeypatch.setattr(adaln, "_tile_rows", lambda rows, device, stock=adaln._tile_rows, **kw: stock(TRAINING_ROWS, device, **kw))
    with bytes_moved() as counted:
        minimum = launch()
    ratio = sum(counted.values()) / minimum
    assert 0.999 <= ratio <= 1.05, f"{ratio:.3f} x the minimum: {dict(counted)}"
