"""Latents of any length to audio in bounded memory, exactly: each chunk is decoded with the VAE's
receptive field on both sides.

    audio[a:b] = decode(latents[a - halo : b + halo])[halo hop : -halo hop]

cut off at the song's own ends.

Inside the halo a chunk differs from the whole decode (zero padding meets it early), outside it does
not, so joining needs no cross-fade.

    audio_cS = decode_chunked(vae, latents_TC, chunk_frames=128)
    for audio_cS in decode_stream(vae, latents_TC, chunk_frames=64): send(audio_cS)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mudit_engine.config import VaeConfig

if TYPE_CHECKING:
    from mudit_engine.models.vae import SpectralVAE

DECODE_FRAMES = 128  # latent frames decoded at once, at least
FIRST_FRAMES = 16  # of a song's first piece, at least


class LatentDecoder(Protocol):
    """What a decode needs: the module itself, or a runtime that stands in for it."""

    @property
    def config(self) -> VaeConfig: ...

    @property
    def receptive_field(self) -> int: ...

    def decode(self, latents_NTC: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TorchDecoder:
    """The VAE's decoder for normalised latents, as the song transformer makes them."""

    vae: SpectralVAE

    @property
    def config(self) -> VaeConfig:
        return self.vae.config

    @property
    def receptive_field(self) -> int:
        return self.vae.receptive_field

    def decode(self, latents_NTC: Tensor) -> Tensor:
        return self.vae.decode(self.vae.denormalise(latents_NTC))


def decode_stream(
    vae: LatentDecoder,
    latents_TC: Tensor,
    *,
    chunk_frames: int,
    first_frames: int | None = None,
    start: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Yields finished audio [channels, up to chunk_frames * hop], first to last; the first piece
    may be shorter (first_frames), so that somebody hears something early. `start` leaves out the
    pieces before that frame, which must be where a piece begins.

    progress(done, total) counts latent frames. Raises ValueError for other shapes than [T, C] or
    fewer frames than one.
    """
    if latents_TC.dim() != 2 or latents_TC.shape[1] != vae.config.latent_channels:
        raise ValueError(
            f"latents of shape {tuple(latents_TC.shape)} given: one song is [frames, "
            f"{vae.config.latent_channels}]"
        )
    first = chunk_frames if first_frames is None else min(first_frames, chunk_frames)
    if first < 1:
        raise ValueError(f"chunk_frames={chunk_frames} must be at least 1")
    return _chunks(vae, latents_TC, (first, chunk_frames), start, progress)


def _chunks(
    vae: LatentDecoder,
    latents_TC: Tensor,
    sizes: tuple[int, int],
    begin: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Tensor]:
    frames, hop, halo = len(latents_TC), vae.config.hop, vae.receptive_field
    for start in (0, *range(sizes[0], frames, sizes[1])) if frames else ():
        if start < begin:
            continue
        stop = min(start + sizes[1 if start else 0], frames)
        first, last = max(start - halo, 0), min(stop + halo, frames)
        # not around the yield: the mode would leak into the code that consumes the stream
        with torch.no_grad():
            audio_cS = vae.decode(latents_TC[None, first:last])[
                0, :, (start - first) * hop : (stop - first) * hop
            ].clone()
        if progress is not None:
            progress(stop, frames)
        yield audio_cS


def decode_chunked(
    vae: LatentDecoder,
    latents_TC: Tensor,
    *,
    chunk_frames: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Audio of one song's latents, decoded in chunks of bounded memory; equals the whole decode.

    Args:
        vae: what decodes: a `TorchDecoder`, or a runtime that stands in for it.
        latents_TC: [T, C], as `vae` takes them.
        chunk_frames: latent frames decoded at once, beside the receptive field on both sides.
        progress: called with (done, total) latent frames.

    Returns:
        fp32 [channels, T hop].

    Raises:
        ValueError: for another shape or chunk_frames < 1.

    Examples:
        >>> from mudit_engine.runtime.load import open_model
        >>> opened = open_model("tiny", dtype=torch.float32)
        >>> audio = decode_chunked(opened.decoder, torch.zeros(4, 128), chunk_frames=2)
        >>> audio.shape[1] == 4 * opened.config.vae.hop
        True
    """
    audio_cS = torch.empty(vae.config.channels, len(latents_TC) * vae.config.hop)
    done = 0
    for chunk_cS in decode_stream(vae, latents_TC, chunk_frames=chunk_frames, progress=progress):
        audio_cS[:, done : done + chunk_cS.shape[1]] = chunk_cS
        done += chunk_cS.shape[1]
    return audio_cS


def decode_frames(receptive_field: int) -> int:
    """Latent frames decoded at once. What a chunk reads beyond itself is decoded in vain: at most a
    quarter as much again.
    """
    return max(DECODE_FRAMES, 8 * receptive_field)


def pieces_of_song(
    decoder: LatentDecoder, latents_TC: Tensor, *, stream: bool = True, start: int = 0
) -> Iterator[Tensor]:
    """Pieces of a song as listeners get them, each [channels, frames * hop]: with `stream` the
    first one is short, where the song is long enough that this pays. `start` as in decode_stream.
    """
    halo = decoder.receptive_field
    # an engine is built for some frames and no more
    frames = getattr(decoder, "chunk_frames", None) or decode_frames(halo)
    first = min(frames, max(FIRST_FRAMES, halo))
    # a piece reads its halo again: of a short song that would be most of the work
    early = stream and len(latents_TC) > first + 2 * halo
    return decode_stream(
        decoder,
        latents_TC,
        chunk_frames=frames,
        first_frames=first if early else None,
        start=start,
    )


@torch.inference_mode()
def decode_song(
    decoder: LatentDecoder,
    latents_TC: Tensor,
    *,
    seconds: float,
    on_chunk: Callable[[int], None] | None = None,
) -> Tensor:
    """Audio fp32 [channels, samples] of one song's normalised latents [T, C], on the CPU, cut to
    `seconds`; its peaks may lie beyond full scale. on_chunk is called with the latent frames of
    each finished chunk.
    """
    done = 0

    def count(now: int, total: int) -> None:
        nonlocal done
        if on_chunk:
            on_chunk(now - done)
        done = now

    # an engine is built for some frames and no more
    chunk = getattr(decoder, "chunk_frames", None) or decode_frames(decoder.receptive_field)
    audio = decode_chunked(decoder, latents_TC.float(), chunk_frames=chunk, progress=count)
    return audio[:, : round(seconds * decoder.config.sample_rate)].cpu()
