"""Annotation files of any shape become manifests; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mudit_engine.audio import save_audio
from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.training.dataset.annotations import annotated, load_map
from mudit_engine.training.dataset.sources import open_source

MAP = {
    "id": "song.id",
    "language": "zh",
    "split": "subset",
    "professional": {
        "words": "pro.tags[*].name",
        "phrases": ["pro.mood", "pro.style"],
        "sentences": "pro.said",
    },
    "amateur": {"words": "public.tags", "sentences": "public.said"},
}


def songs() -> list[dict[str, Any]]:
    return [
        {
            "song": {"id": number},
            "subset": ("train", "test")[number % 2],
            "pro": {
                "tags": [{"name": "流行"}, {"name": "慢板"}],
                "mood": "温暖怀旧",
                "style": "钢琴抒情",
                "said": "和声简单，钢琴伴奏的抒情歌。",
            },
            "public": {"tags": ["好听", "安静"], "said": "听了想家。"},
        }
        for number in range(3)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        save_audio(tmp_path / f"audio/{number}.flac", 0.1 * torch.ones(1, 8000), 8000)
    (tmp_path / "songs.json").write_text(json.dumps(songs()), "utf-8")
    (tmp_path / "map.json").write_text(json.dumps(MAP), "utf-8")
    return tmp_path


def test_a_map_makes_a_manifest_that_encodes_as_it_says(folder: Path) -> None:
    out = folder / "songs.jsonl"
    words = ["data", "annotations", str(folder / "songs.json"), "--fields"]
    words += [str(folder / "map.json"), "--audio", str(folder / "audio"), "--out", str(out)]
    assert run(words) == 0
    found = list(open_source(out))
    assert [(song.id, song.split) for song in found] == [
        ("0", "train"),
        ("1", "test"),
        ("2", "train"),
    ]
    professional, amateur = found[0].descriptions
    assert (professional.user, professional.language) == ("professional", "zh")
    levels = [(part.level, part.text) for part in professional.fragments]
    assert levels == [
        ("word", "流行"),
        ("word", "慢板"),
        ("phrase", "温暖怀旧"),
        ("phrase", "钢琴抒情"),
        ("sentence", "和声简单，钢琴伴奏的抒情歌。"),
    ]
    assert [part.text for part in amateur.fragments if part.in_request] == ["听了想家。"]


@pytest.mark.parametrize("shape", ["jsonl", "by-id"])
def test_other_shapes_of_files(folder: Path, shape: str) -> None:
    fields = load_map(folder / "map.json")
    if shape == "jsonl":
        path = folder / "songs.jsonl"
        path.write_text("\n".join(map(json.dumps, songs())), "utf-8")
    else:
        path = folder / "by-id.json"
        (folder / "map.json").write_text(json.dumps({**MAP, "id": "key"}), "utf-8")
        fields = load_map(folder / "map.json")
        path.write_text(json.dumps({str(n): song for n, song in enumerate(songs())}), "utf-8")
    rows = list(annotated(path, fields, audio=folder / "audio"))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["split"] == "test" and Path(rows[1]["audio"]).name == "1.flac"


def broken(change: dict[str, Any], song: dict[str, Any] | None = None) -> tuple[dict, list]:
    return {**MAP, **change}, [*songs(), *([song] if song else [])]


@pytest.mark.parametrize(
    ("fields", "listed", "message"),
    [
        (*broken({"id": "name"}), "entry 1: no id at 'name'"),
        (*broken({}, songs()[0]), "entry 4: the id '0' comes twice"),
        (*broken({}, {**songs()[0], "song": {"id": 9}}), "no audio file .*9.wav"),
        (*broken({}, {**songs()[0], "song": {"id": 2}, "subset": "dev"}), "comes twice"),
        (*broken({"professional": {"words": "nothing"}, "amateur": {}}), "finds no annotation"),
        (*broken({"amateur": {"tags": "public.tags"}}), "tags"),
        (*broken({"language": "fr"}), "'fr'"),
        (*broken({"professional": {}, "amateur": {}}), "map one of them"),
    ],
    ids=["id", "twice", "audio", "again", "empty", "level", "language", "nobody"],
)
def test_what_does_not_fit_is_named(folder: Path, fields: dict, listed: list, message: str) -> None:
    (folder / "songs.json").write_text(json.dumps(listed), "utf-8")
    (folder / "map.json").write_text(json.dumps(fields), "utf-8")
    with pytest.raises(InputError, match=message):
        list(
            annotated(folder / "songs.json", load_map(folder / "map.json"), audio=folder / "audio")
        )
