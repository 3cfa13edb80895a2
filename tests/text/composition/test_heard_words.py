"""What the text encoder hears of a request: words of the training, and the user's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mudit_engine.config import ModelConfig, load_config
from mudit_engine.models.folder import model_folder
from mudit_engine.names import STYLES, VOICES
from mudit_engine.reading import TextReader
from mudit_engine.request import SongRequest
from mudit_engine.text.composition.typed import told_words
from mudit_engine.text.descriptions import description_fragments
from mudit_engine.text.outline import Controls


@pytest.fixture(scope="module")
def tiny() -> ModelConfig:
    return load_config(model_folder("tiny"))


def heard(config: ModelConfig, description: str, **fields: object) -> tuple[str, ...]:
    request = SongRequest(description=description, seconds=8, seed=1, **fields)  # type: ignore[arg-type]
    return TextReader(config).read(request).fragments


def test_what_was_read_is_heard_in_words_of_the_training(tiny: ModelConfig) -> None:
    """Whatever the description calls it, and its sentences follow as they were written."""
    known = ("没有鼓", "no drums", "女声", "female voice", "爵士", "jazz")
    for description, sentences in (
        (
            "小酒馆里的摇摆乐，别加鼓。女生来唱，要慵懒。",
            ("小酒馆里的摇摆乐，别加鼓", "女生来唱，要慵懒"),
        ),
        ("A gal sings jazz, leave out the drums!", ("A gal sings jazz, leave out the drums",)),
    ):
        found = heard(tiny, description)
        assert found == (*known, *sentences), description
    jazz = "别加鼓，女生唱爵士"
    assert heard(tiny, jazz, user_type="amateur")[:6] == known
    # a professional's terms are those of the training
    assert heard(tiny, jazz, user_type="professional") == description_fragments(jazz, 32)
    assert heard(tiny, "", lyrics="[verse]\nmoon", style="metal") == ("金属", "metal")
    assert heard(tiny, "rock", style="metal", drums=True)[:4] == (
        "有鼓",
        "with drums",
        "金属",
        "metal",
    ), "what is typed goes before what is read"


def test_where_nothing_was_read_the_description_is_heard_in_pieces(tiny: ModelConfig) -> None:
    for description in ("月光，很安静", "something nice, at night"):
        assert heard(tiny, description) == description_fragments(description, 32)
    assert heard(tiny, "", lyrics="[verse]\nmoon") == ()


def test_long_descriptions_keep_the_words_that_were_read(tiny: ModelConfig) -> None:
    found = heard(tiny, "好听。" + "".join(f"第{n}夜。" for n in range(60)) + "说唱，男声。")
    assert len(found) == tiny.dit.max_fragments
    assert found[:5] == ("男声", "male voice", "说唱", "hip-hop", "好听")


def test_a_model_of_words_alone_hears_typed_ones_last(tiny: ModelConfig) -> None:
    config = tiny.model_copy(
        update={"dit": tiny.dit.model_copy(update={"controls": False, "max_fragments": 3})}
    )
    assert heard(config, "jazz, slow, warm", voice="female") == (
        "jazz, slow, warm",
        "jazz",
        "female voice",
    )


@pytest.mark.parametrize("lyrics", [None, "[verse]\nmoon"])
@pytest.mark.parametrize("description", ["jazz", "jazz, female voice, with drums", "纯音乐"])
@pytest.mark.parametrize("voice", VOICES)
def test_typed_controls_meet_any_words(
    tiny: ModelConfig, description: str, voice: str, lyrics: str | None
) -> None:
    """A typed voice has no words of its own, and the note about it must not need them."""
    for drums, style in ((None, None), (False, "rock")):
        request = SongRequest(
            description, lyrics=lyrics, seconds=8, seed=1, voice=voice, drums=drums, style=style
        )
        read = TextReader(tiny).read(request)
        assert read.wishes.voice == voice
        alone = [note for note in read.notes if note.endswith("there are no lyrics to sing")]
        assert len(alone) == (lyrics is None and voice != "none")


def test_every_style_has_words() -> None:
    for style in STYLES:
        assert len(told_words(Controls(style=style))) == 2
    assert told_words(replace(Controls(), drums=False)) == ("没有鼓", "no drums")
