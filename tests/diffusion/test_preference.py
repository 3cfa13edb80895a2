"""Diffusion-DPO's loss: its closed form, and which way its gradient pulls."""

from __future__ import annotations

import math

import pytest
import torch

from mudit_engine.diffusion.preference import preference_loss, song_errors


def test_loss_and_gradient_equal_the_closed_form() -> None:
    g = torch.Generator().manual_seed(0)
    won, lost, base_won, base_lost = torch.rand(4, 5, generator=g, dtype=torch.float64)
    won.requires_grad_()
    lost.requires_grad_()
    beta = 3.0
    loss, margin = preference_loss(won, lost, base_won, base_lost, beta=beta)
    for i in range(5):
        d = float((won[i] - base_won[i]) - (lost[i] - base_lost[i]))
        assert float(margin[i]) == pytest.approx(-beta * d)
        assert float(loss[i]) == pytest.approx(math.log1p(math.exp(beta * d)))
    loss.sum().backward()
    # d loss / d won = beta sigmoid(-margin), and the opposite for the song that lost
    pull = beta * torch.sigmoid(-margin.detach())
    torch.testing.assert_close(won.grad, pull)
    torch.testing.assert_close(lost.grad, -pull)


def test_a_pair_that_is_told_apart_pulls_no_more() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    won = torch.tensor([-1.0, 0.0], dtype=torch.float64, requires_grad=True)
    preference_loss(won, zero, zero, zero, beta=50.0)[0].sum().backward()
    assert won.grad is not None
    assert float(won.grad[0]) < 1e-15 and float(won.grad[1]) == pytest.approx(25.0)


def test_errors_are_means_of_each_song() -> None:
    g = torch.Generator().manual_seed(1)
    out, target = torch.randn(2, 6, 3, generator=g)
    found = song_errors(out, target, [1, 3, 2])
    for value, rows in zip(found, ((0, 1), (1, 4), (4, 6)), strict=True):
        own = (out[slice(*rows)] - target[slice(*rows)]).square().mean()
        torch.testing.assert_close(value, own)
    with pytest.raises(ValueError, match="sum of frames"):
        song_errors(out, target, [3, 4])
    with pytest.raises(ValueError, match="no song without frames"):
        song_errors(out, target, [6, 0])
