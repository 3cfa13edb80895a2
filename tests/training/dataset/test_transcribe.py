"""Stems and lyrics of songs that come without: adapters held to stand-ins with the interfaces of
the packages.
"""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mudit_engine.availability import available
from mudit_engine.errors import InputError, MissingError
from mudit_engine.text.vocabulary import Vocabulary
from mudit_engine.training.dataset import encode
from mudit_engine.training.dataset import transcribe as listen
from mudit_engine.training.dataset.encode import TextVectors
from mudit_engine.training.dataset.sources import SourceDescription, SourceSong
from mudit_engine.training.dataset.transcribe import Transcriber, tidy


class Demucs:
    """Four sources, each a share of the mix: what a linear separator would give."""

    samplerate, audio_channels, sources = 1000, 2, ("drums", "bass", "other", "vocals")
    shares = (0.1, 0.2, 0.3, 0.4)

    def to(self, device: str) -> Demucs:
        self.device = device
        return self

    def eval(self) -> Demucs:
        return self


def stand_in(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    for name, members in modules.items():
        module = types.ModuleType(name.replace("__", "."))
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)
    monkeypatch.setattr(listen, "require", lambda module, what: None)


@pytest.fixture
def demucs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def get_model(name: str) -> Demucs:
        if name != "htdemucs":
            raise ValueError("is neither a single pre-trained model or a bag of models")
        return Demucs()

    def apply_model(model: Demucs, mix: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.update(mix=mix, **options)
        return torch.stack([mix * share for share in model.shares], 1)

    stand_in(
        monkeypatch,
        demucs={},
        demucs__pretrained={"get_model": get_model},
        demucs__apply={"apply_model": apply_model},
    )
    return seen


def test_stems_come_back_as_the_song_was_given(demucs: dict[str, Any]) -> None:
    """Rate, channels and length; demucs hears its own rate, two channels, mean 0 and deviation 1,
    and no random shift.
    """
    song = torch.sin(torch.arange(2001) * 0.05)[None] * 0.3 + 0.01
    stems = Transcriber("htdemucs", None).transcribe(song, 2000).stems
    mix = demucs["mix"]
    assert mix.shape == (1, 2, 1001) and demucs["shifts"] == 0
    assert abs(float(mix.mean())) < 1e-5 and float(mix.mean(1).std()) == pytest.approx(1, abs=1e-3)
    assert set(stems) == {"vocals", "drums", "bass", "chords"}
    for share, name in zip(Demucs.shares, ("drums", "bass", "chords", "vocals"), strict=True):
        assert stems[name].shape == song.shape
        middle = slice(200, 1800)  # resampling has ends
        expected = share * (song - song.mean()) + song.mean()
        torch.testing.assert_close(stems[name][:, middle], expected[:, middle], atol=2e-3, rtol=0)


def test_an_unknown_separator_is_named(demucs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--separate nope: demucs has no such model.*try htdemucs"):
        Transcriber("nope", None)


def test_words_are_heard_in_the_vocals(
    demucs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Whisper:
        def __init__(self, name: str, *, device: str, device_index: int) -> None:
            assert (name, device, device_index) == ("large-v3", "cuda", 1)

        def transcribe(self, audio: np.ndarray, **options: Any) -> tuple[Any, None]:
            assert audio.dtype == np.float32 and audio.shape == (16000,) and options["vad_filter"]
            loud.append(float(np.abs(audio).max()))
            return (
                types.SimpleNamespace(text=text)
                for text in (" hello moon", "[Music]", " ♪ hello again ♪")
            ), None

    loud: list[float] = []
    stand_in(monkeypatch, faster_whisper={"WhisperModel": Whisper})
    song = torch.sin(torch.arange(2000) * 0.05).repeat(2, 1)
    monkeypatch.setattr(Demucs, "to", lambda self, device: self)
    monkeypatch.setattr(
        listen.Separator, "separate", lambda self, audio, rate: {"vocals": audio * 0.4}
    )
    found = Transcriber("htdemucs", "faster-whisper", device="cuda:1").transcribe(song, 2000)
    assert found.lyrics == "hello moon\nhello again" and loud[0] == pytest.approx(0.4, abs=0.02)
    stems_alone = Transcriber(None, "faster-whisper", device="cuda:1")
    assert stems_alone.transcribe(song, 2000, lyrics=False).lyrics == ""


def test_phrases_become_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class AutoModel:
        def __init__(self, **options: Any) -> None:
            assert options["model"] == "other" and options["punc_model"] == "ct-punc"

        def generate(self, *, input: np.ndarray, batch_size_s: int) -> list[dict[str, str]]:
            return [{"key": "a", "text": "月亮升起来，照亮了小路。la la"}] if input.any() else []

    stand_in(monkeypatch, funasr={"AutoModel": AutoModel})
    transcriber = Transcriber(None, "funasr:other")
    found = transcriber.transcribe(torch.ones(1, 8000), 8000)
    assert found.lyrics == "月亮升起来\n照亮了小路\nla la"
    assert transcriber.transcribe(torch.zeros(1, 8000), 8000).lyrics == ""
    assert tidy(["(applause)", "  ", "【掌声】你好"]) == "你好"


def test_what_is_not_installed_and_what_is_unknown() -> None:
    wanted = {
        "demucs": ("demucs", "htdemucs", None),
        "faster_whisper": ("faster-whisper", None, "faster-whisper"),
    }
    for module, (package, separate, transcribe) in wanted.items():
        if not available(module):
            with pytest.raises(MissingError, match=f"pip install '?{package}"):
                Transcriber(separate, transcribe)
    with pytest.raises(
        InputError, match="--transcribe 'whisper' is unknown: use faster-whisper or funasr"
    ):
        Transcriber(None, "whisper")


def test_words_without_phonemes_leave_the_song_without_words() -> None:
    song, vocabulary = SourceSong("a", audio=__file__), Vocabulary.load("v1")  # type: ignore[arg-type]
    named = encode._with_transcript(song, "月亮升起来\nhello", vocabulary, "funasr")
    assert named.lyrics == "月亮升起来\nhello" and named.metadata == {"lyrics_heard_by": "funasr"}
    assert encode._with_transcript(song, "", vocabulary, "funasr") is song
    assert encode._phonemes(replace(named), vocabulary)["phonemes"].size > 4


def test_vectors_of_many_texts_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Towers:
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            asked.extend(texts)
            return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])

    monkeypatch.setattr(encode, "KNOWN_TEXTS", 3)
    vectors = TextVectors(Towers())  # type: ignore[arg-type]
    for text in ("aa", "b", "cc", "aa", "d", "aa", "e", "b"):
        found = vectors.of([SourceDescription.of("en", "amateur", text)])["fragments"]
        assert found.tolist() == [[len(text), ord(text[0])]] and len(vectors.known) <= 3
    assert asked == ["aa", "b", "cc", "d", "e", "b"], "those in use stay, the oldest goes"
