"""Reads musicnn's TensorFlow checkpoint without TensorFlow and writes
assets/musicnn/mtt.safetensors: how the shipped weights were made.

    pip download --no-deps musicnn==0.1.0 && unzip musicnn-0.1.0-py3-none-any.whl
    python -m mudit_engine.metrics.musicnn_convert musicnn/MTT_musicnn

A checkpoint's index is a LevelDB table of protocol buffers (name -> dtype, shape, offset, size);
its data file is raw little-endian floats.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.metrics.musicnn import WEIGHTS

FLOAT32 = 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _block(data: bytes, offset: int, size: int) -> list[tuple[bytes, bytes]]:
    """Entries of one uncompressed table block: keys share prefixes with the key before them."""
    if data[offset + size] != 0:
        raise InputError("the checkpoint's index is compressed: only uncompressed ones are read")
    body = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", body[-4:])
    at, key, entries = 0, b"", []
    while at < len(body) - 4 - 4 * restarts:
        shared, at = _varint(body, at)
        unshared, at = _varint(body, at)
        length, at = _varint(body, at)
        key = key[:shared] + body[at : at + unshared]
        at += unshared
        entries.append((key, body[at : at + length]))
        at += length
    return entries


def _message(data: bytes) -> dict[int, list[Any]]:
    """Fields of a protocol buffer by number."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value: Any
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All float32 tensors of a checkpoint folder."""
    index, data = (folder / ".index").read_bytes(), (folder / ".data-00000-of-00001").read_bytes()
    footer, at = index[-48:], 0
    for _ in range(2):  # the handle of the meta index
        _, at = _varint(footer, at)
    offset, at = _varint(footer, at)
    size, at = _varint(footer, at)
    tensors = {}
    for _, handle in _block(index, offset, size):
        start, at = _varint(handle, 0)
        length, at = _varint(handle, at)
        for key, value in _block(index, start, length):
            entry = _message(value)
            if not key or entry.get(1, [FLOAT32])[0] != FLOAT32:
                continue
            shape = (
                [_message(dim).get(1, [0])[0] for dim in _message(entry[2][0]).get(2, [])]
                if 2 in entry
                else []
            )
            begin = entry.get(4, [0])[0]
            tensors[key.decode()] = (
                torch.frombuffer(bytearray(data[begin : begin + entry[5][0]]), dtype=torch.float32)
                .reshape(shape)
                .clone()
            )
    return tensors


def main(folder: str) -> None:
    tensors = read_checkpoint(Path(folder))
    # the optimiser's slots and the tagger's last layer are not needed for features
    kept = {
        k: v.half()
        for k, v in tensors.items()
        if "Adam" not in k and "power" not in k and not k.startswith("dense_1") and v.dim()
    }
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, WEIGHTS)
    print(f"{WEIGHTS.name}: {len(kept)} tensors, {sum(v.numel() for v in kept.values()):,} weights")


if __name__ == "__main__":
    main(sys.argv[1])
