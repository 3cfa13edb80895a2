"""Songs by vLLM-Omni's own step scheduler and model runner, on a CPU, in its own environment:

    python omni_songs.py MODEL_FOLDER out.json

Requests join at different ticks, one of them wrong and one aborted on the way. What the runner
needs of a GPU platform (its forward context and memory figures) is left out; the scheduler, the
batching of states, the steps and the results are theirs. out.json says what became of each request
and how far its audio is from the pipeline's.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import vllm_omni.diffusion.worker.diffusion_model_runner as own
from vllm_omni.diffusion.models.interface import supports_step_execution
from vllm_omni.diffusion.registry import DiffusionModelRegistry
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.sched import StepScheduler
from vllm_omni.inputs.data import OmniDiffusionSamplingParams

from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest
from mudit_engine.serving.omni import ARCHITECTURE, MuditPipeline, register

# tick of arrival -> (id, prompt, seed, steps, extra_args)
ASKED: list[tuple[int, str, Any, int, int, dict[str, Any]]] = [
    (0, "piano", "calm piano", 1, 6, {"seconds": 3}),
    (1, "rock", {"prompt": "rock", "lyrics": "[verse]\n月亮升起来"}, 2, 4,
     {"seconds": 5, "guidance": 3.0}),
    (1, "short", "x", 3, 5, {"seconds": 1, "sampler": "sde-euler"}),
    (2, "wrong", "x", 4, 4, {"tempo": 90}),
    (2, "stopped", "y", 5, 50, {"seconds": 4}),
    (4, "late", "slow jazz", 6, 3, {"seconds": 2}),
]  # fmt: skip
STOP_AT = 6  # tick at which "stopped" is aborted


def make_runner(pipeline: Any) -> Any:
    """Their runner around our pipeline, without what only a GPU platform has."""
    own.set_forward_context = lambda *a, **k: contextlib.nullcontext()
    own.current_omni_platform = SimpleNamespace(
        is_available=lambda: False,
        device_type="cpu",
        reset_peak_memory_stats=lambda: None,
        max_memory_reserved=lambda: 0,
        max_memory_allocated=lambda: 0,
    )
    runner = object.__new__(own.DiffusionModelRunner)
    runner.vllm_config = SimpleNamespace()
    runner.od_config = SimpleNamespace(
        cache_backend=None,
        parallel_config=SimpleNamespace(use_hsdp=False),
        streaming_output=False,
        diffusion_kv_config=None,
        kv_transfer_config=None,
    )
    runner.device, runner.pipeline, runner.state_cache = torch.device("cpu"), pipeline, {}
    for name in (
        *("cache_backend", "offload_backend", "prompt_embed_cache", "input_batch"),
        *("_interaction_coordinator", "diffusion_kv_backend", "kv_transfer_manager"),
        *("_kv_connector", "_kv_receive_progress"),
    ):
        setattr(runner, name, None)
    for name in ("_maybe_recv_stage_payload", "_maybe_send_stage_payload"):
        setattr(runner, name, lambda *a, **k: None)
    return runner


def drive(runner: Any) -> tuple[dict[str, Any], list[int]]:
    """Results by id, and how many songs each step had."""
    scheduler = StepScheduler()
    scheduler.initialize(SimpleNamespace(max_num_seqs=8))
    left, found, widths, tick = list(ASKED), {}, [], 0
    while left or scheduler.has_requests():
        for one in [one for one in left if one[0] <= tick]:
            left.remove(one)
            _, id, prompt, seed, steps, extra = one
            sampling = OmniDiffusionSamplingParams(
                num_inference_steps=steps, seed=seed, extra_args=extra
            )
            scheduler.add_request(
                OmniDiffusionRequest(prompt=prompt, request_id=id, sampling_params=sampling)
            )
        if tick == STOP_AT:
            scheduler.finish_requests("stopped", own_status("FINISHED_ABORTED"))
        wave = scheduler.schedule()
        widths.append(len(wave.scheduled_request_ids))
        output = runner.execute_stepwise(wave)
        for said in output.runner_outputs:
            if said.finished:
                found[said.request_id] = said.result
        scheduler.update_from_output(wave, output)
        tick += 1
        assert tick < 200, "the scheduler does not come to an end"
    return found, widths


def own_status(name: str) -> Any:
    from vllm_omni.diffusion.sched.interface import DiffusionRequestStatus

    return getattr(DiffusionRequestStatus, name)


def main(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    register()
    pipeline = MuditPipeline(od_config=SimpleNamespace(model=folder))
    runner = make_runner(pipeline)
    found, widths = drive(runner)
    songs = SongPipeline.from_pretrained(folder, device="cpu")
    rows: dict[str, Any] = {}
    for _, id, prompt, seed, steps, extra in ASKED:
        if id not in found or found[id].error is not None:
            rows[id] = {"error": found[id].error if id in found else None}
            continue
        asked = dict(prompt) if isinstance(prompt, dict) else {"prompt": prompt}
        sampler = {"steps": steps}
        if "guidance" in extra:
            sampler["guidance"] = extra["guidance"]
        if "sampler" in extra:
            sampler["name"] = extra["sampler"]
        request = SongRequest(
            asked["prompt"], lyrics=asked.get("lyrics"), seconds=extra["seconds"], seed=seed,
            sampler=sampler,
        )  # fmt: skip
        [song] = songs.generate([request])
        audio = found[id].output
        same = tuple(audio.shape[1:]) == song.audio.shape
        far = float((audio[0] - torch.from_numpy(song.audio)).abs().max()) if same else None
        rows[id] = {"shape": list(audio.shape), "far": far}
    from importlib.metadata import version

    Path(out).write_text(
        json.dumps(
            {
                "registered": ARCHITECTURE in DiffusionModelRegistry.get_supported_archs(),
                "supports": bool(supports_step_execution(pipeline)),
                "rows": rows,
                "widths": widths,
                "left": sorted(runner.state_cache),
                "version": version("vllm-omni"),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
