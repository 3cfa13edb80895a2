"""A model folder: config.json and one safetensors file a part (dit, vae, chinmu), each loadable on
its own.

    config = load_config("folder")
    dit = load_part("dit", config, Path("folder"))
    save_part("dit", dit, Path("folder"), dtype=torch.float16)

Parts may be another model's (models/parts.py). Weights may be stored in half precision; they are
widened to the requested dtype when they are loaded.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mudit_engine.config import PRESETS, ModelConfig, load_config
from mudit_engine.errors import ModelError
from mudit_engine.files import atomic_path, write_text
from mudit_engine.models.contract import check_contract, check_part, write_contract
from mudit_engine.models.hub import fetch, hub_name
from mudit_engine.models.parts import EMBEDDED, PARTS, Part
from mudit_engine.names import EMBEDDED_MODELS


def model_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of an embedded model's name, of a path, or of `org/name[@revision]` on the
    Hugging Face Hub (models/hub.py).

    Raises ModelError when there is none, MissingError for a hub's name without huggingface_hub.
    """
    folder = EMBEDDED / str(source) if str(source) in EMBEDDED_MODELS else Path(source)
    if not (folder / "config.json").is_file():
        found = None if folder.exists() or str(source) in PRESETS else hub_name(source)
        if found is not None:
            return fetch(found[0], revision=revision or found[1])
        hint = (
            f" ('{source}' is a preset: presets have no weights, train one with `mudit train`)"
            if str(source) in PRESETS
            else ""
        )
        raise ModelError(
            f"no model folder '{source}'{hint}: give one of {', '.join(embedded())} or a folder "
            f"with config.json and safetensors files"
        )
    return folder


def embedded() -> list[str]:
    """Names of the models that ship with the package."""
    return [name for name in EMBEDDED_MODELS if (EMBEDDED / name / "config.json").is_file()]


def build_part(part: Part, config: ModelConfig, folder: Path | None = None) -> nn.Module:
    """An untrained network of a part, by its configuration."""
    if part == "dit":
        from mudit_engine.models.dit import DiT

        return DiT(config.dit)
    if part == "vae":
        from mudit_engine.models.vae import SpectralVAE

        return SpectralVAE(config.vae)
    from mudit_engine.models.chinmu import ChinMu

    return ChinMu(config.chinmu, folder=folder / "text_encoder" if folder else None)


def load_part(
    part: Part,
    config: ModelConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A part in evaluation mode. Raises ModelError that names the file and what is wrong (missing,
    truncated, NaN, other shapes, another model's), or the values that the weights were not trained
    for.
    """
    check_contract(config, folder)
    path = check_part(folder, part)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise ModelError(
            f"model folder '{folder}' has no {path.name}: train that part, or copy it there"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"'{path}' is not a whole safetensors file ({error}): copy or export it again"
        ) from None
    with _weightless(part):
        module = build_part(part, config, path.parent)
    expected = module.state_dict()
    wrong = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} is unknown" for name in weights.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {tuple(w.shape)} and not {tuple(expected[name].shape)}"
        for name, w in weights.items()
        if name in expected and w.shape != expected[name].shape
    ]
    if wrong:
        raise ModelError(
            f"'{path}' does not fit its config.json: {'; '.join(sorted(wrong)[:3])} ({len(wrong)} "
            f"differences). Use its own config"
        )
    broken = [
        name for name, w in weights.items() if w.is_floating_point() and not torch.isfinite(w).all()
    ]
    if broken:
        raise ModelError(
            f"'{path}' holds NaN or infinite weights in {broken[0]} ({len(broken)} tensors): use "
            f"an earlier checkpoint"
        )
    module.load_state_dict(weights, assign=part == "dit")
    return module.to(device=device, dtype=dtype).eval()


def save_part(
    part: Part, module: nn.Module, folder: Path, *, dtype: torch.dtype | None = None
) -> Path:
    """Writes a part's weights atomically, floating-point tensors in `dtype` if given: the same
    weights give the same bytes. Returns the file.
    """
    weights = {
        name: (w.to(dtype) if dtype and w.is_floating_point() else w).detach().cpu().contiguous()
        for name, w in module.state_dict().items()
    }
    path = folder / f"{part}.safetensors"
    with atomic_path(path) as aside:
        # one entry alone: safetensors writes several in an order drawn anew, and the same weights
        # would have another sha256 each time
        save_file(weights, aside, metadata={"format": "pt"})
    return path


def save_random_model(
    config: ModelConfig, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> ModelConfig:
    """Writes a model folder with random weights, to size and time a preset that nobody has trained
    yet. Returns its configuration.

    Nothing is left at adaLN-Zero's zeros, which would make the work trivially denormal; the text
    encoder is the character one, which needs no download.
    """
    config = config.model_copy(
        update={"chinmu": config.chinmu.model_copy(update={"text_encoder": "characters"})}
    )
    torch.manual_seed(seed)
    save_config(config, folder)
    for part in PARTS:
        with _weightless(part):
            shapes = {name: w.shape for name, w in build_part(part, config).state_dict().items()}
        with atomic_path(folder / f"{part}.safetensors") as aside:
            _write_random(aside, part, shapes, dtype)
    return config


def _write_random(
    path: Path, part: Part, shapes: dict[str, torch.Size], dtype: torch.dtype
) -> None:
    """A safetensors file written tensor by tensor: safetensors' own writer holds a second copy of
    all of them.
    """
    kind, size = {
        torch.float32: ("F32", 4),
        torch.bfloat16: ("BF16", 2),
        torch.float16: ("F16", 2),
    }[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(_random(name, shape).to(dtype).flatten().view(torch.uint8).numpy().data)


def _random(name: str, shape: torch.Size) -> torch.Tensor:
    """Matrices of unit gain; norms' gains, scales and positive statistics near 1;
    the rest small.
    """
    if len(shape) >= 2:
        return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
    around = (
        1.0
        if name.endswith(
            ("gain", "_scale", "latent_std", "norm.weight", "norm1.weight", "norm2.weight")
        )
        else 0.0
    )
    return around + 0.02 * torch.randn(shape)


@contextlib.contextmanager
def _weightless(part: Part) -> Iterator[None]:
    """Where a part is built whose weights come from elsewhere: on no device, and nothing is drawn
    only to be overwritten.

    The other parts hold constants that are in no file. Initialisers are skipped, since on torch's
    meta device they would import its compiler and sympy, which takes a second.
    """
    if part != "dit":
        yield
        return
    with torch.device("meta"), NoInitialisers():
        yield


class NoInitialisers(TorchFunctionMode):
    """Calls that only fill a tensor return it as it is: for networks of which the shapes count."""

    FILL = frozenset(
        (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_, Tensor.erfinv_, Tensor.mul_)
        + (Tensor.add_, Tensor.clamp_, nn.init.normal_, nn.init.uniform_, nn.init.constant_)
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self.FILL:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def save_config(config: ModelConfig, folder: Path) -> None:
    """Writes config.json atomically, and the contract of the weights beside it
    (models/contract.py).
    """
    write_text(folder / "config.json", config.model_dump_json(indent=2) + "\n")
    write_contract(config, folder)


__all__ = [
    "EMBEDDED",
    "PARTS",
    "Part",
    "build_part",
    "embedded",
    "load_config",
    "load_part",
    "model_folder",
    "save_config",
    "save_part",
]
