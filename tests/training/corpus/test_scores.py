"""Scores: what is decided before any sound is made. No program is needed."""

from __future__ import annotations

import dataclasses
import json
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np
import pytest

from mudit_engine.errors import InputError
from mudit_engine.names import STYLES
from mudit_engine.text.composition.melody import VOICE_RANGE
from mudit_engine.text.harmony import QUALITIES, realise
from mudit_engine.text.wishes import read_description
from mudit_engine.training.corpus import harmony, labels, melody, wordings
from mudit_engine.training.corpus.compose import compose
from mudit_engine.training.corpus.descriptions import _mistyped, tempo_word
from mudit_engine.training.corpus.form import (
    LONG_SECONDS,
    MAX_SECONDS,
    MIN_SECONDS,
    _plans,
    draw_form,
)
from mudit_engine.training.corpus.labels import Song, split
from mudit_engine.training.corpus.styles import STYLE_BOOK
from mudit_engine.training.corpus.synth import SAMPLE_RATES, Request


@pytest.fixture(scope="module")
def scores():
    return [compose(seed=0, index=index, sample_rate=22050) for index in range(160)]


@pytest.fixture(scope="module")
def songs(scores):
    return [score.song for score in scores]


def test_a_song_depends_on_seed_and_index_alone(scores):
    assert compose(seed=0, index=7, sample_rate=22050) == scores[7]
    assert compose(seed=1, index=7, sample_rate=22050).song.lyrics != scores[7].song.lyrics


def test_labels_survive_json(songs):
    for song in songs[:20]:
        assert Song.from_json(song.to_json()) == song


@pytest.mark.parametrize(
    ("change", "said"),
    [({"schema": 99}, "schema 99"), ({"tempo": 3}, "unknown \\['tempo'\\]")],
    ids=["other-schema", "unknown-field"],
)
def test_labels_of_another_kind_are_refused(songs, change, said):
    with pytest.raises(InputError, match=said):
        Song.from_json(json.dumps({**json.loads(songs[0].to_json()), **change}))


def test_splits_share_no_line_and_no_progression(songs):
    train, test = ([song for song in songs if split(song) == side] for side in ("train", "test"))
    assert 8 <= len(test) <= 40
    assert not frozenset().union(*(s.line_ids for s in train)) & frozenset().union(
        *(s.line_ids for s in test)
    )
    assert not {p for s in train for p in s.progressions} & {
        p for s in test for p in s.progressions
    }


def test_progression_lists_do_not_overlap_even_when_rotated():
    for mode in ("major", "minor"):
        known = {tuple(p.split()) for p in harmony.PROGRESSIONS[mode]}
        assert len(known) == len(harmony.PROGRESSIONS[mode])
        assert not known & {tuple(p.split()) for p in harmony.HELD_OUT[mode]}


def test_controls_are_spread_and_separable(songs):
    assert {song.style for song in songs} == set(STYLE_BOOK) == set(STYLES)
    assert {song.voice for song in songs} == set(labels.VOICES)
    assert {song.key for song in songs} == set(range(12))
    assert 0.15 < np.mean([song.voice == "none" for song in songs]) < 0.35
    assert 0.18 < np.mean([not song.drums for song in songs]) < 0.38
    assert 0.55 < np.mean([song.language == "zh" for song in songs if song.voice != "none"]) < 0.85
    for style in STYLE_BOOK:
        own = [song for song in songs if song.style == style]
        assert len(own) >= 4
        assert {song.mode for song in own} == {"major", "minor"}
        assert len({song.voice for song in own}) >= 2
    # a style of eleven songs may have drums in all of them by chance
    both = [len({s.drums for s in songs if s.style == style}) == 2 for style in STYLE_BOOK]
    assert sum(both) >= len(both) - 2


def test_every_style_has_two_instrument_sets_and_drum_patterns():
    for style in STYLE_BOOK.values():
        assert len(style.sets) >= 2 and len(style.drums) >= 2
        assert all(
            len(steps) == 16 or steps == "swing"
            for pattern in style.drums
            for steps in pattern.values()
        )


def test_times_are_consistent(songs):
    for song in songs:
        assert MIN_SECONDS <= song.seconds <= MAX_SECONDS
        bar = 240 / song.bpm
        assert np.allclose(np.diff(song.bars), bar, atol=2e-4)
        assert song.form[0].start == 0 and all(
            abs(a.end - b.start) < 1e-3 for a, b in pairwise(song.form)
        )
        assert abs(song.form[-1].end - song.bars[-1] - bar) < 1e-3
        assert song.chords[0].start == 0 and abs(song.chords[-1].end - song.form[-1].end) < 1e-3
        assert all(a.end <= b.start + 1e-4 for a, b in pairwise(song.melody))
        assert all(
            song.form[line.section].start - 1e-3
            <= line.start
            < line.end
            <= song.form[line.section].end
            for line in song.lines
        )


def test_syllables_fit_melody_lines_and_voice(songs):
    for song in (song for song in songs if song.voice != "none"):
        low, span = VOICE_RANGE[song.voice]
        assert [(s.start, s.end, s.midi) for s in song.syllables] == [
            (n.start, n.end, n.midi) for n in song.melody
        ]
        assert all(low <= s.midi <= low + span for s in song.syllables)
        assert min(s.end - s.start for s in song.syllables) >= 0.19
        for number, line in enumerate(song.lines):
            own = [s for s in song.syllables if s.line == number]
            assert (own[0].start, own[-1].end) == (line.start, line.end)
            assert "".join(s.text for s in own) == line.text.replace(" ", "")


def test_instrumentals_have_a_melody_but_nothing_sung(songs):
    for song in (song for song in songs if song.voice == "none"):
        assert song.melody and not song.syllables and not song.lines and "vocals" not in song.stems
        assert all(line.startswith("[") for line in song.lyrics.split())


def test_melodies_have_the_pitches_of_tunes_and_choruses_return(songs):
    assert np.mean([len({note.midi for note in song.melody}) for song in songs]) > 6.5
    returned = []
    for song in songs:
        choruses = [
            [note.midi for note in song.melody if part.start - 1e-3 <= note.start < part.end - 1e-3]
            for part in song.form
            if part.name == "chorus"
        ]
        if song.voice != "none" and len(choruses) > 1:
            first, last = choruses[0], choruses[-1]
            assert len(first) == len(last)
            # the last note of a song comes home
            returned.append(np.mean(np.equal(first[:-1], last[:-1])))
    assert len(returned) > 10 and np.mean(returned) > 0.95


def test_strong_notes_belong_to_their_chord(songs):
    on_beat = [
        note.midi % 12 in [(chord.root + step) % 12 for step in QUALITIES[chord.quality]]
        for song in songs
        for note in song.melody
        for chord in song.chords
        if chord.start - 1e-3 <= note.start < chord.end - 1e-3
        and any(abs(note.start - bar) < 1e-3 for bar in song.bars)
    ]
    # The tonic under the last line replaces the chord that a repeated chorus was written for.
    assert np.mean(on_beat) > 0.97


def test_band_plays_inside_the_song_and_drums_only_where_labelled(scores):
    for score in scores:
        assert bool(score.parts["drums"]) == score.song.drums == ("drums" in score.song.stems)
        for notes in score.parts.values():
            assert all(
                0 <= note.start < note.end <= score.song.seconds and 0 < note.velocity < 128
                for note in notes
            )


def test_the_band_plays_where_the_arrangement_says(scores):
    starts = {"drums": [], "bass": []}
    for score in scores:
        song = score.song
        assert [(one.name, one.start) for one in song.arrangement] == [
            (part.name, part.start) for part in song.form
        ]
        assert [one.ends for one in song.arrangement] == [False] * (len(song.form) - 1) + [True]
        assert all(("lead" in one.plays) <= (song.voice == "none") for one in song.arrangement)
        last_bar = song.bars[-1]
        for player, stem in (("drums", "drums"), ("bass", "bass")):
            for one in song.arrangement:
                heard = any(
                    one.start - 0.02 <= note.start < min(one.end, last_bar) - 0.02
                    for note in score.parts[stem]
                )
                if one.end - one.start > 60 / song.bpm * 4 + 1 or heard:
                    assert heard == (player in one.plays), (song.id, one)
                starts[player].append(player in one.plays)
    # neither everywhere nor nowhere: sections differ by who plays
    assert 0.3 < np.mean(starts["drums"]) < 0.8 and 0.6 < np.mean(starts["bass"]) < 0.98


def test_choruses_are_louder_than_verses(scores):
    louder = []
    for score in scores:
        means = {}
        for one in score.song.arrangement:
            notes = [n.velocity for n in score.parts["bass"] if one.start <= n.start < one.end]
            if notes:
                means.setdefault(one.kind, []).append(np.mean(notes))
        if {"verse", "chorus"} <= set(means):
            louder.append(np.mean(means["chorus"]) > np.mean(means["verse"]))
    assert len(louder) > 50 and np.mean(louder) > 0.9


def test_long_songs_return_and_stay_within_the_longest(songs):
    long = [song for song in songs if song.seconds > LONG_SECONDS + 3]
    assert 0.12 < len(long) / len(songs) < 0.4
    assert max(song.seconds for song in songs) > 150
    for song in long:
        assert sum(part.name == "chorus" for part in song.form) >= 2
        sung = [line.text for line in song.lines if song.form[line.section].name == "verse"]
        assert len(sung) == len(set(sung))  # verses have words of their own


@pytest.mark.parametrize("longest", [30.0, 60.0])
def test_no_song_is_longer_than_the_longest(longest):
    for index in range(40):
        song = compose(seed=1, index=index, sample_rate=22050, longest=longest).song
        assert song.seconds <= longest


def test_voicings_are_chords_in_range_that_move_little():
    chords = realise(
        ["I", "V", "vi", "IV", "ii", "V", "I", "I"], key=10, mode="major", sevenths=True
    )
    voicings = harmony.voice_leading(chords, low=52, high=72)
    for chord, voicing in zip(chords, voicings, strict=True):
        assert {pitch % 12 for pitch in voicing} == set(chord.pitch_classes) and 52 <= voicing[
            0
        ] < voicing[-1] <= 72
    assert max(abs(np.mean(a) - np.mean(b)) for a, b in pairwise(voicings)) < 4
    with pytest.raises(ValueError, match="too narrow"):
        harmony.voice_leading(chords, low=60, high=70)


@pytest.mark.parametrize("target", [24.0, 90.0, 200.0])
@pytest.mark.parametrize("bpm", [60, 88, 89, 115, 160])
def test_forms_come_near_the_wanted_length(bpm, target):
    rng = np.random.default_rng(0)
    lengths = [draw_form(rng, bpm=bpm, target_seconds=target).seconds for _ in range(20)]
    longest = max(form.seconds for form in _plans(bpm, long=target > LONG_SECONDS))
    near = 3.5 if target <= LONG_SECONDS else 0.1 * target  # long forms lie further apart
    assert all(abs(seconds - min(target, longest)) <= near for seconds in lengths)


@pytest.mark.parametrize("bpm", [60, 85, 100, 160])
def test_rhythms_leave_a_breath_and_do_not_overlap(bpm):
    bars = 1 if bpm <= 88 else 2
    for syllables in range(5, melody.most_syllables(bpm, bars, swing=False) + 1):
        rhythm = melody.draw_rhythm(
            np.random.default_rng(syllables), syllables=syllables, bars=bars, bpm=bpm, swing=False
        )
        assert len(rhythm) == syllables and rhythm[0][0] == 0
        assert all(a + length <= b for (a, length), (b, _) in pairwise(rhythm))
        assert sum(rhythm[-1]) < bars * melody.GRID


def test_descriptions_say_what_is_controlled(songs):
    for song in songs:
        assert [(d.language, d.user) for d in song.descriptions] == [
            ("zh", "professional"),
            ("zh", "amateur"),
        ] * 2 + [
            ("en", "professional"),
            ("en", "amateur"),
        ] * 2 + [
            ("zh", "professional"),
            ("zh", "amateur"),
            ("en", "professional"),
            ("en", "amateur"),
        ] * song.held_out
        assert [d.unseen for d in song.descriptions] == [False] * 8 + [True] * 4 * song.held_out
        for d in song.descriptions[:8]:
            assert d.words and d.phrases and d.sentences
            assert d.text == ("" if d.language == "zh" else " ").join(d.sentences)
            if d.user == "professional":
                assert str(song.bpm) in d.text and all(
                    name in d.text for name in song.instruments if d.language == "en"
                )
                assert d.language == "zh" or song.key_name in d.text
            elif d.language == "en":
                assert {"slow": "slow", "mid": "medium speed", "fast": "fast"}[
                    tempo_word(song.bpm)
                ] in d.words
                assert ("sad" in d.words) == (song.mode == "minor")
                assert ("no drums" in d.words) == (not song.drums)
                assert ("nobody sings" in d.words) == (song.voice == "none")
            else:
                assert ("伤感" in d.words) == (song.mode == "minor") and ("没有鼓" in d.words) == (
                    not song.drums
                )


def test_descriptions_paraphrase(songs):
    amateur = [d.text for song in songs for d in song.descriptions if d.user == "amateur"]
    assert len(set(amateur)) > 0.95 * len(amateur) > 0.95 * 4 * len(songs)


def test_unseen_words_are_in_no_description_of_a_training_song():
    def said(words: wordings.Words) -> set[str]:
        tables = (words.style, words.mood, words.tempo, words.drums, words.voice)
        return {option for table in tables for options in table.values() for option in options}

    for language in ("zh", "en"):
        seen, unseen = said(wordings.SEEN[language]), said(wordings.UNSEEN[language])
        assert not seen & unseen
        assert {*wordings.SEEN[language].style} == {*wordings.UNSEEN[language].style} == {*STYLES}


def test_every_wording_is_read_as_it_was_meant():
    """What the corpus' amateurs say is understood, seen words or not."""
    for words in (*wordings.SEEN.values(), *wordings.UNSEEN.values()):
        tables = {name: getattr(words, name) for name in ("style", "voice", "drums", "mood")}
        for name, table in (*tables.items(), ("tempo", words.tempo)):
            for value, options in table.items():
                for text in options:
                    wanted = "medium" if value == "mid" else value
                    assert getattr(read_description(text), name) == wanted, text


def test_a_slip_of_the_fingers_changes_little():
    rng = np.random.default_rng(0)
    for text in ("a heartfelt ballad with drums", "温柔的情歌，有鼓"):
        slips = {_mistyped(rng, text) for _ in range(40)}
        assert len(slips) > 2
        assert all(abs(len(slip) - len(text)) <= 1 for slip in slips)
        assert min(SequenceMatcher(None, slip, text).ratio() for slip in slips) > 0.8
    assert _mistyped(rng, "rap") == "rap"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"songs": 0}, "at least one song"),
        ({"seed": -1}, "seeds are 0 or more"),
        ({"sample_rate": 8000}, "16000, 22050"),
        ({"longest": 5.0}, "--longest 5: .* 30 to 240 s"),
        ({"longest": 900.0}, "--longest 900"),
        ({"shortest": 60.0, "longest": 60.0}, "less than --longest 60"),
        ({"shortest": float("nan")}, "--shortest nan"),
    ],
    ids=["no-songs", "negative-seed", "odd-rate", "too-short", "too-long", "none", "nan"],
)
def test_impossible_requests_are_refused(tmp_path, change, said):
    assert 22050 in SAMPLE_RATES
    with pytest.raises(InputError, match=said):
        dataclasses.replace(Request(out=tmp_path, songs=4), **change).check()
