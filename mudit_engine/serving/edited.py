"""Songs of the service that change an earlier one of the same owner: what a job keeps of that song
beside itself, and what the service writes with a song so that it can be changed.

    keep_latents(folder, ticket.latents, config.vae)         # of every song that was made
    understood = adopt(understood, into=songs / id)          # of a new job that changes another
    with_source(understood, source_of(understood.edit), scratch)  # the same on another machine

A request names a song by its id and never by a file. What an edit needs is linked into the new
job's folder, so that the earlier song may be deleted while this one waits.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mudit_engine.config import VaeConfig
from mudit_engine.editing import Edit
from mudit_engine.errors import InputError
from mudit_engine.files import write_json
from mudit_engine.models.saved_latents import save_latents
from mudit_engine.reading import Understood

LATENTS = "song.safetensors"  # beside song.wav
SIDECAR, AUDIO, KEPT = "edited.json", "edited.wav", "edited.safetensors"  # in the new job's folder


def keep_latents(folder: Path, latents_TC: Tensor | None, config: VaeConfig) -> dict[str, str]:
    """Writes a song's latents beside it. Returns what its sidecar says of them."""
    if latents_TC is None:
        return {}
    save_latents(folder / LATENTS, latents_TC.numpy(), config)
    return {"latents": LATENTS}


def adopt(understood: Understood, *, into: Path) -> Understood:
    """The same song, with what it changes in its own folder.

    Raises InputError where the earlier song is gone.
    """
    edit = understood.edit
    if edit is None:
        return understood
    info = {**(edit.info or {}), "file": AUDIO}
    info.pop("latents", None)
    try:
        if edit.latents is not None:
            _link(edit.latents, into / KEPT)
            info["latents"] = KEPT
        else:
            _link(edit.audio, into / AUDIO)
    except FileNotFoundError:
        raise InputError("edit: the song was deleted meanwhile") from None
    write_json(into / SIDECAR, info)
    kept = into / KEPT if edit.latents is not None else None
    return replace(
        understood,
        request=replace(understood.request, edit=into / SIDECAR),
        edit=replace(edit, audio=into / AUDIO, latents=kept),
    )


def unnamed(sidecar: dict[str, Any], id: str | None) -> dict[str, Any]:
    """A sidecar that names the changed song by its id, where it named files of the server."""
    request = {**sidecar["request"], "reference": None, "edit": id}
    edited = {"edited": {**sidecar["edited"], "file": id}} if "edited" in sidecar else {}
    return {**sidecar, "request": request, **edited}


def source_of(edit: Edit | None) -> bytes | None:
    """The latents that an edit starts from, or else the audio; None where nothing is edited."""
    return None if edit is None else (edit.latents or edit.audio).read_bytes()


def with_source(understood: Understood, source: bytes | None, folder: Path) -> Understood:
    """The song on another machine: what `source_of` gave lies in a folder here."""
    edit = understood.edit
    if edit is None or source is None:
        return understood
    path = folder / (edit.latents or edit.audio).name
    path.write_bytes(source)
    own = replace(edit, audio=path) if edit.latents is None else replace(edit, latents=path)
    return replace(understood, edit=own)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
