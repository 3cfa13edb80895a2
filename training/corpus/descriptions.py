"""How people would ask for a song: professionals by genre, BPM, key, instruments, form and
production; amateurs by mood and image.

Both say what can be controlled: an amateur's "fast", "sad", "no drums", "a girl sings" stand for
BPM, mode, drums and voice. Every description comes whole and as word, phrase and sentence
fragments. All wording is this project's own.

    describe(rng, song)     eight descriptions: two languages x two kinds of user x two wordings
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

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
_PRO_VOICE = {
    "en": {
        "none": "instrumental, no vocals",
        "male": "male lead vocal",
        "female": "female lead vocal",
        "child": "child lead vocal",
    },
    "zh": {"none": "纯音乐无人声", "male": "男声主唱", "female": "女声主唱", "child": "童声主唱"},
}
_AMATEUR_VOICE = {
    "en": {
        "none": ("nobody sings", "no singing, just music", "only instruments"),
        "male": ("a man sings", "a guy singing", "sung by a boy with a low voice"),
        "female": ("a woman sings", "a girl singing", "a lady's voice"),
        "child": ("a little kid sings", "a child's voice", "a kid from a children's choir"),
    },
    "zh": {
        "none": ("没有人唱歌", "不要人声，只要音乐", "只有乐器"),
        "male": ("男生唱的", "一个男人在唱", "低沉的男声"),
        "female": ("女生唱的", "一个女孩在唱", "姐姐的声音"),
        "child": ("小朋友唱的", "小孩子在唱", "稚嫩的童声"),
    },
}
_TIMBRE = {
    "en": {
        "clear": "clean, natural tone",
        "breathy": "breathy, airy tone",
        "bright": "bright, forward tone",
    },
    "zh": {"clear": "音色干净自然", "breathy": "气声音色", "bright": "音色明亮靠前"},
}
_AMATEUR_TIMBRE = {
    "en": {
        "clear": "natural voice",
        "breathy": "soft whispery voice",
        "bright": "bright sparkling voice",
    },
    "zh": {"clear": "声音自然", "breathy": "像在耳边轻轻说", "bright": "声音很亮"},
}
_AMATEUR_STYLE = {
    "en": {
        "ballad": (
            "a tender love song",
            "something soft and romantic",
            "a slow dance kind of song",
        ),
        "pop": ("a catchy radio song", "something everyone hums", "a pop song"),
        "rock": ("loud guitars", "a band jamming on stage", "something to headbang to"),
        "electronic": ("club music", "like a video game at night", "synths and neon lights"),
        "folk": ("old Chinese feeling", "like an ancient garden", "misty mountains and bamboo"),
        "jazz": ("a smoky little bar", "swinging late night cafe music", "jazzy and relaxed"),
    },
    "zh": {
        "ballad": ("温柔的情歌", "软软的很浪漫", "适合慢慢抱着跳舞"),
        "pop": ("朗朗上口的流行歌", "电台里常放的那种", "大家都会哼的歌"),
        "rock": ("很炸的吉他", "像乐队在台上嘶吼", "想跟着甩头"),
        "electronic": ("夜店的感觉", "像游戏里的音乐", "霓虹灯和合成器"),
        "folk": ("古风", "像在古代的园子里", "有竹林和山水的感觉"),
        "jazz": ("小酒馆的感觉", "深夜咖啡馆的音乐", "慵懒摇摆"),
    },
}
_MOOD = {
    "en": {
        "major": ("happy", "sunny and hopeful", "makes me smile", "warm and cheerful"),
        "minor": (
            "sad",
            "melancholy like rain on a window",
            "makes me want to cry",
            "dark and lonely",
        ),
    },
    "zh": {
        "major": ("开心", "阳光又有希望", "听了会笑", "温暖快乐"),
        "minor": ("伤感", "像窗外的雨一样忧郁", "听了想哭", "黑暗孤独"),
    },
}
_TEMPO = {
    "en": {
        "slow": ("slow", "slow and calm", "takes its time"),
        "mid": ("medium speed", "walking pace", "not too fast, not too slow"),
        "fast": ("fast", "fast and lively", "makes you run"),
    },
    "zh": {
        "slow": ("慢慢的", "节奏很慢", "慢悠悠"),
        "mid": ("不快不慢", "中等速度", "像散步一样"),
        "fast": ("很快", "节奏快", "让人想跑起来"),
    },
}
_DRUMS = {
    "en": {
        True: ("with drums", "a steady beat on drums", "drums going all the way"),
        False: ("no drums", "quiet, without any drums", "nothing drumming"),
    },
    "zh": {True: ("有鼓", "鼓点清楚", "带鼓的节奏"), False: ("没有鼓", "安静，不要鼓", "不带鼓点")},
}
_PRO_DRUMS = {
    "en": {True: "full drum kit", False: "no drums, drumless arrangement"},
    "zh": {True: "完整鼓组", False: "无鼓编曲"},
}
_PRODUCTION = {
    "en": {
        "ballad": "warm mix, gentle reverb, wide dynamics",
        "pop": "radio-ready mix, vocal up front",
        "rock": "tight punchy low end, saturated guitars",
        "electronic": "sidechain-tight low end, bright synths",
        "folk": "natural acoustic recording, plucked transients",
        "jazz": "dry intimate room, swing feel",
    },
    "zh": {
        "ballad": "混音温暖，轻混响，动态宽",
        "pop": "电台级混音，人声靠前",
        "rock": "低频紧实有力，吉他饱和",
        "electronic": "低频干净，合成器明亮",
        "folk": "自然原声录音，拨弦颗粒清晰",
        "jazz": "小房间干声，摇摆律动",
    },
}
_LANGUAGE = {
    "en": {"zh": "Mandarin lyrics", "en": "English lyrics"},
    "zh": {"zh": "中文歌词", "en": "英文歌词"},
}


def tempo_word(bpm: int) -> str:
    """What listeners call a tempo: slow below 85 BPM, fast from 120."""
    return "slow" if bpm < 85 else "mid" if bpm < 120 else "fast"


def describe(rng: np.random.Generator, song: Song) -> tuple[Description, ...]:
    """Two wordings of each of professional and amateur, in Chinese and English."""
    found = []
    for language in ("zh", "en"):
        for number in range(2):
            found.append(_professional(rng, song, language, number))
            found.append(_amateur(rng, song, language, number))
    return tuple(found)


def _instrument_names(song: Song, language: str) -> list[str]:
    if language == "en":
        return list(song.instruments)
    chosen = STYLE_BOOK[song.style].sets[song.instrument_set]
    every = [chosen.comp, chosen.bass, chosen.lead, *([chosen.pad] if chosen.pad else [])]
    names = {instrument.en: instrument.zh for instrument in every}
    return [names[name] for name in song.instruments]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, parts: Sequence[str]) -> list[str]:
    return [parts[int(place)] for place in rng.permutation(len(parts))]


def _professional(
    rng: np.random.Generator, song: Song, language: Literal["zh", "en"], wording: int
) -> Description:
    style = getattr(STYLE_BOOK[song.style], language)
    names = _instrument_names(song, language)
    voice, drums = _PRO_VOICE[language][song.voice], _PRO_DRUMS[language][song.drums]
    production = _PRODUCTION[language][song.style]
    sung = song.voice != "none"
    if language == "en":
        key = f"{KEYS[song.key]} {song.mode}"
        form = "-".join(section.name for section in song.form)
        tone = f" with a {_TIMBRE['en'][song.timbre]}" if sung else ""
        words_of = f", {_LANGUAGE['en'][song.language]}" if sung else ""
        together = f"{song.style} in {key}, {song.bpm} BPM"
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
            phrases.append(_TIMBRE["en"][song.timbre])
        if wording == 0:
            sentences = [
                f"{style.capitalize()} at {song.bpm} BPM in {key}, 4/4.",
                f"Instrumentation: {', '.join(names)}, {drums}.",
                f"{voice.capitalize()}{tone}{words_of}.",
                f"Form: {form}.",
                f"Production: {production}.",
            ]
        else:
            sentences = [
                f"A {style} track in the key of {key}, tempo {song.bpm}.",
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
        tone = f"，{_TIMBRE['zh'][song.timbre]}" if sung else ""
        words_of = f"，{_LANGUAGE['zh'][song.language]}" if sung else ""
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
            phrases.append(_TIMBRE["zh"][song.timbre])
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


def _amateur(
    rng: np.random.Generator, song: Song, language: Literal["zh", "en"], wording: int
) -> Description:
    style = _pick(rng, _AMATEUR_STYLE[language][song.style])
    mood = _pick(rng, _MOOD[language][song.mode])
    tempo = _pick(rng, _TEMPO[language][tempo_word(song.bpm)])
    drums = _pick(rng, _DRUMS[language][song.drums])
    voice = _pick(rng, _AMATEUR_VOICE[language][song.voice])
    sung = song.voice != "none"
    timbre = [_AMATEUR_TIMBRE[language][song.timbre]] if sung else []
    plain = [
        _MOOD[language][song.mode][0],
        _TEMPO[language][tempo_word(song.bpm)][0],
        _AMATEUR_VOICE[language][song.voice][0],
    ]
    words = [*plain, _DRUMS[language][song.drums][0]]
    phrases = [style, mood, tempo, drums, voice, *timbre]
    if language == "en":
        if wording == 0:
            singing = ", ".join([voice.capitalize(), *timbre])
            sentences = [
                f"I want {style}, {mood}.",
                f"{tempo.capitalize()}, {drums}.",
                f"{singing}.",
            ]
        else:
            sentences = [
                f"{mood.capitalize()}, {tempo}, {style}.",
                f"{voice.capitalize()}, {drums}.",
            ]
            sentences += [f"{part.capitalize()} please." for part in timbre]
        joint = " "
    else:
        if wording == 0:
            sentences = [
                f"想要{style}，{mood}。",
                f"{tempo}，{drums}。",
                f"{'，'.join([voice, *timbre])}。",
            ]
        else:
            sentences = [
                f"{mood}，{tempo}，{style}。",
                f"{voice}，{drums}。",
                *[f"最好{part}。" for part in timbre],
            ]
        joint = ""
    ordered = sentences if wording == 0 else _shuffled(rng, sentences)
    return Description(
        language, "amateur", joint.join(ordered), tuple(words), tuple(phrases), tuple(ordered)
    )
