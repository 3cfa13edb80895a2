"""Every bar of `mudit eval`, in one place. A bar is missed when its figure is on the wrong side, or
could not be measured.

verdicts(CODEC, {"key": 0.91, "notes": 0.74, ...})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """`limit` is the least (at_least) or the greatest value that passes."""

    name: str
    text: str
    limit: float
    at_least: bool = True


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured. `note` says what stands beside the figure, such as the
    originals' own.
    """

    name: str
    text: str
    limit: str
    measured: float | None
    passed: bool
    note: str = ""


# held-out songs through the VAE
CODEC = (
    Bar("key", "key among the best two of 12", 0.85),
    Bar("notes", "note F1 against the original's notes", 0.70),
    Bar("drums", "drums probe: balanced accuracy lost against the original", 0.05, at_least=False),
    Bar(
        "vocals", "vocals probe: balanced accuracy lost against the original", 0.05, at_least=False
    ),
    Bar(
        "fad", "FAD as a multiple of the FAD between two halves of the corpus", 2.5, at_least=False
    ),
    Bar(
        "beats_fad",
        "FAD as a share of the best Griffin-Lim's (mel of equal rate)",
        1.0,
        at_least=False,
    ),
    Bar("beats_notes", "note F1 above the best Griffin-Lim's", 0.0),
    Bar(
        "beats_spectrum",
        "log-spectral distance as a share of the best Griffin-Lim's",
        1.0,
        at_least=False,
    ),
)

# the codec by what listeners would say of it
CODEC_QUALITY = (
    Bar("pesq", "PESQ (wideband) of vocal stems", 2.4),
    Bar("visqol", "ViSQOL (audio) of mixes", 4.0),
)

# songs generated for held-out requests
TINY = (
    Bar("fad_codec", "FAD as a multiple of the codec's own", 1.5, at_least=False),
    Bar("fad_shuffled", "FAD as a share of the FAD of 100 ms pieces shuffled", 0.5, at_least=False),
    Bar("tempo", "tempo within 4 % of the words' (octaves allowed)", 0.80),
    Bar("key", "requested key among the best two of 12", 0.60),
    Bar("drums", "drums as asked: balanced accuracy", 0.85),
    Bar("vocals", "vocals on / off as asked: balanced accuracy", 0.85),
    Bar("voice", "voice as asked: balanced accuracy", 0.85),
    Bar("style", "style as asked: balanced accuracy", 0.85),
    Bar("instrumental", "instrumental requests that contain no voice", 0.95),
    Bar(
        "lyrics",
        "upper end of the phoneme error rate, from the codec's (0) to other lyrics' (1)",
        0.5,
        at_least=False,
    ),
    Bar(
        "twins_chinmu",
        "professional and amateur song of one request closer than of two (ChinMu): share of pairs",
        0.80,
    ),
    Bar("twins_musicnn", "the same by musicnn", 0.80),
    Bar("seconds", "wall seconds for a song of 30 s, alone", 20.0, at_least=False),
)

# held-out songs found by sentences of their descriptions, and the reverse
RETRIEVAL = (
    Bar("text_to_audio", "RA@5 by sentence as a multiple of chance, text to audio", 3.0),
    Bar("audio_to_text", "RA@5 by sentence as a multiple of chance, audio to text", 3.0),
)


def verdicts(
    bars: tuple[Bar, ...],
    measured: Mapping[str, float | None],
    notes: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """One verdict a bar, in order. Raises KeyError when a bar's figure was never asked for."""
    notes = notes or {}
    found = []
    for bar in bars:
        value = measured[bar.name]
        passed = value is not None and (value >= bar.limit if bar.at_least else value <= bar.limit)
        found.append(
            Verdict(
                bar.name,
                bar.text,
                f"{'>=' if bar.at_least else '<='} {bar.limit:g}",
                value,
                passed,
                notes.get(bar.name, ""),
            )
        )
    return found


def missed(found: list[Verdict]) -> list[str]:
    """Names of the bars that were not cleared."""
    return [verdict.name for verdict in found if not verdict.passed]
