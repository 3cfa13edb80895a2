"""Swapped labels: a model that heeds them differs and gains, one that does not shows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.evaluation.systems import Asked
from mudit_engine.evaluation.user_types import swap_user_types
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest

RATE = 8000
PITCH = {"professional": 0.1, "amateur": 0.4, "none": 0.2}


@dataclass
class Made:
    audio: Tensor
    sample_rate: int = RATE


class Singer:
    """A tone whose pitch is the label's, where it heeds labels."""

    def __init__(self, *, heeds: bool) -> None:
        self.heeds, self.asked = heeds, []  # type: ignore[var-annotated]

    def generate(self, requests: Sequence[SongRequest]) -> list[Made]:
        self.asked += requests
        step = PITCH[requests[0].user_type] if self.heeds else 0.3
        return [Made(torch.sin(step * torch.arange(RATE))[None])]


class Judge:
    """Places a tone by how high it is; descriptions say which label they are of."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0] if "pro" in text else [0.0, 1.0] for text in texts])

    def encode_audio(self, songs: Sequence[Tensor], sample_rate: int) -> Tensor:
        high = torch.stack([(song.diff().abs().mean() > 0.15).float() for song in songs])
        return torch.stack([1 - high, high], 1) + 0.1


ASKED = {
    str(n): Asked(str(n), ("pro song", "my song")[n % 2], ("professional", "amateur")[n % 2])
    for n in range(6)
}


def judged(singer: Any) -> Any:
    return swap_user_types(singer, Judge(), ASKED, seconds=1.0, seed=5)


def test_a_label_that_is_heeded_changes_the_song_and_fits() -> None:
    singer = Singer(heeds=True)
    report = judged(singer)
    assert report.floor == 0.0 and report.change.value > 0.5
    assert report.gain.value > 0.5 and report.p == pytest.approx(2 / 2**6)
    assert {one.seed for one in singer.asked[:4]} == {5} and singer.asked[-1].seed == 10


def test_a_label_that_is_not_heeded_shows_nothing() -> None:
    report = judged(Singer(heeds=False))
    assert report.change.value == report.gain.value == 0.0 and report.p == 1.0


@pytest.mark.parametrize("heeds", [True, False], ids=["own-rows", "one-row"])
def test_a_network_heeds_labels_by_their_rows_alone(micro: Path, heeds: bool) -> None:
    """The label reaches the song through the network's table of user types, and through nothing
    else: with one row for all of them the songs are the same to the bit.
    """
    pipeline = SongPipeline.from_pretrained(micro, dtype=torch.float32)
    dit = pipeline.runtime.dit  # type: ignore[attr-defined]
    if not heeds:
        with torch.no_grad():
            dit.user_type.weight.copy_(dit.user_type.weight[:1].expand_as(dit.user_type.weight))
    report = swap_user_types(
        pipeline, pipeline.chinmu, dict(list(ASKED.items())[:2]), seconds=2.0, steps=2
    )
    assert report.floor == 0.0, "the same request is the same song"
    assert (report.change.value > 1e-3) == heeds and (report.change.value == 0.0) != heeds


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(InputError, match="0 requests have a description"):
        swap_user_types(
            Singer(heeds=True),
            Judge(),
            {"a": Asked("a", "song")},
            seconds=1.0,  # type: ignore
        )
