"""Which networks made the latents of a data set: encoded_with.json beside its shards.

    note_encoder(Path("data/latents"), Path("models/base"), parts=("vae", "chinmu"))
    read_encoder(Path("data/latents"))                # Encoder(model, {"vae": sha256, ...}) or None
    check_encoder(Path("data/latents"), "tiny", named="model 'tiny'")

Latents of two codecs in one data set would train a model on two languages at once, and a song
model beside another codec than its own makes noise: so both are noticed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.files import sha256_of, write_json
from mudit_engine.models.folder import model_folder
from mudit_engine.models.parts import Part, part_file

FILE = "encoded_with.json"


@dataclass(frozen=True)
class Encoder:
    """The model folder, and the sha256 of the parts that were used."""

    model: Path
    sha256: dict[str, str]


def note_encoder(folder: Path, model: Path, *, parts: tuple[Part, ...]) -> None:
    """Takes down what a data set is encoded with. Raises InputError when it was begun with other
    weights.
    """
    now: dict[str, str] = {part: sha256_of(part_file(model, part)) for part in parts}
    before = read_encoder(folder)
    if before is not None:
        for part in now.keys() & before.sha256.keys():
            if now[part] != before.sha256[part]:
                raise InputError(
                    f"'{folder}' holds songs that were encoded with another {part} "
                    f"('{before.model}'): give another --out, or that model"
                )
        now = {**before.sha256, **now}
    if before is None or before.sha256 != now:
        write_json(folder / FILE, {"model": str(model.absolute()), "sha256": now})


def read_encoder(folder: Path) -> Encoder | None:
    """What a data set was encoded with; None where nobody took it down. Raises InputError for a
    damaged file.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Encoder(Path(fields["model"]), dict(fields["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read ({error}): restore it") from None


def check_encoder(folder: Path, model: str, *, named: str) -> None:
    """Raises ConfigError where a data set was encoded with another codec than a model has. Where
    nobody took down the one, or the other is not there, nothing is said.

    Args:
        folder: of the data set.
        model: a model folder, or a name of one.
        named: what the model is to the user, such as init='models/base'.
    """
    encoder = read_encoder(folder)
    if encoder is None:
        return
    own = part_file(model_folder(model), "vae")
    if own.is_file() and sha256_of(own) != encoder.sha256.get("vae"):
        raise ConfigError(
            f"'{folder}' was encoded with the VAE of '{encoder.model}', which is not that of "
            f"{named}: encode the songs with that model"
        )
