"""Peak memory and time of the VAE decode of one song, for several chunk sizes and for the whole
song at once.

    python -m mudit_engine.benchmarks.decode_memory --preset musit-380m \\
      --seconds 260 --chunks 32,128,512,0 --json

Each chunk size (0: the whole song in one piece) runs in a process of its own. `peak_mib` is the
peak of the resident memory above what the process held with the weights loaded; the finished audio
is part of it. Weights are random: neither memory nor time depends on them. Reads /proc, so it runs
on Linux.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import click


def measure(preset: str, seconds: float, chunk_frames: int, threads: int) -> dict[str, Any]:
    """One decode in this process: peak memory in MiB, seconds, and their ratio to the length of the
    audio.
    """
    import torch

    from mudit_engine.benchmarks.timing import resident_bytes
    from mudit_engine.config import load_config
    from mudit_engine.models.vae import SpectralVAE
    from mudit_engine.runtime.decode import decode_chunked
    from mudit_engine.sizes import song_frames

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = load_config(preset).vae
    frames = song_frames(config, seconds)
    vae = SpectralVAE(config).eval()
    latents_TC = torch.randn(frames, config.latent_channels)
    # library buffers and thread pools are not the decode's
    decode_chunked(vae, latents_TC[:1], chunk_frames=1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (proc(5))
    before, start, cpu_start = resident_bytes("VmRSS"), time.perf_counter(), time.process_time()
    audio_cS = decode_chunked(vae, latents_TC, chunk_frames=chunk_frames or frames)
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        "preset": preset,
        "seconds_of_audio": round(audio_cS.shape[1] / config.sample_rate, 1),
        "latent_frames": frames,
        "chunk_frames": chunk_frames or "whole",
        "halo_frames": vae.receptive_field,
        "peak_mib": round((resident_bytes("VmHWM") - before) / 2**20),
        "audio_mib": round(audio_cS.numel() * 4 / 2**20),
        "weights_mib": round(sum(p.numel() for p in vae.decoder.parameters()) * 4 / 2**20),
        "seconds": round(elapsed, 2),
        "cpu_seconds": round(cpu, 2),
        "real_time_factor": round(elapsed * config.sample_rate / audio_cS.shape[1], 4),
        "threads": threads,
    }


def in_new_process(preset: str, seconds: float, chunk_frames: int, threads: int) -> dict[str, Any]:
    """`measure` where nothing ran before it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (preset, seconds, chunk_frames, threads))


@click.command(help=__doc__)
@click.option("--preset", default="musit-380m", show_default=True)
@click.option("--seconds", default=260.0, show_default=True)
@click.option(
    "--chunks",
    default="32,128,512",
    show_default=True,
    help="Latent frames per chunk, several; 0 is the whole song.",
)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(preset: str, seconds: float, chunks: str, threads: int, as_json: bool) -> None:
    rows = []
    for chunk in chunks.split(","):
        rows.append(in_new_process(preset, seconds, int(chunk), threads))
        if not as_json:
            row = rows[-1]
            click.echo(
                f"chunk {row['chunk_frames']!s:>6}: peak {row['peak_mib']:6d} MiB above "
                f"{row['weights_mib']} MiB of weights "
                f"(audio itself {row['audio_mib']}), {row['seconds']:7.2f} s ({row['cpu_seconds']} "
                f"CPU-s) for {row['seconds_of_audio']} s"
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
