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

        batch, frames, context = padded(songs, guidance=guidance)
        g = torch.Generator().manual_seed(1)
        x = torch.randn(batch, PEER_LATENT, frames, generator=g)
        states = torch.randn(batch, context, CONTEXT_WIDTH, generator=g)
        summary = torch.randn(batch, 1, GLOBAL_WIDTH, generator=g)
        # the model rotates half of each head and prepends one global token
        rotary = get_1d_rotary_pos_embed(
            self.head_dim // 2, frames + 1, use_real=True, repeat_interleave_real=False
        )
        x, states, summary, time = like(self.model, x, states, summary, torch.full((batch,), 0.5))
        rotary = tuple(table.to(x.device) for table in rotary)

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


class AceStepPeer:
    """diffusers' AceStepTransformer1DModel of equal width, depth and heads, a gated MLP of about
    equal parameters. Its odd blocks attend within a window, as designed; a batch is padded to its
    longest song. One row a frame: its patches of two would halve the work.
    """

    name = "diffusers AceStepTransformer1DModel"

    def __init__(self, config: DitConfig) -> None:
        require("diffusers", "the peer of the benchmark")
        from diffusers import AceStepTransformer1DModel

        torch.manual_seed(0)
        self.width = config.width
        self.model = AceStepTransformer1DModel(
            hidden_size=config.width,
            intermediate_size=config.mlp_width * 2 // 3 // 32 * 32,
            num_hidden_layers=config.blocks,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.head_dim,
            in_channels=3 * PEER_LATENT,
            audio_acoustic_hidden_dim=PEER_LATENT,
            patch_size=1,
        ).eval()

    def prepare(
        self, songs: Sequence[tuple[int, int]], *, guidance: bool
    ) -> Callable[[], torch.Tensor]:
        """A function that runs one step of the songs."""
        batch, frames, context = padded(songs, guidance=guidance)
        x, states = noise(batch, frames, PEER_LATENT), noise(batch, context, self.width)
        clean, time = noise(batch, frames, 2 * PEER_LATENT), torch.full((batch,), 0.5)
        x, states, clean, time = like(self.model, x, states, clean, time)

        def step() -> torch.Tensor:
            with torch.inference_mode():
                return self.model(x, time, time, states, clean, return_dict=False)[0]

        return step


class LongCatPeer:
    """diffusers' LongCatAudioDiTTransformer of equal width, depth and heads. A batch is padded to
    its longest song, with the masks that its pipeline gives.
    """

    name = "diffusers LongCatAudioDiTTransformer"

    def __init__(self, config: DitConfig) -> None:
        require("diffusers", "the peer of the benchmark")
        from diffusers import LongCatAudioDiTTransformer

        torch.manual_seed(0)
        self.model = LongCatAudioDiTTransformer(
            dit_dim=config.width,
            dit_depth=config.blocks,
            dit_heads=config.heads,
            dit_text_dim=CONTEXT_WIDTH,
            latent_dim=PEER_LATENT,
            use_latent_condition=False,
            ff_mult=config.mlp_ratio,
        ).eval()

    def prepare(
        self, songs: Sequence[tuple[int, int]], *, guidance: bool
    ) -> Callable[[], torch.Tensor]:
        """A function that runs one step of the songs."""
        batch, frames, context = padded(songs, guidance=guidance)
        turns = 2 if guidance else 1
        rows = torch.tensor([f for f, _ in songs] * turns)
        words = torch.tensor([max(n, 1) for _, n in songs] * turns)
        x, states = noise(batch, frames, PEER_LATENT), noise(batch, context, CONTEXT_WIDTH)
        x, states, time = like(self.model, x, states, torch.full((batch,), 0.5))
        device = x.device
        row_mask = (torch.arange(frames)[None] < rows[:, None]).to(device)
        word_mask = (torch.arange(context)[None] < words[:, None]).to(device)

        def step() -> torch.Tensor:
            with torch.inference_mode():
                return self.model(x, states, word_mask, time, row_mask, return_dict=False)[0]

        return step


def padded(songs: Sequence[tuple[int, int]], *, guidance: bool) -> tuple[int, int, int]:
    """Sequences, frames and context rows of the padded batch; guidance doubles the sequences."""
    return (
        len(songs) * (2 if guidance else 1),
        max(f for f, _ in songs),
        max(max(n for _, n in songs), 1),
    )


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def like(model: torch.nn.Module, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors where the model is, in its dtype."""
    weight = next(model.parameters())
    return tuple(tensor.to(weight.device, weight.dtype) for tensor in tensors)


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
