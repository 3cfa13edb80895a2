"""What people write when they ask for a song, as tables: the words of each property and its value.

    TABLES["voice"]        (("female", r"女声|..."), ("male", r"男声|..."), ...)

Patterns are matched against the description in NFKC form, without regard to case. A table's rows
are tried in order and the longest match at a place wins (text/wishes.py). Chinese words that hold a
shorter one with another meaning (快乐 for 快) are excluded beside it.
"""

from __future__ import annotations

# Styles that the engine plans for, and the tempo in which each is at home, in beats a minute.
STYLE_BPM: dict[str, tuple[int, int]] = {
    "ballad": (62, 88),
    "pop": (92, 126),
    "rock": (112, 152),
    "electronic": (116, 138),
    "folk": (66, 104),
    "jazz": (88, 152),
    "hip-hop": (76, 104),
    "metal": (120, 176),
    "funk": (96, 122),
    "reggae": (66, 92),
    "bossa nova": (104, 148),
    "country": (88, 144),
    "orchestral": (60, 112),
    "children": (92, 136),
}
ANY_STYLE_BPM = (72, 132)

# Words of a property. A style that is none of ours reads as the nearest, which is said; what names
# one of ours goes before it.
STYLES: tuple[tuple[str, str, bool], ...] = (
    # (style, pattern, whether the words name the style itself)
    ("ballad", r"抒情|情歌|慢歌|芭乐|\bballads?\b|\blove songs?\b", True),
    ("pop", r"流行|\bpop\b(?! art)", True),
    ("rock", r"摇滚|\brock\b(?!ing)", True),
    ("electronic", r"电子(?!琴|邮)|\belectronic\b|\bsynth-?pop\b", True),
    ("folk", r"民乐|国乐|\bchinese folk\b|\bfolk\b", True),
    ("jazz", r"爵士(?!吉他|鼓)|\bjazz(?:y)?\b(?! guitar)", True),
    (
        "electronic",
        r"舞曲|夜店|(?<!tea )(?<!coffee )(?<!opera )\bhouse\b"
        r"|\b(?:edm|techno|trance|dubstep|drum and bass|dnb|club)\b",
        False,
    ),
    ("electronic", r"蒸汽波|合成器浪潮|\b(?:synthwave|vaporwave|chiptune|8-?bit|ambient)\b", False),
    ("metal", r"重?金属|\bmetal\b", True),
    ("rock", r"朋克|硬核|\b(?:punk|grunge|hard ?core|hard rock|emo)\b", False),
    ("country", r"乡村(?:音乐|民谣|歌)?|\b(?:country|bluegrass)\b", True),
    (
        "folk",
        r"古风|国风|中国风|民谣|戏曲|\b(?:celtic|ethnic|world music)\b",
        False,
    ),
    ("bossa nova", r"波萨诺瓦|巴萨诺瓦|\bbossa(?: nova)?\b", True),
    ("jazz", r"布鲁斯|蓝调|摇摆乐|小酒馆|\b(?:blues|swing|big band)\b", False),
    ("hip-hop", r"lo-?fi|低保真|\bchillhop\b", False),
    ("jazz", r"慢摇|\blounge\b", False),
    ("hip-hop", r"说唱|嘻哈|饶舌|\b(?:rap|hip[- ]?hop|trap|boom ?bap)\b", True),
    (
        "children",
        r"儿歌|童谣|儿童歌曲|\b(?:nursery rhymes?|(?:kids?|children)'?s?'? (?:songs?|music))\b",
        True,
    ),
    ("funk", r"放克|\bfunky?\b", True),
    ("reggae", r"雷鬼|\b(?:reggae|ska)\b", True),
    ("funk", r"迪斯科|\bdisco\b", False),
    ("bossa nova", r"拉丁|\blatin\b", False),
    ("pop", r"韩流|\bk-?pop\b", False),
    ("ballad", r"灵魂乐|福音|轻音乐|\b(?:r ?& ?b|rnb|soul|gospel|lullab(?:y|ies))\b|摇篮曲", False),
    (
        "orchestral",
        r"古典|交响|管弦|\b(?:classical|orchestral|cinematic|symphonic)\b|电影配乐",
        True,
    ),
)

# Scenes and feelings that make most listeners think of one style. They are asked only where no
# words name a style.
SCENES: tuple[tuple[str, str], ...] = (
    (
        "rock",
        r"嘶吼|甩头|乐队现场|音乐节|轰鸣|很炸|燥起来|热血沸腾"
        r"|\b(?:headbang\w*|mosh(?: ?pit)?|loud guitars?|distort(?:ed|ion)"
        r"|band (?:jamming|on stage)|stadium|arena)\b",
    ),
    (
        "electronic",
        r"蹦迪|霓虹|赛博|电音|派对|舞池|(?:电子)?游戏"
        r"|\b(?:raves?|dance ?floor|neon|cyber\w*|night ?club|part(?:y|ies)|dj"
        r"|video games?|arcades?)\b",
    ),
    (
        "jazz",
        r"咖啡馆|咖啡厅|咖啡店|酒吧|酒馆|鸡尾酒|慵懒摇摆|爵士吧"
        r"|\b(?:caf[eé]s?|coffee (?:shop|house)s?|cocktails?|speakeasy|smoky|swinging)\b",
    ),
    (
        "folk",
        r"竹林|山水|江南|水墨|仙侠|武侠|古装|古代|古色古香|小桥流水"
        r"|\b(?:bamboo|misty mountains?|ink painting|wuxia|tea ?house|pagodas?|ancient"
        r"|(?:old|traditional) chinese)\b",
    ),
    (
        "pop",
        r"电台里?|朗朗上口|口水歌|都会(?:唱|哼)|排行榜|洗脑"
        r"|\b(?:catchy|radio|sing-?along|everyone (?:hums|sings|knows)|chart(?:-topping|s)?"
        r"|top 40|earworm)\b",
    ),
    (
        "hip-hop",
        r"街头|涂鸦|滑板"
        r"|\b(?:street beats?|graffiti|skateboard\w*|nod(?:ding)? along|beatbox\w*)\b",
    ),
    ("metal", r"黑暗系吼|死嗓|双踩|\b(?:growl(?:s|ing)?|thrash|shred(?:s|ding)?|double kick)\b"),
    ("funk", r"律动感|扭起来|扭屁股|\b(?:groov(?:e|es|y|ing)|hips|strut)\b"),
    (
        "reggae",
        r"海岛|沙滩|牙买加|加勒比|晒太阳|\b(?:islands?|jamaican?|caribbean|bob marley|one-drop)\b",
    ),
    (
        "bossa nova",
        r"巴西|里约|泳池边|\b(?:brazil(?:ian)?|rio|ipanema|samba(?:-like)?|by the pool)\b",
    ),
    (
        "country",
        r"牛仔|农场|谷仓|班卓琴|公路旅行|西部"
        r"|\b(?:cowboys?|banjo|barn|ranch|dusty road|porch|nashville|small town)\b",
    ),
    (
        "orchestral",
        r"恢弘|宏大|史诗|交响|音乐厅|预告片"
        r"|\b(?:soundtrack|film (?:music|score)|movie score|epic|overture|orchestra|trailer)\b",
    ),
    (
        "children",
        r"幼儿园|宝宝|哄小?孩|拍手歌|动画片"
        r"|\b(?:kindergarten|toddlers?|preschool|nursery|clap along|cartoons?)\b",
    ),
    (
        "ballad",
        r"浪漫|催泪|烛光|告白|求婚|婚礼|分手|失恋|深情|抱着跳舞"
        r"|\b(?:romantic|candle ?light|proposal|wedding"
        r"|heartfelt|heartbreak|tear-?jerker|slow dance)\b",
    ),
)

VOICES: tuple[tuple[str, str], ...] = (
    (
        "none",
        r"纯音乐|器乐曲?|无人声|人声都?没有|没有?人声|不要人声|没有?人唱歌?|无人演唱|无歌词|只有乐器|只要音乐"
        r"|\binstrumentals?\b"
        r"|\b(?:no|without(?: any)?) (?:vocals?|voices?|singing|lyrics|singers?)\b"
        r"|\b(?:nobody|no one|no-one) (?:sings?|singing)\b|\bvocal-?free\b|\bonly instruments\b",
    ),
    (
        "child",
        r"童声|儿童(?!歌曲|节)|小朋友|(?<!哄)小孩子?|小男孩|小女孩|孩子们?(?:的声音|在唱|唱)|小朋友"
        # a children's song need not be sung by one
        r"|\b(?!(?:child|children|kids?)(?:'?s?'?) (?:songs?|music)\b)"
        r"(?:child|children|kids?)\b(?:'s|')?",
    ),
    (
        "female",
        r"女声|女生|女孩子?|女歌手|女主唱|女人|女子|姑娘|姐姐|女高音|女中音|女嗓"
        r"|\bfemale\b|\bwom[ae]n(?:'s)?\b|\bgirl(?:'s|s)?\b|\bgals?\b|\blad(?:y|ies)(?:'s)?\b|\bsoprano\b"
        r"|\bshe sings\b",
    ),
    (
        "male",
        r"男声|男生|男孩子?|男歌手|男主唱|男人|男子|大叔|哥哥|男高音|男中音|男低音|男嗓"
        r"|(?<![a-z])male\b|(?<!wo)\bm[ae]n(?:'s)?\b|\bguys?\b|\bboy(?:'s|s)?\b|\bgent(?:s|leman|lemen)?\b|\bbaritone\b"
        r"|\bhe sings\b",
    ),
)

SEVERAL_VOICES = r"对唱|合唱|男女|二重唱|\bduets?\b|\bchoir\b|\bchorus of voices\b"

# Words that take back what stands right behind them, up to the end of the phrase.
NEGATIONS = (
    r"不要有?|不想要|不想|不需要|不用|不带|不加|不含|别(?:有|加|放|要|用)?|不许有?|没有|无需|去掉|去除|少用|避免|无|没|不"
    r"|\b(?:no|not|nobody|without(?: any)?|don'?t want(?: any)?|do not want(?: any)?|free of|minus"
    r"|never"
    r"|avoid|except|nothing|isn'?t|leave out)\b"
)
# Between a negation and what it takes back: 不要太快, not too fast, no loud drums.
BETWEEN = (
    r"\s*(?:(?:太|很|那么|这么|任何|一点|有|用|too|so|very|any|the|an?|loud|heavy|big|more)\s*)*"
)

SLOW = (
    r"(?<![怠傲])慢(?:慢的?|悠悠|速|板|节奏)?|舒缓|缓缓|缓慢|节奏很慢"
    r"|\b(?:slow(?:ly)?|calm|lullaby|laid-?back|relaxed|down-?tempo|takes its time)\b"
)
FAST = (
    r"(?<![凉愉畅痛轻欢赶勤捷飞])快(?![乐递餐要门慰感意活捷照])(?:节奏|速|歌|起来)?"
    r"|动感|劲爆|急促|飞快|轻快|欢快|跑起来"
    r"|\b(?:fast(?:er)?|quick(?:ly)?|up-?beat|up-?tempo|lively|energetic|rapid|makes you run)\b"
)
MEDIUM = (
    r"不快不慢|快慢适中|中等速度|中速|速度适中|像?散步一?样?"
    r"|\b(?:medium(?: speed| tempo)?|mid-?tempo|walking pace|moderate(?: tempo)?"
    r"|neither rushing nor dragging"
    r"|not too fast,? not too slow)\b"
)
# Names of tempi, Italian and as Chinese scores write them, with a usual speed.
TEMPO_NAMES: tuple[tuple[float, str], ...] = (
    (50, r"\blargo\b|广板"),
    (56, r"\blento\b"),
    (66, r"\badagio\b|柔板|(?<!小)慢板"),
    (84, r"\bandante\b|行板"),
    (92, r"\bandantino\b|小行板"),
    (108, r"\bmoderato\b|中板"),
    (116, r"\ballegretto\b|小快板"),
    (132, r"\ballegro\b|(?<!小)快板"),
    (160, r"\bvivace\b|\bvivo\b|活板"),
    (180, r"\bpresto\b|急板"),
)

MOODS: tuple[tuple[str, str], ...] = (
    (
        "major",
        r"开心|快乐|欢快|欢乐|阳光|希望|温暖|甜蜜?|幸福|明朗|喜庆|治愈|轻松|可爱|愉快|欢喜|热闹|微笑|会笑",
    ),
    (
        "major",
        r"\b(?:happy|joyful|cheerful|sunny|hopeful|sweet|bright|uplifting|warm"
        r"|fun|cute|smile|feel-good|good mood)\b",
    ),
    (
        "minor",
        r"伤感|悲伤|忧伤|忧郁|难过|孤独|寂寞|黑暗|哭|凄凉|怀念|失恋|心碎|惆怅|沧桑|冷清|悲壮",
    ),
    (
        "minor",
        r"\b(?:sad|melanchol(?:y|ic)|lonely|dark|mournful|cry|heartbroken"
        r"|down in the dumps|gloomy|moody|eerie)\b",
    ),
)

DRUMS = (
    r"架子鼓|鼓组|鼓点|鼓声|打击乐|(?<!锣)鼓(?!励|舞|起|掌|楼)"
    r"|\bdrum(?:s|ming| kit)?\b|\bpercussion\b"
)
NO_DRUMS = r"无鼓|\bdrumless\b"

INSTRUMENTS: tuple[tuple[str, str], ...] = (
    ("electric piano", r"电钢琴|\belectric piano\b|\brhodes\b"),
    ("piano", r"(?<!电)钢琴|\bpiano\b"),
    ("acoustic guitar", r"木吉他|原声吉他|民谣吉他|\bacoustic guitar\b"),
    ("electric guitar", r"电吉他|失真吉他|过载吉他|\b(?:electric|distorted|overdriven) guitars?\b"),
    ("guitar", r"(?<![木电声谣真载典士])吉他|\bguitars?\b"),
    ("bass", r"贝斯|低音提琴|\bbass\b(?! voice)"),
    ("violin", r"小提琴|\bviolins?\b"),
    ("cello", r"大提琴|\bcellos?\b"),
    ("strings", r"弦乐组?|\bstrings?\b"),
    ("harp", r"竖琴|\bharp\b"),
    ("flute", r"(?<![竹])长?笛子?|竹笛|洞箫|箫|\bflutes?\b"),
    ("saxophone", r"萨克斯|\bsax(?:ophone)?\b"),
    ("trumpet", r"小号|\btrumpets?\b"),
    ("organ", r"风琴|\borgan\b"),
    ("synthesizer", r"合成器|铺底|\bsynth(?:s|esizer|esizers)?\b|\bpads?\b"),
    ("guzheng", r"古筝|古琴|扬琴|\bguzheng\b|\bkoto\b"),
    ("pipa", r"琵琶|\bpipa\b"),
    ("erhu", r"二胡|\berhu\b"),
)

METRES: tuple[tuple[str, str], ...] = (
    ("3/4", r"(?<!\d)3\s?/\s?4(?!\d)|四三拍|三拍子?|华尔兹|圆舞曲|\bwaltz\b"),
    ("6/8", r"(?<!\d)6\s?/\s?8(?!\d)|八六拍|六八拍"),
    ("2/4", r"(?<!\d)2\s?/\s?4(?!\d)|四二拍"),
    ("5/4", r"(?<!\d)5\s?/\s?4(?!\d)|四五拍"),
    ("7/8", r"(?<!\d)7\s?/\s?8(?!\d)"),
    ("4/4", r"(?<!\d)4\s?/\s?4(?!\d)|四四拍"),
)
