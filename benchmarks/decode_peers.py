"""Latents to audio: the spectral VAE's decoder beside waveform decoders of the same rate and about
the same parameters.

    rows = run(Options(seconds=10, rounds=5))                         # or: mudit bench run decode

The peers are diffusers' AutoencoderOobleck (Stable Audio's codec) and transformers' DAC, built at
44.1 kHz, two channels (DAC: one channel, twice the batch), with strides whose product is our hop,
and channels chosen so that the decoder has at most as many parameters as ours. Whole songs are
decoded in our chunks by ours (runtime/decode.py), at once by the peers.

Our own gate: the chunked decode equals the whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mudit_engine.benchmarks.registry import Options, Row, rows_of
from mudit_engine.benchmarks.step_peers import usual_place
from mudit_engine.benchmarks.timing import Gemm, interleave
from mudit_engine.config import VaeConfig
from mudit_engine.errors import GateError
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.profiling.ledger import Ledger
from mudit_engine.runtime.decode import TorchDecoder, decode_chunked

OURS = "mudit"
STRIDES = (2, 8, 16, 16)
"""Their product is the hop of 4,096 samples."""
LIMIT = 1e-4


def vae_config(size: str) -> VaeConfig:
    """The full codec, or at the smaller sizes one of half its widths and depths, or a quarter."""
    if size == "published":
        return VaeConfig()
    if size == "tiny":
        return VaeConfig(frame_width=96, frame_blocks=1, latent_width=128, latent_blocks=2)
    return VaeConfig(frame_width=192, frame_blocks=2, latent_width=512, latent_blocks=4)


def decoder_parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def largest(make: Callable[[int], nn.Module], limit: int, sizes: tuple[int, ...]) -> nn.Module:
    """The largest of the decoders with at most `limit` parameters."""
    fitting = [size for size in sizes if decoder_parameters(make(size)) <= limit]
    return make(fitting[-1] if fitting else sizes[0])


def oobleck(config: VaeConfig, limit: int) -> nn.Module:
    from diffusers import AutoencoderOobleck

    def make(channels: int) -> nn.Module:
        model = AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=list(STRIDES),
            channel_multiples=[1, 2, 4, 8],
            decoder_channels=channels,
            decoder_input_channels=config.latent_channels,
            audio_channels=config.channels,
            sampling_rate=config.sample_rate,
        )
        decoder: nn.Module = model.decoder
        return decoder.eval()

    return largest(make, limit, (16, 24, 32, 48, 64, 96, 128, 160))


def dac(config: VaeConfig, limit: int) -> nn.Module:
    from transformers import DacConfig, DacModel

    def make(channels: int) -> nn.Module:
        model = DacModel(
            DacConfig(
                encoder_hidden_size=8,
                decoder_hidden_size=channels,
                downsampling_ratios=list(STRIDES),
                upsampling_ratios=list(reversed(STRIDES)),
                hidden_size=config.latent_channels,
                n_codebooks=1,
                sampling_rate=config.sample_rate,
            )
        )
        decoder: nn.Module = model.decoder
        return decoder.eval()

    return largest(make, limit, (64, 96, 128, 192, 256, 384, 512, 768, 1024))


def run(options: Options) -> list[Row]:
    """Rows of the engine's decoder and its peers. Raises GateError when chunks change the audio."""
    config, place = vae_config(options.size), usual_place()
    seconds, rounds = (
        options.seconds or (10.0 if options.size == "published" else 3.0),
        options.rounds or 3,
    )
    torch.manual_seed(0)
    vae = SpectralVAE(config).eval().requires_grad_(False).to(place)
    frames = math.ceil(seconds * config.frame_rate)
    latents_TC = torch.randn(
        frames, config.latent_channels, generator=torch.Generator().manual_seed(1)
    ).to(place)
    decoder, chunk = TorchDecoder(vae), max(128, 8 * vae.receptive_field)
    options.report("checking")
    with torch.inference_mode():
        whole = decode_chunked(decoder, latents_TC, chunk_frames=frames)
        # chunks so small that a short song has several
        parts = decode_chunked(decoder, latents_TC, chunk_frames=max(frames // 3, 8))
    error = float((parts - whole).norm() / whole.norm())
    if not error <= LIMIT:
        raise GateError(
            f"chunks decode to other audio than the whole by {error:.1e} (limit {LIMIT:.0e}): no "
            f"speed is reported"
        )

    def ours() -> Tensor:
        with torch.inference_mode():
            return decode_chunked(decoder, latents_TC, chunk_frames=chunk)

    calls: dict[str, Callable[[], Any]] = {OURS: ours}
    sizes = {OURS: decoder_parameters(vae.decoder)}
    x_NCT = latents_TC.T[None].contiguous()
    for name, make, channels in (
        (
            ("diffusers AutoencoderOobleck", oobleck, 1),
            ("transformers DacModel", dac, config.channels),
        )
        if options.peers
        else ()
    ):
        peer = make(config, sizes[OURS]).requires_grad_(False).to(place)
        calls[name] = _decoding(peer, x_NCT.expand(channels, -1, -1).contiguous())
        sizes[name] = decoder_parameters(peer)
    counted = {}
    for name, call in calls.items():
        with Ledger() as ledger:
            out = call()
        samples = out.shape[-1]
        if not torch.isfinite(out).all() or not abs(samples - frames * config.hop) <= config.hop:
            raise GateError(
                f"{name} gives {samples} samples for {frames * config.hop}, or NaN: no speed is "
                f"reported"
            )
        counted[name] = ledger
    options.report(f"{rounds} rounds of {len(calls)} decoders")
    gemm = Gemm.of(device=place)
    times = interleave({**calls, "gemm": gemm.call}, rounds=rounds)
    yardstick = times.pop("gemm")
    more: dict[str, dict[str, Any]] = {
        name: {
            "parameters": sizes[name],
            "memory_bytes": ledger.peak_bytes,
            "figures": {"launches": ledger.launches},
        }
        for name, ledger in counted.items()
    }
    more[OURS] |= {"error": error, "limit": LIMIT}
    return rows_of(
        "decode",
        f"{options.size}, {seconds:g} s, {config.sample_rate} Hz, {config.channels} channels",
        times,
        reference=next((n for n in calls if n != OURS), OURS),
        roles={OURS: "ours"},
        audio_seconds=seconds,
        flops={name: ledger.flops for name, ledger in counted.items()},
        gemm=(yardstick, gemm.flops),
        more=more,
    )


def _decoding(peer: nn.Module, x_NCT: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            out: Tensor = peer(x_NCT)
            return out

    return call
