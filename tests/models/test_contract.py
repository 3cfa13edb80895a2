"""Weights go with the values that they were trained for, and with no others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from micro_model import MICRO, save_micro
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import ModelError
from mudit_engine.models import contract
from mudit_engine.models.fewstep import student_of
from mudit_engine.models.folder import EMBEDDED, PARTS, embedded, load_part
from mudit_engine.text.vocabulary import Vocabulary


def _changed(config: ModelConfig, part: str, **values: Any) -> ModelConfig:
    return config.model_copy(update={part: getattr(config, part).model_copy(update=values)})


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("sampler", {"steps": 7}, "steps is 7 here, the weights were trained for 2"),
        ("sampler", {"shift": 2.5}, "shift is 2.5 here, the weights were trained for 1.0"),
        ("sampler", {"guidance": 9.0}, "guidance is 9.0 here, .* for 2.0"),
        ("sampler", {"name": "sde-euler"}, "sampler is 'sde-euler' here, .* for 'ode-euler'"),
        ("vae", {"sample_rate": 16000}, "frame_rate is 31.25 here, .* for 15.625"),
        ("path", {"bezier_control": 0.25}, "path is .*0.25.* here"),
    ],
    ids=["steps", "shift", "guidance", "sampler", "frame-rate", "path"],
)
def test_another_configuration_is_refused_with_both_values(
    tmp_path: Path, part: str, values: dict[str, Any], message: str
) -> None:
    folder = save_micro(tmp_path)
    changed = _changed(load_config(folder), part, **values)
    (folder / "config.json").write_text(changed.model_dump_json())
    with pytest.raises(ModelError, match=message):
        load_part("chinmu", changed, folder)


def test_an_edited_contract_is_refused(tmp_path: Path) -> None:
    folder = save_micro(tmp_path)
    path = folder / contract.FILE
    held = json.loads(path.read_text())
    held["trained_for"]["steps"] = 7
    path.write_text(json.dumps(held))
    with pytest.raises(ModelError, match="changed by hand"):
        contract.check_contract(MICRO, folder)
    for text in ("", "[]", "{}", "null", '{"trained_for": 3}'):
        path.write_text(text)
        with pytest.raises(ModelError, match="cannot be read"):
            contract.check_contract(MICRO, folder)


def test_tokens_that_were_appended_later_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, own = save_micro(tmp_path), Vocabulary.load("v1")
    rows = tuple(zip(own._tokens, own._families, strict=True))
    longer = Vocabulary("v1", (*rows, ("en:NEW0", "arpabet")))
    monkeypatch.setattr(contract.Vocabulary, "load", lambda version: longer)
    contract.check_contract(MICRO, folder)
    moved = Vocabulary("v1", (rows[1], rows[0], *rows[2:]))
    monkeypatch.setattr(contract.Vocabulary, "load", lambda version: moved)
    with pytest.raises(ModelError, match="vocabulary_sha256"):
        contract.check_contract(MICRO, folder)


def test_the_embedded_models_have_theirs() -> None:
    for name in embedded():
        assert (EMBEDDED / name / contract.FILE).is_file()
        contract.check_contract(load_config(EMBEDDED / name), EMBEDDED / name)
        for part in PARTS:
            assert contract.check_part(EMBEDDED / name, part).is_file()
        if (EMBEDDED / name / "fewstep").is_dir():
            assert (
                student_of(EMBEDDED / name).sampler.steps
                < load_config(EMBEDDED / name).sampler.steps
            )


def test_no_weights_are_embedded_twice() -> None:
    """By their tensors: equal ones may lie in files of different bytes."""
    seen: dict[str, Path] = {}
    for path in sorted(EMBEDDED.rglob("*.safetensors")):
        digest = hashlib.sha256()
        for name, value in sorted(load_file(path).items()):
            digest.update(name.encode() + value.numpy().tobytes())
        assert (found := seen.setdefault(digest.hexdigest(), path)) == path, (found, path)
