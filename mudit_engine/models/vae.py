"""The spectral VAE: audio <-> latents at about 10.77 Hz. Compressed magnitudes are coded; the
decoder makes up the phases.

    encoder   x = (log(|STFT| + floor) - mean) / scale per bin (or |STFT|^compression)
              mean = W x + net(x), log-variance = net(x) of patches of `fold` frames
    decoder   x^ = W' z + net(z, W' z), unit phases u = net(z, W' z)
              audio = ISTFT(GriffinLim(magnitude(x^) u))

W and W' are the whitened principal components of the patches, found in closed form by `fit_linear`;
the last layers of every `net` start at zero, so the module starts as exactly that linear codec
(which keeps pitch) and training only refines it. Stereo is coded as mid = (L + R) / 2, side = (L -
R) / 2 and their balance 2 Re(M S*) / (|M|^2 + |S|^2), which says left from right.

All norms are per frame and every layer has a finite reach, so runtime/decode.py decodes chunk by
chunk and exactly. No complex numbers in the decoder: with `vae.stft.set_transform("matrix")` it
exports as products, convolutions and shifted adds.

    vae = SpectralVAE(config.vae); vae.fit_linear(songs)
    mean_NTC, logvar_NTC = vae.encode(audio_NcS); audio_NcS = vae.decode(mean_NTC)

Shapes: N songs, c audio channels, S samples, F STFT frames (F = T fold), K bins, X features of a
frame (K, stereo 3 K), T latent frames, C latent channels, D width, P = fold X features of a patch.
Everything is fp32, and spectra stay so under autocast or where the decoder's network alone is in
half precision (`vae.decoder.to(torch.bfloat16)`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudit_engine.config import VaeConfig
from mudit_engine.models.spectral import Stft, magnitude, with_magnitude

LOGVAR_START = -4.0  # posterior standard deviation 0.14 on latents of unit variance
LOGVAR_RANGE = (-12.0, 4.0)
SPREAD, HEARD_FRAMES = 0.5, 128  # see fit_latents
MAX_MAGNITUDE = 10.0  # 20 x a full-scale sine: a wild latent gives loud noise rather than inf


class Spectrum(NamedTuple):
    """What the decoder says of each frame before phase refinement."""

    features_NFX: Tensor  # standardised, comparable with SpectralVAE.features(audio)
    mid_real_NFK: Tensor
    mid_imag_NFK: Tensor
    side_NFK: Tensor | None  # magnitude of the side channel, and its phase relative to mid
    side_real_NFK: Tensor | None
    side_imag_NFK: Tensor | None


class ConvNeXtBlock(nn.Module):
    """x + g * MLP(LN(depthwise conv(x))) along time; the norm is per frame (over D only)."""

    def __init__(self, width: int, kernel_size: int, *, scale: float) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.gain = nn.Parameter(torch.full((width,), scale))

    def forward(self, x_NTD: Tensor) -> Tensor:
        h_NTD = self.norm(self.mix(x_NTD.transpose(1, 2)).transpose(1, 2))
        return x_NTD + self.gain * self.down(F.gelu(self.up(h_NTD)))


def _blocks(width: int, kernel_size: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ConvNeXtBlock(width, kernel_size, scale=1.0 / count) for _ in range(count))


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """Features -> mean and log-variance of the latents."""

    def __init__(self, config: VaeConfig, features: int) -> None:
        super().__init__()
        c = config
        self.fold = c.fold
        self.linear = nn.Linear(c.fold * features, c.latent_channels, bias=False)
        self.frame_in = nn.Linear(features, c.frame_width)
        self.frame_blocks = _blocks(c.frame_width, c.kernel_size, c.frame_blocks)
        self.latent_in = nn.Linear(c.fold * c.frame_width, c.latent_width)
        self.latent_blocks = _blocks(c.latent_width, c.kernel_size, c.latent_blocks)
        self.norm = nn.LayerNorm(c.latent_width)
        self.out = _zero_linear(c.latent_width, 2 * c.latent_channels)
        nn.init.constant_(self.out.bias[c.latent_channels :], LOGVAR_START)

    def forward(self, features_NFX: Tensor) -> tuple[Tensor, Tensor]:
        h_NFD = self.frame_in(features_NFX)
        for block in self.frame_blocks:
            h_NFD = block(h_NFD)
        h_NTD = self.latent_in(h_NFD.unflatten(1, (-1, self.fold)).flatten(2))
        for block in self.latent_blocks:
            h_NTD = block(h_NTD)
        mean_NTC, logvar_NTC = self.out(self.norm(h_NTD)).chunk(2, -1)
        return self.linear(
            features_NFX.unflatten(1, (-1, self.fold)).flatten(2)
        ) + mean_NTC, logvar_NTC.clamp(*LOGVAR_RANGE)


def decoder_size(config: VaeConfig) -> tuple[int, int]:
    """Width and number of the decoder's blocks at the STFT frame rate."""
    width, count = config.decoder_width, config.decoder_blocks
    return (
        config.frame_width if width is None else width,
        config.frame_blocks if count is None else count,
    )


class Decoder(nn.Module):
    """Latents -> features and the turn of phases from their start (real, imaginary; a second pair
    for side relative to mid; 0: none).
    """

    def __init__(self, config: VaeConfig, features: int, phases: int) -> None:
        super().__init__()
        c = config
        width, count = decoder_size(c)
        self.fold = c.fold
        self.linear = nn.Linear(c.latent_channels, c.fold * features, bias=False)
        self.latent_in = nn.Linear(c.latent_channels, c.latent_width)
        self.latent_blocks = _blocks(c.latent_width, c.kernel_size, c.latent_blocks)
        self.frame_in = nn.Linear(c.latent_width, c.fold * width)
        self.frame_skip = nn.Linear(features, width)
        self.frame_blocks = _blocks(width, c.kernel_size, count)
        self.norm = nn.LayerNorm(width)
        self.feature_out = _zero_linear(width, features)
        self.phases = phases
        self.phase_out = _zero_linear(width, phases) if c.phase_head else None

    def forward(self, latents_NTC: Tensor) -> tuple[Tensor, Tensor]:
        linear_NFX = self.linear(latents_NTC).unflatten(2, (self.fold, -1)).flatten(1, 2)
        h_NTD = self.latent_in(latents_NTC)
        for block in self.latent_blocks:
            h_NTD = block(h_NTD)
        h_NFD = self.frame_in(h_NTD).unflatten(2, (self.fold, -1)).flatten(1, 2) + self.frame_skip(
            linear_NFX
        )
        for block in self.frame_blocks:
            h_NFD = block(h_NFD)
        h_NFD = self.norm(h_NFD)
        phase_NFP = (
            self.phase_out(h_NFD)
            if self.phase_out is not None
            else h_NFD.new_zeros(*h_NFD.shape[:2], self.phases)
        )
        return linear_NFX + self.feature_out(h_NFD), phase_NFP


class SpectralVAE(nn.Module):
    """Encoder, decoder and the constants between audio, features and latents (see the module's
    docstring).
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.stereo = config.channels == 2
        self.stft = Stft(config.n_fft, config.stft_hop)
        features = self.stft.bins * (3 if self.stereo else 1)
        self.encoder = Encoder(config, features)
        self.decoder = Decoder(config, features, self.stft.bins * (4 if self.stereo else 2))
        nn.init.orthogonal_(self.encoder.linear.weight)
        self.decoder.linear.weight.data.copy_(self.encoder.linear.weight.T)
        # until fitted: about the level and spread of music (a bin at -60 dB, 20 dB up or down)
        mean, spread = (
            (1e-3**config.compression, 0.5 * 1e-2**config.compression)
            if config.compression
            else (math.log(1e-3), 2.0)
        )
        self.register_buffer("feature_mean", torch.full((features,), mean))
        self.register_buffer("feature_scale", torch.full((features,), spread))
        if self.stereo:
            self.feature_mean[2 * self.stft.bins :] = 0.0
            self.feature_scale[2 * self.stft.bins :] = 0.5
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        self.register_buffer("start_phase", _start_phases(config.fold, self.stft), persistent=False)
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.start_phase: Tensor

    @property
    def receptive_field(self) -> int:
        """Latent frames of context on each side that the samples of one latent frame depend on."""
        c, reach = self.config, self.config.kernel_size // 2
        overlap = self.stft.overlap
        frames = (
            reach * decoder_size(c)[1] + (overlap - 1) * c.phase_refinements + (overlap + 1) // 2
        )
        return reach * c.latent_blocks + -(-frames // c.fold)

    def features(self, audio_NcS: Tensor) -> Tensor:
        """Standardised features [N, F, X] of audio [N, channels, S], zero-padded to whole latent
        frames.
        """
        return (self._raw_features(audio_NcS) - self.feature_mean) / self.feature_scale

    def _raw_features(self, audio_NcS: Tensor) -> Tensor:
        if (
            audio_NcS.dim() != 3
            or audio_NcS.shape[1] != self.config.channels
            or audio_NcS.shape[2] == 0
        ):
            raise ValueError(
                f"audio of shape {tuple(audio_NcS.shape)} given: this VAE takes [songs, "
                f"{self.config.channels}, samples > 0]"
            )
        audio_NcS = F.pad(audio_NcS.float(), (0, -audio_NcS.shape[2] % self.config.hop))
        if not self.stereo:
            return self._compress(magnitude(*self.stft(audio_NcS[:, 0])))
        mid_real, mid_imag = self.stft(audio_NcS.mean(1))
        side_real, side_imag = self.stft((audio_NcS[:, 0] - audio_NcS[:, 1]) / 2)
        mid, side = magnitude(mid_real, mid_imag), magnitude(side_real, side_imag)
        # the floor fades the balance out where there is nothing to hear, instead of coding the
        # direction of silence
        power = mid.square() + side.square() + self.config.floor**2
        balance = 2 * (mid_real * side_real + mid_imag * side_imag) / power
        return torch.cat((self._compress(mid), self._compress(side), balance), -1)

    def encode(self, audio_NcS: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log-variance), both [N, T, C], of audio [N, channels, S]; T = ceil(S / hop).
        Raises ValueError for another shape.
        """
        mean_NTC, logvar_NTC = self.encoder(self.features(audio_NcS))
        return mean_NTC, logvar_NTC

    def spectrum(self, latents_NTC: Tensor) -> Spectrum:
        """The decoder's answer before phase refinement; training compares its features, and
        synthesises it without refinement.
        """
        features_NFX, phase_NFP = self.decoder(latents_NTC.to(self.decoder.linear.weight.dtype))
        features_NFX, phase_NFP = features_NFX.float(), phase_NFP.float()
        raw_NFX = features_NFX * self.feature_scale + self.feature_mean
        phases = phase_NFP.split(self.stft.bins, -1)
        mid = self._expand(raw_NFX[..., : self.stft.bins])
        start_FK2 = self.start_phase.repeat(latents_NTC.shape[1], 1, 1)
        mid_real, mid_imag = with_magnitude(
            mid, *_turn(1.0 + phases[0], phases[1], start_FK2[..., 0], start_FK2[..., 1])
        )
        if not self.stereo:
            return Spectrum(features_NFX, mid_real, mid_imag, None, None, None)
        side = self._expand(raw_NFX[..., self.stft.bins : 2 * self.stft.bins])
        # the balance gives the cosine of the angle between side and mid; only the sign of its sine
        # is the network's own a bound and not a sum: onnxscript 0.7 drops the addition of a
        # constant this close to 0, and silence would be 0 / 0
        power = (mid.square() + side.square()).clamp_min(self.config.floor**2)
        cosine = (
            raw_NFX[..., 2 * self.stft.bins :] * power / (2 * mid * side + 1e-2 * power)
        ).clamp(-1, 1)
        sine = (1.0 - cosine.square() + 1e-4).sqrt()
        return Spectrum(
            features_NFX, mid_real, mid_imag, side, cosine + phases[2], sine + phases[3]
        )

    def synthesise(self, spectrum: Spectrum, *, refinements: int | Tensor = 0) -> Tensor:
        """Audio [N, channels, F stft_hop] of a spectrum. Griffin-Lim refines mid's phases; side
        follows at its angle to mid.
        """
        real, imag = spectrum.mid_real_NFK, spectrum.mid_imag_NFK
        if isinstance(refinements, Tensor) or refinements:
            real, imag = self.stft.griffin_lim(magnitude(real, imag), real, imag, steps=refinements)
        mid_NS = self.stft.inverse(real, imag)
        if (
            spectrum.side_NFK is None
            or spectrum.side_real_NFK is None
            or spectrum.side_imag_NFK is None
        ):
            return mid_NS[:, None]
        unit_real, unit_imag = with_magnitude(torch.ones_like(real), real, imag)
        side_real, side_imag = _turn(
            spectrum.side_real_NFK, spectrum.side_imag_NFK, unit_real, unit_imag
        )
        side_NS = self.stft.inverse(*with_magnitude(spectrum.side_NFK, side_real, side_imag))
        return torch.stack((mid_NS + side_NS, mid_NS - side_NS), 1)

    def decode(self, latents_NTC: Tensor) -> Tensor:
        """Audio [N, channels, T hop] of latents [N, T, C] as `encode` gives them (see
        `denormalise`).
        """
        return self.synthesise(
            self.spectrum(latents_NTC), refinements=self.config.phase_refinements
        )

    def normalise(self, latents_NTC: Tensor) -> Tensor:
        """Latents as the DiT sees them: of zero mean, the channels that are heard most spread the
        widest (see `fit_latents`).
        """
        return (latents_NTC - self.latent_mean) / self.latent_std

    def denormalise(self, latents_NTC: Tensor) -> Tensor:
        """What `decode` takes, from what the DiT gives."""
        return latents_NTC * self.latent_std + self.latent_mean

    def _compress(self, magnitude_NFK: Tensor) -> Tensor:
        if self.config.compression:
            return magnitude_NFK.pow(self.config.compression)
        return (magnitude_NFK + self.config.floor).log()

    def _expand(self, compressed_NFK: Tensor) -> Tensor:
        """The inverse of _compress, never negative and never above MAX_MAGNITUDE."""
        if self.config.compression:
            return compressed_NFK.clamp(0.0, MAX_MAGNITUDE**self.config.compression).pow(
                1.0 / self.config.compression
            )
        return (
            compressed_NFK.clamp_max(math.log(MAX_MAGNITUDE)).exp() - self.config.floor
        ).clamp_min(0.0)

    @torch.no_grad()
    def fit_linear(
        self, songs: Sequence[Tensor], *, patches: int = 12000, emphasis: float = 0.5, seed: int = 0
    ) -> float:
        """Sets feature statistics and the linear codec from songs [channels, S] in closed form;
        returns the share of variance kept.

        patches: how many latent frames to fit on, drawn evenly from all songs; they are held in
        memory (fold * X * 4 bytes each). emphasis: weights each bin by (mel bands per Hz)^emphasis,
        as linear bins give three quarters of the code to the top two octaves. Raises ValueError
        when there are fewer patches than latent channels.
        """
        generator = torch.Generator().manual_seed(seed)
        counts = [-(-song.shape[-1] // self.config.hop) for song in songs]
        share = min(1.0, patches / max(sum(counts), 1))
        drawn = []
        for song, count in zip(songs, counts, strict=True):
            pick = torch.randperm(count, generator=generator)[: math.ceil(count * share)]
            drawn.append(
                self._raw_features(song[None])[0].unflatten(0, (-1, self.config.fold))[pick]
            )
        patch_nfX = torch.cat(drawn)
        if len(patch_nfX) <= self.config.latent_channels:
            raise ValueError(
                f"{len(patch_nfX)} patches cannot fit {self.config.latent_channels} components: "
                f"give more audio"
            )
        std_X, mean_X = torch.std_mean(patch_nfX.flatten(0, 1), 0)
        hertz = torch.linspace(0, self.config.sample_rate / 2, self.stft.bins, device=mean_X.device)
        density = (700.0 / (700.0 + hertz)).pow(emphasis)
        weight = (density / density.square().mean().sqrt()).repeat(3 if self.stereo else 1)
        # a bin that never moves (side of a mono song, above a low-pass) must not be blown up to
        # unit variance
        self.feature_mean.copy_(mean_X)
        self.feature_scale.copy_(std_X.clamp_min(0.05 * std_X.max()) / weight)
        patch_nP = ((patch_nfX - self.feature_mean) / self.feature_scale).flatten(1)
        # the randomised decomposition draws from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, singular_C, basis_PC = torch.svd_lowrank(
                patch_nP, q=min(self.config.latent_channels + 16, *patch_nP.shape), niter=3
            )
        keep = self.config.latent_channels
        std_C, basis_PC = singular_C[:keep] / math.sqrt(len(patch_nP)), basis_PC[:, :keep]
        self.encoder.linear.weight.copy_((basis_PC / std_C).T)
        self.decoder.linear.weight.copy_(basis_PC * std_C)
        self.latent_mean.zero_()
        self.latent_std.fill_(1.0)
        return float(std_C.square().sum() / patch_nP.square().sum(1).mean())

    @torch.no_grad()
    def fit_latents(self, songs: Sequence[Tensor]) -> None:
        """Sets latent_mean and latent_std, by which `normalise` works, from the posteriors of songs
        [channels, S].

        Channels differ twentyfold in what they change of the sound (measured on the embedded
        codec). Of unit variance each, fine detail would take as large a part of a diffusion loss as
        pitch and rhythm. Normalised channels therefore have a spread of h^SPREAD, h what one
        standard deviation of the channel changes of the decoded features; their variances average
        to 1.
        """
        encoded = [self.encode(song[None]) for song in songs]
        mean_nC, variance_nC = (
            torch.cat([mean[0] for mean, _ in encoded]),
            torch.cat([logvar[0].exp() for _, logvar in encoded]),
        )
        self.latent_mean.copy_(mean_nC.mean(0))
        std_C = (mean_nC.var(0) + variance_nC.mean(0)).sqrt()
        spread_C = self._heard(
            max((mean for mean, _ in encoded), key=lambda mean: mean.shape[1])[:, :HEARD_FRAMES],
            std_C,
        ).pow(SPREAD)
        self.latent_std.copy_(std_C * spread_C.square().mean().sqrt() / spread_C)

    def _heard(self, latents_1TC: Tensor, std_C: Tensor) -> Tensor:
        """RMS change of the decoded features when each channel in turn moves by one standard
        deviation, [C].
        """
        plain_1FX = self.decoder(latents_1TC)[0]
        moves_CC = torch.diag(std_C)
        changes = [
            (self.decoder(latents_1TC + move_C)[0] - plain_1FX).square().mean()
            for move_C in moves_CC
        ]
        return torch.stack(changes).sqrt().clamp_min(1e-6)


def sample_posterior(
    mean_NTC: Tensor, logvar_NTC: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """mean + std * noise."""
    noise = torch.randn(
        mean_NTC.shape, generator=generator, dtype=mean_NTC.dtype, device=mean_NTC.device
    )
    return mean_NTC + (0.5 * logvar_NTC).exp() * noise


def _turn(real: Tensor, imag: Tensor, by_real: Tensor, by_imag: Tensor) -> tuple[Tensor, Tensor]:
    return real * by_real - imag * by_imag, real * by_imag + imag * by_real


def _start_phases(fold: int, stft: Stft) -> Tensor:
    """Unit vectors [fold, K, 2] that the phase head turns: each bin advances at its own centre
    frequency from frame to frame.

    A phase per place in the latent frame, and not one that runs on through the song: a chunk then
    starts as the whole song does. Where n_fft / stft_hop divides fold there is no jump between
    latent frames either.
    """
    angle = (
        2 * math.pi * stft.hop / stft.n_fft * torch.arange(fold)[:, None] * torch.arange(stft.bins)
    )
    return torch.stack((angle.cos(), angle.sin()), -1)
