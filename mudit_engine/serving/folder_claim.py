"""One service a folder: another one would take the open songs for its own, and make them again.

    with claimed(Path("songs")):
        run_service(app, ...)

The claim is a lock of the operating system on a file in the folder, so that it ends with the
process, however that ends; a system without such locks has no claim. A training's lock
(training/run_lock.py) has a heartbeat instead, for file systems of many hosts: after a kill in a
container, whose next process may have the same number, it would have to grow stale first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mudit_engine.errors import InputError

logger = logging.getLogger(__name__)

FILE = "service.lock"
TAKEN = (errno.EACCES, errno.EAGAIN)  # of a lock that another process has


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps the folder for this process while the block runs; it is made where there is none.

    Args:
        folder: where a service keeps its jobs and songs.

    Raises:
        InputError: for a folder that another service has, and for one that cannot be written to.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, claimed(Path(folder)):
        ...     pass
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--folder '{folder}' cannot be written to ({error.strerror or error}): choose another"
        ) from None
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            logger.warning("no file locks here: start no second service on '%s'", folder)
        except OSError as error:
            if error.errno not in TAKEN:  # some network file systems
                logger.warning("'%s' has no locks: start no second service on it", folder)
            else:
                file.seek(0)
                by = file.read(20).strip()
                raise InputError(
                    f"--folder '{folder}' belongs to a service that is running"
                    f"{f' (process {by})' if by.isdigit() else ''}: give this one another --folder"
                ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
