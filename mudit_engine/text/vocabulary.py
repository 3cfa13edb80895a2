"""Token ids that never move: line number n (from 0) of assets/vocabulary/<version>.tsv is id n.

The file is append-only, because models store ids in their embedding rows. Its second column is the
family of the token: `special` (`<pad>`, `<line>`, `<space>`, `<breath>`), `section` (`<verse>`),
`initial` (`zh`), `final` (`ang4`, tone 5 is neutral) and `arpabet` (`en:AH0`: the prefix keeps
English B apart from Mandarin b whatever the case).

    Vocabulary.load().id("ang4")
"""

from __future__ import annotations

import functools
from importlib.resources import files

from mudit_engine.errors import InputError

FAMILIES = ("special", "section", "initial", "final", "arpabet")


class Vocabulary:
    """A frozen list of tokens. Get one with `Vocabulary.load()`; instances are shared and must not
    be changed.
    """

    def __init__(self, version: str, rows: tuple[tuple[str, str], ...]) -> None:
        self.version = version
        self._tokens = tuple(token for token, _ in rows)
        self._families = tuple(family for _, family in rows)
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        if len(self._ids) != len(self._tokens):
            raise ValueError(f"vocabulary {version} names a token twice")

    @classmethod
    def load(cls, version: str = "v1") -> Vocabulary:
        """The vocabulary shipped under that version. Raises InputError for a version that does not
        exist.
        """
        return _load(version)

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def __repr__(self) -> str:
        return f"Vocabulary({self.version!r}, {len(self)} tokens)"

    def id(self, token: str) -> int:
        """Id of a token. Raises InputError when the vocabulary does not hold it."""
        try:
            return self._ids[token]
        except KeyError:
            raise InputError(
                f"token {token!r} is not in vocabulary {self.version}: was it made for another "
                f"version?"
            ) from None

    def token(self, id: int) -> str:
        """Token of an id in [0, len). Raises InputError outside of it."""
        self._check(id)
        return self._tokens[id]

    def family(self, id: int) -> str:
        """One of FAMILIES for an id in [0, len)."""
        self._check(id)
        return self._families[id]

    def tokens(self, family: str | None = None) -> tuple[str, ...]:
        """All tokens in id order, or those of one family."""
        return tuple(
            token
            for token, kind in zip(self._tokens, self._families, strict=True)
            if family in (None, kind)
        )

    def _check(self, id: int) -> None:
        if not 0 <= id < len(self):
            raise InputError(
                f"token id {id} is outside vocabulary {self.version} (0 to {len(self) - 1})"
            )


@functools.cache
def _load(version: str) -> Vocabulary:
    folder = files("mudit_engine") / "assets" / "vocabulary"
    shipped = sorted(
        entry.name.removesuffix(".tsv") for entry in folder.iterdir() if entry.name.endswith(".tsv")
    )
    if version not in shipped:
        raise InputError(
            f"vocabulary version {version!r} does not exist: this release has {', '.join(shipped)}"
        )
    rows = []
    for line in (folder / f"{version}.tsv").read_text(encoding="utf-8").splitlines():
        token, family = line.split("\t")
        rows.append((token, family))
    return Vocabulary(version, tuple(rows))
