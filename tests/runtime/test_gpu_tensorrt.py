"""On a machine with an NVIDIA GPU: engines run, songs come out as PyTorch makes them, plugins
compute what their kernels compute.

    pip install tensorrt  (A100, H100)  or  tensorrt-rtx
    TRITON_INTERPRET=0 pytest -m gpu tests/runtime/test_gpu_tensorrt.py

Nothing here runs without a GPU; what can be checked without one is in test_trt_denoiser.py,
test_tensorrt_build.py and tests/kernels/test_tensorrt_plugins.py.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mudit_engine.availability import available
from mudit_engine.cli.main import run
from mudit_engine.config import load_config
from mudit_engine.kernels.adaln import residual_norm_reference
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.guided_step import SongRows, guided_step_reference
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.profiling import strict

PACKAGE = next((name for name in ("tensorrt", "tensorrt_rtx") if available(name)), None)
ABSENT = "needs a CUDA device, TRITON_INTERPRET=0 and tensorrt or tensorrt-rtx"
usable = torch.cuda.is_available() and PACKAGE is not None and not strict.INTERPRETED
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not usable, reason=ABSENT)]

REQUESTS = [
    SongRequest(description="slow piano", lyrics="你好世界", seconds=6.0, seed=1),
    SongRequest(
        description="rock",
        seconds=3.0,
        seed=2,
        negative="noise",
        sampler={"guidance": 3.0, "guidance_interval": (0.3, 0.8)},
    ),
    SongRequest(
        description="drums", seconds=18.0, seed=3, sampler={"name": "sde-euler", "steps": 6}
    ),
    SongRequest(description="strings", seconds=5.0, seed=4, sampler={"guidance": 1.0}),
]


@pytest.fixture(scope="module")
def engines(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "deploy"
    major, minor = torch.cuda.get_device_capability()
    target = {
        "tensorrt_rtx": "rtx-portable",
        "tensorrt": {(8, 0): "a100", (9, 0): "h100"}.get((major, minor)),
    }[str(PACKAGE)]
    if target is None:
        pytest.skip(
            f"tensorrt has no target for compute capability {major}.{minor}: install tensorrt-rtx"
        )
    assert run(["export", "onnx", str(model), str(folder), "--flavour", "bf16", "--no-parity"]) == 0
    assert (
        run(
            [
                "export",
                "tensorrt",
                str(folder),
                "--target",
                target,
                "--bucket",
                "8:64",
                "--bucket",
                "20",
            ]
        )
        == 0
    )
    return folder


def test_every_engine_is_timed(engines: Path) -> None:
    for report in (engines / "engines").rglob("report.json"):
        for row in json.loads(report.read_text()):
            assert row["measured"] and all(
                0 < one["p50_ms"] <= one["p90_ms"] <= one["p99_ms"] for one in row["measured"]
            )


def test_songs_equal_pytorch_to_bf16(engines: Path, model: Path) -> None:
    found = SongPipeline.from_pretrained(engines, runtime="tensorrt").generate(REQUESTS)
    wanted = SongPipeline.from_pretrained(model, device="cpu", dtype=torch.float32).generate(
        REQUESTS
    )
    in_torch = SongPipeline.from_pretrained(model, device="cuda", dtype=torch.bfloat16).generate(
        REQUESTS
    )
    for song, expected, same_type in zip(found, wanted, in_torch, strict=True):
        a, b, c = (torch.from_numpy(one.latents) for one in (song, expected, same_type))
        # the error of bf16 itself, doubled
        assert float((a - b).norm()) <= 2 * float((c - b).norm()) + 1e-3 * float(b.norm())


def test_a_captured_graph_gives_the_same_bits_again_and_serves_other_songs(engines: Path) -> None:
    pipeline = SongPipeline.from_pretrained(engines, runtime="tensorrt")
    first = pipeline.generate([REQUESTS[0]])[0]
    other = pipeline.generate(
        [SongRequest(description="else", lyrics="再见", seconds=6.0, seed=9)]
    )[0]
    again = pipeline.generate([REQUESTS[0]])[0]
    assert (first.latents == again.latents).all() and (first.audio == again.audio).all()
    assert (first.latents != other.latents).any()


def test_an_engine_of_another_machine_is_refused(engines: Path, tmp_path: Path) -> None:
    from mudit_engine.errors import ModelError
    from mudit_engine.runtime.trt_device import CudaDevice

    shutil.copytree(next((engines / "engines").iterdir()), tmp_path / "broken")
    (tmp_path / "broken" / "step.engine").write_bytes(b"not an engine")
    with pytest.raises(ModelError, match="does not open"):
        CudaDevice(tmp_path / "broken", str(PACKAGE), ("step",))


@pytest.mark.skipif(PACKAGE != "tensorrt", reason="tensorrt-rtx has no tensorrt.plugin")
def test_plugins_compute_what_their_kernels_compute() -> None:
    import tensorrt as trt

    trtp = importlib.import_module("tensorrt.plugin")
    from mudit_engine.export.tensorrt_plugins import register

    major, minor = torch.cuda.get_device_capability()
    register(
        trtp,
        arch=f"sm_{major}{minor}",
        dtypes={
            trt.bfloat16: torch.bfloat16,
            trt.float32: torch.float32,
            trt.float16: torch.float16,
        },
    )
    ops = trtp.op.mudit
    torch.manual_seed(0)

    def made(*shape: int, kind: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").to(kind)

    q, k, v = made(300, 12, 128), made(90, 12, 128), made(90, 12, 128)
    segments = Segments.cross_attention([200, 100], [60, 30])
    from mudit_engine.kernels.attention_forward import forward_config

    block = forward_config(128, torch.bfloat16, min(10 * major + minor, 89)).block_q
    tiles = segments.query_tiles(block, "cuda")
    out, _ = _run(
        trt, ops.attention, {"q": q, "k": k, "v": v, "tiles": tiles}, {"scale": 128**-0.5}
    )
    attended = attention_reference(*(x.cpu().float() for x in (q, k, v)), segments)
    torch.testing.assert_close(out.cpu().float(), attended, atol=2e-2, rtol=2e-2)

    runs = Runs(((200, 1), (100, 0)))
    x, y, gate, shift, scale = (
        made(300, 1536),
        made(300, 1536),
        made(2, 1536),
        made(2, 1536),
        made(2, 1536),
    )
    norm_tiles, _ = runs.tiles("cuda", tile_rows=8, table_rows=2)
    given = {"x": x, "y": y, "gate": gate, "shift": shift, "scale": scale, "tiles": norm_tiles}
    results = _run(trt, ops.residual_norm, given, {})
    wanted = residual_norm_reference(
        *(one.cpu().float() for one in (x, y, gate, shift, scale)), runs
    )
    for result, expected in zip(results, wanted, strict=True):
        torch.testing.assert_close(result.cpu().float(), expected, atol=6e-2, rtol=2e-2)

    spans = SongRows(((0, 200, 0, 300), (200, 100, 200, -1)))
    state, kept, noise = (made(300, 96, kind=torch.float32) for _ in range(3))
    network, rows = made(500, 96), made(2, 7, kind=torch.float32)
    given = {
        "x": state,
        "kept": kept,
        "out": network,
        "noise": noise,
        "rows": rows,
        "spans": spans.tensor("cuda"),
    }
    results = _run(trt, ops.guided_step, given, {})
    wanted = guided_step_reference(
        *(one.cpu() for one in (state, kept, network.float(), noise, rows)), spans
    )
    for result, expected in zip(results, wanted, strict=True):
        torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=1e-4)


def _run(
    trt: Any, plugin: Any, inputs: dict[str, torch.Tensor], attributes: dict[str, Any]
) -> list[torch.Tensor]:
    """A network of one plugin, built and run on these inputs."""
    kinds = {torch.bfloat16: trt.bfloat16, torch.float32: trt.float32, torch.int32: trt.int32}
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags = [
        getattr(trt.NetworkDefinitionCreationFlag, name, None)
        for name in ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
    ]
    network = builder.create_network(sum(1 << int(flag) for flag in flags if flag is not None))
    tensors = [
        network.add_input(name, kinds[value.dtype], tuple(value.shape))
        for name, value in inputs.items()
    ]
    layer = network.add_plugin(plugin(*tensors, **attributes), aot=True)
    for index in range(layer.num_outputs):
        layer.get_output(index).name = f"result{index}"
        network.mark_output(layer.get_output(index))
    engine = trt.Runtime(logger).deserialize_cuda_engine(
        builder.build_serialized_network(network, builder.create_builder_config())
    )
    context = engine.create_execution_context()
    results = []
    types = {theirs: ours for ours, theirs in kinds.items()}
    for index in range(layer.num_outputs):
        name = f"result{index}"
        shape = tuple(context.get_tensor_shape(name))
        results.append(
            torch.empty(shape, dtype=types[engine.get_tensor_dtype(name)], device="cuda")
        )
        context.set_tensor_address(name, results[-1].data_ptr())
    for name, value in inputs.items():
        context.set_tensor_address(name, value.contiguous().data_ptr())
    stream = torch.cuda.current_stream()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return results


def test_the_model_has_what_the_requests_need(model: Path) -> None:
    assert load_config(model).max_seconds >= max(request.seconds or 0 for request in REQUESTS)
