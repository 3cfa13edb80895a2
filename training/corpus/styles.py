"""Styles as data: instrument sets (General MIDI programs), accompaniment patterns and drum
patterns.

A pattern is one bar of steps. Times and lengths are in beats; `pick` says which notes of the voiced
chord sound (an index, "all", "low" for root and fifth); a drum pattern is sixteen steps a hand can
read: `x` loud, `o` soft, `.` nothing.

    style = STYLE_BOOK["jazz"]; style.sets["trio"].comp.program
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mudit_engine.training.corpus.instruments import (
    ACCORDION,
    BAMBOO_FLUTE,
    BANJO,
    BASSOON,
    BRASS,
    BRIGHT_PIANO,
    CELESTA,
    CELLO,
    CHOIR,
    CLARINET,
    CLAVINET,
    CLEAN,
    CONTRABASS,
    DISTORTION,
    DRAWBAR,
    DULCIMER,
    DX,
    EPIANO,
    FIDDLE,
    FINGER,
    FLUTE,
    FRETLESS,
    GLOCKENSPIEL,
    HARMONICA,
    HARP,
    HORN,
    JAZZ_GUITAR,
    KOTO,
    MARIMBA,
    MUTED_GUITAR,
    MUTED_TRUMPET,
    NYLON,
    OBOE,
    OCARINA,
    ORGAN,
    OVERDRIVE,
    PIANO,
    PICKED,
    PIZZICATO,
    POLY_PAD,
    RECORDER,
    RUBBER_BASS,
    SAW,
    SAX,
    SHAKUHACHI,
    SHAMISEN,
    SLAP,
    SLAP_TWO,
    SLOW_STRINGS,
    SQUARE,
    STEEL,
    STRINGS,
    SWEEP_PAD,
    SYNTH_BASS,
    SYNTH_STRINGS,
    TREMOLO,
    TROMBONE,
    TRUMPET,
    TUBA,
    UPRIGHT,
    VIBES,
    VIOLIN,
    XYLOPHONE,
    Instrument,
)


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
    "hip-hop": Style(
        "hip-hop",
        "嘻哈说唱",
        (72, 106),
        {
            "sampled-keys": InstrumentSet(EPIANO, FRETLESS, MUTED_TRUMPET, None, 8),
            "dark-piano": InstrumentSet(BRIGHT_PIANO, SYNTH_BASS, SQUARE, SLOW_STRINGS, 25),
            "plucked-loop": InstrumentSet(PIZZICATO, RUBBER_BASS, FLUTE, None, 25),
        },
        comps=(
            (*_steps("0", 1.4, "all", 84), *_steps("2.5 3.25", 0.4, "all", 78)),
            _steps("0 .75 1.5 2 2.75 3.5", 0.5, "012102", 84),
            (*_steps("0 1", 0.8, "low", 80), *_steps("1.75 2.5 3.5", 0.4, "212", 82)),
        ),
        basses=(
            (*_steps("0", 1.4, "root", 104), *_steps("1.75 2.5", 0.6, "root", 98)),
            (*_steps("0 .75", 0.7, "root", 104), *_steps("2.5 3.5", 0.4, "octave", 92)),
        ),
        drums=(
            {KICK: "x.....o.o.x.....", SNARE: "....x.......x...", CLOSED: "x.x.x.x.x.x.x.xo"},
            {KICK: "x......x..x.....", CLAP: "........x.......", CLOSED: "x.x.xxx.x.x.xxxx"},
        ),
        gains={"bass": 1.3, "drums": 1.2, "chords": 0.85},
    ),
    "metal": Style(
        "metal",
        "重金属",
        (112, 180),
        {
            "gallop": InstrumentSet(DISTORTION, PICKED, SAW, None, 16),
            "symphonic": InstrumentSet(DISTORTION, SYNTH_BASS, VIOLIN, CHOIR, 16),
        },
        comps=(
            _steps("0 .5 .75 1 1.5 1.75 2 2.5 2.75 3 3.5 3.75", 0.2, "power", 100),
            _steps(_SIXTEENTHS, 0.18, "power", 96),
            (*_steps("0", 1.4, "power", 104), *_steps("1.5 1.75 2 2.5 3 3.25", 0.2, "power", 96)),
        ),
        basses=(
            _steps("0 .5 .75 1 1.5 1.75 2 2.5 2.75 3 3.5 3.75", 0.22, "root", 102),
            _steps(_EIGHTHS, 0.4, "root", 104),
        ),
        drums=(
            {KICK: "xxxxxxxxxxxxxxxx", SNARE: "....x.......x...", CRASH: "o...o...o...o..."},
            {KICK: "x.xxx.xxx.xxx.xx", SNARE: "....x.......x...", RIDE: "x...x...x...x..."},
            {KICK: "x.x.x.x.x.x.x.x.", SNARE: ".x.x.x.x.x.x.x.x", OPEN: "x.x.x.x.x.x.x.x."},
        ),
        comp_range=(36, 56),
        gains={"chords": 1.05, "bass": 1.05, "drums": 1.25},
    ),
    "funk": Style(
        "funk",
        "放克",
        (92, 126),
        {
            "clavinet-brass": InstrumentSet(CLAVINET, SLAP, BRASS, None, 8),
            "muted-guitar-organ": InstrumentSet(MUTED_GUITAR, SLAP_TWO, TRUMPET, DRAWBAR, 8),
        },
        comps=(
            _steps("0 .75 1.5 1.75 2.5 3.25 3.5", 0.18, "all", 92),
            _steps(".25 .5 1 1.75 2.25 2.75 3 3.75", 0.18, "all", 92),
            _steps("0 .25 .75 1.25 1.5 2 2.25 2.75 3.25 3.5", 0.16, "all", 90),
        ),
        basses=(
            (*_steps("0 .75 2.5", 0.3, "root", 108), *_steps("1.25 1.75 3.5", 0.2, "octave", 104)),
            (*_steps("0 .25 1.5 2.75", 0.2, "root", 108), *_steps("2 3.25 3.75", 0.2, "fifth", 98)),
        ),
        drums=(
            {KICK: "x..x..x...x..o..", SNARE: "....x..o.o..x..o", CLOSED: "xoxoxoxoxoxoxoxo"},
            {
                KICK: "x.x....x..xo....",
                SNARE: "....x..o....x.oo",
                OPEN: "..............x.",
                CLOSED: "x.x.xxx.x.x.xx..",
            },
        ),
        sevenths=True,
        gains={"bass": 1.25, "drums": 1.1},
    ),
    "reggae": Style(
        "reggae",
        "雷鬼",
        (62, 94),
        {
            "organ-skank": InstrumentSet(DRAWBAR, FINGER, HARMONICA, None, 8),
            "guitar-skank": InstrumentSet(CLEAN, RUBBER_BASS, TROMBONE, None, 0),
        },
        comps=(
            _steps(".5 1.5 2.5 3.5", 0.22, "all", 100),
            _steps("1 3", 0.3, "all", 100),
            _steps(".5 .75 1.5 2.5 2.75 3.5", 0.18, "all", 96),
        ),
        basses=(
            (*_steps("0 1.5", 0.6, "root", 108), *_steps("2 2.5 3", 0.4, "fifth", 98)),
            (*_steps(".5 1 2.5", 0.5, "root", 108), *_steps("1.5 3.5", 0.4, "third", 98)),
        ),
        drums=(
            {KICK: "........x.......", RIM: "........x.......", CLOSED: "x.xox.xox.xox.xo"},
            {KICK: "x...x...x...x...", SNARE: "........x......o", OPEN: "..x...x...x...x."},
        ),
        comp_range=(55, 75),
        gains={"bass": 1.35},
    ),
    "bossa nova": Style(
        "bossa nova",
        "波萨诺瓦",
        (100, 150),
        {
            "nylon-flute": InstrumentSet(NYLON, UPRIGHT, FLUTE, None, 40),
            "nylon-clarinet": InstrumentSet(NYLON, FRETLESS, CLARINET, SLOW_STRINGS, 40),
            "celesta-sax": InstrumentSet(JAZZ_GUITAR, UPRIGHT, SAX, None, 40),
        },
        comps=(
            (*_steps("0 1 2 3", 0.6, "low", 72), *_steps("0 .75 1.5 2.5 3.25", 0.4, "all", 84)),
            (*_steps("0 2", 0.9, "low", 74), *_steps(".5 1.5 2 3 3.5", 0.4, "all", 84)),
        ),
        basses=((*_steps("0 1.5", 0.9, "root", 92), *_steps("2 3.5", 0.6, "fifth", 88)),),
        drums=(
            {KICK: "x..xx..xx..xx..x", RIM: "x..x..x...x..x..", SHAKER: "oooooooooooooooo"},
            {KICK: "x..ox..ox..ox..o", RIM: "..x..x..x..x...x", CLOSED: "oooooooooooooooo"},
        ),
        sevenths=True,
        gains={"drums": 0.75},
    ),
    "country": Style(
        "country",
        "乡村",
        (84, 150),
        {
            "banjo-fiddle": InstrumentSet(BANJO, UPRIGHT, FIDDLE, None, 0),
            "steel-harmonica": InstrumentSet(STEEL, PICKED, HARMONICA, None, 0),
            "banjo-accordion": InstrumentSet(BANJO, FINGER, CLEAN, ACCORDION, 0),
        },
        comps=(
            (*_steps("0 2", 0.5, "low", 84), *_steps("1 3", 0.3, "all", 88)),
            _steps(_EIGHTHS, 0.5, "02120212", 90),
            (*_steps("0 2", 0.4, "low", 84), *_steps("1 1.5 3 3.5", 0.25, "all", 86)),
        ),
        basses=(
            (*_steps("0", 0.8, "root", 98), *_steps("2", 0.8, "fifth", 94)),
            (
                *_steps("0", 0.8, "root", 98),
                *_steps("2", 0.8, "fifth", 94),
                *_steps("3", 0.7, "third", 88),
            ),
        ),
        drums=(
            {KICK: "x.......x.......", SNARE: "o.oxo.oxo.oxo.ox"},
            {KICK: "x...o...x...o...", SNARE: "..x...x...x...x.", TAMBOURINE: "....x.......x..."},
        ),
        comp_range=(52, 74),
    ),
    "orchestral": Style(
        "orchestral",
        "管弦乐",
        (60, 114),
        {
            "strings-horn": InstrumentSet(TREMOLO, CONTRABASS, HORN, STRINGS, 48),
            "pizzicato-oboe": InstrumentSet(PIZZICATO, BASSOON, OBOE, SLOW_STRINGS, 48),
            "brass-choir": InstrumentSet(BRASS, TUBA, TRUMPET, CHOIR, 48),
        },
        comps=(
            _steps("0 1 2 3", 0.95, "all", 78),
            (*_steps("0 2", 1.9, "low", 80), *_steps("1 1.5 3 3.5", 0.45, "2121", 84)),
            _steps(_EIGHTHS, 0.45, "01210121", 86),
        ),
        basses=(
            _steps("0 2", 1.9, "root", 96),
            (*_steps("0 1", 0.9, "root", 96), *_steps("2 3", 0.9, "fifth", 90)),
        ),
        drums=(
            {BIG_TOM: "x.......x...o.o.", CRASH: "o..............."},
            {KICK: "x.......x.......", SNARE: "....o.oo....o.oo", BIG_TOM: "x.......o......."},
        ),
        gains={"chords": 1.1, "drums": 0.8},
    ),
    "children": Style(
        "children's song",
        "儿歌",
        (92, 140),
        {
            "glockenspiel": InstrumentSet(MARIMBA, BASSOON, GLOCKENSPIEL, None, 0),
            "accordion-tuba": InstrumentSet(ACCORDION, TUBA, RECORDER, None, 0),
            "toy-band": InstrumentSet(CELESTA, UPRIGHT, XYLOPHONE, OCARINA, 0),
        },
        comps=(
            (*_steps("0 2", 0.4, "low", 80), *_steps("1 3", 0.3, "all", 86)),
            _steps("0 1 2 3", 0.35, "0202", 90),
            _steps(_EIGHTHS, 0.35, "02120212", 86),
        ),
        basses=((*_steps("0", 0.5, "root", 96), *_steps("2", 0.5, "fifth", 92)),),
        drums=(
            {BLOCK: "x...x...x...x.x.", TAMBOURINE: "..x...x...x...x."},
            {KICK: "x.......x.......", CLAP: "....x.......x...", TAMBOURINE: "x.o.x.o.x.o.x.o."},
        ),
        comp_range=(60, 80),
        gains={"drums": 0.8},
    ),
}
