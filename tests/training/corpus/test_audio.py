"""The corpus as sound: what the labels say is what is heard, and making it is repeatable, resumable
and interruptible.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mudit_engine import availability
from mudit_engine.cli.main import run
from mudit_engine.errors import InputError, MissingError, MuditError
from mudit_engine.text.harmony import QUALITIES
from mudit_engine.training.corpus import band
from mudit_engine.training.corpus.compose import compose
from mudit_engine.training.corpus.labels import Song, song_folders
from mudit_engine.training.corpus.synth import Request, make_corpus, missing_songs, picked

# Three short songs: Mandarin with drums, English without, Mandarin without.
SEED, SONGS, LONGEST = 63, 3, 40.0


def why_not() -> str | None:
    try:
        Request(out=Path(), songs=1).check()
    except MuditError as error:
        return str(error)
    return None


MISSING = why_not()
corpus_programs = [
    pytest.mark.corpus,
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
]


def needs_programs(test):
    for mark in corpus_programs:
        test = mark(test)
    return test


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    base = tmp_path_factory.mktemp("corpus")
    return Request(
        out=base / "corpus",
        songs=SONGS,
        seed=SEED,
        cache=base / "syllables",
        chunk=2,
        longest=LONGEST,
    )


@pytest.fixture(scope="module")
def corpus(request_):
    seen = []
    assert make_corpus(request_, on_song=lambda index, seconds: seen.append(index)) == SONGS
    assert sorted(seen) == list(range(SONGS))
    return request_.out


@pytest.fixture(scope="module")
def songs(corpus):
    """[(label, {name: audio})]"""
    return [
        (Song.load(f), {p.stem: soundfile.read(p)[0] for p in f.glob("*.flac")})
        for f in song_folders(corpus)
    ]


def frames_of(song: Song, times: np.ndarray) -> np.ndarray:
    """True where a syllable is sung, from its consonant to the end of the reverb."""
    return np.any(
        [(times >= s.start - 0.2) & (times < s.end + 0.6) for s in song.syllables], axis=0
    )


@needs_programs
def test_two_workers_make_the_same_bytes(corpus, request_):
    other = dataclasses.replace(request_, out=request_.out.with_name("two-workers"))
    assert make_corpus(other, workers=2) == SONGS
    assert tree(other.out) == tree(corpus)


@needs_programs
def test_long_songs_that_no_training_sees_can_be_made_alone(request_, tmp_path):
    # a seed whose first such songs nobody sings: voices take most of the time
    ours = dataclasses.replace(
        request_, out=tmp_path / "long", songs=1, seed=82, held_out_only=True, shortest=20.0
    )
    told = []
    one = picked(ours, on_song=told.append)
    assert told == [1] and make_corpus(one) == 1 and make_corpus(picked(ours)) == 0
    # more of them go on from where the first were found
    two = picked(dataclasses.replace(ours, songs=2), on_song=told.append)
    assert told == [1, 2] and two.indices[:1] == one.indices and make_corpus(two, workers=2) == 1
    fitting = [
        index
        for index in range(two.indices[-1] + 1)
        for song in (compose(seed=82, index=index, sample_rate=22050, longest=LONGEST).song,)
        if song.held_out and song.seconds >= 20
    ]
    assert list(two.indices) == fitting
    made = [Song.load(folder) for folder in song_folders(two.out)]
    assert [song.index for song in made] == fitting
    assert all(song.held_out and song.seconds >= 20 for song in made)
    with pytest.raises(InputError, match="shortest 20.0 .asked: 0.0"):
        make_corpus(dataclasses.replace(two, shortest=0.0))


@needs_programs
def test_an_error_in_a_worker_is_the_callers(request_, tmp_path):
    broken = dataclasses.replace(
        request_, out=tmp_path / "broken", soundfont=tmp_path / "broken.sf2"
    )
    broken.soundfont.write_bytes(b"RIFF\x20\0\0\0sfbk" + bytes(64))
    with pytest.raises(MuditError, match="fluidsynth played nothing"):
        make_corpus(broken, workers=2)
    assert not list(broken.out.glob("songs/*"))


@needs_programs
def test_a_lost_song_is_made_again_alone_and_the_same(corpus, request_):
    copy = request_.out.with_name("resumed")
    shutil.copytree(corpus, copy)
    again = dataclasses.replace(request_, out=copy)
    shutil.rmtree(copy / "songs" / "000001")
    (copy / "songs" / "000001").mkdir()  # as a crash between two renames could leave it
    (copy / "songs" / ".000001.9.part").mkdir()
    before = (copy / "songs" / "000000" / "mix.flac").stat().st_mtime_ns
    assert missing_songs(again) == [1] and make_corpus(again) == 1
    assert tree(copy) == tree(corpus) and not list(copy.glob("songs/.*"))
    assert (copy / "songs" / "000000" / "mix.flac").stat().st_mtime_ns == before
    assert make_corpus(again) == 0


@needs_programs
def test_other_settings_do_not_mix_into_a_corpus(corpus, request_):
    with pytest.raises(
        InputError, match="sample_rate 22050 \\(asked: 16000\\).*Choose another --out"
    ):
        make_corpus(dataclasses.replace(request_, sample_rate=16000))


@needs_programs
def test_files_are_what_the_label_says(songs):
    from mudit_engine.training.corpus.mixing import loudness

    for song, audio in songs:
        assert set(audio) == {"mix", *song.stems}
        assert all(len(sound) == round(song.seconds * song.sample_rate) for sound in audio.values())
        # Each file is rounded to 16 bits by itself.
        assert (
            np.abs(sum(audio[stem] for stem in song.stems) - audio["mix"]).max()
            <= (len(song.stems) + 1) / 2 / 32768 + 1e-9
        )
        assert np.abs(audio["mix"]).max() <= 0.951
        assert -18.5 < loudness(audio["mix"], song.sample_rate) < -17.9


@needs_programs
def test_flac_is_16_bit_mono(corpus):
    info = soundfile.info(next(song_folders(corpus)) / "mix.flac")
    assert (info.format, info.subtype, info.channels, info.samplerate) == (
        "FLAC",
        "PCM_16",
        1,
        22050,
    )


@needs_programs
def test_the_voice_sings_the_labelled_notes(songs):
    import pyworld

    for song, audio in songs:
        f0, times = pyworld.harvest(audio["vocals"], song.sample_rate, f0_floor=80.0, f0_ceil=800.0)
        errors, voiced = [], []
        for s in song.syllables:
            inside = (times > s.start + 0.08) & (times < s.end - 0.06)
            voiced.append(np.mean(f0[inside] > 0))
            if voiced[-1] > 0:
                errors.append(np.median(69 + 12 * np.log2(f0[inside & (f0 > 0)] / 440)) - s.midi)
        assert np.mean(voiced) > 0.9 and np.mean(np.abs(errors) < 0.5) > 0.95


@needs_programs
def test_the_voice_is_silent_outside_the_lyrics_and_above_the_band_inside(songs):
    for song, audio in songs:
        times = np.arange(len(audio["mix"])) / song.sample_rate
        sung = np.any([(times >= s.start) & (times < s.end) for s in song.syllables], axis=0)
        outside = audio["vocals"][~frames_of(song, times)]
        assert outside.size and np.sqrt(np.mean(outside**2)) < 1e-3
        others = audio["mix"] - audio["vocals"]
        ratio = 10 * np.log10(np.mean(audio["vocals"][sung] ** 2) / np.mean(others[sung] ** 2))
        assert 2.5 < ratio < 9.0


@needs_programs
def test_syllables_begin_where_the_label_says(songs):
    """Energy of the vocal rises into the vowel: just after the label there is more of it than
    60-160 ms before the first of a line.
    """
    for song, audio in songs:
        energy = np.cumsum(np.concatenate([[0.0], audio["vocals"] ** 2]))

        def between(
            a: float, b: float, energy: np.ndarray = energy, rate: int = song.sample_rate
        ) -> float:
            first, last = max(0, round(a * rate)), round(b * rate)
            return (energy[last] - energy[first]) / max(1, last - first)

        rises = [
            between(line.start, line.start + 0.1) > 8 * between(line.start - 0.4, line.start - 0.25)
            for line in song.lines
            if line.start > 0.5
        ]
        assert np.mean(rises) > 0.9


@needs_programs
def test_chords_are_heard_in_the_chord_stem(songs):
    from scipy import signal

    for song, audio in songs:
        frequencies, times, spectrum = signal.stft(
            audio["chords"], song.sample_rate, nperseg=4096, noverlap=2048
        )
        used = (frequencies > 70) & (frequencies < 1500)
        classes = np.round(69 + 12 * np.log2(frequencies[used] / 440)).astype(int) % 12
        chroma = np.zeros((12, len(times)))
        np.add.at(chroma, classes, np.abs(spectrum[used]))
        shares = []
        for chord in song.chords:
            inside = (times > chord.start + 0.1) & (times < chord.end - 0.1)
            strongest = set(np.argsort(chroma[:, inside].sum(1))[-3:])
            shares.append(
                len(strongest & {(chord.root + step) % 12 for step in QUALITIES[chord.quality]}) / 3
            )
        assert np.mean(shares) > 0.75


@needs_programs
def test_the_beat_is_in_the_drums(songs):
    from scipy import signal

    song, audio = next((song, audio) for song, audio in songs if song.drums)
    hop = song.sample_rate // 100
    _, _, spectrum = signal.stft(audio["drums"], song.sample_rate, nperseg=512, noverlap=512 - hop)
    flux = np.maximum(0, np.diff(np.log1p(1000 * np.abs(spectrum)), axis=1)).sum(0)
    autocorrelation = np.correlate(flux - flux.mean(), flux - flux.mean(), "full")[len(flux) - 1 :]
    beat = 6000 / song.bpm  # in frames of 10 ms
    near = autocorrelation[round(beat * 0.97) : round(beat * 1.03) + 1].max()
    off = autocorrelation[round(beat * 0.80) : round(beat * 0.90)].max()
    assert near > 2 * max(off, 0)


def test_absent_programs_are_named_with_their_install_command(tmp_path, monkeypatch):
    monkeypatch.setattr(availability, "available", lambda module: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="espeak-ng.*apt-get install espeak-ng"):
        make_corpus(Request(out=tmp_path / "c", songs=1))
    assert not (tmp_path / "c").exists()


def test_absent_soundfont_is_an_error_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(band, "SOUNDFONTS", ())
    monkeypatch.delenv(band.SOUNDFONT_VARIABLE, raising=False)
    with pytest.raises(MissingError, match="apt-get install fluid-soundfont-gm"):
        band.find_soundfont()
    monkeypatch.setenv(band.SOUNDFONT_VARIABLE, str(tmp_path / "no.sf2"))
    with pytest.raises(MissingError, match="no.sf2' does not exist"):
        band.find_soundfont()
    (tmp_path / "no.sf2").write_bytes(b"words")
    with pytest.raises(InputError, match="is no soundfont"):
        band.find_soundfont()


def test_midi_holds_every_note_at_its_time(tmp_path):
    mido = pytest.importorskip("mido")
    from mudit_engine.training.corpus.compose import compose

    score = compose(seed=SEED, index=0, sample_rate=22050, longest=LONGEST)
    segments = [
        band.Segment(score.parts[stem], score.song.seconds, score.kit)
        for stem in ("chords", "drums")
    ]
    starts, end = band.write_midi(segments, tmp_path / "a.mid")
    file = mido.MidiFile(tmp_path / "a.mid")
    assert abs(file.length - end) < 1e-6 and starts[1] - starts[0] > score.song.seconds
    now, heard = 0.0, []
    for message in file:
        now += message.time
        if message.type == "note_on":
            heard.append((round(now, 3), message.note, message.channel == 9))
    wanted = [
        (round(starts[k] + note.start, 3), note.pitch, k == 1)
        for k, segment in enumerate(segments)
        for note in segment.notes
    ]
    assert len(heard) == len(wanted)
    for (at, pitch, drum), (when, key, is_drum) in zip(
        sorted(heard, key=lambda e: (e[2], e)), sorted(wanted, key=lambda e: (e[2], e)), strict=True
    ):
        assert abs(at - when) <= 0.0015 and (pitch, drum) == (key, is_drum)


@needs_programs
def test_command_makes_and_counts(corpus, tmp_path, capsys, monkeypatch, request_):
    monkeypatch.setenv("MUDIT_CACHE", str(request_.cache.parent))
    out = tmp_path / "made"
    assert (
        run(
            [
                "data",
                "synth",
                "--out",
                str(out),
                "--songs",
                "1",
                "--seed",
                str(SEED),
                "--longest",
                str(LONGEST),
                "--no-stems",
                "--json",
            ]
        )
        == 0
    )
    results = json.loads(capsys.readouterr().out)["results"]
    assert (results["made"], results["skipped"]) == (1, 0) and results["statistics"]["all"]["all"][
        "songs"
    ] == 1
    assert sorted(path.name for path in (out / "songs" / "000000").iterdir()) == [
        "mix.flac",
        "song.json",
    ]
    assert Song.load(out / "songs" / "000000").stems == ()
    assert run(["data", "stats", str(corpus)]) == 0
    style = Song.load(next(song_folders(corpus))).style
    assert style in capsys.readouterr().out
    assert run(["data", "stats", str(tmp_path)]) == 2


@needs_programs
def test_ctrl_c_leaves_whole_songs_and_exit_code_130(tmp_path, request_):
    out = tmp_path / "stopped"
    # chunks of one song, so that the first songs do not wait for seven more
    code = (
        "import dataclasses; from mudit_engine.training.corpus import synth; "
        "made = synth.make_corpus; synth.make_corpus = lambda request, **more: made("
        "dataclasses.replace(request, chunk=1), **more); "
        "from mudit_engine.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code]
    command += [
        "data",
        "synth",
        "--out",
        str(out),
        "--songs",
        "400",
        "--seed",
        str(SEED),
        "--longest",
        str(LONGEST),
        "--workers",
        "2",
    ]
    environment = {**os.environ, "MUDIT_CACHE": str(request_.cache.parent), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while (
            not list(out.glob("songs/.*.part"))
            and not list(out.glob("songs/*/song.json"))
            and time.monotonic() < deadline
        ):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert "of 400 songs are finished" in said and "Traceback" not in said
    assert not list(out.glob("songs/.*")) and all(
        (folder / "song.json").is_file() for folder in out.glob("songs/*")
    )
    assert not list(tmp_path.glob("mudit-band-*"))
