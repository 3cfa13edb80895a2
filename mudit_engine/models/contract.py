"""What a model's weights were trained for, kept beside them: a config.json that was edited later,
or came from another model, is refused instead of making other songs.

    contract = contract_of(config)  # sampler, path, vocabulary, frame rate, latents
    write_contract(config, folder)  # folder/contract.json, by whoever writes the weights
    check_contract(config, folder)  # raises ModelError that names both values

The sha256 is of the values' canonical JSON, so that a change to the file itself is noticed too. A
request's own sampler settings are no change of the contract: it holds the model's defaults. Of
parts that another model holds (models/parts.py) it has the sha256, `trained_for.parts`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mudit_engine.config import ModelConfig
from mudit_engine.errors import ModelError
from mudit_engine.files import sha256_of, write_json
from mudit_engine.models.parts import FILE as PARTS_FILE
from mudit_engine.models.parts import Part, part_file, shared_parts
from mudit_engine.text.vocabulary import Vocabulary

FILE = "contract.json"
SCHEMA = 1


def contract_of(config: ModelConfig, *, tokens: int | None = None) -> dict[str, Any]:
    """The values that weights depend on beside the networks' own sizes, by name. Of the vocabulary
    the first `tokens` count (default all): later ones were appended after training.
    """
    sampler = config.sampler
    known = Vocabulary.load(config.dit.vocabulary).tokens()
    words = known if tokens is None else known[:tokens]
    return {
        "sampler": sampler.name,
        "steps": sampler.steps,
        "shift": sampler.shift,
        "guidance": sampler.guidance,
        "guidance_interval": list(sampler.guidance_interval),
        "path": config.path.model_dump(mode="json"),
        "vocabulary": config.dit.vocabulary,
        "vocabulary_tokens": len(words),
        "vocabulary_sha256": hashlib.sha256("\n".join(words).encode()).hexdigest(),
        "sample_rate": config.vae.sample_rate,
        "hop": config.vae.hop,
        "frame_rate": config.vae.frame_rate,
        "latent_channels": config.vae.latent_channels,
    }


def digest(values: dict[str, Any]) -> str:
    """sha256 of the values' canonical JSON."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_contract(config: ModelConfig, folder: Path) -> None:
    """Writes contract.json of a model folder atomically, with the sha256 of the parts that
    parts.json names as they are now.
    """
    values = contract_of(config)
    if shared := shared_parts(folder):
        values["parts"] = {part: sha256_of(part_file(folder, part)) for part in sorted(shared)}
    write_json(folder / FILE, {"schema": SCHEMA, "sha256": digest(values), "trained_for": values})


def check_contract(config: ModelConfig, folder: Path) -> None:
    """Raises ModelError when the configuration is not what the weights were trained for, with both
    values, or when contract.json is broken. A folder from before contracts has none.
    """
    trained = _trained_for(folder)
    if trained is None:
        return
    trained.pop("parts", None)  # are files, which check_part is asked for
    tokens = trained.get("vocabulary_tokens")
    now = contract_of(config, tokens=tokens if isinstance(tokens, int) else None)
    differing = [name for name in {**trained, **now} if trained.get(name) != now.get(name)]
    if differing:
        stated = "; ".join(
            f"{name} is {now.get(name)!r} here, the weights were trained for {trained.get(name)!r}"
            for name in sorted(differing)
        )
        raise ModelError(
            f"'{folder}' is not the model that was trained: {stated}. Use the config.json of these "
            f"weights (a request may choose its own sampler and steps)"
        )


def check_part(folder: Path, part: Part) -> Path:
    """The weights' file of a part, by models/parts.py, as the contract says that it is.

    Raises:
        ModelError: for another file than the weights were trained beside, with both sha256, and
            for a part of another model that the contract says nothing of.
    """
    path = part_file(folder, part)
    held = ((_trained_for(folder) or {}).get("parts") or {}).get(part)
    if held is None:
        if path.parent != folder:
            raise ModelError(
                f"'{folder / FILE}' has no sha256 of the {part} that {PARTS_FILE} takes from "
                f"'{path.parent}': copy the model again"
            )
        return path
    if path.is_file() and (found := sha256_of(path)) != held:
        raise ModelError(
            f"'{path}' is not the {part} that '{folder}' was trained beside: its sha256 is "
            f"{found}, the contract has {held}. Copy both models again"
        )
    return path


def _trained_for(folder: Path) -> dict[str, Any] | None:
    """The values of contract.json; None where there is none. Raises ModelError for a broken one."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        trained = dict(held["trained_for"])
        known = held["sha256"] == digest(trained) and held["schema"] == SCHEMA
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read ({error}): copy the model again") from None
    if not known:
        raise ModelError(f"'{path}' was changed by hand: copy the model again")
    return trained
