"""Files appear whole or not at all: written aside, flushed to disk, renamed.

with atomic_path(Path("song.wav")) as aside:
    write(aside)
text = read_text(Path("lyrics.txt"), "lyrics")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError, OutputError


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A path to write to in the same folder; it replaces `path` when the block ends well and is
    deleted when it does not.

    The name keeps its suffix, since writers choose the format by it. Raises OutputError for a full
    disk or a lack of permission.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())  # some writers (safetensors) keep their files to their owner
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(
            f"'{path}' could not be written: {error.strerror or error}. Free some space or choose "
            f"another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where this user keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mudit-engine"


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path | str, document: Any) -> None:
    """Writes indented JSON atomically; keys keep their order."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file, byte order mark or not. Raises InputError that names the file as `what`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no {what} file '{path}': check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} file '{path}' is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{what} file '{path}' cannot be read: {error.strerror}") from None


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
