"""Where the weights of a model folder's parts lie: in the folder, or in another model's that it
names in parts.json, so that models of one codec need no copies of it.

    part_file(Path("models/mine"), "vae")        # models/mine/vae.safetensors, or another model's
    shared_parts(Path("models/mine"))            # {"vae": "tiny"}

parts.json holds a model's name by part, `{"vae": "tiny", "chinmu": "tiny"}`: an embedded model, or
a folder beside this one. A file of the folder itself comes first. contract.json holds the sha256 of
the parts that are named, so that another file in their place is refused (models/contract.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from mudit_engine.errors import InputError, ModelError
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


def model_beside(folder: Path, name: str) -> Path:
    """The model that a model folder knows by this name: an embedded one, or the folder of that name
    beside it. It need not be there.

    Raises:
        InputError: for what is no plain name.

    Examples:
        >>> model_beside(Path("models/mine"), "tiny") == EMBEDDED / "tiny"
        True
    """
    if not _is_plain(name):
        raise InputError(
            f"'{name}' is no plain name of a model: give an embedded one "
            f"({', '.join(EMBEDDED_MODELS)}) or a folder beside '{folder}'"
        )
    if name in EMBEDDED_MODELS:
        return EMBEDDED / name
    # beside where the folder really lies: a link to it has other neighbours
    return folder.resolve().parent / name


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
    home = model_beside(folder, name)
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


__all__ = [
    "EMBEDDED",
    "FILE",
    "PARTS",
    "Part",
    "has_part",
    "model_beside",
    "part_file",
    "shared_parts",
]
