"""Short-time Fourier transform, its inverse, Griffin-Lim and mel spectrograms as modules that train, chunk and export.

Frames are centred on (f + 1/2) hop, so S = F hop samples give exactly F frames and F frames give S samples back:

    X[f, k] = sum_n w[n] x[f hop + n - (n_fft - hop) / 2] exp(-2 pi i k (n - n_fft / 2) / n_fft) / sum(w)
    x       = sum_f w (inverse DFT of X[f]) sum(w) / sum_f w^2                      (least squares, exact at both ends too)

With this scale a sine of amplitude A peaks at A / 2, and with time counted from the frame's centre a steady partial has
one phase in all bins of its peak, which is what a network can predict. Spectra are pairs (real, imag), never complex tensors.

`transform="fft"` is torch.fft; `"matrix"` writes both directions as slices, products of small matrices (models/dft.py) and shifted adds,
for runtimes that have no FFT, complex numbers or col2im (ONNX, TensorRT).

    stft = Stft(1024, 256)
    real_NFK, imag_NFK = stft(audio_NS)
    audio_NS = stft.inverse(real_NFK, imag_NFK)

Shapes: N songs x channels, S samples, F frames, K = n_fft / 2 + 1 bins, M mel bands, R = n_fft / hop frames over a sample.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudit_engine.models.dft import FactoredDft

Transform = Literal["fft", "matrix"]


class Stft(nn.Module):
    """The transform pair of one window size (periodic Hann), in fp32. Nothing in it is learned or saved."""

    def __init__(self, n_fft: int, hop: int, *, transform: Transform = "fft") -> None:
        """Raises ValueError unless hop divides n_fft at least twice and n_fft - hop is even."""
        super().__init__()
        if n_fft % hop or n_fft // hop < 2 or (n_fft - hop) % 2:
            raise ValueError(f"n_fft={n_fft} must be an even multiple of hop={hop} samples, at least twice it")
        self.n_fft, self.hop, self.overlap = n_fft, hop, n_fft // hop
        self.bins = n_fft // 2 + 1
        window = torch.hann_window(n_fft, dtype=torch.float64)
        self.gain = n_fft / 2  # the window's sum
        # (-1)^k moves the origin of time from the frame's first sample to its centre
        sign = 1.0 - 2.0 * (torch.arange(self.bins, dtype=torch.float64) % 2)
        self.register_buffer("analysis_window", (window / self.gain).float(), persistent=False)
        self.register_buffer("synthesis_window", (window * self.gain).float(), persistent=False)
        self.register_buffer("squared_window", window.square().float().view(self.overlap, hop), persistent=False)
        self.register_buffer("sign", sign.float(), persistent=False)
        self.analysis_window: Tensor
        self.synthesis_window: Tensor
        self.squared_window: Tensor
        self.sign: Tensor
        self.dft: FactoredDft | None = None
        self.set_transform(transform)

    def set_transform(self, transform: Transform) -> None:
        """Chooses how the DFT is computed; the matrices exist only under "matrix"."""
        if transform not in ("fft", "matrix"):
            raise ValueError(f"transform={transform!r} is unknown: use 'fft' or 'matrix'")
        self.transform = transform
        self.dft = FactoredDft(self.n_fft).to(self.sign.device) if transform == "matrix" else None

    def forward(self, audio_NS: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts [N, F, K] of fp32 audio [N, S]; S is a multiple of hop."""
        return self._bins(*self._analyse(audio_NS))

    def inverse(self, real_NFK: Tensor, imag_NFK: Tensor) -> Tensor:
        """Audio [N, F hop], the least-squares signal of a spectrum [N, F, K]."""
        return self._synthesise(*self._own(real_NFK, imag_NFK), self._level(real_NFK.shape[1]))

    def griffin_lim(
        self, magnitude_NFK: Tensor, real_NFK: Tensor, imag_NFK: Tensor, *, steps: int, momentum: float = 0.99
    ) -> tuple[Tensor, Tensor]:
        """Spectrum with this magnitude whose phases agree better between overlapping frames than those given.

        Fast Griffin-Lim (Perraudin, Balazs, Sondergaard 2013): t' = c + momentum (c - c_before), c = STFT(ISTFT(magnitude * unit(t))).
        Each step looks at overlap - 1 frames on either side and nothing else, so a decode in chunks stays exact.
        """
        # pointwise work does not care for the order of bins, so that nothing is reordered inside the loop
        real, imag = self._own(real_NFK, imag_NFK)
        size = magnitude_NFK if self.dft is None else self.dft.spread(magnitude_NFK)
        floor, level = _floor(size), self._level(magnitude_NFK.shape[1])
        before: tuple[Tensor, Tensor] | None = None
        for _ in range(steps):
            new = self._analyse(self._synthesise(real, imag, level))
            push = new if before is None else (torch.lerp(before[0], new[0], 1 + momentum), torch.lerp(before[1], new[1], 1 + momentum))
            before = new
            real, imag = _scaled(size, floor, *push)
        return self._bins(real, imag)

    def _own(self, real_NFK: Tensor, imag_NFK: Tensor) -> tuple[Tensor, Tensor]:
        """Bins as the transform orders them, with time counted from the frame's first sample."""
        real_NFK, imag_NFK = real_NFK * self.sign, imag_NFK * self.sign
        return (real_NFK, imag_NFK) if self.dft is None else (self.dft.spread(real_NFK), self.dft.spread(imag_NFK, odd=True))

    def _bins(self, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `_own`."""
        if self.dft is not None:
            real, imag = self.dft.collect(real), self.dft.collect(imag, odd=True)
        return real * self.sign, imag * self.sign

    def _analyse(self, audio_NS: Tensor) -> tuple[Tensor, Tensor]:
        side = (self.n_fft - self.hop) // 2
        rows_NJh = F.pad(audio_NS, (side, side)).unflatten(1, (-1, self.hop))
        frames = rows_NJh.shape[1] - self.overlap + 1
        frames_NFn = torch.cat([rows_NJh[:, j : j + frames] for j in range(self.overlap)], -1) * self.analysis_window
        if self.dft is not None:
            real, imag = self.dft(frames_NFn)
            return real, imag
        spectrum = torch.fft.rfft(frames_NFn)
        return spectrum.real, spectrum.imag

    def _synthesise(self, real: Tensor, imag: Tensor, level_1S: Tensor) -> Tensor:
        frames_NFn = torch.fft.irfft(torch.complex(real, imag), n=self.n_fft) if self.dft is None else self.dft.inverse(real, imag)
        return self._overlap_add((frames_NFn * self.synthesis_window).unflatten(2, (self.overlap, self.hop))) / level_1S

    def _level(self, frames: int) -> Tensor:
        """Sum of the squared windows over each sample, [1, F hop]: at least w(hop / 2 from the centre)^2, never near zero."""
        return self._overlap_add(self.squared_window.expand(1, frames, self.overlap, self.hop))

    def _overlap_add(self, frames_NFRh: Tensor) -> Tensor:
        last, side = self.overlap - 1, (self.n_fft - self.hop) // 2
        total = F.pad(frames_NFRh[:, :, 0], (0, 0, 0, last))
        for j in range(1, self.overlap):
            total = total + F.pad(frames_NFRh[:, :, j], (0, 0, j, last - j))
        return total.flatten(1)[:, side:-side]


def with_magnitude(magnitude: Tensor, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """(real, imag) scaled to this magnitude.

    The floor under the division is in proportion to the wanted magnitude: where a bin is all but empty its phase is rounding noise, and
    without the floor that noise would be blown up to full level.
    """
    return _scaled(magnitude, _floor(magnitude), real, imag)


def _floor(magnitude: Tensor) -> Tensor:
    # a bound and not a sum of a tiny constant: onnxscript 0.7 drops such an addition
    return (1e-2 * magnitude).square().clamp_min(1e-14)


def _scaled(magnitude: Tensor, floor: Tensor, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    scale = magnitude * torch.rsqrt(real.square() + imag.square() + floor)
    return real * scale, imag * scale


def mel_filters(sample_rate: int, n_fft: int, mels: int, *, low: float = 30.0, high: float | None = None) -> Tensor:
    """Triangular filters [K, M], each of sum 1, evenly spaced on the mel scale 2595 log10(1 + f / 700) between low and high (Hz)."""

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    edges = 700.0 * (10.0 ** (torch.linspace(mel(low), mel(high or sample_rate / 2), mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    filters = torch.minimum((bins - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - bins) / (edges[2:] - edges[1:-1])).clamp_min(0)
    # a band narrower than a bin may fall between two: it then takes the nearest one
    empty = filters.sum(0) == 0
    filters[(bins - edges[1:-1]).abs().argmin(0)[empty], empty.nonzero()[:, 0]] = 1.0
    return (filters / filters.sum(0)).float()


class LogMel(nn.Module):
    """log(mel magnitude + floor) [N, F, M] of audio [N, S]; S is a multiple of hop."""

    def __init__(self, sample_rate: int, n_fft: int, hop: int, mels: int, *, floor: float = 1e-5) -> None:
        super().__init__()
        self.stft = Stft(n_fft, hop)
        self.floor = floor
        self.register_buffer("filters", mel_filters(sample_rate, n_fft, mels), persistent=False)
        self.filters: Tensor

    def forward(self, audio_NS: Tensor) -> Tensor:
        return (magnitude(*self.stft(audio_NS)) @ self.filters + self.floor).log()


def magnitude(real: Tensor, imag: Tensor) -> Tensor:
    """|real + i imag|, with a finite gradient at 0."""
    return (real.square() + imag.square()).clamp_min(1e-14).sqrt()
