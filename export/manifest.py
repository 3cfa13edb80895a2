"""Writes the manifest of a deployment folder (read by mudit_engine/runtime/manifest.py, checked
again by export/verify.py).

write_manifest(folder, new_manifest(folder, exported))
"""

from __future__ import annotations

import contextlib
import datetime
import math
from pathlib import Path
from typing import Any

from mudit_engine import __version__
from mudit_engine.config import ModelConfig, SamplerConfig, check_sampler, load_config
from mudit_engine.files import write_json
from mudit_engine.hardware import environment
from mudit_engine.names import SAMPLERS
from mudit_engine.runtime.manifest import FILE, KIND, SCHEMA, file_sha256, files_of, read_manifest


def new_manifest(folder: Path, flavours: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what lies in `folder` now."""
    config = load_config(folder)
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "model": config.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "engine": __version__,
        "versions": environment()["versions"],
        "licence": config.licence,
        "path": config.path.model_dump(mode="json"),
        "samplers": sampler_presets(config),
        "limits": {
            "frames": math.ceil(config.max_seconds * config.vae.frame_rate),
            "fragments": config.dit.max_fragments,
            "vocabulary": config.dit.vocabulary_size,
        },
        "flavours": flavours,
        "files": hashes(folder),
        "parity": None,
    }


def sampler_presets(config: ModelConfig) -> dict[str, Any]:
    """The model's own sampler as `default`, and the others that its path takes, with the same steps
    and guidance.
    """
    presets = {"default": config.sampler.model_dump(mode="json")}
    for name in SAMPLERS:
        sampler = SamplerConfig(
            name=name, steps=config.sampler.steps, guidance=config.sampler.guidance
        )
        with contextlib.suppress(ValueError):  # a sampler of the other kind of path
            check_sampler(config.path, sampler)
            presets[name] = sampler.model_dump(mode="json")
    return presets


def hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file but the manifest itself."""
    return {
        name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(files_of(folder))
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_json(folder / FILE, manifest)


def add_to_manifest(folder: Path, *, under: str, **changes: Any) -> dict[str, Any]:
    """Updates top-level fields, and which files lie `under` a folder inside the deployment. All
    other files keep the hashes they were exported with: whatever happened to them stays visible.
    """
    manifest = {**read_manifest(folder), **changes}
    there, prefix = folder / under, f"{under}/"
    kept = {name: one for name, one in manifest["files"].items() if not name.startswith(prefix)}
    found = hashes(there) if there.is_dir() else {}
    manifest["files"] = {**kept, **{prefix + name: one for name, one in found.items()}}
    write_manifest(folder, manifest)
    return manifest
