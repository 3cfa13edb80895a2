"""The sampling loop: a song in a mixed batch equals itself alone, guidance means what it says,
noise belongs to the song.
"""

from __future__ import annotations

import pytest
import torch

from mudit_engine.errors import ModelError
from mudit_engine.kernels.guided_step import guided_step_reference
from mudit_engine.models.dit import DitBatch
from mudit_engine.runtime.denoiser import SongInputs, denoise
from small_denoisers import CONTINUOUS, DISCRETE, SHORT, make_denoiser, song


@pytest.mark.parametrize(
    ("songs", "changes"),
    [
        (CONTINUOUS, {}),
        (SHORT, {"cross_attention": "parallel"}),
        (SHORT, {"modulation": "per_block"}),
        (SHORT, {"pooled_description": True}),
        (DISCRETE, {}),
    ],
    ids=["bezier", "bezier-parallel", "bezier-per_block", "bezier-pooled", "ddpm"],
)
def test_mixed_batch_equals_each_song_alone(
    songs: list[SongInputs], changes: dict[str, object]
) -> None:
    denoiser = make_denoiser(**changes)
    together = denoise(denoiser, [denoiser.prepare(s) for s in songs])
    for s, latents in zip(songs, together, strict=True):
        (alone,) = denoise(make_denoiser(**changes), [denoiser.prepare(s)])
        assert latents.shape == (s.frames, 8)
        assert (latents - alone).abs().max() <= 1e-4 * alone.abs().max().clamp_min(1)


def test_step_equals_the_training_forward_and_the_formula() -> None:
    """One guided step by hand: two calls of the training forward, then the sampler row."""
    denoiser = make_denoiser()
    s = song(40, 7, seed=3, steps=2, guidance=2.5, negative=2, reference=11, user="professional")
    state = denoiser.prepare(s)
    x = state.x_TC.clone()

    def forward(
        descriptions: torch.Tensor, lyrics: list[int], user: int, reference: torch.Tensor
    ) -> torch.Tensor:
        batch = DitBatch(
            x, [40], s.table.times[:1], torch.tensor([s.seconds]), torch.tensor([user]),
            descriptions, [len(descriptions)], torch.tensor(lyrics, dtype=torch.int64),
            [len(lyrics)], reference, [len(reference)], [1],
        )  # fmt: skip
        return denoiser.dit(batch).detach()

    assert s.reference is not None
    cond = forward(s.descriptions, list(s.lyric_ids), 2, s.reference)
    uncond = forward(s.negative, [], 0, torch.zeros(0, 8))
    a, b, *_, w = s.table.rows[0]
    denoiser.step([state])
    torch.testing.assert_close(
        state.x_TC, a * x + b * (uncond + w * (cond - uncond)), rtol=1e-4, atol=1e-5
    )
    assert s.table.rows[0, 6] == 2.5


def test_unguided_song_runs_one_branch() -> None:
    denoiser = make_denoiser()
    rows = []
    trunk = denoiser.dit.trunk
    denoiser.dit.trunk = lambda x, *args: (rows.append(len(x)), trunk(x, *args))[1]  # type: ignore[method-assign]
    s = song(30, 4, seed=1, steps=10, guidance=3.0, guidance_interval=(0.3, 0.8))
    denoise(denoiser, [denoiser.prepare(s)])
    # the unconditional branch holds the 30 target rows alone
    assert [n - min(rows) for n in rows] == [30 if guided else 0 for guided in s.table.guided]
    assert 0 < sum(s.table.guided) < 10


def test_same_seed_same_noise_and_other_seed_other_noise() -> None:
    denoiser = make_denoiser()
    first, again, other = (denoiser.prepare(song(20, 0, seed=k)) for k in (5, 5, 6))
    assert torch.equal(first.x_TC, again.x_TC) and torch.equal(first.draw(), again.draw())
    assert not torch.equal(first.x_TC, other.x_TC)


def test_nan_weights_are_named_when_they_show() -> None:
    denoiser = make_denoiser()
    denoiser.dit.final.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="song 0 .*NaN"):
        denoise(denoiser, [denoiser.prepare(song(10, 0))])


def test_kept_may_hold_nan_before_it_is_written() -> None:
    from mudit_engine.kernels.guided_step import SongRows

    x, out = torch.ones(4, 2), torch.ones(4, 2)
    rows = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
    new, kept = guided_step_reference(
        x, torch.full_like(x, float("nan")), out, None, rows, SongRows(((0, 4, 0, -1),))
    )
    assert torch.equal(new, torch.full_like(x, 2.0)) and torch.equal(kept, out)


@pytest.mark.parametrize("changes", [{}, {"cross_attention": "parallel"}], ids=str)
def test_a_batch_lies_in_memory_once(changes: dict[str, object]) -> None:
    """Songs keep views of what is packed, and move on as the batch changes; what they hold stays
    what it was."""
    denoiser = make_denoiser(**changes)
    songs = [song(n, n // 3, seed=n, steps=4, guidance=2.0) for n in (20, 9)]
    states = [denoiser.prepare(s) for s in songs]

    def held() -> list[torch.Tensor]:
        return [t for s in states for t in (*s.conditions, *(x for kv in s.kv for x in kv))]

    before = [one.clone() for one in held()]
    for batch in (states, states[1:], states[::-1]):
        denoiser.step(batch)
        packed = denoiser._pack(batch)
        packings = {t.untyped_storage().data_ptr() for kv in packed.kv for t in kv[:2]}
        packings.add(packed.conditions_ND.untyped_storage().data_ptr())
        for state in batch:
            own = [*state.conditions, *(x for kv in state.kv for x in kv)]
            assert {one.untyped_storage().data_ptr() for one in own} <= packings
    assert all(torch.equal(a, b) for a, b in zip(before, held(), strict=True))
