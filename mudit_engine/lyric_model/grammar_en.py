"""A grammar of English song lines: templates whose last word rhymes.

A line is drawn for a number of syllables (5-8), a section and a rhyme; a rhyme is a list of words
that share their last vowel and what follows it, checked against the pronouncing dictionary by the
tests. All words and templates are this project's own.

    draw_line(rng, syllables=7, section="chorus", rhyme="EY", accept=lambda text: True)
    # "I will find you on the way"
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np

WORDS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "sky": "moon sun stars wind rain clouds snow moonlight starlight sunshine shadows thunder "
        "evening morning summer winter",
        "land": "river ocean mountain forest city garden island highway flowers meadow harbor "
        "valley desert street lighthouse village",
        "thing": "guitar letter window lantern picture candle train piano story promise ticket "
        "mirror paper radio",
        "adj": "silver golden quiet broken empty lonely open gentle burning hidden tender distant "
        "shining wild cold warm sweet blue slow",
        "feel": "love hope heart soul freedom sorrow courage wonder memory laughter",
        "who": "we they you",
        "verb": "find follow remember carry hold hear call need",
        "move": "walking running flying drifting waiting dancing singing dreaming falling sailing",
        "soft": "softly slowly gently quietly always never",
        "prep": "in on under over beside",
    }.items()
}
# Rhyme -> part of speech -> words. n: after "the/your"; a: an adverb or phrase that can end any
# clause; v: after "to/and/will"
RHYMES: dict[str, dict[str, tuple[str, ...]]] = {
    rhyme: {kind: tuple(words.split(",")) for kind, words in kinds.items()}
    for rhyme, kinds in {
        "AY T": {
            "n": "night,light,kite,height,sight",
            "a": "tonight,all right,in the night,in the light,out of sight",
            "v": "write,fight,shine bright,hold tight",
        },
        "EY": {
            "n": "day,way,bay,doorway",
            "a": "today,away,every day,far away,all the way",
            "v": "stay,play,pray,sway,say",
        },
        "AY": {
            "n": "sky,lullaby,eye,butterfly",
            "a": "goodbye,so high,by and by,up high,in the sky",
            "v": "fly,cry,try,ask why,say goodbye",
        },
        "UW": {
            "n": "view,blue,dew,avenue",
            "a": "with you,too,anew,so blue,with me too",
            "v": "come through,follow you,start anew,be true",
        },
        "EY N": {
            "n": "rain,train,plain,lane,pain",
            "a": "in the rain,on the train,through the rain,down the lane",
            "v": "remain,explain,complain",
        },
        "AA R T": {
            "n": "heart,start,part,chart",
            "a": "apart,from the start,in my heart,with all my heart",
            "v": "start,depart,restart",
        },
        "IY": {
            "n": "sea,melody,memory,tree,key",
            "a": "with me,by the sea,faithfully,silently,next to me",
            "v": "be,be free,wait for me,see",
        },
        "AO NG": {
            "n": "song,dawn song,evening song",
            "a": "along,all night long,so long,all along",
            "v": "belong,be strong,sing along,be wrong",
        },
        "IY M": {
            "n": "dream,stream,beam,moonbeam",
            "a": "in a dream,down the stream,in the dream",
            "v": "dream,gleam,redeem",
        },
        "OW D": {
            "n": "road,load,code",
            "a": "on the road,down the road,along the road",
            "v": "explode,unload,slow the load",
        },
        "AW N D": {
            "n": "sound,ground,playground",
            "a": "around,all around,on the ground,without a sound",
            "v": "be found,turn around,come around",
        },
        "UW N": {
            "n": "moon,tune,balloon,afternoon",
            "a": "soon,too soon,in june,under the moon",
            "v": "come soon,hum a tune,be there soon",
        },
        "IY P": {
            "n": "deep,sleep,sheep",
            "a": "so deep,in my sleep,in the deep",
            "v": "sleep,weep,keep,leap",
        },
        "AO L": {
            "n": "wall,hall,call,waterfall",
            "a": "after all,in the fall,down the hall,most of all",
            "v": "call,fall,stand tall,recall",
        },
        "AY M": {
            "n": "time,rhyme,chime",
            "a": "one more time,in the summertime,every time,all the time",
            "v": "climb,chime,rhyme",
        },
        "EH S T": {
            "n": "west,nest,rest,guest",
            "a": "at best,in the west,like the rest,with the rest",
            "v": "rest,do our best,be blessed",
        },
    }.items()
}
TEMPLATES: dict[str, tuple[str, ...]] = {
    "image": (
        "the {sky} is {move} <a>",
        "the {adj} {land} {move} <a>",
        "{adj} {sky} {prep} the <n>",
        "the {sky} and the {land} <a>",
        "{sky} {move} {soft} <a>",
        "a {thing} {prep} the <n>",
        "{adj} {thing} and the <n>",
        "the {land} {prep} the <n>",
        "there is a {thing} <a>",
        "the {adj} {sky} will <v>",
        "{sky} on the {adj} <n>",
        "the {sky} is {adj} <a>",
    ),
    "story": (
        "I was {move} <a>",
        "{who} were {move} <a>",
        "I {verb} the {adj} <n>",
        "{who} {verb} the {land} <a>",
        "my {thing} and the {adj} <n>",
        "I left my {thing} <a>",
        "you and I were {move} <a>",
        "{who} {verb} the {adj} <n>",
        "I {verb} your {feel} <a>",
        "you were my {adj} <n>",
        "I am {move} <a>",
    ),
    "call": (
        "oh my {feel} will <v>",
        "we will {verb} the <n>",
        "come and {verb} me <a>",
        "let us <v>",
        "let your {feel} <v>",
        "{feel} is {move} <a>",
        "I will {verb} you <a>",
        "{verb} the {adj} <n>",
        "hey hey {feel} is the <n>",
        "we are {move} <a>",
        "give me {feel} <a>",
        "I will always {verb} the <n>",
        "oh {feel} {feel} <a>",
        "all I want is to <v>",
        "we can <v>",
        "{feel} {feel} let it <v>",
    ),
}
SECTION_KINDS: dict[str, tuple[str, ...]] = {
    "verse": ("image", "image", "story"),
    "pre-chorus": ("story", "image"),
    "chorus": ("call",),
    "bridge": ("story", "call"),
}
SYLLABLES = (5, 6, 7, 8)
_SLOT = re.compile(r"\{(\w+)\}|<(\w+)>")


@functools.cache
def count_syllables(word: str) -> int:
    """Sung syllables of a word."""
    from mudit_engine.text.english import pronounce, syllabify

    return syllabify(pronounce(word).phones)[-1] + 1


def line_syllables(text: str) -> int:
    return sum(count_syllables(word) for word in text.split())


@functools.cache
def _fitting(rhyme: str, section: str) -> tuple[str, ...]:
    """Templates of the section whose ending exists in the rhyme."""
    return tuple(
        t for kind in SECTION_KINDS[section] for t in TEMPLATES[kind] if t[-2] in RHYMES[rhyme]
    )


def rhymes() -> tuple[str, ...]:
    return tuple(RHYMES)


def lengths(section: str) -> tuple[int, ...]:
    """Syllable counts the section can be sung with (any)."""
    del section
    return SYLLABLES


def last_word(text: str) -> str:
    """What two lines of a section must not share."""
    return text.rsplit(" ", 1)[-1]


def draw_line(
    rng: np.random.Generator,
    *,
    syllables: int,
    section: str,
    rhyme: str,
    accept: Callable[[str], bool],
) -> str:
    """A line of `syllables` syllables ending in `rhyme` for which `accept` is true (drawn again
    until it is).
    """
    fitting = _fitting(rhyme, section)
    for _ in range(4000):
        used: set[str] = set()

        def fill(match: re.Match[str], used: set[str] = used) -> str:
            word_slot, end_slot = match.groups()
            words = tuple(
                word
                for word in (WORDS[word_slot] if word_slot else RHYMES[rhyme][end_slot])
                if word not in used
            )
            word = words[int(rng.integers(len(words)))]
            used.add(word)
            return word

        text = _SLOT.sub(fill, fitting[int(rng.integers(len(fitting)))])
        words = text.split()
        repeated = any(left == right and left != "hey" for left, right in pairwise(words))
        if line_syllables(text) == syllables and not repeated and accept(text):
            return text
    raise ValueError(f"no English line of {syllables} syllables for {section} in rhyme {rhyme!r}")
