"""The codec judged for listeners: what the judges are given, bars, and what is refused. The judges
themselves are packages; here others stand in for them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from mudit_engine import availability
from mudit_engine.audio import save_audio
from mudit_engine.errors import InputError, MissingError
from mudit_engine.evaluation.bars import missed
from mudit_engine.evaluation.codec import Codec
from mudit_engine.evaluation.codec_quality import judge_quality
from mudit_engine.evaluation.songs import EvalSong
from mudit_engine.models.folder import model_folder


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(model_folder("tiny"))


@pytest.fixture
def songs(tmp_path: Path) -> list[EvalSong]:
    """Two songs, one sung, whose voice begins after half a second."""
    made = []
    for number, voice in enumerate(("female", "none")):
        folder = tmp_path / str(number)
        folder.mkdir()
        t = torch.arange(44100 * 2) / 44100
        tone = 0.3 * torch.sin(2 * torch.pi * 220 * (number + 1) * t)
        save_audio(folder / "mix.flac", tone[None], 44100)
        if voice != "none":
            save_audio(folder / "vocals.flac", (tone * (t >= 0.5))[None], 44100)
        made.append(
            EvalSong(
                id=str(number),
                audio=folder / "mix.flac",
                held_out=True,
                seconds=2.0,
                style="pop",
                bpm=100,
                key="A minor",
                drums=False,
                voice=voice,
                language="zh",
                lyrics="",
            )
        )
    return made


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Judges that keep what they are asked: PESQ answers 2.5, ViSQOL 3.9."""
    kept: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {"pesq": [], "visqol": []}

    def pesq(rate: int, original: np.ndarray, decoded: np.ndarray, mode: str) -> float:
        assert mode == "wb"
        kept["pesq"].append((rate, original, decoded))
        return 2.5

    class VisqolApi:
        def create(self, mode: str) -> None:
            assert mode == "audio"

        def measure_from_arrays(
            self, original: np.ndarray, decoded: np.ndarray, rate: int
        ) -> SimpleNamespace:
            kept["visqol"].append((rate, original, decoded))
            return SimpleNamespace(moslqo=3.9)

    for name, parts in (("pesq", {"pesq": pesq}), ("visqol", {"VisqolApi": VisqolApi})):
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(availability, "available", lambda module: True)
    return kept


def test_judges_hear_original_and_decode_at_their_own_rates(
    codec: Codec,
    songs: list[EvalSong],
    given: dict[str, list[tuple[int, np.ndarray, np.ndarray]]],
) -> None:
    quality = judge_quality(codec, songs)
    assert (quality.pesq.value, quality.pesq.n) == (2.5, 1)
    assert (quality.visqol.value, quality.visqol.n) == (3.9, 2)
    assert quality.decode.value is not None and quality.decode.value > 0
    assert missed(quality.verdicts()) == ["visqol"]
    (rate, voice, decoded), *more = given["pesq"]
    assert rate == 16000 and not more
    assert len(voice) == len(decoded) == pytest.approx(1.5 * 16000, abs=400), "from its beginning"
    # a tone of 220 Hz, and its decode within two thirds of a semitone, as no tone was trained on
    for sound in (voice, decoded):
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
        assert spectrum.argmax() * 16000 / len(sound) == pytest.approx(220, rel=0.04)
    assert not np.allclose(voice, decoded, atol=1e-3), "it went through the codec"
    assert [rate for rate, *_ in given["visqol"]] == [48000, 48000]
    assert all(len(a) == len(b) == 96000 for _, a, b in given["visqol"])


def test_songs_without_voices_beside_them_are_refused(
    codec: Codec, songs: list[EvalSong], given: object
) -> None:
    songs[0].audio.with_name("vocals.flac").unlink()
    with pytest.raises(InputError, match=r"vocals\.flac.*with stems"):
        judge_quality(codec, songs)
    with pytest.raises(InputError, match=r"vocals\.flac"):
        judge_quality(codec, [replace(song, voice="none") for song in songs])


def test_missing_judges_are_named_before_the_work(
    codec: Codec, songs: list[EvalSong], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "available", lambda module: module != "visqol")
    with pytest.raises(MissingError, match="visqol-python"):
        judge_quality(codec, songs)
