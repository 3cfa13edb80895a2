"""Songs from manifests and folders, and the fragments of their descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mudit_engine.errors import InputError
from mudit_engine.text.composition.arrangement import section_of
from mudit_engine.text.descriptions import description_fragments
from mudit_engine.training.corpus.compose import compose
from mudit_engine.training.dataset.sources import SourceDescription, corpus_songs, open_source

TEXT = "温暖的女声，钢琴。BPM 92"


def test_asked_fragments_are_those_of_a_request() -> None:
    description = SourceDescription.of(
        "zh",
        "amateur",
        TEXT,
        {"sentence": (TEXT, "新的一句。"), "phrase": ("钢琴",), "word": ("女声", "")},
    )
    assert tuple(
        part.text for part in description.fragments if part.in_request
    ) == description_fragments(TEXT, 32)
    others = {part.text: part.level for part in description.fragments if not part.in_request}
    assert others == {TEXT: "sentence", "新的一句": "sentence", "女声": "word"}
    levels = [part.level for part in description.fragments if not part.in_request]
    assert levels == sorted(levels, key=("sentence", "phrase", "word").index)


def test_words_are_found_where_none_are_given() -> None:
    description = SourceDescription.of("en", "professional", "warm piano, slow")
    assert {"warm", "piano", "slow"} <= {
        part.text for part in description.fragments if part.level in ("word", "phrase")
    }


def test_manifest(tmp_path: Path) -> None:
    rows = [
        {"audio": "a/b.flac"},
        {
            "audio": "c.wav",
            "id": "c",
            "lyrics": "[verse]\n月亮",
            "split": "test",
            "stems": {"vocals": "v.wav"},
            "metadata": {"bpm": 90, "key": 2, "mode": "minor", "chords": [[0.0, 2.5, "Dm"]]},
            "descriptions": [{"language": "zh", "user": "amateur", "text": TEXT}],
        },
    ]
    path = tmp_path / "songs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    first, second = open_source(path)
    assert (
        first.id == "a/b"
        and first.audio == tmp_path / "a/b.flac"
        and first.split == "train"
        and not first.descriptions
    )
    assert (
        second.stems == {"vocals": tmp_path / "v.wav"}
        and second.metadata["chords"] == [[0.0, 2.5, "Dm"]]
        and second.split == "test"
    )
    assert second.descriptions[0].user == "amateur"


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2"),
        ("[]", "a JSON object is wanted, not list"),
        ('{"id": "x"}', "'audio' is missing"),
        ('{"audio": "a", "lyric": ""}', r"unknown fields \['lyric'\]"),
        ('{"audio": "a", "metadata": {"bpm": "fast"}}', "bpm 'fast' is no number from 20 to 400"),
        (
            '{"audio": "a", "metadata": {"key": 12, "mode": "major"}}',
            "key 12 with mode 'major': write 0 to 11",
        ),
        ('{"audio": "a", "metadata": {"key": 1}}', "key 1 with mode None"),
        ('{"audio": "a", "metadata": {"chords": [[0, 1, "H"]]}}', "chord 'H' is unknown"),
        ('{"audio": "a", "metadata": {"chords": [[2, 1, "C"]]}}', "is no .start, end, symbol."),
        ('{"audio": "a", "metadata": {"chords": ["C"]}}', "is no .start, end, symbol."),
        ('{"audio": "a", "metadata": {"chords": null}}', "chord None is no .start, end, symbol."),
        ('{"audio": "a", "metadata": {"chords": [["0", 1, "C"]]}}', "is no .start, end, symbol."),
        ('{"audio": "a", "metadata": {"key": 2.0, "mode": "major"}}', "key 2.0 with mode 'major'"),
        ('{"audio": "a", "metadata": {"bpm": true}}', "bpm True is no number"),
        ('{"audio": "a", "metadata": ["x"]}', "metadata .'x'. is no object"),
        ('{"audio": "a", "split": "dev"}', "'dev' is none of train, validation, test"),
        ('{"audio": "a", "stems": {"piano": "p"}}', "'piano' is none of vocals"),
        (
            '{"audio": "a", "descriptions": [{"text": "x", "user": "expert"}]}',
            "'expert' is none of none, amateur, professional",
        ),
        ('{"audio": "a", "descriptions": [{"text": " "}]}', "description is empty"),
    ],
)
def test_wrong_manifest_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "songs.jsonl"
    path.write_text('{"audio": "a.flac"}\n' + line)
    with pytest.raises(InputError, match="line 2") as error:
        list(open_source(path))
    import re

    assert re.search(message, str(error.value))


def test_folder(tmp_path: Path) -> None:
    for name in ("b/x.mp3", "a.flac", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [song.id for song in open_source(tmp_path)] == ["a", "b/x"]
    (tmp_path / "b/x.mp3").unlink()
    with pytest.raises(InputError, match="holds no audio"):
        list(open_source(tmp_path / "b"))
    with pytest.raises(InputError, match="no songs at"):
        open_source(tmp_path / "nowhere")


def test_a_song_of_the_corpus_says_who_plays(tmp_path: Path) -> None:
    """What a song of the corpus was arranged as is read back as it was."""
    song = compose(seed=0, index=3, sample_rate=22050).song
    folder = tmp_path / "songs" / "000003"
    folder.mkdir(parents=True)
    (folder / "song.json").write_text(song.to_json(), encoding="utf-8")
    (found,) = corpus_songs(tmp_path)
    known = found.metadata
    assert tuple(map(section_of, known["arrangement"])) == song.arrangement
    assert [tuple(note) for note in known["melody"]] == [
        (note.start, note.end, note.midi) for note in song.melody
    ]
