"""The transformer on packed rows: a song in a mixed batch is the song alone; shapes, gradients and
both block kinds.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mudit_engine.errors import InputError
from mudit_engine.models.dit import Checkpointing
from small_dits import MIXED, make_batch, make_model, song_of


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modulation": "per_block"},
        {"cross_attention": "parallel"},
        {"qk_norm": False},
        {"pooled_description": True},
    ],
    ids=str,
)
def test_song_in_a_mixed_batch_is_the_song_alone(changes: dict[str, object]) -> None:
    model = make_model(**changes)
    together = model(MIXED).split(list(MIXED.frames))
    for i, out in enumerate(together):
        torch.testing.assert_close(out, model(song_of(MIXED, i)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"cross_attention": "parallel"}], ids=str)
def test_every_input_reaches_the_output(changes: dict[str, object]) -> None:
    model = make_model(**changes)
    out = model(MIXED)
    shifted = {
        "latents_TC": MIXED.latents_TC + 1, "times_B": MIXED.times_B * 0.5,
        "seconds_B": MIXED.seconds_B * 2, "user_B": (MIXED.user_B + 1) % 3,
        "descriptions": MIXED.descriptions + 1, "lyric_ids": (MIXED.lyric_ids + 1) % 50,
        "references": MIXED.references + 1,
        "reference_kinds": [(k + 1) % 5 for k in MIXED.reference_kinds],
    }  # fmt: skip
    for name, value in shifted.items():
        changed = model(replace(MIXED, **{name: value}))
        assert (changed - out).abs().max() > 1e-4, f"{name} has no effect"


CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "full", "selective")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modulation": "per_block"},
        {"cross_attention": "parallel"},
        {"pooled_description": True},
    ],
    ids=str,
)
def test_every_parameter_trains_and_checkpointing_agrees(changes: dict[str, object]) -> None:
    model = make_model(**changes)
    grads = []
    for checkpointing in CHECKPOINTING:
        model.zero_grad()
        model(MIXED, checkpointing=checkpointing).square().sum().backward()
        grads.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    missing = {name for name, _ in model.named_parameters()} - grads[0].keys()
    assert not missing, f"no gradient for {missing}"
    for name, grad in grads[0].items():
        assert grad.abs().max() > 0, f"zero gradient for {name}"
        for recomputed in grads[1:]:
            torch.testing.assert_close(recomputed[name], grad)


def test_inference_in_place_equals_training_graph() -> None:
    model = make_model()
    with torch.no_grad():
        fast = model(MIXED)
    torch.testing.assert_close(fast, model(MIXED).detach(), rtol=1e-5, atol=1e-6)


def test_the_mean_description_reaches_the_modulation_alone_too() -> None:
    """Changing the vector of one song changes that song only, also when its fragments do not attend
    (a zero token projection).
    """
    model = make_model(pooled_description=True)
    nn.init.zeros_(model.description_in.weight)
    nn.init.zeros_(model.description_in.bias)
    before, after = (
        model(MIXED),
        model(
            replace(
                MIXED,
                descriptions=MIXED.descriptions.clone().index_fill_(0, torch.tensor([3]), 2.0),
            )
        ),
    )
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before.split(MIXED.frames), after.split(MIXED.frames), strict=True)
    ]
    assert changed == [False, False, True, False]
    with pytest.raises(InputError, match="mean description vector"):
        model.modulate(MIXED.times_B, MIXED.seconds_B, MIXED.user_B)


def test_positions_follow_time_not_index() -> None:
    """A reference frame stands at its target frame's position: moving both songs' rows together
    changes nothing else.
    """
    model = make_model()
    batch = make_batch([20], [0], [0], [20])
    reversed_reference = replace(batch, references=batch.references.flip(0))
    assert (model(batch) - model(reversed_reference)).abs().max() > 1e-4
