"""The discrete Fourier transform of real frames as products of small matrices, for runtimes that
have no FFT or a slow one.

    n = P Q, sample = Q i + j, bin = k + P l            (Cooley and Tukey 1965, two factors)
    X[k, l] = sum_j W_Q^(j l) W_n^(j k) sum_i W_P^(i k) x[i, j],        W_n = exp(-2 pi i / n)

Real frames need k = 0 .. P / 2 only: the other bins are complex conjugates. n = 2048 takes 0.5
MFLOP as 64 x 32, against 8.4 as one matrix.

    dft = FactoredDft(2048)
    real, imag = dft(frames)                    # [..., P / 2 + 1, Q]: the transform's own order
    frames = dft.inverse(real, imag)
    bins = dft.collect(real)                    # [..., n / 2 + 1]

Pointwise work may stay in the own order, where a few bins stand twice (as conjugates).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FactoredDft(nn.Module):
    """Forward without scale, inverse with 1 / n, as torch.fft. n must be even. Constants in fp32;
    nothing is learned or saved.
    """

    def __init__(self, n: int) -> None:
        """Raises ValueError for an odd n."""
        super().__init__()
        if n % 2:
            raise ValueError(f"n={n} must be even")
        self.n = n
        self.rows, self.columns = _factors(n)
        p, q = self.rows, self.columns
        k, j = (
            torch.arange(p // 2 + 1, dtype=torch.float64)[:, None],
            torch.arange(q, dtype=torch.float64),
        )
        rows_kP = 2 * math.pi / p * k * torch.arange(p, dtype=torch.float64)
        columns_QQ = 2 * math.pi / q * j[:, None] * j
        twiddle_kQ = 2 * math.pi / n * k * j
        # a bin of 0 < k < P / 2 also stands for its conjugate; those of k = 0 and P / 2 are all
        # there
        weight_k = torch.full((p // 2 + 1,), 2.0 / n, dtype=torch.float64)
        weight_k[0] = weight_k[-1] = 1.0 / n
        constants = {
            "rows_real": rows_kP.cos(),
            "rows_imag": -rows_kP.sin(),
            "turn_real": twiddle_kQ.cos(),
            "turn_imag": -twiddle_kQ.sin(),
            # (real, imag) side by side times these: real and imaginary part of a product with W_Q,
            # and with its conjugate
            "columns_real": torch.cat((columns_QQ.cos(), columns_QQ.sin())),
            "columns_imag": torch.cat((-columns_QQ.sin(), columns_QQ.cos())),
            "back_real": torch.cat((columns_QQ.cos(), -columns_QQ.sin())),
            "back_imag": torch.cat((columns_QQ.sin(), columns_QQ.cos())),
            "back_rows": torch.cat((rows_kP.cos().T * weight_k, -rows_kP.sin().T * weight_k), 1),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)
        bins = torch.arange(p // 2 + 1)[:, None] + p * torch.arange(q)
        mirrored = torch.where(bins > n // 2, n - bins, bins).flatten()
        place = torch.empty(n // 2 + 1, dtype=torch.int64)
        place[mirrored] = torch.arange(mirrored.numel())  # the last one wins, so that ...
        direct = (bins <= n // 2).flatten()
        # ... a bin comes from itself where it can
        place[mirrored[direct]] = torch.arange(mirrored.numel())[direct]
        self.register_buffer("spread_index", mirrored, persistent=False)
        self.register_buffer("spread_sign", torch.where(direct, 1.0, -1.0), persistent=False)
        self.register_buffer("collect_index", place, persistent=False)
        self.register_buffer(
            "collect_sign", torch.where(direct, 1.0, -1.0)[place], persistent=False
        )
        self.rows_real: Tensor
        self.rows_imag: Tensor
        self.turn_real: Tensor
        self.turn_imag: Tensor
        self.columns_real: Tensor
        self.columns_imag: Tensor
        self.back_real: Tensor
        self.back_imag: Tensor
        self.back_rows: Tensor
        self.spread_index: Tensor
        self.spread_sign: Tensor
        self.collect_index: Tensor
        self.collect_sign: Tensor

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(real, imag), [..., P / 2 + 1, Q] each, of real frames [..., n]."""
        x = frames.unflatten(-1, (self.rows, self.columns))
        real, imag = self.rows_real @ x, self.rows_imag @ x
        both = torch.cat(
            (
                real * self.turn_real - imag * self.turn_imag,
                real * self.turn_imag + imag * self.turn_real,
            ),
            -1,
        )
        return both @ self.columns_real, both @ self.columns_imag

    def inverse(self, real: Tensor, imag: Tensor) -> Tensor:
        """Real frames [..., n] of a spectrum in its own order; the imaginary parts of bins 0 and n
        / 2 are ignored.
        """
        both = torch.cat((real, imag), -1)
        real, imag = both @ self.back_real, both @ self.back_imag
        turned = torch.cat(
            (
                real * self.turn_real + imag * self.turn_imag,
                imag * self.turn_real - real * self.turn_imag,
            ),
            -2,
        )
        return (self.back_rows @ turned).flatten(-2)

    def spread(self, bins: Tensor, *, odd: bool = False) -> Tensor:
        """Bins [..., n / 2 + 1] in the transform's own order; odd for imaginary parts."""
        own = bins[..., self.spread_index]
        return (own * self.spread_sign if odd else own).unflatten(
            -1, (self.rows // 2 + 1, self.columns)
        )

    def collect(self, own: Tensor, *, odd: bool = False) -> Tensor:
        """The inverse of `spread`."""
        bins = own.flatten(-2)[..., self.collect_index]
        return bins * self.collect_sign if odd else bins


def _factors(n: int) -> tuple[int, int]:
    """(P, Q) of the fewest multiplications; P even."""

    def cost(p: int) -> int:
        return (p // 2 + 1) * (n + 2 * (n // p) ** 2)

    p = min((p for p in range(2, n + 1, 2) if n % p == 0), key=cost)
    return p, n // p
