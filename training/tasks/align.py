"""Learning from preferences: of two songs that were made for one request, the better one is made
likelier than the other (diffusion/preference.py), by a LoRA whose base is the reference.

    loss = weight (-log sigmoid(margin) + anchor (won - base_won) + blind moved)       one a pair

Both songs get the same conditions, noise level and noise, so that what differs is the songs. The
anchor is the denoising error of the better song: the margin alone is content when both songs become
less likely, the worse one more. `moved` is how far the unconditional outputs are from the base's,
in mean squares: guidance plays the difference of its two branches, so that what both of them learn
is heard once, and what the conditional one learns alone as often as the guidance's scale says.

A data set of pairs holds the better song as `latents` and the other, as long, as `lost`; its
metadata may weigh a pair (training/align/pairs.py).

    batch = AlignTask(recipe, shards).load([4, 17], moment)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mudit_engine.diffusion.paths import Path
from mudit_engine.diffusion.preference import preference_loss, song_errors
from mudit_engine.errors import InputError
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.models.lora import without_lora
from mudit_engine.models.outline import edit_columns
from mudit_engine.training.parallel.strategy import Logs
from mudit_engine.training.recipe_stages import AlignStage, DitStage
from mudit_engine.training.tasks.distill import unconditional
from mudit_engine.training.tasks.dit import DitInputs, DitTask, noised
from mudit_engine.training.tasks.task import Batch, Moment

NOISE_LEVELS = 4  # at which a held-out pair is judged
PASSES = 8 / 3  # four forward passes, of which two go back, in units of a forward pass that does
BLIND_PASSES = 4 / 3  # the unconditional branch's: two, of which one goes back


@dataclass(frozen=True)
class AlignInputs:
    """The better songs of a batch of pairs, the others in the same order, and how much each pair
    counts, fp32 [pairs].
    """

    won: DitInputs
    lost: DitInputs
    weights_B: Tensor


class AlignLoss(nn.Module):
    """The network with its LoRA and the loss of pairs."""

    def __init__(self, dit: DiT, path: Path, dit_stage: DitStage, stage: AlignStage) -> None:
        super().__init__()
        self.dit, self.path, self.dit_stage, self.stage = dit, path, dit_stage, stage
        self.edits = edit_columns(dit.config)

    def forward(self, inputs: AlignInputs) -> tuple[Tensor, Logs]:
        """(sum over pairs, logs) of a batch."""
        won, lost = (noised(self.path, one)[:2] for one in (inputs.won, inputs.lost))
        songs = inputs.won.songs
        with torch.no_grad(), without_lora(self.dit):
            base_won_B, base_lost_B = self._errors(*won)[:songs], self._errors(*lost)[:songs]
        won_B, lost_B = self._errors(*won)[:songs], self._errors(*lost)[:songs]
        loss_B, margin_B = preference_loss(
            won_B, lost_B, base_won_B, base_lost_B, beta=self.stage.beta
        )
        whole_B = loss_B + self.stage.anchor * (won_B - base_won_B)
        moved_B = torch.zeros_like(loss_B)
        if self.stage.blind:
            moved_B = self._moved(won[0])[:songs]
            whole_B = whole_B + self.stage.blind * moved_B
        loss = (inputs.weights_B * whole_B).sum()
        pairs, margin_B = float(len(loss_B)), margin_B.detach()
        told = (margin_B > 0).double() + 0.5 * (margin_B == 0).double()
        logs: Logs = {
            "preference": (loss_B.detach().sum(), pairs),
            "margin": (margin_B.sum(), pairs),
            "told": (told.sum(), pairs),
            "mse_won": (won_B.detach().sum(), pairs),
            "mse_lost": (lost_B.detach().sum(), pairs),
            # how much worse the better songs are denoised than by the base: 0.1 is a tenth
            "drift": ((won_B.detach() - base_won_B).sum(), base_won_B.sum()),
            "moved": (moved_B.detach().sum(), pairs),
        }
        return loss, logs

    def _moved(self, noisy: DitBatch) -> Tensor:
        """How far the unconditional outputs of each song are from the base's, [B]."""
        blind = unconditional(noisy, edits=self.edits)
        with torch.no_grad(), without_lora(self.dit):
            base_TC = self.dit(blind)
        return self._errors(blind, base_TC)

    def _errors(self, noisy: DitBatch, target_TC: Tensor) -> Tensor:
        """Of each song, [B]."""
        checkpointing = self.dit_stage.checkpointing if self.training else "none"
        out_TC = self.dit(noisy, checkpointing=checkpointing)
        return song_errors(out_TC, target_TC, noisy.frames)


class AlignTask(DitTask):
    """Needs what DitTask needs, and the songs that lost."""

    needs = (*DitTask.needs, "lost")

    def build(self) -> dict[str, nn.Module]:
        super().build()
        rows = self.shards.rows("latents")
        if (odd := np.flatnonzero(rows != self.shards.rows("lost"))).size:
            raise InputError(
                f"pair '{self.shards.id(int(odd[0]))}' of '{self.shards.folder}' has two songs of "
                "different lengths: cut them to one length"
            )
        return {"model": AlignLoss(self.dit, self.path, self.recipe.dit, self.recipe.align)}

    def costs(self) -> np.ndarray:
        return 2 * np.asarray(self.shards.rows("latents"))

    def weights(self) -> np.ndarray:
        return np.array([self._weight(number) for number in range(len(self.shards))])

    def _weight(self, number: int) -> float:
        """In 256ths: sums of such weights are exact in any order, on any number of ranks."""
        told = float(self.shards.read(number, ()).metadata.get("weight", 1.0))
        return max(1, round(256 * told)) / 256

    def load(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        if not moment.training:
            songs = np.repeat(np.asarray(songs), NOISE_LEVELS)  # one level says little of a pair
        one = super().load(songs, moment)
        won: DitInputs = one.inputs
        lost = [np.asarray(self.shards.read(number, ["lost"])["lost"]) for number in songs]
        weights_B = torch.tensor([self._weight(int(number)) for number in songs])
        filler = len(won.clean.latents_TC) - sum(map(len, lost))  # on ranks: see DitTask.load
        channels = self.config.dit.latent_channels
        rows = np.concatenate([*lost, np.zeros((filler, channels), np.float16)])
        clean = replace(won.clean, latents_TC=torch.from_numpy(rows).float())
        passes = PASSES + (BLIND_PASSES if self.recipe.align.blind else 0)
        return replace(
            one,
            weight=float(weights_B.sum()),
            inputs=AlignInputs(won, replace(won, clean=clean), weights_B),
            tokens=2 * one.tokens,
            flops=None if one.flops is None else passes * one.flops,
        )
