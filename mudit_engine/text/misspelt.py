"""English words of a description that are typed with one slip: what they were meant to be.

    spelt("no drms")      ("no drums", (("drms", "drums"),))

A word is put right when it is in no dictionary and one letter left out, added, changed or swapped
with its neighbour makes it one of the words that wishes are read from. A word that English has
stays what it is, whatever it resembles.
"""

from __future__ import annotations

import re

from mudit_engine.text.english import dictionary, further_dictionary

# of four letters and more: shorter ones resemble too much
_LIST = """
    acoustic ambient ballad banjo bossa breathy bright cello cheerful child children classical
    clarinet club country cowboy dark drum drumless drums electric electronic energetic epic erhu
    fast female fiddle film flute folk funk funky girl gloomy groovy guitar guitars guzheng happy
    harmonica harp headbang heavy hopeful instrumental instruments jazz jazzy lively lonely
    lullaby lyrics male marimba medium melancholy metal minor major music neon orchestra orchestral
    organ percussion piano pipa quick reggae relaxed rock romantic saxophone singer singing sings
    slow soft song soprano strings sunny swing symphonic synth techno tempo toddler trumpet upbeat
    violin vocal vocals voice warm whispery without woman
"""
WORDS = frozenset(_LIST.split())
_SHORTEST = 4


def spelt(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text with its slips put right, and each (as typed, as read).

    Args:
        text: of a description, in any script; only words of Latin letters are looked at.

    Examples:
        >>> spelt("a sad violn")
        ('a sad violin', (('violn', 'violin'),))
        >>> spelt("a mental note")
        ('a mental note', ())
    """
    found: list[tuple[str, str]] = []

    def put_right(match: re.Match[str]) -> str:
        word = _meant(match[0].lower())
        if word is None:
            return match[0]
        found.append((match[0], word))
        return word

    # Chinese letters beside a word are no letters of it
    return re.sub(rf"(?<![A-Za-z'])[A-Za-z]{{{_SHORTEST},}}(?![A-Za-z'])", put_right, text), tuple(
        found
    )


def _meant(word: str) -> str | None:
    if word in WORDS:
        return None
    near = sorted(one for one in WORDS if _one_slip(word, one))
    if not near or word in dictionary() or word in further_dictionary():
        return None
    # of several, one that begins alike
    return min(near, key=lambda one: (one[0] != word[0], abs(len(one) - len(word)), one))


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter left out, added, changed, or swapped with the next makes b of a."""
    if abs(len(a) - len(b)) > 1:
        return False
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    rest_a, rest_b = a[same:], b[same:]
    return (
        rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or rest_a[1:] == rest_b[1:]
        or (rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:])
    )
