"""The rows and columns that every evaluation shows: one row a kind of audio, one figure with its
interval a column.

    pairs = [Pair(number, heard, song, song.syllables) for number, (song, heard) in enumerate(...)]
    judge = Judge(reference, probes, recogniser)
    row = judge.row("codec", pairs)

A pair is a piece of audio and the request it is held against: its own, or in the row "permuted
requests" another song's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from mudit_engine.errors import InputError
from mudit_engine.evaluation.listening import Heard
from mudit_engine.evaluation.songs import LABELS, EvalSong
from mudit_engine.metrics import figures
from mudit_engine.metrics.ctc import (
    Recogniser,
    SungSyllable,
    Window,
    edit_distance,
    line_windows,
    lines_of,
)
from mudit_engine.metrics.fad import FrechetReference
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.probes import RidgeProbe
from mudit_engine.metrics.rhythm_and_key import octave_error, rank_in_chroma
from mudit_engine.text.descriptions import requested_bpm, requested_key

TEMPO_TOLERANCE = 0.04
BEST = 2  # of the 12 keys
COLUMNS = {
    "fad": "FAD",
    "tempo": "tempo 4 %",
    "key": "key top 2",
    "drums": "drums",
    "vocals": "vocals",
    "voice": "voice",
    "style": "style",
    "instrumental": "instr. no voice",
    "per": "PER",
    "notes": "notes F1",
    "spectrum": "log-spec dist.",
    "seconds": "s/song",
}
PERMUTATIONS = 5


@dataclass(frozen=True)
class Pair:
    """Audio of song number `song`, held against `wanted` and against the `syllables` of some
    lyrics.

    `text` is the description it was made from: the tempo or key that it does not name is not
    judged. None for audio made from none. `windows` say where in the audio each line is sung
    (metrics.ctc.line_windows), whatever words it is held against; None where nobody knows.
    """

    song: int
    heard: Heard
    wanted: EvalSong
    syllables: tuple[SungSyllable, ...]
    text: str | None = None
    windows: tuple[Window, ...] | None = None


@dataclass(frozen=True)
class Row:
    """A kind of audio. `figures` by name of COLUMNS; one that was not measured is missing."""

    name: str
    songs: int
    figures: dict[str, Figure] = field(default_factory=dict)

    def value(self, column: str) -> float | None:
        return self.figures[column].value if column in self.figures else None


Probes = dict[str, RidgeProbe]


def fit_probes(songs: Sequence[EvalSong], heard: Sequence[Heard]) -> Probes:
    """One probe a label of LABELS, on the songs that have it. A label with too few songs of a class
    has none.
    """
    probes = {}
    for name, label in LABELS.items():
        known = [
            (h.timbre_D, value)
            for song, h in zip(songs, heard, strict=True)
            if (value := label(song)) is not None
        ]
        try:
            probes[name] = (
                RidgeProbe.fit(torch.stack([t for t, _ in known]), [value for _, value in known])
                if known
                else None
            )
        except InputError:
            # a small corpus need not hold two songs of every class: the column stays empty
            continue
    return {name: probe for name, probe in probes.items() if probe is not None}


def reference_of(heard: Sequence[Heard]) -> FrechetReference:
    """The set that FAD is measured against."""
    return FrechetReference(torch.cat([h.penultimate_PD for h in heard]))


class Judge:
    """What rows are held against."""

    def __init__(
        self, reference: FrechetReference, probes: Probes, recogniser: Recogniser | None = None
    ) -> None:
        self.reference, self.probes, self.recogniser = reference, probes, recogniser

    def row(
        self,
        name: str,
        pairs: Sequence[Pair],
        *,
        probes: Probes | None = None,
        extra: dict[str, Figure] | None = None,
    ) -> Row:
        """All figures of a row; `probes` in place of the judge's own; `extra` figures are added as
        they are.
        """
        # audio that stands in several pairs (permuted requests) is one piece of sound
        sounds: dict[int, list[Heard]] = {}
        for pair in pairs:
            known = sounds.setdefault(pair.song, [])
            if not any(pair.heard is h for h in known):
                known.append(pair.heard)
        found = {
            "fad": figures.fad(
                self.reference,
                [torch.cat([h.penultimate_PD for h in of_song]) for of_song in sounds.values()],
            ),
            "tempo": _share(pairs, _tempo),
            "key": _share(pairs, _key),
        }
        probes = self.probes if probes is None else probes
        for label, probe in probes.items():
            found[label] = _probed(pairs, label, probe)
        if "vocals" in probes:
            unsung = [pair for pair in pairs if not pair.wanted.sung]
            silent = [float(guess == "off") for guess in _guesses(unsung, probes["vocals"])]
            found["instrumental"] = figures.ratio(
                [pair.song for pair in unsung], silent, [1.0] * len(unsung)
            )
        if self.recogniser is not None:
            found["per"] = self._phoneme_errors(pairs)
        return Row(name, len(sounds), {**found, **(extra or {})})

    def _phoneme_errors(self, pairs: Sequence[Pair]) -> Figure:
        """Edits of each line in its own window, or of the whole song where its windows are not
        known, over the phonemes asked. A line without a window, or the other way round, is wrong
        altogether.
        """
        assert self.recogniser is not None
        sung = [pair for pair in pairs if pair.syllables]
        read: dict[tuple[int, object], list[list[str]]] = {}
        edits, asked = [], []
        for pair in sung:
            key = id(pair.heard), pair.windows
            mel_FM, lines = pair.heard.mel_FM, lines_of(pair.syllables)
            if key not in read and pair.windows is None:
                read[key] = [self.recogniser.read(mel_FM)]
            elif key not in read:
                read[key] = self.recogniser.read_lines(mel_FM, pair.windows or ())
            if pair.windows is None:
                lines = [list(pair.syllables)]
            wanted = [[sound for s in line for sound in s.phonemes] for line in lines]
            compared: Iterable[tuple[list[str], list[str]]] = itertools.zip_longest(
                wanted, read[key], fillvalue=[]
            )
            edits.append(float(sum(edit_distance(line, said) for line, said in compared)))
            asked.append(float(sum(map(len, wanted))))
        return figures.ratio([pair.song for pair in sung], edits, asked)


def windows_of(syllables: Sequence[SungSyllable]) -> tuple[Window, ...]:
    """Where the lines of a song that is sung as its labels say are listened to."""
    return tuple(line_windows([(line[0].start, line[-1].end) for line in lines_of(syllables)]))


def permuted(pairs: Sequence[Pair], songs: Sequence[EvalSong]) -> list[Pair]:
    """Every sound against other songs' requests, in several ways. Lyrics are those of another song
    of the same language.
    """
    by_language: dict[str, list[int]] = {}
    for number, song in enumerate(songs):
        if song.syllables:
            by_language.setdefault(song.language, []).append(number)
    found = []
    for turn, way in enumerate(figures.derangements(len(songs), PERMUTATIONS)):
        words: dict[int, tuple[SungSyllable, ...]] = {}
        for members in by_language.values():
            ways = (
                figures.derangements(len(members), PERMUTATIONS, seed=1) if len(members) > 1 else []
            )
            if ways:
                other = ways[turn % len(ways)]
                words |= {
                    song: songs[members[other[place]]].syllables
                    for place, song in enumerate(members)
                }
        found += [
            replace(pair, wanted=songs[way[pair.song]], syllables=words.get(pair.song, ()))
            for pair in pairs
        ]
    return found


def _share(pairs: Sequence[Pair], judge: Callable[[Pair], float | None]) -> Figure:
    values = [(pair.song, judge(pair)) for pair in pairs]
    known = [(song, float(value)) for song, value in values if value is not None]
    return figures.ratio(
        [song for song, _ in known], [value for _, value in known], [1.0] * len(known)
    )


def _tempo(pair: Pair) -> float | None:
    if pair.text is not None and requested_bpm(pair.text) is None:
        return None
    return float(octave_error(pair.heard.tempo, pair.wanted.bpm) <= TEMPO_TOLERANCE)


def _key(pair: Pair) -> float | None:
    if pair.text is not None and requested_key(pair.text) is None:
        return None
    return float(rank_in_chroma(pair.heard.chroma_12, pair.wanted.key) <= BEST)


def _guesses(pairs: Sequence[Pair], probe: RidgeProbe) -> list[str]:
    return probe(torch.stack([pair.heard.timbre_D for pair in pairs])) if pairs else []


def _probed(pairs: Sequence[Pair], label: str, probe: RidgeProbe) -> Figure:
    known = [pair for pair in pairs if LABELS[label](pair.wanted) in probe.classes]
    truth = [str(LABELS[label](pair.wanted)) for pair in known]
    return figures.balanced_accuracy([pair.song for pair in known], truth, _guesses(known, probe))
