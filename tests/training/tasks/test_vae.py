"""The codec's stage: its batches, who gets which gradient, the closed-form start, the latents'
statistics, two optimisers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mudit_engine.config import load_config
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.models.folder import load_part
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.training.checkpoints.checkpoint import Checkpoints
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.task import Moment
from mudit_engine.training.tasks.vae import VaeTask
from mudit_engine.training.trainer import Trainer
from small_audio import SMALL_VAE, write_chords
from small_audio import vae_recipe as recipe

# a second thread only waits for the first, at these sizes
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chords(tmp_path_factory.mktemp("chords"))


def test_batches(data: Path) -> None:
    task = VaeTask(recipe(data), Shards(data))
    batch = task.load([0, 3, 5], Moment(0, 0, 1))
    again = task.load([5, 2], Moment(0, 4, 1))
    assert batch.inputs.audio_NcS.shape == (3, 1, 4096) and batch.inputs.noise_NTC.shape == (
        3,
        16,
        8,
    )
    assert torch.equal(batch.inputs.audio_NcS[2], again.inputs.audio_NcS[0]) and torch.equal(
        batch.inputs.noise_NTC[2], again.inputs.noise_NTC[0]
    )
    short = batch.inputs.audio_NcS[0, 0]
    assert torch.equal(short[:1000], short[1000:2000]), "a short song goes round"
    source = task.shards.read(3)["audio"][:, 0].astype(np.float32) / 32767
    assert any(
        np.array_equal(source[start : start + 4096], batch.inputs.audio_NcS[1, 0])
        for start in range(len(source) - 4095)
    )
    assert not task.load([3], Moment(0, 0, 1, training=False)).inputs.noise_NTC.any()


def test_warm_start_is_better_than_none_and_training_improves_it(
    data: Path, tmp_path: Path
) -> None:
    cold = Trainer(recipe(data), tmp_path / "cold", quiet=True)
    warm = Trainer(recipe(data, steps=40), tmp_path / "warm", quiet=True)
    # of the audio: features are measured in units that the fit changes
    without = cold.validate()["mel"]
    warm.task.warm_start()
    start = warm.validate()
    assert start["mel"] < 0.7 * without
    warm.run()
    assert warm.validate()["loss"] < 0.95 * start["loss"]


def test_each_phase_trains_its_own_weights(data: Path) -> None:
    task = VaeTask(
        recipe(data, **{"vae.adversarial": 0.5, "vae.adversarial_from": 3}), Shards(data)
    )
    assert task.active(2) == ("generator",) and task.active(3) == ("generator", "discriminator")
    inputs = task.load(range(4), Moment(0, 0, 0)).inputs
    generator, adversary = task.modules["generator"], task.modules["discriminator"]
    loss, logs = generator(inputs)
    loss.backward()
    assert {"adversarial", "feature_matching"} <= set(logs)
    assert all(p.grad is None for p in adversary.parameters()) and all(
        p.requires_grad for p in adversary.parameters()
    )
    named = {name for name, _ in generator.named_parameters()}
    assert named and all(name.startswith("vae.") for name in named), (
        "discriminators belong to their own phase"
    )
    before = {
        name: p.grad.clone() for name, p in generator.named_parameters() if p.grad is not None
    }
    loss, _ = adversary(inputs)
    loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for name, p in adversary.named_parameters()
        if name.endswith("original1")
    )
    assert all(
        torch.equal(p.grad, before[name])
        for name, p in generator.named_parameters()
        if p.grad is not None
    )


def test_adversarial_weight_counts(data: Path) -> None:
    losses = {}
    for weight in (0.0, 0.5):
        task = VaeTask(
            recipe(data, **{"vae.adversarial": weight, "vae.feature_matching": 0.0}), Shards(data)
        )
        task.active(0)
        loss, logs = task.modules["generator"](task.load(range(4), Moment(0, 0, 0)).inputs)
        losses[weight] = float(loss.detach()), float(logs["adversarial"][0]) if weight else 0.0
    assert losses[0.5][0] - losses[0.0][0] == pytest.approx(0.5 * losses[0.5][1], abs=1e-4)


def test_resume_with_two_optimisers(data: Path, tmp_path: Path) -> None:
    adversarial = {
        "vae.adversarial": 0.1,
        "vae.adversarial_from": 2,
        "steps": 8,
        "schedule.kind": "constant",
    }
    Trainer(recipe(data, **adversarial), tmp_path / "whole", quiet=True).run()
    Trainer(recipe(data, **adversarial), tmp_path / "cut", quiet=True).run()
    Trainer(recipe(data, **adversarial), tmp_path / "cut", quiet=True).run(resume="4")
    whole, cut = (
        Checkpoints(tmp_path / name / "checkpoints").named("8") for name in ("whole", "cut")
    )
    files = sorted(path.name for path in whole.glob("*.safetensors"))
    expected = [
        "discriminator.optimizer",
        "discriminator",
        "generator.ema",
        "generator.optimizer",
        "generator",
    ]
    assert files == [f"{name}.safetensors" for name in expected]
    for name in files:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    rows = read_metrics(tmp_path / "whole")[0]
    assert ["discriminator_loss" in row for row in rows] == [False, False, *[True] * 6]


def test_latents_are_measured_with_the_exported_weights(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(data), tmp_path / "run", quiet=True)
    trainer.run()
    export_part(tmp_path / "run", tmp_path / "model")
    vae = load_part("vae", load_config(tmp_path / "model"), tmp_path / "model")
    assert isinstance(vae, SpectralVAE) and isinstance(trainer.task, VaeTask)
    assert not torch.equal(vae.latent_std, torch.ones(8))
    measured = vae.latent_mean.clone(), vae.latent_std.clone()
    vae.fit_latents(trainer.task._some_songs())
    torch.testing.assert_close((vae.latent_mean, vae.latent_std), measured)


@pytest.fixture(scope="module")
def codec(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained codec's model folder."""
    folder = tmp_path_factory.mktemp("codec")
    Trainer(recipe(data), folder / "run", quiet=True).run()
    export_part(folder / "run", folder / "model")
    return folder / "model"


def decoder_recipe(data: Path, codec: Path, **changes: object) -> Recipe:
    larger = {**SMALL_VAE, "decoder_width": 24, "decoder_blocks": 2, "phase_refinements": 2}
    return recipe(
        data,
        **{
            "init": str(codec),
            "model_overrides.vae": larger,
            "vae.train": "decoder",
            "vae.refined": True,
            "vae.adversarial": 0.1,
            "vae.adversarial_from": 2,
            **changes,
        },
    )


def test_a_decoder_trained_alone_leaves_the_latents_as_they_were(
    data: Path, codec: Path, tmp_path: Path
) -> None:
    trainer = Trainer(decoder_recipe(data, codec), tmp_path / "run", quiet=True)
    start = {name: w.clone() for name, w in trainer.task.part_module().state_dict().items()}
    trainer.run()
    export_part(tmp_path / "run", tmp_path / "model")
    before, after = (
        load_part("vae", load_config(folder), folder).state_dict()
        for folder in (codec, tmp_path / "model")
    )
    kept = [name for name in before if not name.startswith("decoder.")]
    assert any(name.startswith("encoder.") for name in kept) and "latent_std" in kept
    for name in kept:
        assert torch.equal(before[name], after[name]), name
    taken = [n for n, w in before.items() if n in after and w.shape == after[n].shape]
    assert {"decoder.linear.weight", "decoder.latent_in.weight"} <= set(taken)
    for name in taken:
        assert torch.equal(start[name], before[name]), f"{name} begins as init has it"
    for name in after.keys() - set(kept):
        assert not torch.equal(after[name], start[name]), f"{name} was trained"


def test_a_decoder_is_judged_by_the_audio_that_a_decode_gives(data: Path, codec: Path) -> None:
    losses, decodes = [], []
    for refined in (True, False):
        task = VaeTask(decoder_recipe(data, codec, **{"vae.refined": refined}), Shards(data))
        inputs = task.load([3], Moment(0, 0, 0, training=False)).inputs
        generator = task.modules["generator"].eval()
        with torch.no_grad():
            vae = task.part_module()
            losses.append(float(generator(inputs)[1]["mel"][0]))
            decoded = vae.decode(vae.encode(inputs.audio_NcS)[0])
            decodes.append(float(task.generator.mel(decoded, inputs.audio_NcS)))
    assert losses[0] == pytest.approx(decodes[0], rel=1e-4)
    assert abs(losses[1] - decodes[1]) > 1e-2 * decodes[1]


def test_a_decoder_resumes_as_it_would_have_gone_on(
    data: Path, codec: Path, tmp_path: Path
) -> None:
    Trainer(decoder_recipe(data, codec), tmp_path / "whole", quiet=True).run()
    Trainer(
        decoder_recipe(data, codec, steps=4, **{"schedule.steps": 8}), tmp_path / "cut", quiet=True
    ).run()
    Trainer(decoder_recipe(data, codec), tmp_path / "cut", quiet=True).run()
    whole, cut = (
        load_file(export_part(tmp_path / run, tmp_path / f"{run}-model"))
        for run in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name


def test_a_decoder_for_another_encoder_is_refused(data: Path, codec: Path) -> None:
    other = {**SMALL_VAE, "frame_width": 24}
    with pytest.raises(ConfigError, match=r"has another encoder \(differs in frame_width\)"):
        VaeTask(decoder_recipe(data, codec, **{"model_overrides.vae": other}), Shards(data))
    with pytest.raises(ConfigError, match=r"vae.train=decoder .*set init"):
        decoder_recipe(data, codec, init=None)


def test_audio_of_another_kind_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match="holds audio of 1 channel"):
        VaeTask(recipe(data, **{"model_overrides.vae": {**SMALL_VAE, "channels": 2}}), Shards(data))
    task = VaeTask(
        recipe(data, **{"model_overrides.vae": {**SMALL_VAE, "sample_rate": 16000}}), Shards(data)
    )
    with pytest.raises(InputError, match="song 'chord-00' is at 8000 Hz, the VAE at 16000 Hz"):
        task.load([0], Moment(0, 0, 0))
