"""The transform pair against torch.stft, perfect reconstruction to the ends, the matrix form,
Griffin-Lim and mel filters.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mudit_engine.models import spectral
from mudit_engine.models.spectral import LogMel, Stft, magnitude, mel_filters, with_magnitude

SIZES = [
    pytest.param(n, h, id=f"n{n}-hop{h}") for n, h in ((64, 16), (64, 32), (96, 16), (256, 32))
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_analysis_equals_torch_stft(n_fft: int, hop: int) -> None:
    audio = noise(2, 20 * hop)
    real, imag = Stft(n_fft, hop)(audio)
    side = (n_fft - hop) // 2
    window = torch.hann_window(n_fft)
    padded = torch.nn.functional.pad(audio, (side, side))
    expected = (
        torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True).transpose(
            1, 2
        )
        / window.sum()
    )
    centred = expected * (-1.0) ** torch.arange(n_fft // 2 + 1)
    torch.testing.assert_close(torch.complex(real, imag), centred, atol=1e-6, rtol=0)


@pytest.mark.parametrize("transform", ["fft", "matrix"])
@pytest.mark.parametrize("frames", [1, 2, 3, 50])
@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_inverse_gives_every_sample_back_to_both_ends(
    n_fft: int, hop: int, frames: int, transform: str
) -> None:
    stft = Stft(n_fft, hop, transform=transform)
    audio = noise(2, frames * hop)
    torch.testing.assert_close(stft.inverse(*stft(audio)), audio, atol=2e-6, rtol=0)


def test_a_sine_peaks_at_half_its_amplitude_with_one_phase_over_its_peak() -> None:
    stft, k = Stft(1024, 256), 40
    audio = 0.8 * torch.cos(2 * math.pi * k / 1024 * torch.arange(8192) + 0.3)[None]
    real, imag = (part[0, 16] for part in stft(audio))
    level = magnitude(real, imag)
    assert level.argmax() == k and abs(float(level[k]) - 0.4) < 1e-4
    phases = torch.atan2(imag, real)[k - 1 : k + 2]
    assert float(phases.max() - phases.min()) < 1e-3


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_matrix_form_equals_fft(n_fft: int, hop: int) -> None:
    fft, matrix = Stft(n_fft, hop), Stft(n_fft, hop, transform="matrix")
    audio, real, imag = (
        noise(2, 30 * hop),
        noise(2, 30, fft.bins, seed=1),
        noise(2, 30, fft.bins, seed=2),
    )
    for a, b in zip(fft(audio), matrix(audio), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        fft.inverse(real, imag), matrix.inverse(real, imag), atol=1e-5 * n_fft, rtol=1e-5
    )


def test_nothing_of_the_transform_is_saved_with_a_model() -> None:
    assert not Stft(64, 16, transform="matrix").state_dict()


@pytest.mark.parametrize(("n_fft", "hop"), [(100, 30), (64, 64), (9, 3)])
def test_sizes_that_cannot_overlap_are_refused(n_fft: int, hop: int) -> None:
    if (n_fft, hop) == (9, 3):
        Stft(n_fft, hop)  # n_fft - hop is even
        return
    with pytest.raises(ValueError, match=f"n_fft={n_fft}"):
        Stft(n_fft, hop)


def test_griffin_lim_makes_the_spectrum_consistent() -> None:
    stft = Stft(256, 64)
    time = torch.arange(128 * 64) / 8000
    audio = (
        sum(torch.sin(2 * math.pi * f * time * (1 + 0.05 * time)) for f in (220.0, 331.0, 890.0))[
            None
        ]
        / 3
    )
    wanted = magnitude(*stft(audio))

    def distance(steps: int, momentum: float) -> float:
        start = with_magnitude(wanted, noise(*wanted.shape, seed=3), noise(*wanted.shape, seed=4))
        got = magnitude(
            *stft(stft.inverse(*stft.griffin_lim(wanted, *start, steps=steps, momentum=momentum)))
        )
        return float((got - wanted).norm() / wanted.norm())

    before, plain, fast = distance(0, 0.0), distance(30, 0.0), distance(30, 0.99)
    assert plain < 0.5 * before
    assert fast < plain, "momentum must help"


def test_griffin_lim_keeps_a_spectrum_that_is_already_consistent() -> None:
    stft = Stft(256, 64)
    audio = noise(1, 64 * 64)
    real, imag = stft(audio)
    refined = stft.inverse(*stft.griffin_lim(magnitude(real, imag), real, imag, steps=4))
    torch.testing.assert_close(refined, audio, atol=2e-3, rtol=0)


def test_griffin_lim_step_reaches_overlap_minus_one_frames() -> None:
    stft, steps = Stft(64, 16), 3
    level = noise(1, 80, stft.bins).abs() + 0.1
    start = noise(1, 80, stft.bins, seed=1), noise(1, 80, stft.bins, seed=2)
    other = level.clone(), start[0].clone(), start[1].clone()
    for part in other:
        part[:, 40] *= -2
    a = stft.griffin_lim(level, *start, steps=steps)[0]
    b = stft.griffin_lim(other[0].abs(), *other[1:], steps=steps)[0]
    moved = ((a - b).abs().amax((0, 2)) > 0).nonzero()[:, 0]
    reach = (stft.overlap - 1) * steps
    assert moved.min() == 40 - reach and moved.max() == 40 + reach


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_griffin_lim_is_the_same_by_fft_and_by_matrices(steps: int) -> None:
    level = noise(2, 70, 33).abs() + 0.1
    start = noise(2, 70, 33, seed=1), noise(2, 70, 33, seed=2)
    fast = Stft(64, 16).griffin_lim(level, *start, steps=steps)
    exact = Stft(64, 16, transform="matrix").griffin_lim(level, *start, steps=torch.tensor(steps))
    for a, b in zip(fast, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_griffin_lim_adds_in_one_order_wherever_a_block_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A difference in rounding would grow with every step, and a song decoded in chunks would be
    another one.
    """
    stft = Stft(64, 16)
    level = noise(1, 150, stft.bins).abs() + 0.1
    start = noise(1, 150, stft.bins, seed=1), noise(1, 150, stft.bins, seed=2)
    expected = stft.griffin_lim(level, *start, steps=20)
    monkeypatch.setattr(spectral, "BLOCK_FRAMES", 7)
    for a, b in zip(stft.griffin_lim(level, *start, steps=20), expected, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_magnitude_has_a_gradient_at_silence() -> None:
    real = torch.zeros(3, requires_grad=True)
    magnitude(real, torch.zeros(3)).sum().backward()
    assert real.grad is not None and real.grad.isfinite().all()


def test_mel_filters_are_normalised_even_when_narrower_than_a_bin() -> None:
    filters = mel_filters(22050, 512, 128)
    assert filters.shape == (257, 128)
    torch.testing.assert_close(filters.sum(0), torch.ones(128))
    assert (filters.argmax(0).diff() >= 0).all()


def test_log_mel_finds_the_band_of_a_sine() -> None:
    mel = LogMel(22050, 1024, 256, 64)
    audio = torch.sin(2 * math.pi * 1000 * torch.arange(22016) / 22050)[None]
    band = int(mel(audio)[0, 40].argmax())
    centre = 22050 / 1024 * float((mel.filters[:, band] * torch.arange(513)).sum())
    assert abs(centre - 1000) < 60
