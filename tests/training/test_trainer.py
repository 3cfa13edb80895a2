"""The trainer: what the songs give, how bad steps are met, the averaged weights, and what a run
leaves behind.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mudit_engine.config import load_config
from mudit_engine.errors import InputError
from mudit_engine.models.dit import DiT
from mudit_engine.models.folder import load_part, save_config
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.guard import DivergedError
from mudit_engine.training.parallel.choose import make_strategy
from mudit_engine.training.parallel.strategy import Ema, Single, make_optimizer
from mudit_engine.training.runlog import RunLog, read_metrics
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe, write_songs

# a second thread only waits for the first, at these sizes
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs"))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.task.part_module().state_dict().items()}


class TestBadSteps:
    """NaN and infinity: the step is skipped, counted, and its songs are named."""

    def spoil(self, trainer: Trainer, steps: set[int], *, where: str) -> None:
        strategy = trainer.strategy
        forward = strategy.forward

        def spoiled(phase: str, batch: Any) -> tuple[Tensor, Any]:
            loss, logs = forward(phase, batch)
            if trainer.progress.step in steps:
                if where == "loss":
                    loss = loss * float("nan")
                else:
                    loss.register_hook(lambda grad: grad * float("inf"))
            return loss, logs

        strategy.forward = spoiled  # type: ignore[method-assign]

    @pytest.mark.parametrize("where", ["loss", "gradient"])
    def test_skipped_and_named(
        self, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
    ) -> None:
        trainer = Trainer(small_recipe(data, steps=6), tmp_path, quiet=True)
        self.spoil(trainer, {2, 4}, where=where)
        with caplog.at_level(logging.WARNING):
            summary = trainer.run()
        assert (
            summary["skipped_steps"] == 2
            and trainer.progress.bad_steps == [2, 4]
            and trainer.progress.step == 6
        )
        rows = read_metrics(tmp_path)[0]
        assert [row["step"] for row in rows if row["grad_norm"] is None] == [2, 4]
        ids = [trainer.shards.id(n) for pack in trainer.sampler.batch(0, 2) for n in pack]
        line = next(
            record.getMessage() for record in caplog.records if "step 2 " in record.getMessage()
        )
        assert ids[0] in line
        assert all(torch.isfinite(value).all() for value in weights(trainer).values())

    def test_weights_optimiser_and_average_stay(self, data: Path, tmp_path: Path) -> None:
        trainer = Trainer(small_recipe(data), tmp_path, quiet=True)
        self.spoil(trainer, {1}, where="gradient")
        trainer._step(trainer._load(0, 0, 0))
        strategy = trainer.strategy
        assert isinstance(strategy, Single)
        before, shadow = (
            weights(trainer),
            {k: v.clone() for k, v in strategy.emas["model"].shadow.items()},
        )
        moments = {k: v["exp_avg"].clone() for k, v in strategy.optimizers["model"].state.items()}
        trainer._step(trainer._load(1, 0, 1))
        assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
        assert all(
            torch.equal(value, shadow[name])
            for name, value in strategy.emas["model"].shadow.items()
        )
        assert all(
            torch.equal(v["exp_avg"], moments[k])
            for k, v in strategy.optimizers["model"].state.items()
        )
        trainer._step(trainer._load(2, 0, 2))
        assert not all(torch.equal(value, before[name]) for name, value in weights(trainer).items())

    def test_stops_after_too_many(self, data: Path, tmp_path: Path) -> None:
        trainer = Trainer(small_recipe(data, guard__max_bad_steps=2), tmp_path, quiet=True)
        self.spoil(trainer, {1, 3, 4, 5}, where="loss")
        with pytest.raises(
            DivergedError, match=r"3 of the last 100 steps .*held songs song-\d+"
        ) as stopped:
            trainer.run()
        assert trainer.progress.step == 5 and stopped.value.exit_code == 1

    def test_only_the_micro_batch_that_is_to_blame_is_named(
        self, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer = Trainer(small_recipe(data, steps=1, schedule__warmup=1), tmp_path, quiet=True)
        forward, calls = trainer.strategy.forward, []

        def second_is_nan(phase: str, batch: Any) -> tuple[Tensor, Any]:
            loss, logs = forward(phase, batch)
            calls.append(1)
            return loss * float("nan") if len(calls) == 2 else loss, logs

        trainer.strategy.forward = second_is_nan  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING):
            trainer.run()
        good, bad = ([trainer.shards.id(n) for n in pack] for pack in trainer.sampler.batch(0, 0))
        assert all(i in caplog.text for i in bad[:8]) and not any(i in caplog.text for i in good)

    def test_spikes_are_reported(
        self, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer = Trainer(small_recipe(data), tmp_path, quiet=True)
        trainer.progress.step, trainer.progress.log_norm = 100, {"model": math.log(1e-4)}
        with caplog.at_level(logging.WARNING):
            trainer._step(trainer._load(100, 0, 0))
        assert trainer.progress.spikes == 1 and "times its mean (songs song-" in caplog.text


def gradients(trainer: Trainer, *, world: int) -> dict[str, Tensor]:
    """Gradient of step 0 as `world` ranks would add it up."""
    total: dict[str, Tensor] = {}
    weight = sum(trainer.task.costs()[pack].sum() for pack in trainer.sampler.batch(0, 0))
    for rank in range(world):
        trainer.strategy.rank, trainer.strategy.world = rank, world
        for batch, share in trainer._load(0, 0, 0).batches:
            trainer.strategy.discard("model")
            loss, _ = trainer.strategy.forward("model", batch.inputs)
            trainer.strategy.backward("model", loss * (share / weight))
            for name, p in trainer.task.modules["model"].named_parameters():
                if p.grad is not None:
                    total[name] = total.get(name, torch.zeros_like(p)) + p.grad
    return total


def test_gradient_does_not_depend_on_the_ranks(data: Path, tmp_path: Path) -> None:
    """4 packs on 1, 2, 3 and 4 ranks (3 leaves two ranks with nothing to do in the second round):
    the same songs, noise and gradient.
    """
    trainer = Trainer(small_recipe(data, data__packs_per_step=4), tmp_path, quiet=True)
    with torch.no_grad():  # at its zero start most of the network has no gradient
        for p in trainer.task.modules["model"].parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    alone = gradients(trainer, world=1)
    assert (
        len(trainer.sampler.batch(0, 0)) == 4
        and max(float(g.abs().max()) for g in alone.values()) > 1e-3
    )
    for world in (2, 3, 4):
        for name, gradient in gradients(trainer, world=world).items():
            torch.testing.assert_close(gradient, alone[name], rtol=1e-5, atol=1e-7)


def test_loss_is_per_frame_of_the_global_batch(data: Path, tmp_path: Path) -> None:
    """At the start the output is 0, so the loss is the mean square of the target over all frames,
    long songs and short alike.
    """
    trainer = Trainer(small_recipe(data, dit__edit=0.0), tmp_path, quiet=True)
    work = trainer._load(0, 0, 0)
    squares = frames = 0.0
    for batch, _ in work.batches:
        inputs = batch.inputs
        times = inputs.times_B.repeat_interleave(torch.tensor(inputs.clean.frames))
        target = trainer.task.path.target(inputs.clean.latents_TC, inputs.noise_TC, times)  # type: ignore[attr-defined]
        squares, frames = (
            squares + float(target.double().square().mean(1).sum()),
            frames + len(target),
        )
    metrics = trainer._step(work)
    assert metrics["loss"] == pytest.approx(squares / frames, rel=1e-6)
    assert metrics["weight"] == frames and metrics["mse"] == pytest.approx(metrics["loss"])


def test_ema_follows_its_formula() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    ema, expected = Ema({"p": p}, decay=0.5), 1.0
    for update, value in enumerate((3.0, 5.0, 9.0, 2.0, 4.0, 8.0, 1.0, 7.0, 6.0, 3.0, 2.0)):
        p.data.fill_(value)
        ema.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.shadow["p"]) == pytest.approx(expected, rel=1e-6)
    ema.swap()
    assert float(p.detach()) == pytest.approx(expected, rel=1e-6) and float(ema.shadow["p"]) == 2.0
    ema.swap()
    assert float(p.detach()) == 2.0


def test_validation_uses_the_average_and_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    recipe = small_recipe(data, log__validate_every=6, ema__decay=0.9)
    with_validation = Trainer(recipe, tmp_path / "a", quiet=True)
    with_validation.run()
    without = Trainer(small_recipe(data, ema__decay=0.9), tmp_path / "b", quiet=True)
    without.run()
    for name, value in weights(with_validation).items():
        assert torch.equal(value, weights(without)[name])
    validations = read_metrics(tmp_path / "a")[1]
    assert [row["validation_step"] for row in validations] == [6, 12]
    assert with_validation.validate()["loss"] == validations[-1]["loss"], (
        "the same batches, noise and weights"
    )
    strategy = with_validation.strategy
    assert isinstance(strategy, Single)
    for name, p in strategy.emas["model"].parameters.items():
        p.data.copy_(strategy.emas["model"].shadow[name])
    strategy.emas = {}
    assert with_validation.validate()["loss"] == validations[-1]["loss"]


def test_weight_decay_is_for_matrices() -> None:
    module = nn.ModuleDict(
        {"linear": nn.Linear(4, 4), "embedding": nn.Embedding(3, 4), "norm": nn.LayerNorm(4)}
    )
    decayed, plain = make_optimizer(module, small_recipe(Path("x")).optimizer).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 4)] and decayed["weight_decay"] > 0
    assert len(plain["params"]) == 4 and plain["weight_decay"] == 0


def test_gains_do_not_decay() -> None:
    dit = DiT(load_config("tiny").dit)
    decayed, plain = make_optimizer(dit, small_recipe(Path("x")).optimizer).param_groups
    kept = {id(p) for p in plain["params"]}
    gains = {name for name, p in dit.named_parameters() if "gain" in name and id(p) in kept}
    assert {name.split(".")[-1] for name in gains} == {
        "q_gain",
        "k_gain",
        "cross_q_gain",
        "cross_k_gain",
    }
    assert not any("gain" in n for n, p in dit.named_parameters() if id(p) not in kept)
    assert decayed["weight_decay"] > 0 == plain["weight_decay"]


@pytest.mark.parametrize("how", ["single", "zero1"])
def test_a_checkpoint_of_decayed_gains_resumes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """From a time when gains of two dimensions decayed: the groups of the optimiser were others,
    which no checkpoint knows of.
    """
    changes: dict[str, Any] = {"checkpoint__every": 2, "schedule__warmup": 1}
    if how == "zero1":
        pytest.importorskip("deepspeed")
        changes |= {"strategy": "deepspeed", "parallel__zero_stage": 1}
    with monkeypatch.context() as then:
        then.setattr("mudit_engine.training.parallel.strategy.gains", lambda module: set())
        Trainer(small_recipe(data, steps=2, **changes), tmp_path, quiet=True).run()
    trainer = Trainer(small_recipe(data, steps=4, **changes), tmp_path, quiet=True)
    loaded: dict[str, torch.Tensor] = {}
    load = trainer.strategy.load

    def note(tag: Path) -> None:
        load(tag)
        again = tmp_path / "again"
        again.mkdir()
        trainer.strategy.save(again)
        for folder in (tag, again):
            for file in folder.glob("model*.safetensors"):
                loaded.update({f"{folder.name}/{k}": v for k, v in load_file(file).items()})

    monkeypatch.setattr(trainer.strategy, "load", note)
    assert trainer.run()["steps"] == 4
    moments = [name for name in loaded if name.startswith("again/") and "gain" in name]
    assert len(moments) >= 12
    for name in moments:
        assert torch.equal(loaded[name], loaded[name.replace("again", "step-00000002")]), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_device_that_is_not_here() -> None:
    with pytest.raises(Exception, match="sees no CUDA device") as error:
        make_strategy(small_recipe(Path("x"), device="cuda"))
    assert error.value.exit_code == 3  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="device='gpu' is unknown"):
        make_strategy(small_recipe(Path("x"), device="gpu"))


def test_what_a_run_leaves(data: Path, tmp_path: Path) -> None:
    summary = Trainer(
        small_recipe(data, log__curve=True, log__validate_every=6, log__every=4),
        tmp_path,
        quiet=True,
    ).run()
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 12
    assert {"versions", "commit", "command", "packing_efficiency"} <= set(
        json.loads((tmp_path / "run.json").read_text())
    )
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert summary["steps"] == 12 and math.isfinite(summary["final"]["loss"])


def test_a_loss_that_is_not_finite_does_not_stop_the_progress_bar(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with RunLog(tmp_path, small_recipe(data), start_step=0) as log:
        assert log._progress is not None
        for loss in (1.5, None):
            log.step({"step": 0, "loss": loss})
            log._progress.refresh()


def test_exported_part_holds_the_average(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(small_recipe(data), tmp_path / "run", quiet=True)
    trainer.run()
    strategy = trainer.strategy
    assert isinstance(strategy, Single)
    average = {
        name.removeprefix("dit."): value for name, value in strategy.emas["model"].shadow.items()
    }
    model = tmp_path / "model"
    export_part(tmp_path / "run", model)
    config = load_config(model)
    assert config == trainer.task.config
    loaded = dict(load_part("dit", config, model).named_parameters())
    assert loaded.keys() == average.keys() and all(
        torch.equal(p, average[name]) for name, p in loaded.items()
    )
    full = (model / "dit.safetensors").stat().st_size
    export_part(tmp_path / "run", model, weights="raw", dtype="float16")
    raw = dict(load_part("dit", config, model).named_parameters())
    assert (model / "dit.safetensors").stat().st_size < 0.6 * full
    for name, p in trainer.task.part_module().named_parameters():
        torch.testing.assert_close(raw[name], p.detach().half().float(), rtol=0, atol=0)
    with pytest.raises(InputError, match="holds no checkpoint"):
        export_part(tmp_path / "nothing", model)


def test_fine_tuning_starts_from_exported_weights(data: Path, tmp_path: Path) -> None:
    Trainer(small_recipe(data, steps=6), tmp_path / "a", quiet=True).run()
    export_part(tmp_path / "a", tmp_path / "model")
    second = Trainer(small_recipe(data, init=str(tmp_path / "model")), tmp_path / "b", quiet=True)
    loaded = load_part("dit", load_config(tmp_path / "model"), tmp_path / "model").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights(second).items())
    other = {"model_overrides__dit": {"latent_channels": 8, "width": 32, "heads": 2}}
    with pytest.raises(
        InputError, match=r"was trained with another dit configuration \(differs in .*width"
    ):
        Trainer(
            small_recipe(data, init=str(tmp_path / "model"), **other), tmp_path / "c", quiet=True
        )


def test_loss_falls(data: Path, tmp_path: Path) -> None:
    changes = {
        "optimizer__lr": 5e-3,
        "schedule__warmup": 10,
        "checkpoint__every": 1000,
        "ema__decay": 0.95,
    }
    trainer = Trainer(small_recipe(data, steps=100, **changes), tmp_path, quiet=True)
    before = trainer.validate()["loss"]
    trainer.run()
    assert trainer.validate()["loss"] < 0.8 * before


def test_export_keeps_the_parts_that_are_there(data: Path, tmp_path: Path) -> None:
    """A song model goes into the folder of its codec: the codec's configuration stays, whatever the
    recipe's preset has become.
    """
    trainer = Trainer(
        small_recipe(data, steps=3, checkpoint__every=3), tmp_path / "run", quiet=True
    )
    trainer.run()
    codec = trainer.task.config.model_copy(
        update={
            "vae": trainer.task.config.vae.model_copy(update={"frame_width": 48}),
            "name": "codec",
        }
    )
    save_config(codec, tmp_path / "model")
    export_part(tmp_path / "run", tmp_path / "model")
    merged = load_config(tmp_path / "model")
    assert (
        merged.vae.frame_width == 48
        and merged.dit == trainer.task.config.dit
        and merged.path == trainer.task.config.path
    )
    assert merged.name == trainer.task.config.name
    other = codec.model_copy(update={"vae": codec.vae.model_copy(update={"latent_channels": 4})})
    other = other.model_copy(update={"dit": other.dit.model_copy(update={"latent_channels": 4})})
    save_config(other, tmp_path / "other")
    with pytest.raises(InputError, match="holds parts that do not go with this dit"):
        export_part(tmp_path / "run", tmp_path / "other")


class TestSpikes:
    """guard.spikes=skip: a step far above the running mean of loss or gradient norm is left out,
    counted, and stops the run in the end.
    """

    def spiky(self, trainer: Trainer, steps: set[int], factor: float, *, where: str) -> None:
        forward = trainer.strategy.forward

        def spiked(phase: str, batch: Any) -> tuple[Tensor, Any]:
            loss, logs = forward(phase, batch)
            if trainer.progress.step in steps:
                if where == "loss":
                    loss = loss * factor
                else:
                    loss.register_hook(lambda grad: grad * factor)
            return loss, logs

        trainer.strategy.forward = spiked  # type: ignore[method-assign]

    @pytest.mark.parametrize("where", ["loss", "norm"])
    def test_skipped(
        self,
        data: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        where: str,
    ) -> None:
        monkeypatch.setattr("mudit_engine.training.guard.SPIKE_WARMUP", 2)
        # a network that does not move: its losses differ by its songs alone; no step is without
        # lyrics, whose weights would skip it, too
        changes = {
            "steps": 8,
            "optimizer__lr": 1e-9,
            "guard__spikes": "skip",
            "guard__spike_factor": 20.0,
        }
        changes |= {"dit__drop_lyrics": 0.0, "dit__drop_both": 0.0}
        trainer = Trainer(small_recipe(data, **changes), tmp_path, quiet=True)
        self.spiky(trainer, {5}, 1e4, where=where)
        with caplog.at_level(logging.WARNING):
            summary = trainer.run()
        assert (
            summary["skipped_steps"] == 1
            and trainer.progress.bad_steps == [5]
            and trainer.progress.spikes == 1
        )
        assert (
            "loss" if where == "loss" else "gradient norm"
        ) in caplog.text and "songs song-" in caplog.text
        strategy = trainer.strategy
        assert isinstance(strategy, Single) and {
            int(s["step"]) for s in strategy.optimizers["model"].state.values()
        } == {7}

    def test_reported_and_kept_by_default(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mudit_engine.training.guard.SPIKE_WARMUP", 2)
        trainer = Trainer(
            small_recipe(data, steps=8, optimizer__lr=1e-9, guard__spike_factor=20.0),
            tmp_path,
            quiet=True,
        )
        self.spiky(trainer, {5}, 1e4, where="norm")
        assert trainer.run()["skipped_steps"] == 0 and trainer.progress.spikes == 1

    def test_stops_after_too_many(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mudit_engine.training.guard.SPIKE_WARMUP", 2)
        changes = {
            "optimizer__lr": 1e-9,
            "guard__spikes": "skip",
            "guard__spike_factor": 20.0,
            "guard__max_bad_steps": 1,
        }
        trainer = Trainer(small_recipe(data, **changes), tmp_path, quiet=True)
        self.spiky(trainer, {5, 7}, 1e4, where="norm")
        with pytest.raises(
            DivergedError,
            match=r"2 of the last 100 steps gave NaN, infinity or a spike .*songs song-\d+",
        ):
            trainer.run()


def test_many_ranks_want_a_strategy_for_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        InputError, match="strategy 'single' was started on 4 ranks.*use strategy=deepspeed"
    ):
        make_strategy(small_recipe(data))
