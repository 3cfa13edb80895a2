"""Who may ask, and how much: API keys that are kept as hashes, and what each key may have.

    mudit serve tiny --keys keys.txt            # a line a key: NAME sha256:HEX [seconds a day]
    name = keys.owner("Bearer sk-...")          # None for a wrong one
    hash_key("sk-...")                          # "sha256:..." for the file

Keys are long random strings (`new_key`), so that a plain hash is enough; they are compared in
constant time, all of them, whatever matches. Without a file everybody is the same owner, `anyone`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from mudit_engine.errors import BusyError, InputError
from mudit_engine.files import read_text

ANYONE = "anyone"
DAY = 86400.0
_NAME = r"[\w.-]{1,60}"
_LINE = re.compile(
    rf"^(?P<name>{_NAME})\s+sha256:(?P<hash>[0-9a-f]{{64}})(\s+(?P<quota>\d+(\.\d+)?))?$"
)


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """How a key stands in the file."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def line_of(name: str, key: str) -> str:
    """A key's line for the file. Raises InputError for a name that no line may have.

    Examples:
        >>> line_of("team-a", "sk-1")[:20]
        'team-a sha256:0f2c10'
    """
    if not re.fullmatch(_NAME, name):
        raise InputError(
            f"'{name[:80]}' is no name of a key: use 1 to 60 letters, digits, '_', '-' and '.'"
        )
    return f"{name} {hash_key(key)}"


@dataclass(frozen=True)
class Key:
    """A key's name, its hash, and the seconds of song that it may ask for in a day (None: any)."""

    name: str
    hash: str
    quota: float | None = None


class Keys:
    """The keys of a service; none at all lets everybody in."""

    def __init__(self, keys: tuple[Key, ...] = (), *, quota: float | None = None) -> None:
        """`quota`: seconds of song a day of whoever has no quota of their own."""
        self.keys, self.quota = keys, quota
        self._used: dict[str, deque[tuple[float, float]]] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, *, quota: float | None = None) -> Keys:
        """Keys of a file. Raises InputError for a line that is none."""
        keys = []
        for number, line in enumerate(read_text(path, "keys").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            if not (match := _LINE.match(line.strip())):
                raise InputError(
                    f"keys file '{path}' line {number}: write NAME sha256:HEX [seconds a day]; "
                    "`mudit serve --new-key NAME` makes a line"
                )
            own = match["quota"]
            keys.append(Key(match["name"], f"sha256:{match['hash']}", float(own) if own else None))
        if not keys:
            raise InputError(f"keys file '{path}' holds no key: nobody could use the service")
        return cls(tuple(keys), quota=quota)

    def owner(self, authorization: str | None) -> str | None:
        """Name of the key in an Authorization header, or None for a missing or wrong one."""
        if not self.keys:
            return ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        given = hash_key(key.strip() if scheme.lower() == "bearer" else "")
        found = None
        for one in self.keys:  # all of them: the time says nothing about which one matched
            if hmac.compare_digest(one.hash, given):
                found = one.name
        return found

    def charge(self, owner: str, seconds: float) -> None:
        """Counts seconds of song against an owner's day. Raises BusyError when it is used up."""
        own = next((key.quota for key in self.keys if key.name == owner), None)
        limit = self.quota if own is None else own
        if limit is None:
            return
        now = time.time()
        with self._lock:
            used = self._used.setdefault(owner, deque())
            while used and used[0][0] <= now - DAY:
                used.popleft()
            spent = sum(amount for _, amount in used)
            if spent + seconds > limit:
                wait = DAY if not used else used[0][0] + DAY - now
                raise BusyError(
                    f"'{owner}' has used {spent:g} of {limit:g} seconds of song today, "
                    f"{seconds:g} more are too many",
                    retry_after=max(wait, 1.0),
                )
            used.append((now, seconds))

    def refund(self, owner: str, seconds: float) -> None:
        """Gives back what a song that never ran was charged for."""
        with self._lock:
            used = self._used.get(owner, deque())
            for entry in reversed(used):
                if entry[1] == seconds:
                    used.remove(entry)
                    return
