"""Checkpoints that survive a kill, a full disk and a flipped bit.

A tag is a folder step-00001000 with the state's files and manifest.json (bytes and sha256 of every
file). It is written under a temporary name, flushed to the disk and renamed, so that a folder of
that name is complete; `latest` (atomic too) names the newest for people and tools. Resuming
verifies checksums and falls back to the newest good tag, naming the bad ones.

Ranks write into one folder, which all of them must see; each describes and flushes its own files
(named by its rank; rank 0 has the rest), and the tag gets its name when all have. Every rank then
reads the tag that rank 0 chose.

    checkpoints = Checkpoints(Path("runs/a/checkpoints"), keep=3)
    with checkpoints.saving(1000) as folder: ...write files into folder...
    tag = checkpoints.newest_good()
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
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
from mudit_engine.training.ranks import Ranks

MANIFEST, LATEST = "manifest.json", "latest"
VERSION = 1

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, each a folder with a manifest of checksums.

    Args:
        folder: that holds them.
        keep: how many of the newest stay.
        ranks: the ranks that write into it together; None is this process alone.

    Examples:
        >>> checkpoints = Checkpoints(new_folder, keep=2)
        >>> with checkpoints.saving(100) as folder:
        ...     _ = (folder / "state.json").write_text("{}")
        >>> checkpoints.newest_good().name
        'step-00000100'
    """

    def __init__(self, folder: Path, *, keep: int = 3, ranks: Ranks | None = None) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks or Ranks()

    def tags(self) -> list[Path]:
        """Complete tags, the newest first."""
        found = [
            path
            for path in self.folder.glob("step-*")
            if re.fullmatch(r"step-\d+", path.name) and (path / MANIFEST).is_file()
        ]
        return sorted(found, key=step_of, reverse=True)

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """A folder to write into, which becomes the tag of `step` when the block ends. Raises
        OutputError; older tags stay as they were.

        All ranks come here together, and an error of one is an error of all.
        """
        tag = self.folder / f"step-{step:08d}"
        aside = self.folder / f".{tag.name}.partial"
        try:
            with self._together(tag):
                if self.ranks.main:
                    # of a run that was killed while saving
                    for left_over in self.folder.glob(".step-*.partial"):
                        shutil.rmtree(left_over)
                    aside.mkdir(parents=True)
            with self._together(tag):
                yield aside
            # only now: while others write, files of passing names come and go in the folder
            own: dict[str, Any] = {}
            with self._together(tag):
                mode = aside.stat().st_mode & 0o666
                for path in sorted(path for path in aside.iterdir() if self._is_mine(path)):
                    path.chmod(mode)  # safetensors writes for the owner only
                    _sync(path)
                    own[path.name] = _describe(path)
            notes = self.ranks.gather(own)
            with self._together(tag):
                if self.ranks.main:
                    files = {name: noted for note in notes for name, noted in note.items()}
                    manifest = {
                        "version": VERSION,
                        "step": step,
                        "files": dict(sorted(files.items())),
                    }
                    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                    _sync(aside / MANIFEST)
                    _sync(aside)
                    # the tag of the same step from before a resume: equal, or bad and being
                    # replaced
                    if tag.exists():
                        shutil.rmtree(tag)
                    os.rename(aside, tag)
                    _sync(self.folder)
                    write_text(self.folder / LATEST, tag.name + "\n")
        finally:
            if self.ranks.main:
                shutil.rmtree(aside, ignore_errors=True)
        if self.ranks.main:
            for old in self.tags()[self.keep :]:
                shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _together(self, tag: Path) -> Iterator[None]:
        """Waits for all ranks at the end of the block. Raises OutputError on all of them when the
        file system failed one.
        """
        failure: OSError | None = None
        try:
            yield
        except OSError as error:
            failure = error
        failed = [
            (rank, message)
            for rank, message in enumerate(self.ranks.gather(_reason(failure)))
            if message is not None
        ]
        if failed:
            rank, message = failed[0]
            where = f" by rank {rank}" if self.ranks.world > 1 else ""
            raise OutputError(
                f"checkpoint '{tag}' could not be written{where}: {message}. Older checkpoints are "
                f"untouched; free some space and resume"
            ) from failure

    def _is_mine(self, path: Path) -> bool:
        owner = re.search(r"\.rank-(\d+)-of-", path.name)
        return self.ranks.rank == (int(owner[1]) if owner else 0)

    def newest_good(self) -> Path | None:
        """The newest tag whose checksums hold, None when there is no tag. Logs the name of bad
        ones. Raises InputError when all are bad.

        Ranks share the reading of the files.
        """
        tags = self.ranks.first(self.tags())
        for tag in tags:
            fault = self._fault(tag)
            if fault is None:
                return tag
            if self.ranks.main:
                log.warning("checkpoint '%s' is bad (%s): trying the one before it", tag, fault)
        if tags:
            raise InputError(
                f"all {len(tags)} checkpoints in '{self.folder}' are bad: restore one of them from "
                f"a copy, or move the folder away (mv '{self.folder}' '{self.folder}.bad') and "
                f"give the same command, which then begins at step 0"
            )
        return None

    def _fault(self, tag: Path) -> str | None:
        faults = self.ranks.gather(find_fault(tag, share=(self.ranks.rank, self.ranks.world)))
        return next((fault for fault in faults if fault is not None), None)

    def named(self, name: str) -> Path:
        """The tag a user named ('step-00001000' or '1000'). Raises InputError when it is missing or
        bad.
        """
        tag = self.folder / (f"step-{int(name):08d}" if name.isdigit() else name)
        tags = self.ranks.first(self.tags())
        known = ", ".join(path.name for path in tags) or "none"
        if tag not in tags:
            raise InputError(f"no checkpoint '{name}' in '{self.folder}': there are {known}")
        if fault := self._fault(tag):
            raise InputError(
                f"checkpoint '{tag}' is bad ({fault}): use another one ({known}) or --resume auto"
            )
        return tag


def step_of(tag: Path) -> int:
    return int(tag.name.removeprefix("step-"))


def find_fault(tag: Path, *, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a tag, or None: missing, cut short or changed files. `share` (i, n) reads
    every n-th file from the i-th.
    """
    try:
        manifest = json.loads((tag / MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, Any] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    if manifest.get("version") != VERSION:
        return f"{MANIFEST} has version {manifest.get('version')}, this release reads {VERSION}"
    if manifest.get("step") != step_of(tag):
        return f"{MANIFEST} belongs to step {manifest.get('step')}"
    for name, noted in itertools.islice(files.items(), share[0], None, share[1]):
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
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError | None) -> str | None:
    if error is None:
        return None
    return (
        "the disk is full"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else error.strerror or str(error)
    )
