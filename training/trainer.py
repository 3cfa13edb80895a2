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
from types import FrameType
from typing import Any

import torch

from mudit_engine.errors import InputError, MuditError
from mudit_engine.files import write_json
from mudit_engine.training.checkpoints.checkpoint import Checkpoints
from mudit_engine.training.dataset.batching import EpochPlan, Sampler, plan_packs, prefetch
from mudit_engine.training.guard import Guard, Progress
from mudit_engine.training.held_out import observe, watches
from mudit_engine.training.listening import Listener, wanted_songs
from mudit_engine.training.parallel.choose import make_strategy
from mudit_engine.training.parallel.strategy import learning_rate
from mudit_engine.training.ranks import lost_peer
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.resume import RECIPE, check_same_run, identity, tell_schedule
from mudit_engine.training.run_lock import RunLock
from mudit_engine.training.runlog import RunLog, describe_run, open_log, plot_curves
from mudit_engine.training.seeding import seed64
from mudit_engine.training.step_trace import StepTrace, parse_steps
from mudit_engine.training.stragglers import Pace
from mudit_engine.training.tasks.choose import make_task, open_data
from mudit_engine.training.tasks.task import Batch, Moment, Task, average, pinned, read, to_device
from mudit_engine.training.throughput import Meter, counting
from mudit_engine.training.watch import SHARE, Watch, record_flights

log = logging.getLogger(__name__)

STATE, CONFIG = "trainer.json", "config.json"


class LostPeerError(MuditError):
    """Another rank is gone: what this one says of it is not where the fault is."""


class InterruptedRun(MuditError):
    """A signal asked the run to stop; its state was saved. `exit_code` is 130 for Ctrl-C, 128 +
    signal for others.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Work:
    """A global batch's share of this rank, read and ready."""

    epoch: int
    epoch_step: int
    # with weight 0 where a rank has no song left and only takes part in the collectives
    batches: list[tuple[Batch, float]]
    songs: int
    seconds: float


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
        costs = self.task.costs()
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
        self.meter = Meter(recipe, self.strategy.device, world=self.ranks.world)
        self._counted: dict[str, float] = {}
        self._lock: RunLock | None = None
        self._pace = Pace(self.ranks, self.strategy.device)
        self._signal: int | None = None
        steps = parse_steps(recipe.log.profile) if recipe.log.profile else None
        limit = SHARE * recipe.parallel.timeout_seconds
        self._watch = Watch(self.ranks, folder, limit=limit)
        if recipe.songs.every:
            wanted_songs(recipe.songs)  # every rank says that it cannot be
        self._listener = Listener(recipe, folder)
        self._saved: int | None = None  # the step of a checkpoint that no songs were asked of yet
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
            extra: dict[str, Any] = {
                "resumed_from": tag.name if tag else None,
                "songs": len(self.sampler.numbers),
            }
            extra |= {"device": str(self.strategy.device), "stated_peak_flops": self.meter.peak}
            extra |= {
                "ranks": self.ranks.world,
                "packing_efficiency": round(self.sampler.plan(self.progress.epoch).efficiency, 4),
            }
            self.task.save_config(self.folder)
            describe_run(self.folder, self.recipe, extra)
        self._at("making the engine")
        self.strategy.describe(self.folder)
        start_step, started = self.progress.step, time.monotonic()
        metrics: dict[str, Any] = {}
        with (
            open_log(
                self.folder,
                self.recipe,
                start_step=start_step,
                quiet=self.quiet,
                main=self.ranks.main,
            ) as runlog,
            self._signals(),
        ):
            if start_step == 0 and tag is None:
                if watches(self.recipe.guard):  # nothing that was learned may be best
                    self._validated(runlog)
                # so that any interruption resumes, and the start can be looked at
                self._save(runlog)
            waiting = self._before_batch()
            for work in self._works():
                waited = time.monotonic() - waiting
                metrics = self._step(work) | {"wait_s": round(waited, 4)}
                self._pace.step(waited)
                metrics |= self._pace.compare()
                runlog.step(metrics)
                self._trace.after(metrics["step"])
                if self.recipe.log.songs:
                    runlog.songs(metrics["step"], self.guard.everyone(self._ids(work)))
                self._after_step(runlog)
                self._listen(runlog)
                if self.progress.stopped:
                    break
                waiting = self._before_batch()
            # the others wait at the end: not for longer than a collective may take
            self._listen(
                runlog, wait=min(self.recipe.songs.wait, self.recipe.parallel.timeout_seconds / 2)
            )
        seconds = time.monotonic() - started
        picture = plot_curves(self.folder) if self.recipe.log.curve and self.ranks.main else None
        summary = {
            "recipe": self.recipe.name,
            "steps": self.progress.step,
            "steps_run": self.progress.step - start_step,
            "epochs": self.progress.epoch,
            "songs_seen": self.progress.songs,
            "seconds": round(seconds, 2),
            "steps_per_s": round((self.progress.step - start_step) / seconds, 4)
            if seconds
            else None,
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
            batches = [
                (replace(batch, inputs=pinned(batch.inputs)), share) for batch, share in batches
            ]
        return Work(
            epoch, epoch_step, batches, sum(len(pack) for pack in packs), time.monotonic() - start
        )

    def _step(self, work: Work) -> dict[str, Any]:
        progress, guard, started = self.progress, self.guard, time.monotonic()
        step = progress.step
        # one sum over the ranks: the weight of the global batch, and what the figures are made of
        figures = [
            [batch.weight, batch.tokens, batch.seconds, batch.flops or 0.0]
            for batch, _ in work.batches
        ]
        shares = torch.tensor([share for _, share in work.batches], dtype=torch.float64)
        weight, tokens, audio, flops = self.strategy.sum(
            shares @ torch.tensor(figures, dtype=torch.float64)
        ).tolist()
        lr = learning_rate(step, self.recipe)
        metrics: dict[str, Any] = {
            "step": step,
            "epoch": work.epoch,
            "loss": None,
            "grad_norm": None,
            "lr": lr,
        }
        bad: list[str] = []
        self._set_training(True)
        for phase in self.task.active(step):
            loss, logs, culprits = self._accumulate(phase, work, weight)
            flops += self._counted.get(phase, 0.0) * weight
            prefix = "" if phase == self.task.phases[0] else f"{phase}_"
            if not math.isfinite(loss):  # on every rank alike
                self.strategy.discard(phase)
                bad += guard.everyone(culprits) or guard.everyone(self._ids(work))
                metrics |= {f"{prefix}loss": None, f"{prefix}grad_norm": None}
                continue
            if guard.spiked(progress, phase, "loss", loss, self._ids(work)) and guard.skips:
                self.strategy.discard(phase)
                bad += guard.everyone(self._ids(work))
                metrics |= {f"{prefix}loss": loss, f"{prefix}grad_norm": None}
                continue
            known = progress.log_norm.get(phase)
            limit = guard.limit(progress, known) if guard.skips else math.inf
            self._at(f"{phase}: gradient norm and optimiser")
            norm: float | None = self.strategy.step(phase, lr=lr, limit=limit)
            if norm is None or not math.isfinite(norm):
                bad += guard.everyone(self._ids(work))
                norm = None
            elif (
                guard.spiked(progress, phase, "gradient norm", norm, self._ids(work))
                and guard.skips
            ):
                bad += guard.everyone(self._ids(work))
            metrics |= {f"{prefix}loss": loss, f"{prefix}grad_norm": norm} | {
                f"{prefix}{name}": value for name, value in logs.items()
            }
        progress.step, progress.epoch, progress.epoch_step = (
            step + 1,
            work.epoch,
            work.epoch_step + 1,
        )
        progress.songs += work.songs
        progress.weight += weight
        if bad:
            guard.count_bad(progress, step, bad)
        seconds = time.monotonic() - started
        progress.seconds += seconds
        metrics |= {
            "songs": work.songs,
            "weight": weight,
            "step_s": round(seconds, 4),
            "load_s": round(work.seconds, 4),
        }
        return metrics | self.meter.step(
            tokens=tokens, seconds=audio, flops=flops, step_seconds=seconds
        )

    def _accumulate(
        self, phase: str, work: Work, weight: float
    ) -> tuple[float, dict[str, float], list[str]]:
        """Forward and backward of all micro-batches: (loss, averages, ids of songs in micro-batches
        whose loss is not finite).
        """
        self.strategy.begin(phase, len(work.batches))
        sums: dict[str, list[Any]] = {}  # tensors on the device, or host numbers
        losses = []
        for number, (batch, share) in enumerate(work.batches):
            torch.manual_seed(
                seed64(
                    self.recipe.seed,
                    "torch",
                    self.progress.step,
                    number * self.strategy.world + self.strategy.rank,
                )
            )
            self._at(f"{phase}: forward of micro-batch {number}")
            with self._counting(phase, batch), self._pace.forward(batch.tokens):
                loss_sum, logs = self.strategy.forward(
                    phase, to_device(batch.inputs, self.strategy.device)
                )
            self._at(f"{phase}: backward of micro-batch {number}")
            self.strategy.backward(phase, loss_sum * (share / weight))
            losses.append(loss_sum.detach() * share)
            for name, (value, amount) in logs.items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0], entry[1] = entry[0] + value.detach() * share, entry[1] + amount * share
        names = sorted(sums)
        own, logged = read([*losses, *(value for name in names for value in sums[name])]).split(
            [len(losses), 2 * len(names)]
        )
        totals = self.strategy.sum(torch.cat([own.sum()[None], logged])).tolist()
        culprits = [
            i
            for (batch, _), value in zip(work.batches, own.tolist(), strict=True)
            if not math.isfinite(value)
            for i in batch.ids
        ]
        pairs = dict(zip(names, zip(totals[1::2], totals[2::2], strict=True), strict=True))
        return totals[0] / weight, average(pairs), culprits

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
        # one rank's signal stops all of them after the same step
        self._signal = self.ranks.highest(self._signal or 0) or None
        last = step == recipe.steps
        every = recipe.log.validate_every
        if every and (step % every == 0 or last):
            self._validated(runlog)
            last = last or bool(self.progress.stopped)
        if last:
            self._at("the end of the task")
            with self.strategy.averaged(), self.strategy.whole():
                self.task.finish()
        if last or step % recipe.checkpoint.every == 0 or self._signal is not None:
            self._save(runlog)
        if self._signal is not None:  # on the last step too: whatever was to follow must not begin
            name = signal.Signals(self._signal).name
            raise InterruptedRun(
                f"stopped by {name} after step {step} of {recipe.steps}; saved as "
                f"{self.checkpoints.tags()[0].name} in '{self.folder}': "
                "the same command resumes",
                signal_number=self._signal,
            )

    def _validated(self, runlog: RunLog) -> None:
        figures = self.validate()
        runlog.validation(self.progress.step, figures)
        observe(self.progress, self.recipe.guard, figures, tell=self.ranks.main)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss of the averaged weights on fixed batches of the validation split (fixed noise and
        noise levels, no dropped conditions).
        """
        split = self.recipe.log.validation_split
        numbers = self.shards.numbers(split)
        if not len(numbers):
            raise InputError(
                f"log.validate_every is set, but '{self.shards.folder}' holds no song of the split "
                f"'{split}': encode some, or set it to 0"
            )
        plan = plan_packs(numbers, self.task.costs(), self.recipe.data.pack_size)
        moment = Moment(self.recipe.seed, 0, 0, training=False)
        sums: dict[str, tuple[Any, Any]] = {}
        self._set_training(False)
        with self.strategy.averaged():
            for batch, share in self._validation_batches(plan, moment):
                self._at("validation")
                loss, logs = self.strategy.forward(
                    self.task.phases[0], to_device(batch.inputs, self.strategy.device)
                )
                for name, (value, amount) in {**logs, "loss": (loss, batch.weight)}.items():
                    total, weight = sums.get(name, (0.0, 0.0))
                    sums[name] = (total + value.double() * share, weight + amount * share)
        names = sorted(sums)
        totals = (
            self.ranks.sum(read([value for name in names for value in sums[name]]))
            .view(-1, 2)
            .tolist()
        )
        return average(
            {name: (total, weight) for name, (total, weight) in zip(names, totals, strict=True)}
        )

    def _validation_batches(self, plan: EpochPlan, moment: Moment) -> Iterator[tuple[Batch, float]]:
        """This rank's part of the validation packs, with 0 where it keeps the others company."""
        rank, world, share = self.strategy.rank, self.strategy.world, 1.0 / self.strategy.shares
        packs = [
            plan.pack(number) for number in range(min(len(plan), self.recipe.log.validation_packs))
        ]
        if self.task.splits_packs:
            local = [pack[rank::world] for pack in packs]
        else:
            none = packs[0][:0]
            local = [
                packs[n] if n < len(packs) else none
                for n in range(rank, -(-len(packs) // world) * world, world)
            ]
        for songs in local:
            yield (
                (self.task.load(songs, moment), share)
                if len(songs)
                else (self.task.stand_in(packs[0], moment), 0.0)
            )

    def _save(self, runlog: RunLog) -> None:
        self._at("saving a checkpoint")
        lost = self._lock.lost() if self._lock is not None else None
        if (told := self.ranks.first(lost)) is not None:
            raise MuditError(told)
        runlog.flush()
        self._saved = self.progress.step
        with self.checkpoints.saving(self.progress.step) as folder:
            self.strategy.save(folder)
            if not self.ranks.main:
                return
            state = {"progress": asdict(self.progress), "identity": self._identity()}
            (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            (folder / RECIPE).write_text(
                json.dumps(self.recipe.resolved(), indent=1), encoding="utf-8"
            )
            (folder / CONFIG).write_text(
                self.task.config.model_dump_json(indent=1), encoding="utf-8"
            )

    def _listen(self, runlog: RunLog, *, wait: float = 0.0) -> None:
        """Logs songs that have been made, and has the next ones made of the newest checkpoint."""
        if not self.ranks.main:
            return
        if self._saved is not None:
            self._listener.saved(self._saved)
            self._saved = None
        for step, files in self._listener.made(wait=wait):
            runlog.made(step, files)

    def _set_training(self, training: bool) -> None:
        for module in self.task.modules.values():
            module.train(training)

    def _ids(self, work: Work) -> list[str]:
        return [i for batch, share in work.batches if share for i in batch.ids]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGUSR1 save after the step that runs and stop; a second SIGINT stops
        at once.
        """

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self._signal == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = number
            log.warning(
                "%s: saving after this step%s",
                signal.Signals(number).name,
                ", again to stop at once" if number == signal.SIGINT else "",
            )

        before = {}
        # not the main thread (a notebook's worker, a test): no handlers then
        with contextlib.suppress(ValueError):
            before = {
                number: signal.signal(number, note)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
            }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
