"""The few-step student of a model: a LoRA that does in a few steps without guidance what the model
does in many with it, and the sampler that it learned. It lies in the model's folder, in fewstep/.

    student = student_of(Path("models/mine"))
    LoraSet(dit).use([student.lora])
    config = student.configured(config)      # its sampler is now what requests get

fewstep/ is the lora/ that `mudit train --export` writes of a run of task dit-distill: a LoRA folder
(models/lora.py) and student.json, with the sampler, the sha256 of the adapter, and that of the song
transformer which it was trained on. Added to other weights it would make noise, so it is refused
there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudit_engine.config import ModelConfig, SamplerConfig, check_sampler, load_config, parse_config
from mudit_engine.errors import InputError, ModelError
from mudit_engine.files import sha256_of, write_json
from mudit_engine.models.lora import WEIGHTS, LoraSpec
from mudit_engine.models.parts import part_file

FOLDER, FILE = "fewstep", "student.json"
SCHEMA = 1


@dataclass(frozen=True)
class Student:
    """A few-step student that was checked against its model.

    Args:
        lora: what is added to the model.
        sampler: what it was trained for.
        sha256: of its adapter.
    """

    lora: LoraSpec
    sampler: SamplerConfig
    sha256: str

    def configured(self, config: ModelConfig) -> ModelConfig:
        """The model's configuration with the student's sampler, which requests then get."""
        return config.model_copy(update={"sampler": self.sampler})

    @property
    def record(self) -> dict[str, Any]:
        """What a sidecar says of it, as JSON values."""
        return {"adapter_sha256": self.sha256, "sampler": self.sampler.model_dump(mode="json")}


def steps_of(sampler: SamplerConfig) -> str:
    """A sampler in words.

    Examples:
        >>> steps_of(SamplerConfig(steps=4, guidance=1.0, shift=3.0))
        '4 steps of ode-euler, guidance 1, shift 3'
    """
    return (
        f"{sampler.steps} steps of {sampler.name}, guidance {sampler.guidance:g}, shift "
        f"{sampler.shift:g}"
    )


def student_of(folder: Path) -> Student:
    """The few-step student of a model folder.

    Args:
        folder: of the model, not of the student.

    Returns:
        The LoRA and its sampler.

    Raises:
        InputError: for a model that has none, with how to train one.
        ModelError: for a student that is broken, or was trained on other weights.

    Examples:
        >>> student_of(Path("models/mine")).sampler.steps                  # doctest: +SKIP
        4
    """
    home = folder / FOLDER
    if not home.is_dir():
        # the few steps of a ddpm path are those of ddim
        ddpm = load_config(folder).path.kind == "ddpm"
        recipe = "tiny-dit-fewstep-mudit" if ddpm else "tiny-dit-fewstep"
        raise InputError(
            f"model '{folder}' has no few-step student ({FOLDER}/): train one, such as with `mudit "
            f"train {recipe} --set init={folder} --set data.folder=LATENTS --out RUN`, "
            f"write it with `mudit train --export RUN --out OUT`, and copy OUT/lora to "
            f"'{home}'. A LoRA of your own acts with --lora"
        )
    path = home / FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        given = fields["schema"], fields["sampler"], fields["adapter_sha256"], fields["dit_sha256"]
        schema, told, adapter, base = given
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"'{path}' cannot be read ({error}): copy lora/ of the exported run again"
        ) from None
    if schema != SCHEMA or not isinstance(told, dict):
        raise ModelError(f"'{path}' has schema {schema!r}, this version reads {SCHEMA}")
    for what, file, held in (
        ("the adapter of this student", home / WEIGHTS, adapter),
        ("the song transformer that this student was trained on", part_file(folder, "dit"), base),
    ):
        if not file.is_file():
            raise ModelError(f"model '{folder}' has no '{file}': copy it again")
        if (found := sha256_of(file)) != held:
            raise ModelError(
                f"'{file}' is not {what}: its sha256 is {found}, '{path}' has {held}. Copy both "
                "again, or train a student of this model"
            )
    sampler = parse_config(SamplerConfig, told, source=str(path))
    try:
        check_sampler(load_config(folder).path, sampler)
    except ValueError as error:
        raise ModelError(f"'{path}': {error}") from None
    return Student(LoraSpec(home), sampler, adapter)


def write_student(lora: Path, *, sampler: SamplerConfig, dit: Path) -> Path:
    """Makes a LoRA folder a student, which a model folder may hold as fewstep/.

    Args:
        lora: folder of the adapter.
        sampler: what it was trained for.
        dit: file of the song transformer that it was trained on.

    Returns:
        The file that says so.

    Examples:
        >>> write_student(lora, sampler=config.sampler, dit=dit)            # doctest: +SKIP
        PosixPath('lora/student.json')
    """
    told = {
        "schema": SCHEMA,
        "sampler": sampler.model_dump(mode="json"),
        "adapter_sha256": sha256_of(lora / WEIGHTS),
        "dit_sha256": sha256_of(dit),
    }
    write_json(lora / FILE, told)
    return lora / FILE


__all__ = ["FILE", "FOLDER", "Student", "steps_of", "student_of", "write_student"]
