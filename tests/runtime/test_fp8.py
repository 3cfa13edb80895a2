"""FP8 products by rows: the arithmetic, what is replaced, and the gate on whole songs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mudit_engine import SongPipeline
from mudit_engine.cli.main import run as mudit
from mudit_engine.errors import GateError, InputError, MissingError, ModelError
from mudit_engine.models.lora import LoraSpec
from mudit_engine.runtime import fp8
from mudit_engine.runtime.denoiser import Denoiser
from mudit_engine.runtime.fp8 import (
    FP8,
    LAYERS,
    Fp8Linear,
    check_device,
    hold_to,
    quantise,
    with_fp8,
)
from small_denoisers import make_denoiser, song

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rows_keep_their_own_scale() -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1e-4, 1.0, 1e3, 0.0, 1e6])[:, None]
    q, scale = quantise(x)
    assert q.dtype == FP8 and scale.shape == (5, 1) and scale.dtype == torch.float32
    back = q.float() * scale
    live = x.norm(dim=-1) > 0
    assert ((back - x).norm(dim=-1) <= 0.04 * x.norm(dim=-1)).all() and live.sum() == 4
    assert (back[3] == 0).all() and torch.isfinite(q.float()).all()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_the_product_is_that_of_the_rounded_operands(bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48, bias=bias)
    x = torch.randn(7, 64)
    with torch.no_grad():
        (q, s), (w, ws) = quantise(x), quantise(linear.weight)
        want = (q.double() * s) @ (w.double() * ws).T + (linear.bias.double() if bias else 0)
        got, exact = Fp8Linear(linear)(x), linear(x)
    assert got.dtype == x.dtype
    assert float((got.double() - want).norm() / want.norm()) < 3e-3  # the result is rounded to bf16
    assert 0.01 < float((got - exact).norm() / exact.norm()) < 0.06


def test_qkv_and_mlp_alone_are_replaced_in_a_copy() -> None:
    dit = make_denoiser().dit
    fast = with_fp8(dit)
    replaced = {n for n, module in fast.named_modules() if isinstance(module, Fp8Linear)}
    assert replaced == {f"blocks.{i}.{n}" for i in range(len(dit.blocks)) for n in LAYERS}
    assert not any(isinstance(module, Fp8Linear) for module in dit.modules())


def test_whole_songs_are_held_to_their_own() -> None:
    exact = make_denoiser()
    songs = [song(20, 4, seed=1, steps=3), song(9, 0, seed=2, steps=3)]
    fast = Denoiser(with_fp8(exact.dit))
    error = hold_to(fast, exact, songs)
    assert 1e-4 < error < 0.1
    with pytest.raises(GateError, match="this network needs bf16"):
        hold_to(fast, exact, songs, limit=error / 2)
    fast.dit.blocks[0].up.get_buffer("scale").mul_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        hold_to(fast, exact, songs)


def test_devices_without_fp8_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(MissingError, match="a CPU imitates FP8 products"):
        SongPipeline.from_pretrained("tiny", device="cpu", dtype=FP8)
    wanted = ["generate", "--description", "piano", "--out", str(tmp_path / "a.wav")]
    assert mudit([*wanted, "--device", "cpu", "--precision", "fp8"]) == 3
    assert "take --precision bf16" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A10")
    with pytest.raises(MissingError, match="an A10 has no FP8 products"):
        check_device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    check_device(torch.device("cuda"))


def test_a_model_is_opened_in_fp8_behind_the_gate(
    micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that has FP8, on a CPU that imitates it."""
    monkeypatch.setattr(fp8, "check_device", lambda device: None)
    pipeline = SongPipeline.from_pretrained(micro, device="cpu", dtype=FP8)
    dit = pipeline.runtime.dit
    assert isinstance(dit.blocks[0].up, Fp8Linear) and pipeline.precision is FP8
    assert dit.final.weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match="FP8 has rounded away"):
        pipeline.set_loras([LoraSpec(micro)])
    monkeypatch.setitem(hold_to.__kwdefaults__, "limit", 0.0)
    with pytest.raises(GateError, match="take --precision bf16"):
        SongPipeline.from_pretrained(micro, device="cpu", dtype=FP8)
