"""Melody and arrangement in the plan of a song, and melodies that somebody brings."""

from __future__ import annotations

from pathlib import Path

import mido
import numpy as np
import pytest

from mudit_engine.errors import InputError
from mudit_engine.names import BAND
from mudit_engine.text.composition.arrangement import (
    contrasted,
    plan_arrangement,
    played_form,
    section_of,
)
from mudit_engine.text.composition.given import parse_melody, read_melody_file
from mudit_engine.text.harmony import Bars
from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.outline import Controls, SongPlan, plan_song
from mudit_engine.text.phonemes import phonemize
from mudit_engine.text.wishes import read_description

LYRICS = "[verse]\n月亮升起来\n照着旧窗台\n\n[chorus]\n我在等你\n你在哪里\n"
LONG = LYRICS + "\n[verse]\n灯火慢慢开\n人海又散开\n\n" + LYRICS.split("\n\n")[1]


def planned(description: str, lyrics: str | None = LYRICS, **options: object) -> SongPlan:
    song = phonemize(parse_lyrics(lyrics)) if lyrics else None
    wishes = read_description(description)
    return plan_song(wishes, song, longest=240.0, composed=True, **{"seed": 1, **options})  # type: ignore[arg-type]


def test_every_syllable_has_a_note_and_choruses_return() -> None:
    song = phonemize(parse_lyrics(LONG))
    plan = planned("女声", LONG, key="C major", bpm=96.0)
    times = plan.outline.token_times
    assert times is not None
    starts = {float(start) for start, _ in times if start >= 0}
    sung = [note for note in plan.outline.melody if any(abs(note[0] - s) < 1e-3 for s in starts)]
    assert len(sung) == song.syllables == 36
    assert [n[2] for n in sung[10:17]] == [n[2] for n in sung[28:35]]
    sections = plan.outline.arrangement
    assert [one.start for one in sections[1:]] == [one.end for one in sections[:-1]]
    assert sections[-1].ends and sections[-1].end == plan.seconds
    assert max(sections, key=lambda one: one.energy).kind == "chorus"
    assert plan.source["melody"] == plan.source["arrangement"] == "planned"


def test_a_plan_without_composition_is_what_it_was() -> None:
    song, wishes = phonemize(parse_lyrics(LYRICS)), read_description("女声")
    bare = plan_song(wishes, song, longest=60.0, seed=4)
    whole = plan_song(wishes, song, longest=60.0, seed=4, composed=True)
    assert not bare.outline.melody and not bare.outline.arrangement
    assert bare.outline.chords == whole.outline.chords and bare.seconds == whole.seconds
    assert np.array_equal(bare.outline.token_times, whole.outline.token_times)


def test_no_drums_are_no_drums_anywhere() -> None:
    for seed in range(6):
        for plan in (
            planned("不要鼓", seed=seed),
            planned("", seed=seed, controls=Controls(drums=False)),
        ):
            plays = [player for one in plan.outline.arrangement for player in one.plays]
            assert "drums" not in plays and "bass" in plays
            assert not any(one.fill for one in plan.outline.arrangement)
    assert any("drums" in one.plays for one in planned("").outline.arrangement)


@pytest.mark.parametrize("seconds", [4.0, 20.0, 61.0, 240.0])
def test_instrumentals_have_a_form_with_returns_that_an_instrument_leads(seconds: float) -> None:
    plan = planned("纯音乐", None, seconds=seconds, seed=3)
    sections = plan.outline.arrangement
    names = [one.name for one in sections]
    if seconds >= 60:
        assert len(sections) >= 3 and len(set(names)) < len(names), names
    assert all("lead" in one.plays for one in sections if one.kind in ("verse", "chorus"))
    assert plan.outline.melody and all(60 <= note[2] <= 80 for note in plan.outline.melody)
    tunes = [
        [note[2] for note in plan.outline.melody if one.start <= note[0] < one.end - 3]
        for one in sections
        if one.name == "chorus"
    ]
    assert all(tune[:6] == tunes[0][:6] for tune in tunes)  # the last note comes home


def test_forms_fill_any_number_of_bars() -> None:
    for total in (*range(1, 40), 107, 180):
        for seed in range(4):
            form = played_form(total, seed=seed)
            assert sum(bars for _, bars in form) == total and all(bars > 0 for _, bars in form)


FORM = ["intro", "verse", "pre-chorus", "chorus", "verse", "pre-chorus", "chorus", "bridge"]
FORM += ["chorus", "outro"]


@pytest.mark.parametrize("drums", [True, False])
def test_drums_or_bass_enter_and_leave_around_every_chorus(drums: bool) -> None:
    names = [name for name in FORM if drums or name != "pre-chorus"]
    for seed in range(40):
        bars = Bars(2.0, tuple((name, 8) for name in names))
        planned = plan_arrangement(bars, seed=seed, drums=drums, sung=[True] * len(names))
        found = contrasted(planned, seed=seed)
        rhythm = [{"drums", "bass"} & {*one.plays} for one in found]
        for number in range(1, len(found)):
            if "chorus" in (names[number], names[number - 1]) and names[number] != "outro":
                assert rhythm[number] != rhythm[number - 1], (seed, names[number])
        if drums:
            first, leading = rhythm[1:3]
            assert first != leading
        choruses = [one for one, name in zip(rhythm, names, strict=True) if name == "chorus"]
        assert choruses == [{"drums", "bass"} if drums else {"bass"}] * len(choruses)
        assert all({"chords", "pad"} & {*one.plays} for one in found)
        assert not any(one.fill and "drums" not in one.plays for one in found)
        same = [(one.name, one.start, one.end, one.energy) for one in planned]
        assert [(one.name, one.start, one.end, one.energy) for one in found] == same
    thinned = {
        tuple(one.plays for one in contrasted(planned, seed=seed) if one.name == "verse")
        for seed in range(12)
    }
    assert len(thinned) > (1 if drums else 0)
    assert contrasted(planned[:3], seed=1) == planned[:3]


def test_only_solos_are_led_in_a_song_that_is_sung() -> None:
    bars = Bars(2.0, (("intro", 4), ("verse", 4), ("solo", 4), ("outro", 2)))
    for seed in range(8):
        planned = plan_arrangement(bars, seed=seed, sung=[False, True, False, False])
        assert ["lead" in one.plays for one in planned] == [False, False, True, False]


def test_sections_go_to_json_and_back() -> None:
    one = planned("").outline.arrangement[0]
    fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
    assert section_of(fields) == one and set(one.plays) <= set(BAND)
    for wrong in ({"plays": ["choir"]}, {"end": 0.0}, {"colour": "red"}):
        with pytest.raises(InputError, match="section"):
            section_of({**fields, **wrong})


def test_names_take_the_planned_rhythm() -> None:
    given = parse_melody("C4 D4 E4 G4 E4 | C4 D4 E4 G4 E4\nA4 G4 E4 D4\nC4 D4 E4 C4")
    plan = planned("女声", melody=given, seconds=30.0)
    own = planned("女声", seconds=30.0)
    assert [note[2] for note in plan.outline.melody[:4]] == [60, 62, 64, 67]
    assert np.array_equal(plan.outline.token_times, own.outline.token_times)
    assert plan.source["melody"] == "request"


@pytest.mark.parametrize(
    ("melody", "told"),
    [
        ("C4 D4 X4", "bar 1, note 3"),
        ("C4 | C9", "bar 2, note 1"),
        ("| |", "no notes"),
        ("C4 D4 E4 G4 E4", "syllable 6 .line 2 of the lyrics. has no note"),
        (" ".join(["C4"] * 19), "note 19 in bar 1 has no syllable"),
        ("C4 C4 C4 C4 C4 | C4 C4 C4 C4 | C4 C4 C4 C4 | C4 C4 C4 C4", "line 2 .* 5 syllables"),
    ],
)
def test_a_melody_that_does_not_fit_names_the_place(melody: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        planned("女声", melody=parse_melody(melody))


def midi_file(path: Path, pitches: list[int], *, overlap: bool = False) -> Path:
    """Quarter notes at 90 BPM behind a chord track, with words on the melody."""
    file = mido.MidiFile(ticks_per_beat=480)
    chords = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(90))])
    tune = mido.MidiTrack()
    for _ in range(4):
        chords.append(mido.Message("note_on", note=48, velocity=80))
        chords.append(mido.Message("note_off", note=48, time=1920))
    for pitch in pitches:
        tune.append(mido.MetaMessage("lyrics", text="la"))
        tune.append(mido.Message("note_on", note=pitch, velocity=80))
        tune.append(mido.Message("note_off", note=pitch, time=480))
    if overlap:
        tune += [
            mido.Message("note_on", note=60, velocity=80),
            mido.Message("note_on", note=64, velocity=80, time=240),
            mido.Message("note_off", note=60, time=240),
            mido.Message("note_off", note=64, time=240),
        ]
    file.tracks += [chords, tune]
    file.save(path)
    return path


def test_midi_brings_rhythm_and_tempo(tmp_path: Path) -> None:
    pitches = [60, 62, 64, 65, 67, 65, 64, 62, 60, 64, 67, 64, 62, 60, 62, 64, 62, 60]
    given = read_melody_file(midi_file(tmp_path / "tune.mid", pitches))
    plan = planned("女声", melody=given)
    assert plan.outline.bpm == pytest.approx(90, abs=0.01) and plan.source["bpm"] == "melody"
    assert [note[2] for note in plan.outline.melody] == pitches
    assert plan.outline.melody[3][0] == pytest.approx(3 * 60 / 90, abs=1e-3)
    times = plan.outline.token_times
    assert times is not None and float(times[times[:, 0] >= 0].max()) == pytest.approx(12, abs=0.01)
    with pytest.raises(InputError, match=r"bar 5.*syllable 18 of 18"):
        planned("女声", melody=given, seconds=11.0)


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one note at a time"):
        read_melody_file(midi_file(tmp_path / "two.mid", [60], overlap=True))
    for name, data, told in (
        ("a.mid", b"MThd", "no MIDI file"),
        ("a.xml", b"<a", "no XML"),
        ("a.xml", b"<score-timewise/>", "partwise"),
        ("a.wav", b"", "give one of"),
        ("a.musicxml", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares entities"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=told):
            read_melody_file(tmp_path / name)


def test_musicxml_is_read_with_ties_rests_and_voices(tmp_path: Path) -> None:
    def note(step: str, duration: int, inner: str = "", voice: int = 1) -> str:
        pitch = f"<pitch><step>{step}</step><octave>4</octave></pitch>" if step else "<rest/>"
        return f"<note>{pitch}<duration>{duration}</duration><voice>{voice}</voice>{inner}</note>"

    lyric = "<lyric><text>la</text></lyric>"
    measures = (
        "<measure><attributes><divisions>2</divisions></attributes>"
        '<direction><sound tempo="100"/></direction>'
        + note("C", 2, lyric)
        + note("", 2)
        + note("E", 4, '<tie type="start"/>' + lyric)
        + "<backup><duration>8</duration></backup>"
        + note("G", 8, voice=2)
        + "</measure><measure>"
        + note("E", 2, '<tie type="stop"/>')
        + note("D", 2, lyric)
        + "</measure>"
    )
    text = (
        '<?xml version="1.0"?><!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 4.0 '
        'Partwise//EN" "http://www.musicxml.org/dtds/partwise.dtd">'
        f"<score-partwise><part>{measures}</part></score-partwise>"
    )
    path = tmp_path / "tune.musicxml"
    path.write_text(text)
    given = read_melody_file(path)
    assert given.bpm == 100
    assert [(n.midi, n.start, n.end, n.bar) for n in given.notes] == [
        (60, 0.0, 1.0, 1),
        (64, 2.0, 5.0, 1),
        (62, 5.0, 6.0, 2),
    ]
