"""Descriptions with near misses of every property, and such as only look like it.

Both lists were written before the reader was tried on them.
"""

from __future__ import annotations

from typing import Any

import pytest

from mudit_engine.text.wishes import read_description

NEAR: list[tuple[str, dict[str, Any]]] = [
    ("来一首摇衮，要炸一点", {"style": "rock"}),
    ("一段说常，节奏感强", {"style": "hip-hop"}),
    ("写给妈妈的漫哥", {"style": "ballad"}),
    ("抒青的钢琴曲", {"style": "ballad", "instruments": ("piano",)}),
    ("想听民遥，木吉她伴奏", {"style": "folk", "instruments": ("acoustic guitar",)}),
    ("爵土味道，小浩独奏", {"instruments": ("trumpet",)}),
    ("爵世乐，撒克斯", {"style": "jazz"}),
    ("刚琴和小提秦", {"instruments": ("piano", "violin")}),
    ("大提勤独奏", {"instruments": ("cello",)}),
    ("古争配迪子", {"instruments": ("flute", "guzheng")}),
    ("电子应月，合成气铺满", {"style": "electronic"}),
    ("来点雷贵", {"style": "reggae"}),
    ("放刻的律动", {"style": "funk"}),
    ("嘻蛤风，街头感", {"style": "hip-hop"}),
    ("女升，温柔", {"voice": "female"}),
    ("南声低沉", {"voice": "male"}),
    ("铜声合唱", {"voice": "child"}),
    ("不要人生，纯因乐", {"voice": "none"}),
    ("男歌守唱", {"voice": "male"}),
    ("没有古声", {"drums": False}),
    ("架子股要响", {"drums": True}),
    ("打击月多一点", {"drums": True}),
    ("不要摇滚，也不要摇棍", {"style": None}),
    ("别用纲琴", {"without": ("piano",)}),
    ("节奏很曼", {"tempo": "slow"}),
    ("漫速的歌", {"tempo": "slow"}),
    ("欢块一点的", {"tempo": "fast", "mood": "major"}),
    ("轻松块乐的下午", {"mood": "major"}),
    ("孤毒的人", {"mood": "minor"}),
    ("尤伤的旋律", {"mood": "minor"}),
    ("忧欲的歌", {"mood": "minor"}),
    ("甜密的恋爱", {"mood": "major"}),
    ("行版，弦月四重奏", {"bpm": 84}),
    ("块板，二糊", {"bpm": 132, "instruments": ("erhu",)}),
    ("流型歌曲", {"style": "pop"}),
    ("郷村音乐", {"style": "country"}),
    ("乡春歌曲，班卓秦", {"style": "country"}),
    ("重金书，嘶孔", {"style": "metal"}),
    ("交想乐，管旋", {"style": "orchestral"}),
    ("迪死科舞曲", {"style": "electronic"}),
    ("拉丁武曲", {"style": "bossa nova"}),
    ("宝宝听的童遥", {"style": "children"}),
    ("竖情伴奏", {"style": "ballad"}),
    ("华尔姿", {"metre": "3/4"}),
    ("爱情的情割", {"style": "ballad"}),
    ("布鲁思吉他", {"style": "jazz", "instruments": ("guitar",)}),
    ("a roccking metall anthem", {"style": "metal"}),
    ("sweet ballard, piana only", {"style": "ballad", "instruments": ("piano",)}),
    ("dark elecronic trak", {"style": "electronic", "mood": "minor"}),
    ("smooth jaz with saxaphon", {"style": "jazz", "instruments": ("saxophone",)}),
    ("raggae summer", {"style": "reggae"}),
    ("regge beach tune", {"style": "reggae"}),
    ("femalle singer, acoustc guitr", {"voice": "female", "instruments": ("acoustic guitar",)}),
    ("instrumenal only", {"voice": "none"}),
    ("no dums please", {"drums": False}),
    ("withot drums", {"drums": False}),
    ("no voclas", {"voice": "none"}),
    ("hevy metel", {"style": "metal"}),
    ("countyr road song", {"style": "country"}),
    ("orchestrl film score", {"style": "orchestral"}),
    ("clasical strngs and vioiln", {"style": "orchestral", "instruments": ("violin", "strings")}),
    ("celllo solo", {"instruments": ("cello",)}),
    ("funkky bas", {"style": "funk"}),
    ("melancoly and lonelly", {"mood": "minor"}),
    ("cheerfull, upliftng", {"mood": "major"}),
    ("happpy kids song", {"style": "children", "mood": "major"}),
    ("bosa nova", {"style": "bossa nova"}),
    ("tecno club", {"style": "electronic"}),
    ("tehcno beat", {"style": "electronic"}),
    ("alegro", {"bpm": 132}),
    ("andnte, harpp", {"bpm": 84}),
    ("slwo and clam", {"tempo": "slow"}),
    ("uptempoo", {"tempo": "fast"}),
    ("not a pinao", {"without": ("piano",)}),
    ("lulaby for a baby", {"style": "ballad", "tempo": "slow"}),
    ("energtic rock", {"tempo": "fast", "style": "rock"}),
    ("percusion heavy", {"drums": True}),
    ("trumppet fanfare", {"instruments": ("trumpet",)}),
    ("sythesizer pads", {"instruments": ("synthesizer",)}),
    ("waltzz in A mnior", {"metre": "3/4", "key": "A minor"}),
]

ORDINARY = """
凉快的夏天傍晚
快乐的孩子们在海边
女生宿舍的夜晚
少数民族的节日
你要滚就滚吧
平凡的生活
声音很大
写一封情书给你
慢慢走过长街
这首歌曲送给你
流星划过天空
人生没有彩排
试试看能不能成功
抱抱我好吗
路边的大树
个个都是英雄
有访客来了
无趣的周末
古都的黄昏
二哥回家了
山上的青松
他的弟子很多
有个好点子
罢了罢了
寒流来袭的冬天
实时的新闻
由于下雨没出门
时候不早了
看一场电影
眼光放远一点
感情的事
基础要打好
现存的老房子
抵制诱惑
光线穿过窗户
乡下的外婆
薪水不高
慌忙之中
明月几时有
银河落九天
洗碗做饭
结界被打破
垫子上的猫
请个假去旅行
忙个不停
好像村里的人
那里约好见面
学生活动很多
一起来听故事
满满的回忆
漫漫长夜
他至于这样吗
犹豫的人
二户人家
背上书包
伙伴们出发
事实如此
申请大学
神情恍惚
七月的风
海盗船长
花瓣飘落
微小的力量
街上排队
烟花烂掉的苹果
失落的世界
我可以去说服他
给我一个理由
是时候说再见
就是这样的夜
从前有座山
我们都一样
也许明天会好
像风一样自由
枇杷树下
食堂的酸菜
警报响起
勤快的小蜜蜂
主管开会
a country house by the lake
rocky mountains in winter
metallic taste of rain
folks at the market
a mental note about the county
she wore a ballet dress
the mail came late
flutter and float
guild of painters
the pianist bowed
a drug dealer in the alley
violet sky
the organist and the organism
horse running free
pop art gallery
a singular moment
celestial bodies
tramp on the street
trumped up charges
jazzed about tomorrow
the electrician came
fuming smoke
spring breeze
strong winds
stringent rules
the gutter is full
the pilot flew a plane
dreampop and shoegaze
theremin, ukulele and kalimba
my friend Ballard from Kansas
regatta on the river
instruments of peace
mandolin rain
fado from Lisbon
cumbia and bachata
Beethoven and Chopin
the choice of fools
moist soil
""".strip().splitlines()


def near_notes(text: str) -> list[str]:
    return [note for note in read_description(text).notes if "is read as" in note]


@pytest.mark.parametrize(("text", "expected"), NEAR, ids=[text for text, _ in NEAR])
def test_near_misses_are_read_and_said(text: str, expected: dict[str, Any]) -> None:
    wishes = read_description(text)
    assert {name: getattr(wishes, name) for name in expected} == expected
    assert near_notes(text)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_words_stay(text: str) -> None:
    assert near_notes(text) == []


def test_words_are_shown_as_they_were_typed_and_count_as_understood() -> None:
    wishes = read_description("最好说昌，femlae voice，木几他")
    assert wishes.words == {"style": "说昌", "voice": "femlae", "instruments": "木几他"}
    assert wishes.notes == (
        "'说昌' is read as '说唱'",
        "'femlae' is read as 'female'",
        "'木几他' is read as '木吉他'",
    )
    assert wishes.unread == ("最", "voice")


def test_negation_takes_near_misses_back() -> None:
    assert read_description("不要摇棍，要民瑶").style == "folk"
    assert near_notes("不要摇棍") == ["'摇棍' is read as '摇滚'"]
    assert read_description("不要摇棍").style is None
    assert read_description("别放股点").drums is False
    assert read_description("别放股点").words["drums"] == "别放股点"
    assert read_description("no pinao").without == ("piano",)
    assert read_description("不要太漫慢的").tempo == "medium"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("民瑶，摇滚", "style", "rock"),
        ("民瑶，techno", "style", "electronic"),
        ("男升，女声", "voice", "female"),
        ("无股，有鼓点", "drums", True),
        ("型板，慢", "tempo", "slow"),
        ("中素，快", "tempo", "fast"),
        ("悲商，开心", "mood", "major"),
        ("no pinao, piano", "instruments", ("piano",)),
        ("三拍子 or 四四排", "metre", "3/4"),
        ("四四排 or 三拍子", "metre", "3/4"),
    ],
)
def test_what_is_exact_goes_before_what_is_near(text: str, name: str, value: object) -> None:
    wishes = read_description(text)
    assert getattr(wishes, name) == value
    assert near_notes(text), "and what is near is understood all the same"


def test_a_style_that_is_nearly_named_goes_before_a_scene() -> None:
    assert read_description("咖啡馆里的民瑶").style == "folk"


def test_near_words_beside_exact_ones_are_read_with_them() -> None:
    assert read_description("electrc guitar").instruments == ("electric guitar",)
    assert read_description("in A mnior").key == "A minor"
    assert read_description("hapy, bright, sad").mood == "major"
    assert read_description("钢琴，小题琴").instruments == ("piano", "violin")


def test_a_near_word_that_nothing_reads_is_not_said() -> None:
    wishes = read_description("a soft vioce")
    assert wishes.notes == () and "vioce" in wishes.unread


def test_traditional_characters_are_read_as_they_are() -> None:
    wishes = read_description("搖滾，鋼琴，女聲，不要鼓聲，綱琴")
    assert (wishes.style, wishes.voice, wishes.drums) == ("rock", "female", False)
    assert wishes.words["instruments"] == "鋼琴, 綱琴"
    assert wishes.notes == ("'綱琴' is read as '钢琴'",)
