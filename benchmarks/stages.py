"""A whole song stage by stage, and the same stages of open models of its size: text, prepare, step,
decode, save.

    rows = run(Options(seconds=10, rounds=3))                         # or: mudit bench run stages

    read       parsing, phonemes, planning, and whatever lies between the stages
    text       the description through ChinMu
    prepare    what no step changes
    step       all sampler steps, guidance included
    decode     latents to audio
    save       the file

The peer has no lyrics, no text encoder of its own and no writer: it runs the song transformer's
steps (diffusers' StableAudioDiTModel of equal width, depth and heads) and a codec of the same rate
(AutoencoderOobleck). The order is A/B/A: ours, peer, ours, and a round of ours is the mean of its
two turns, so that a machine that grows slower favours nobody. A turn with the stage clock is held
to a turn without: figures.clock_overhead.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.benchmarks.decode_peers import oobleck
from mudit_engine.benchmarks.peers import StableAudioPeer
from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.benchmarks.timing import quantile, settle
from mudit_engine.errors import GateError
from mudit_engine.pipeline import Song, SongPipeline, SongRequest
from mudit_engine.profiling.ranges import Clock, Span, Watch

LYRICS = "[verse]\n月亮升起来\n风吹过海面\n[chorus]\n我想和你看天亮\n"
STAGES = ("text", "prepare", "step", "decode", "save")
PEER = "StableAudioDiT + Oobleck"


def watch_pipeline(watch: Watch, pipeline: SongPipeline) -> None:
    """The pipeline's stages as ranges named as in STAGES."""
    watch.function(pipeline.reader.text, "encode_text", "text")
    watch.function(pipeline.runtime, "prepare")
    watch.function(pipeline.runtime, "step")
    watch.function(pipeline.decoder, "decode")
    watch.function(Song, "save")


def make_song(pipeline: SongPipeline, request: SongRequest, folder: Path) -> Song:
    """One song, written to a file."""
    (song,) = pipeline.generate([request])
    song.save(folder / "song.wav")
    return song


def run(options: Options) -> list[Row]:
    """A row a stage and provider. Raises GateError when watching changes the song."""
    seconds, rounds = options.seconds or 10.0, options.rounds or 3
    pipeline = SongPipeline.from_pretrained("tiny")
    request = SongRequest(
        description="流行抒情，钢琴，女声", lyrics=LYRICS, seconds=seconds, seed=1
    )
    turns: dict[str, list[dict[str, tuple[float, float]]]] = {"mudit": [], PEER: []}
    plain: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        options.report("checking")
        before = make_song(pipeline, request, folder)
        watched, _ = _ours(pipeline, request, folder)
        if not torch.equal(torch.from_numpy(before.audio), torch.from_numpy(watched.audio)):
            raise GateError("the stage clock changes the song: no speed is reported")
        peer = _peer(pipeline, before, rows=_rows_of_steps(before)) if options.peers else None
        for number in range(rounds):
            options.report(f"round {number + 1} of {rounds}")
            first = _ours(pipeline, request, folder)[1]
            if peer is not None:
                turns[PEER].append(peer())
            last = _ours(pipeline, request, folder)[1]
            turns["mudit"].append(
                {
                    stage: (
                        (first[stage][0] + last[stage][0]) / 2,
                        (first[stage][1] + last[stage][1]) / 2,
                    )
                    for stage in first
                }
            )
            clock = Clock()
            with clock.range("song"):
                make_song(pipeline, request, folder)
            plain.append(clock.seconds["song"])
    rows = []
    for name, found in turns.items():
        for stage in found[0] if found else ():
            rows.append(_row(name, stage, found, turns, seconds, rounds))
    whole = next(row for row in rows if (row.provider, row.case) == ("mudit", "song"))
    whole.figures["clock_overhead"] = statistics.median(
        turn["song"][0] / one - 1 for turn, one in zip(turns["mudit"], plain, strict=True)
    )
    whole.error, whole.limit = 0.0, 0.0
    return rows


def _row(
    name: str,
    stage: str,
    found: list[dict[str, tuple[float, float]]],
    turns: dict[str, list[dict[str, tuple[float, float]]]],
    seconds: float,
    rounds: int,
) -> Row:
    row = Row("stages", stage, name, "ours" if name == "mudit" else "peer", reference=PEER)
    walls = [turn[stage][0] for turn in found]
    row.seconds_p20, row.seconds_p50, row.seconds_p80, row.seconds_p90, row.seconds_p99 = (
        quantile(walls, share) for share in (0.2, 0.5, 0.8, 0.9, 0.99)
    )
    row.samples = [round(value, 6) for value in walls]
    row.cpu_seconds_p50 = statistics.median(turn[stage][1] for turn in found)
    theirs = [turn for turn in turns[PEER] if stage in turn]
    if theirs:
        pairs = list(zip(found, theirs, strict=True))
        row.ratio = statistics.median(b[stage][0] / max(a[stage][0], 1e-9) for a, b in pairs)
        row.cpu_ratio = statistics.median(b[stage][1] / max(a[stage][1], 1e-9) for a, b in pairs)
    row.audio_seconds, row.rounds, row.threads = seconds, rounds, torch.get_num_threads()
    row.audio_seconds_per_second = seconds / max(row.seconds_p50, 1e-9)
    row.real_time_factor = row.seconds_p50 / seconds
    row.figures["share"] = statistics.median(turn[stage][0] / turn["song"][0] for turn in found)
    return row


def _ours(
    pipeline: SongPipeline, request: SongRequest, folder: Path
) -> tuple[Song, dict[str, tuple[float, float]]]:
    """The song, and wall and CPU seconds of its stages."""
    clock = Clock()
    with Watch(clock) as watch:
        watch_pipeline(watch, pipeline)
        with watch.range("song"):
            song = make_song(pipeline, request, folder)
    return song, by_stage(clock.spans)


def by_stage(spans: list[Span]) -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds of the whole song and its stages; `read` is what no stage covers."""
    found = dict.fromkeys(("song", "read", *STAGES), (0.0, 0.0))
    for span in spans:
        depth, stage = span.place.count("/"), span.place.rsplit("/", 1)[-1]
        if depth <= 1 and stage in found:
            wall, cpu = found[stage]
            found[stage] = (wall + span.seconds, cpu + span.cpu_seconds)
    wall, cpu = found["song"]
    found["read"] = (
        wall - sum(found[stage][0] for stage in STAGES),
        cpu - sum(found[stage][1] for stage in STAGES),
    )
    return found


def _rows_of_steps(song: Song) -> int:
    """Steps of the song's sampler."""
    return int(song.info["sampler"]["steps"])


def _peer(
    pipeline: SongPipeline, song: Song, *, rows: int
) -> Callable[[], dict[str, tuple[float, float]]]:
    """A function that runs the peer's stages of a song of the same frames, steps and guidance."""
    config = pipeline.config
    frames = len(song.latents)
    step = StableAudioPeer(config.dit).prepare(
        [(frames, max(int(song.info["phonemes"]), 1))], guidance=config.sampler.guidance != 1.0
    )
    decoder = oobleck(
        config.vae, sum(p.numel() for p in pipeline.vae.decoder.parameters())
    ).requires_grad_(False)
    latents = torch.from_numpy(song.latents).T[None].contiguous()

    def all_steps() -> None:
        for _ in range(rows):
            step()

    @torch.inference_mode()
    def decode() -> Tensor:
        out: Tensor = decoder(latents)
        return out

    def once() -> dict[str, tuple[float, float]]:
        clock = Clock()
        stages: dict[str, Callable[[], Any]] = {"step": all_steps, "decode": decode}
        with clock.range("song"):
            for name, call in stages.items():
                with clock.range(name):
                    call()
                    settle()
        found = by_stage(clock.spans)
        return {stage: found[stage] for stage in ("song", "step", "decode")}

    once()  # warm-up
    return once
