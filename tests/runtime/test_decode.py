"""A chunked decode is the whole decode, whatever the chunk size; progress and streaming."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mudit_engine.config import VaeConfig
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.runtime.decode import decode_chunked, decode_stream

TOLERANCE = 1e-5


@cache
def small(channels: int, refinements: int, fold: int = 4) -> SpectralVAE:
    """Random weights everywhere, the zero layers too."""
    config = VaeConfig(
        sample_rate=8000, channels=channels, n_fft=64, stft_hop=16, fold=fold, latent_channels=8,
        frame_width=16, frame_blocks=2, latent_width=16, latent_blocks=2, kernel_size=5,
        phase_refinements=refinements,
    )  # fmt: skip
    return randomised(config)


def randomised(config: VaeConfig) -> SpectralVAE:
    torch.manual_seed(0)
    vae = SpectralVAE(config)
    for layer in (vae.decoder.feature_out, vae.decoder.phase_out):
        torch.nn.init.normal_(layer.weight, std=0.05)
    return vae.eval()


def latents(frames: int, channels: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(frames, channels, generator=torch.Generator().manual_seed(seed))


def whole(vae: SpectralVAE, latents_TC: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.decode(latents_TC[None])[0]


@settings(max_examples=40)
@given(
    frames=st.integers(1, 90),
    chunk=st.integers(1, 100),
    channels=st.sampled_from([1, 2]),
    refinements=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_any_chunk_size_gives_the_whole_decode(
    frames: int, chunk: int, channels: int, refinements: int, seed: int
) -> None:
    vae, song = small(channels, refinements), latents(frames, seed=seed)
    expected = whole(vae, song)
    assert expected.abs().max() > 1e-3, "silence would prove nothing"
    torch.testing.assert_close(
        decode_chunked(vae, song, chunk_frames=chunk), expected, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("fold", [1, 3, 6], ids="fold{}".format)
def test_exact_where_the_overlap_does_not_divide_the_fold(fold: int) -> None:
    vae, song = small(1, 2, fold), latents(60)
    torch.testing.assert_close(
        decode_chunked(vae, song, chunk_frames=7), whole(vae, song), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("transform", ["fft", "matrix"])
def test_exact_with_many_refinements_on_loud_latents(transform: str) -> None:
    vae, song = randomised(small(1, 24).config), 4 * latents(150)
    vae.stft.set_transform(transform)
    expected = whole(vae, song)
    error = (
        decode_chunked(vae, song, chunk_frames=64) - expected
    ).abs().max() / expected.abs().max().clamp_min(1.0)
    assert error <= TOLERANCE


def test_a_halo_one_receptive_field_too_short_would_be_noticed() -> None:
    class Short:
        config = small(2, 2).config
        receptive_field = 1
        decode = staticmethod(small(2, 2).decode)

    song = latents(40)
    assert (
        decode_chunked(Short(), song, chunk_frames=8) - whole(small(2, 2), song)
    ).abs().max() > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_full_size_is_exact_too(chunk: int) -> None:
    vae, song = full_size(), latents(72 if chunk > 1 else 5, channels=96)
    torch.testing.assert_close(
        decode_chunked(vae, song, chunk_frames=chunk), whole(vae, song), atol=TOLERANCE, rtol=0
    )


@cache
def full_size() -> SpectralVAE:
    return randomised(VaeConfig())


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc"
)
def test_memory_does_not_grow_with_the_song_beyond_its_audio() -> None:
    from mudit_engine.benchmarks.decode_memory import in_new_process

    short, long = (in_new_process("tiny", seconds, 64, 1) for seconds in (20.0, 120.0))
    assert (
        long["peak_mib"] - long["audio_mib"] < 1.3 * (short["peak_mib"] - short["audio_mib"]) + 20
    )


def test_stream_yields_the_song_in_order_and_tells_progress() -> None:
    vae, song, seen = small(2, 1), latents(20), []
    chunks = list(
        decode_stream(
            vae, song, chunk_frames=8, progress=lambda done, total: seen.append((done, total))
        )
    )
    assert [chunk.shape[1] // vae.config.hop for chunk in chunks] == [8, 8, 4]
    assert seen == [(8, 20), (16, 20), (20, 20)]
    torch.testing.assert_close(torch.cat(chunks, 1), whole(vae, song), atol=TOLERANCE, rtol=0)


def test_the_first_chunk_of_a_stream_does_not_wait_for_the_rest() -> None:
    vae, decoded = small(1, 0), []

    class Counting:
        config, receptive_field = vae.config, vae.receptive_field

        def decode(self, latents_NTC: Tensor) -> Tensor:
            decoded.append(latents_NTC.shape[1])
            return vae.decode(latents_NTC)

    next(decode_stream(Counting(), latents(200), chunk_frames=10))
    assert decoded == [10 + vae.receptive_field]


def test_a_consumer_of_the_stream_keeps_its_gradients() -> None:
    for _ in decode_stream(small(1, 0), latents(4), chunk_frames=2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("shape", [(8,), (1, 4, 8), (4, 9)], ids=str)
def test_other_shapes_are_refused_before_anything_is_decoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one song is \[frames, 8\]"):
        decode_stream(small(1, 0), torch.zeros(shape), chunk_frames=4)


def test_chunk_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_frames=0 must be at least 1"):
        decode_chunked(small(1, 0), latents(4), chunk_frames=0)
