"""Styles as data: instrument sets (General MIDI programs), accompaniment patterns and drum
patterns.

A pattern is one bar of steps. Times and lengths are in beats; `pick` says which notes of the voiced
chord sound (an index, "all", "low" for root and fifth); a drum pattern is sixteen steps a hand can
read: `x` loud, `o` soft, `.` nothing.

    style = STYLE_BOOK["jazz"]; style.sets["trio"].comp.program
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Instrument:
    program: int  # General MIDI, 0-127
    en: str
    zh: str


@dataclass(frozen=True, slots=True)
class InstrumentSet:
    """`comp` plays the pattern, `pad` (optional) holds the chords, `lead` plays the melody of
    instrumentals and short fills.
    """

    comp: Instrument
    bass: Instrument
    lead: Instrument
    pad: Instrument | None
    kit: int  # program of the drum channel


@dataclass(frozen=True, slots=True)
class Hit:
    beat: float
    length: float
    pick: int | str
    velocity: int


@dataclass(frozen=True, slots=True)
class Style:
    en: str
    zh: str
    bpm: tuple[int, int]
    sets: dict[str, InstrumentSet]
    comps: tuple[tuple[Hit, ...], ...]
    basses: tuple[tuple[Hit, ...], ...]  # pick: "root", "fifth", "octave", "third", "walk"
    drums: tuple[dict[int, str], ...]
    sevenths: bool = False
    swing: bool = False
    comp_range: tuple[int, int] = (52, 72)
    gains: dict[str, float] = field(default_factory=dict)


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

KICK, RIM, SNARE, CLAP, LOW_TOM, CLOSED, OPEN = 36, 37, 38, 39, 45, 42, 46
CRASH, RIDE, TAMBOURINE, SHAKER, BLOCK, CONGA, LOW_CONGA, BIG_TOM = 49, 51, 54, 70, 76, 63, 64, 41


def _steps(beats: str, length: float, picks: str, velocity: int) -> tuple[Hit, ...]:
    """Hits at the listed beats; picks is one name for all, or one digit a hit."""
    times = [float(beat) for beat in beats.split()]
    chosen: list[int | str] = (
        [int(digit) for digit in picks] if picks.isdigit() else [picks] * len(times)
    )
    # Accents tell where the beat is when there are no drums.
    loud = [velocity + (8 if beat == 0 else 0 if beat % 1 == 0 else -16) for beat in times]
    return tuple(
        Hit(beat, length, pick, level)
        for beat, pick, level in zip(times, chosen, loud, strict=True)
    )


_EIGHTHS = "0 .5 1 1.5 2 2.5 3 3.5"
_SIXTEENTHS = " ".join(str(step / 4) for step in range(16))

STYLE_BOOK: dict[str, Style] = {
    "ballad": Style(
        "ballad",
        "抒情慢歌",
        (60, 110),
        {
            "piano-strings": InstrumentSet(PIANO, UPRIGHT, VIOLIN, STRINGS, 0),
            "guitar-strings": InstrumentSet(NYLON, FINGER, FLUTE, SLOW_STRINGS, 0),
            "harp-cello": InstrumentSet(HARP, CELLO, PIANO, SLOW_STRINGS, 0),
        },
        comps=(
            _steps(_EIGHTHS, 1.0, "01210121", 84),
            _steps(_EIGHTHS, 1.0, "02120212", 84),
            (*_steps("0", 2.0, "low", 84), *_steps("1 1.5 2 2.5 3 3.5", 0.9, "121012", 78)),
        ),
        basses=(
            _steps("0 2", 1.9, "root", 88),
            (*_steps("0", 2.9, "root", 88), *_steps("3", 0.9, "fifth", 80)),
        ),
        drums=(
            {KICK: "x.......x.......", RIM: "....x.......x...", CLOSED: "o...o...o...o..."},
            {KICK: "x.......x.o.....", SNARE: "....o.......o...", RIDE: "x.o.x.o.x.o.x.o."},
        ),
        gains={"drums": 0.7},
    ),
    "pop": Style(
        "pop",
        "流行",
        (80, 145),
        {
            "electric-piano": InstrumentSet(EPIANO, FINGER, FLUTE, SYNTH_STRINGS, 0),
            "clean-guitar": InstrumentSet(CLEAN, FINGER, DX, None, 0),
            "acoustic-strum": InstrumentSet(STEEL, PICKED, CLEAN, SYNTH_STRINGS, 8),
        },
        comps=(
            _steps("0 1.5 2 3 3.5", 0.45, "all", 84),
            _steps("0 .5 1.5 2 2.5 3.5", 0.4, "all", 84),
            _steps("0 1 1.5 2.5 3 3.5", 0.45, "all", 84),
        ),
        basses=(
            _steps("0 .75 1.5 2 3", 0.5, "root", 94),
            (*_steps("0 1.5 2", 0.6, "root", 94), *_steps("3 3.5", 0.4, "fifth", 86)),
        ),
        drums=(
            {KICK: "x.....x.x.......", SNARE: "....x.......x...", CLOSED: "x.o.x.o.x.o.x.o."},
            {
                KICK: "x..o....x.x.....",
                SNARE: "....x.......x...",
                CLAP: "....o.......o...",
                CLOSED: "x.o.x.o.x.o.x.o.",
                SHAKER: "oooooooooooooooo",
            },
        ),
    ),
    "rock": Style(
        "rock",
        "摇滚",
        (85, 160),
        {
            "distorted": InstrumentSet(DISTORTION, PICKED, OVERDRIVE, None, 16),
            "overdrive-organ": InstrumentSet(OVERDRIVE, PICKED, DISTORTION, ORGAN, 16),
        },
        comps=(
            _steps(_EIGHTHS, 0.45, "power", 92),
            (*_steps("0 1.5 3", 1.0, "power", 94), *_steps("1 2.5", 0.45, "power", 84)),
        ),
        basses=(_steps(_EIGHTHS, 0.45, "root", 96),),
        drums=(
            {KICK: "x.......x.x.....", SNARE: "....x.......x...", CLOSED: "x.x.x.x.x.x.x.x."},
            {KICK: "x.x.....x.x.....", SNARE: "....x.......x..o", OPEN: "x...x...x...x..."},
        ),
        comp_range=(40, 60),
        gains={"chords": 0.9, "drums": 1.15},
    ),
    "electronic": Style(
        "electronic",
        "电子",
        (90, 160),
        {
            "saw-sweep": InstrumentSet(SAW, SYNTH_BASS, SQUARE, SWEEP_PAD, 25),
            "square-poly": InstrumentSet(SQUARE, RUBBER_BASS, SAW, POLY_PAD, 24),
        },
        comps=(
            _steps(_SIXTEENTHS, 0.22, "0121012101210121", 80),
            _steps(_SIXTEENTHS, 0.22, "0212010202120102", 80),
            _steps(".5 1.5 2.5 3.5", 0.4, "all", 92),
        ),
        basses=(
            tuple(
                Hit(step / 2, 0.4, "root" if step % 2 == 0 else "octave", 96) for step in range(8)
            ),
            _steps(".5 1 1.5 2.5 3 3.5", 0.4, "root", 96),
        ),
        drums=(
            {KICK: "x...x...x...x...", CLAP: "....x.......x...", OPEN: "..x...x...x...x."},
            {
                KICK: "x...x...x...x...",
                SNARE: "....x.......x...",
                CLOSED: "oooooooooooooooo",
                OPEN: "..o...o...o...o.",
            },
        ),
        comp_range=(57, 77),
        gains={"bass": 1.1, "drums": 1.1},
    ),
    "folk": Style(
        "Chinese folk",
        "中国风民谣",
        (60, 135),
        {
            "guzheng-xiao": InstrumentSet(KOTO, CELLO, SHAKUHACHI, None, 0),
            "pipa-bamboo": InstrumentSet(SHAMISEN, UPRIGHT, BAMBOO_FLUTE, SLOW_STRINGS, 0),
            "yangqin-erhu": InstrumentSet(DULCIMER, UPRIGHT, FIDDLE, None, 0),
        },
        comps=(
            _steps("0 .5 1 1.5 2 3", 1.2, "012120", 88),
            _steps("0 .25 .5 1 2 2.5 3 3.5", 1.0, "01221012", 88),
            _steps("0 1 1.5 2 2.5 3", 1.2, "021210", 88),
        ),
        basses=(
            _steps("0 2", 1.8, "root", 84),
            (*_steps("0", 1.8, "root", 84), *_steps("2", 1.8, "fifth", 80)),
        ),
        drums=(
            {
                BIG_TOM: "x.......x.......",
                BLOCK: "....x.......x.o.",
                TAMBOURINE: "..o...o...o...o.",
            },
            {LOW_CONGA: "x.....o.x.......", CONGA: "....x.......x.x.", SHAKER: "o.o.o.o.o.o.o.o."},
        ),
        comp_range=(57, 77),
    ),
    "jazz": Style(
        "jazz",
        "爵士",
        (70, 150),
        {
            "piano-trio": InstrumentSet(PIANO, UPRIGHT, SAX, None, 40),
            "rhodes-vibes": InstrumentSet(DX, FRETLESS, VIBES, None, 40),
            "guitar-trumpet": InstrumentSet(JAZZ_GUITAR, UPRIGHT, MUTED_TRUMPET, None, 32),
        },
        comps=(
            _steps("0 1.667", 0.7, "all", 82),
            _steps(".667 2 3.667", 0.5, "all", 84),
            _steps("0 1 2.667 3", 0.4, "all", 80),
        ),
        basses=(_steps("0 1 2 3", 0.9, "walk", 94),),
        drums=(
            {RIDE: "swing", KICK: "o.......o.......", CLOSED: "....x.......x..."},
            {RIDE: "swing", SNARE: "......o.......o.", CLOSED: "....x.......x..."},
        ),
        sevenths=True,
        swing=True,
        gains={"drums": 0.8},
    ),
}
