"""The training state in a checkpoint, whoever wrote it: one device in whole tensors, or ranks in
pieces of flattened fp32 parameters.

    kinds: weight, exp_avg, exp_avg_sq, step, momentum_buffer (Muon), ema
    single:    <phase>.safetensors, <phase>.optimizer.safetensors, <phase>.ema.safetensors
    deepspeed: <phase>.rank-00003-of-00008.safetensors with `<kind>/<parameter>@<first element>`,
               <phase>.buffers.safetensors

A piece says where it begins in its own parameter, so that any number of ranks at any ZeRO stage
reads exactly what it owns, and nothing has to be gathered to be saved.

    saved = SavedState(tag, "model")
    flat = saved.read("exp_avg", "dit.final.weight", start=4096, count=1024)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mudit_engine.errors import InputError

_PIECE = re.compile(r"(?P<kind>[a-z_]+)/(?P<name>.+)@(?P<start>\d+)")


def rank_file(phase: str, rank: int, world: int) -> str:
    return f"{phase}.rank-{rank:05d}-of-{world:05d}.safetensors"


def buffers_file(phase: str) -> str:
    return f"{phase}.buffers.safetensors"


class SavedState:
    """Reads one phase of a tag. The files are mapped: a rank touches the pages of its own pieces
    only.
    """

    def __init__(self, folder: Path, phase: str) -> None:
        self.folder, self.phase = folder, phase
        self._files: dict[Path, Any] = {}
        # (kind, parameter) -> [(first element, elements, file, key)]
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        self.ema_updates: int | None = None
        self.sharded = not (folder / f"{phase}.safetensors").is_file()
        if self.sharded:
            self._index_ranks()
        else:
            self._index_whole()

    def names(self, kind: str) -> set[str]:
        return {name for found, name in self._pieces if found == kind}

    def numel(self, kind: str, name: str) -> int:
        return max(start + count for start, count, _, _ in self._pieces[kind, name])

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raises InputError that names the first difference between the saved parameters and
        `sizes` (elements of each).
        """
        saved = (
            self.names("weight")
            if self.sharded
            else self.names("weight")
            & (sizes.keys() | self.names("exp_avg") | self.names("momentum_buffer"))
        )
        wrong = [f"{name} is missing" for name in sizes.keys() - saved] + [
            f"{name} is unknown" for name in saved - sizes.keys()
        ]
        for name in saved & sizes.keys():
            if self.numel("weight", name) != sizes[name]:
                wrong.append(f"{name} has {self.numel('weight', name)} elements, not {sizes[name]}")
        if wrong:
            raise InputError(
                f"checkpoint '{self.folder}' does not fit this model: {sorted(wrong)[0]} "
                f"({len(wrong)} differences). "
                "Use the configuration it was trained with"
            )

    def read(self, kind: str, name: str, *, start: int, count: int) -> Tensor:
        """fp32 [count]: elements from `start` on of a flattened parameter. Raises InputError when
        the checkpoint does not hold them.
        """
        out = torch.empty(count)
        found = 0
        for first, length, path, key in self._pieces.get((kind, name), ()):
            low, high = max(start, first), min(start + count, first + length)
            if low >= high:
                continue
            out[low - start : high - start] = self._slice(path, key, low - first, high - first)
            found += high - low
        if found != count:
            raise InputError(
                f"checkpoint '{self.folder}' holds {found} of {count} elements of {kind} '{name}': "
                "it was trained with another configuration"
            )
        return out

    def whole(self, kind: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Tensors of `shapes` that are saved as `kind`."""
        known = self.names(kind)
        return {
            name: self.read(kind, name, start=0, count=shape.numel()).view(shape)
            for name, shape in shapes.items()
            if name in known
        }

    def step(self, name: str) -> float | None:
        """Optimiser steps of a parameter; None before the first."""
        if ("step", name) not in self._pieces:
            return None
        return float(self.read("step", name, start=0, count=1))

    def buffers(self) -> dict[str, Tensor]:
        """What the module's state holds besides trained parameters (strategy single keeps
        everything in one file).
        """
        return load_file(
            self.folder
            / (buffers_file(self.phase) if self.sharded else f"{self.phase}.safetensors")
        )

    def _index_ranks(self) -> None:
        paths = sorted(self.folder.glob(f"{self.phase}.rank-*-of-*.safetensors"))
        worlds = {path.name.rsplit("-of-", 1)[1] for path in paths}
        if (
            not paths
            or len(worlds) != 1
            or len(paths) != int(worlds.pop().removesuffix(".safetensors"))
        ):
            raise InputError(
                f"checkpoint '{self.folder}' holds {len(paths)} rank files of phase "
                f"'{self.phase}', not one of every rank"
            )
        for path in paths:
            file = self._open(path)
            if "ema_updates" in (metadata := file.metadata() or {}):
                self.ema_updates = int(metadata["ema_updates"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                match = _PIECE.fullmatch(key)
                if match is None:
                    raise InputError(f"'{path}' holds '{key}', which this release does not know")
                count = 1
                for extent in file.get_slice(key).get_shape():
                    count *= extent
                self._pieces.setdefault((match["kind"], match["name"]), []).append(
                    (int(match["start"]), count, path, key)
                )

    def _index_whole(self) -> None:
        sources = {
            "weight": f"{self.phase}.safetensors",
            "": f"{self.phase}.optimizer.safetensors",
            "ema": f"{self.phase}.ema.safetensors",
        }
        for kind, filename in sources.items():
            path = self.folder / filename
            if not path.is_file():
                continue
            file = self._open(path)
            if kind == "ema":
                self.ema_updates = int((file.metadata() or {})["updates"])
            for key in file.keys():  # noqa: SIM118
                found, _, name = key.partition("/") if not kind else (kind, "", key)
                count = 1
                for extent in file.get_slice(key).get_shape():
                    count *= extent
                self._pieces[found, name] = [(0, count, path, key)]

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = safe_open(path, "pt")
        return self._files[path]

    def _slice(self, path: Path, key: str, low: int, high: int) -> Tensor:
        file = self._open(path)
        view = file.get_slice(key)
        shape = view.get_shape()
        if len(shape) == 1:
            return view[low:high]
        return file.get_tensor(key).flatten()[low:high]
