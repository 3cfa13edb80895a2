"""Controls that are typed beside the words: drums, voice and style, and what becomes of the words.

    wishes, notes = controlled(wishes, Controls(drums=False))     # as if the words said it
    words_of(Controls(voice="male"), wishes, chinese=True)        # ("男声",), for a model of words

A control goes before the words; where the two contradict each other, a note says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mudit_engine.names import FIRST_STYLES, NEAREST_STYLE
from mudit_engine.text.outline import Controls
from mudit_engine.text.wishes import Wishes

# the words of the corpus for each control: what every model of this engine was trained on
_WORDS: dict[tuple[str, Any], tuple[str, str]] = {
    ("drums", True): ("有鼓", "with drums"),
    ("drums", False): ("没有鼓", "no drums"),
    ("voice", "female"): ("女声", "female voice"),
    ("voice", "male"): ("男声", "male voice"),
    ("voice", "child"): ("童声", "a child's voice"),
    ("voice", "none"): ("纯音乐", "instrumental"),
    ("style", "ballad"): ("抒情慢歌", "ballad"),
    ("style", "pop"): ("流行", "pop"),
    ("style", "rock"): ("摇滚", "rock"),
    ("style", "electronic"): ("电子", "electronic"),
    ("style", "folk"): ("中国风民谣", "Chinese folk"),
    ("style", "jazz"): ("爵士", "jazz"),
    ("style", "hip-hop"): ("说唱", "hip-hop"),
    ("style", "metal"): ("金属", "metal"),
    ("style", "funk"): ("放克", "funk"),
    ("style", "reggae"): ("雷鬼", "reggae"),
    ("style", "bossa nova"): ("波萨诺瓦", "bossa nova"),
    ("style", "country"): ("乡村", "country"),
    ("style", "orchestral"): ("管弦乐", "orchestral"),
    ("style", "children"): ("儿歌", "children's song"),
}
CONTROLS = ("drums", "voice", "style")


def control_words(name: str, value: Any) -> tuple[str, str]:
    """A control's value in words, (Chinese, English).

    Examples:
        >>> control_words("drums", False)
        ('没有鼓', 'no drums')
    """
    return _WORDS[name, value]


def known_style(style: str | None, *, controls: bool) -> str | None:
    """The style that a model was trained on and that is nearest to one: itself for a model with
    controls.

    Examples:
        >>> known_style("metal", controls=False), known_style("metal", controls=True)
        ('rock', 'metal')
    """
    if style is None or controls or style in FIRST_STYLES:
        return style
    return NEAREST_STYLE[style]


def controlled(wishes: Wishes, controls: Controls) -> tuple[Wishes, list[str]]:
    """The wishes as the controls have them, and a note for each contradiction.

    Examples:
        >>> from mudit_engine.text.wishes import read_description
        >>> wishes, notes = controlled(read_description("女声"), Controls(voice="male"))
        >>> wishes.voice, len(notes)
        ('male', 1)
    """
    changed: dict[str, Any] = {}
    notes = []
    for name in CONTROLS:
        value, said = getattr(controls, name), getattr(wishes, name)
        if value is None:
            continue
        if said is not None and said != value:
            shown = {True: "on", False: "off"}.get(value, value)
            notes.append(
                f"'{wishes.words[name]}' contradicts {name} '{shown}', which was asked for beside "
                "the words and goes before them"
            )
        changed[name] = value
    return (replace(wishes, **changed) if changed else wishes), notes


def told_words(controls: Controls) -> tuple[str, ...]:
    """Everything that the controls say, in the words of the corpus, Chinese and English.

    Examples:
        >>> told_words(Controls(voice="male", style="metal"))
        ('男声', 'male voice', '金属', 'metal')
    """
    values = [(name, getattr(controls, name)) for name in CONTROLS]
    return tuple(word for said in values if said[1] is not None for word in _WORDS[said])


def words_of(controls: Controls, wishes: Wishes, *, chinese: bool) -> tuple[str, ...]:
    """What the controls would be in words, without those that the words say already.

    Args:
        controls: what was asked for beside the words.
        wishes: what the words themselves say.
        chinese: whether the description is in Chinese.

    Returns:
        Phrases for a model that hears words alone.

    Examples:
        >>> words_of(Controls(drums=False, style="metal"), Wishes(), chinese=False)
        ('no drums', 'rock')
    """
    found = []
    for name in CONTROLS:
        value = getattr(controls, name)
        if value is None or value == getattr(wishes, name):
            continue
        if name == "style":
            value = known_style(value, controls=False)
        found.append(control_words(name, value)[0 if chinese else 1])
    return tuple(found)
