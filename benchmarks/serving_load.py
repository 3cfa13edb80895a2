"""Songs of 3 to 60 s that arrive at rising rates: continuous batching at the step, against one song
at a time and against static batches, on the same runtime.

    python -m mudit_engine.benchmarks.serving_load --songs 30 --rates 0.5,0.8,1.1 \\
      --out benchmarks/results/serving_load.json --plot benchmarks/results/serving_load.png

A rate is a share of what the machine can do, which is measured first. Arrivals, lengths and seeds
are the same for every way of serving. one-at-a-time takes songs in their order and decodes each
whole; static takes up to 8 that wait, steps them together, takes no other until all are done, and
answers them together. Every song's latents are held to the song alone, bit for bit.

--modelled runs the batcher's own decisions in simulated time: a step and a piece of decoding take
the CPU seconds that were measured first, and share one machine (benchmarks/serving_model.py). It
says what the scheduling does where other work on the machine would drown it.

Short songs (at most 10 s) are those that suffer behind long ones; throughput is song seconds a
second from the first arrival to the last song.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from mudit_engine.benchmarks.timing import energy_meter
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import GateError
from mudit_engine.files import atomic_path, write_json
from mudit_engine.hardware import environment
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.runtime.batcher import Batcher
from mudit_engine.runtime.cost import StepCost, measure_cost, noise_song
from mudit_engine.runtime.denoiser import SongInputs, denoise
from mudit_engine.runtime.ticket import Event, Stage, Ticket

LENGTHS = (3.0, 4.0, 6.0, 9.0, 15.0, 30.0, 60.0)
SHARES = (0.22, 0.18, 0.16, 0.14, 0.14, 0.1, 0.06)
SHORT = 10.0  # seconds
STATIC_SONGS = 8
STEPS = 8


class OneAtATime(Batcher):
    """In the order of arrival, each to its end; nothing is decoded early."""

    def _pick(self) -> list[Ticket]:
        busy = bool(self._decoding)
        return [] if busy or not self._active else [min(self._active, key=lambda t: t.number)]


class Static(Batcher):
    """What waits, up to STATIC_SONGS, until all of it is done and decoded."""

    def _pick(self) -> list[Ticket]:
        if self._decoding:
            return []
        batch = [ticket for ticket in self._active if ticket in self._batch]
        if not batch:
            self._batch = sorted(self._active, key=lambda t: t.number)[:STATIC_SONGS]
            batch = self._batch
        return batch

    _batch: list[Ticket] = []  # noqa: RUF012  (replaced, never changed)


WAYS: dict[str, type[Batcher]] = {
    "continuous": Batcher,
    "one-at-a-time": OneAtATime,
    "static": Static,
}


@dataclass
class Asked:
    """A song of the load: when it comes, what it is, and what became of it (seconds)."""

    at: float
    song: SongInputs
    ticket: Ticket | None = None
    first_audio: float | None = None
    finished: float | None = None


def load(pipeline: SongPipeline, *, songs: int, rate: float, seed: int) -> list[Asked]:
    """Songs with the times they come at, `rate` a second; the same for every way of serving."""
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.exponential(1 / rate, songs))
    found = []
    for number, at in enumerate(times):
        length = float(draw.choice(LENGTHS, p=SHARES))
        request = SongRequest(
            description="calm piano", seconds=length, seed=number, sampler={"steps": STEPS}
        )
        reader = pipeline.reader
        found.append(Asked(float(at), reader.inputs(reader.read(request))))
    return found


def measured_costs(pipeline: SongPipeline) -> tuple[StepCost, float]:
    """(the curve of a step, decoding of a latent frame) in CPU seconds of one thread."""
    runtime, config, cost = pipeline.runtime, pipeline.config, StepCost()
    for frames in (32, 128, 384, 640):
        state = runtime.prepare(noise_song(config, frames, steps=4))
        for number in range(4):
            started = time.process_time()
            runtime.step([state])
            if number:
                cost.observe([frames, frames], time.process_time() - started)
    cost.fit()
    frames = 3 * pipeline.decoder.receptive_field
    latents = torch.zeros(1, frames, config.vae.latent_channels)
    with torch.inference_mode():
        pipeline.decoder.decode(latents[:, :16])
        started = time.process_time()
        pipeline.decoder.decode(latents)
    return cost, (time.process_time() - started) / frames


def serve(pipeline: SongPipeline, way: str, asked: list[Asked]) -> dict[str, Any]:
    """Serves the load in real time and says how long everybody waited."""
    batcher = WAYS[way](
        pipeline.runtime,
        pipeline.decoder,
        pipeline.config,
        cost=measure_cost(pipeline.runtime, pipeline.config),
    )
    started = time.monotonic()

    def listener(one: Asked) -> Callable[[Event], None]:
        def heard(event: Event) -> None:
            now = time.monotonic() - started
            if event.audio is not None and one.first_audio is None:
                one.first_audio = now
            if event.stage is Stage.COMPLETED:
                one.finished = now

        return heard

    cpu, meter = time.process_time(), energy_meter()
    joules = meter() if meter else 0.0
    for one in asked:
        time.sleep(max(0.0, started + one.at - time.monotonic()))
        one.ticket = batcher.submit(
            lambda one=one: one.song,  # type: ignore[misc]
            on_event=listener(one),
            stream=way == "continuous",
        )
    for one in asked:
        assert one.ticket is not None
        one.ticket.wait()
    cpu = time.process_time() - cpu
    used = {"joules": round(meter() - joules, 1)} if meter else {}
    batcher.close()
    if way == "static":
        answered_together(asked)
    return {"way": way, **figures(asked, cpu), **used}


def simulated(
    way: type[Batcher], pipeline: SongPipeline, asked: list[Asked], costs: tuple[StepCost, float]
) -> dict[str, Any]:
    """The same in simulated time."""
    from mudit_engine.benchmarks.serving_model import simulate

    spent = simulate(way, pipeline, asked, costs)
    if way is Static:
        answered_together(asked)
    return figures(asked, spent)


def answered_together(asked: list[Asked]) -> None:
    """A static batch is answered when its last song is decoded: songs whose steps began
    together.
    """
    batches: dict[float, list[Asked]] = {}
    for one in asked:
        assert one.ticket is not None and one.ticket.started is not None
        batches.setdefault(round(one.ticket.started, 4), []).append(one)
    for songs in batches.values():
        end = max(one.finished or 0.0 for one in songs)
        for one in songs:
            one.finished = one.first_audio = end


def figures(asked: list[Asked], cpu: float) -> dict[str, Any]:
    seconds = [one.song.seconds for one in asked]
    short = [one for one in asked if one.song.seconds <= SHORT]
    last = max(one.finished or 0.0 for one in asked)

    def quantiles(values: list[float]) -> dict[str, float]:
        return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 90, 95, 99)}

    def waits(songs: list[Asked], of: str) -> dict[str, float]:
        return quantiles([getattr(one, of) - one.at for one in songs])

    return {
        "song_seconds_per_second": round(sum(seconds) / (last - asked[0].at), 3),
        "cpu_seconds": round(cpu, 2),
        "short": {
            "songs": len(short),
            "to_song": waits(short, "finished"),
            "to_first_audio": waits(short, "first_audio"),
        },
        "all": {
            "songs": len(asked),
            "to_song": waits(asked, "finished"),
            "to_first_audio": waits(asked, "first_audio"),
        },
    }


def capacity(
    pipeline: SongPipeline, *, seed: int, modelled: tuple[StepCost, float] | None
) -> float:
    """Songs of this mix a second, served one after the other with nobody waiting."""
    if modelled is not None:
        cost, decode = modelled
        config = pipeline.config
        sampler = config.sampler.model_copy(update={"steps": STEPS})
        guided, rate = sampler_table(config.path, sampler).guided, config.vae.frame_rate
        spent = [
            sum(cost.step([round(length * rate)] * (1 + twice)) for twice in guided)
            + decode * length * rate
            for length in LENGTHS
        ]
        return 1 / sum(one * share for one, share in zip(spent, SHARES, strict=True))
    asked = load(pipeline, songs=8, rate=1e6, seed=seed)
    started = time.monotonic()
    serve(pipeline, "one-at-a-time", asked)
    mean = sum(length * share for length, share in zip(LENGTHS, SHARES, strict=True))
    seconds = sum(one.song.seconds for one in asked)
    return seconds / mean / (time.monotonic() - started)


def check(pipeline: SongPipeline, asked: list[Asked]) -> None:
    """Raises GateError unless every song is the song alone, bit for bit."""
    runtime = pipeline.runtime
    for one in asked:
        assert one.ticket is not None
        with torch.inference_mode():
            [alone] = denoise(runtime, [runtime.prepare(one.song)])
        if not torch.equal(one.ticket.wait(), alone.float().cpu()):
            raise GateError(f"song {one.ticket.number} is another song than alone: no time is told")


def run(
    model: str,
    *,
    songs: int,
    rates: list[float],
    seed: int,
    modelled: bool,
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, float] | None]:
    """Rows of every rate and way, and the measured costs that were modelled with."""
    pipeline = SongPipeline.from_pretrained(model, runtime="torch", device="cpu")
    costs = measured_costs(pipeline) if modelled else None
    most = capacity(pipeline, seed=seed, modelled=costs)
    report(f"the machine makes {most:.2f} songs of this mix a second, one after the other")
    rows = []
    for number, share in enumerate(rates):
        for way in WAYS:
            asked = load(pipeline, songs=songs, rate=share * most, seed=seed + number)
            if costs is not None:
                row = {"way": way, **simulated(WAYS[way], pipeline, asked, costs)}
                rows.append({"rate": share, "songs_per_second": round(share * most, 3), **row})
                continue
            row = serve(pipeline, way, asked)
            if way == "continuous":
                check(pipeline, asked)
            rows.append({"rate": share, "songs_per_second": round(share * most, 3), **row})
    for row in rows:
        told = row["short"]
        report(f"{row['rate']:g} {row['way']}: {told['to_song']}, audio {told['to_first_audio']}")
    if costs is None:
        return rows, None
    known = {"base": costs[0].base, "a": costs[0].a, "b": costs[0].b}
    return rows, {**known, "decode_seconds_per_frame": costs[1]}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A picture of what short songs wait for, by rate and way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (key, title) in enumerate(
        (("to_song", "to the whole song"), ("to_first_audio", "to the first audio"))
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        for colour, way in enumerate(WAYS):
            own = [row for row in rows if row["way"] == way]
            rates = [row["rate"] for row in own]
            for quantile, style in (("p50", "-o"), ("p95", "--^")):
                waits = [row["short"][key][quantile] for row in own]
                axes.plot(rates, waits, style, color=f"C{colour}", label=f"{way} {quantile}")
        axes.set(xlabel="load / capacity", ylabel="seconds", yscale="log")
        axes.set_title(f"short songs: {title}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png")


@click.command(help=__doc__)
@click.option("--model", default="tiny", show_default=True)
@click.option("--songs", type=click.IntRange(4, 1000), default=30, show_default=True)
@click.option("--rates", default="0.5,0.8,1.1", show_default=True, help="Shares of the capacity.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--modelled", is_flag=True, help="Simulated time.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG file.")
def main(
    model: str,
    songs: int,
    rates: str,
    seed: int,
    threads: int,
    modelled: bool,
    out: Path | None,
    plot: Path | None,
) -> None:
    torch.set_num_threads(1 if modelled else threads)
    sys.setswitchinterval(0.002)

    def report(text: str) -> None:
        click.echo(text, err=True)

    load = None if modelled else {"before": [round(one, 2) for one in os.getloadavg()]}
    parsed = [float(one) for one in rates.split(",")]
    rows, costs = run(model, songs=songs, rates=parsed, seed=seed, modelled=modelled, report=report)
    if load is not None:
        load["after"] = [round(one, 2) for one in os.getloadavg()]
    module = "mudit_engine.benchmarks.serving_load"  # no folder of this machine
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    document = {
        "schema_version": 1,
        "env": {**environment(), "command": command},
        "threads": threads,
        # others on the machine make every wait longer, and the capacity that rates are shares of
        # smaller
        "load_average": load,
        "modelled": modelled,
        "costs_in_cpu_seconds": costs,
        "steps": STEPS,
        "lengths": dict(zip(map(str, LENGTHS), SHARES, strict=True)),
        "results": rows,
    }
    if out is not None:
        write_json(out, document)
    else:
        click.echo(json.dumps(document, indent=2))
    if plot is not None:
        draw(rows, plot)


if __name__ == "__main__":
    main()
