"""One bad song is one refusal, named; the others follow, each with its own sounds and words."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.training.dataset.encode import Encoded, encode_audio, encode_latents, writer_lock
from mudit_engine.training.dataset.read_song import read_song
from mudit_engine.training.dataset.shard_files import Field
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import Shards, build_index
from mudit_engine.training.dataset.sources import open_source

RATE = 8000


def noise(seed: int, samples: int = 8000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=samples) * 0.1


def songs(folder: Path, count: int, suffix: str = ".wav") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        soundfile.write(folder / f"{number}{suffix}", noise(number), RATE)
    return folder


def encoded(source: Path, out: Path, **options: float) -> tuple[Encoded, Shards]:
    done = Encoded()
    songs = open_source(source, on_bad=done.refuse)
    encode_audio(songs, out, sample_rate=RATE, channels=1, done=done, **options)  # type: ignore[arg-type]
    return done, Shards(out)


def assert_own_audio(shards: Shards, folder: Path) -> None:
    for number in range(len(shards)):
        record = shards.read(number)
        source = folder / record.metadata.get("file", f"{record.id}.wav")
        assert np.array_equal(record["audio"][:, 0], soundfile.read(source, dtype="int16")[0])
    assert not [fault for _, fault in shards.verify_songs() if fault]


@pytest.mark.parametrize("field", ["id", "metadata"])
def test_half_a_character_shifts_nothing(tmp_path: Path, field: str) -> None:
    songs(tmp_path, 6)
    rows = [{"audio": f"{n}.wav", "id": str(n), "metadata": {"file": f"{n}.wav"}} for n in range(6)]
    if field == "id":
        rows[2]["id"] = "\ud83d"
    else:
        rows[2]["metadata"]["title"] = "\ud83d"  # type: ignore[index]
    manifest = tmp_path / "songs.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    done, shards = encoded(manifest, tmp_path / "out")
    assert len(shards) == 5 and list(done.refused) == ["\\ud83d" if field == "id" else "2"]
    assert "half a character" in next(iter(done.refused.values()))
    assert_own_audio(shards, tmp_path)
    rows[2] = {"audio": "2.wav", "id": "2"}  # mended: it joins the others
    manifest.write_text("\n".join(map(json.dumps, rows)))
    done, shards = encoded(manifest, tmp_path / "out")
    assert done.songs == 1 and done.skipped == 5 and len(shards) == 6
    assert_own_audio(shards, tmp_path)


def test_a_writer_keeps_what_was_whole_before_any_error(tmp_path: Path) -> None:
    class Broken(dict):  # type: ignore[type-arg]
        def items(self) -> None:  # type: ignore[override]
            raise MemoryError

    fields = {"latents": Field("float16", 2)}
    with pytest.raises(MemoryError), ShardWriter(tmp_path, fields) as writer:
        writer.add("a", {"latents": np.ones((3, 2))})
        writer.add("b", {"latents": np.full((2, 2), 2)}, metadata={"x": Broken(y=1)})
    with ShardWriter(tmp_path, fields) as writer:
        assert "a" in writer and "b" not in writer
        array = np.full((4, 2), 3.0)
        writer.add("c", {"latents": array})
        array[:] = 9  # what its owner does with it afterwards is no part of the song
    shards = Shards(tmp_path)
    assert [shards.read(n)["latents"].mean() for n in range(2)] == [1, 3]


def test_numbers_that_a_field_cannot_hold_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, {"phonemes": Field("int16")})
    with pytest.raises(InputError, match="numbers that int16 cannot hold"):
        writer.add("a", {"phonemes": np.array([70000])})
    with pytest.raises(InputError, match="no JSON"):
        writer.add("a", {}, metadata={"bpm": float("nan")})


def test_verify_finds_songs_under_other_names(tmp_path: Path) -> None:
    """Two songs of one length exchanged in the shard, its sha256 and the index made to agree: the
    songs' own checksums tell.
    """
    import hashlib

    with ShardWriter(tmp_path, {"latents": Field("float16", 1)}) as writer:
        for number in range(4):
            writer.add(str(number), {"latents": np.full((3, 1), number)})
    path = tmp_path / "000-00000.safetensors"
    data = bytearray(path.read_bytes())
    rows = [np.full(3, number, np.float16).tobytes() for number in range(4)]
    where = data.find(rows[1] + rows[2])
    data[where : where + 12] = rows[2] + rows[1]
    path.write_bytes(data)
    note = json.loads(path.with_suffix(".json").read_text())
    note["sha256"] = hashlib.sha256(data).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(note))
    build_index(tmp_path)
    assert run(["data", "inspect", str(tmp_path), "--verify"]) == 4
    faults = dict(Shards(tmp_path).verify_songs())
    assert [name for name, fault in faults.items() if fault] == ["1", "2"]


def test_a_changed_index_is_named(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, {"latents": Field("float16", 1)}) as writer:
        writer.add("a", {"latents": np.ones((300, 1))})
    path = tmp_path / "index.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="has changed since it was written"):
        Shards(tmp_path)


def test_audio_that_would_teach_something_wrong(tmp_path: Path) -> None:
    whole = {}
    for suffix in ("wav", "ogg", "flac", "mp3"):
        path = tmp_path / f"cut.{suffix}"
        soundfile.write(path, noise(1, 40000), RATE)
        whole[suffix] = path.read_bytes()
        assert abs(read_song(path)[0].shape[1] - 40000) < 3000
        # an MP3 may lack up to two frames: some encoders count their own padding
        for share in (0.5, 0.9, 0.9 if suffix == "mp3" else 0.995):
            path.write_bytes(whole[suffix][: int(len(whole[suffix]) * share)])
            with pytest.raises(InputError, match=f"'{path}'.*(cut short|cannot be decoded)"):
                read_song(path)
    # a program that writes into a pipe does not know the length
    piped = bytearray(whole["wav"])
    piped[4:8] = piped[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(piped)
    assert read_song(tmp_path / "piped.wav")[0].shape[1] == 40000
    for name, samples, message in (
        ("loud", np.full(8000, 1e30), "samples up to 1e[+]30"),
        ("nan", np.full(8000, np.nan), "NaN or infinite"),
        ("silent", np.zeros(8000), "is silent"),
        ("one", np.full(1, 0.5), "1 samples"),
    ):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
        with pytest.raises(InputError, match=message):
            read_song(tmp_path / f"{name}.wav")


@pytest.mark.parametrize("suffix", ["wav", "ogg"])
def test_long_files_are_not_decoded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"long.{suffix}"
    with soundfile.SoundFile(path, "w", RATE, 2) as file:
        for _ in range(20):
            file.write(np.random.default_rng(0).normal(size=(RATE * 10, 2)) * 0.1)
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(InputError, match="at most 20 are read: cut it into songs, or raise --max"):
        read_song(path, max_seconds=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 20 * RATE * 2 * 4, "not more than what was allowed is decoded"
    assert read_song(path, max_seconds=201)[0].shape == (2, RATE * 200)


def test_odd_manifest(tmp_path: Path) -> None:
    songs(tmp_path, 5)
    rows = [
        '\ufeff{"audio": "0.wav", "lyrics": null, "descriptions": null, "metadata": null}',
        '{"audio": "1.wav", "descriptions": ["rock", {"text": "慢歌", "user": "amateur"}]}',
        '{"audio": "2.wav", "lyrics": 7}',
        '{"audio": "3.wav", "descriptions": {"professional": "rock", "amateur": ["a", "b"]}}',
        "{" * 100_000,
        '{"audio": "4.wav"}',
    ]
    (tmp_path / "songs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    done, shards = encoded(tmp_path / "songs.jsonl", tmp_path / "out")
    assert set(done.refused) == {"line 3", "line 5"} and len(shards) == 4
    assert_own_audio(shards, tmp_path)
    described = [
        [(d["user"], d["language"]) for d in shards.read(n).metadata["descriptions"]]
        for n in range(3)
    ]
    assert described == [
        [],
        [("none", "en"), ("amateur", "zh")],
        [("professional", "en"), ("amateur", "en"), ("amateur", "en")],
    ]
    (tmp_path / "songs.jsonl").write_text('{"audio": "0.wav"}\n' * 2)
    with pytest.raises(InputError, match="'0' more than once"):
        list(open_source(tmp_path / "songs.jsonl", on_bad=lambda name, reason: None))


def test_texts_beside_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = songs(tmp_path / "songs", 4)
    (folder / "0.txt").write_text("\ufeff[verse]\nhello moon")
    (folder / "1.lrc").write_text("[ti:Moon]\n[00:01.20]hello moon\n[00:03.00]hello sun")
    (folder / "1.json").write_text(
        json.dumps(
            {
                "descriptions": {"professional": "Indie rock, 120 BPM", "amateur": "for the road"},
                "metadata": {"bpm": 120},
                "split": "validation",
            }
        )
    )
    (folder / "3.json").write_text("{")
    soundfile.write(folder / "0.vocals.wav", noise(9), RATE)
    out = tmp_path / "out"
    command = ["data", "encode", str(folder), "--out", str(out), "--model", "tiny", "--json"]
    assert run(command) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)["results"]
    assert "4 songs" in captured.err and "2 with lyrics" in captured.err
    assert results["beside"] == {"songs": 4, "lyrics": 2, "json": 2, "stems": 1}
    assert results["songs"] == 3 and list(results["refused"]) == ["3"]
    assert results["with_lyrics"] == 2 and results["with_descriptions"] == 1
    shards = Shards(out)
    assert [shards.id(n) for n in range(3)] == ["0", "1", "2"]
    first, second = shards.read(0), shards.read(1)
    assert len(first["stem.vocals"]) == len(first["latents"]) and len(first["phonemes"])
    assert second.split == "validation" and second.metadata["bpm"] == 120
    assert set(second["fragment_kinds"][:, 2]) == {1, 2} and len(second["phonemes"])
    soundfile.write(folder / "2.flac", noise(2), RATE)
    assert run(command) == 2
    assert "would share the id '2'" in capsys.readouterr().err


def test_nothing_beside_the_files_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = songs(tmp_path / "songs", 2)
    (folder / os.fsdecode(b"\xff.wav")).write_bytes((folder / "0.wav").read_bytes())
    command = ["data", "encode", str(folder), "--out", str(tmp_path / "out"), "--audio-only"]
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert "nothing is known of any song" in captured.err
    refused = json.loads(captured.out)["results"]["refused"]
    assert list(refused) == ["\\udcff"] and "rename the song" in refused["\\udcff"]


def test_words_that_cannot_be_sung_are_counted(tmp_path: Path) -> None:
    songs(tmp_path, 3)
    rows = [
        {"audio": "0.wav", "lyrics": "[verse]\nПривет мир\nhello"},
        {"audio": "1.wav", "lyrics": "안녕"},
        {"audio": "2.wav", "lyrics": "hello"},
    ]
    (tmp_path / "songs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    songs_read = open_source(tmp_path / "songs.jsonl")
    done = encode_latents(songs_read, tmp_path / "out", model="tiny")
    assert done.songs == 3 and done.unsung == {"cyrillic": 9, "hangul": 2}
    assert "9 cyrillic" in done.flagged["0"] and "nothing of its lyrics" in done.flagged["1"]
    assert "2" not in done.flagged


def test_leave_out(tmp_path: Path) -> None:
    songs(tmp_path / "songs", 3)
    (tmp_path / "copies.jsonl").write_text('{"id": "1", "reason": "a copy of 0"}\n')
    out = str(tmp_path / "out")
    command = ["data", "encode", str(tmp_path / "songs"), "--out", out, "--audio-only"]
    assert run([*command, "--leave-out", str(tmp_path / "copies.jsonl"), "--json"]) == 0
    shards = Shards(out)
    assert [shards.id(n) for n in range(len(shards))] == ["0", "2"]
    (tmp_path / "copies.jsonl").write_text("1\n")
    assert run([*command, "--leave-out", str(tmp_path / "copies.jsonl")]) == 2


def test_sigterm_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    songs(tmp_path / "songs", 12)
    out = tmp_path / "out"
    from mudit_engine.training.dataset import encode

    read = []

    def stopped(path: Path, **options: float) -> object:
        read.append(path)
        if len(read) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return read_song(path, **options)

    monkeypatch.setattr(encode, "read_song", stopped)
    command = ["data", "encode", str(tmp_path / "songs"), "--out", str(out), "--audio-only"]
    assert run([*command, "--sample-rate", str(RATE), "--channels", "1"]) == 130
    build_index(out)
    assert len(Shards(out)) == 7
    assert_own_audio(Shards(out), tmp_path / "songs")


def test_two_processes_do_not_write_one_part(tmp_path: Path) -> None:
    source, out = songs(tmp_path / "songs", 2), tmp_path / "out"
    with writer_lock(out, (0, 1)):
        with pytest.raises(InputError, match="is in use by process"):
            encode_audio(open_source(source), out, sample_rate=RATE, channels=1)
        done = encode_audio(open_source(source), out, sample_rate=RATE, channels=1, part=(1, 2))
    assert done.songs == 1
    assert encode_audio(open_source(source), out, sample_rate=RATE, channels=1).songs == 1
