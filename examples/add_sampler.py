"""A new sampler is a function that fills a table. This one takes the estimate of the clean song and
adds fresh noise down to the next level ("ping-pong" sampling, for models distilled to few steps):

    x' = alpha(t') x0 + sigma(t') noise        x0 = p x + q out

    python examples/add_sampler.py --steps 8 --out pingpong.wav

x0 is an affine function of the latents x and the network's output `out`, so a row of the table is
a = alpha' p, b = alpha' q, d = sigma'. The loop, the fused kernel and every exported graph then run
it. To add a sampler for good, put the function into mudit_engine/diffusion/samplers.py, call it in
_continuous_steps, and add its name to the samplers that a configuration accepts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mudit_engine import SongPipeline, SongRequest
from mudit_engine.audio import save_audio
from mudit_engine.diffusion.paths import Path as NoisePath
from mudit_engine.diffusion.paths import make_path
from mudit_engine.diffusion.samplers import SamplerTable, continuous_levels
from mudit_engine.runtime.denoiser import denoise


def pingpong_rows(path: NoisePath, levels: Tensor) -> Tensor:
    """Coefficients [S, 6] (a, b, c, d, p, q) in float64. levels [S + 1] fall from 1 to 0."""
    t, to = levels[:-1], levels[1:]
    p, q = path.x0_coefficients(t)
    zero = torch.zeros_like(t)
    return torch.stack(
        [path.alpha(to) * p, path.alpha(to) * q, zero, path.sigma(to), zero, zero], 1
    )


def pingpong_table(path: NoisePath, *, steps: int, guidance: float = 1.0) -> SamplerTable:
    """What the denoiser takes: a row a step, guidance as its last column."""
    levels = continuous_levels(path, steps)
    rows = torch.cat(
        [pingpong_rows(path, levels), torch.full((steps, 1), guidance, dtype=torch.float64)], 1
    ).float()
    return SamplerTable(
        times=path.network_time(levels[:-1]),
        rows=rows,
        guided=(guidance != 1.0,) * steps,
        noise_scale=1.0,
        needs_noise=tuple((rows[:, 3] != 0).tolist()),
    )


def check_on_known_data(path: NoisePath, steps: int) -> None:
    """Data that are one point have a known exact network; the sampler must end on the point."""
    point, levels = 0.7, continuous_levels(path, steps)
    torch.manual_seed(0)
    x = torch.randn(1000, dtype=torch.float64)
    for row, t in zip(pingpong_rows(path, levels), levels[:-1], strict=True):
        eps = (x - path.alpha(t) * point) / path.sigma(t)
        out = path.dalpha(t) * point + path.dsigma(t) * eps  # the velocity of such data
        x = row[0] * x + row[1] * out + row[3] * torch.randn_like(x)
    torch.testing.assert_close(x, torch.full_like(x, point), rtol=0, atol=1e-6)


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Denoise a song with a sampler of our own.")
    parser.add_argument("--model", default="tiny", help="an embedded model or a model folder")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("pingpong.wav"))
    options = parser.parse_args(arguments)
    pipeline = SongPipeline.from_pretrained(options.model)
    path = make_path(pipeline.config.path)
    check_on_known_data(path, options.steps)

    # the request is read as any other; only its table is ours
    request = SongRequest(description="抒情，钢琴，C 大调", seconds=options.seconds, seed=1)
    song = pipeline.reader.inputs(pipeline.reader.read(request))
    song = replace(song, table=pingpong_table(path, steps=options.steps, guidance=2.0))
    [latents] = denoise(pipeline.runtime, [pipeline.runtime.prepare(song)])
    audio = pipeline.decode(latents, options.seconds)
    save_audio(options.out, audio, pipeline.config.vae.sample_rate)
    print(f"{options.steps} steps of the new sampler: {options.out}")


if __name__ == "__main__":
    main()
