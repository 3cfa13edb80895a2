"""Ridge probes: what can be told apart is, what cannot is not, and leave-one-out is what leaving
one out gives.
"""

from __future__ import annotations

import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics import figures
from mudit_engine.metrics import probes as module
from mudit_engine.metrics.probes import RidgeProbe


def blobs(
    counts: dict[str, int], gap: float, *, d: int = 40, seed: int = 0
) -> tuple[torch.Tensor, list[str]]:
    """Unit noise around class centres `gap` apart, on features of very different size, with one
    that never changes.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), d, generator=torch.Generator().manual_seed(99))
    rows = [
        gap * centre + torch.randn(n, d, generator=generator)
        for centre, n in zip(centres, counts.values(), strict=True)
    ]
    scale = 10.0 ** torch.linspace(-4, 4, d)
    x = torch.cat(rows) * scale + 7
    return torch.cat((x, torch.full((len(x), 1), 3.0)), 1), [
        label for label, n in counts.items() for _ in range(n)
    ]


def accuracy(probe: RidgeProbe, x: torch.Tensor, labels: list[str]) -> float:
    value = figures.balanced_accuracy(range(len(labels)), labels, probe(x)).value
    assert value is not None
    return value


@pytest.mark.parametrize("n", [20, 200], ids=["fewer-songs-than-features", "more"])
def test_separable_classes_are_separated(n: int) -> None:
    probe = RidgeProbe.fit(*blobs({"a": n, "b": n, "c": n // 4}, 1.0))
    assert accuracy(probe, *blobs({"a": 50, "b": 50, "c": 50}, 1.0, seed=1)) > 0.95
    assert probe.left_out > 0.9


def test_what_is_not_there_is_not_found() -> None:
    probe = RidgeProbe.fit(*blobs({"a": 150, "b": 150}, 0.0))
    assert 0.35 < accuracy(probe, *blobs({"a": 300, "b": 300}, 0.0, seed=1)) < 0.65
    assert 0.3 < probe.left_out < 0.7


def test_a_rare_class_is_not_forgotten() -> None:
    probe = RidgeProbe.fit(*blobs({"on": 190, "off": 10}, 0.5))
    x, labels = blobs({"on": 100, "off": 100}, 0.5, seed=1)
    assert accuracy(probe, x, labels) > 0.8


def test_leave_one_out_in_closed_form_is_leaving_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With centring, scaling and class weights held fixed, as the closed form does, by solving the
    ridge problem anew without each song.
    """
    x, labels = blobs({"a": 12, "b": 8}, 0.3, d=5)
    monkeypatch.setattr(module, "STRENGTHS", (0.1,))
    probe = RidgeProbe.fit(x, labels)
    target = torch.tensor([probe.classes.index(label) for label in labels])
    w = (1 / torch.bincount(target).double())[target] / 2
    mean = (w[:, None] * x.double()).sum(0)
    std = (w[:, None] * (x - mean).square()).sum(0).sqrt()
    z = ((x - mean) / torch.where(std > 1e-9 * std.max(), std, torch.inf)).double()
    y = torch.nn.functional.one_hot(target).double()
    penalty = 0.1 * torch.linalg.svdvals(w.sqrt()[:, None] * z)[: min(z.shape)].square().mean()
    right = 0.0
    for left in range(len(z)):
        keep = torch.arange(len(z)) != left
        design = torch.cat((z, torch.ones(len(z), 1)), 1)
        gram = design[keep].T @ (w[keep, None] * design[keep])
        gram[:-1, :-1] += penalty * torch.eye(z.shape[1])
        solution = torch.linalg.solve(gram, design[keep].T @ (w[keep, None] * y[keep]))
        right += float(w[left]) * float((design[left] @ solution).argmax() == target[left])
    assert probe.left_out == pytest.approx(right)


@pytest.mark.parametrize(
    "labels", [["a"] * 6, ["a"] * 5 + ["b"]], ids=["one-class", "one-song-of-a-class"]
)
def test_too_few_examples_are_refused(labels: list[str]) -> None:
    with pytest.raises(InputError, match="two songs of each"):
        RidgeProbe.fit(torch.randn(6, 3), labels)
