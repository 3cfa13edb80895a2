"""ChatML prompts for lyrics: theme, rhyme and structure in, tagged lines out. One text for training
and for writing.

    <|im_start|>system ... <|im_end|>
    <|im_start|>user
    主题：夏夜，海边
    韵：AABA
    结构：
    (verse)
    ccccccR                      the paper's notation: a letter a syllable, R where the end rhymes
    ...<|im_end|>
    <|im_start|>assistant
    [verse]
    一行歌词
    ...<|im_end|>

    prompt("夏夜，海边", form)        answer(lyrics)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mudit_engine.lyric_model.form import MOST_SYLLABLES, Form, Language
from mudit_engine.text.sections import KINDS

START, END = "<|im_start|>", "<|im_end|>"
_SYSTEM = {
    "zh": "你是作词人。按主题、韵和结构写歌词，c 是一个字，R 是押韵的行尾。",
    "en": "You write song lyrics by theme, rhyme and structure; s is a syllable, R a line end "
    "that rhymes.",
}
_FIELDS = {"zh": ("主题：", "韵：", "结构："), "en": ("Theme: ", "Rhyme: ", "Structure:")}


def messages(theme: str, form: Form) -> list[dict[str, str]]:
    """The prompt as chat messages, for servers."""
    return _messages(theme, form.rhyme, form.notation(), form.language)


def _messages(theme: str, rhyme: str, notation: str, language: Language) -> list[dict[str, str]]:
    about, scheme, structure = _FIELDS[language]
    theme = " ".join(theme.replace(START, " ").replace(END, " ").split())
    lines = [f"{about}{theme}", f"{scheme}{rhyme}", structure, notation]
    return [
        {"role": "system", "content": _SYSTEM[language]},
        {"role": "user", "content": "\n".join(lines)},
    ]


def prompt_text(theme: str, rhyme: str, notation: str, language: Language) -> str:
    """The text before the answer."""
    turns = _messages(theme, rhyme, notation, language)
    told = "".join(f"{START}{turn['role']}\n{turn['content']}{END}\n" for turn in turns)
    return f"{told}{START}assistant\n"


def prompt(theme: str, form: Form) -> str:
    """The text before the answer, for a form."""
    return prompt_text(theme, form.rhyme, form.notation(), form.language)


def answer(sections: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The answer: `[kind]` and its lines, a line break behind each, no blank lines."""
    return "".join("".join(f"{row}\n" for row in (f"[{kind}]", *lines)) for kind, lines in sections)


def theme_messages(lyrics: str) -> list[dict[str, str]]:
    """Asks a chat model for the theme of lyrics."""
    ask = (
        "用两到四个词概括这首歌的主题，用逗号分开，只写这些词。\n"
        "Name the song's theme in two to four words, parted by commas, in the language of the "
        "lyrics; write nothing else.\n\n"
    )
    return [{"role": "user", "content": ask + lyrics.replace(START, " ").replace(END, " ")}]


def theme_prompt(lyrics: str) -> str:
    """The same as a text."""
    [turn] = theme_messages(lyrics)
    return f"{START}user\n{turn['content']}{END}\n{START}assistant\n"


def fixed_texts() -> list[str]:
    """What prompts and answers are made of besides themes and words: pieces of the frame, lines of
    a structure, tags. A character-level vocabulary takes each as one token.
    """
    frame = [f"{START}system\n{text}{END}\n{START}user\n" for text in _SYSTEM.values()]
    frame += [
        f"{END}\n{START}assistant\n",
        *(f"\n{name}" for names in _FIELDS.values() for name in names[1:]),
    ]
    frame += [names[0] for names in _FIELDS.values()]
    letters = ("c", "s")
    shapes = [
        f"\n{letter * (count - 1)}{end}"
        for letter in letters
        for count in range(1, MOST_SYLLABLES + 1)
        for end in (letter, "R")
    ]
    tags = [tag for kind in KINDS for tag in (f"\n({kind})", f"[{kind}]\n")]
    # the longest first: a tokenizer takes the first that fits
    return sorted([*frame, *shapes, *tags], key=len, reverse=True)
