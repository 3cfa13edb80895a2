"""Makes a corpus: scores, vocals, band, mix and labels, chunk by chunk, in any number of processes.

A chunk is a few consecutive songs, rendered by one fluidsynth process. What a song sounds like
depends on (seed, index, sample rate, soundfont, chunk size, longest) and on nothing else; finished
songs are skipped, each song appears at once by a rename.

    make_corpus(Request(out=Path("corpus"), songs=500, seed=0), workers=2, on_song=print)

A corpus may be of long songs that nothing is trained on alone, for `mudit eval whole`:

    make_corpus(picked(Request(out=Path("long"), songs=96, held_out_only=True, shortest=60)))
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mudit_engine import availability
from mudit_engine.errors import InputError, OutputError
from mudit_engine.files import write_json
from mudit_engine.training.corpus import labels
from mudit_engine.training.corpus.form import MAX_SECONDS
from mudit_engine.training.corpus.labels import STEMS, Song

_CHUNK_DONE = "done"
# What writes the songs: 2 is the planner of requests. Songs of two composers share no corpus.
COMPOSER = 3
SHORTEST_LIMIT = 30.0  # seconds: every tempo has forms below it
SAMPLE_RATES = (16000, 22050, 24000, 32000, 44100, 48000)
# of settings that corpora made without them lack
UNPICKED = {"held_out_only": False, "shortest": 0.0}
MOST_TRIED = 400  # songs that are composed for one that is picked, before it is given up


@dataclass(frozen=True, slots=True)
class Request:
    """What to make. `soundfont` None means the first known one; `cache` None means
    voice.cache_folder().

    No song is longer than `longest` seconds. `chunk` songs share a fluidsynth process. It is part
    of what a song is: the synthesiser places notes on blocks of 64 samples, counted from the start
    of the chunk.

    With `held_out_only` or `shortest` the corpus holds the first songs of the seed that are held
    out of training, or last as many seconds: `indices`, which `picked` finds.
    """

    out: Path
    songs: int
    seed: int = 0
    sample_rate: int = 22050
    stems: bool = True
    soundfont: Path | None = None
    cache: Path | None = None
    chunk: int = 8
    longest: float = MAX_SECONDS
    held_out_only: bool = False
    shortest: float = 0.0
    indices: tuple[int, ...] | None = None

    @property
    def numbers(self) -> Sequence[int]:
        """Of the songs, each its place in the seed."""
        return range(self.songs) if self.indices is None else self.indices

    def check(self) -> None:
        """Raises InputError for numbers that cannot be used, MissingError for absent programs,
        packages or soundfont.
        """
        from mudit_engine.training.corpus.band import find_soundfont

        if self.songs < 1:
            raise InputError(f"--songs {self.songs}: at least one song is needed")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: seeds are 0 or more")
        check_sample_rate(self.sample_rate)
        if not SHORTEST_LIMIT <= self.longest <= MAX_SECONDS:
            raise InputError(
                f"--longest {self.longest:g}: songs of the corpus can be limited to "
                f"{SHORTEST_LIMIT:g} to {MAX_SECONDS:g} s"
            )
        if not 0 <= self.shortest < self.longest:
            raise InputError(
                f"--shortest {self.shortest:g}: 0 s or more, and less than --longest "
                f"{self.longest:g}"
            )
        for module in ("soundfile", "scipy", "mido", "pyworld"):
            availability.require(module, "making a corpus")
        for tool in ("espeak-ng", "fluidsynth"):
            availability.require_tool(tool, "making a corpus")
        find_soundfont(self.soundfont)


def check_sample_rate(rate: int) -> None:
    """Raises InputError for a rate that is not in SAMPLE_RATES."""
    if rate not in SAMPLE_RATES:
        raise InputError(f"--sample-rate {rate}: choose one of {', '.join(map(str, SAMPLE_RATES))}")


def song_folder(out: Path, index: int) -> Path:
    return out / "songs" / f"{index:06d}"


def missing_songs(request: Request) -> list[int]:
    """Indices that are not finished yet."""
    return [
        index
        for index in request.numbers
        if not (song_folder(request.out, index) / "song.json").exists()
    ]


def picked(request: Request, *, on_song: Callable[[int], None] = lambda found: None) -> Request:
    """The request with the numbers of its songs. Songs are composed, not rendered, until enough are
    found, and their numbers kept beside the corpus. `on_song(how many there are)` is called after
    each. Raises InputError where songs like these are too rare.
    """
    if not (request.held_out_only or request.shortest):
        return request
    from mudit_engine.training.corpus.compose import compose

    path = request.out / "numbers.json"
    _write_manifest(request)  # numbers of other settings are not read
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found, number = list(kept.get("found", [])), int(kept.get("next", 0))
    while len(found) < request.songs:
        if number >= MOST_TRIED * request.songs:
            raise InputError(
                f"{len(found)} of {request.songs} songs were found among the first {number:,} of "
                f"seed {request.seed}: lower --shortest or raise --longest"
            )
        song = compose(
            seed=request.seed,
            index=number,
            sample_rate=request.sample_rate,
            longest=request.longest,
        ).song
        if song.seconds >= request.shortest and (song.held_out or not request.held_out_only):
            found.append(number)
            on_song(len(found))
        number += 1
        if len(found) == request.songs or number % 100 == 0:
            write_json(path, {"found": found, "next": number})
    return dataclasses.replace(request, indices=tuple(found[: request.songs]))


def _remove_unfinished(request: Request, process: str) -> None:
    """Deletes half-written songs of a process id ('*': of all)."""
    for stray in (request.out / "songs").glob(f".*.{process}.part"):
        shutil.rmtree(stray, ignore_errors=True)


def make_corpus(
    request: Request,
    *,
    workers: int = 1,
    on_song: Callable[[int, float], None] = lambda index, seconds: None,
) -> int:
    """Makes what is missing and returns how many songs that was. `on_song(index, seconds)` is
    called after each, in any order. A request that picks songs has been through `picked`.

    Raises what Request.check raises, and InputError when `out` holds a corpus made otherwise.
    KeyboardInterrupt passes through after the workers have ended; finished songs stay.
    """
    request.check()
    if workers < 1:
        raise InputError(f"--workers {workers}: at least one process is needed")
    _write_manifest(request)
    _remove_unfinished(request, "*")
    missing = set(missing_songs(request))
    chunks = sorted(
        {place // request.chunk for place, n in enumerate(request.numbers) if n in missing}
    )
    done = 0
    with contextlib.closing(_run(request, chunks, min(workers, max(1, len(chunks))))) as finished:
        for index, seconds in finished:
            done += 1
            on_song(index, seconds)
    return done


def _run(request: Request, chunks: list[int], workers: int) -> Generator[tuple[int, float]]:
    if workers <= 1:
        for chunk in chunks:
            yield from make_chunk(request, chunk)
        return
    # a forked child would inherit locks of the parent's threads (progress bar, BLAS)
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    # Ctrl-C reaches every process of the terminal. Workers and what they start inherit the blocked
    # signal: the parent alone decides. The tracker that the first worker would start unblocks it
    # again (CPython 3.11 and 3.12).
    multiprocessing.resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(request, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        yield from _hand_out(chunks, pipes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
            # a signal can hit a worker in the middle of its own cleaning up
            _remove_unfinished(request, str(process.pid))


def _hand_out(chunks: list[int], pipes: list[Connection]) -> Generator[tuple[int, float]]:
    """Gives each free worker the next chunk and passes on what they report, until all is made."""
    waiting = iter(chunks)
    busy = list(pipes)
    for pipe in pipes:
        pipe.send(next(waiting, None))
    while busy:
        for pipe in [
            pipe for pipe in multiprocessing.connection.wait(busy) if isinstance(pipe, Connection)
        ]:
            try:
                message = pipe.recv()
            except EOFError:
                raise OutputError(
                    "a worker process was killed (out of memory?): run the command again with "
                    "fewer --workers"
                ) from None
            if isinstance(message, BaseException):
                raise message
            if message == _CHUNK_DONE:
                pipe.send(next(waiting, None))
            elif message is None:
                busy.remove(pipe)
            else:
                yield message


def _work(request: Request, pipe: Connection) -> None:
    """A worker: chunk numbers in, (index, seconds) of every song out, None for None at the end."""
    # SIGTERM unwinds the stack, so that temporary files go and a running fluidsynth is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        while (chunk := pipe.recv()) is not None:
            for made in make_chunk(request, chunk):
                pipe.send(made)
            pipe.send(_CHUNK_DONE)
        pipe.send(None)
    except (EOFError, BrokenPipeError):
        return  # the parent has gone
    except Exception as error:
        pipe.send(error)


@functools.lru_cache(maxsize=1)
def _singer(cache: Path | None) -> Any:
    from mudit_engine.training.corpus.voice import Singer

    return Singer(cache)


def make_chunk(request: Request, chunk: int) -> Iterator[tuple[int, float]]:
    """Makes the missing songs of one chunk, yielding (index, seconds) after each is on disk."""
    from mudit_engine.training.corpus.band import Segment, find_soundfont, render
    from mudit_engine.training.corpus.compose import compose

    members = request.numbers[chunk * request.chunk : (chunk + 1) * request.chunk]
    missing = set(missing_songs(request))
    wanted = [index for index in members if index in missing]
    if not wanted:
        return
    # Songs before a missing one are rendered again, finished or not: the synthesiser's clock then
    # stands where it stood the first time.
    indices = [index for index in members if index <= wanted[-1]]
    scores = [
        compose(
            seed=request.seed,
            index=index,
            sample_rate=request.sample_rate,
            longest=request.longest,
        )
        for index in indices
    ]
    segments, owners = [], []
    for score in scores:
        for stem in score.song.stems:
            if stem != "vocals":
                segments.append(Segment(score.parts[stem], score.song.seconds, score.kit))
                owners.append((score.song.index, stem))
    band = dict(zip(owners, render(segments, find_soundfont(request.soundfont)), strict=True))
    for score in scores:
        if score.song.index in wanted:
            audio = _song_audio(
                score.song, band, _singer(request.cache) if score.song.voice != "none" else None
            )
            _write_song(request, score.song, audio)
            yield score.song.index, score.song.seconds


def _song_audio(
    song: Song, band: dict[tuple[int, str], np.ndarray], singer: Any
) -> dict[str, np.ndarray]:
    """Mixed stems of a song, float64 at its sample rate."""
    from mudit_engine.training.corpus.band import RENDER_RATE
    from mudit_engine.training.corpus.mixing import mix_stems, resample
    from mudit_engine.training.corpus.styles import STYLE_BOOK
    from mudit_engine.training.corpus.voice import ANALYSIS_RATE

    samples = round(song.seconds * song.sample_rate)
    raw: dict[str, np.ndarray] = {}
    for stem in song.stems:
        if stem == "vocals":
            raw[stem] = resample(singer.sing(song), ANALYSIS_RATE, song.sample_rate, samples)
        else:
            raw[stem] = resample(band[song.index, stem], RENDER_RATE, song.sample_rate, samples)
    return mix_stems(raw, song.sample_rate, gains=STYLE_BOOK[song.style].gains)


def _write_song(request: Request, song: Song, stems: dict[str, np.ndarray]) -> None:
    """The song's folder, whole or not at all."""
    import soundfile

    final = song_folder(request.out, song.index)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        sounds = {"mix": sum(stems.values()), **(stems if request.stems else {})}
        for name, audio in sounds.items():
            soundfile.write(part / f"{name}.flac", audio, song.sample_rate, subtype="PCM_16")
        label = song if request.stems else dataclasses.replace(song, stems=())
        (part / "song.json").write_text(label.to_json(), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)  # a folder without its song.json is not a song
        os.rename(part, final)
    except OSError as error:
        raise OutputError(f"cannot write song {song.id} to '{final}': {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_manifest(request: Request) -> None:
    """corpus.json; checks that an existing one was made with the same settings (the number of songs
    may differ).
    """
    from mudit_engine import __version__
    from mudit_engine.training.corpus.band import find_soundfont

    soundfont = find_soundfont(request.soundfont)
    with soundfont.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = {
        "schema": labels.SCHEMA_VERSION,
        "composer": COMPOSER,
        "seed": request.seed,
        "sample_rate": request.sample_rate,
        "longest": request.longest,
        "held_out_only": request.held_out_only,
        "shortest": request.shortest,
        "stems": list(STEMS) if request.stems else [],
        "chunk": request.chunk,
        "soundfont": soundfont.name,
        "soundfont_sha256": digest,
    }
    path = request.out / "corpus.json"
    if path.exists():
        made = UNPICKED | json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{name} {made.get(name)!r} (asked: {value!r})"
            for name, value in settings.items()
            if made.get(name) != value
        ]
        if differing:
            raise InputError(
                f"'{request.out}' holds a corpus made with other settings: {'; '.join(differing)}. "
                f"Choose another --out"
            )
    settings["mudit_engine"] = __version__
    settings["packages"] = {
        name: availability.version(name) for name in ("numpy", "scipy", "pyworld", "soundfile")
    }
    try:
        (request.out / "songs").mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".json.part")
        aside.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"cannot write to '{request.out}': {error}") from error
