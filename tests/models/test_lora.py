"""LoRAs of the song transformer: as peft computes them, merged or apart, several at once, and gone
without a trace.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mudit_engine.cli.main import run
from mudit_engine.config import DitConfig
from mudit_engine.errors import InputError, ModelError
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.models.lora import (
    PARTS,
    LoraSet,
    LoraSpec,
    add_lora,
    parse_lora,
    read_lora,
    save_lora,
)
from mudit_engine.pipeline import SongPipeline, SongRequest

peft = pytest.importorskip("peft")

SMALL = DitConfig(
    latent_channels=8, width=32, blocks=2, heads=2, lyric_width=16, lyric_head_dim=8, lyric_blocks=1
)


def small_dit(**changes: str) -> DiT:
    torch.manual_seed(0)
    dit = DiT(SMALL.model_copy(update=changes))
    with torch.no_grad():
        for p in dit.parameters():  # adaLN-Zero would hide every block
            p.add_(torch.randn_like(p) * 0.1)
    return dit.eval()


@torch.no_grad()
def output(dit: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    batch = DitBatch(
        latents_TC=torch.randn(20, 8, generator=generator),
        frames=[12, 8],
        times_B=torch.tensor([0.3, 0.8]),
        seconds_B=torch.tensor([2.0, 1.0]),
        user_B=torch.tensor([0, 1]),
        descriptions=torch.randn(3, 512, generator=generator),
        fragments=[2, 1],
        lyric_ids=torch.randint(0, 100, (9,), generator=generator),
        lyrics=[5, 4],
        references=torch.empty(0, 8),
        reference_frames=[0, 0],
        reference_kinds=[0, 0],
    )
    result: Tensor = dit(batch)
    return result


def make_lora(folder: Path, seed: int, *, rank: int = 4, alpha: int = 8, **changes: str) -> Path:
    dit = small_dit(**changes)
    torch.manual_seed(seed)
    config = add_lora(dit, rank=rank, alpha=alpha, dropout=0.0, parts=PARTS)
    state = {n: torch.randn_like(p) * 0.1 for n, p in dit.named_parameters() if p.requires_grad}
    save_lora(folder, state, config, base="small")
    return folder


@pytest.mark.parametrize("modulation", ["shared", "per_block"])
@pytest.mark.parametrize("cross_attention", ["serial", "parallel"])
def test_peft_computes_the_same(tmp_path: Path, modulation: str, cross_attention: str) -> None:
    """The judge is peft's own reader and layers, which know nothing of this project's."""
    changes = {"modulation": modulation, "cross_attention": cross_attention}
    folder = make_lora(tmp_path / "a", 1, **changes)
    judge = small_dit(**changes)
    plain = output(judge)
    config = peft.LoraConfig.from_pretrained(folder)
    peft.inject_adapter_in_model(config, judge)
    state = load_file(folder / "adapter_model.safetensors")
    # as peft's own models name them, which wrap the network once more
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    result = peft.set_peft_model_state_dict(judge, state)
    assert not result.unexpected_keys
    expected = output(judge)
    assert (expected - plain).abs().max() > 0.1
    for merged in (True, False):
        dit = small_dit(**changes)
        LoraSet(dit, merged=merged).use([LoraSpec(folder)])
        torch.testing.assert_close(output(dit), expected, rtol=1e-5, atol=1e-5)


def test_several_at_once_and_gone_again(tmp_path: Path) -> None:
    a, b = make_lora(tmp_path / "a", 1), make_lora(tmp_path / "b", 2, rank=2, alpha=6)
    results = []
    for merged in (True, False):
        dit = small_dit()
        before = {name: value.clone() for name, value in dit.state_dict().items()}
        pointers = {name: p.data_ptr() for name, p in dit.named_parameters()}
        loras, plain = LoraSet(dit, merged=merged), output(dit)
        loras.use([LoraSpec(a, 0.7), LoraSpec(b, -0.5)])
        both = output(dit)
        loras.use([LoraSpec(b)])
        one = output(dit)
        loras.use([LoraSpec(a, 0.7), LoraSpec(b, -0.5)])
        torch.testing.assert_close(output(dit), both, rtol=0, atol=1e-6)
        loras.use([])
        if merged:
            assert all(torch.equal(before[name], v) for name, v in dit.state_dict().items())
            # captured graphs read the same memory
            assert pointers == {name: p.data_ptr() for name, p in dit.named_parameters()}
        torch.testing.assert_close(output(dit), plain, rtol=0, atol=0 if merged else 1e-6)
        results.append((both, one))
    for merged_out, apart_out in zip(*results, strict=True):
        torch.testing.assert_close(merged_out, apart_out, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    dit = small_dit()
    plain = output(dit)
    loras = LoraSet(dit)
    good = make_lora(tmp_path / "a", 1)
    wide = make_lora(tmp_path / "wide", 1, modulation="per_block")
    loras.use([LoraSpec(good)])
    acting = output(dit)
    with pytest.raises(ModelError, match="it was made for another model"):
        loras.use([LoraSpec(good, 0.5), LoraSpec(wide)])
    assert torch.equal(output(dit), acting) and not torch.equal(acting, plain)
    weights = load_file(good / "adapter_model.safetensors")
    name = next(iter(weights))
    for wrong, message in (
        ({**weights, name: torch.full_like(weights[name], torch.nan)}, "NaN or no LoRA"),
        ({name: weights[name]}, "has no A and B"),
        ({**weights, "blocks.0.x": torch.ones(1)}, "NaN or no LoRA"),
    ):
        save_file(wrong, good / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=message):
            read_lora(good)
    config = json.loads((good / "adapter_config.json").read_text())
    (good / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ModelError, match="use_dora"):
        read_lora(good)


def test_names(tmp_path: Path) -> None:
    folder = make_lora(tmp_path / "a", 1)
    assert parse_lora(f"{folder}:0.25") == LoraSpec(folder, 0.25)
    assert parse_lora(str(folder)) == LoraSpec(folder, 1.0)
    for wrong in (f"{folder}:nan", "nowhere", f"{folder}:loud"):
        with pytest.raises(InputError, match="FOLDER:SCALE"):
            parse_lora(wrong)


def test_pipeline_swaps_and_saves(tmp_path: Path) -> None:
    """Songs of swapped LoRAs equal those of the merged weights, latents within 1e-5 of the
    largest.
    """
    pipeline = SongPipeline.from_pretrained("tiny", device="cpu", dtype=torch.float32)
    dit = pipeline.runtime.dit  # type: ignore[attr-defined]
    pairs = {"blocks.0.qkv": (256, 768), "blocks.3.up": (256, 896), "modulation": (256, 1536)}
    torch.manual_seed(0)
    state = {}
    for name, (width, out) in pairs.items():
        assert dit.get_submodule(name).weight.shape == (out, width)
        state[f"{name}.lora_A.default.weight"] = torch.randn(4, width) * 0.05
        state[f"{name}.lora_B.default.weight"] = torch.randn(out, 4) * 0.02
    from mudit_engine.models.lora import lora_config

    config = lora_config(rank=4, alpha=4, dropout=0.0, parts=PARTS)
    save_lora(tmp_path / "lora", state, config, base="tiny")
    request = SongRequest("slow piano", "la la", seconds=2, seed=1, sampler={"steps": 3})
    plain = pipeline.generate([request])[0].latents
    pipeline.set_loras([parse_lora(f"{tmp_path / 'lora'}:0.5")])
    [song] = pipeline.generate([request])
    assert song.info["loras"] == [{"folder": str(tmp_path / "lora"), "scale": 0.5}]
    assert abs(song.latents - plain).max() > 1e-2
    saved = pipeline.save_pretrained(tmp_path / "saved")
    assert (saved / "README.md").read_text().startswith("---\nlibrary_name")
    pipeline.set_loras([])
    assert (pipeline.generate([request])[0].latents == plain).all()
    # merged weights are stored as the embedded model's are, in half precision
    dit32 = SongPipeline.from_pretrained(saved, device="cpu", dtype=torch.float32)
    assert abs(dit32.generate([request])[0].latents - song.latents).max() < 5e-2
    apart = SongPipeline.from_pretrained("tiny", device="cpu", dtype=torch.float32)
    apart.set_loras([parse_lora(f"{tmp_path / 'lora'}:0.5")], merged=False)
    off = abs(apart.generate([request])[0].latents - song.latents).max()
    assert off < 1e-5 * abs(song.latents).max()
    out = tmp_path / "song.wav"
    command = ["generate", "--description", "slow piano", "--seconds", "2", "--steps", "2"]
    assert run([*command, "--lora", f"{tmp_path / 'lora'}:0.5", "--out", str(out)]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["loras"][0]["scale"] == 0.5
    assert run([*command, "--lora", "nowhere", "--out", str(out)]) == 2
