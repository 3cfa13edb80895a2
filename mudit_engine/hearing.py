"""What is heard in audio without a network: tempo, pitch classes, and the beat and chords of a part
that a song should follow.

    tempo(audio_cS, 44100)                          # 96.02
    heard = hear_part(audio_cS, 44100, "chords")
    heard.bpm, heard.key, heard.chords              # 96.02, "A minor", "Am | F | C | G"

Tempo: the peak of a comb over the autocorrelation of the spectral flux. Pitch classes: energy of
spectral peaks from 100 to 2,000 Hz, so that drums count little. Chords: the triad whose tones hold
most of a bar, or of each half of it where that fits better. A part is taken to begin with a bar.
In rain, wind or a crowd neither beat nor chords are heard, in machines perhaps a beat: what returns
too weakly, and what sounds in all pitch classes alike, decides nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.audio import load_audio, resample
from mudit_engine.text.harmony import SCALES, TONIC_NAMES, ChordSymbol

RATE = 22050
N_FFT, HOP = 8192, 1024  # of pitch classes
FLUX_HOP = 256  # of what a tempo is heard in
LOW, HIGH = 100.0, 2000.0  # Hz
SLOWEST, FASTEST = 60.0, 180.0
BEATS = 4  # of a bar
HALVES_FIT_BETTER = 0.04  # by so much in cosine do the halves of a bar hold two chords
SHORTEST_PART = 4.0  # seconds in which a beat can be heard
# A beat is there when the flux that returns after 1, 2 and 4 beats has this share of its power, and
# more of it in a short part, in which noise seems to return: noise, rain and voices of a crowd have
# at most 0.22 in 6 s, 0.14 in 12 s and 0.125 in 20 s, parts of the corpus with a beat 0.15 or more.
BEAT_HEARD, BEAT_HEARD_SECONDS = 0.1, 0.75
# Chords are there when triads fit bars with this cosine on average: 0.5 is all pitch classes alike;
# noise, rain, a crowd and clanking have at most 0.565, of 179 parts of the corpus one 0.569 and the
# others at least 0.58.
CHORDS_HEARD = 0.57
HALF_BEAT = 0.5  # weight of what sounds between beats: without it, 96 is heard as 64 or 128
OVERTONES = torch.tensor([1.0, 0.6, 0.35])  # square roots of energy, about
# parts in which a beat and chords are heard
BEAT_IN = ("drums", "bass", "chords")
CHORDS_IN = ("bass", "chords")
TRIADS = tuple(ChordSymbol(root, kind) for root in range(12) for kind in ("maj", "min"))


@dataclass(frozen=True)
class HeardPart:
    """What a part decides. None is what is not heard in it.

    Args:
        bpm: beats a minute.
        key: such as "A minor".
        chords: of each bar, as `parse_chords` reads them.
    """

    bpm: float | None = None
    key: str | None = None
    chords: str | None = None


def mono_at_rate(audio_cS: Tensor, sample_rate: int) -> Tensor:
    """fp32 [samples] at RATE of audio [channels, samples], or of [samples]."""
    mono = audio_cS.mean(0) if audio_cS.dim() == 2 else audio_cS
    return resample(mono[None].float(), sample_rate, RATE)[0]


def spectrum(mono: Tensor, n_fft: int, hop: int) -> Tensor:
    """Magnitudes [bins, frames] of mono audio at RATE."""
    mono = F.pad(mono, (0, max(0, n_fft - len(mono))))
    return torch.stft(mono, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True).abs()


def tempo(audio_cS: Tensor, sample_rate: int) -> float:
    """Beats a minute between 60 and 180, in quarters; NaN where nothing ever begins, as in silence.

    Examples:
        >>> clicks = torch.zeros(1, RATE * 8).index_fill_(1, torch.arange(0, RATE * 8, 11025), 1.0)
        >>> round(tempo(clicks, RATE))
        120
    """
    correlation = _autocorrelation(audio_cS, sample_rate)
    if correlation is None:
        return float("nan")
    return _best(correlation, torch.arange(SLOWEST, FASTEST + 0.25, 0.25))


def fine_tempo(audio_cS: Tensor, sample_rate: int) -> float:
    """The tempo of a part to a fiftieth of a beat a minute, so that a minute later its beat still
    fits; NaN where there is no beat, as in silence and in rain.

    Examples:
        >>> noise = torch.randn(1, RATE * 8, generator=torch.Generator().manual_seed(0))
        >>> fine_tempo(noise, RATE)
        nan
    """
    correlation = _autocorrelation(audio_cS, sample_rate)
    if correlation is None:
        return float("nan")
    candidates = torch.arange(SLOWEST, FASTEST + 0.25, 0.25)
    rough = _best(correlation, candidates, half=HALF_BEAT)
    seconds = len(correlation) * FLUX_HOP / RATE
    if _beat_strength(correlation, rough) < BEAT_HEARD + BEAT_HEARD_SECONDS / seconds:
        return float("nan")
    # many beats later a small error of the period is a large one
    near = torch.arange(rough - 0.5, rough + 0.5, 0.02)
    return round(_best(correlation, near, further=True), 2)


def _beat_strength(correlation: Tensor, bpm: float) -> float:
    """How much of the flux returns after 1, 2 and 4 beats, as a share of its power."""
    period = 60 / bpm * RATE / FLUX_HOP
    starts = [int(beats * period) - 1 for beats in (1, 2, 4)]
    found = [float(correlation[at : at + 4].max()) for at in starts if at + 4 <= len(correlation)]
    return sum(found) / max(len(found), 1) / float(correlation[0])


def _autocorrelation(audio_cS: Tensor, sample_rate: int) -> Tensor | None:
    """Of the spectral flux in frames of FLUX_HOP samples; None where it never rises."""
    flux = onsets(audio_cS, sample_rate, hop=FLUX_HOP)
    n = len(flux)
    if not bool((flux.abs() > 1e-6).any()):
        return None
    return torch.fft.irfft(torch.fft.rfft(flux, 4 * n).abs().square())[:n] / torch.arange(n, 0, -1)


def onsets(audio_cS: Tensor, sample_rate: int, *, hop: int) -> Tensor:
    """Spectral flux of each `hop` samples at RATE, without its slow trend."""
    log = torch.log1p(100 * spectrum(mono_at_rate(audio_cS, sample_rate), 1024, hop))
    flux = (log[:, 1:] - log[:, :-1]).clamp_min(0).sum(0)
    # the slow trend of loudness is no rhythm
    kernel = 2 * round(0.5 * RATE / hop) + 1
    trend = F.avg_pool1d(flux[None, None], kernel, 1, kernel // 2, count_include_pad=False)
    return flux - trend[0, 0]


def _best(
    correlation: Tensor, candidates: Tensor, *, half: float = 0.0, further: bool = False
) -> float:
    """The candidate whose beats the correlation rises at, and half of its first with the weight
    `half`; `further` looks many beats ahead.
    """
    period = 60 / candidates * RATE / FLUX_HOP
    weights = [(1.0, 1.0), (2.0, 1.0), (3.0, 0.7), (4.0, 1.3)]
    if half:
        weights.append((0.5, half))
    if further:
        # to two thirds of the part: what lies behind is heard too seldom
        last = int(0.67 * len(correlation) / float(period.max()))
        weights = [(float(beats), 1.0) for beats in range(4, max(5, last + 1), 4)]
    score = torch.zeros(len(candidates))
    for multiple, weight in weights:
        at = (multiple * period).clamp(max=len(correlation) - 2)
        low = at.floor().long()
        score += weight * torch.lerp(correlation[low], correlation[low + 1], at - low)
    return float(candidates[score.argmax()])


def pitch_class_frames(audio_cS: Tensor, sample_rate: int) -> tuple[Tensor, int]:
    """(energy [frames, 12], hop in samples at RATE) of audio [channels, samples]; C is 0.

    Examples:
        >>> a = torch.sin(2 * math.pi * 440 * torch.arange(22050) / 22050)[None]
        >>> int(pitch_class_frames(a, 22050)[0][10].argmax())
        9
    """
    magnitude = spectrum(mono_at_rate(audio_cS, sample_rate), N_FFT, HOP)
    inner = magnitude[1:-1]
    peaks = inner * ((inner > magnitude[:-2]) & (inner > magnitude[2:]))
    frequency = torch.arange(1, N_FFT // 2) * RATE / N_FFT
    keep = (frequency > LOW) & (frequency < HIGH)
    pitch_class = (12 * torch.log2(frequency / 440) + 69).round().long() % 12
    energy = torch.zeros(12, magnitude.shape[1]).index_add_(0, pitch_class[keep], peaks[keep])
    return energy.T, HOP


def hear_part(
    audio_cS: Tensor, sample_rate: int, kind: str, *, at_home: tuple[float, float] | None = None
) -> HeardPart:
    """The beat of drums, bass or chords, and the chords of the last two.

    Args:
        audio_cS: [channels, samples]; its first bar begins with it.
        sample_rate: of the audio, Hz.
        kind: one of names.REFERENCE_KINDS; of a mix or vocals nothing is heard.
        at_home: range of tempi, beats a minute. A beat is also heard at half and twice its tempo;
            of these, the one nearest to the middle of the range is taken.

    Examples:
        >>> hear_part(torch.zeros(1, RATE * 8), RATE, "drums")
        HeardPart(bpm=None, key=None, chords=None)
    """
    if kind not in BEAT_IN or audio_cS.shape[-1] < SHORTEST_PART * sample_rate:
        return HeardPart()
    bpm = fine_tempo(audio_cS, sample_rate)
    if math.isnan(bpm):
        return HeardPart()
    if at_home is not None:
        middle = math.sqrt(at_home[0] * at_home[1])
        octaves = [one for one in (bpm / 2, bpm, 2 * bpm) if SLOWEST <= one <= FASTEST]
        bpm = round(float(min(octaves, key=lambda one: abs(math.log(one / middle)))), 2)
    if kind not in CHORDS_IN:
        return HeardPart(bpm)
    energy_F12, hop = pitch_class_frames(audio_cS, sample_rate)
    bar = BEATS * 60 / bpm * RATE / hop
    edges = [round(n * bar / 2) for n in range(2 * int(len(energy_F12) / bar) + 1)]
    if len(edges) < 3 or not bool(energy_F12.any()):
        return HeardPart(bpm)
    halves = torch.stack([energy_F12[a:b].mean(0) for a, b in itertools.pairwise(edges)])
    if _triad_fit(halves) < CHORDS_HEARD:
        return HeardPart(bpm)
    key = _key(energy_F12.mean(0))
    return HeardPart(bpm, key, _chords(halves, key, roots=kind == "bass"))


def _triad_fit(halves_N12: Tensor) -> float:
    """Mean over the bars that sound of the cosine with the nearest triad."""
    bars_M12 = halves_N12[: len(halves_N12) // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    loud = bars_M12.sum(1)
    sounding = bars_M12[loud > 1e-3 * loud.max()]
    templates = torch.zeros(len(TRIADS), 12)
    for row, chord in zip(templates, TRIADS, strict=True):
        row[list(chord.pitch_classes)] = 3**-0.5
    return float((F.normalize(sounding.sqrt(), dim=1) @ templates.T).max(1).values.mean())


def _chords(halves_N12: Tensor, key: str, *, roots: bool) -> str | None:
    """A chord or two a bar. A bass tells roots, to which the key adds the third."""
    tonic, mode = key.split()
    scale = {(TONIC_NAMES.index(tonic) + step) % 12 for step in SCALES[mode]}
    templates = torch.zeros(len(TRIADS), 12)
    for row, chord in zip(templates, TRIADS, strict=True):
        tones = list(chord.pitch_classes)
        if roots:  # a low note sounds by its overtones: octaves, fifths and the major third
            row[[chord.root, (chord.root + 7) % 12, (chord.root + 4) % 12]] = OVERTONES
        else:
            row[tones] = 1.0
        # of two triads that fit alike, the one in the key
        row *= 1.0 if {*tones} <= scale else 0.96
    weights = templates.max(1).values[:, None]
    unit = F.normalize(templates, dim=1) * weights
    fit_NK = F.normalize(halves_N12.sqrt(), dim=1) @ unit.T
    bars: list[str] = []
    last: ChordSymbol | None = None
    for first, second in zip(fit_NK[::2], fit_NK[1::2], strict=True):
        both = first + second
        if float(both.max()) <= 0:  # a rest holds the chord before it
            heard: Sequence[ChordSymbol] = [last] if last is not None else []
        elif float(first.max() + second.max() - both.max()) > 2 * HALVES_FIT_BETTER:
            heard = [TRIADS[int(first.argmax())], TRIADS[int(second.argmax())]]
        else:
            heard = [TRIADS[int(both.argmax())]]
        if heard:
            last = heard[-1]
            bars.append(" ".join(dict.fromkeys(one.name for one in heard)))
        elif not bars:
            bars.append(
                ChordSymbol(TONIC_NAMES.index(tonic), "min" if mode == "minor" else "maj").name
            )
    return " | ".join(bars) if bars else None


def _key(energy_12: Tensor) -> str:
    """The key whose scale holds most of the energy, and its tonic triad most of that."""
    share = energy_12 / energy_12.sum().clamp_min(1e-12)
    best, found = -1.0, "C major"
    for mode, steps in SCALES.items():
        for root in range(12):
            inside = float(share[[(root + step) % 12 for step in steps]].sum())
            triad = [root, (root + (4 if mode == "major" else 3)) % 12, (root + 7) % 12]
            score = inside + 0.3 * float(share[triad].sum()) + 0.1 * float(share[root])
            if score > best:
                best, found = score, f"{TONIC_NAMES[root]} {mode}"
    return found


def hear_file(
    path: str | Path, kind: str, *, at_home: tuple[float, float] | None = None
) -> HeardPart:
    """`hear_part` of a file, remembered as long as it is not written again. Raises InputError for
    one that cannot be read; a mix and vocals are not looked at.
    """
    if kind not in BEAT_IN:
        return HeardPart()
    path = Path(path)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _hear_file(str(path), changed, kind, at_home)


@functools.lru_cache(maxsize=64)
def _hear_file(
    path: str, changed: int, kind: str, at_home: tuple[float, float] | None
) -> HeardPart:
    audio, rate = load_audio(path)
    return hear_part(audio, rate, kind, at_home=at_home)
