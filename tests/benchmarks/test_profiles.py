"""`mudit profile`: the same song watched and unwatched; stages and operations of a song, of
training and of serving.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mudit_engine.benchmarks import profiles, timing
from mudit_engine.benchmarks.profiles import Settings, profile_generate
from mudit_engine.cli.main import run as mudit
from mudit_engine.errors import MissingError
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest


@pytest.fixture(autouse=True)
def short_yardsticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "GEMM_SIZE", (64, 64, 64))
    monkeypatch.setattr(timing, "COPY_BYTES", 1 << 20)


def test_a_song_by_stages_and_operations(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, trace = tmp_path / "p.html", tmp_path / "t.json"
    arguments = ["--model", str(micro), "--seconds", "2", "--seconds", "3", "--steps", "2"]
    command = ["profile", "generate", *arguments, "--rounds", "1", "--html", str(page)]
    assert mudit([*command, "--trace", str(trace), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)["results"]
    stages = {stage["name"]: stage for stage in document["stages"]}
    assert {"text", "prepare", "step", "decode", "save", "between"} <= stages.keys()
    assert stages["prepare"]["calls"] == 2 and stages["step"]["calls"] == 2
    assert stages["step"]["flops"] > stages["prepare"]["flops"] > 0
    places = {op["place"] for op in document["operations"] if op["stage"] == "step"}
    assert {"blocks/qkv", "blocks/linear_gelu", "blocks/attention"} <= places
    kept = [moment["bytes"] for moment in document["memory"]["timeline"]]
    for kind in ("weights", "plan", "K/V", "activations"):
        assert max(moment.get(kind, 0) for moment in kept) > 0, kind
    assert document["memory"]["peak"]["weights"] > 0
    assert len(document["costs"]) >= 3 and document["env"]["command"].startswith("mudit profile")
    assert "The three largest avoidable costs" in page.read_text()
    ranges = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"step", "decode", "blocks"} & ranges >= {"step", "decode"}


def test_watching_changes_no_song_and_leaves_nothing(micro: Path) -> None:
    pipeline = SongPipeline.from_pretrained(micro)
    request = SongRequest(description="piano", seconds=2.0, seed=3, sampler={"steps": 2})
    (before,) = pipeline.generate([request])
    kept = dict(vars(pipeline.runtime))
    profile_generate(pipeline, [request], Settings(rounds=1))
    assert vars(pipeline.runtime).keys() == kept.keys() and "step" not in vars(pipeline.runtime)
    assert not pipeline.runtime.dit._forward_hooks and "attention" not in str(
        profiles.engine_ops.attention.__closure__
    )
    (after,) = pipeline.generate([request])
    assert torch.equal(torch.from_numpy(before.audio), torch.from_numpy(after.audio))


def test_training_steps_on_random_songs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["width=64", "heads=1", "blocks=1", "lyric_width=64", "lyric_blocks=1"]
    settings = [f"model_overrides.dit.{one}" for one in small] + ["data.pack_size=512"]
    flags = [part for one in settings for part in ("--set", one)]
    command = ["profile", "train", "tiny-dit-pretrain", "--steps", "1", "--rounds", "1"]
    assert mudit([*command, *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["results"]
    stages = {stage["name"]: stage for stage in document["stages"]}
    assert {"data", "forward", "backward", "optimiser"} <= stages.keys()
    assert stages["backward"]["flops"] == pytest.approx(2 * stages["forward"]["flops"], rel=0.35)
    assert document["memory"]["peak"]["optimiser"] > document["memory"]["peak"]["weights"]


def test_a_servers_songs_join_and_leave(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["profile", "serve", "--model", str(micro), "--seconds", "3", "--seconds", "2"]
    assert mudit([*command, "--steps", "2", "--rounds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["results"]
    stages = {stage["name"]: stage for stage in document["stages"]}
    # the second song joins at the first one's second step, and steps once more alone
    assert stages["prepare"]["calls"] == 2 and stages["step"]["calls"] == 3


def test_proton_needs_a_gpu(micro: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    pipeline = SongPipeline.from_pretrained(micro)
    request = SongRequest(description="piano", seconds=2.0, seed=3, sampler={"steps": 1})
    with pytest.raises(MissingError, match="Proton profiles kernels on a GPU"):
        profile_generate(pipeline, [request], Settings(rounds=1, proton=Path("x")))
