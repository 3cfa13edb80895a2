"""What a user can cause, as exceptions with an exit code. Every message says what was given, what
is accepted, what to do.

raise InputError("lyrics file 'a.txt' is empty: write at least one line, or pass --lyrics - to type
it")
"""

from __future__ import annotations


class MuditError(Exception):
    """Base of every error the engine raises on purpose. `exit_code` is what the command line
    returns for it.
    """

    exit_code = 1


class InputError(MuditError, ValueError):
    """The user's words, files or numbers cannot be used as given (exit 2)."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration has an unknown field or an impossible value."""


class ModelError(MuditError):
    """A model folder is missing, broken, of another version, or holds NaN weights."""


class OutputError(MuditError):
    """A result could not be written (no space, no permission). Nothing half-written is left."""


class MissingError(MuditError):
    """The machine lacks something that was asked for by name (exit 3). The message holds the
    command that installs it.
    """

    exit_code = 3


class GateError(MuditError):
    """A check on quality, parity or regression failed (exit 4)."""

    exit_code = 4


class StoppedError(MuditError):
    """A song was cancelled before it was finished. What it had so far is gone."""


class DeadlineError(MuditError):
    """A song could not be finished by the time that was asked for."""


class BusyError(MuditError):
    """There is no room for more work now. `retry_after` says in how many seconds there may be."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
