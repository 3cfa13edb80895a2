"""A profile of a server's batch: songs that arrive together, join the engine's steps and leave as
they are done.

document = profile_serve(pipeline, (20.0, 5.0), steps=4, lyrics="", settings=Settings())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mudit_engine.benchmarks.profiles import (
    Settings,
    Work,
    networks_of,
    plans,
    profile,
    tensors_of,
)
from mudit_engine.pipeline import SongPipeline
from mudit_engine.profiling.ranges import Watch
from mudit_engine.request import SongRequest
from mudit_engine.runtime.decode import decode_song


def profile_serve(
    pipeline: SongPipeline,
    lengths: Sequence[float],
    *,
    steps: int,
    lyrics: str,
    settings: Settings,
) -> dict[str, Any]:
    """The document of songs of these lengths, shortest first at every step, as a batcher on one
    thread runs them: its own threads would run reading, steps and decoding at once, so that no
    operation's time was its own.
    """
    requests = [
        SongRequest(
            description="流行抒情，钢琴",
            lyrics=lyrics,
            seconds=seconds,
            seed=number,
            sampler={"steps": steps},
        )
        for number, seconds in enumerate(lengths)
    ]
    runtime, reader = pipeline.runtime, pipeline.reader

    def run() -> None:
        waiting = list(requests)
        songs: list[tuple[SongRequest, Any]] = []
        while waiting or songs:
            if waiting:  # one joins at every step
                request = waiting.pop(0)
                songs.append((request, runtime.prepare(reader.inputs(reader.read(request)))))
            runtime.step([state for _, state in songs])
            for request, state in [one for one in songs if one[1].done]:
                decode_song(pipeline.decoder, state.x_TC, seconds=float(request.seconds or 1))
                songs.remove((request, state))

    def watch(watching: Watch) -> None:
        watching.function(reader, "read")
        watching.function(reader.text, "encode_text", "text")
        watching.function(runtime, "prepare")
        watching.function(runtime, "step")
        watching.function(pipeline.decoder, "decode")

    networks = networks_of(pipeline)
    work = Work(
        title=f"{pipeline.config.name}: a server's {len(requests)} songs of "
        f"{', '.join(f'{s:g}' for s in lengths)} s, one joining at every step",
        run=run,
        watch=watch,
        modules=[(networks[0], 2), (pipeline.vae.decoder, 2)],
        weights=lambda: {"weights": [t for n in networks for t in tensors_of(n)]},
        claims=lambda ledger: plans(ledger, pipeline),
        device=pipeline.vae.latent_mean.device,
        dtype=pipeline.precision,
        audio_seconds=float(sum(lengths)),
        about={"lengths": list(lengths), "steps": steps},
    )
    return profile(work, settings)
