"""Fewer steps: a LoRA learns to do in one step without guidance what the network that it is added
to does in several steps with it.

    x_k = noise(song, t_k)                          t_0 > t_1 > ... the levels of the few steps
    x' = n guided steps of the teacher, from t_k to t_(k+1)
    student: x_(k+1) = a_k x_k + b_k out            a row of the sampler's table
    loss = | out - (x' - a_k x_k) / b_k |^2         a frame

The teacher is the network without its additions, and its unconditional branch is that of a request:
no description, no lyrics, no user type, no plan, no reference. The steps of the student are those
of the model's own sampler (`model_overrides.sampler`), which the exported folder carries, so that
it is sampled as it was trained; the teacher's lie between them on the same grid.

    batch = DistillTask(recipe, shards).load([4, 17], moment)

Source: Salimans and Ho 2022 (progressive distillation, arXiv 2202.00512), with the guidance of Meng
et al. 2023 (2210.03142) taken in at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from mudit_engine.config import PathConfig, SamplerConfig
from mudit_engine.diffusion.loss import diffusion_loss
from mudit_engine.diffusion.paths import DdpmPath, Path
from mudit_engine.diffusion.samplers import SamplerTable, sampler_table
from mudit_engine.errors import ConfigError
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.models.lora import without_lora
from mudit_engine.models.outline import OutlineRows, edit_columns
from mudit_engine.training.dataset.shards import SongRecord
from mudit_engine.training.parallel.strategy import Logs
from mudit_engine.training.recipe_stages import DistillStage, DitStage, teacher_passes
from mudit_engine.training.tasks.dit import DitInputs, DitTask
from mudit_engine.training.tasks.task import Batch, Moment

# whose rows are a x + b out, without noise and without what an earlier step has kept
SAMPLERS = ("ode-euler", "ddim")


def few_steps(
    path: PathConfig, sampler: SamplerConfig, stage: DistillStage
) -> tuple[SamplerTable, SamplerTable]:
    """(the student's table, the teacher's, with `stage.substeps` rows for each of the student's).

    Raises ConfigError for a sampler whose steps one output does not decide, and for a student with
    guidance.

    Examples:
        >>> stage = DistillStage(substeps=3, guidance=2.0)
        >>> sampler = SamplerConfig(name="ode-euler", steps=4, guidance=1.0)
        >>> student, teacher = few_steps(PathConfig(kind="linear"), sampler, stage)
        >>> len(student.times), len(teacher.times), torch.equal(student.times, teacher.times[::3])
        (4, 12, True)
    """
    if sampler.name not in SAMPLERS or (sampler.name == "ddim" and sampler.eta):
        raise ConfigError(
            f"dit-distill: sampler '{sampler.name}' cannot be learned in fewer steps: set "
            "model_overrides.sampler.name to ode-euler, or to ddim with eta 0"
        )
    if sampler.guidance != 1:
        raise ConfigError(
            f"dit-distill: the student takes guidance {sampler.guidance:g} in: set "
            "model_overrides.sampler.guidance=1, and distill.guidance to what the teacher goes by"
        )
    student = sampler_table(path, sampler)
    finer = {
        "steps": sampler.steps * stage.substeps,
        "guidance": stage.guidance,
        "guidance_interval": stage.guidance_interval,
    }
    teacher = sampler_table(path, sampler.model_copy(update=finer))
    if not torch.allclose(student.times, teacher.times[:: stage.substeps], rtol=0, atol=1e-6):
        raise ConfigError(
            f"dit-distill: {sampler.steps} steps and {stage.substeps} substeps of each do not meet "
            f"on the levels of this {path.kind} path: choose a product that divides its train_steps"
        )
    return student, teacher


def unconditional(batch: DitBatch, *, edits: slice | None) -> DitBatch:
    """The batch as guidance's other branch has it: nothing is said of the songs but their length,
    and, in the columns `edits`, which frames are given.
    """
    songs = len(batch.frames)
    outline = batch.outline
    if outline is not None:
        features_TF = torch.zeros_like(outline.features_TF)
        if edits is not None:
            features_TF[:, edits] = outline.features_TF[:, edits]
        outline = OutlineRows(
            features_TF,
            torch.zeros_like(outline.tokens_T4),
            torch.zeros_like(outline.weights_T4),
            outline.positions_L[:0],
        )
    return replace(
        batch,
        user_B=torch.zeros_like(batch.user_B),
        descriptions=batch.descriptions[:0],
        fragments=[0] * songs,
        lyric_ids=batch.lyric_ids[:0],
        lyrics=[0] * songs,
        references=batch.references[:0],
        reference_frames=[0] * songs,
        outline=outline,
    )


class DistillLoss(nn.Module):
    """The network with its LoRA, and the distance from what it does in more steps without it."""

    def __init__(
        self,
        dit: DiT,
        path: Path,
        tables: tuple[SamplerTable, SamplerTable],
        dit_stage: DitStage,
        stage: DistillStage,
    ) -> None:
        super().__init__()
        self.dit, self.path, self.dit_stage, self.stage = dit, path, dit_stage, stage
        self.student, self.teacher = tables
        self.edits = edit_columns(dit.config)

    def forward(self, inputs: DitInputs) -> tuple[Tensor, Logs]:
        """(sum over frames, logs) of a batch, whose `times_B` number the student's steps."""
        clean, held_T, step_B = inputs.clean, inputs.held_T, inputs.times_B.long()
        level_B = noise_levels(self.path, self.student)[step_B.cpu()].to(inputs.times_B.device)
        x_TC = self.path.add_noise(clean.latents_TC, inputs.noise_TC, _by_frame(level_B, clean))
        if held_T is not None:
            x_TC = torch.where(held_T[:, None], clean.latents_TC, x_TC)
        reached_TC = self._taught(clean, x_TC, step_B, held_T)
        times_B, rows_T7 = _row(self.student, step_B, clean)
        a_T1, b_T1 = rows_T7[:, :1], rows_T7[:, 1:2]
        target_TC = (reached_TC - a_T1 * x_TC) / b_T1
        out_TC = self.dit(
            replace(clean, latents_TC=x_TC, times_B=times_B),
            checkpointing=self.dit_stage.checkpointing if self.training else "none",
        )
        songs = len(clean.frames) if inputs.songs is None else inputs.songs
        counted_B = (torch.arange(len(clean.frames), device=x_TC.device) < songs).float()
        free_T = None if held_T is None else (~held_T).to(out_TC.dtype)
        loss, _ = diffusion_loss(
            out_TC, target_TC, clean.frames, song_weights=counted_B, frame_weights=free_T
        )
        frames = sum(list(clean.frames)[:songs])
        missed_T = (b_T1 * (out_TC.detach() - target_TC)).square().mean(1)[:frames]
        way_T = (reached_TC - x_TC).square().mean(1)[:frames]
        if free_T is not None:
            missed_T = missed_T * free_T[:frames]
        logs: Logs = {
            "mse": (loss.detach(), float(frames)),
            # how far a step lands from the teacher's, as a share of the way (of squares)
            "off": (missed_T.sum(), way_T.sum()),
        }
        return loss, logs

    @torch.no_grad()
    def _taught(
        self, clean: DitBatch, x_TC: Tensor, step_B: Tensor, held_T: Tensor | None
    ) -> Tensor:
        """Where the teacher's guided steps lead from x_TC."""
        other = unconditional(clean, edits=self.edits)
        with without_lora(self.dit):
            for number in range(self.stage.substeps):
                times_B, rows_T7 = _row(self.teacher, step_B * self.stage.substeps + number, clean)
                out_TC = self.dit(replace(clean, latents_TC=x_TC, times_B=times_B))
                weight_T1 = rows_T7[:, 6:]
                if any(self.teacher.guided):
                    blind_TC = self.dit(replace(other, latents_TC=x_TC, times_B=times_B))
                    out_TC = blind_TC + weight_T1 * (out_TC - blind_TC)
                moved_TC = rows_T7[:, :1] * x_TC + rows_T7[:, 1:2] * out_TC
                x_TC = moved_TC if held_T is None else torch.where(held_T[:, None], x_TC, moved_TC)
        return x_TC


def noise_levels(path: Path, table: SamplerTable) -> Tensor:
    """Noise level t of each row of a table, from what the network is told there."""
    if isinstance(path, DdpmPath):
        return table.times + 1 / path.config.train_steps
    return table.times


def _by_frame(values_B: Tensor, batch: DitBatch) -> Tensor:
    counts = torch.tensor(batch.frames).to(values_B.device, non_blocking=True)
    return values_B.repeat_interleave(counts, dim=0, output_size=len(batch.latents_TC))


def _row(table: SamplerTable, number_B: Tensor, batch: DitBatch) -> tuple[Tensor, Tensor]:
    """(network times [B], coefficients [T, 7]) of the rows of a table that the songs are at."""
    device = number_B.device
    rows_B7 = table.rows.to(device, non_blocking=True)[number_B]
    return table.times.to(device, non_blocking=True)[number_B], _by_frame(rows_B7, batch)


class DistillTask(DitTask):
    """Needs what DitTask needs."""

    def build(self) -> dict[str, nn.Module]:
        super().build()
        stage = self.recipe.distill
        tables = few_steps(self.config.path, self.config.sampler, stage)
        return {"model": DistillLoss(self.dit, self.path, tables, self.recipe.dit, stage)}

    def _times(self, records: Sequence[SongRecord], moment: Moment) -> Tensor:
        """Which of the student's steps each song takes; all in turn where songs are held out."""
        steps = self.config.sampler.steps
        if not moment.training:
            return torch.arange(len(records)).remainder(steps).float()
        return torch.tensor(
            [float(moment.chooser("step", record.id).randrange(steps)) for record in records]
        )

    def load(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        if not moment.training:
            songs = np.repeat(np.asarray(songs), self.config.sampler.steps)
        batch = super().load(songs, moment)
        passes = teacher_passes(self.recipe.distill)
        return replace(batch, flops=None if batch.flops is None else (1 + passes / 3) * batch.flops)
