"""LoRA of the song transformer: low-rank additions to its matrices, in the layout of peft.

    W' = W + scale * (alpha / rank) * B A           Hu et al. 2021, "LoRA"

A folder holds adapter_config.json and adapter_model.safetensors. Several can act at once, each with
a scale of its own: merged into the weights (nothing costs anything at a step; taken out again to
the bit, from a copy of what they touched), or kept apart as peft's layers (the weights stay as they
are, a step costs two thin products more a matrix).

    set_ = LoraSet(dit)
    set_.use([LoraSpec(Path("loras/rock"), 0.8)])          # swaps in place, also under CUDA graphs
    set_.use([])                                           # the model as it was
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mudit_engine.availability import require
from mudit_engine.errors import InputError, ModelError
from mudit_engine.files import atomic_path, write_json

LoraPart = Literal["attention", "mlp", "modulation"]
PARTS: tuple[LoraPart, ...] = ("attention", "mlp", "modulation")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_TARGETS: dict[LoraPart, tuple[str, ...]] = {
    "attention": (r"blocks\.\d+\.(?:qkv|out|cross_kv|cross_q|cross_out)",),
    "mlp": (r"blocks\.\d+\.(?:up|down)",),
    "modulation": (r"blocks\.\d+\.modulation", "modulation", "final_modulation"),
}
_KEY = re.compile(r"base_model\.model\.(?P<name>.+)\.lora_(?P<side>[AB])\.weight")
_INJECTED = re.compile(r"(?P<name>.+)\.lora_(?P<side>[AB])\.(?P<adapter>[^.]+)\.weight")


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA folder and how strongly it acts: 0 not at all, 1 as it was trained."""

    folder: Path
    scale: float = 1.0


def parse_lora(text: str) -> LoraSpec:
    """FOLDER or FOLDER:SCALE. Raises InputError when there is no such folder."""
    folder, colon, tail = text.rpartition(":")
    try:
        spec = LoraSpec(Path(folder), float(tail)) if colon and folder else LoraSpec(Path(text))
    except ValueError:
        spec = LoraSpec(Path(text))
    if not (spec.folder / CONFIG).is_file() or not math.isfinite(spec.scale):
        raise InputError(
            f"LoRA '{text}' is no folder with {CONFIG}: give FOLDER or FOLDER:SCALE, for example "
            f"loras/rock:0.8"
        )
    return spec


def target_pattern(parts: Iterable[LoraPart]) -> str:
    """The regular expression, for peft's target_modules, of the matrices of these parts."""
    return "|".join(pattern for part in parts for pattern in _TARGETS[part])


def add_lora(
    dit: nn.Module, *, rank: int, alpha: int, dropout: float, parts: Sequence[LoraPart]
) -> dict[str, Any]:
    """Puts peft's layers around the matrices of `parts` and freezes everything else. Returns the
    adapter's configuration. Raises MissingError without peft.
    """
    require("peft", "training a LoRA")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_pattern(parts)
    )
    inject_adapter_in_model(config, dit)
    return lora_config(rank=rank, alpha=alpha, dropout=dropout, parts=parts)


@torch.no_grad()
def begin_lora(dit: nn.Module, folder: Path | str) -> None:
    """Sets the layers that add_lora put in to the matrices of a LoRA folder, so that training goes
    on from there. Raises ModelError for a folder that read_lora refuses, and for one of other
    matrices or another rank.
    """
    from peft.tuners.lora import LoraLayer

    given = read_lora(Path(folder))
    layers = {name: module for name, module in dit.named_modules() if isinstance(module, LoraLayer)}
    if set(layers) != set(given.pairs):
        odd = sorted(set(layers) ^ set(given.pairs))
        raise ModelError(
            f"LoRA '{folder}' adds to other matrices than are trained here, such as {odd[0]}: set "
            f"lora.parts to what it was trained with"
        )
    for name, layer in layers.items():
        (adapter,) = layer.active_adapters
        sides = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        for mine, its in zip(sides, given.pairs[name], strict=True):
            if mine.shape != its.shape:
                raise ModelError(
                    f"LoRA '{folder}' has {tuple(its.shape)} at {name}, where {tuple(mine.shape)} "
                    f"is trained: set lora.rank to its own, and init to its model"
                )
            mine.copy_(its)
        sides[1].mul_(given.factors[name] / layer.scaling[adapter])


def lora_config(
    *, rank: int, alpha: int, dropout: float, parts: Sequence[LoraPart]
) -> dict[str, Any]:
    """What adapter_config.json says, without the base model's name."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": target_pattern(parts),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


@contextlib.contextmanager
def without_lora(dit: nn.Module) -> Iterator[None]:
    """Inside, the layers that add_lora put in add nothing: the network is what it was before."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in dit.modules() if isinstance(module, LoraLayer)]
    kept = [dict(layer.scaling) for layer in layers]
    # not peft's own switch: it also takes the additions out of training
    for layer in layers:
        layer.scaling.update(dict.fromkeys(layer.scaling, 0.0))
    try:
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling.update(scaling)


def save_lora(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    base: str,
    half: bool = False,
) -> Path:
    """Writes a LoRA folder of a network's injected tensors (`blocks.0.qkv.lora_A.default.weight`),
    in fp32 or, `half`, in fp16. Returns the weights' file.
    """
    dtype = torch.float16 if half else torch.float32
    weights = {}
    for key, value in tensors.items():
        if match := _INJECTED.fullmatch(key):
            name = f"base_model.model.{match['name']}.lora_{match['side']}.weight"
            weights[name] = value.detach().to("cpu", dtype).contiguous()
    with atomic_path(folder / WEIGHTS) as aside:
        save_file(weights, aside, metadata={"format": "pt"})
    write_json(folder / CONFIG, {**config, "base_model_name_or_path": base})
    return folder / WEIGHTS


@dataclass(frozen=True)
class Lora:
    """A LoRA that was read: A [rank, in] and B [out, rank] by the name of the matrix they add to,
    and the factor of each.
    """

    folder: Path
    pairs: dict[str, tuple[Tensor, Tensor]]
    factors: dict[str, float]

    def delta(self, name: str) -> Tensor:
        """fp32 [out, in]: what is added to the matrix at scale 1."""
        a, b = self.pairs[name]
        return (b.float() @ a.float()) * self.factors[name]


def read_lora(folder: Path) -> Lora:
    """Reads a LoRA folder, of this project or written by peft. Raises ModelError for what is
    missing, broken or of a kind that cannot be added to a matrix.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"LoRA '{folder}' cannot be read ({error}): copy it again") from None
    odd = [name for name in ("use_dora", "fan_in_fan_out") if config.get(name)]
    if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
        raise ModelError(
            f"LoRA '{folder}' is {config.get('peft_type')} with {', '.join(odd) or 'biases'}: "
            f"plain LoRA without biases is read"
        )
    sides: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or not torch.isfinite(value).all():
            raise ModelError(f"LoRA '{folder}' holds '{key}', which is NaN or no LoRA matrix")
        sides.setdefault(match["name"], {})[match["side"]] = value
    pairs, factors = {}, {}
    for name, found in sides.items():
        if set(found) != {"A", "B"} or found["A"].shape[0] != found["B"].shape[1]:
            raise ModelError(f"LoRA '{folder}': '{name}' has no A and B of one rank")
        own = _pattern(config.get("rank_pattern"), name, rank)
        scale = _pattern(config.get("alpha_pattern"), name, alpha)
        factors[name] = scale / (math.sqrt(own) if config.get("use_rslora") else own)
        pairs[name] = (found["A"], found["B"])
    return Lora(folder, pairs, factors)


def _pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?{pattern}", name):
            return float(value)
    return otherwise


class LoraSet:
    """The LoRAs that act on a network now."""

    def __init__(self, dit: nn.Module, *, merged: bool = True) -> None:
        """merged: added to the weights; else kept apart in peft's layers (raises MissingError
        without peft when the first is used).
        """
        self.dit, self.merged = dit, merged
        self.specs: tuple[LoraSpec, ...] = ()
        self._known: dict[Path, Lora] = {}
        self._originals: dict[str, Tensor] = {}

    def use(self, specs: Sequence[LoraSpec]) -> None:
        """Takes out what acts and puts in `specs`. Nothing has changed when it raises: ModelError
        for a folder that is broken or was made for another network.
        """
        loras = [(self._read(spec.folder), spec.scale) for spec in specs]
        if self.merged:
            self._merge(loras)
        else:
            self._attach(loras)
        self.specs = tuple(specs)

    def _read(self, folder: Path) -> Lora:
        key = folder.resolve()
        if key not in self._known:
            lora = read_lora(folder)
            weights = dict(self.dit.named_parameters())
            for name, (a, b) in lora.pairs.items():
                weight = weights.get(f"{name}.weight", weights.get(f"{name}.base_layer.weight"))
                if weight is None or weight.shape != (b.shape[0], a.shape[1]):
                    shape = "no such matrix" if weight is None else tuple(weight.shape)
                    raise ModelError(
                        f"LoRA '{folder}' adds {(b.shape[0], a.shape[1])} to '{name}', of which "
                        f"this model has {shape}: it was made for another model"
                    )
            self._known[key] = lora
        return self._known[key]

    @torch.no_grad()
    def _merge(self, loras: Sequence[tuple[Lora, float]]) -> None:
        touched = {name for lora, _ in loras for name in lora.pairs}
        for name in touched - self._originals.keys():
            self._originals[name] = self._weight(name).detach().to("cpu", copy=True)
        for name, original in self._originals.items():
            weight = self._weight(name)
            total = original.to(weight.device, torch.float32)
            for lora, scale in loras:
                if name in lora.pairs:
                    total = total + scale * lora.delta(name).to(weight.device)
            weight.copy_(total)  # in place: graphs that were captured read the same memory
        for name in set(self._originals) - touched:
            del self._originals[name]

    def _weight(self, name: str) -> Tensor:
        return self.dit.get_submodule(name).weight

    def _attach(self, loras: Sequence[tuple[Lora, float]]) -> None:
        if not loras and not self.specs:
            return
        require("peft", "LoRAs that are kept apart")
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        names = []
        for lora, _ in loras:
            adapter = f"lora_{abs(hash(lora.folder.resolve())):x}"
            names.append(adapter)
            present = {
                name: layer
                for name, layer in self.dit.named_modules()
                if isinstance(layer, LoraLayer) and adapter in layer.lora_A
            }
            if not present:
                ranks = {name: a.shape[0] for name, (a, _) in lora.pairs.items()}
                config = LoraConfig(
                    r=max(ranks.values()),
                    rank_pattern={re.escape(name): rank for name, rank in ranks.items()},
                    target_modules="|".join(re.escape(name) for name in lora.pairs),
                )
                with warnings.catch_warnings():
                    # that there will be several is what is wanted
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")
                    inject_adapter_in_model(config, self.dit, adapter)
                for name, (a, b) in lora.pairs.items():
                    layer: Any = self.dit.get_submodule(name)
                    weight = layer.get_base_layer().weight
                    for side, value in ((layer.lora_A, a), (layer.lora_B, b)):
                        side[adapter].weight.data = value.to(weight.device, weight.dtype)
        self.dit.requires_grad_(False).eval()
        for name, layer in self.dit.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            here = [adapter for adapter in names if adapter in layer.lora_A]
            layer.enable_adapters(bool(here))
            if here:
                layer.set_adapter(here, inference_mode=True)
            for (lora, scale), adapter in zip(loras, names, strict=True):
                if adapter in layer.lora_A:
                    layer.scaling[adapter] = scale * lora.factors[name]


__all__ = [
    "Lora",
    "LoraSet",
    "LoraSpec",
    "add_lora",
    "parse_lora",
    "read_lora",
    "save_lora",
    "without_lora",
]
