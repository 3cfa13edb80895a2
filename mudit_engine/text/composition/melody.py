"""Plans a melody: a pitch for every note of every phrase, before a note sounds.

A section of a song has a *theme*: a line of scale steps drawn from a shape (arch, fall, rise, wave)
and a motif of three or four steps that is heard again and again in it. The lines of a section are
the theme, its repetition, its sequence (the theme some steps higher or lower), its answer with
another end, or a contrast. A line is then realised by the cheapest path through the pitches of
the voice:

    cost = distance from the line's steps + wide leaps + foreign notes on strong beats
           + words whose tone moves against the tune + the seed's own taste

A chorus comes back with the same notes, a second verse with nearly the same, and a bridge has a
theme and a register of its own.

    tunes = plan_melody(phrases, key="A minor", voice="female", seed=1)   # MIDI pitches a phrase
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from mudit_engine.text.harmony import SCALES, ChordSymbol, key_parts

# lowest pitch of a voice and how many semitones it uses above it; None is an instrument
VOICE_RANGE: dict[str | None, tuple[int, int]] = {
    "male": (45, 17),
    "female": (55, 18),
    "child": (60, 16),
    None: (60, 20),
}
# where in its range a section lies: the share of it at the theme's middle
REGISTER = {
    "verse": 0.38,
    "rap": 0.3,
    "pre-chorus": 0.5,
    "chorus": 0.62,
    "hook": 0.62,
    "post-chorus": 0.6,
    "bridge": 0.55,
    "intro": 0.5,
    "outro": 0.4,
}
OTHER_REGISTER = 0.52  # solos, interludes and what else is played
RETURNING = ("chorus", "hook", "post-chorus")  # come back with the same notes
# what each line of a section does with the theme: a is the theme, +/- its sequence, ' another end,
# other letters are themes of their own
_LINES = {
    1: ("a",),
    2: ("a a'", "a a-", "a b", "a a+"),
    3: ("a a b", "a a+ b", "a b a'"),
    4: ("a b a c", "a a' b a'", "a a+ b a'", "a a- a b", "a b a' b'", "a a b a"),
}
_LEAPS = {0: 0.8, 1: 0.0, 2: 0.0, 3: 0.3, 4: 0.4, 5: 0.5, 7: 0.5, 8: 1.0, 9: 1.0, 12: 1.0}
_OTHER_LEAP = 6.0
_TASTE = 1.8  # how far the seed's own taste moves the cost of a pitch
# Where a Mandarin tone begins, of five: a melody that goes the other way hides the word
_TONE_LEVEL = {1: 5.0, 2: 3.0, 3: 2.0, 4: 5.0}
_AGAINST_TONE = 0.7


@dataclass(frozen=True)
class Phrase:
    """A line that is sung or played, but for its pitches.

    Args:
        kind: of its section, such as "verse".
        section: number of its section in the song.
        beats: (start, end) of each note in beats from the phrase's first bar.
        chords: the chord that sounds at the start of each note.
        tones: the tone (1 to 4) of each Mandarin syllable, 0 for others.
        led: whether an instrument plays it.

    Examples:
        >>> c = ChordSymbol(0, "maj")
        >>> Phrase("verse", 0, ((0.0, 1.0), (1.0, 2.0)), (c, c)).led
        False
    """

    kind: str
    section: int
    beats: tuple[tuple[float, float], ...]
    chords: tuple[ChordSymbol, ...]
    tones: tuple[int, ...] = ()
    led: bool = False


@dataclass(frozen=True)
class _Sung:
    """What is known of a line that was composed: its rhythm and its steps."""

    beats: tuple[tuple[float, float], ...]
    steps: tuple[int, ...]


def plan_melody(
    phrases: Sequence[Phrase], *, key: str, voice: str | None, seed: int
) -> list[tuple[int, ...]]:
    """The pitches of every phrase.

    The same phrases, key, voice and seed give the same notes on every machine.

    Args:
        phrases: the lines of the song in order.
        key: tonic and mode, such as "A minor".
        voice: "female", "male" or "child"; None where an instrument leads, as it does every phrase
            with `led`.
        seed: the song's.

    Returns:
        A MIDI pitch a note, phrase by phrase.

    Raises:
        InputError: for an unknown key.

    Examples:
        >>> c, g = ChordSymbol(0, "maj"), ChordSymbol(7, "maj")
        >>> line = tuple((float(n), n + 1.0) for n in range(4))
        >>> chorus = [Phrase("chorus", n, line, (c, c, g, c)) for n in (0, 1)]
        >>> first, again = plan_melody(chorus, key="C major", voice="female", seed=1)
        >>> first == again, len(first)
        (True, 4)
    """
    told = repr((key, voice, [(p.kind, p.beats, _names(p), p.tones) for p in phrases]))
    digest = hashlib.sha256(told.encode()).hexdigest()
    composer = _Composer(random.Random(f"melody {seed} {digest}"), key, voice)
    return [composer.compose(*place) for place in _placed(phrases)]


def _names(phrase: Phrase) -> tuple[str, ...]:
    return tuple(chord.name for chord in phrase.chords)


def _placed(phrases: Sequence[Phrase]) -> list[tuple[Phrase, int, int, int, bool]]:
    """Each phrase with its line and the lines of its section, how often such a section came before,
    and whether it ends the song.
    """
    lines: dict[int, int] = {}
    for phrase in phrases:
        lines[phrase.section] = lines.get(phrase.section, 0) + 1
    order: dict[str, list[int]] = {}
    found = []
    place = dict.fromkeys(lines, 0)
    for number, phrase in enumerate(phrases):
        sections = order.setdefault(phrase.kind, [])
        if phrase.section not in sections:
            sections.append(phrase.section)
        found.append(
            (
                phrase,
                place[phrase.section],
                lines[phrase.section],
                sections.index(phrase.section),
                number == len(phrases) - 1,
            )
        )
        place[phrase.section] += 1
    return found


class _Composer:
    def __init__(self, chooser: random.Random, key: str, voice: str | None) -> None:
        self.chooser = chooser
        self.tonic, self.mode = key_parts(key)
        self.voice = voice
        self.scale = [(self.tonic + step) % 12 for step in SCALES[self.mode]]
        # the two scale notes that pull: the fourth and seventh of major, second and sixth of minor
        self.pulling = {self.scale[n] for n in ((3, 6) if self.mode == "major" else (1, 5))}
        self.known: dict[tuple[str, int, bool], _Sung] = {}
        self.themes: dict[tuple[str, str], _Sung] = {}
        self.forms: dict[tuple[str, int], list[str]] = {}
        self.centres: dict[str, float] = {}
        # a song's own liking of leaps, so that some tunes walk and others jump
        self.leaping = chooser.uniform(0.75, 1.35)

    def compose(
        self, phrase: Phrase, line: int, lines: int, time: int, last: bool
    ) -> tuple[int, ...]:
        before = self.known.get((phrase.kind, line, phrase.led))
        same = before is not None and before.beats == phrase.beats
        if same and before is not None and phrase.kind in RETURNING:
            pitches = tuple(before.steps)
            # the tonic that ends a song stands under other notes than the chorus was made for
            if self._clashes(phrase, pitches) <= (0.5 if last else 0.25) * len(pitches):
                return self._home(phrase, pitches) if last else pitches
        role = self._role(phrase.kind, line, lines)
        closes = line == lines - 1
        if before is not None and time:
            # a second verse: what was sung before, where the rhythm differs at the nearest place
            targets = _mapped(before, phrase.beats)
            taste, weight = (0.35, 1.6) if phrase.kind in RETURNING else (0.7, 1.2)
        else:
            targets = self._line(phrase, role)
            taste, weight = 1.0, 0.8
        pitches = self._realised(phrase, targets, role, closes, last, taste, weight)
        sung = _Sung(phrase.beats, pitches)
        if before is None:
            self.known[phrase.kind, line, phrase.led] = sung
        self.themes.setdefault((phrase.kind, role[0]), sung)
        return pitches

    def _role(self, kind: str, line: int, lines: int) -> str:
        """What a line does with the theme: "a", "a'", "a+", "b"."""
        form = self.forms.get((kind, lines))
        if form is None:
            form = []
            while len(form) < lines:
                group = min(4, lines - len(form))
                form += self.chooser.choice(_LINES[group]).split()
            self.forms[kind, lines] = form
        return form[line]

    def _line(self, phrase: Phrase, role: str) -> list[float]:
        """The pitches that a line would like to have."""
        theme = self.themes.get((phrase.kind, role[0]))
        if theme is None:
            return self._theme(phrase, contrast=role[0] != "a")
        targets = _mapped(theme, phrase.beats)
        if role[1:] in ("+", "-"):
            size = self.chooser.choice((2, 3, 4))
            targets = [target + (size if role[1:] == "+" else -size) for target in targets]
        elif role[1:] == "'":
            tail = max(2, len(targets) // 3)
            turn = self.chooser.choice((-4, -3, 3, 4))
            targets[-tail:] = [target + turn for target in targets[-tail:]]
        return targets

    def _theme(self, phrase: Phrase, *, contrast: bool) -> list[float]:
        """A new line: a shape, and a motif that comes again in it."""
        chooser = self.chooser
        low, span = VOICE_RANGE[None if phrase.led else self.voice]
        centre = self.centres.get(phrase.kind)
        if centre is None:
            share = REGISTER.get(phrase.kind, OTHER_REGISTER)
            centre = self.centres[phrase.kind] = (share + chooser.uniform(-0.16, 0.16)) * span
        if contrast:
            centre += chooser.choice((-3, -2, 2, 3, 4))
        height = chooser.uniform(2.0, 6.5)
        shape = chooser.choice(_SHAPES)
        if phrase.kind == "pre-chorus":
            shape = _rise
        motif = [chooser.choice((-5, -3, -2, 0, 2, 3, 4, 5)) for _ in range(chooser.choice((3, 4)))]
        count = len(phrase.beats)
        targets, walked = [], 0.0
        for number in range(count):
            place = number / max(count - 1, 1)
            targets.append(low + centre + height * shape(place) + walked)
            # the motif walks, and the shape brings it back
            walked = 0.6 * (walked + motif[number % len(motif)])
        return targets

    def _realised(
        self,
        phrase: Phrase,
        targets: Sequence[float],
        role: str,
        closes: bool,
        last: bool,
        taste: float,
        weight: float,
    ) -> tuple[int, ...]:
        """The cheapest path through the pitches of the voice."""
        low, span = VOICE_RANGE[None if phrase.led else self.voice]
        whole = range(low, low + span + 1)
        paths: dict[int, tuple[float, tuple[int, ...]]] = {}  # the cheapest way to each pitch
        for number, target in enumerate(targets):
            here = {}
            for pitch in whole:
                own = self._cost(phrase, number, pitch, closes, last)
                liking = taste * _TASTE * self.chooser.random()
                if own is not None:
                    here[pitch] = own + liking + weight * abs(pitch - target)
            if not number:
                paths = {pitch: (cost, (pitch,)) for pitch, cost in here.items()}
                continue
            moves = self._moves(phrase, number, span)
            reached = {}
            for pitch, cost in here.items():
                total, path = min(
                    (before + moves[pitch - other], path) for other, (before, path) in paths.items()
                )
                reached[pitch] = (total + cost, (*path, pitch))
            paths = reached
        return min(paths.values())[1] if paths else ()

    def _cost(
        self, phrase: Phrase, number: int, pitch: int, closes: bool, last: bool
    ) -> float | None:
        """What a pitch costs at a note; None where it is foreign to key and chord."""
        start, end = phrase.beats[number]
        own = pitch % 12
        tones = phrase.chords[number].pitch_classes
        final = number == len(phrase.beats) - 1
        if own not in self.scale and own not in tones:
            return None
        cost = 0.3 if own in self.pulling else 0.0
        strong = start % 2 == 0 or end - start >= 1.5
        if own not in tones:
            cost += 7.0 if strong or final else 0.25
        elif own not in self.scale:
            cost += 0.5
        if final and closes:
            home = 0.0 if own == self.tonic else 2.2
            cost += home * (3.0 if last else 1.0 if phrase.kind in RETURNING else 0.5)
        return cost

    def _moves(self, phrase: Phrase, number: int, span: int) -> dict[int, float]:
        """What each interval into a note costs."""
        wanted = 0.0
        if phrase.tones and (after := _TONE_LEVEL.get(phrase.tones[number])):
            wanted = after - _TONE_LEVEL.get(phrase.tones[number - 1], after)
        costs = {}
        for interval in range(-span, span + 1):
            leap = _LEAPS.get(abs(interval), _OTHER_LEAP)
            cost = leap / self.leaping if interval else leap
            costs[interval] = cost + _AGAINST_TONE * (wanted * interval < 0)
        return costs

    def _home(self, phrase: Phrase, pitches: tuple[int, ...]) -> tuple[int, ...]:
        """The last line of a song with its last note at home, where the chord has it."""
        if pitches[-1] % 12 == self.tonic or self.tonic not in phrase.chords[-1].pitch_classes:
            return pitches
        low, span = VOICE_RANGE[None if phrase.led else self.voice]
        home = [pitch for pitch in range(low, low + span + 1) if pitch % 12 == self.tonic]
        return (*pitches[:-1], min(home, key=lambda pitch: abs(pitch - pitches[-1])))

    def _clashes(self, phrase: Phrase, pitches: Sequence[int]) -> int:
        """Notes on strong beats that are foreign to their chord."""
        return sum(
            start % 2 == 0 and pitch % 12 not in chord.pitch_classes
            for (start, _), pitch, chord in zip(phrase.beats, pitches, phrase.chords, strict=True)
        )


def _mapped(known: _Sung, beats: Sequence[tuple[float, float]]) -> list[float]:
    """What a known line sings at the places of another rhythm."""
    if len(known.beats) == len(beats):
        return [float(step) for step in known.steps]
    starts = [start for start, _ in known.beats]
    return [float(known.steps[max(0, bisect_right(starts, start) - 1)]) for start, _ in beats]


def _arch(place: float) -> float:
    return 4 * place * (1 - place) - 0.5


def _fall(place: float) -> float:
    return 0.7 - 1.4 * place


def _rise(place: float) -> float:
    return 1.4 * place - 0.7


def _wave(place: float) -> float:
    return (1 - abs(4 * (place % 0.5) - 1)) - 0.5


def _valley(place: float) -> float:
    return -_arch(place)


_SHAPES = (_arch, _arch, _fall, _rise, _wave, _valley)


def tone_agreement(phrases: Sequence[Phrase], tunes: Sequence[Sequence[int]]) -> float | None:
    """Share of the neighbouring Mandarin syllables whose tune does not go against their tones; None
    without any.

    Examples:
        >>> c = ChordSymbol(0, "maj")
        >>> phrase = Phrase("verse", 0, ((0.0, 1.0), (1.0, 2.0)), (c, c), (3, 1))
        >>> tone_agreement([phrase], [(60, 64)]), tone_agreement([phrase], [(64, 60)])
        (1.0, 0.0)
    """
    agreeing = compared = 0
    for phrase, tune in zip(phrases, tunes, strict=True):
        for number in range(1, len(phrase.tones)):
            levels = [_TONE_LEVEL.get(phrase.tones[n]) for n in (number - 1, number)]
            if levels[0] is None or levels[1] is None or levels[0] == levels[1]:
                continue
            compared += 1
            agreeing += (levels[1] - levels[0]) * (tune[number] - tune[number - 1]) >= 0
    return agreeing / compared if compared else None
