"""Checkpoints that survive a kill, a full disk and a flipped bit.

A tag is a folder step-00001000 with the state's files and manifest.json (bytes and sha256 of every file). It is written under a
temporary name, flushed to the disk and renamed, so that a folder of that name is complete; `latest` (atomic too) names the newest for
people and tools. Resuming verifies checksums and falls back to the newest good tag, naming the bad ones.

    checkpoints = Checkpoints(Path("runs/a/checkpoints"), keep=3)
    with checkpoints.saving(1000) as folder: ...write files into folder...
    tag = checkpoints.newest_good()
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError, OutputError
from mudit_engine.files import write_text

MANIFEST, LATEST = "manifest.json", "latest"
VERSION = 1

log = logging.getLogger(__name__)


class Checkpoints:
    """The tags of one run."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def tags(self) -> list[Path]:
        """Complete tags, the newest first."""
        found = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and (path / MANIFEST).is_file()]
        return sorted(found, key=step_of, reverse=True)

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """A folder to write into, which becomes the tag of `step` when the block ends. Raises OutputError; older tags stay as they were."""
        tag = self.folder / f"step-{step:08d}"
        aside = self.folder / f".{tag.name}.partial"
        try:
            for left_over in self.folder.glob(".step-*.partial"):  # of a run that was killed while saving
                shutil.rmtree(left_over)
            aside.mkdir(parents=True)
            yield aside
            files = sorted(path for path in aside.iterdir())
            manifest = {"version": VERSION, "step": step, "files": {path.name: _describe(path) for path in files}}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in (*files, aside / MANIFEST):
                path.chmod(aside.stat().st_mode & 0o666)  # safetensors writes for the owner only
                _sync(path)
            _sync(aside)
            if tag.exists():  # the tag of the same step from before a resume: equal, or bad and being replaced
                shutil.rmtree(tag)
            os.rename(aside, tag)
            _sync(self.folder)
            write_text(self.folder / LATEST, tag.name + "\n")
        except OSError as error:
            raise OutputError(_message(tag, error)) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in self.tags()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def newest_good(self) -> Path | None:
        """The newest tag whose checksums hold, None when there is no tag. Logs the name of bad ones. Raises InputError when all are bad."""
        tags = self.tags()
        for tag in tags:
            fault = find_fault(tag)
            if fault is None:
                return tag
            log.warning("checkpoint '%s' is bad (%s): trying the one before it", tag, fault)
        if tags:
            raise InputError(f"all {len(tags)} checkpoints in '{self.folder}' are bad: restore one, or start over with --resume never")
        return None

    def named(self, name: str) -> Path:
        """The tag a user named ('step-00001000' or '1000'). Raises InputError when it is missing or bad."""
        tag = self.folder / (f"step-{int(name):08d}" if name.isdigit() else name)
        known = ", ".join(path.name for path in self.tags()) or "none"
        if tag not in self.tags():
            raise InputError(f"no checkpoint '{name}' in '{self.folder}': there are {known}")
        if fault := find_fault(tag):
            raise InputError(f"checkpoint '{tag}' is bad ({fault}): use another one ({known}) or --resume auto")
        return tag


def step_of(tag: Path) -> int:
    return int(tag.name.removeprefix("step-"))


def find_fault(tag: Path) -> str | None:
    """What is wrong with a tag, or None: missing, extra, cut short or changed files."""
    try:
        manifest = json.loads((tag / MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, Any] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    if manifest.get("version") != VERSION:
        return f"{MANIFEST} has version {manifest.get('version')}, this release reads {VERSION}"
    if manifest.get("step") != step_of(tag):
        return f"{MANIFEST} belongs to step {manifest.get('step')}"
    for name, noted in files.items():
        path = tag / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != noted["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {noted['bytes']}"
        if _describe(path) != noted:
            return f"{name} has changed since it was written: its sha256 differs"
    return None


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """safetensors reports a full disk as its own type: raise the OSError it stands for."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _message(tag: Path, error: OSError) -> str:
    what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return f"checkpoint '{tag}' could not be written: {what}. Older checkpoints are untouched; free some space and resume"
