"""Strong peers to measure against, built from packages at the workload's own size.

peer = StableAudioPeer(load_config("published").dit)
peer.step(((1536, 1024),), guidance=False)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mudit_engine.availability import require
from mudit_engine.config import DitConfig
from mudit_engine.models.spectral import magnitude
from mudit_engine.models.vae import SpectralVAE

CONTEXT_WIDTH = 1024
GLOBAL_WIDTH = 512
PEER_LATENT = 96


class StableAudioPeer:
    """diffusers' StableAudioDiTModel of equal width, depth and heads. A batch is padded to its
    longest song, as its pipeline does.
    """

    name = "diffusers StableAudioDiTModel"

    def __init__(self, config: DitConfig) -> None:
        require("diffusers", "the peer of the benchmark")
        from diffusers import StableAudioDiTModel

        self.head_dim = config.head_dim
        torch.manual_seed(0)
        self.model = StableAudioDiTModel(
            sample_size=1536,
            in_channels=PEER_LATENT,
            out_channels=PEER_LATENT,
            num_layers=config.blocks,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.heads,
            num_key_value_attention_heads=config.heads,
            cross_attention_dim=CONTEXT_WIDTH,
            cross_attention_input_dim=CONTEXT_WIDTH,
            global_states_input_dim=GLOBAL_WIDTH,
        ).eval()

    def prepare(
        self, songs: Sequence[tuple[int, int]], *, guidance: bool
    ) -> Callable[[], torch.Tensor]:
        """A function that runs one step of the songs (with guidance: twice the batch, as its
        pipeline does).
        """
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        batch = len(songs) * (2 if guidance else 1)
        frames, context = max(f for f, _ in songs), max(n for _, n in songs)
        g = torch.Generator().manual_seed(1)
        x = torch.randn(batch, PEER_LATENT, frames, generator=g)
        states = torch.randn(batch, context, CONTEXT_WIDTH, generator=g)
        summary = torch.randn(batch, 1, GLOBAL_WIDTH, generator=g)
        # the model rotates half of each head and prepends one global token
        rotary = get_1d_rotary_pos_embed(
            self.head_dim // 2, frames + 1, use_real=True, repeat_interleave_real=False
        )
        time = torch.full((batch,), 0.5)

        def step() -> torch.Tensor:
            with torch.inference_mode():
                return self.model(
                    x,
                    time,
                    encoder_hidden_states=states,
                    global_hidden_states=summary,
                    rotary_embedding=rotary,
                    return_dict=False,
                )[0]

        return step


class PlainPhaseSearch:
    """Fast Griffin-Lim on a mono codec's spectra by torch.stft and torch.istft, whole songs at
    once, as torchaudio has it.
    """

    def __init__(self, vae: SpectralVAE) -> None:
        self.vae = vae
        self.window = torch.hann_window(vae.stft.n_fft)

    @torch.inference_mode()
    def decode(self, latents_NTC: Tensor) -> Tensor:
        """Audio [N, samples] of normalised latents."""
        return self._search(self._asked(latents_NTC))

    @torch.inference_mode()
    def inconsistency(self, latents_NTC: Tensor) -> tuple[float, float]:
        """Distance of the audio's magnitudes from those asked for, as a share of these: the codec's
        own audio, and this peer's.
        """
        asked_NFK = self._asked(latents_NTC)
        own_NFK = magnitude(
            *self.vae.stft(self.vae.decode(self.vae.denormalise(latents_NTC))[:, 0])
        )
        made_NFK = (
            self._spectrum(self._search(asked_NFK)).abs()[:, : asked_NFK.shape[1]]
            / self.vae.stft.gain
        )
        ours, theirs = (
            float((found - asked_NFK).norm() / asked_NFK.norm()) for found in (own_NFK, made_NFK)
        )
        return ours, theirs

    def _asked(self, latents_NTC: Tensor) -> Tensor:
        spectrum = self.vae.spectrum(self.vae.denormalise(latents_NTC))
        return magnitude(spectrum.mid_real_NFK, spectrum.mid_imag_NFK)

    def _search(self, asked_NFK: Tensor, momentum: float = 0.99) -> Tensor:
        size_NFK = asked_NFK * self.vae.stft.gain
        unit_NFK = torch.polar(torch.ones_like(size_NFK), torch.zeros_like(size_NFK))
        before_NFK = torch.zeros_like(unit_NFK)
        for _ in range(self.vae.config.phase_refinements):
            found_NFK = self._spectrum(self._audio(size_NFK * unit_NFK))
            unit_NFK, before_NFK = found_NFK - before_NFK * (momentum / (1 + momentum)), found_NFK
            unit_NFK = unit_NFK / (unit_NFK.abs() + 1e-16)
        return self._audio(size_NFK * unit_NFK)

    def _spectrum(self, audio_NS: Tensor) -> Tensor:
        stft = self.vae.stft
        return torch.stft(
            audio_NS, stft.n_fft, stft.hop, window=self.window, return_complex=True
        ).mT

    def _audio(self, spectrum_NFK: Tensor) -> Tensor:
        return torch.istft(
            spectrum_NFK.mT, self.vae.stft.n_fft, self.vae.stft.hop, window=self.window
        )
