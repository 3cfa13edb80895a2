"""Exports a graph with a loop, then compiles every op of mudit_engine/ops.py in the same process;
prints one JSON line: what failed, by op and backend.

    python tests/helpers/compile_every_op.py

While torch.export traces, Python's `max` and `min` are other objects. A graph with a loop (the
decoder's phase refinements are one) starts dynamo in the middle of that, and dynamo then remembers
for the rest of the process which builtins it may evaluate, without the true `max` and `min`: a call
of them with `key=` or `default=` in code that it traces later is refused.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel module is imported

import torch
from torch import Tensor, nn

from mudit_engine import ops
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling import strict

ROWS, LYRICS, HEADS, HEAD_DIM = (5, 3), (2, 0), 2, 64
WIDTH = HEADS * HEAD_DIM


class Doubled(nn.Module):
    """x doubled `times` times, in a loop that the graph keeps."""

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        count = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, y: i < times, lambda i, y: (i + 1, y * 2), (count, x))[1]


def export(folder: Path) -> None:
    rows = torch.export.Dim("rows", min=2, max=64)
    torch.onnx.export(
        Doubled().eval(),
        (torch.randn(3, 4), torch.tensor(2)),
        folder / "loop.onnx",
        dynamo=True,
        dynamic_shapes={"x": {0: rows}, "times": None},
        opset_version=20,
        verbose=False,
    )


def calls() -> dict[str, Callable[[], tuple[Callable[..., Any], tuple[Tensor, ...]]]]:
    """Op -> a function of tensors alone, and tensors for it. Sizes are mixed, one song has no
    lyrics, one is not guided.
    """
    songs = len(ROWS)
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def table(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        positions = torch.cat([torch.arange(count, dtype=torch.float32) for count in counts])
        return rope_table(positions, HEAD_DIM)

    rows, keys = sum(ROWS), sum(ROWS) + sum(LYRICS)
    segments = Segments.self_attention(ROWS) + Segments.cross_attention(
        ROWS, LYRICS, k_offset=rows, stream=1
    )
    runs = Runs(tuple((count, song) for song, count in enumerate(ROWS)))
    spans = SongRows(((0, ROWS[0], 0, rows), (ROWS[0], ROWS[1], ROWS[0], -1)))
    cos, sin = table(ROWS)
    lyric_cos, lyric_sin = table(LYRICS)
    both = (torch.stack((cos, cos)), torch.stack((sin, sin)))
    gains = draw(1, HEAD_DIM), draw(HEAD_DIM)
    return {
        "attention": lambda: (
            lambda q, k, v: ops.attention(q, k, v, segments, *both),
            (draw(rows, 2 * HEADS, HEAD_DIM), *draw(2, keys, HEADS, HEAD_DIM)),
        ),
        "pack_qkv": lambda: (
            lambda x: ops.pack_qkv(x, *gains, cos, sin, heads=HEADS),
            (draw(rows, 3 * WIDTH),),
        ),
        "pack_kv": lambda: (
            lambda x: ops.pack_kv(x, gains[1], lyric_cos, lyric_sin, heads=HEADS),
            (draw(sum(LYRICS), 2 * WIDTH),),
        ),
        "rms_norm": lambda: (ops.rms_norm, (draw(rows, HEADS, HEAD_DIM), gains[1])),
        "layer_norm_modulate": lambda: (
            lambda x, shift, scale: ops.layer_norm_modulate(x, shift, scale, runs),
            (draw(rows, WIDTH), *draw(2, songs, WIDTH)),
        ),
        "residual_norm": lambda: (
            lambda x, y, *tables: ops.residual_norm(x.clone(), y, *tables, runs),
            (*draw(2, rows, WIDTH), *draw(3, songs, WIDTH)),
        ),
        "linear_gelu": lambda: (ops.linear_gelu, (draw(rows, 16), draw(32, 16), draw(32))),
        "guided_step": lambda: (
            lambda *given: ops.guided_step(*given, spans),
            (*draw(2, rows, 8), draw(2 * rows, 8), draw(rows, 8), draw(songs, 7)),
        ),
    }


def main() -> None:
    strict.install()
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder))
    named = {
        name
        for name, op in inspect.getmembers(ops, inspect.isfunction)
        if op.__module__ == ops.__name__ and not name.startswith("_")
    } - {"use", "backend_of"}
    cases = calls()
    faults = dict.fromkeys(named ^ set(cases), "no case for this op")
    for backend in ("eager", "triton"):
        for name, case in cases.items():
            op, tensors = case()
            try:
                with ops.use(backend), strict.checked(), torch.no_grad():
                    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
                    torch.testing.assert_close(compiled(*tensors), op(*tensors))
            except Exception as error:
                # told with the others: one op must not hide the next
                faults[f"{name} ({backend})"] = f"{type(error).__name__}: {error}"
    print(json.dumps(faults))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
