"""A LoRA in the graphs that are exported: they compute what the merged weights do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mudit_engine.cli.main import run
from mudit_engine.models.folder import EMBEDDED
from mudit_engine.models.lora import PARTS, LoraSpec, lora_config, save_lora
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.slow
def test_graphs_hold_the_lora(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {
        "blocks.0.qkv.lora_A.default.weight": torch.randn(4, 256) * 0.05,
        "blocks.0.qkv.lora_B.default.weight": torch.randn(768, 4) * 0.05,
    }
    lora = tmp_path / "lora"
    save_lora(lora, state, lora_config(rank=4, alpha=4, dropout=0.0, parts=PARTS), base="tiny")
    out = tmp_path / "deploy"
    command = ["export", "onnx", str(EMBEDDED / "tiny"), str(out), "--no-parity"]
    assert run([*command, "--lora", f"{lora}:0.5"]) == 0
    request = SongRequest("slow piano", seconds=2, seed=1, sampler={"steps": 2})
    graphs = SongPipeline.from_pretrained(out, runtime="onnxruntime")
    [exported] = graphs.generate([request])
    pipeline = SongPipeline.from_pretrained("tiny", device="cpu", dtype=torch.float32)
    [plain] = pipeline.generate([request])
    pipeline.set_loras([LoraSpec(lora, 0.5)])
    [merged] = pipeline.generate([request])
    assert abs(exported.latents - merged.latents).max() < 1e-4
    assert abs(exported.latents - plain.latents).max() > 1e-2
