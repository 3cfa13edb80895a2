"""Which pitch a syllable is sung on, heard in the whole mix: a small network that is trained on
songs whose melodies are known.

    probe = train_probe([(excerpts_NF, pitches_N), ...], seed=0)
    probe.pitches(excerpts(audio, rate, spans))       # MIDI, one a syllable

A syllable's spectrum on a scale of a third of a semitone is read by one filter for all pitches, so
that what was learned of one pitch holds for the others: score(p) = f(spectrum around p). Chords and
bass sound at the same time, which is why a plain maximum does not do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mudit_engine.audio import resample
from mudit_engine.errors import InputError

RATE = 22050
WINDOW = 4096  # samples of a syllable's spectrum: 0.19 s
LOWEST, PITCHES = 40, 44  # MIDI 40 to 83
BINS = 3  # a semitone
BELOW, ABOVE = 12, 43  # semitones around a pitch that its score sees: an octave, and 12 harmonics
_FIRST = LOWEST - BELOW
_SEMITONES = PITCHES + BELOW + ABOVE


def excerpts(audio_cS: Tensor, rate: int, spans: Sequence[tuple[float, float]]) -> Tensor:
    """Spectra [syllables, bins] of the vowels of sung syllables.

    Args:
        audio_cS: float [channels, samples].
        rate: samples a second.
        spans: (start, end) of each syllable in seconds.

    Examples:
        >>> tone = torch.sin(torch.arange(22050) * 2 * torch.pi * 440 / 22050)[None]
        >>> spectrum = excerpts(tone, 22050, [(0.2, 0.6)])[0]
        >>> round(int(spectrum.argmax()) / BINS + _FIRST)
        69
    """
    mono = resample(audio_cS.mean(0, keepdim=True).float(), rate, RATE)[0]
    mono = F.pad(mono, (WINDOW, WINDOW))
    middles = [round((0.55 * start + 0.45 * end) * RATE) + WINDOW for start, end in spans]
    middles = [min(max(m, WINDOW // 2), len(mono) - WINDOW // 2) for m in middles]
    if not middles:
        return torch.zeros(0, _SEMITONES * BINS)
    frames_NW = torch.stack([mono[m - WINDOW // 2 : m + WINDOW // 2] for m in middles])
    power_NF = torch.fft.rfft(frames_NW * torch.hann_window(WINDOW), n=4 * WINDOW).abs()
    loud_NB = torch.log1p(50 * power_NF @ _bands().T)
    return (loud_NB - loud_NB.mean(1, keepdim=True)) / (loud_NB.std(1, keepdim=True) + 1e-3)


def _bands() -> Tensor:
    """Weights [bins, frequencies] of triangles a third of a semitone apart."""
    midi = _FIRST + torch.arange(_SEMITONES * BINS) / BINS
    centre_B = 440.0 * 2 ** ((midi - 69) / 12)
    frequency_F = torch.linspace(0, RATE / 2, 2 * WINDOW + 1)
    # at low pitches a third of a semitone is narrower than what the window resolves
    width_B = (centre_B * (2 ** (1 / (12 * BINS)) - 1)).clamp_min(RATE / WINDOW / 2)
    weights_BF = (1 - (frequency_F - centre_B[:, None]).abs() / width_B[:, None]).clamp_min(0)
    return weights_BF / weights_BF.sum(1, keepdim=True).clamp_min(1e-6)


class PitchProbe(nn.Module):
    """Scores [syllables, pitches] of spectra [syllables, bins]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        span = (BELOW + ABOVE) * BINS + BINS
        self.first = nn.Conv1d(1, width, span, stride=BINS)
        self.second = nn.Conv1d(width, width, 1)
        self.last = nn.Conv1d(width, 1, 1)

    def forward(self, spectra_NB: Tensor) -> Tensor:
        hidden = F.relu(self.first(spectra_NB[:, None]))
        out_NP: Tensor = self.last(F.relu(self.second(hidden)))[:, 0, :PITCHES]
        return out_NP

    @torch.inference_mode()
    def pitches(self, spectra_NB: Tensor) -> np.ndarray:
        """The likeliest MIDI pitch of each syllable."""
        return (LOWEST + self(spectra_NB).argmax(1)).numpy()


def train_probe(
    songs: Sequence[tuple[Tensor, Sequence[int]]], *, seed: int = 0, epochs: int = 40
) -> PitchProbe:
    """A probe that was trained on songs whose sung pitches are known.

    Args:
        songs: spectra [syllables, bins] and the MIDI pitch of each syllable.
        seed: of weights and order.
        epochs: passes over all syllables.

    Raises:
        InputError: without a syllable inside MIDI 40 to 83.
    """
    spectra = torch.cat([spectra for spectra, _ in songs]) if songs else torch.zeros(0, 1)
    wanted = torch.tensor([pitch for _, pitches in songs for pitch in pitches]) - LOWEST
    inside = (wanted >= 0) & (wanted < PITCHES)
    if not len(wanted) or not inside.any():
        raise InputError("no song of the corpus is sung between MIDI 40 and 83: make more songs")
    spectra, wanted = spectra[inside], wanted[inside].long()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = PitchProbe()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = epochs * -(-len(wanted) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(wanted), generator=generator).split(256):
            loss = F.cross_entropy(probe(spectra[rows]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe.eval()
