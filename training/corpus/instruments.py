"""The instruments of the corpus: General MIDI programs with their names in English and Chinese.

PIANO.program, PIANO.zh     (0, "钢琴")
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instrument:
    program: int  # General MIDI, 0-127
    en: str
    zh: str


PIANO, BRIGHT_PIANO = (
    Instrument(0, "grand piano", "钢琴"),
    Instrument(1, "bright piano", "明亮的钢琴"),
)
EPIANO, DX = (
    Instrument(4, "electric piano", "电钢琴"),
    Instrument(5, "FM electric piano", "FM电钢琴"),
)
VIBES, DULCIMER = (
    Instrument(11, "vibraphone", "颤音琴"),
    Instrument(15, "hammered dulcimer", "扬琴"),
)
ORGAN = Instrument(18, "rock organ", "摇滚风琴")
NYLON, STEEL = (
    Instrument(24, "nylon guitar", "古典吉他"),
    Instrument(25, "acoustic guitar", "木吉他"),
)
JAZZ_GUITAR, CLEAN = (
    Instrument(26, "jazz guitar", "爵士吉他"),
    Instrument(27, "clean electric guitar", "清音电吉他"),
)
OVERDRIVE, DISTORTION = (
    Instrument(29, "overdriven guitar", "过载吉他"),
    Instrument(30, "distorted guitar", "失真吉他"),
)
UPRIGHT, FINGER = (
    Instrument(32, "upright bass", "低音提琴"),
    Instrument(33, "fingered bass", "指弹贝斯"),
)
PICKED, FRETLESS = (
    Instrument(34, "picked bass", "拨片贝斯"),
    Instrument(35, "fretless bass", "无品贝斯"),
)
SYNTH_BASS, RUBBER_BASS = (
    Instrument(38, "synth bass", "合成贝斯"),
    Instrument(39, "rubber synth bass", "橡皮合成贝斯"),
)
VIOLIN, CELLO, HARP = (
    Instrument(40, "violin", "小提琴"),
    Instrument(42, "cello", "大提琴"),
    Instrument(46, "harp", "竖琴"),
)
STRINGS, SLOW_STRINGS = (
    Instrument(48, "string section", "弦乐组"),
    Instrument(49, "slow strings", "慢弦乐"),
)
SYNTH_STRINGS = Instrument(50, "synth strings", "合成弦乐")
MUTED_TRUMPET, SAX = (
    Instrument(59, "muted trumpet", "弱音小号"),
    Instrument(66, "tenor saxophone", "萨克斯"),
)
FLUTE, BAMBOO_FLUTE = Instrument(73, "flute", "长笛"), Instrument(75, "bamboo flute", "竹笛")
SHAKUHACHI = Instrument(77, "shakuhachi", "洞箫")
SQUARE, SAW = Instrument(80, "square lead", "方波主音"), Instrument(81, "saw lead", "锯齿波主音")
WARM_PAD, POLY_PAD = (
    Instrument(89, "warm pad", "温暖铺底"),
    Instrument(90, "polysynth pad", "复音合成铺底"),
)
SWEEP_PAD = Instrument(95, "sweep pad", "扫频铺底")
SHAMISEN, KOTO = Instrument(106, "pipa-like lute", "琵琶"), Instrument(107, "guzheng", "古筝")
FIDDLE = Instrument(110, "erhu-like fiddle", "二胡")
CLAVINET, CELESTA = Instrument(7, "clavinet", "击弦古钢琴"), Instrument(8, "celesta", "钢片琴")
GLOCKENSPIEL, MARIMBA = Instrument(9, "glockenspiel", "钟琴"), Instrument(12, "marimba", "马林巴")
XYLOPHONE, DRAWBAR = (
    Instrument(13, "xylophone", "木琴"),
    Instrument(16, "drawbar organ", "拉杆风琴"),
)
ACCORDION, HARMONICA = Instrument(21, "accordion", "手风琴"), Instrument(22, "harmonica", "口琴")
MUTED_GUITAR = Instrument(28, "muted guitar", "闷音吉他")
SLAP, SLAP_TWO = Instrument(36, "slap bass", "拍弦贝斯"), Instrument(37, "popped bass", "勾弦贝斯")
CONTRABASS = Instrument(43, "contrabass section", "低音提琴组")
TREMOLO, PIZZICATO = (
    Instrument(44, "tremolo strings", "震音弦乐"),
    Instrument(45, "pizzicato strings", "拨奏弦乐"),
)
CHOIR, TRUMPET = Instrument(52, "choir", "合唱铺底"), Instrument(56, "trumpet", "小号")
TROMBONE, TUBA = Instrument(57, "trombone", "长号"), Instrument(58, "tuba", "大号")
HORN, BRASS = Instrument(60, "French horn", "圆号"), Instrument(61, "brass section", "铜管组")
OBOE, BASSOON = Instrument(68, "oboe", "双簧管"), Instrument(70, "bassoon", "巴松")
CLARINET, RECORDER = Instrument(71, "clarinet", "单簧管"), Instrument(74, "recorder", "竖笛")
BANJO, OCARINA = Instrument(105, "banjo", "班卓琴"), Instrument(79, "ocarina", "陶笛")
