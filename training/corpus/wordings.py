"""The words in which songs of the corpus are asked for, by register, language and property.

Every table of an amateur's words has options for training and options that only descriptions of
held-out songs use (`UNSEEN`), so that words can be tested which no model has read. All wording is
this project's own.

    AMATEUR_STYLE["zh"]["jazz"], UNSEEN["en"].style["jazz"]
"""

from __future__ import annotations

from dataclasses import dataclass

Table = dict[str, dict[str, tuple[str, ...]]]

PRO_VOICE = {
    "en": {
        "none": "instrumental, no vocals",
        "male": "male lead vocal",
        "female": "female lead vocal",
        "child": "child lead vocal",
    },
    "zh": {"none": "纯音乐无人声", "male": "男声主唱", "female": "女声主唱", "child": "童声主唱"},
}
AMATEUR_VOICE: Table = {
    "en": {
        "none": ("nobody sings", "no singing, just music", "only instruments", "no vocals at all"),
        "male": ("a man sings", "a guy singing", "sung by a boy with a low voice", "male singer"),
        "female": ("a woman sings", "a girl singing", "a lady's voice", "no man, a woman"),
        "child": (
            "a little kid sings",
            "a child's voice",
            "a kid from a children's choir",
            "sung by a kid, not a grown-up",
        ),
    },
    "zh": {
        "none": ("没有人唱歌", "不要人声，只要音乐", "只有乐器", "无人声的纯音乐"),
        "male": ("男生唱的", "一个男人在唱", "低沉的男声", "不要女声，要男声"),
        "female": ("女生唱的", "一个女孩在唱", "姐姐的声音", "不要男声，要女声"),
        "child": ("小朋友唱的", "小孩子在唱", "稚嫩的童声", "不要大人唱，要童声"),
    },
}
TIMBRE = {
    "en": {
        "clear": "clean, natural tone",
        "breathy": "breathy, airy tone",
        "bright": "bright, forward tone",
    },
    "zh": {"clear": "音色干净自然", "breathy": "气声音色", "bright": "音色明亮靠前"},
}
AMATEUR_TIMBRE = {
    "en": {
        "clear": "natural voice",
        "breathy": "soft whispery voice",
        "bright": "bright sparkling voice",
    },
    "zh": {"clear": "声音自然", "breathy": "像在耳边轻轻说", "bright": "声音很亮"},
}
# other names of a style that a professional may use for it
PRO_STYLE: Table = {
    "en": {
        "ballad": ("ballad", "love ballad"),
        "pop": ("pop", "mainstream pop"),
        "rock": ("rock", "guitar rock"),
        "electronic": ("electronic", "EDM"),
        "folk": ("Chinese folk", "traditional Chinese folk"),
        "jazz": ("jazz", "swing jazz"),
        "hip-hop": ("hip-hop", "boom bap hip-hop", "rap"),
        "metal": ("metal", "heavy metal"),
        "funk": ("funk", "slap-bass funk"),
        "reggae": ("reggae", "roots reggae"),
        "bossa nova": ("bossa nova", "bossa"),
        "country": ("country", "bluegrass country"),
        "orchestral": ("orchestral", "symphonic"),
        "children": ("children's song", "nursery rhyme"),
    },
    "zh": {
        "ballad": ("抒情慢歌", "抒情"),
        "pop": ("流行", "流行歌曲"),
        "rock": ("摇滚", "吉他摇滚"),
        "electronic": ("电子", "电子舞曲"),
        "folk": ("中国风民谣", "国风"),
        "jazz": ("爵士", "摇摆爵士"),
        "hip-hop": ("嘻哈说唱", "说唱"),
        "metal": ("重金属", "金属"),
        "funk": ("放克", "放克律动"),
        "reggae": ("雷鬼", "根源雷鬼"),
        "bossa nova": ("波萨诺瓦", "巴萨诺瓦"),
        "country": ("乡村", "美式乡村"),
        "orchestral": ("管弦乐", "交响"),
        "children": ("儿歌", "童谣"),
    },
}
AMATEUR_STYLE: Table = {
    "en": {
        "ballad": (
            "a tender love song",
            "something soft and romantic",
            "a slow dance kind of song",
            "a heartfelt ballad",
        ),
        "pop": ("a catchy radio song", "something everyone hums", "a pop song", "chart stuff"),
        "rock": ("loud guitars", "a band jamming on stage", "something to headbang to", "rock"),
        "electronic": (
            "club music",
            "like a video game at night",
            "synths and neon lights",
            "dance floor beats",
        ),
        "folk": (
            "old Chinese feeling",
            "like an ancient garden",
            "misty mountains and bamboo",
            "like a wuxia movie",
        ),
        "jazz": (
            "a smoky little bar",
            "swinging late night cafe music",
            "jazzy and relaxed",
            "jazz bar music",
        ),
        "hip-hop": ("a rap beat", "lazy hip-hop to nod along", "street beats", "hiphop vibes"),
        "metal": ("super heavy metal", "angry growling guitars", "brutal metal", "thrash riffs"),
        "funk": ("funky and groovy", "a funky bass line", "groovy party funk", "makes hips move"),
        "reggae": ("reggae on the beach", "island vibes", "Bob Marley mood", "a chill reggae"),
        "bossa nova": (
            "bossa nova by the pool",
            "a gentle Brazilian song",
            "Rio in the afternoon",
            "soft bossa",
        ),
        "country": (
            "a country song",
            "cowboys and a dusty road",
            "banjo on the porch",
            "small town country",
        ),
        "orchestral": (
            "like a movie soundtrack",
            "a big orchestra",
            "classical and grand",
            "film music, epic",
        ),
        "children": (
            "a kids' song",
            "a nursery rhyme",
            "something for kindergarten",
            "a song for toddlers",
        ),
    },
    "zh": {
        "ballad": ("温柔的情歌", "软软的很浪漫", "适合慢慢抱着跳舞", "走心的慢歌"),
        "pop": ("朗朗上口的流行歌", "电台里常放的那种", "大家都会哼的歌", "口水歌那种"),
        "rock": ("很炸的吉他", "像乐队在台上嘶吼", "想跟着甩头", "摇滚，燥起来"),
        "electronic": ("夜店的感觉", "像游戏里的音乐", "霓虹灯和合成器", "蹦迪那种"),
        "folk": ("古风", "像在古代的园子里", "有竹林和山水的感觉", "武侠片的感觉"),
        "jazz": ("小酒馆的感觉", "深夜咖啡馆的音乐", "慵懒摇摆", "爵士酒吧那种"),
        "hip-hop": ("说唱那种", "嘻哈的节拍", "街头的感觉", "想跟着点头的说唱"),
        "metal": ("重金属，特别猛", "金属那种很凶的吉他", "吼得很凶的金属", "吉他凶到爆的金属"),
        "funk": ("放克，很有律动", "贝斯弹得很骚的放克", "扭起来的放克", "律动感超强"),
        "reggae": ("雷鬼，海边的感觉", "牙买加海岛风", "沙滩晒太阳的雷鬼", "海岛度假那种"),
        "bossa nova": ("波萨诺瓦", "巴西风情", "里约海边的下午", "泳池边的波萨诺瓦"),
        "country": ("美国乡村歌", "牛仔和公路的感觉", "乡村民谣", "农场里弹班卓琴"),
        "orchestral": ("像电影配乐", "大交响乐团", "古典又宏大", "史诗感的管弦乐"),
        "children": ("儿歌", "幼儿园里唱的歌", "给宝宝听的童谣", "哄小孩的儿歌"),
    },
}
MOOD: Table = {
    "en": {
        "major": (
            "happy",
            "sunny and hopeful",
            "makes me smile",
            "warm and cheerful",
            "not sad, a happy one",
            "feel-good",
        ),
        "minor": (
            "sad",
            "melancholy like rain on a window",
            "makes me want to cry",
            "dark and lonely",
            "not cheerful, rather gloomy",
            "down in the dumps",
        ),
    },
    "zh": {
        "major": ("开心", "阳光又有希望", "听了会笑", "温暖快乐", "不要伤感，要快乐", "超治愈"),
        "minor": (
            "伤感",
            "像窗外的雨一样忧郁",
            "听了想哭",
            "黑暗孤独",
            "别太欢乐，要忧伤",
            "很丧，难过",
        ),
    },
}
TEMPO: Table = {
    "en": {
        "slow": ("slow", "slow and calm", "takes its time", "not fast, slow", "nice and slow"),
        "mid": ("medium speed", "walking pace", "not too fast, not too slow", "moderate tempo"),
        "fast": ("fast", "fast and lively", "makes you run", "not slow at all, fast", "quick"),
    },
    "zh": {
        "slow": ("慢慢的", "节奏很慢", "慢悠悠", "不要快，要慢", "舒缓"),
        "mid": ("不快不慢", "中等速度", "像散步一样", "速度适中"),
        "fast": ("很快", "节奏快", "让人想跑起来", "不要慢，要快", "动感十足"),
    },
}
DRUMS: dict[str, dict[bool, tuple[str, ...]]] = {
    "en": {
        True: ("with drums", "a steady beat on drums", "drums going all the way", "I want drums"),
        False: (
            "no drums",
            "quiet, without any drums",
            "nothing drumming",
            "please leave out drums",
        ),
    },
    "zh": {
        True: ("有鼓", "鼓点清楚", "带鼓的节奏", "要有鼓声"),
        False: ("没有鼓", "安静，不要鼓", "不带鼓点", "别加鼓"),
    },
}
PRO_DRUMS = {
    "en": {True: "full drum kit", False: "no drums, drumless arrangement"},
    "zh": {True: "完整鼓组", False: "无鼓编曲"},
}
PRODUCTION = {
    "en": {
        "ballad": "warm mix, gentle reverb, wide dynamics",
        "pop": "radio-ready mix, vocal up front",
        "rock": "tight punchy low end, saturated guitars",
        "electronic": "sidechain-tight low end, bright synths",
        "folk": "natural acoustic recording, plucked transients",
        "jazz": "dry intimate room, swing feel",
        "hip-hop": "heavy sub bass, dusty sampled keys",
        "metal": "palm-muted wall of guitars, double kick",
        "funk": "percussive slapped bass, tight sixteenth groove",
        "reggae": "deep round bass, offbeat skank",
        "bossa nova": "soft brushed groove, close nylon strings",
        "country": "twangy plucked strings, train beat",
        "orchestral": "large hall, full symphonic dynamics",
        "children": "light toy-like band, simple and clear",
    },
    "zh": {
        "ballad": "混音温暖，轻混响，动态宽",
        "pop": "电台级混音，人声靠前",
        "rock": "低频紧实有力，吉他饱和",
        "electronic": "低频干净，合成器明亮",
        "folk": "自然原声录音，拨弦颗粒清晰",
        "jazz": "小房间干声，摇摆律动",
        "hip-hop": "超低频厚重，采样键盘带颗粒",
        "metal": "闷音吉他墙，双踩底鼓",
        "funk": "拍弦贝斯有弹性，十六分律动紧",
        "reggae": "贝斯圆厚，反拍扫弦",
        "bossa nova": "轻柔鼓刷，尼龙弦贴耳",
        "country": "拨弦清脆，火车节奏",
        "orchestral": "大厅混响，交响动态",
        "children": "玩具般的小乐队，简单清楚",
    },
}
LANGUAGE = {
    "en": {"zh": "Mandarin lyrics", "en": "English lyrics"},
    "zh": {"zh": "中文歌词", "en": "英文歌词"},
}


@dataclass(frozen=True, slots=True)
class Words:
    """An amateur's words for every property, in one language."""

    style: dict[str, tuple[str, ...]]
    mood: dict[str, tuple[str, ...]]
    tempo: dict[str, tuple[str, ...]]
    drums: dict[bool, tuple[str, ...]]
    voice: dict[str, tuple[str, ...]]


SEEN = {
    language: Words(
        AMATEUR_STYLE[language],
        MOOD[language],
        TEMPO[language],
        DRUMS[language],
        AMATEUR_VOICE[language],
    )
    for language in ("zh", "en")
}
UNSEEN = {
    "en": Words(
        style={
            "ballad": ("a candlelight love song", "a gentle song for a proposal"),
            "pop": ("one of those top 40 songs", "an earworm for the car"),
            "rock": ("electric guitars cranked up, stadium rock", "garage rock energy"),
            "electronic": ("rave music", "techno for a party"),
            "folk": ("guzheng in a tea house", "ancient Chinese palace music"),
            "jazz": ("saxophone in a speakeasy", "cool lounge jazz"),
            "hip-hop": ("a beat I can rap over", "old school hip hop"),
            "metal": ("metal that shakes the walls", "the heaviest metal you can"),
            "funk": ("funk with attitude", "a funky strut"),
            "reggae": ("a laid-back Jamaican tune", "one-drop reggae"),
            "bossa nova": ("bossa nova for a rainy cafe", "samba-like bossa nova"),
            "country": ("Nashville style country", "a tune for a barn dance, country"),
            "orchestral": ("symphony orchestra, cinematic", "a classical overture"),
            "children": ("a song my toddler can clap to", "kindergarten kids' song"),
        },
        mood={
            "major": ("joyful and bright", "uplifting, puts you in a good mood"),
            "minor": ("heartbroken and moody", "gloomy, like after a goodbye"),
        },
        tempo={
            "slow": ("at a relaxed crawl, slow", "as slow as it gets"),
            "mid": ("mid-tempo", "neither rushing nor dragging"),
            "fast": ("up-tempo, energetic", "rapid"),
        },
        drums={
            True: ("give it some percussion and drums", "drums please"),
            False: ("skip the drums, no percussion", "I don't want drums in it"),
        },
        voice={
            "none": ("an instrumental without a singer", "no voice anywhere"),
            "male": ("baritone, a man's voice", "he sings it"),
            "female": ("soprano, a female voice", "she sings it"),
            "child": ("voiced by children", "the voice of a small child"),
        },
    ),
    "zh": Words(
        style={
            "ballad": ("烛光晚餐时的情歌", "告白用的抒情歌"),
            "pop": ("排行榜上的流行歌", "洗脑的流行曲"),
            "rock": ("音乐节上的摇滚", "热血沸腾的摇滚乐"),
            "electronic": ("电音派对", "舞池里放的电子乐"),
            "folk": ("仙侠剧里的古风曲", "江南水乡的国风"),
            "jazz": ("慢摇的爵士", "鸡尾酒吧里的爵士乐"),
            "hip-hop": ("能跟着饶舌的节奏", "老派嘻哈"),
            "metal": ("金属乐，越重越好", "震耳欲聋的重金属"),
            "funk": ("放克味儿十足", "带点放克的扭动"),
            "reggae": ("牙买加的雷鬼乐", "懒洋洋的雷鬼"),
            "bossa nova": ("咖啡店里的巴萨诺瓦", "午后的波萨诺瓦小曲"),
            "country": ("西部牛仔的乡村音乐", "谷仓舞会上的乡村曲"),
            "orchestral": ("交响乐那样恢弘", "古典音乐会的管弦乐"),
            "children": ("三岁宝宝也能拍手唱的儿歌", "幼儿园的童谣"),
        },
        mood={
            "major": ("欢喜热闹", "甜蜜又幸福"),
            "minor": ("凄凉惆怅", "心碎，怀念过去"),
        },
        tempo={
            "slow": ("缓缓地", "越慢越好"),
            "mid": ("中速", "快慢适中就好"),
            "fast": ("急促一些，快节奏", "劲爆飞快"),
        },
        drums={
            True: ("打击乐要明显", "来点架子鼓"),
            False: ("去掉鼓", "不需要打击乐"),
        },
        voice={
            "none": ("器乐曲，无人演唱", "一句人声都没有"),
            "male": ("男中音", "大叔的嗓音"),
            "female": ("女高音", "温婉的女歌手"),
            "child": ("孩子们在唱", "儿童的嗓音"),
        },
    ),
}
