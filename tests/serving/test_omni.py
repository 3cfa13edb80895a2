"""vLLM-Omni's contract, driven by a stand-in for its runner and, slowly, by its own scheduler and
runner: songs join at different steps, their latents lie end to end, and each is the song that the
pipeline makes.

The real ones need an environment of their own: `make omni`, MUDIT_OMNI_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest
from mudit_engine.serving.omni import ARCHITECTURE, MuditPipeline, register, request_of

ROOT = Path(__file__).parents[2]
OMNI = os.environ.get("MUDIT_OMNI_PYTHON")


@dataclass
class State:
    """What the runner keeps of a request (StepRequestState of 0.30)."""

    prompt: Any
    sampling: Any
    latents: torch.Tensor | None = None
    timesteps: Any = None
    step_index: int = 0
    do_true_cfg: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.step_index >= len(self.timesteps)


@dataclass
class DiffusionOutput:
    output: torch.Tensor


def asks(prompt: Any, *, seed: int, steps: int | None = None, **extra: Any) -> State:
    sampling = SimpleNamespace(seed=seed, num_inference_steps=steps, extra_args=extra)
    return State(prompt, sampling)


@pytest.fixture
def omni(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The package's names that the plugin uses."""
    known: dict[str, Any] = {}
    for name in ("vllm_omni", "vllm_omni.diffusion"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    data, registry = (ModuleType(f"vllm_omni.diffusion.{name}") for name in ("data", "registry"))
    data.DiffusionOutput = DiffusionOutput  # type: ignore[attr-defined]
    registry.register_diffusion_model = (  # type: ignore[attr-defined]
        lambda arch, module, name: known.update({arch: (module, name)})
    )
    monkeypatch.setitem(sys.modules, data.__name__, data)
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    return known


def test_songs_that_join_are_those_of_the_pipeline(omni: dict[str, Any], micro: Path) -> None:
    model = MuditPipeline(od_config=SimpleNamespace(model=str(micro)))
    lyrics = "[verse]\n月亮升起来"
    arriving = {
        0: asks("calm piano", seed=1, steps=6, seconds=3),
        1: asks({"prompt": "rock", "lyrics": lyrics}, seed=2, steps=4, seconds=5, guidance=3.0),
        3: asks("x", seed=3, seconds=1, sampler="sde-euler"),
    }
    states: list[State] = []
    found: dict[int, torch.Tensor] = {}
    widths = []
    for tick in range(20):
        if tick in arriving:
            states.append(model.prepare_encode(arriving[tick]))
        if not states:
            continue
        batch = SimpleNamespace(latents=torch.cat([state.latents for state in states]))
        widths.append(len(states))
        out = model.denoise_step(batch, states=states)
        assert out.shape == batch.latents.shape
        assert out.data_ptr() != batch.latents.data_ptr()
        for state, own in zip(
            states, out.split([len(state.latents) for state in states]), strict=True
        ):
            model.step_scheduler(state, own)
            assert torch.equal(state.latents, own)
        for state in [one for one in states if one.done]:
            states.remove(state)
            found[state.sampling.seed] = model.post_decode(state).output
    assert max(widths) == 3 and len(found) == 3
    pipeline = SongPipeline.from_pretrained(micro, device="cpu")
    songs = pipeline.generate(
        [
            SongRequest("calm piano", seconds=3, seed=1, sampler={"steps": 6}),
            SongRequest(
                "rock", lyrics=lyrics, seconds=5, seed=2, sampler={"steps": 4, "guidance": 3.0}
            ),
            SongRequest("x", seconds=1, seed=3, sampler={"name": "sde-euler"}),
        ]
    )
    for song in songs:
        audio = found[song.info["request"]["seed"]]
        assert audio.shape == (1, *song.audio.shape)
        assert np.array_equal(audio[0].numpy(), song.audio)


@pytest.mark.parametrize(
    ("prompt", "extra", "message"),
    [
        ("x", {"tempo": 90}, "'tempo' is unknown"),
        ("x", {"reference": "/etc/passwd"}, "'reference' is unknown"),
        ("x", {"melody_file": "/etc/passwd"}, "'melody_file' is unknown"),
        ({"prompt": "x", "lyrics": "a"}, {"lyrics": "b"}, "'lyrics' is in the prompt and in"),
        ("x", {"seconds": "long"}, "seconds"),
        (["x"], {}, "description"),
    ],
    ids=["unknown", "path", "melody", "twice", "type", "prompt"],
)
def test_wrong_requests_are_refused_by_name(
    prompt: Any, extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        state = asks(prompt, seed=1, **extra)
        request_of(state.prompt, state.sampling)


def test_the_plugin_is_found_and_registers(omni: dict[str, Any]) -> None:
    text = (ROOT / "setup.py").read_text()
    assert '"vllm_omni.general_plugins": ["mudit = mudit_engine.serving.omni:register"]' in text
    point = EntryPoint("mudit", "mudit_engine.serving.omni:register", "vllm_omni.general_plugins")
    assert point.load() is register
    register()
    assert omni == {ARCHITECTURE: ("mudit_engine.serving.omni", "MuditPipeline")}


@pytest.mark.slow
@pytest.mark.skipif(not OMNI, reason="needs MUDIT_OMNI_PYTHON: run `make omni`")
def test_their_scheduler_and_runner_make_the_pipelines_songs(micro: Path, tmp_path: Path) -> None:
    script, out = ROOT / "tests" / "helpers" / "omni_songs.py", tmp_path / "out.json"
    done = subprocess.run(
        [str(Path(str(OMNI)).absolute()), str(script), str(micro), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["registered"] and found["supports"] and found["version"].startswith("0.30")
    rows = found["rows"]
    for id, samples in (("piano", 24000), ("rock", 40000), ("short", 8000), ("late", 16000)):
        assert rows[id] == {"shape": [1, 1, samples], "far": 0.0}, (id, rows[id])
    assert "'tempo' is unknown" in rows["wrong"]["error"], "a user's error is its request's own"
    assert rows["stopped"] == {"error": None} and found["left"] == [], "nothing is kept of it"
    assert max(found["widths"]) >= 4, "requests of unlike lengths and guidance share a step"
