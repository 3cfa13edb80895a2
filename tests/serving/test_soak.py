"""Load and fuzz: a thousand requests of every kind, the OpenAPI document against the service, bytes
that are no uploads. Nothing is lost, doubled or mixed up, and nothing answers 5xx.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mudit_engine.benchmarks.serving_soak import soak
from mudit_engine.serving.app import ServiceOptions
from mudit_engine.serving.engine import Engine
from mudit_engine.serving.uploads import UploadLimits
from served import Served, serving

SONG: dict[str, Any] = {"description": "calm piano", "seconds": 1, "steps": 2}


@pytest.fixture
def served(micro: Path, tmp_path: Path) -> Iterator[Served]:
    upload = UploadLimits(bytes=1 << 18, seconds=5.0)
    options = ServiceOptions(most_seconds=2.0, most_open=200, upload=upload)
    with serving(lambda: Engine.open(micro, runtime="torch"), tmp_path, options=options) as one:
        yield one


@pytest.mark.parametrize(
    "requests", [100, pytest.param(1000, marks=pytest.mark.slow)], ids=["hundred", "thousand"]
)
def test_nothing_is_lost_doubled_or_mixed_up(served: Served, requests: int) -> None:
    found = asyncio.run(
        soak(served.url, requests=requests, together=12, song=SONG, pid=os.getpid())
    )
    assert sum(found["statuses"].values()) == requests
    early, late = found["memory_mib"].values()
    if requests == 1000:
        assert late <= 1.05 * early, "memory grows with the requests"


@pytest.mark.slow
def test_the_openapi_document_is_true(served: Served) -> None:
    """Requests that schemathesis makes of the document: no 5xx, and every answer is one of those
    it promises.
    """
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            nonlocal tried
            response = case.call(timeout=60)
            tried += 1
            assert response.status_code < 500, (case, response.status_code, response.text)
            # lyrics, keys and chords have rules that no schema can say: those answer 400
            case.validate_response(response, excluded_checks=[positive_data_acceptance])

        check()
    assert tried > 100


def test_uploads_of_any_bytes_are_refused_or_heard(served: Served) -> None:
    draw = random.Random(0)
    for number in range(12):
        size = draw.choice((0, 1, 44, 1000, 60_000))
        data = bytes(draw.getrandbits(8) for _ in range(size))
        head = draw.choice(
            (b"", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC", b"OggS", b"ID3", b"\xff\xfb")
        )
        files = {"reference": (f"a{number}.wav", head + data, "audio/wav")}
        fields = {"description": "x", "seconds": "1", "steps": "1"}
        answer = served.client.post("/v1/audio/generate", data=fields, files=files)
        assert answer.status_code in (200, 400), answer.text
