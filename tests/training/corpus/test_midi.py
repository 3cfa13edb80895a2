"""MIDI music: reading archives, and excerpts that a training run can take as they are."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import soundfile

from mudit_engine.cli.main import run
from mudit_engine.errors import InputError, MuditError
from mudit_engine.training.corpus.arrange import PartNote
from mudit_engine.training.corpus.band import Segment, find_soundfont, write_midi
from mudit_engine.training.corpus.midi_render import find_pieces, wad_lumps
from mudit_engine.training.corpus.mixing import loudness


def wad(lumps: list[tuple[str, bytes]]) -> bytes:
    body, entries, offset = b"", b"", 12
    for name, data in lumps:
        entries += struct.pack("<ii8s", offset, len(data), name.encode())
        body += data
        offset += len(data)
    return b"PWAD" + struct.pack("<ii", len(lumps), offset) + body + entries


@pytest.fixture
def tune(tmp_path):
    pytest.importorskip("mido")
    notes = [PartNote(k / 2, k / 2 + 0.4, 60 + (0, 4, 7, 12)[k % 4], 90, 0) for k in range(30)]
    write_midi([Segment(notes, 16.0)], tmp_path / "tune.mid")
    return (tmp_path / "tune.mid").read_bytes()


def test_only_midi_music_of_an_archive_is_taken_once(tmp_path, tune):
    path = tmp_path / "game.wad"
    path.write_bytes(
        wad([("D_ONE", tune), ("D_TWO", tune), ("D_OLD", b"MUS\x1a1234"), ("TITLEPIC", tune)])
    )
    assert [name for name, _ in wad_lumps(path)] == ["D_ONE", "D_TWO", "D_OLD", "TITLEPIC"]
    assert [(piece.name, piece.data) for piece in find_pieces([path])] == [("game-D_ONE", tune)]


@pytest.mark.parametrize(
    "data",
    [b"", b"words and words", b"IWAD" + struct.pack("<ii", 9, 12)],
    ids=["empty", "text", "directory-outside"],
)
def test_damaged_archives_are_refused(tmp_path, data):
    path = tmp_path / "bad.wad"
    path.write_bytes(data)
    with pytest.raises(InputError, match="WAD archive"):
        find_pieces([path])


def test_sources_without_music_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no MIDI music"):
        find_pieces([tmp_path])
    with pytest.raises(InputError, match="does not exist"):
        find_pieces([tmp_path / "none.mid"])


@pytest.mark.corpus
def test_excerpts_are_loud_enough_and_listed(tmp_path, tune, capsys):
    try:
        find_soundfont()
    except MuditError as error:
        pytest.skip(str(error))
    out = tmp_path / "midi"
    command = [
        "data",
        "midi",
        str(tmp_path / "tune.mid"),
        "--out",
        str(out),
        "--excerpt",
        "8",
        "--json",
    ]
    assert run(command) == 0
    made = json.loads(capsys.readouterr().out)["results"]
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert made["excerpts"] == len(rows) >= 2
    for row in rows:
        audio, rate = soundfile.read(out / row["audio"])
        assert rate == 22050 and len(audio) / rate <= 8.001 and np.abs(audio).max() < 0.96
        assert -19 < loudness(audio, rate) < -17.5
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.flac")}
    assert run(command) == 0
    assert times == {
        path.name: path.stat().st_mtime_ns for path in out.glob("*.flac")
    } and not list(out.glob("*.part"))
