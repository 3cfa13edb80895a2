"""What a step costs the host: the work around launches, measured on a CPU with launches stubbed.

    TRITON_INTERPRET=0 python -m mudit_engine.benchmarks.host_cost --base ../before --out host.json

Rows give microseconds a call of each op, and of a whole step: called op by op, and as the replay of
a captured step, where the graph's own start is left out. --base names another checkout, which is
measured in turns with this one. Whatever is computed is tiny, so that the time is the host's.

What a launch itself costs (Triton's argument handling and the driver) is not in the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEADS, HEAD_DIM, BLOCKS = 2, 64, 10
CALLS, ROUNDS = 200, 5


def microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """The least of some rounds: what else the machine does only adds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time() - start) / calls)
    return 1e6 * best


def measure_ops(songs: int) -> dict[str, float]:
    """Microseconds a call of every op on a guided batch of `songs`, nothing recorded."""
    import torch

    from mudit_engine.kernels import adaln, bias_gelu, guided_step
    from mudit_engine.kernels import attention as attention_kernels
    from mudit_engine.kernels import pack_qkv as packing
    from mudit_engine.kernels.worklist import Segments

    lengths, width = [16] * (2 * songs), HEADS * HEAD_DIM
    rows = sum(lengths)
    x, y = torch.zeros(2, rows, width, dtype=torch.bfloat16)
    qkv = torch.zeros(rows, 3 * width, dtype=torch.bfloat16)
    gain, bias = torch.ones(1, HEAD_DIM), torch.zeros(width)
    cos, sin = torch.zeros(2, rows, HEAD_DIM // 2)
    mod = torch.zeros(len(lengths), 6, width, dtype=torch.bfloat16)
    # adaln's own name in any checkout, whichever file defines it
    runs = vars(adaln)["Runs"](tuple((count, i) for i, count in enumerate(lengths)))
    segments = Segments.self_attention(lengths)
    q, k, v = packing.pack_qkv(qkv, gain, gain[0], cos, sin, heads=HEADS)
    spans = guided_step.SongRows(
        tuple((16 * i, 16, 16 * i, 16 * (songs + i)) for i in range(songs))
    )
    # with noise: without it, coefficients that lie on the host are looked at, as none is on a GPU
    latents = torch.zeros(3, 16 * songs, 8)
    out, table = torch.zeros(rows, 8), torch.zeros(songs, 7)
    gate, shift, scale = mod[:, 0], mod[:, 1], mod[:, 2]
    calls: dict[str, Callable[[], object]] = {
        "attention": lambda: attention_kernels.attention(q, k, v, segments, cos[None], sin[None]),
        "pack_qkv": lambda: packing.pack_qkv(qkv, gain, gain[0], cos, sin, heads=HEADS),
        "residual_norm": lambda: adaln.residual_norm(x, y, gate, shift, scale, runs, inplace=True),
        "layer_norm_modulate": lambda: adaln.layer_norm_modulate(x, shift, scale, runs),
        "bias_gelu": lambda: bias_gelu.bias_gelu(x, bias),
        "guided_step": lambda: guided_step.guided_step(
            latents[0], latents[1], out, latents[2], table, spans
        ),
    }
    with torch.inference_mode():
        return {name: microseconds(call) for name, call in calls.items()}


def measure_step(songs: int) -> dict[str, float]:
    """Microseconds of a step of a small network of 10 blocks: op by op and, where the runtime
    captures steps, as a replay.
    """
    import torch

    from mudit_engine import ops
    from mudit_engine.config import DitConfig, PathConfig, SamplerConfig
    from mudit_engine.diffusion.samplers import sampler_table
    from mudit_engine.models.dit import DiT
    from mudit_engine.runtime.denoiser import Denoiser, SongInputs

    config = DitConfig(
        latent_channels=8, width=HEADS * HEAD_DIM, heads=HEADS, blocks=BLOCKS, lyric_width=64,
        lyric_blocks=1, description_width=16, max_fragments=4, vocabulary_size=50, mlp_ratio=1.0,
    )  # fmt: skip
    dit = DiT(config).eval().requires_grad_(False)
    table = sampler_table(PathConfig(), SamplerConfig(steps=60, guidance=2.0))

    def states(denoiser: Denoiser) -> list[Any]:
        inputs = [
            SongInputs(
                frames=4,
                seconds=0.4,
                table=table,
                seed=i,
                descriptions=torch.zeros(1, 16),
                negative=torch.zeros(0, 16),
                lyric_ids=[1, 2],
            )
            for i in range(songs)
        ]
        return [denoiser.prepare(song) for song in inputs]

    found = {}
    with ops.use("triton"):
        plain = Denoiser(dit)
        batch = states(plain)

        def step() -> None:
            for state in batch:
                state.step = 0
            plain.step(batch)

        found["step"] = microseconds(step, 20)
        try:
            from mudit_engine.runtime.captured import GraphCache  # noqa: F401
        except ImportError:
            return found

        class Nothing:
            def capture(self, work: Callable[[], None]) -> tuple[Callable[[], None], int]:
                return (lambda: None), 0

        captured = Denoiser(dit, capture=Nothing())
        found["captured_step"] = float("inf")
        for _ in range(ROUNDS):
            batch = states(captured)
            captured.step(batch)
            start = time.process_time()
            for _ in range(50):
                captured.step(batch)
            took = 1e6 * (time.process_time() - start) / 50
            found["captured_step"] = min(found["captured_step"], took)
    return found


def worker(songs: int) -> None:
    """Measures the package that this process imports; prints a JSON object."""
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from mudit_engine.profiling.aot import _driver

    torch.set_num_threads(1)
    JITFunction.run = lambda self, *args, **kwargs: None
    driver.set_active(_driver(90))
    print(json.dumps({**measure_ops(songs), **measure_step(songs)}))


def run(root: Path, songs: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(root), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--worker", str(songs)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", default="1,4,32", help="songs of a batch, some of them")
    parser.add_argument("--base", type=Path, help="another checkout, to compare with")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        worker(given.worker)
        return
    here, rows = Path(__file__).resolve().parents[1], []
    for songs in (int(one) for one in given.songs.split(",")):
        turns: dict[str, list[dict[str, float]]] = {"now": [], "base": []}
        for _ in range(given.turns):
            turns["now"].append(run(here, songs))
            if given.base is not None:
                turns["base"].append(run(given.base.resolve(), songs))
        for op in turns["now"][0]:
            now = statistics.median(turn[op] for turn in turns["now"])
            row = {"op": op, "songs": songs, "host_us": round(now, 1)}
            same = "step" if op == "captured_step" else op
            if turns["base"]:
                before = statistics.median(turn[same] for turn in turns["base"])
                row |= {"base_us": round(before, 1), "ratio": round(before / now, 2)}
            rows.append(row)
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    if given.out:
        from mudit_engine.files import write_json
        from mudit_engine.hardware import environment

        document = {"schema_version": 1, "env": environment(), "results": rows}
        if given.base is not None:
            document["base_commit"] = subprocess.run(
                ["git", "-C", str(given.base), "rev-parse", "HEAD"],
                capture_output=True,
                text=True,
                check=False,
            ).stdout.strip()
        write_json(given.out, document)


if __name__ == "__main__":
    main()
