"""The exported graphs are the model: parity of every mode in every runtime, and of the layout
before it leaves PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from micro_deployment import MODES, micro_config, parts, save_model
from mudit_engine.config import load_config
from mudit_engine.errors import InputError
from mudit_engine.export import parity
from mudit_engine.export.graphs import TorchGraphs
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.runtime import graph_denoiser

RUNTIMES = ("onnxruntime", "openvino")
_CASES = parity.cases
NETWORKS = {
    "outline": {"outline": True},
    "parallel": {"cross_attention": "parallel", "modulation": "per_block"},
    "pooled": {"pooled_description": True},
    "plain": {"qk_norm": False, "lyric_blocks": 0},
}


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("network"), micro_config(**NETWORKS[request.param]))


@pytest.fixture(scope="module")
def rows(deployed: Path) -> list[dict[str, Any]]:
    return parity.measure_parity(deployed, runtimes=RUNTIMES)


@pytest.mark.parametrize(
    ("network", "expanded"),
    [
        *((name, False) for name in NETWORKS),
        # the mask's layout is that of any network; `parallel` has both kinds of attention in one
        ("parallel", True),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in NETWORKS
            if name != "parallel"
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else ("expanded-mask" if value else "mask"),
    indirect=["network"],
)
def test_the_dense_layout_is_the_ragged_one(network: Path, expanded: bool) -> None:
    """Before any tracing: every network, every mode, padded to buckets and several songs in one
    call.
    """
    dit, vae, chinmu = parts(network)
    session = TorchGraphs(dit, vae, chinmu, expanded=expanded)
    rows = parity.session_rows("graphs", session, load_config(network), dit, vae, chinmu)
    assert {row["case"] for row in rows} == MODES
    worst = {
        name: max(row.get(name, 0.0) for row in rows)
        for name in ("latents", "padding", "audio", "text")
    }
    assert (
        0 < worst["latents"] < 1e-5
        and worst["padding"] < 1e-5
        and worst["audio"] < 1e-4
        and worst["text"] < 1e-5
    )


def test_the_ddpm_path_too(tmp_path: Path) -> None:
    config = micro_config()
    ddpm = {
        "path": {"kind": "ddpm", "prediction": "eps"},
        "sampler": {"name": "ddim", "steps": 3, "guidance": 2.0},
    }
    config = type(config).model_validate({**config.model_dump(), **ddpm})
    dit, vae, chinmu = parts(save_model(tmp_path, config))
    rows = parity.session_rows("graphs", TorchGraphs(dit, vae, chinmu), config, dit, vae, chinmu)
    assert {"sampler ddim", "sampler dpmpp-2m"} <= {row["case"] for row in rows}
    assert parity.faults(rows) == []


def test_songs_of_one_bucket_are_one_call(deployed: Path) -> None:
    dit, vae, chinmu = parts(deployed)
    graphs_ = TorchGraphs(dit, vae, chinmu)
    calls: list[int] = []

    class Counted:
        def run(self, graph: str, inputs: Any) -> Any:
            if graph == "step":
                calls.append(len(inputs["x"]))
            return graphs_.run(graph, inputs)

    config = load_config(deployed)
    songs = next(
        case.songs for case in parity.cases(config) if case.name == "songs of several lengths"
    )
    padded = graph_denoiser.GraphDenoiser(config.dit, Counted(), padding=parity._bucket, songs=8)
    padded.step([padded.prepare(song) for song in songs])
    assert calls == [3]
    exact = graph_denoiser.GraphDenoiser(config.dit, Counted())
    exact.step([exact.prepare(song) for song in songs])
    assert calls == [3, 1, 1, 1]


def test_whole_songs_equal_pytorch_in_every_mode(rows: list[dict[str, Any]]) -> None:
    assert parity.faults(rows) == []
    assert {(row["runtime"], row["case"]) for row in rows} == {
        (runtime, mode) for runtime in RUNTIMES for mode in MODES
    }
    assert max(row["latents"] for row in rows if "latents" in row) < 1e-5, "fp32 rounding, no more"


def only_the_last_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Songs of several lengths: one mode is enough to notice a fault of all."""
    monkeypatch.setattr(parity, "cases", lambda config: list(_CASES(config))[-1:])


def test_padding_that_is_attended_to_is_noticed(
    deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_last_case(monkeypatch)
    monkeypatch.setattr(
        graph_denoiser, "_first", lambda count, length, skipped=0: torch.arange(length) >= skipped
    )
    dit, vae, chinmu = parts(deployed)
    rows = parity.session_rows(
        "graphs", TorchGraphs(dit, vae, chinmu), load_config(deployed), dit, vae, chinmu
    )
    assert any("padding differ" in fault for fault in parity.faults(rows))


def test_graphs_of_other_weights_are_noticed(
    deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_last_case(monkeypatch)
    dit, vae, chinmu = parts(deployed)
    session = TorchGraphs(dit, vae, chinmu)
    other, _, _ = parts(deployed)
    with torch.no_grad():
        other.final.weight.mul_(1.001)
    rows = parity.session_rows("graphs", session, load_config(deployed), other, vae, chinmu)
    assert any("latents differ" in fault for fault in parity.faults(rows))


def test_figures_that_are_not_numbers_are_faults() -> None:
    assert parity.faults([{"runtime": "x", "case": "y", "latents": float("nan")}])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pipeline_makes_the_same_song(deployed: Path, runtime: str) -> None:
    request = SongRequest(
        description="piano, slow", lyrics="[verse]\n月亮升起来", negative="drums", seconds=4, seed=3
    )
    expected = SongPipeline.from_pretrained(deployed, device="cpu", dtype=torch.float32).generate(
        [request]
    )[0]
    song = SongPipeline.from_pretrained(deployed, runtime=runtime).generate([request])[0]
    assert np.linalg.norm(song.latents - expected.latents) < 1e-5 * np.linalg.norm(expected.latents)
    assert np.abs(song.audio - expected.audio).max() < 1e-3 * np.abs(expected.audio).max()
    assert song.info["runtime"] == runtime and expected.info["runtime"] == "torch"


def test_what_graphs_cannot_take_is_refused(deployed: Path) -> None:
    """A runtime reads past the end of a table in silence."""
    config = load_config(deployed)
    pipeline = SongPipeline.from_pretrained(deployed, runtime="onnxruntime")
    with pytest.raises(InputError, match="at most 20 s"):
        pipeline.generate([SongRequest(description="piano", seconds=21)])
    song = next(iter(parity.cases(config))).songs[0]
    fields = {name: getattr(song, name) for name in song.__dataclass_fields__}
    with pytest.raises(InputError, match="lyric token 512 is outside the model's 512"):
        pipeline.runtime.prepare(type(song)(**{**fields, "lyric_ids": (512,), "outline": None}))
    with pytest.raises(InputError, match="5 description fragments are more than the model's 4"):
        pipeline.runtime.prepare(type(song)(**{**fields, "descriptions": torch.zeros(5, 32)}))


def test_a_phase_search_is_held_to_float64(deployed: Path) -> None:
    _, vae, _ = parts(deployed)
    vae.config = vae.config.model_copy(update={"phase_refinements": 24})
    latents = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    own = parity.synthesised(vae, latents, steps=24)
    assert parity.search_ratio(vae, latents, own) == pytest.approx(1.0)
    short = parity.search_ratio(vae, latents, parity.synthesised(vae, latents, steps=23))
    assert short > 10 * parity.SEARCH_LIMIT, "one step less would be noticed"
    rows = [{"runtime": "onnxruntime", "case": "decode, 24 phase steps", "search": short}]
    assert "search differ" in parity.faults(rows)[0]
