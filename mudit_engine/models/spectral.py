"""Short-time Fourier transform, its inverse, Griffin-Lim and mel spectrograms as modules that
train, chunk and export.

Frames are centred on (f + 1/2) hop, so S = F hop samples give exactly F frames and F frames give S
samples back:

    X[f, k] = sum_n w[n] x[f hop + n - (n_fft - hop) / 2] e(k (n - n_fft / 2) / n_fft) / sum(w)
              with e(a) = exp(-2 pi i a)
    x  = sum_f w (inverse DFT of X[f]) sum(w) / sum_f w^2  (least squares, exact at both ends too)

With this scale a sine of amplitude A peaks at A / 2, and with time counted from the frame's centre
a steady partial has one phase in all bins of its peak, which is what a network can predict. Spectra
are pairs (real, imag), never complex tensors.

`transform="fft"` is torch.fft; `"matrix"` writes both directions as slices, products of small
matrices (models/dft.py) and shifted adds, for runtimes that have no FFT, complex numbers or col2im
(ONNX, TensorRT).

    stft = Stft(1024, 256)
    real_NFK, imag_NFK = stft(audio_NS)
    audio_NS = stft.inverse(real_NFK, imag_NFK)

Shapes: N songs x channels, S samples, F frames, K = n_fft / 2 + 1 bins, M mel bands, R = n_fft /
hop frames over a sample.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from mudit_engine.models.dft import FactoredDft

Transform = Literal["fft", "matrix"]
BLOCK_FRAMES = 64  # of Griffin-Lim on a CPU: 0.5 MiB a tensor for 2048 samples a frame


class Stft(nn.Module):
    """The transform pair of one window size (periodic Hann), in fp32. Nothing in it is learned or
    saved.
    """

    def __init__(self, n_fft: int, hop: int, *, transform: Transform = "fft") -> None:
        """Raises ValueError unless hop divides n_fft at least twice and n_fft - hop is even."""
        super().__init__()
        if n_fft % hop or n_fft // hop < 2 or (n_fft - hop) % 2:
            raise ValueError(
                f"n_fft={n_fft} must be an even multiple of hop={hop} samples, at least twice it"
            )
        self.n_fft, self.hop, self.overlap = n_fft, hop, n_fft // hop
        self.bins = n_fft // 2 + 1
        window = torch.hann_window(n_fft, dtype=torch.float64)
        self.gain = n_fft / 2  # the window's sum
        # (-1)^k moves the origin of time from the frame's first sample to its centre
        sign = 1.0 - 2.0 * (torch.arange(self.bins, dtype=torch.float64) % 2)
        self.register_buffer("analysis_window", (window / self.gain).float(), persistent=False)
        self.register_buffer("synthesis_window", (window * self.gain).float(), persistent=False)
        self.register_buffer(
            "squared_window", window.square().float().view(self.overlap, hop), persistent=False
        )
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
        self,
        magnitude_NFK: Tensor,
        real_NFK: Tensor,
        imag_NFK: Tensor,
        *,
        steps: int | Tensor,
        momentum: float = 0.99,
    ) -> tuple[Tensor, Tensor]:
        """Spectrum with this magnitude whose phases agree better between overlapping frames than
        those given.

        Fast Griffin-Lim (Perraudin, Balazs, Sondergaard 2013): t' = c + momentum (c - c_before), c
        = STFT(ISTFT(magnitude * unit(t))). Each step looks at overlap - 1 frames on either side and
        nothing else, so a decode in chunks stays exact. It searches, and roundings grow with
        momentum: after 64 steps two exact implementations are some 1e-3 apart, and both as
        consistent. `steps` may be a scalar tensor under transform="matrix", so that it is an input
        of an exported graph.
        """
        differentiated = torch.is_grad_enabled() and (
            magnitude_NFK.requires_grad or real_NFK.requires_grad or imag_NFK.requires_grad
        )
        if self.dft is None and not differentiated:  # it writes in place
            return self._griffin_lim_by_blocks(
                magnitude_NFK, real_NFK, imag_NFK, int(steps), momentum
            )
        dft, level = self.dft, self._level(magnitude_NFK.shape[1])
        # pointwise work does not care for the order of bins, so that nothing is reordered inside
        # the loop
        size = magnitude_NFK if dft is None else dft.spread(magnitude_NFK)
        floor = _floor(size)

        def step(
            count: Tensor, real: Tensor, imag: Tensor, real_before: Tensor, imag_before: Tensor
        ) -> tuple[Tensor, ...]:
            new_real, new_imag = self._analyse(self._synthesise(real, imag, level))
            push = (count > 0) * momentum  # at first there is nothing to push away from
            real, imag = (
                new_real + push * (new_real - real_before),
                new_imag + push * (new_imag - imag_before),
            )
            return (count + 1, *_scaled(size, floor, real, imag), new_real, new_imag)

        real, imag = self._own(real_NFK, imag_NFK)
        state: tuple[Tensor, ...] = (
            torch.zeros((), dtype=torch.int64),
            real,
            imag,
            torch.zeros_like(real),
            torch.zeros_like(imag),
        )
        if torch.compiler.is_exporting():
            # one body in the graph, however many steps there are
            state = while_loop(lambda count, *_: count < steps, step, state)
        else:
            for _ in range(int(steps)):
                state = step(*state)
        return self._bins(state[1], state[2])

    @torch.no_grad()
    def _griffin_lim_by_blocks(
        self, magnitude_NFK: Tensor, real_NFK: Tensor, imag_NFK: Tensor, steps: int, momentum: float
    ) -> tuple[Tensor, Tensor]:
        """The same by torch.fft, some frames at a time: what one block needs stays in a core's
        cache.
        """
        songs, frames, side = (
            len(magnitude_NFK),
            magnitude_NFK.shape[1],
            (self.n_fft - self.hop) // 2,
        )
        spectrum_NFK = torch.complex(*self._own(real_NFK, imag_NFK))
        before_NFK2 = torch.zeros_like(torch.view_as_real(spectrum_NFK))
        floor_NFK = _floor(magnitude_NFK)
        # windowed frames, between as many silent ones as overlap with the first and the last
        last = self.overlap - 1
        pieces_NFRh = magnitude_NFK.new_zeros(songs, frames + 2 * last, self.overlap, self.hop)
        # audio with `side` zeros on either end, as the analysis wants it: by rows of hop samples
        # and by overlapping frames
        audio_NS = magnitude_NFK.new_empty(songs, (frames + last) * self.hop)
        rows_NJh, frames_NFn = (
            audio_NS.unflatten(1, (-1, self.hop)),
            audio_NS.unfold(1, self.n_fft, self.hop),
        )
        gain_Jh = F.pad(self._level(frames).reciprocal(), (side, side)).unflatten(
            1, (-1, self.hop)
        )[0]
        count = BLOCK_FRAMES if magnitude_NFK.device.type == "cpu" else frames
        blocks = [(start, min(start + count, frames)) for start in range(0, frames, count)]
        for step in range(steps):
            for start, stop in blocks:
                made_NFn = torch.fft.irfft(spectrum_NFK[:, start:stop], n=self.n_fft).mul_(
                    self.synthesis_window
                )
                pieces_NFRh[:, last + start : last + stop] = made_NFn.unflatten(
                    2, (self.overlap, self.hop)
                )
                rows = slice(start, stop if stop < frames else frames + last)
                # one order of addition, wherever blocks and chunks begin: a difference in rounding
                # would grow
                total_NJh = pieces_NFRh[:, last + rows.start : last + rows.stop, 0]
                for j in range(1, self.overlap):
                    total_NJh = (
                        total_NJh + pieces_NFRh[:, last + rows.start - j : last + rows.stop - j, j]
                    )
                torch.mul(total_NJh, gain_Jh[rows], out=rows_NJh[:, rows])
            for start, stop in blocks:
                new_NFK2 = torch.view_as_real(
                    torch.fft.rfft(frames_NFn[:, start:stop] * self.analysis_window)
                )
                pushed_NFK2 = (
                    torch.lerp(before_NFK2[:, start:stop], new_NFK2, 1 + momentum)
                    if step
                    else new_NFK2
                )
                before_NFK2[:, start:stop] = new_NFK2
                real, imag = pushed_NFK2.unbind(-1)
                power_NFK = torch.addcmul(floor_NFK[:, start:stop], real, real).addcmul_(imag, imag)
                scale_NFK = power_NFK.rsqrt_().mul_(magnitude_NFK[:, start:stop])
                torch.mul(
                    torch.view_as_complex(pushed_NFK2), scale_NFK, out=spectrum_NFK[:, start:stop]
                )
        return self._bins(spectrum_NFK.real, spectrum_NFK.imag)

    def _own(self, real_NFK: Tensor, imag_NFK: Tensor) -> tuple[Tensor, Tensor]:
        """Bins as the transform orders them, with time counted from the frame's first sample."""
        real_NFK, imag_NFK = real_NFK * self.sign, imag_NFK * self.sign
        return (
            (real_NFK, imag_NFK)
            if self.dft is None
            else (self.dft.spread(real_NFK), self.dft.spread(imag_NFK, odd=True))
        )

    def _bins(self, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `_own`."""
        if self.dft is not None:
            real, imag = self.dft.collect(real), self.dft.collect(imag, odd=True)
        return real * self.sign, imag * self.sign

    def _analyse(self, audio_NS: Tensor) -> tuple[Tensor, Tensor]:
        side = (self.n_fft - self.hop) // 2
        rows_NJh = F.pad(audio_NS, (side, side)).unflatten(1, (-1, self.hop))
        frames = rows_NJh.shape[1] - self.overlap + 1
        frames_NFn = (
            torch.cat([rows_NJh[:, j : j + frames] for j in range(self.overlap)], -1)
            * self.analysis_window
        )
        if self.dft is not None:
            real, imag = self.dft(frames_NFn)
            return real, imag
        spectrum = torch.fft.rfft(frames_NFn)
        return spectrum.real, spectrum.imag

    def _synthesise(self, real: Tensor, imag: Tensor, level_1S: Tensor) -> Tensor:
        frames_NFn = (
            torch.fft.irfft(torch.complex(real, imag), n=self.n_fft)
            if self.dft is None
            else self.dft.inverse(real, imag)
        )
        return (
            self._overlap_add(
                (frames_NFn * self.synthesis_window).unflatten(2, (self.overlap, self.hop))
            )
            / level_1S
        )

    def _level(self, frames: int) -> Tensor:
        """Sum of the squared windows over each sample, [1, F hop]: at least w(hop / 2 from the
        centre)^2, never near zero.
        """
        return self._overlap_add(self.squared_window.expand(1, frames, self.overlap, self.hop))

    def _overlap_add(self, frames_NFRh: Tensor) -> Tensor:
        last, side = self.overlap - 1, (self.n_fft - self.hop) // 2
        total = F.pad(frames_NFRh[:, :, 0], (0, 0, 0, last))
        for j in range(1, self.overlap):
            total = total + F.pad(frames_NFRh[:, :, j], (0, 0, j, last - j))
        return total.flatten(1)[:, side:-side]


def with_magnitude(magnitude: Tensor, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """(real, imag) scaled to this magnitude.

    The floor under the division is in proportion to the wanted magnitude: where a bin is all but
    empty its phase is rounding noise, and without the floor that noise would be blown up to full
    level.
    """
    return _scaled(magnitude, _floor(magnitude), real, imag)


def _floor(magnitude: Tensor) -> Tensor:
    # a bound and not a sum of a tiny constant: onnxscript 0.7 drops such an addition
    return (1e-2 * magnitude).square().clamp_min(1e-14)


def _scaled(magnitude: Tensor, floor: Tensor, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    scale = magnitude * torch.rsqrt(real.square() + imag.square() + floor)
    return real * scale, imag * scale


def mel_filters(
    sample_rate: int, n_fft: int, mels: int, *, low: float = 30.0, high: float | None = None
) -> Tensor:
    """Triangular filters [K, M], each of sum 1, evenly spaced on the mel scale 2595 log10(1 + f /
    700) between low and high (Hz).
    """

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    edges = 700.0 * (
        10.0
        ** (
            torch.linspace(mel(low), mel(high or sample_rate / 2), mels + 2, dtype=torch.float64)
            / 2595.0
        )
        - 1.0
    )
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    filters = torch.minimum(
        (bins - edges[:-2]) / (edges[1:-1] - edges[:-2]),
        (edges[2:] - bins) / (edges[2:] - edges[1:-1]),
    ).clamp_min(0)
    # a band narrower than a bin may fall between two: it then takes the nearest one
    empty = filters.sum(0) == 0
    filters[(bins - edges[1:-1]).abs().argmin(0)[empty], empty.nonzero()[:, 0]] = 1.0
    return (filters / filters.sum(0)).float()


class LogMel(nn.Module):
    """log(mel magnitude + floor) [N, F, M] of audio [N, S]; S is a multiple of hop."""

    def __init__(
        self, sample_rate: int, n_fft: int, hop: int, mels: int, *, floor: float = 1e-5
    ) -> None:
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
