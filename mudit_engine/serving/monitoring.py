"""What the service says of itself: Prometheus metrics, and OpenTelemetry spans where they are
configured.

    metrics = Metrics(batcher); metrics.step(record); metrics.text()         # /metrics
    tracer = open_tracer()  # None unless OTEL_TRACES_EXPORTER or an endpoint is set
    emit_spans(tracer, job, {"read": (start, end), "denoise": (start, end), "decode": (start, end)})
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from typing import Any

from mudit_engine.availability import require
from mudit_engine.runtime.ticket import StepRecord

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
STEP_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The service's counters, in a registry of their own."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """`counts`: songs by stage, frames and bytes in flight (Batcher.counts)."""
        require("prometheus_client", "metrics of the service")
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._counts = counts
        self.queued = Gauge("mudit_songs_waiting", "Songs that wait to be stepped.", **own)
        self.stages = Gauge("mudit_songs", "Songs in the engine by stage.", ["stage"], **own)
        self.frames = Gauge("mudit_frames_in_flight", "Latent frames of songs in flight.", **own)
        self.held = Gauge("mudit_song_bytes", "Predicted bytes of songs in flight.", **own)
        self.memory = Gauge("mudit_memory_bytes", "Memory of the process, at its most.", **own)
        self.step_seconds = Histogram(
            "mudit_step_seconds", "Time of a step.", buckets=STEP_SECONDS, **own
        )
        self.step_songs = Histogram(
            "mudit_step_songs", "Songs of a step.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self.stepped = Counter("mudit_frames_stepped", "Target frames times steps.", **own)
        self.rows = Counter(
            "mudit_rows",
            "Rows of steps by use: batch efficiency is target over all.",
            ["use"],
            **own,
        )
        self.ended = Counter("mudit_songs_ended", "Songs by how they ended.", ["status"], **own)
        self.rejected = Counter("mudit_rejected", "Requests refused by reason.", ["reason"], **own)
        self.song_seconds = Histogram(
            "mudit_song_seconds", "From the request to the whole song.", buckets=SECONDS, **own
        )
        self.first_audio = Histogram(
            "mudit_first_audio_seconds",
            "From the request to its first audio.",
            buckets=SECONDS,
            **own,
        )
        self.rtf = Histogram(
            "mudit_real_time_factor",
            "Seconds of work over seconds of song.",
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            **own,
        )

    def step(self, record: StepRecord) -> None:
        """Counts a step of the engine."""
        self.step_seconds.observe(record.seconds)
        self.step_songs.observe(record.songs)
        self.stepped.inc(record.frames)
        self.rows.labels("target").inc(record.frames)
        self.rows.labels("all").inc(record.frames * record.sequences / max(record.songs, 1))

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        from prometheus_client import generate_latest

        counts = dict(self._counts())
        self.frames.set(counts.pop("frames"))
        self.held.set(counts.pop("bytes"))
        self.queued.set(counts["reading"] + counts["waiting"])
        for stage, songs in counts.items():
            self.stages.labels(stage).set(songs)
        self.memory.set(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return bytes(generate_latest(self.registry))


def open_tracer() -> Any | None:
    """A tracer where OpenTelemetry is configured by its own variables, else None.

    Raises MissingError when it is configured and its packages are not here.
    """
    chosen = os.environ.get("OTEL_TRACES_EXPORTER", "")
    endpoint = any(name.startswith("OTEL_EXPORTER_OTLP") for name in os.environ)
    if chosen == "none" or not (chosen or endpoint):
        return None
    require("opentelemetry", "tracing, as OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_* ask for")
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    exporter: Any
    if chosen == "console":
        exporter = ConsoleSpanExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "mudit"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer("mudit_engine")


def emit_spans(
    tracer: Any | None,
    name: str,
    attributes: Mapping[str, Any],
    parts: Mapping[str, tuple[float, float]],
) -> None:
    """One span of a song with a child for each part; times are seconds since 1970."""
    if tracer is None or not parts:
        return
    from opentelemetry import trace

    def nanoseconds(time: float) -> int:
        return int(time * 1e9)

    first, last = min(start for start, _ in parts.values()), max(end for _, end in parts.values())
    whole = tracer.start_span(name, start_time=nanoseconds(first), attributes=dict(attributes))
    context = trace.set_span_in_context(whole)
    for part, (start, end) in parts.items():
        span = tracer.start_span(part, context=context, start_time=nanoseconds(start))
        span.end(nanoseconds(end))
    whole.end(nanoseconds(last))
