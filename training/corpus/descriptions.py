"""How people would ask for a song: professionals by genre, BPM, key, instruments, form and
production; amateurs by mood and image.

Both say what can be controlled: an amateur's "fast", "sad", "no drums", "a girl sings" stand for
BPM, mode, drums and voice. Every description comes whole and as word, phrase and sentence
fragments. A part of the amateurs mistype. Held-out songs are also described in words and sentences
that no description of a training song has (`unseen`).

    describe(rng, song)     eight descriptions: two languages x two kinds of user x two wordings;
                            twelve of a held-out song
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mudit_engine.training.corpus import wordings
from mudit_engine.training.corpus.labels import KEYS, Description, Song
from mudit_engine.training.corpus.styles import STYLE_BOOK

_ZH_KEYS = ("C", "升C", "D", "降E", "E", "F", "升F", "G", "降A", "A", "降B", "B")
_SECTION_ZH = {
    "intro": "前奏",
    "verse": "主歌",
    "pre-chorus": "预副歌",
    "chorus": "副歌",
    "bridge": "桥段",
    "outro": "尾奏",
}
_MISTYPING = 0.3  # of an amateur's second wordings
_SAME_SOUND = dict(zip("的声生快慢鼓歌唱感", "得生声块漫股哥昌敢", strict=True))


def tempo_word(bpm: int) -> str:
    """What listeners call a tempo: slow below 85 BPM, fast from 120."""
    return "slow" if bpm < 85 else "mid" if bpm < 120 else "fast"


def describe(rng: np.random.Generator, song: Song) -> tuple[Description, ...]:
    """Two wordings of each of professional and amateur, in Chinese and English; a third one of each
    in unseen words for a held-out song.
    """
    languages: tuple[Literal["zh", "en"], ...] = ("zh", "en")
    found = []
    for language in languages:
        for number in range(2):
            found.append(_professional(rng, song, language, number))
            found.append(_amateur(rng, song, language, number))
    if song.held_out:
        for language in languages:
            found.append(_unseen_professional(rng, song, language))
            found.append(_unseen_amateur(rng, song, language))
    return tuple(found)


def _instrument_names(song: Song, language: str) -> list[str]:
    if language == "en":
        return list(song.instruments)
    chosen = STYLE_BOOK[song.style].sets[song.instrument_set]
    every = [chosen.comp, chosen.bass, chosen.lead, *([chosen.pad] if chosen.pad else [])]
    names = {instrument.en: instrument.zh for instrument in every}
    return [names[name] for name in song.instruments]


def _article(word: str) -> str:
    return "An" if word[0] in "aeioE" else "A"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, parts: Sequence[str]) -> list[str]:
    return [parts[int(place)] for place in rng.permutation(len(parts))]


def _professional(
    rng: np.random.Generator, song: Song, language: Literal["zh", "en"], wording: int
) -> Description:
    options = wordings.PRO_STYLE[language][song.style]
    # the style's own name is the commonest
    style = options[0] if rng.random() < 0.6 else _pick(rng, options)
    names = _instrument_names(song, language)
    voice, drums = (
        wordings.PRO_VOICE[language][song.voice],
        wordings.PRO_DRUMS[language][song.drums],
    )
    production = wordings.PRODUCTION[language][song.style]
    sung = song.voice != "none"
    if language == "en":
        key = f"{KEYS[song.key]} {song.mode}"
        form = "-".join(section.name for section in song.form)
        tone = f" with a {wordings.TIMBRE['en'][song.timbre]}" if sung else ""
        words_of = f", {wordings.LANGUAGE['en'][song.language]}" if sung else ""
        together = f"{style} in {key}, {song.bpm} BPM"
        phrases = [
            f"{song.bpm} BPM",
            f"in {key}",
            style,
            voice,
            drums,
            ", ".join(names),
            production,
            together,
        ]
        if sung:
            phrases.append(wordings.TIMBRE["en"][song.timbre])
        if wording == 0:
            sentences = [
                f"{style[0].upper()}{style[1:]} at {song.bpm} BPM in {key}, 4/4.",
                f"Instrumentation: {', '.join(names)}, {drums}.",
                f"{voice.capitalize()}{tone}{words_of}.",
                f"Form: {form}.",
                f"Production: {production}.",
            ]
        else:
            sentences = [
                f"{_article(style)} {style} track in the key of {key}, tempo {song.bpm}.",
                f"{voice.capitalize()}{tone}{words_of}.",
                f"Arranged for {' and '.join(names)}; {drums}.",
                f"Structure {form}, {production}.",
            ]
        words = [
            style,
            str(song.bpm),
            key,
            song.mode,
            *names,
            song.voice if sung else "instrumental",
        ]
        words.append("drums" if song.drums else "drumless")
    else:
        key = f"{_ZH_KEYS[song.key]}{'大调' if song.mode == 'major' else '小调'}"
        form = "-".join(_SECTION_ZH[section.name] for section in song.form)
        tone = f"，{wordings.TIMBRE['zh'][song.timbre]}" if sung else ""
        words_of = f"，{wordings.LANGUAGE['zh'][song.language]}" if sung else ""
        phrases = [
            f"{song.bpm} BPM",
            key,
            style,
            voice,
            drums,
            "、".join(names),
            production,
            f"{key}{style}，{song.bpm} BPM",
        ]
        if sung:
            phrases.append(wordings.TIMBRE["zh"][song.timbre])
        if wording == 0:
            sentences = [
                f"{style}，{song.bpm} BPM，{key}，四四拍。",
                f"配器:{'、'.join(names)}，{drums}。",
                f"{voice}{tone}{words_of}。",
                f"曲式:{form}。",
                f"制作:{production}。",
            ]
        else:
            sentences = [
                f"一首{key}的{style}作品，速度每分钟{song.bpm}拍。",
                f"{voice}{tone}{words_of}。",
                f"编曲用{'和'.join(names)}，{drums}。",
                f"结构为{form}，{production}。",
            ]
        words = [style, str(song.bpm), key, *names, voice, drums]
    joint = " " if language == "en" else ""
    # The genre sentence stays first; the others come in any order in the second wording.
    ordered = sentences if wording == 0 else [sentences[0], *_shuffled(rng, sentences[1:])]
    return Description(
        language, "professional", joint.join(ordered), tuple(words), tuple(phrases), tuple(ordered)
    )


def _unseen_professional(
    rng: np.random.Generator, song: Song, language: Literal["zh", "en"]
) -> Description:
    """The same facts in sentences of another build."""
    names = _instrument_names(song, language)
    voice, drums = (
        wordings.PRO_VOICE[language][song.voice],
        wordings.PRO_DRUMS[language][song.drums],
    )
    style = _pick(rng, wordings.PRO_STYLE[language][song.style])
    if language == "en":
        key = f"{KEYS[song.key]} {song.mode}"
        sentences = [
            f"Looking for {style}, tempo around {song.bpm}, tonal centre {key}.",
            f"Band: {' / '.join(names)}; {drums}.",
            f"Topline: {voice}.",
        ]
        words = [style, f"{song.bpm} beats per minute", key]
        phrases = [f"tempo around {song.bpm}", f"tonal centre {key}", f"{style} with {names[0]}"]
    else:
        key = f"{_ZH_KEYS[song.key]}{'大调' if song.mode == 'major' else '小调'}"
        sentences = [
            f"需要{style}，速度{song.bpm}左右，调性{key}。",
            f"乐队：{'，'.join(names)}；{drums}。",
            f"主旋律：{voice}。",
        ]
        words = [style, f"{song.bpm}拍", key]
        phrases = [f"速度{song.bpm}左右", f"调性{key}", f"用{names[0]}的{style}"]
    return Description(
        language,
        "professional",
        (" " if language == "en" else "").join(sentences),
        tuple(words),
        tuple(phrases),
        tuple(sentences),
        unseen=True,
    )


def _amateur(
    rng: np.random.Generator, song: Song, language: Literal["zh", "en"], wording: int
) -> Description:
    said = _said(rng, song, language, wordings.SEEN[language])
    timbre = [wordings.AMATEUR_TIMBRE[language][song.timbre]] if song.voice != "none" else []
    if language == "en":
        if wording == 0:
            singing = ", ".join([said.voice.capitalize(), *timbre])
            sentences = [
                f"I want {said.style}, {said.mood}.",
                f"{said.tempo.capitalize()}, {said.drums}.",
                f"{singing}.",
            ]
        else:
            sentences = [
                f"{said.mood.capitalize()}, {said.tempo}, {said.style}.",
                f"{said.voice.capitalize()}, {said.drums}.",
            ]
            sentences += [f"{part.capitalize()} please." for part in timbre]
    else:
        if wording == 0:
            sentences = [
                f"想要{said.style}，{said.mood}。",
                f"{said.tempo}，{said.drums}。",
                f"{'，'.join([said.voice, *timbre])}。",
            ]
        else:
            sentences = [
                f"{said.mood}，{said.tempo}，{said.style}。",
                f"{said.voice}，{said.drums}。",
                *[f"最好{part}。" for part in timbre],
            ]
    ordered = sentences if wording == 0 else _shuffled(rng, sentences)
    return _as_amateur(rng, song, language, said, ordered, timbre, mistypes=wording == 1)


def _unseen_amateur(
    rng: np.random.Generator, song: Song, language: Literal["zh", "en"]
) -> Description:
    said = _said(rng, song, language, wordings.UNSEEN[language])
    if language == "en":
        sentences = [
            f"Could you make {said.style}? It should be {said.mood}.",
            f"About the pace: {said.tempo}; {said.drums}.",
            f"Who sings: {said.voice}.",
        ]
    else:
        sentences = [
            f"麻烦做一首{said.style}，心情是{said.mood}。",
            f"速度嘛，{said.tempo}，另外{said.drums}。",
            f"至于嗓子：{said.voice}。",
        ]
    return _as_amateur(rng, song, language, said, sentences, [], unseen=True)


@dataclass(frozen=True, slots=True)
class _Said:
    """The words of one amateur."""

    style: str
    mood: str
    tempo: str
    drums: str
    voice: str


def _said(rng: np.random.Generator, song: Song, language: str, words: wordings.Words) -> _Said:
    return _Said(
        _pick(rng, words.style[song.style]),
        _pick(rng, words.mood[song.mode]),
        _pick(rng, words.tempo[tempo_word(song.bpm)]),
        _pick(rng, words.drums[song.drums]),
        _pick(rng, words.voice[song.voice]),
    )


def _as_amateur(
    rng: np.random.Generator,
    song: Song,
    language: Literal["zh", "en"],
    said: _Said,
    sentences: Sequence[str],
    timbre: Sequence[str],
    *,
    mistypes: bool = False,
    unseen: bool = False,
) -> Description:
    words = wordings.UNSEEN[language] if unseen else wordings.SEEN[language]
    plain = [
        words.mood[song.mode][0],
        words.tempo[tempo_word(song.bpm)][0],
        words.voice[song.voice][0],
        words.drums[song.drums][0],
    ]
    phrases = [said.style, said.mood, said.tempo, said.drums, said.voice, *timbre]
    if mistypes and rng.random() < _MISTYPING:
        sentences = [_mistyped(rng, sentence) for sentence in sentences]
        phrases = [_mistyped(rng, phrase) for phrase in phrases]
    return Description(
        language,
        "amateur",
        (" " if language == "en" else "").join(sentences),
        tuple(plain),
        tuple(phrases),
        tuple(sentences),
        unseen,
    )


def _mistyped(rng: np.random.Generator, text: str) -> str:
    """One slip of the fingers: a letter left out, doubled or changed with the next in a word of
    five letters and more, or a character of the same sound in Chinese.
    """
    sounds = [place for place, character in enumerate(text) if character in _SAME_SOUND]
    if sounds:
        place = sounds[int(rng.integers(len(sounds)))]
        return text[:place] + _SAME_SOUND[text[place]] + text[place + 1 :]
    long = [match.span() for match in re.finditer(r"[A-Za-z]{5,}", text)]
    if not long:
        return text
    start, end = long[int(rng.integers(len(long)))]
    place = int(rng.integers(start + 1, end - 1))
    slip = int(rng.integers(3))
    middle = ("", text[place] * 2, text[place + 1] + text[place])[slip]
    return text[:place] + middle + text[place + 1 + (slip == 2) :]
