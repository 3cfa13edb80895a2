"""Models that share parts: one copy of a codec, and no other codec in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from micro_model import MICRO, save_micro
from mudit_engine.cli.main import run
from mudit_engine.config import load_config
from mudit_engine.errors import InputError, ModelError
from mudit_engine.models import parts
from mudit_engine.models.complete import PartSource, complete_folder, share_parts
from mudit_engine.models.folder import PARTS, load_part, save_config
from mudit_engine.models.parts import has_part, part_file
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest

REQUEST = SongRequest("slow piano", seconds=2, seed=3)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """`mudit`, on the ddpm path, beside `whole`, whose VAE and ChinMu it takes."""
    save_micro(tmp_path / "whole")
    folder = save_micro(tmp_path / "mudit")
    path = MICRO.path.model_copy(update={"kind": "ddpm", "prediction": "v"})
    sampler = MICRO.sampler.model_copy(update={"name": "ddim"})
    save_config(load_config(folder).model_copy(update={"path": path, "sampler": sampler}), folder)
    return share_parts(folder, "whole")


def songs(folder: Path) -> Any:
    pipeline = SongPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32)
    [song] = pipeline.generate([REQUEST])
    return song.audio


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def change(path: Path) -> None:
    """Weights of the same shapes and other values."""
    weights = {name: value * 1.01 for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def test_a_model_without_copies_sings_as_a_whole_one(shared: Path, tmp_path: Path) -> None:
    assert names(shared) == ["config.json", "contract.json", "dit.safetensors", "parts.json"]
    assert json.loads((shared / "parts.json").read_text()) == {"vae": "whole", "chinmu": "whole"}
    assert part_file(shared, "vae") == tmp_path / "whole" / "vae.safetensors"
    assert all(has_part(shared, part) for part in PARTS)
    whole = tmp_path / "copy"
    shutil.copytree(tmp_path / "whole", whole)
    for name in ("config.json", "dit.safetensors"):
        shutil.copyfile(shared / name, whole / name)
    save_config(load_config(shared), whole)
    first = songs(shared)
    assert (first == songs(whole)).all() and (first == songs(shared)).all()
    assert not (first == songs(tmp_path / "whole")).all()


def test_what_is_written_is_whole(shared: Path, tmp_path: Path) -> None:
    pipeline = SongPipeline.from_pretrained(shared, device="cpu", dtype=torch.float32)
    saved = pipeline.save_pretrained(tmp_path / "elsewhere" / "saved")
    assert not (saved / "parts.json").exists()
    assert (songs(saved) == pipeline.generate([REQUEST])[0].audio).all()
    bare = tmp_path / "elsewhere" / "bare"
    save_config(load_config(shared), bare)
    assert complete_folder(bare, [PartSource(shared)]) == ()
    assert all((bare / f"{part}.safetensors").is_file() for part in PARTS)


def test_an_export_is_whole(shared: Path, tmp_path: Path) -> None:
    from mudit_engine.export.onnx_export import _copy_model

    out = tmp_path / "elsewhere" / "deploy"
    out.mkdir(parents=True)
    _copy_model(shared, out)
    assert {f"{part}.safetensors" for part in PARTS} < set(names(out))
    assert "parts.json" not in names(out) and (songs(out) == songs(shared)).all()


def test_another_part_is_refused_with_both_values(shared: Path, tmp_path: Path) -> None:
    held = json.loads((shared / "contract.json").read_text())["trained_for"]["parts"]
    change(tmp_path / "whole" / "vae.safetensors")
    load_part("chinmu", load_config(shared), shared)
    said = f"whole/vae.safetensors' is not the vae .*mudit' was trained beside.*{held['vae']}"
    with pytest.raises(ModelError, match=said):
        SongPipeline.from_pretrained(shared)
    # nor one that lies in the folder itself
    shutil.copyfile(tmp_path / "whole" / "vae.safetensors", shared / "vae.safetensors")
    with pytest.raises(ModelError, match=f"mudit/vae.safetensors' is not .*{held['vae']}"):
        load_part("vae", load_config(shared), shared)
    command = ["generate", "--model", str(shared), "--description", "piano"]
    assert run([*command, "--out", str(tmp_path / "a.wav")]) == 1


def test_a_part_that_is_not_there_is_named(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "whole" / "chinmu.safetensors").unlink()
    with pytest.raises(ModelError, match=r"takes its chinmu from 'whole', and there is no"):
        SongPipeline.from_pretrained(shared)
    shutil.rmtree(tmp_path / "whole")
    with pytest.raises(ModelError, match="takes its vae from 'whole'"):
        load_part("vae", load_config(shared), shared)


def test_a_part_without_a_sha256_is_refused(shared: Path) -> None:
    (shared / "contract.json").unlink()
    with pytest.raises(ModelError, match="has no sha256 of the vae"):
        load_part("vae", load_config(shared), shared)
    save_config(load_config(shared), shared)
    load_part("vae", load_config(shared), shared)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"vae": "../whole"}', "takes vae from '../whole': give an embedded model"),
        ('{"vae": "/whole"}', "takes vae from '/whole'"),
        ('{"vae": ".."}', r"takes vae from '\.\.'"),
        ('{"vae": ""}', "takes vae from ''"),
        ('{"vae": 3}', "takes vae from 3"),
        ('{"vea": "whole"}', "names part 'vea': parts are dit, vae, chinmu"),
        ('["vae"]', "holds a list"),
        ("{", "cannot be read"),
    ],
)
def test_only_models_beside_it_are_named(shared: Path, text: str, said: str) -> None:
    (shared / "parts.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        load_part("vae", load_config(shared), shared)


def test_only_equal_parts_are_shared(tmp_path: Path) -> None:
    save_micro(tmp_path / "a")
    folder = save_micro(tmp_path / "b")
    change(folder / "chinmu.safetensors")
    before = names(folder)
    with pytest.raises(InputError, match="chinmu of '.*b' is not that of 'a': .* differs"):
        share_parts(folder, "a")
    with pytest.raises(ModelError, match="'nobody' has no vae"):
        share_parts(folder, "nobody")
    assert names(folder) == before


def test_an_embedded_model_may_be_named_from_anywhere(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    save_micro(assets / "tiny")
    for part in ("vae", "chinmu"):  # equal weights, and perhaps other bytes
        shutil.copyfile(part_file(shared, part), assets / "tiny" / f"{part}.safetensors")
    monkeypatch.setattr(parts, "EMBEDDED", assets)
    (shared / "parts.json").write_text('{"vae": "tiny", "chinmu": "tiny"}')
    assert part_file(shared, "vae") == assets / "tiny" / "vae.safetensors"
    load_part("vae", load_config(shared), shared)


def test_training_starts_from_a_model_with_parts_of_another(shared: Path, tmp_path: Path) -> None:
    """What a data set is encoded with, and what a training's codec is held to."""
    from mudit_engine.training.dataset.encoded_with import note_encoder, read_encoder

    out = tmp_path / "latents"
    note_encoder(out, shared, parts=("vae", "chinmu"))
    note_encoder(out, tmp_path / "whole", parts=("vae",))
    known = read_encoder(out)
    assert known is not None and PartSource(shared, known.sha256).has("vae")
