"""The loop of every stage: batches in, steps out, and a state from which a resumed run equals an
uninterrupted one bit for bit.

    gradient = grad of (sum over micro-batches and ranks of the loss sum) / weight of the batch

where the weight is that of the global batch.

    summary = Trainer(recipe, Path("runs/a")).run(resume="auto")

What changes from step to step is held by the weights, the optimiser, the average and `Progress`;
batches, noise, dropout and the learning rate are pure functions of (seed, step), so there is no
random state to keep.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine.errors import InputError, MuditError
from mudit_engine.files import write_json
from mudit_engine.training.checkpoints.async_save import Saver
from mudit_engine.training.checkpoints.checkpoint import Checkpoints
from mudit_engine.training.dataset.batching import Sampler, prefetch
from mudit_engine.training.figures import Figures
from mudit_engine.training.guard import Guard, Progress
from mudit_engine.training.held_out import observe, watches
from mudit_engine.training.listening import Listener, wanted_songs
from mudit_engine.training.parallel.choose import make_strategy
from mudit_engine.training.parallel.strategy import learning_rate
from mudit_engine.training.ranks import Ranks, lost_peer
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.resume import RECIPE, check_same_run, identity, tell_schedule
from mudit_engine.training.run_lock import RunLock
from mudit_engine.training.runlog import RunLog, describe_run, open_log, plot_curves
from mudit_engine.training.seeding import seed64
from mudit_engine.training.step_trace import StepTrace, parse_steps
from mudit_engine.training.stopping import InterruptedRun, Stop
from mudit_engine.training.stragglers import Pace
from mudit_engine.training.tasks.choose import make_task, open_data
from mudit_engine.training.tasks.task import Batch, Moment, Task, pinned, to_device
from mudit_engine.training.throughput import Meter, counting
from mudit_engine.training.validation import Validation
from mudit_engine.training.watch import SHARE, Watch, record_flights

log = logging.getLogger(__name__)

STATE, CONFIG = "trainer.json", "config.json"


class LostPeerError(MuditError):
    """Another rank is gone: what this one says of it is not where the fault is."""


@dataclass(frozen=True)
class Work:
    """A global batch's share of this rank, read and ready."""

    epoch: int
    epoch_step: int
    # with weight 0 where a rank has no song left and only takes part in the collectives
    batches: list[tuple[Batch, float]]
    songs: int
    seconds: float
    weight: float  # of the global batch


class Trainer:
    """One run of a recipe in a folder.

    A run that resumes equals one that was never interrupted, bit for bit on one device.

    Args:
        recipe: what is trained, on what, and how.
        folder: of the run: checkpoints, metrics and the summary.
        task: None is the recipe's own.
        quiet: shows no progress.

    Raises:
        InputError: for a data set without training songs or without what the task needs.

    Examples:
        >>> trainer = Trainer(small_recipe, run_folder, quiet=True)
        >>> trainer.run(resume="never")["steps"] == small_recipe.steps
        True
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, task: Task | None = None, quiet: bool = False
    ) -> None:
        self.recipe, self.folder, self.quiet = recipe, folder, quiet
        record_flights(folder)
        self.shards = task.shards if task is not None else open_data(recipe)
        self.strategy = make_strategy(recipe)
        self.task = task or make_task(recipe, self.shards)
        costs, self._weights = self.task.costs(), self.task.weights()
        numbers = self.shards.numbers("train")[: recipe.data.limit_songs]
        if not len(numbers):
            raise InputError(f"'{self.shards.folder}' holds no song of the split 'train'")
        self.sampler = Sampler(
            costs,
            seed=recipe.seed,
            budget=recipe.data.pack_size,
            packs_per_step=recipe.data.packs_per_step,
            numbers=numbers,
        )
        self.ranks = self.strategy.ranks
        self.checkpoints = Checkpoints(
            folder / "checkpoints", keep=recipe.checkpoint.keep, ranks=self.ranks
        )
        # while the network is made
        self.sampler.prepare(self._likely_epoch())
        averaged = self.task.averaged if recipe.ema.enabled else ()
        if recipe.strategy != "single":
            self.task.join_ranks(self.strategy)
        self.strategy.prepare(
            self.task.modules,
            recipe,
            lr_scale=self.task.lr_scale,
            ema=averaged,
            called_elsewhere=self.task.called_elsewhere,
        )
        self.progress = Progress()
        self.guard = Guard(recipe, self.ranks)
        self._validation = Validation(recipe, self.task, self.shards, self.strategy)
        self.meter = Meter(recipe, self.strategy.device, world=self.ranks.world)
        self._counted: dict[str, float] = {}
        self._lock: RunLock | None = None
        self._pace = Pace(self.ranks, self.strategy.device)
        self._stop = Stop()
        limit = SHARE * recipe.parallel.timeout_seconds
        self._watch = Watch(self.ranks, folder, limit=limit)
        if recipe.songs.every:
            wanted_songs(recipe.songs)  # every rank says that it cannot be
        self._listener = Listener(recipe, folder)
        self._saved: int | None = None  # a step whose checkpoint may still be on its way
        self._saver: Saver | None = None
        self._save_failed = False
        wanted = recipe.checkpoint.asynchronous
        if wanted or (wanted is None and self.strategy.device.type == "cuda"):
            beside = Checkpoints(
                self.checkpoints.folder, keep=recipe.checkpoint.keep, ranks=self.ranks.beside()
            )
            local = recipe.checkpoint.local
            self._saver = Saver(beside, local=Path(local) if local else None)
        steps = parse_steps(recipe.log.profile) if recipe.log.profile else None
        self._trace = StepTrace(steps, folder, rank=self.ranks.rank)

    def _likely_epoch(self) -> int:
        """The epoch that the newest checkpoint is in."""
        for tag in self.checkpoints.tags()[:1]:
            with contextlib.suppress(OSError, ValueError, LookupError):
                state = json.loads((tag / STATE).read_text(encoding="utf-8"))
                return int(state["progress"]["epoch"])
        return 0

    def _identity(self) -> dict[str, Any]:
        songs = len(self.sampler.numbers)
        return identity(self.recipe, self.task, songs=songs, digest=self.shards.digest)

    def run(self, *, resume: str = "auto") -> dict[str, Any]:
        """Trains to recipe.steps.

        Args:
            resume: "auto" continues from the newest good checkpoint, "never" begins anew, a tag or
                step continues from that one.

        Returns:
            The summary that `mudit train --json` prints.

        Raises:
            DivergedError: after too many steps of NaN or infinity.
            InterruptedRun: when a signal stopped the run; its state is saved.
            OutputError: when a checkpoint could not be written; older ones are intact.
            InputError: for a checkpoint that does not fit.
        """
        with contextlib.ExitStack() as held:
            self._lock = self._locked(held)
            held.enter_context(self._watch)
            held.callback(self._trace.close)
            if self._saver is not None:
                held.callback(self._saver.close)
            held.callback(self._listener.close)
            try:
                return self._run(resume)
            except RuntimeError as error:
                if self.ranks.world == 1 or (reason := lost_peer(error)) is None:
                    raise
                raise LostPeerError(
                    f"rank {self.ranks.rank} of {self.ranks.world} lost another rank in step "
                    f"{self.progress.step} ({reason}): it has died, or hung for longer than "
                    f"parallel.timeout_seconds={self.recipe.parallel.timeout_seconds:g}. Look for "
                    f"the first error among the ranks' logs; the same command resumes"
                ) from error

    def _locked(self, held: contextlib.ExitStack) -> RunLock | None:
        """Takes the folder for this run, by its first rank; the others learn whether it has it."""
        lock, refusal = RunLock(self.folder), None
        if self.ranks.main:
            try:
                held.enter_context(lock)
            except MuditError as error:
                refusal = error
        told = self.ranks.first(str(refusal) if refusal is not None else None)
        if refusal is not None:
            raise refusal
        if told is not None:
            raise InputError(told)
        return lock if self.ranks.main else None

    def _run(self, resume: str) -> dict[str, Any]:
        self._at("reading a checkpoint")
        tag = self._resume(resume)
        if tag is None:
            self.task.warm_start()
        if self.ranks.main:
            efficiency = self.sampler.plan(self.progress.epoch).efficiency
            extra = {
                "resumed_from": tag.name if tag else None,
                "songs": len(self.sampler.numbers),
                "device": str(self.strategy.device),
                "stated_peak_flops": self.meter.peak,
                "ranks": self.ranks.world,
                "packing_efficiency": round(efficiency, 4),
            }
            self.task.save_config(self.folder)
            describe_run(self.folder, self.recipe, extra)
        self._at("making the engine")
        self.strategy.describe(self.folder)
        start_step, started = self.progress.step, time.monotonic()
        metrics: dict[str, Any] = {}
        opened = open_log(
            self.folder,
            self.recipe,
            start_step=start_step,
            quiet=self.quiet,
            main=self.ranks.main,
        )
        with opened as runlog, self._stop.noting():
            if start_step == 0 and tag is None:
                if watches(self.recipe.guard):  # nothing that was learned may be best
                    self._validated(runlog)
                # so that any interruption resumes, and the start can be looked at
                self._save(runlog, wait=True)
            waiting = self._before_batch()
            for work in self._works():
                waited = time.monotonic() - waiting
                metrics = self._step(work) | {"wait_s": round(waited, 4)}
                self._pace.step(waited, metrics["step_s"], work.seconds)
                metrics |= self._pace.compare() | self._memory(metrics["step"])
                runlog.step(metrics)
                runlog.ranks(metrics["step"], self._pace.table)
                self._trace.after(metrics["step"])
                if self.recipe.log.songs:
                    runlog.songs(metrics["step"], self.guard.everyone(self._ids(work)))
                self._after_step(runlog)
                self._listen(runlog)
                if self.progress.stopped:
                    break
                waiting = self._before_batch()
            # the others wait at the end: not for longer than a collective may take
            timeout = self.recipe.parallel.timeout_seconds
            self._listen(runlog, wait=min(self.recipe.songs.wait, timeout / 2))
        seconds, run = time.monotonic() - started, self.progress.step - start_step
        picture = plot_curves(self.folder) if self.recipe.log.curve and self.ranks.main else None
        summary = {
            "recipe": self.recipe.name,
            "steps": self.progress.step,
            "steps_run": run,
            "epochs": self.progress.epoch,
            "songs_seen": self.progress.songs,
            "seconds": round(seconds, 2),
            "steps_per_s": round(run / seconds, 4) if seconds else None,
            "skipped_steps": self.progress.skipped,
            **({"held_out": self.progress.held_out} if self.progress.held_out else {}),
            "final": {name: value for name, value in metrics.items() if name != "step"},
            "folder": str(self.folder),
            "checkpoint": str(self.checkpoints.tags()[0]) if self.checkpoints.tags() else None,
            "loss_curve": str(picture) if picture else None,
        }
        if self.ranks.main:
            write_json(self.folder / "summary.json", summary)
        return summary

    def _resume(self, resume: str) -> Path | None:
        if resume == "never":
            if self.ranks.first(self.checkpoints.tags()):
                raise InputError(
                    f"'{self.folder}' holds checkpoints of an earlier run: choose another --out, "
                    f"or remove it, or use --resume auto"
                )
            return None
        tag = self.checkpoints.newest_good() if resume == "auto" else self.checkpoints.named(resume)
        if tag is None:
            return None
        state = json.loads((tag / STATE).read_text(encoding="utf-8"))
        check_same_run(tag, self._identity(), state["identity"], part=self.task.part)
        self.progress = Progress(**state["progress"])
        if self.ranks.main:
            tell_schedule(tag, self.recipe, step=self.progress.step)
        self.strategy.load(tag)
        log.info("resumed from %s", tag)
        return tag

    def _works(self) -> Iterator[Work]:
        """Global batches from here to the last step, prepared ahead by threads."""
        remaining = 0 if self.progress.stopped else self.recipe.steps - self.progress.step
        places = itertools.islice(
            self.sampler.walk(self.progress.epoch, self.progress.epoch_step), max(remaining, 0)
        )
        numbered = zip(itertools.count(self.progress.step), places, strict=False)
        data = self.recipe.data
        return prefetch(
            numbered,
            lambda item: self._load(item[0], *item[1]),
            threads=data.loader_threads,
            ahead=data.prefetch,
        )

    def _before_batch(self) -> float:
        self._at("waiting for a batch")
        if self.progress.step < self.recipe.steps:
            self._trace.before(self.progress.step)
        return time.monotonic()

    def _memory(self, step: int) -> dict[str, float]:
        """Memory of this rank by kind, every log.every steps. `rest` is what else the peak held:
        activations, gradients, buckets (on a CPU the interpreter too).
        """
        if (step + 1) % self.recipe.log.every:
            return {}
        kinds = self.strategy.memory()
        kinds["rest"] = max(0, self.meter.memory() - sum(kinds.values()))
        return {f"memory_{kind}_mib": round(size / 2**20, 1) for kind, size in kinds.items()}

    def _load(self, step: int, epoch: int, epoch_step: int) -> Work:
        start = time.monotonic()
        moment = Moment(self.recipe.seed, epoch, step)
        rank, world, shares = self.strategy.rank, self.strategy.world, self.strategy.shares
        packs = self.sampler.batch(epoch, epoch_step)
        if self.task.splits_packs:
            local = [pack[rank::world] for pack in packs]
        else:
            local = self.sampler.local(epoch, epoch_step, rank=rank, world=world)
        # a rank without songs of its own runs some at weight 0: collectives of sharded weights need
        # every rank in every pass. Ranks that share songs (sequence parallelism) each count their
        # part of them.
        batches = [
            (self.task.load(songs, moment), 1.0 / shares)
            if len(songs)
            else (self.task.stand_in(self.sampler.numbers, moment), 0.0)
            for songs in local
        ]
        if self.strategy.device.type == "cuda":
            batches = [(replace(b, inputs=pinned(b.inputs)), share) for b, share in batches]
        weight = float(self._weights[np.concatenate(packs)].sum())
        if max(self.ranks.world, world) == 1:
            assert weight == sum(batch.weight for batch, _ in batches), "Task.weights says another"
        songs = sum(len(pack) for pack in packs)
        return Work(epoch, epoch_step, batches, songs, time.monotonic() - start, weight)

    def _step(self, work: Work) -> dict[str, Any]:
        progress, started = self.progress, time.monotonic()
        step = progress.step
        lr = learning_rate(step, self.recipe)
        metrics: dict[str, Any] = {"step": step, "epoch": work.epoch}
        metrics |= {"loss": None, "grad_norm": None, "lr": lr}
        bad: list[str] = []
        heard: list[float] = []
        flops = 0.0
        self._set_training(True)
        for phase in self.task.active(step):
            found, ids, host = self._phase(phase, work, lr)
            heard = heard or host
            flops += self._counted.get(phase, 0.0) * work.weight
            metrics |= found
            bad += ids
        tokens, audio, known, failed, *signals = heard
        self._save_failed = bool(failed)
        self._stop.hear(signals)
        progress.step = step + 1
        progress.epoch, progress.epoch_step = work.epoch, work.epoch_step + 1
        progress.songs += work.songs
        progress.weight += work.weight
        if bad:
            self.guard.count_bad(progress, step, bad)
        seconds = time.monotonic() - started
        progress.seconds += seconds
        metrics |= {
            "songs": work.songs,
            "weight": work.weight,
            "step_s": round(seconds, 4),
            "load_s": round(work.seconds, 4),
        }
        return metrics | self.meter.step(
            tokens=tokens, seconds=audio, flops=flops + known, step_seconds=seconds
        )

    def _told(self, work: Work) -> list[float]:
        """What this rank tells the others with its losses: rows, seconds of audio and FLOPs of its
        micro-batches, whether its last save failed, and which signal it got.
        """
        figures = [
            [share * value for value in (batch.tokens, batch.seconds, batch.flops or 0.0)]
            for batch, share in work.batches
        ]
        return [
            *(sum(column) for column in zip(*figures, strict=True)),
            float(self._saver is not None and self._saver.failed),
            *self._stop.told(),
        ]

    def _phase(
        self, phase: str, work: Work, lr: float
    ) -> tuple[dict[str, Any], list[str], list[float]]:
        """Forward, backward and step of a phase: (metrics, songs of a bad step, what the ranks told
        each other). The figures are read once, when the gradient norm is.
        """
        progress, guard = self.progress, self.guard
        prefix = "" if phase == self.task.phases[0] else f"{phase}_"
        figures = self._accumulate(phase, work)
        limit = guard.limit(progress, progress.log_norm.get(phase)) if guard.skips else math.inf
        outcome: dict[str, Any] = {"bad": [], "norm": None, "logs": {}}

        def judge(norm: float, values: list[float]) -> bool:
            read = figures.unpack(values)
            loss = read.loss / work.weight
            outcome.update(host=read.host, loss=loss)
            if not math.isfinite(loss):  # on every rank alike
                culprits = [
                    i
                    for (batch, _), own in zip(work.batches, read.own, strict=True)
                    if not math.isfinite(own)
                    for i in batch.ids
                ]
                named = guard.everyone(culprits) or guard.everyone(self._ids(work))
                outcome.update(loss=None, bad=named)
                return False
            if guard.spiked(progress, phase, "loss", loss, self._ids(work)) and guard.skips:
                outcome["bad"] = guard.everyone(self._ids(work))
                return False
            outcome["logs"] = read.logs
            if not math.isfinite(norm):
                outcome["bad"] = guard.everyone(self._ids(work))
                return False
            outcome["norm"] = norm
            return norm <= limit

        tensor = figures.pack(self._told(work), self.strategy)
        self._at(f"{phase}: gradient norm and optimiser")
        self.strategy.step(phase, lr=lr, figures=tensor, judge=judge)
        norm = outcome["norm"]
        if norm is not None:
            spiked = guard.spiked(progress, phase, "gradient norm", norm, self._ids(work))
            if spiked and guard.skips:
                outcome["bad"] = guard.everyone(self._ids(work))
        metrics = {f"{prefix}loss": outcome["loss"], f"{prefix}grad_norm": norm} | {
            f"{prefix}{name}": value for name, value in outcome["logs"].items()
        }
        return metrics, outcome["bad"], outcome["host"]

    def _accumulate(self, phase: str, work: Work) -> Figures:
        """Forward and backward of all micro-batches."""
        self.strategy.begin(phase, len(work.batches))
        figures = Figures()
        for number, (batch, share) in enumerate(work.batches):
            place = number * self.strategy.world + self.strategy.rank
            torch.manual_seed(seed64(self.recipe.seed, "torch", self.progress.step, place))
            self._at(f"{phase}: forward of micro-batch {number}")
            with self._counting(phase, batch), self._pace.forward(batch.tokens):
                loss_sum, logs = self.strategy.forward(
                    phase, to_device(batch.inputs, self.strategy.device)
                )
            self._at(f"{phase}: backward of micro-batch {number}")
            self.strategy.backward(phase, loss_sum * (share / work.weight))
            figures.add(loss_sum, logs, share=share)
        return figures

    def _at(self, what: str) -> None:
        self._watch.at(self.progress.step, what)

    @contextlib.contextmanager
    def _counting(self, phase: str, batch: Batch) -> Iterator[None]:
        """The first forward of a phase whose batches do not know their FLOPs is counted, as FLOPs
        per weight.
        """
        if batch.flops is not None or phase in self._counted or self.meter.peak is None:
            yield
            return
        with counting() as counter:
            yield
        self._counted[phase] = counter.get_total_flops() / batch.weight

    def _after_step(self, runlog: RunLog) -> None:
        step, recipe = self.progress.step, self.recipe
        last = step == recipe.steps
        if self._save_failed and self._saver is not None:
            self._saver.wait()  # and raises, on all ranks
        stop = self._stop.signal
        if self.ranks.world > 1:
            # one rank's signal stops all of them after the same step: they heard of it with the
            # step's figures, and ask once more when no step follows
            stop = (self.ranks.highest(stop or 0) or None) if last else self._stop.heard
        every = recipe.log.validate_every
        if every and (step % every == 0 or last):
            self._validated(runlog)
            last = last or bool(self.progress.stopped)
        if last:
            self._at("the end of the task")
            with self.strategy.averaged(), self.strategy.whole():
                self.task.finish()
        if last or step % recipe.checkpoint.every == 0 or stop is not None:
            self._save(runlog, wait=last or stop is not None)
        if stop is not None:  # on the last step too: whatever was to follow must not begin
            raise InterruptedRun(
                f"stopped by {signal.Signals(stop).name} after step {step} of {recipe.steps}; "
                f"saved as {self.checkpoints.tags()[0].name} in '{self.folder}': the same command "
                "resumes",
                signal_number=stop,
            )

    def _validated(self, runlog: RunLog) -> None:
        figures = self.validate()
        runlog.validation(self.progress.step, figures)
        observe(self.progress, self.recipe.guard, figures, tell=self.ranks.main)

    def validate(self) -> dict[str, float]:
        """Loss of the averaged weights on the validation split (validation.py)."""
        self._set_training(False)
        self._at("validation")
        return self._validation.losses()

    def _save(self, runlog: RunLog, *, wait: bool) -> None:
        """Saves the state as it is now; `wait` returns when it is on the disk."""
        self._at("saving a checkpoint")
        self._saved = self.progress.step
        texts = {}
        if self.ranks.main:
            state = {"progress": asdict(self.progress), "identity": self._identity()}
            texts = {
                STATE: json.dumps(state, indent=1),
                RECIPE: json.dumps(self.recipe.resolved(), indent=1),
                CONFIG: self.task.config.model_dump_json(indent=1),
            }
        if self._saver is None:
            runlog.flush()
            self._check_lock(self.ranks)
            with self.checkpoints.saving(self.progress.step) as folder:
                self.strategy.save(folder)
                for name, text in texts.items():
                    (folder / name).write_text(text, encoding="utf-8")
            return
        saver = self._saver
        saver.wait()  # its buffers are those of the save before

        def first() -> None:
            runlog.flush()
            self._check_lock(saver.checkpoints.ranks)

        files = saver.copies.take(self.strategy.state_files())
        saver.begin(self.progress.step, files, texts, first=first)
        if wait:
            saver.wait()

    def _listen(self, runlog: RunLog, *, wait: float = 0.0) -> None:
        """Logs songs that have been made, and has the next ones made of a checkpoint that has come
        to the disk.
        """
        if not self.ranks.main:
            return
        if self._saved is not None and (self._saver is None or not self._saver.busy):
            self._listener.saved(self._saved)
            self._saved = None
        for step, files in self._listener.made(wait=wait):
            runlog.made(step, files)

    def _check_lock(self, ranks: Ranks) -> None:
        """Raises MuditError on all ranks when the run's folder was taken over."""
        lost = self._lock.lost() if self._lock is not None else None
        if (told := ranks.first(lost)) is not None:
            raise MuditError(told)

    def _set_training(self, training: bool) -> None:
        for module in self.task.modules.values():
            module.train(training)

    def _ids(self, work: Work) -> list[str]:
        return [i for batch, share in work.batches if share for i in batch.ids]
