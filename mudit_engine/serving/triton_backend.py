"""The three stages of a song as Python models of NVIDIA's Triton Inference Server: text -> denoise
-> decode.

    REQUEST, JSON of SongRequest's fields  -> text    -> SONG (safetensors), SECONDS, INFO (JSON)
    SONG                                   -> denoise -> LATENTS [frames, C]
    LATENTS, SECONDS                       -> decode  -> AUDIO int16 [channels, samples],
                                                         SAMPLE_RATE

A REQUEST is JSON with the fields of SongRequest. `mudit export triton-server` writes the repository
whose model.py files name these classes. The server hands `execute` all requests that waited
together, whatever their lengths: `denoise` steps them as one ragged batch. "reference" in a request
is an audio file in base64.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine.config import load_config
from mudit_engine.diffusion.samplers import SamplerTable
from mudit_engine.errors import InputError, MuditError
from mudit_engine.models.outline import OutlineRows
from mudit_engine.reading import RequestReader
from mudit_engine.request import FIELDS, SongRequest, request_from_fields
from mudit_engine.runtime.decode import LatentDecoder, TorchDecoder, decode_song
from mudit_engine.runtime.denoiser import SongInputs, denoise
from mudit_engine.runtime.load import fast_dtype, load_codec_and_text, open_model, usual_device

DEPLOYMENT = "deployment"  # folder beside the repository


class _Model:
    """What the server calls. Subclasses answer a list of requests, each with a list of named arrays
    or an error.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        self.utils: Any = importlib.import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"]).get("parameters", {})
        # .../models/<name> -> .../deployment
        self.folder = Path(args["model_repository"]).parent.parent / DEPLOYMENT
        self.runtime_name = str(parameters["runtime"]["string_value"])
        self.load()

    def load(self) -> None:
        raise NotImplementedError

    def answer(self, requests: list[Any]) -> list[dict[str, np.ndarray] | MuditError]:
        raise NotImplementedError

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for result in self.answer(requests):
            if isinstance(result, MuditError):
                responses.append(
                    self.utils.InferenceResponse(error=self.utils.TritonError(str(result)))
                )
            else:
                responses.append(
                    self.utils.InferenceResponse(
                        [self.utils.Tensor(name, value) for name, value in result.items()]
                    )
                )
        return responses

    def given(self, request: Any, name: str) -> np.ndarray:
        """An input without its batch axis. Raises InputError unless that is 1: the server batches
        requests, songs of one would be lost.
        """
        array: np.ndarray = self.utils.get_input_tensor_by_name(request, name).as_numpy()
        if len(array) != 1:
            raise InputError(
                f"{name} holds {len(array)} songs: send one song a request, the server batches them"
            )
        return array[0]


class TextModel(_Model):
    """Requests to what the network needs of them."""

    def load(self) -> None:
        config = load_config(self.folder)
        vae, chinmu = load_codec_and_text(config, self.folder, torch.device("cpu"), torch.float32)
        self.reader = RequestReader(config, vae, text=chinmu)

    def answer(self, requests: list[Any]) -> list[dict[str, np.ndarray] | MuditError]:
        def read(request: Any) -> dict[str, np.ndarray]:
            return self._read(bytes(self.given(request, "REQUEST")[0]))

        return [_guarded(partial(read, request)) for request in requests]

    def _read(self, text: bytes) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory() as scratch:
            read = self.reader.read(parse_request(text, Path(scratch)))
            song = self.reader.inputs(read)
        info = {
            "frames": read.frames,
            "seconds": read.seconds,
            "seed": read.seed,
            "notes": list(read.notes),
        }
        packed = np.array([[pack_song(song)]], dtype=np.object_)
        described = np.array([[json.dumps(info, ensure_ascii=False).encode()]], dtype=np.object_)
        return {
            "SONG": packed,
            "SECONDS": np.array([[read.seconds]], np.float32),
            "INFO": described,
        }


class DenoiseModel(_Model):
    """All songs that wait, as one ragged batch."""

    def load(self) -> None:
        self.runtime = open_model(self.folder, runtime=self.runtime_name).runtime

    def answer(self, requests: list[Any]) -> list[dict[str, np.ndarray] | MuditError]:
        def unpack(request: Any) -> SongInputs:
            return unpack_song(bytes(self.given(request, "SONG")[0]))

        inputs = [_guarded(partial(unpack, request)) for request in requests]
        good = [song for song in inputs if not isinstance(song, MuditError)]
        try:
            found: list[Any] = list(self._latents(good))
        except MuditError:
            # one song must not take the others down
            found = [_guarded(partial(self._latents, [song])) for song in good]
            found = [one if isinstance(one, MuditError) else one[0] for one in found]
        answers = iter(found)
        return [song if isinstance(song, MuditError) else next(answers) for song in inputs]

    def _latents(self, songs: list[SongInputs]) -> list[dict[str, np.ndarray]]:
        if not songs:
            return []
        with torch.inference_mode():
            states = [self.runtime.prepare(song) for song in songs]
            return [
                {"LATENTS": x.float().cpu().numpy()[None]} for x in denoise(self.runtime, states)
            ]


class DecodeModel(_Model):
    """Latents to audio, chunk by chunk."""

    def load(self) -> None:
        self.decoder: LatentDecoder
        if self.runtime_name == "torch":
            config, place = load_config(self.folder), usual_device()
            vae, _ = load_codec_and_text(config, self.folder, place, fast_dtype(place))
            self.decoder = TorchDecoder(vae)
        else:
            self.decoder = open_model(self.folder, runtime=self.runtime_name).decoder

    def answer(self, requests: list[Any]) -> list[dict[str, np.ndarray] | MuditError]:
        return [_guarded(partial(self._decode, request)) for request in requests]

    def _decode(self, request: Any) -> dict[str, np.ndarray]:
        latents = torch.from_numpy(self.given(request, "LATENTS").copy())
        seconds = float(self.given(request, "SECONDS")[0])
        audio = decode_song(self.decoder, latents, seconds=seconds)
        rate = np.array([[self.decoder.config.sample_rate]], np.int32)
        return {"AUDIO": (audio * 32767).round().to(torch.int16).numpy()[None], "SAMPLE_RATE": rate}


def parse_request(text: bytes, scratch: Path) -> SongRequest:
    """A SongRequest of its JSON. Raises InputError for anything else; a reference is written to
    `scratch`.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"REQUEST is no JSON ({error}): send an object with fields {', '.join(FIELDS)}"
        ) from None
    if isinstance(fields, dict) and fields.get("reference") is not None:
        path = scratch / "reference"
        try:
            path.write_bytes(base64.b64decode(fields["reference"], validate=True))
        except (binascii.Error, TypeError, ValueError) as error:
            raise InputError(
                f"'reference' is no base64 ({error}): send the bytes of an audio file in base64"
            ) from None
        fields["reference"] = path
    return request_from_fields(fields, where="REQUEST")


def pack_song(song: SongInputs) -> bytes:
    """SongInputs as safetensors: tensors, and the rest as JSON in its metadata."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {"descriptions": song.descriptions, "negative": song.negative}
    tensors |= {"times": song.table.times, "rows": song.table.rows}
    if song.reference is not None:
        tensors["reference"] = song.reference
    if song.outline is not None:
        tensors |= {f"outline.{name}": value for name, value in vars(song.outline).items()}
    rest = {
        name: getattr(song, name)
        for name in ("frames", "seconds", "seed", "user_type", "reference_kind")
    }
    rest |= {
        "lyric_ids": list(song.lyric_ids),
        "guided": song.table.guided,
        "needs_noise": song.table.needs_noise,
    }
    rest |= {"texts": list(song.texts), "negative_texts": list(song.negative_texts)}
    rest |= {"noise_scale": song.table.noise_scale}
    return save(
        {name: value.cpu().contiguous() for name, value in tensors.items()},
        {"song": json.dumps(rest)},
    )


def unpack_song(data: bytes) -> SongInputs:
    """What pack_song made. Raises InputError for other bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        rest = json.loads(header["__metadata__"]["song"])
        guided, noisy, scale = rest.pop("guided"), rest.pop("needs_noise"), rest.pop("noise_scale")
        table = SamplerTable(tensors["times"], tensors["rows"], tuple(guided), scale, tuple(noisy))
        parts = {
            name.removeprefix("outline."): value
            for name, value in tensors.items()
            if name.startswith("outline.")
        }
        outline = OutlineRows(**parts) if parts else None
        described: dict[str, Any] = {
            name: tensors.get(name) for name in ("descriptions", "negative", "reference")
        }
        return SongInputs(table=table, outline=outline, **described, **rest)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"SONG cannot be read ({error}): send what the text model gave, from the same version"
        ) from None


def _guarded(work: Callable[[], Any]) -> Any:
    """The result of `work`, or the MuditError it raised: one bad request is one bad response."""
    try:
        return work()
    except MuditError as error:
        return error
