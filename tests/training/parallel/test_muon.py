"""Muon: torch's update is DeepSpeed's, it takes the blocks' matrices alone, stops and goes on, and
is refused where ranks would train otherwise than one device.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mudit_engine.config import load_config
from mudit_engine.errors import ConfigError
from mudit_engine.models.dit import DiT
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.parallel.muon import MuonAdamW, hidden_matrices
from mudit_engine.training.parallel.strategy import make_optimizer, trained
from mudit_engine.training.planning.state_bytes import Sharding, parameters_of, state_bytes
from mudit_engine.training.recipe import OptimizerConfig, Recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.trainer import Trainer
from run_ranks import wake
from small_songs import small_recipe, write_songs

pytestmark = pytest.mark.usefixtures("one_thread")

MUON: dict[str, Any] = {"optimizer__kind": "muon", "optimizer__muon_lr": 0.005}
SHAPES = [(48, 16), (16, 48), (24, 24)]


def steps_of(shape: tuple[int, int], *, lr: float, decay: float, steps: int = 3) -> list[Any]:
    """Gradients, and the weights before and after each step of our optimiser."""
    generator = torch.Generator().manual_seed(shape[0])
    weight = nn.Parameter(torch.randn(shape, generator=generator))
    gain = nn.Parameter(torch.ones(3))
    rest = [{"params": [gain], "lr": 1e-3, "weight_decay": 0.0}]
    optimizer = MuonAdamW([weight], rest, lr=lr, momentum=0.95, weight_decay=decay)
    found = []
    for _ in range(steps):
        weight.grad, gain.grad = torch.randn(shape, generator=generator), torch.ones(3)
        before = weight.detach().clone()
        optimizer.step()
        found.append((weight.grad.clone(), before, weight.detach().clone()))
    assert not torch.equal(gain, torch.ones(3)), "AdamW stepped too"
    return found


def exact(grad: Tensor, momentum: Tensor) -> Tensor:
    """The update by the formula, from singular values in float64: five rounds of the quintic."""
    blended = torch.lerp(grad, momentum, 0.95).double()
    u, sigma, vh = torch.linalg.svd(blended, full_matrices=False)
    x = sigma / sigma.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return u @ x.diag() @ vh * math.sqrt(max(1, grad.shape[0] / grad.shape[1]))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_step_is_that_of_the_formula(shape: tuple[int, int]) -> None:
    lr, decay, momentum = 0.02, 0.1, torch.zeros(shape)
    for grad, before, after in steps_of(shape, lr=lr, decay=decay):
        momentum = torch.lerp(momentum, grad, 0.05)
        wanted = exact(grad, momentum)
        step = (before * (1 - lr * decay) - after) / lr
        assert (step - wanted).norm() / wanted.norm() < 0.04, "bf16 rounding and no more"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_deepspeeds_update_is_the_same(shape: tuple[int, int]) -> None:
    """Both round in bf16, in another order: neither is further from the formula than that."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.muon.original_muon import muon_update

    lr, momentum = 0.02, torch.zeros(shape)
    with torch.compiler.set_stance("force_eager"):
        for grad, before, after in steps_of(shape, lr=lr, decay=0.0):
            theirs = muon_update(grad.clone(), momentum, beta=0.95, ns_method="standard")
            wanted = exact(grad, momentum)
            ours, theirs = (
                float((one - wanted).norm() / wanted.norm())
                for one in ((before - after) / lr, theirs)
            )
            assert theirs < 0.05 and ours < 2 * theirs


def test_it_takes_the_matrices_of_blocks_alone() -> None:
    dit = DiT(load_config("tiny").dit)
    ids = hidden_matrices(dit)
    names = {name for name, p in trained(dit).items() if id(p) in ids}
    kinds = {name.split(".", 2)[2] for name in names if name.startswith("blocks.")}
    assert kinds == {
        f"{kind}.weight"
        for kind in ("qkv", "out", "cross_kv", "cross_q", "cross_out", "up", "down")
    }
    assert {name.split(".")[0] for name in names} == {"blocks", "lyric_blocks"}
    groups = make_optimizer(dit, OptimizerConfig(kind="muon", lr=1e-3)).param_groups
    assert [round(group.get("lr_share", 1.0), 6) for group in groups] == [20.0, 1.0, 1.0]
    assert len(groups[0]["params"]) == len(names)
    everything = sorted(id(p) for group in groups for p in group["params"])
    assert everything == sorted(map(id, trained(dit).values())), "each weight has one optimiser"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"strategy": "deepspeed", "parallel__zero_stage": 1}, "clips Muon's orthogonal update"),
        ({"init": "tiny", "lora": {"rank": 2}}, "without lora"),
    ],
    ids=["zero-1", "lora"],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_recipe(tmp_path, **MUON, **changes)
    small_recipe(tmp_path, **MUON, strategy="deepspeed", parallel__zero_stage=0)


def recipe(data: Path, **changes: Any) -> Recipe:
    return small_recipe(data, **{**MUON, "data__packs_per_step": 4, **changes})


def train(one: Recipe, folder: Path) -> Path:
    task = make_task(one, Shards(one.data.folder))
    wake(task, 0.05)
    Trainer(one, folder, task=task, quiet=True).run()
    return folder


def test_it_stops_and_goes_on(tmp_path: Path) -> None:
    """Half and half is the whole, bit for bit; the plan counts what the optimiser keeps; AdamW
    does not take over.
    """
    data = write_songs(tmp_path / "data", 12, validation=0)
    train(recipe(data, steps=6, checkpoint__every=3), tmp_path / "whole")
    tags = "checkpoints/step-0000000"
    shutil.copytree(tmp_path / "whole" / f"{tags}3", tmp_path / "half" / f"{tags}3")
    Trainer(recipe(data, steps=6, checkpoint__every=3), tmp_path / "half", quiet=True).run()
    for kind in ("", ".optimizer"):
        ours, theirs = (
            load_file(tmp_path / run / f"{tags}6/model{kind}.safetensors")
            for run in ("whole", "half")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    kept = {name: value for name, value in ours.items() if not name.startswith("step/")}
    assert {name.split("/")[0] for name in kept} == {"exp_avg", "exp_avg_sq", "momentum_buffer"}
    config = recipe(data).model_config_resolved().dit
    planned = state_bytes(
        parameters_of(config, recipe(data).optimizer), Sharding(0, 2, precision="fp32")
    )
    assert planned["moments"] == sum(4 * value.numel() for value in kept.values())
    with pytest.raises(ConfigError, match=r"optimizer \(muon -> None\)"):
        Trainer(recipe(data, steps=9, optimizer__kind="adamw"), tmp_path / "half", quiet=True).run()


@pytest.mark.slow
def test_two_ranks_equal_one_device(tmp_path: Path) -> None:
    """Also from one device's checkpoint. Sums over ranks differ in their last bit, which bf16 in
    Newton-Schulz makes a step of its own now and then: hence 1e-4.
    """
    pytest.importorskip("deepspeed")
    from launch_ranks import run_jobs

    data = write_songs(tmp_path / "data", validation=0)
    ranks = {"strategy": "deepspeed", "parallel__zero_stage": 0}
    train(recipe(data, steps=12), tmp_path / "single")
    resumed = tmp_path / "on" / "checkpoints" / "step-00000008"
    shutil.copytree(tmp_path / "single" / "checkpoints" / "step-00000008", resumed)
    jobs = [
        {"recipe": recipe(data, steps=12, **ranks).resolved(), "out": str(tmp_path / out)} | extra
        for out, extra in (("two", {"wake": 0.05}), ("on", {}))
    ]
    run_jobs(2, jobs, tmp_path / "launch")
    expected = {row["step"]: row for row in read_metrics(tmp_path / "single")[0]}
    for run, count in (("two", 12), ("on", 4)):
        rows = read_metrics(tmp_path / run)[0]
        assert len(rows) == count
        for row in rows:
            other = expected[row["step"]]
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-4), (run, row["step"])
            assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
