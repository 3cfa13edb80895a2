"""Weights that others published, into modules of our own: read, told apart by prefix, and loaded
whole or refused by name.

    with readable(path, "MS-CLAP", "download CLAP_weights_2023.pth and give its path"):
        weights = tensors_of(path)
    fill(tower, under(weights, "text_model."), "the text tower of MS-CLAP", "give its weights")
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mudit_engine.errors import ModelError


@contextlib.contextmanager
def readable(path: Path, model: str, remedy: str) -> Iterator[None]:
    """Raises ModelError, which names the file and the remedy, where its weights cannot be read."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(
            f"{model}'s weights '{path}' cannot be read ({str(error).splitlines()[0]}): {remedy}"
        ) from None


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file or of a checkpoint of torch, whose code is not run."""
    if path.suffix == ".safetensors":
        return load_file(path)
    held = torch.load(path, map_location="cpu", weights_only=True)
    found: dict[str, Tensor] = held.get("model", held)
    return found


def under(weights: Mapping[str, Tensor], prefix: str, but: str = r"$^") -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it; names that match `but` are left out."""
    names = {name: name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
    return {short: weights[name] for name, short in names.items() if not re.match(but, short)}


def fill(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    what: str,
    remedy: str,
    *,
    may_lack: str = r"$^",
) -> None:
    """Loads every tensor into a module's own types; only what `may_lack` matches need not be there.
    Raises ModelError, which names tensors that lack, are too many or have other shapes.
    """
    expected = module.state_dict()
    wrong = [n for n in expected if n not in weights and not re.match(may_lack, n)]
    wrong += [n for n in weights if n not in expected]
    wrong += [n for n, v in weights.items() if n in expected and v.shape != expected[n].shape]
    if wrong:
        raise ModelError(
            f"{what} has other tensors than these weights ({', '.join(wrong[:3])}; {len(wrong)} in "
            f"all): {remedy}"
        )
    module.load_state_dict({n: v.to(expected[n].dtype) for n, v in weights.items()}, strict=False)
