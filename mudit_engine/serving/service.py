"""Songs as jobs: handed to the engine, written to disk, told to whoever listens, kept for a while.

    service = SongService(engine, folder, loop=asyncio.get_running_loop())
    job = service.create(understood, owner="team-a", body={...})
    async for news in service.subscribe(job.id): ...           # progress, pieces of audio, the end
    service.cancel(job.id)

Threads: the batcher's threads call back; what touches the disk or the table goes through one writer
thread, in order; a whole song is brought to its loudness by threads beside it, so that no other
song's audio waits; listeners live in the event loop. A song is told to be completed only when its
file and its row are on the disk.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mudit_engine.errors import BusyError, DeadlineError, InputError, MuditError, StoppedError
from mudit_engine.files import atomic_path, write_json
from mudit_engine.hardware import give_back_memory
from mudit_engine.loudness import TARGET_LUFS
from mudit_engine.reading import Understood
from mudit_engine.request import request_from_fields
from mudit_engine.runtime.saved_song import goes_on
from mudit_engine.runtime.ticket import ENDED, Event, Stage, Ticket
from mudit_engine.serving import edited, job_store
from mudit_engine.serving.access import Keys
from mudit_engine.serving.engine import SongEngine, check_lora
from mudit_engine.serving.job_store import Job, JobStore
from mudit_engine.serving.listening import PATIENCE, Listener, News, Run
from mudit_engine.serving.monitoring import Metrics, emit_spans
from mudit_engine.serving.song_files import PART, SONG, SongWriter, pcm

logger = logging.getLogger(__name__)
SONGS_BETWEEN_TRIMS = 32  # of memory that was freed

PROGRESS, REFERENCE, SIDECAR = "progress.safetensors", "reference.wav", "song.json"


@dataclass(frozen=True)
class Retention:
    """How long finished songs stay: seconds since they ended, and bytes of all of them."""

    seconds: float = 7 * 86400.0
    bytes: int = 20 << 30


class SongService:
    """All jobs of one engine."""

    def __init__(
        self,
        engine: SongEngine,
        folder: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        keys: Keys,
        retention: Retention | None = None,
        most_open: int = 100,
        tracer: Any | None = None,
    ) -> None:
        self.engine, self.folder, self.loop = engine, folder, loop
        self.metrics, self.keys, self.tracer = metrics, keys, tracer
        self.retention, self.most_open = retention or Retention(), most_open
        self.store = JobStore(folder / "jobs.sqlite")
        self.draining = False
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="mudit-disk")
        self._mastering = ThreadPoolExecutor(2, thread_name_prefix="mudit-mastering")
        self._mastered = 0  # songs so far, about: two threads may count one
        engine.batcher.on_step = metrics.step
        engine.batcher.on_save = self._save

    # Taking songs

    def songs_folder(self, id: str) -> Path:
        """Where a job's files lie."""
        return self.folder / "songs" / id

    def create(
        self,
        understood: Understood,
        *,
        owner: str,
        body: dict[str, Any],
        reference: Path | None = None,
        lora: str | None = None,
        edit: str | None = None,
        listener: Listener | None = None,
    ) -> Job:
        """A new job, on the disk before it is answered; `edit` is the id of the song it changes,
        `listener` hears all that happens to it. Raises BusyError when there is no room, or when the
        owner's day is used up, and InputError for an unknown LoRA.
        """
        check_lora(lora, self.engine.loras)
        if self.draining:
            raise BusyError("the service is shutting down: ask another one", retry_after=5.0)
        if (there := len(self._runs)) >= self.most_open:
            raise BusyError(
                f"{there} songs are open already: try again later",
                retry_after=min(max(1.0, self.engine.batcher.backlog()), 600.0),
            )
        self.keys.charge(owner, understood.seconds)
        job = Job(
            id=f"song-{secrets.token_hex(12)}",
            owner=owner,
            request={
                **body,
                "fields": _fields(understood),
                "reference": reference is not None,
                **{name: one for name, one in (("lora", lora), ("edit", edit)) if one is not None},
            },
            steps=len(understood.table.times),
        )
        folder = self.songs_folder(job.id)
        try:
            folder.mkdir(parents=True)
            if reference is not None:
                shutil.move(reference, folder / REFERENCE)
                request = replace(understood.request, reference=folder / REFERENCE)
                understood = replace(understood, request=request)
            understood = edited.adopt(understood, into=folder)
            self.store.add(job)
            self._start(job, understood, saved=None, listener=listener)
        except BaseException:
            self.keys.refund(owner, understood.seconds)
            self.store.delete(job.id)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return job

    def _start(
        self,
        job: Job,
        understood: Understood,
        *,
        saved: bytes | None,
        listener: Listener | None = None,
    ) -> None:
        run = Run(job, understood, self.songs_folder(job.id), step=job.step)
        if listener is not None:
            listener.attach(run)
        deadline = job.request.get("deadline")
        if deadline is not None:
            deadline = max(job.created + deadline - time.time(), 0.0)
        with self._lock:
            self._runs[job.id] = run
        try:
            run.ticket = self.engine.submit(
                understood,
                on_event=lambda event: self._happened(run, event),
                deadline=deadline,
                saved=saved,
                lora=job.request.get("lora"),
            )
        except BaseException:
            with self._lock:
                self._runs.pop(job.id, None)
            raise

    def song_to_edit(self, id: str, *, owner: str) -> Path:
        """The sidecar of a finished song. Raises InputError for any other."""
        job = self.store.get(id)
        if job is None or job.owner != owner:
            raise InputError(f"edit: there is no song '{id[:80]}' of yours here")
        if job.status != job_store.COMPLETED:
            raise InputError(f"edit: song '{id}' is {job.status}, finished ones can be changed")
        return self.songs_folder(id) / SIDECAR

    def read_again(self, job: Job) -> Understood:
        """A job's request as it was understood. Raises MuditError where what it needs is gone."""
        fields, folder = dict(job.request["fields"]), self.songs_folder(job.id)
        for name, file in (("reference", REFERENCE), ("edit", edited.SIDECAR)):
            if job.request.get(name):
                if not (folder / file).is_file():
                    raise MuditError(f"its {name} is gone")
                fields[name] = str(folder / file)
        return self.engine.read(request_from_fields(fields, where="the job"))

    def recover(self) -> dict[str, int]:
        """After a restart: songs that were under way go on from their saved step or start again;
        those that can't end with a reason. Returns how many of each.
        """
        found = {"resumed": 0, "restarted": 0, "failed": 0}
        for job in reversed(self.store.list(statuses=job_store.OPEN)):
            folder = self.songs_folder(job.id)
            with suppress(FileNotFoundError):
                (folder / PART).unlink()
            saved = None
            with suppress(FileNotFoundError):
                saved = (folder / PROGRESS).read_bytes()
            try:
                understood = self.read_again(job)
                if saved is not None and not goes_on(saved, understood.table):
                    saved = None  # this service makes songs in other steps, such as with --fast
                self._start(job, understood, saved=saved)
            except (MuditError, KeyError, OSError) as error:
                reason = f"the service was restarted and the song cannot go on: {error}"
                self.store.update(
                    job.id, status=job_store.FAILED, finished=time.time(), error=reason
                )
                found["failed"] += 1
                continue
            found["resumed" if saved else "restarted"] += 1
        return found

    # What the engine says

    def _happened(self, run: Run, event: Event) -> None:
        """From the batcher's threads: quick, whatever takes time goes to the writer."""
        if event.stage not in ENDED:  # an end is told when it is written
            run.stage = event.stage.value
        if event.stage is Stage.DENOISING:
            run.step = event.step
            if run.job.started is None:
                run.job.started = time.time()
                self._later(self._write_started, run)
        if event.stage is Stage.DECODING and run.denoised is None:
            run.denoised = time.time()
        if event.audio is not None:
            if run.first_audio is None:
                run.first_audio = time.time()
                self.metrics.first_audio.observe(run.first_audio - run.job.created)
            self._later(self._write_audio, run, event.audio)
        elif event.stage is Stage.COMPLETED:
            self._later(self._master, run)
        elif event.stage in ENDED:
            self._later(self._write_end, run, event.stage, event.error)
        else:
            self._tell(run, self._news(run))

    def _later(self, work: Callable[..., None], *arguments: Any) -> Future[None] | None:
        def guarded() -> None:
            try:
                work(*arguments)
            except Exception:
                logger.exception("a job could not be written")

        with suppress(RuntimeError):  # the writer is closed: the process ends
            return self._disk.submit(guarded)
        return None

    def _write_started(self, run: Run) -> None:
        self.store.update(
            run.job.id,
            only=job_store.OPEN,
            status=job_store.IN_PROGRESS,
            started=run.job.started,
            steps=run.job.steps,
        )
        run.job.status = job_store.IN_PROGRESS

    def _write_audio(self, run: Run, piece_cS: Tensor) -> None:
        if run.writer is None:
            vae = self.engine.config.vae
            run.writer = SongWriter(run.folder, rate=vae.sample_rate, channels=vae.channels)
        run.writer.write(piece_cS)
        run.seconds_written = run.writer.samples / run.writer.rate
        self._tell(run, self._news(run, audio=pcm(piece_cS)))

    def _master(self, run: Run) -> None:
        """The whole song at its loudness, by a thread beside; the writer goes on from there."""
        run.decoded = time.time()
        wanted = run.job.request.get("loudness", TARGET_LUFS)

        def finish() -> None:
            stage, error = Stage.COMPLETED, None
            try:
                assert run.writer is not None
                done = run.writer.finish(loudness=wanted)
                self._mastered += 1
                if self._mastered % SONGS_BETWEEN_TRIMS == 0:
                    give_back_memory()
                run.mastering = None if done is None else asdict(done)
            except Exception as fault:
                logger.exception("song %s could not be written", run.job.id)
                stage, error = Stage.FAILED, fault
            if run.cancelled:
                stage = Stage.CANCELLED
                error = StoppedError("the song was cancelled when it was decoded")
            self._later(self._write_end, run, stage, error)

        if wanted is None:
            finish()
        else:
            self._mastering.submit(finish)

    def _write_end(self, run: Run, stage: Stage, error: BaseException | None) -> None:
        job, now = run.job, time.time()
        if self.draining and isinstance(error, StoppedError) and "shut down" in str(error):
            # it stays open in the table, and goes on after the restart
            if run.writer is not None:
                run.writer.drop()
            self._close(run, News(job_store.IN_PROGRESS, stage.value, run.step, job.steps))
            return
        result: dict[str, Any] = {}
        message = None
        status = {
            Stage.COMPLETED: job_store.COMPLETED,
            Stage.CANCELLED: job_store.CANCELLED,
        }.get(stage, job_store.FAILED)
        if status == job_store.COMPLETED:
            try:
                result = self._write_sidecar(run, now)
            except Exception as fault:
                logger.exception("song %s could not be written", job.id)
                status, error = job_store.FAILED, fault
        elif run.writer is not None:
            run.writer.drop()
        if error is not None:
            known = isinstance(error, MuditError)
            message = str(error) if known else "the engine failed on this song; its log says why"
        with suppress(FileNotFoundError):
            (run.folder / PROGRESS).unlink()
        size = sum(file.stat().st_size for file in run.folder.glob("*") if file.is_file())
        job.status, job.finished, job.error, job.result = status, now, message, result
        self.store.update(
            job.id,
            only=job_store.OPEN,
            status=status,
            finished=now,
            step=run.step,
            result=result,
            error=message,
            bytes=size,
        )
        self._count(run, status, now)
        run.stage = stage.value
        self._close(run, self._news(run))

    def _write_sidecar(self, run: Run, now: float) -> dict[str, Any]:
        assert run.writer is not None
        timings = self._parts(run, now)
        spent = {name: end - start for name, (start, end) in timings.items()}
        sidecar = self.engine.info(run.understood, spent, lora=run.job.request.get("lora"))
        latents = run.ticket.latents if run.ticket is not None else None
        kept = edited.keep_latents(run.folder, latents, self.engine.config.vae)
        shown = edited.unnamed(sidecar, run.job.request.get("edit"))
        level = {"mastering": run.mastering}
        write_json(run.folder / SIDECAR, {**shown, **kept, **level, "file": SONG})
        return {
            "seconds": run.writer.samples / run.writer.rate,
            "sample_rate": run.writer.rate,
            "channels": run.writer.channels,
            "seed": run.understood.seed,
            **level,
            "timings_seconds": {name: round(value, 3) for name, value in spent.items()},
            "notes": list(run.understood.notes),
        }

    def _parts(self, run: Run, now: float) -> dict[str, tuple[float, float]]:
        job = run.job
        started, denoised = job.started or now, run.denoised or now
        decoded = run.decoded or now
        return {
            "queue": (job.created, started),
            "denoise": (started, denoised),
            "decode": (denoised, decoded),
            "mastering": (decoded, now),
        }

    def _count(self, run: Run, status: str, now: float) -> None:
        self.metrics.ended.labels(status).inc()
        if status == job_store.COMPLETED:
            self.metrics.song_seconds.observe(now - run.job.created)
            work = now - (run.job.started or run.job.created)
            self.metrics.rtf.observe(work / max(run.understood.seconds, 1e-3))
        elif run.job.started is None:
            self.keys.refund(run.job.owner, run.understood.seconds)
        described = {
            "song.id": run.job.id,
            "song.seconds": run.understood.seconds,
            "status": status,
        }
        emit_spans(self.tracer, "song", described, self._parts(run, now))

    def _save(self, ticket: Ticket, data: bytes) -> None:
        run = next((run for run in list(self._runs.values()) if run.ticket is ticket), None)
        if run is not None:
            self._later(self._write_progress, run, data, ticket.step)

    def _write_progress(self, run: Run, data: bytes, step: int) -> None:
        if run.job.id in self._runs and run.job.status in job_store.OPEN:
            with atomic_path(run.folder / PROGRESS) as aside:
                aside.write_bytes(data)
            self.store.update(run.job.id, only=job_store.OPEN, step=step)

    # Listeners

    def _news(self, run: Run, audio: bytes | None = None) -> News:
        job = run.job
        return News(job.status, run.stage, run.step, job.steps, audio, job.error)

    def _tell(self, run: Run, news: News) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self.loop.call_soon_threadsafe(self._hear, run, news)

    def _hear(self, run: Run, news: News) -> None:
        """In the event loop."""
        if news.audio is not None:
            run.pieces.append(news.audio)
        for queue in run.listeners:
            if news.audio is None and not news.final and queue.qsize() > PATIENCE // 2:
                continue  # a slow listener misses steps, never audio
            queue.put_nowait(news)

    def _close(self, run: Run, news: News) -> None:
        with self._lock:
            self._runs.pop(run.job.id, None)

        def end() -> None:
            run.ended = news
            for queue in run.listeners:
                queue.put_nowait(news)

        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(end)

    def subscribe(self, id: str) -> Listener | None:
        """What happens to a job from now on, and its audio from the beginning; None for a job that
        is not open here. Call it in the event loop.
        """
        run = self._runs.get(id)
        if run is None:
            return None
        listener = Listener(run)
        listener.queue.put_nowait(self._news(run))
        for piece in run.pieces:
            listener.queue.put_nowait(self._news(run, audio=piece))
        run.listeners.append(listener.queue)
        if run.ended is not None:  # its last news is out already
            listener.queue.put_nowait(run.ended)
        return listener

    def view(self, job: Job) -> dict[str, Any]:
        """A job as the API shows it: the table's row, and where an open one is now."""
        run = self._runs.get(job.id)
        more = ((name, job.request.get(name)) for name in ("lora", "edit", "loudness"))
        shown: dict[str, Any] = {
            "id": job.id,
            "object": "song",
            "status": job.status,
            "created_at": job.created,
            "started_at": job.started,
            "finished_at": job.finished,
            "step": job.step,
            "steps": job.steps,
            "progress": 0.0,
            "position": None,
            "estimated_seconds": None,
            "preview_seconds": 0.0,
            "error": job.error,
            "result": job.result or None,
            "request": {
                name: value
                for name, value in (*job.request.get("fields", {}).items(), *more)
                if value is not None and name != "reference"
            },
        }
        if job.status == job_store.COMPLETED:
            shown |= {"progress": 1.0, "step": job.steps}
        elif run is not None:
            done = run.step / max(job.steps, 1)
            decoded = run.seconds_written / max(run.understood.seconds, 1e-3)
            shown |= {
                "status": run.job.status,
                "stage": run.stage,
                "started_at": run.job.started,
                "step": run.step,
                "progress": round(0.9 * done + 0.1 * min(decoded, 1.0), 4),
                "preview_seconds": round(run.seconds_written, 3),
            }
            if run.ticket is not None:
                shown["position"] = self.engine.batcher.ahead(run.ticket)
                shown["estimated_seconds"] = round(self.engine.batcher.estimate(run.ticket), 2)
        return shown

    # Ends

    def cancel(self, id: str) -> bool:
        """Stops a job before its next step. False for one that is not open here."""
        run = self._runs.get(id)
        if run is None or run.ticket is None:
            return False
        run.cancelled = True
        run.ticket.cancel()
        return True

    def forget(self, id: str) -> None:
        """Deletes an ended job and its files."""
        self.store.delete(id)
        shutil.rmtree(self.songs_folder(id), ignore_errors=True)

    def sweep(self) -> int:
        """Deletes ended songs that are too old, the oldest of those that take too much room, and
        folders of no job. Returns how many.
        """
        ended = [job for job in self.store.list() if job.status not in job_store.OPEN]
        now, room, gone = time.time(), self.retention.bytes, 0
        for job in ended:  # the newest first
            room -= job.bytes
            if room < 0 or now - (job.finished or job.created) > self.retention.seconds:
                self.forget(job.id)
                gone += 1
        folder = self.folder / "songs"
        known = {job.id for job in self.store.list()}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in known and now - path.stat().st_mtime > 3600:
                shutil.rmtree(path, ignore_errors=True)
        return gone

    def drain(self, timeout: float) -> bool:
        """Takes no more songs and waits for the open ones. False when some are left."""
        self.draining = True
        finished = self.engine.drain(timeout)
        until = time.monotonic() + 10
        while self._runs and finished and time.monotonic() < until:
            time.sleep(0.02)
        return finished

    def close(self) -> None:
        """Ends the engine, keeping the progress of what is left, and the table."""
        self.draining = True
        self.engine.close()
        # what was decoded is written, mastered, and told
        self._disk.submit(lambda: None).result()
        self._mastering.shutdown(wait=True)
        self._disk.shutdown(wait=True)
        self.store.close()


def _fields(understood: Understood) -> dict[str, Any]:
    """The request's fields but for its files, with the seed that was drawn: a restart makes the
    same song.
    """
    fields = asdict(replace(understood.request, seed=understood.seed))
    return {
        name: value
        for name, value in fields.items()
        if value is not None and name not in ("reference", "edit")
    }


def refused(error: BaseException) -> str:
    """The reason that a refused request is counted under."""
    if isinstance(error, BusyError):
        return "busy"
    return "deadline" if isinstance(error, DeadlineError) else "invalid"
