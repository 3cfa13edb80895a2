"""Which networks made the latents of a data set: encoded_with.json beside its shards.

    note_encoder(Path("data/latents"), Path("models/base"), parts=("vae", "chinmu"))
    read_encoder(Path("data/latents"))                # Encoder(model, {"vae": sha256, ...}, ...)
    check_encoder(Path("data/latents"), "tiny", named="model 'tiny'")

Latents of two codecs in one data set would train a model on two languages at once, and a song
model beside another codec than its own makes noise: so both are noticed. A codec whose decoder
alone was trained on (vae.train=decoder) gives the same latents, and is the same codec here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mudit_engine.errors import ConfigError, InputError, ModelError
from mudit_engine.files import sha256_of, write_json
from mudit_engine.models.folder import model_folder
from mudit_engine.models.parts import Part, part_file

FILE = "encoded_with.json"


@dataclass(frozen=True)
class Encoder:
    """The model folder, the sha256 of the files of the parts that were used, and of what of the VAE
    the latents come from; None where that was not taken down.
    """

    model: Path
    sha256: dict[str, str]
    latents: str | None = None

    def gives_latents_of(self, vae: Path) -> bool:
        """Whether the VAE of a file encodes songs as these were encoded."""
        return sha256_of(vae) == self.sha256.get("vae") or _latents_digest(vae) == self.latents


def _latents_digest(vae: Path) -> str:
    """Of all that a VAE encodes with. Raises ModelError for a file that cannot be read."""
    digest = hashlib.sha256()
    try:
        with safe_open(vae, "pt") as weights:
            names = sorted(weights.keys())
            for name in (one for one in names if not one.startswith("decoder.")):
                tensor = weights.get_tensor(name).contiguous()
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.view(torch.uint8).numpy().tobytes())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"'{vae}' is not a whole safetensors file ({error}): copy or export it again"
        ) from None
    return digest.hexdigest()


def note_encoder(folder: Path, model: Path, *, parts: tuple[Part, ...]) -> None:
    """Takes down what a data set is encoded with. Raises InputError when it was begun with other
    weights.
    """
    now: dict[str, str] = {part: sha256_of(part_file(model, part)) for part in parts}
    latents = _latents_digest(part_file(model, "vae")) if "vae" in parts else None
    before = read_encoder(folder)
    if before is not None:
        for part in now.keys() & before.sha256.keys():
            same = now[part] == before.sha256[part] or (part == "vae" and latents == before.latents)
            if not same:
                raise InputError(
                    f"'{folder}' holds songs that were encoded with another {part} "
                    f"('{before.model}'): give another --out, or that model"
                )
        now, latents = {**before.sha256, **now}, latents or before.latents
    if before is None or (before.sha256, before.latents) != (now, latents):
        fields = {"model": str(model.absolute()), "sha256": now, "latents": latents}
        write_json(folder / FILE, fields)


def read_encoder(folder: Path) -> Encoder | None:
    """What a data set was encoded with; None where nobody took it down. Raises InputError for a
    damaged file.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Encoder(Path(fields["model"]), dict(fields["sha256"]), fields.get("latents"))
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
    if own.is_file() and not encoder.gives_latents_of(own):
        raise ConfigError(
            f"'{folder}' was encoded with the VAE of '{encoder.model}', which is not that of "
            f"{named}: encode the songs with that model"
        )
