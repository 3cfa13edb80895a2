"""What a reference decides is not planned, unless it was asked for."""

from __future__ import annotations

import pytest

from mudit_engine.config import ModelConfig, load_config
from mudit_engine.models.folder import model_folder
from mudit_engine.reading import TextReader, Understood
from mudit_engine.request import SongRequest

LYRICS = "[verse]\n月光照在窗台上\n晚风吹过小巷\n[chorus]\n你的笑容还在身旁\n"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return load_config(model_folder("tiny"))


def read(config: ModelConfig, kind: str, **fields: str | float) -> Understood:
    asked = {"description": "流行，女声", "lyrics": LYRICS, "seed": 3, **fields}
    return TextReader(config).read(
        SongRequest(**asked, reference="part.wav", reference_kind=kind)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("kind", "hidden", "kept"),
    [
        ("drums", ("bpm", "chords", "melody", "arrangement", "token_times"), ("key",)),
        ("bass", ("key", "chords", "melody"), ("bpm", "token_times", "arrangement")),
        ("chords", ("key", "chords", "melody"), ("bpm", "token_times", "arrangement")),
        ("vocals", ("melody", "token_times"), ("bpm", "key", "chords", "arrangement")),
        ("mix", (), ("bpm", "key", "chords", "melody", "arrangement", "token_times")),
    ],
)
def test_what_a_reference_decides(
    config: ModelConfig, kind: str, hidden: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    understood = read(config, kind)
    outline = understood.outline
    assert all(getattr(outline, name) is None or not len(getattr(outline, name)) for name in hidden)
    assert all(getattr(outline, name) is not None for name in kept)
    left = [note for note in understood.notes if "left to the reference" in note]
    assert len(left) == bool(hidden)
    # nothing is said to be planned that is not told to the model
    assert not {*hidden} & {*understood.read["properties"]}
    assert outline.controls.voice == "female"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("drums", {"bpm": 96.0}),
        ("drums", {"description": "流行，BPM 96"}),
        ("bass", {"key": "A minor"}),
        ("chords", {"chords": "C G Am F"}),
        ("vocals", {"melody": " ".join(["C4 D4 E4"] * 7)}),
    ],
)
def test_what_is_asked_for_beside_it_stays(
    config: ModelConfig, kind: str, fields: dict[str, str | float]
) -> None:
    understood = read(config, kind, **fields)
    assert understood.outline.bpm and understood.outline.melody and understood.outline.chords
    assert not any("left to the reference" in note for note in understood.notes)
