"""Where a song changes, and whether its sections are those that were asked for.

    boundaries(audio_cS, 44100, count=3)                        # seconds at which it changes most
    sections_followed(audio_cS, 44100, [("verse", 0.0), ("chorus", 12.0), ("verse", 24.0)])

Half seconds are described by pitch classes and by the levels of eight bands. A boundary is a peak
of the difference between the four seconds before and after (a checkerboard over their similarities,
Foote 2000). Where the asked sections have times, the figure is the F1 of boundaries within three
seconds (as MIREX counts them). Where only their tags are known, the song is cut at as many
boundaries, and the figure is the share of sections with a repeated tag whose most similar other
section has the same tag.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.hearing import RATE, mono_at_rate, pitch_class_frames

STEP_SECONDS, KERNEL_STEPS = 0.5, 8
BANDS = 8
WITHIN_SECONDS = 3.0
APART_STEPS = 8  # two boundaries are at least so far from each other

AskedSections = Sequence[tuple[str, float | None]]


def described(audio_cS: Tensor, sample_rate: int) -> Tensor:
    """Standardised pitch classes and band levels of each half second, [steps, 20]."""
    energy_F12, hop = pitch_class_frames(audio_cS, sample_rate)
    mono = mono_at_rate(audio_cS, sample_rate)
    size = round(STEP_SECONDS * RATE)
    steps = max(1, len(mono) // size)
    mono = F.pad(mono, (0, max(0, steps * size - len(mono))))
    power = torch.fft.rfft(mono[: steps * size].view(steps, size)).abs().square()
    # octaves from 40 Hz
    edges = [round(40 * 2**n * STEP_SECONDS) for n in range(BANDS + 1)]
    levels = torch.stack([power[:, a:b].sum(1) for a, b in itertools.pairwise(edges)], 1)
    frames = RATE / hop * STEP_SECONDS
    classes = torch.stack(
        [energy_F12[round(n * frames) : round((n + 1) * frames)].mean(0) for n in range(steps)]
    )
    classes = F.normalize(classes.nan_to_num(), p=1, dim=1)
    both = torch.cat([classes, (levels + 1e-6).log()], 1)
    spread = both.std(0, correction=0)
    return (both - both.mean(0)) / torch.where(spread > 1e-6, spread, torch.inf)


def boundaries(audio_cS: Tensor, sample_rate: int, *, count: int) -> list[float]:
    """Seconds, in order, of the `count` greatest changes; fewer in a song without as many."""
    return _peaks(described(audio_cS, sample_rate), count)


def _peaks(rows_ND: Tensor, count: int) -> list[float]:
    alike = F.normalize(rows_ND, dim=1) @ F.normalize(rows_ND, dim=1).T
    change = torch.zeros(len(rows_ND))
    for at in range(2, len(rows_ND) - 1):
        before = slice(max(0, at - KERNEL_STEPS), at)
        after = slice(at, min(len(rows_ND), at + KERNEL_STEPS))
        within = (alike[before, before].mean() + alike[after, after].mean()) / 2
        change[at] = within - alike[before, after].mean()
    found: list[int] = []
    for at in change.argsort(descending=True).tolist():
        if len(found) == count or float(change[at]) <= 0:
            break
        if all(abs(at - other) >= APART_STEPS for other in found):
            found.append(at)
    return [at * STEP_SECONDS for at in sorted(found)]


def sections_followed(audio_cS: Tensor, sample_rate: int, asked: AskedSections) -> float | None:
    """0 to 1 for audio [channels, samples]; None for fewer than two sections, and for untimed ones
    of which no tag returns. asked: name and start in seconds, or None, of each section in order.
    """
    if len(asked) < 2:
        return None
    rows = described(audio_cS, sample_rate)
    found = _peaks(rows, len(asked) - 1)
    starts = [start for _, start in asked[1:] if start is not None]
    if len(starts) == len(asked) - 1:
        return _f1(starts, found)
    names = [name for name, _ in asked]
    if max(map(names.count, names)) < 2:
        return None
    if len(found) < len(asked) - 1:  # one piece that does not change has no sections
        return 0.0
    cuts = [0, *(round(at / STEP_SECONDS) for at in found), len(rows)]
    pieces = [rows[a:b].mean(0) for a, b in itertools.pairwise(cuts)]
    apart = torch.cdist(torch.stack(pieces), torch.stack(pieces)).fill_diagonal_(torch.inf)
    nearest = apart.argmin(1).tolist()
    again = [n for n, name in enumerate(names) if names.count(name) > 1]
    return sum(names[nearest[n]] == names[n] for n in again) / len(again)


def _f1(asked: Sequence[float], found: Sequence[float]) -> float:
    """Each boundary is matched once; of two orders of times the earliest partner is best."""
    hits, left = 0, list(found)
    for start in asked:
        near = [one for one in left if abs(one - start) <= WITHIN_SECONDS]
        if near:
            hits += 1
            left.remove(near[0])
    return 2 * hits / (len(asked) + len(found))


__all__ = ["AskedSections", "boundaries", "sections_followed"]
