"""A grammar of Mandarin song lines: templates of slots, each slot a list of words, and a rhyme on
the last character.

A line is drawn for a number of syllables (5-9), a section and a rhyme class; the classes are the
thirteen tracks (十三辙), told by the final of the last syllable. All words and templates are this
project's own.

    draw_line(rng, syllables=7, section="verse", rhyme="ang", accept=lambda text: True)
    # "晚风吹过旧时光"
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np

# final (mudit_engine.text.mandarin) -> rhyme class
RHYME_CLASSES: dict[str, str] = {
    final: name
    for name, finals in {
        "a": "a ia ua",
        "o": "o uo e io",
        "ie": "ie ve eh",
        "u": "u",
        "i": "i v er ir iz",
        "ai": "ai uai",
        "ei": "ei uei",
        "ao": "ao iao",
        "ou": "ou iou",
        "an": "an ian uan van",
        "en": "en in uen vn",
        "ang": "ang iang uang",
        "eng": "eng ing ueng ong iong",
    }.items()
    for final in finals.split()
}

# Slot -> words. The digit of a slot is its number of syllables.
WORDS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "when2": (
            "今夜 昨天 明天 清晨 黄昏 春天 夏天 秋天 冬天 那年 此刻 深夜 午后 凌晨 后来 如今 曾经 "
            "终于"
        ),
        "where2": (
            "远方 故乡 海边 窗外 街角 山顶 雨中 风里 梦里 心里 路上 城市 巷口 桥头 河边 天边 站台 "
            "屋顶 田野 森林 湖边 沙滩"
        ),
        "sky2": (
            "月亮 星星 太阳 白云 彩虹 晚霞 星光 月光 流星 阳光 银河 夕阳 乌云 闪电 细雨 雪花 晚风 "
            "微风 春风 海风"
        ),
        "land2": (
            "小河 大海 高山 草原 花朵 树叶 稻田 海浪 沙丘 小溪 落叶 麦浪 荷塘 青山 炊烟 竹林 灯塔 "
            "渔船 小船 孤岛"
        ),
        "thing2": (
            "吉他 照片 书信 雨伞 灯火 街灯 咖啡 火车 单车 旧车 钢琴 日记 地图 行李 气球 风筝 钟声 "
            "笛声 歌声 车票 电影 毛衣"
        ),
        "feel2": (
            "思念 孤单 快乐 忧伤 勇气 梦想 温柔 自由 希望 回忆 寂寞 幸福 青春 烦恼 热情 秘密 承诺 "
            "心愿 泪水 笑容 誓言 光芒"
        ),
        "adj2": (
            "温柔 安静 遥远 明亮 温暖 寒冷 美丽 孤独 金色 蓝色 透明 古老 年轻 勇敢 疲惫 甜美 滚烫 "
            "柔软 宽阔 忧郁"
        ),
        "adj1": "红 蓝 白 旧 新 长 冷 暖 轻 老",
        "noun1": "风 雨 雪 云 花 海 山 梦 光 夜 灯 船 歌 酒 信 路",
        "verb1": "听 看 等 写 唱 画 想 爱 追 藏 望 寻",
        "verb2": "拥抱 等待 寻找 想起 忘记 穿过 守护 点亮 追逐 唤醒 遇见 告别 仰望 听见 收藏 带走",
        "who1": "我 你 他 她",
        "who2": "我们 你们 他们 大家 有人 朋友 爱人 少年 姑娘 孩子 旅人 妈妈",
        "manner2": "慢慢 轻轻 悄悄 静静 深深 默默 渐渐 偷偷",
        "modal2": "想要 愿意 一定 还能 只想 还要 总是 也会",
    }.items()
}

# What ends a line: (kind of ending, syllables) -> phrases. Grouped by rhyme automatically.
ENDINGS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        # what something in the sky or on the land does
        "does2": "开花 落下 回家 发芽 说话 "
        "唱歌 闪烁 走过 经过 飘落 "
        "明灭 不歇 "
        "起舞 漫步 跳舞 引路 "
        "升起 叹息 不语 哭泣 "
        "醒来 盛开 归来 徘徊 等待 "
        "纷飞 低垂 入睡 "
        "微笑 飘摇 拥抱 奔跑 飘飘 "
        "停留 守候 远走 奔流 "
        "弥漫 变暖 变淡 走远 蔓延 "
        "降临 靠近 转身 "
        "流浪 歌唱 发亮 摇晃 荡漾 生长 "
        "吹动 做梦 苏醒 入梦 飞行",
        # what a person does or wishes
        "act3": "不害怕 回到家 说句话 看雪花 "
        "唱首歌 别错过 不退缩 点篝火 "
        "看飘雪 说告别 写一页 数落叶 "
        "不认输 跳支舞 向前路 不停步 "
        "在一起 想念你 不放弃 看着你 记住你 "
        "去看海 等花开 说出来 放不开 "
        "不后悔 不流泪 不觉累 去追随 "
        "放声笑 向前跑 多美好 别忘掉 "
        "不回头 牵着手 跟我走 到最后 "
        "到永远 不会变 在身边 说再见 看着天 "
        "不灰心 听风声 带真心 慢慢寻 "
        "向远方 有方向 去流浪 不能忘 在路上 "
        "不会痛 追着风 抬头望 做个梦 看星星",
        # what something is like
        "is2": "优雅 无瑕 "
        "寂寞 闪烁 "
        "热烈 清澈 "
        "孤独 清楚 "
        "美丽 清晰 甜蜜 "
        "洁白 可爱 "
        "完美 憔悴 "
        "美好 不老 "
        "温柔 依旧 长久 "
        "蔚蓝 温暖 灿烂 遥远 "
        "单纯 清新 天真 "
        "明亮 滚烫 漫长 芬芳 "
        "安静 透明 晶莹 朦胧",
        # a noun at the end
        "noun2": "浪花 山崖 家 "
        "歌 星河 烟火 角落 "
        "落叶 岁月 白雪 "
        "旅途 脚步 礼物 大树 "
        "自己 回忆 空气 秘密 天气 距离 "
        "未来 大海 舞台 尘埃 "
        "眼泪 玫瑰 安慰 滋味 "
        "心跳 怀抱 微笑 海岛 "
        "左手 路口 窗口 风口 温柔 "
        "明天 春天 夜晚 港湾 笑脸 从前 "
        "黄昏 早晨 清晨 脚印 眼神 "
        "时光 月光 远方 故乡 希望 翅膀 海洋 模样 "
        "天空 彩虹 星星 心情 风景 梦境 背影 倒影",
    }.items()
}
_NOUN2 = tuple(word for word in ENDINGS["noun2"] if len(word) == 2)
ENDINGS["noun2"] = _NOUN2

# Kind of section -> templates. `{slot}` is filled from WORDS, the last `<slot>` from ENDINGS.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "image": (
        "{sky2}{manner2}<does2>",
        "{where2}的{sky2}<does2>",
        "{when2}的{sky2}<is2>",
        "{adj2}的{sky2}<does2>",
        "{adj2}的{land2}<does2>",
        "{where2}有{adj1}{noun1}<does2>",
        "{sky2}照着{adj1}{noun1}<does2>",
        "{sky2}落在{where2}<does2>",
        "{when2}{sky2}<does2>",
        "{land2}{manner2}<does2>",
        "{sky2}<does2>",
        "{noun1}{manner2}<does2>",
        "{land2}已经<is2>",
        "{thing2}陪着{who1}<does2>",
        "{where2}的{thing2}<is2>",
        "{when2}的{thing2}和<noun2>",
        "{sky2}和{land2}的<noun2>",
        "{sky2}穿过{where2}的<noun2>",
        "{when2}的{where2}{sky2}<does2>",
        "{when2}的{land2}{manner2}<does2>",
        "{adj2}的{thing2}和<noun2>",
        "一盏{adj1}灯照<noun2>",
        "{sky2}吹过{adj1}<noun2>",
        "{where2}{sky2}{manner2}<does2>",
    ),
    "story": (
        "{who1}在{where2}<act3>",
        "{when2}{who1}{modal2}<act3>",
        "{who2}在{where2}<act3>",
        "{who1}{verb2}{adj2}的<noun2>",
        "{who1}{verb1}着{where2}的<noun2>",
        "{who2}{verb1}着<noun2>",
        "{who1}的{thing2}和<noun2>",
        "{when2}{who1}{verb2}<noun2>",
        "{who1}{manner2}{verb1}着<noun2>",
        "{who2}{manner2}<does2>",
        "{who1}把{feel2}写成<noun2>",
        "{who1}带着{thing2}<act3>",
        "{when2}{who2}在{where2}<does2>",
        "{who2}说{modal2}<act3>",
        "{who1}想{verb2}<noun2>",
    ),
    "call": (
        "{who1}{modal2}<act3>",
        "让{who1}们一起<act3>",
        "{modal2}和{who1}<act3>",
        "{feel2}像{adj2}的<noun2>",
        "{feel2}是{who1}的<noun2>",
        "请你<act3>",
        "{verb2}{who1}的<noun2>",
        "把{feel2}交给<noun2>",
        "带着{feel2}<act3>",
        "{when2}请你<act3>",
        "{verb2}{adj2}的<noun2>",
        "让{feel2}{manner2}<does2>",
        "只要{who1}{modal2}<act3>",
        "啊{feel2}像<noun2>",
        "来吧来吧<act3>",
        "一起<act3>",
        "{who2}<act3>",
        "{when2}<act3>",
        "为了{feel2}<act3>",
        "{feel2}是<noun2>",
        "{verb2}<act3>",
        "{feel2}{feel2}<act3>",
        "{who1}的{feel2}多么<is2>",
    ),
}
SECTION_KINDS: dict[str, tuple[str, ...]] = {
    "verse": ("image", "image", "story"),
    "pre-chorus": ("story", "image"),
    "chorus": ("call",),
    "bridge": ("story", "call"),
}
SYLLABLES = (5, 6, 7, 8, 9)
_SLOT = re.compile(r"\{(\w+)\}|<(\w+)>")


def rhyme_class(text: str) -> str:
    """Rhyme class of the last character."""
    from mudit_engine.text.mandarin import read_han, split_syllable

    syllable = read_han(text)[-1].syllable
    if syllable is None:
        raise ValueError(f"no reading for {text[-1]!r}")
    return RHYME_CLASSES[split_syllable(syllable)[-1][:-1]]


@functools.cache
def _endings(slot: str) -> dict[str, tuple[str, ...]]:
    """Rhyme class -> phrases of an ending slot."""
    by_class: dict[str, list[str]] = {}
    for phrase in ENDINGS[slot]:
        by_class.setdefault(rhyme_class(phrase), []).append(phrase)
    return {name: tuple(phrases) for name, phrases in by_class.items()}


def template_syllables(template: str) -> int:
    """Characters of any line the template makes."""
    return len(_SLOT.sub("", template)) + sum(
        int((word or end)[-1]) for word, end in _SLOT.findall(template)
    )


@functools.cache
def templates(syllables: int, section: str) -> tuple[str, ...]:
    """Templates of that length, repeated as SECTION_KINDS weighs them."""
    return tuple(
        t
        for kind in SECTION_KINDS[section]
        for t in TEMPLATES[kind]
        if template_syllables(t) == syllables
    )


@functools.cache
def rhymes() -> tuple[str, ...]:
    """Classes in which every kind of section finds at least three endings at every length it can be
    sung at.
    """
    counts: dict[str, int] = {}
    for slot in ENDINGS:
        for name, phrases in _endings(slot).items():
            counts[name] = counts.get(name, 0) + len(phrases)
    return tuple(sorted(name for name, count in counts.items() if count >= 8))


def lengths(section: str) -> tuple[int, ...]:
    """Syllable counts that the section has templates for."""
    return tuple(n for n in SYLLABLES if templates(n, section))


def last_word(text: str) -> str:
    """What two lines of a section must not share: the last two characters."""
    return text[-2:]


def draw_line(
    rng: np.random.Generator,
    *,
    syllables: int,
    section: str,
    rhyme: str,
    accept: Callable[[str], bool],
) -> str:
    """A line of `syllables` characters ending in `rhyme` for which `accept` is true (drawn again
    until it is).
    """
    for _ in range(2000):
        template = templates(syllables, section)[
            int(rng.integers(len(templates(syllables, section))))
        ]
        used: set[str] = set()

        def fill(match: re.Match[str], used: set[str] = used) -> str:
            word_slot, end_slot = match.groups()
            words = WORDS[word_slot] if word_slot else _endings(end_slot).get(rhyme, ())
            words = tuple(word for word in words if word not in used)
            if not words:
                return "?"
            word = words[int(rng.integers(len(words)))]
            used.add(word)
            return word

        text = _SLOT.sub(fill, template)
        if "?" not in text and accept(text):
            return text
    raise ValueError(f"no Mandarin line of {syllables} syllables for {section} in rhyme {rhyme!r}")
