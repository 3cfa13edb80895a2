"""The codec: crops of songs through the spectral VAE, judged by spectra, the KL term and, later in
training, by discriminators.

    generator       features |F(y) - F(x)| + spectral + mel + kl KL
                    + adversarial (G + feature_matching FM)
    discriminator   hinge on recordings and decodes

Training starts from the closed-form linear codec (`warm_start`), and ends by measuring the mean and
spread of the latents, by which the song transformer's data is normalised. The decodes that the
generator made in a step are the ones its discriminators judge.

    batch = VaeTask(recipe, shards).load([4, 17], moment)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.models.folder import load_config, load_part, model_folder
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.models.vae_losses import (
    LogMelLoss,
    MultiResolutionDiscriminator,
    MultiResolutionStftLoss,
    Verdict,
    discriminator_loss,
    feature_matching,
    generator_loss,
    kl_divergence,
)
from mudit_engine.training.parallel.strategy import Logs
from mudit_engine.training.recipe_stages import VaeStage
from mudit_engine.training.seeding import permutation
from mudit_engine.training.tasks.chinmu import crop
from mudit_engine.training.tasks.task import Batch, Moment, Task, differing

log = logging.getLogger(__name__)
# of the configuration: what a decoder may have otherwise than the one whose latents it takes
DECODER_FIELDS = frozenset({"decoder_width", "decoder_blocks", "phase_head", "phase_refinements"})


class Judged:
    """Crops and decodes of a step, on their device. Its own class, so that copies of a batch share
    it.
    """

    real: Tensor
    decoded: Tensor


@dataclass(frozen=True)
class VaeInputs:
    """Crops [N, c, S], the noise of their posteriors [N, T, C] (zero in evaluation), and what the
    generator leaves to be judged.
    """

    audio_NcS: Tensor
    noise_NTC: Tensor
    judged: Judged = field(default_factory=Judged)


class GeneratorLoss(nn.Module):
    """The VAE and its loss. `adversary` is another phase's module: it is asked here, and trained
    there.
    """

    def __init__(
        self, vae: SpectralVAE, stage: VaeStage, adversary: DiscriminatorLoss | None
    ) -> None:
        super().__init__()
        self.vae, self.stage = vae, stage
        self.spectral = MultiResolutionStftLoss()
        self.mel = LogMelLoss(vae.config.sample_rate)
        # a list: its weights are not this module's
        self._adversary = [adversary] if adversary is not None else []
        self.judged = False
        self.refinements = vae.config.phase_refinements if stage.refined else 0

    def forward(self, inputs: VaeInputs) -> tuple[Tensor, Logs]:
        """(mean loss of a crop times the crops, logs)."""
        stage, vae, audio_NcS = self.stage, self.vae, inputs.audio_NcS
        distance = (
            nn.functional.l1_loss if stage.features_distance == "l1" else nn.functional.mse_loss
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and stage.train == "codec"):
            mean_NTC, logvar_NTC = vae.encode(audio_NcS)
        spectrum = vae.spectrum(mean_NTC + (0.5 * logvar_NTC).exp() * inputs.noise_NTC)
        parts = {
            "features": (stage.features, distance(spectrum.features_NFX, vae.features(audio_NcS)))
        }
        if stage.train == "codec":
            parts["kl"] = (stage.kl, kl_divergence(mean_NTC, logvar_NTC))
        # two thirds of a step are synthesis and what listens to it: a codec that leaves its phases
        # to refinement needs none of it
        decoded_NcS = (
            vae.synthesise(spectrum, refinements=self.refinements)
            if stage.spectral or stage.mel or self._adversary
            else None
        )
        if decoded_NcS is not None:
            parts["spectral"] = (stage.spectral, self.spectral(decoded_NcS, audio_NcS))
            parts["mel"] = (stage.mel, self.mel(decoded_NcS, audio_NcS))
        if self.judged and self.training and decoded_NcS is not None:
            # the middle of a crop: its ends have less context, and discriminators cost more than
            # the codec
            spare = max(
                0, audio_NcS.shape[2] - round(stage.adversarial_seconds * vae.config.sample_rate)
            )
            part = slice(spare // 2, audio_NcS.shape[2] - (spare - spare // 2))
            real, fake = self._adversary[0].judge(audio_NcS[..., part], decoded_NcS[..., part])
            inputs.judged.real, inputs.judged.decoded = (
                audio_NcS[..., part],
                decoded_NcS[..., part].detach(),
            )
            parts["adversarial"] = (stage.adversarial, generator_loss(fake))
            parts["feature_matching"] = (
                stage.adversarial * stage.feature_matching,
                feature_matching(real, fake),
            )
        crops = len(audio_NcS)
        loss = torch.stack([weight * value for weight, value in parts.values()]).sum() * crops
        return loss, {
            name: (value.detach() * crops, float(crops)) for name, (_, value) in parts.items()
        }


class DiscriminatorLoss(nn.Module):
    """The discriminators and their loss."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.discriminator = MultiResolutionDiscriminator(channels, width=width)

    def judge(self, audio_NcS: Tensor, decoded_NcS: Tensor) -> tuple[Verdict, Verdict]:
        """Verdicts for the generator: gradients flow to the decodes, not to the discriminators."""
        self.discriminator.requires_grad_(False)
        try:
            return self.discriminator(audio_NcS), self.discriminator(decoded_NcS)
        finally:
            self.discriminator.requires_grad_(True)

    def forward(self, inputs: VaeInputs) -> tuple[Tensor, Logs]:
        real, fake = (
            self.discriminator(inputs.judged.real),
            self.discriminator(inputs.judged.decoded),
        )
        crops = float(len(inputs.audio_NcS))
        logs: Logs = {}
        for name, verdict in (("real", real), ("decoded", fake)):
            logs[name] = (
                torch.stack([logits.detach().mean() for logits in verdict.logits]).mean() * crops,
                crops,
            )
        return discriminator_loss(real, fake) * crops, logs


class VaeTask(Task):
    """Needs audio at the VAE's sample rate and channels."""

    part = "vae"
    needs = ("audio",)
    averaged = ("generator",)
    called_elsewhere = ("discriminator",)  # by the generator's loss

    def build(self) -> dict[str, nn.Module]:
        self.stage: VaeStage = self.recipe.vae
        config = self.config.vae
        # whole latent frames: nothing of a crop is padding
        self.frames = max(1, round(self.stage.crop_seconds * config.frame_rate))
        self.samples = self.frames * config.hop
        if self.shards.fields["audio"].width != config.channels:
            raise InputError(
                f"'{self.shards.folder}' holds audio of {self.shards.fields['audio'].width} "
                f"channel(s), the VAE takes {config.channels}: "
                f"encode it with channels={config.channels}"
            )
        vae = SpectralVAE(config)
        self.initialise(vae)
        if self.stage.train == "decoder":
            vae.encoder.requires_grad_(False)
        adversary = (
            DiscriminatorLoss(config.channels, self.stage.discriminator_width)
            if self.stage.adversarial
            else None
        )
        self.generator = GeneratorLoss(vae, self.stage, adversary)
        modules: dict[str, nn.Module] = {"generator": self.generator}
        if adversary is not None:
            modules["discriminator"] = adversary
        self.phases = tuple(modules)
        self.lr_scale = {"discriminator": self.stage.discriminator_lr / self.recipe.optimizer.lr}
        return modules

    def initialise(self, module: nn.Module) -> None:
        """As every task; where the decoder alone is trained, layers of another size in it keep
        their first weights.
        """
        if self.stage.train == "codec" or self.recipe.init is None:
            return super().initialise(module)
        folder = model_folder(self.recipe.init)
        trained = load_config(folder)
        changed = set(differing(self.config.vae, trained.vae)) - DECODER_FIELDS
        if changed:
            raise ConfigError(
                f"init='{self.recipe.init}' has another encoder (differs in "
                f"{', '.join(sorted(changed))}): vae.train=decoder may change "
                f"{', '.join(sorted(DECODER_FIELDS))} alone"
            )
        shapes = {name: weight.shape for name, weight in module.state_dict().items()}
        weights = load_part("vae", trained, folder).state_dict()
        module.load_state_dict(
            {name: w for name, w in weights.items() if shapes.get(name) == w.shape}, strict=False
        )

    def active(self, step: int) -> tuple[str, ...]:
        self.generator.judged = (
            "discriminator" in self.phases and step >= self.stage.adversarial_from
        )
        return self.phases if self.generator.judged else ("generator",)

    def costs(self) -> np.ndarray:
        return np.ones(len(self.shards), np.int64)

    def load(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        records = [self.shards.read(number) for number in songs]
        crops, noise = [], []
        for record in records:
            self._check_rate(record.id, int(record.metadata["sample_rate"]))
            audio = crop(
                record["audio"],
                self.samples,
                moment.chooser("crop", record.id) if moment.training else None,
            )
            # a shorter song goes round: padding would teach silence
            crops.append(np.resize(audio, (self.samples, audio.shape[1])).T)
            shape = (self.frames, self.config.vae.latent_channels)
            noise.append(
                torch.randn(shape, generator=moment.generator("posterior", record.id))
                if moment.training
                else torch.zeros(shape)
            )
        audio_NcS = torch.from_numpy(np.stack(crops).astype(np.float32) / 32767.0)
        inputs = VaeInputs(audio_NcS, torch.stack(noise))
        seconds = len(records) * self.samples / self.config.vae.sample_rate
        ids = tuple(record.id for record in records)
        return Batch(
            ids, float(len(records)), inputs, tokens=len(records) * self.frames, seconds=seconds
        )

    def _check_rate(self, song_id: str, rate: int) -> None:
        if rate != self.config.vae.sample_rate:
            raise InputError(
                f"song '{song_id}' is at {rate} Hz, the VAE at {self.config.vae.sample_rate} Hz: "
                f"encode the audio at that rate"
            )

    def warm_start(self) -> None:
        """Fits the linear codec in closed form on songs of the training split."""
        if self.stage.warm_start == "none" or self.recipe.init is not None:
            return
        kept = self.generator.vae.fit_linear(
            self._some_songs(), emphasis=self.stage.emphasis, seed=self.recipe.seed
        )
        log.info(
            "linear codec fitted: it keeps %.1f %% of the variance of the features", 100 * kept
        )

    def finish(self) -> None:
        """Measures the latents' mean and spread with the averaged weights, if the encoder was
        trained.
        """
        if self.stage.train == "decoder":
            return
        self.generator.vae.fit_latents(self._some_songs())

    def _some_songs(self) -> list[Tensor]:
        numbers = self.shards.numbers("train")[: self.recipe.data.limit_songs]
        chosen = numbers[permutation(len(numbers), "warm-start", self.recipe.seed)][
            : self.stage.statistics_songs
        ]
        device = self.generator.vae.latent_mean.device
        records = [self.shards.read(number) for number in chosen]
        return [
            torch.from_numpy(record["audio"].T.astype(np.float32) / 32767.0).to(device)
            for record in records
        ]
