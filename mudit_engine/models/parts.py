"""Where the weights of a model folder's parts lie: in the folder, or in another model's that it
names in parts.json, so that models of one codec need no copies of it.

    part_file(Path("models/mine"), "vae")        # models/mine/vae.safetensors, or another model's
    share_parts(Path("models/mine"), "tiny")     # its equal parts are tiny's from now on

parts.json holds a model's name by part, `{"vae": "tiny", "chinmu": "tiny"}`: an embedded model, or
a folder beside this one. A file of the folder itself comes first. contract.json holds the sha256 of
the parts that are named, so that another file in their place is refused (models/contract.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from mudit_engine.errors import InputError, ModelError
from mudit_engine.files import sha256_of, write_json
from mudit_engine.names import EMBEDDED_MODELS

Part = Literal["dit", "vae", "chinmu"]
PARTS: tuple[Part, ...] = get_args(Part)
EMBEDDED = Path(__file__).parent.parent / "assets"
FILE = "parts.json"


def shared_parts(folder: Path) -> dict[Part, str]:
    """The model that each part comes from, by part; empty for a folder without parts.json.

    Raises:
        ModelError: for a file that cannot be read, an unknown part, and a model that is no plain
            name.

    Examples:
        >>> shared_parts(EMBEDDED / "tiny")
        {}
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read ({error}): copy the model again") from None
    if not isinstance(named, dict):
        raise ModelError(
            f"'{path}' holds a {type(named).__name__}: a model's name by part is needed, such as "
            '{"vae": "tiny"}'
        )
    for part, name in named.items():
        if part not in PARTS:
            raise ModelError(f"'{path}' names part '{part}': parts are {', '.join(PARTS)}")
        if not isinstance(name, str) or not _is_plain(name):
            raise ModelError(
                f"'{path}' takes {part} from {name!r}: give an embedded model "
                f"({', '.join(EMBEDDED_MODELS)}) or the name of a folder beside this one"
            )
    return named


def _is_plain(name: str) -> bool:
    """Whether a name leads nowhere but to an embedded model or a folder beside the model's own."""
    return bool(name) and Path(name).name == name and name != ".." and not set(name) & set("\\:\0")


def part_file(folder: Path, part: Part) -> Path:
    """The weights' file of a part of a model folder, which need not be there: its own, or the one
    of the model that parts.json names.

    Raises:
        ModelError: for a broken parts.json, and where the model that it names lacks the part.

    Examples:
        >>> part_file(EMBEDDED / "tiny", "vae").relative_to(EMBEDDED).as_posix()
        'tiny/vae.safetensors'
    """
    own = folder / f"{part}.safetensors"
    if own.is_file() or (name := shared_parts(folder).get(part)) is None:
        return own
    # of where it really lies: a link to a model has other neighbours
    home = EMBEDDED / name if name in EMBEDDED_MODELS else folder.resolve().parent / name
    if not (home / own.name).is_file():
        raise ModelError(
            f"model folder '{folder}' takes its {part} from '{name}', and there is no "
            f"'{home / own.name}': put that model beside it, or copy the file into the folder"
        )
    return home / own.name


def has_part(folder: Path, part: Part) -> bool:
    """Whether a model folder has a part, its own or another model's. Raises ModelError where it
    names a model that lacks it.
    """
    return part_file(folder, part).is_file()


def share_parts(folder: Path, source: str, *, parts: tuple[Part, ...] = ("vae", "chinmu")) -> Path:
    """Makes a whole model folder take `parts` from another model that has the same weights: removes
    its own and writes parts.json and their sha256 into contract.json. Returns the folder.

    Args:
        folder: of the model.
        source: an embedded model's name, or that of a folder beside this one.
        parts: which.

    Raises:
        InputError: for a part with other weights; nothing has changed then.
        ModelError: for a source that lacks a part.

    Examples:
        >>> share_parts(Path("models/tiny-mudit"), "tiny")                 # doctest: +SKIP
        PosixPath('models/tiny-mudit')
    """
    from mudit_engine.config import load_config
    from mudit_engine.models.contract import write_contract

    if not _is_plain(source):
        raise InputError(f"parts are taken from a model's plain name, not from '{source}'")
    home = EMBEDDED / source if source in EMBEDDED_MODELS else folder.resolve().parent / source
    for part in parts:
        theirs, ours = home / f"{part}.safetensors", part_file(folder, part)
        if not theirs.is_file():
            raise ModelError(f"'{source}' has no {part}: there is no '{theirs}'")
        if name := _differing(ours, theirs):
            raise InputError(
                f"{part} of '{folder}' is not that of '{source}': {name} differs "
                f"(sha256 {sha256_of(ours)} and {sha256_of(theirs)}). Keep its own"
            )
    write_json(folder / FILE, {**shared_parts(folder), **dict.fromkeys(parts, source)})
    for part in parts:
        (folder / f"{part}.safetensors").unlink(missing_ok=True)
    write_contract(load_config(folder), folder)
    return folder


def _differing(ours: Path, theirs: Path) -> str | None:
    """The first tensor in which two files differ; None where none does.

    Equal weights may lie in files of different bytes: safetensors writes its header's metadata in
    no fixed order.
    """
    import torch
    from safetensors import safe_open

    if sha256_of(ours) == sha256_of(theirs):
        return None
    with safe_open(ours, "pt") as a, safe_open(theirs, "pt") as b:
        apart = sorted(set(a.keys()) ^ set(b.keys()))
        if apart:
            return apart[0]
        for name in sorted(a.keys()):
            one, other = a.get_tensor(name), b.get_tensor(name)
            if one.dtype != other.dtype or not torch.equal(one, other):
                return name
    return None


__all__ = ["EMBEDDED", "FILE", "PARTS", "Part", "has_part", "part_file", "share_parts"]
