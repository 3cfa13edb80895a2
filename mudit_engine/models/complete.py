"""A model folder that can be used: parts that were not trained are copied from the models they came
from, or taken from them without a copy, and a card says what the folder is.

    missing = complete_folder(Path("runs/a/model"), [Path("models/base")])
    write_card(Path("runs/a/model"), {"trained by": "tiny-dit-finetune, 400 steps"})
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mudit_engine.config import load_config, parse_config
from mudit_engine.errors import InputError, ModelError
from mudit_engine.files import atomic_path, sha256_of, write_json, write_text
from mudit_engine.models.contract import write_contract
from mudit_engine.models.fewstep import FOLDER as FEWSTEP
from mudit_engine.models.fewstep import Student
from mudit_engine.models.folder import PARTS, Part, load_part, save_config, save_part
from mudit_engine.models.lora import LoraSet, LoraSpec
from mudit_engine.models.parts import FILE as PARTS_FILE
from mudit_engine.models.parts import has_part, model_beside, part_file, shared_parts

CARD = "README.md"
# what the song transformer brings with it: generation goes by them
DIT_FIELDS = ("dit", "path", "sampler", "name", "max_seconds")


@dataclass(frozen=True)
class PartSource:
    """A model folder that parts may be taken from; `sha256` are checksums that they must have, by
    part.
    """

    folder: Path
    sha256: Mapping[str, str] = field(default_factory=dict)

    def has(self, part: Part) -> bool:
        if not ((self.folder / "config.json").is_file() and has_part(self.folder, part)):
            return False
        path = part_file(self.folder, part)
        return part not in self.sha256 or sha256_of(path) == self.sha256[part]


def complete_folder(folder: Path, sources: Sequence[PartSource]) -> tuple[Part, ...]:
    """Copies each part that `folder` lacks from the first source that has it. Returns the parts
    that none has.

    Raises ConfigError where a part does not go with those that are there.
    """
    fields = load_config(folder).model_dump(mode="json")
    missing, taken = [], []
    for part in PARTS:
        if has_part(folder, part):
            continue
        source = next((one for one in sources if one.has(part)), None)
        if source is None:
            missing.append(part)
            continue
        theirs = load_config(source.folder).model_dump(mode="json")
        for name in DIT_FIELDS if part == "dit" else (part,):
            fields[name] = theirs[name]
        taken.append((part, source.folder))
    if taken:
        config = parse_config(
            type(load_config(folder)), fields, source=f"'{folder}' with {_told(taken)}"
        )
        for part, source_folder in taken:
            copy_part(part_file(source_folder, part), part, folder)
        save_config(config, folder)
    return tuple(missing)


def copy_part(weights: Path, part: Part, folder: Path) -> None:
    """Copies a part's weights, and what ChinMu's text tower lies in beside them, into a folder."""
    _copy(weights, folder / weights.name)
    if part == "chinmu" and (weights.parent / "text_encoder").is_dir():
        for path in sorted((weights.parent / "text_encoder").iterdir()):
            if path.is_file():
                _copy(path, folder / "text_encoder" / path.name)


def save_model(
    source: Path,
    out: Path,
    *,
    loras: Sequence[LoraSpec] = (),
    dtype: torch.dtype | None = None,
    student: Student | None = None,
) -> Path:
    """Writes a whole copy of a model folder, parts that it takes from another model included, with
    LoRAs merged into its song transformer, in `dtype` (None: as it is stored). Its few-step
    student is merged, with its sampler, where it is given; a copy without LoRAs keeps it beside the
    weights. Returns `out`.

    Raises ModelError for a LoRA that does not fit.
    """
    config = load_config(source)
    out.mkdir(parents=True, exist_ok=True)
    save_config(student.configured(config) if student else config, out)
    if loras or student:
        dit = load_part("dit", config, source)
        LoraSet(dit).use([*([student.lora] if student else []), *loras])
        with safe_open(part_file(source, "dit"), "pt") as stored:
            save_part("dit", dit, out, dtype=dtype or stored.get_tensor("final.weight").dtype)
    elif (source / FEWSTEP).is_dir():
        for path in sorted((source / FEWSTEP).iterdir()):
            _copy(path, out / FEWSTEP / path.name)
    complete_folder(out, [PartSource(source)])
    merged = ", ".join(f"{one.folder} at {one.scale:g}" for one in loras)
    facts = {"LoRAs": merged} if merged else {}
    write_card(out, {**facts, "few-step student": "in the weights"} if student else facts)
    return out


def share_parts(folder: Path, source: str, *, parts: Sequence[Part] = ("vae", "chinmu")) -> Path:
    """Makes a whole model folder take `parts` from another model that has the same weights: removes
    its own and writes parts.json and their sha256 into contract.json. Returns the folder.

    Args:
        folder: of the model.
        source: an embedded model's name, or that of a folder beside this one.
        parts: which.

    Raises:
        InputError: for a part with other weights; nothing has changed then.
        ModelError: for a source that lacks a part.

    Examples:
        >>> share_parts(Path("models/tiny-mudit"), "tiny")                 # doctest: +SKIP
        PosixPath('models/tiny-mudit')
    """
    home = model_beside(folder, source)
    for part in parts:
        theirs, ours = home / f"{part}.safetensors", part_file(folder, part)
        if not theirs.is_file():
            raise ModelError(f"'{source}' has no {part}: there is no '{theirs}'")
        if name := _differing(ours, theirs):
            raise InputError(
                f"{part} of '{folder}' is not that of '{source}': {name} differs "
                f"(sha256 {sha256_of(ours)} and {sha256_of(theirs)}). Keep its own"
            )
    write_json(folder / PARTS_FILE, {**shared_parts(folder), **dict.fromkeys(parts, source)})
    for part in parts:
        (folder / f"{part}.safetensors").unlink(missing_ok=True)
    write_contract(load_config(folder), folder)
    return folder


def _differing(ours: Path, theirs: Path) -> str | None:
    """The first tensor in which two files differ; None where none does.

    Equal weights may lie in files of different bytes: safetensors writes its header's metadata in
    no fixed order.
    """
    if sha256_of(ours) == sha256_of(theirs):
        return None
    with safe_open(ours, "pt") as a, safe_open(theirs, "pt") as b:
        apart = sorted(set(a.keys()) ^ set(b.keys()))
        if apart:
            return apart[0]
        for name in sorted(a.keys()):
            one, other = a.get_tensor(name), b.get_tensor(name)
            if one.dtype != other.dtype or not torch.equal(one, other):
                return name
    return None


def _told(taken: Sequence[tuple[Part, Path]]) -> str:
    return ", ".join(f"{part} of '{folder}'" for part, folder in taken)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as aside:
        shutil.copyfile(source, aside)


def write_card(folder: Path, facts: Mapping[str, Any], *, again: bool = False) -> Path:
    """Writes README.md, a model card in the hub's form, unless there is one (`again`: anyway)."""
    path = folder / CARD
    if path.exists() and not again:
        return path
    config = load_config(folder)
    there = [part for part in PARTS if has_part(folder, part)]
    rows = {
        "parts": ", ".join(there) or "none",
        "audio": f"{config.vae.sample_rate} Hz, {config.vae.channels} channel(s)",
        "path and sampler": f"{config.path.kind}, {config.sampler.name}, {config.sampler.steps} "
        f"steps, guidance {config.sampler.guidance:g}",
        "longest song": f"{config.max_seconds:g} s",
        **facts,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    write_text(
        path,
        f"""---
library_name: mudit-engine
license: {config.licence.lower()}
pipeline_tag: text-to-audio
tags: [music, lyrics-to-song]
---

# {config.name}

A lyrics-to-song model for mudit-engine.

    mudit generate --model FOLDER --description "..." --lyrics lyrics.txt --out song.wav

| | |
| --- | --- |
{table}

## Training data

Say whose songs these are and under which licence they may be used.

## Limits

Say what was listened to, and what the model does not do.
""",
    )
    return path


__all__ = ["DIT_FIELDS", "PartSource", "complete_folder", "save_model", "share_parts", "write_card"]
