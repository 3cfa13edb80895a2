"""Songs in NVIDIA's Triton Inference Server: a decoupled Python model around the batcher.

    REQUEST, JSON of SongRequest's fields -> responses as they happen:
        EVENT          JSON: stage, step, steps; at last also seed, seconds and notes
        AUDIO          int16 [channels, samples], a piece of the song, or no samples
        SAMPLE_RATE    int32

`mudit export triton-server` writes the repository whose model.py files name this class and
serving/triton_whole.py, which gathers the pieces for clients that want one answer. All requests of
an instance share one engine and are batched at the step (runtime/batcher.py); a client that cancels
stops its song before the next one. "reference" in a request is an audio file in base64.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine.errors import BusyError, InputError, MuditError, StoppedError
from mudit_engine.reading import Understood
from mudit_engine.request import REMOTE_FIELDS, SongRequest, refuse_unknown, request_from_fields
from mudit_engine.runtime.ticket import ENDED, Event, Stage, Ticket
from mudit_engine.serving.engine import Engine

logger = logging.getLogger(__name__)

DEPLOYMENT = "deployment"  # folder inside the model's version folder


class SongModel:
    """What the server calls."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Opens the engine on the instance's own device."""
        self.utils: Any = importlib.import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"]).get("parameters", {})
        folder = Path(args["model_repository"]) / str(args["model_version"]) / DEPLOYMENT
        runtime = str(parameters["runtime"]["string_value"])
        device = device_of(args)
        if device is not None:
            torch.cuda.set_device(device)
        on_torch = runtime == "torch"
        self.engine = Engine.open(
            folder,
            runtime=runtime,
            device=(f"cuda:{device}" if device is not None else "cpu") if on_torch else None,
            most_waiting=int(parameters["most_waiting"]["string_value"]),
        )

    def execute(self, requests: list[Any]) -> None:
        """Hands every request to the batcher; answers are sent from its threads."""
        for request in requests:
            sender = request.get_response_sender()
            gathered = bool(json.loads(request.parameters() or "{}").get("gathered"))
            try:
                _Answer(self, sender, gathered=gathered).start(_text_of(self.utils, request))
            except Exception as error:
                self.refuse(sender, error, gathered=gathered)

    def finalize(self) -> None:
        """Ends the engine; songs under way are cancelled."""
        self.engine.close()

    def refuse(self, sender: Any, error: BaseException, *, gathered: bool) -> None:
        """Answers with an error: the user's own is INVALID_ARG, which HTTP says as 400. To one who
        gathers, mudit_whole, it is an event.
        """
        code = "INTERNAL"
        if isinstance(error, InputError):
            code = "INVALID_ARG"
        elif isinstance(error, BusyError):
            code = "UNAVAILABLE"
        elif isinstance(error, StoppedError):
            code = "CANCELLED"
        elif not isinstance(error, MuditError):
            logger.error("a request failed", exc_info=error)
        if gathered:
            response = self.response({"error": str(error), "code": code}, None)
        else:
            errors = self.utils.TritonError
            response = self.utils.InferenceResponse(error=errors(str(error), getattr(errors, code)))
        _send(self.utils, sender, response, final=True)

    def response(self, event: dict[str, Any], audio_cS: torch.Tensor | None) -> Any:
        """One of a request's responses."""
        utils, vae = self.utils, self.engine.config.vae
        audio = np.zeros((vae.channels, 0), np.int16)
        if audio_cS is not None:
            audio = (audio_cS.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
        text = json.dumps(event, ensure_ascii=False).encode()
        return utils.InferenceResponse(
            [
                utils.Tensor("EVENT", np.array([text], dtype=np.object_)),
                utils.Tensor("AUDIO", np.ascontiguousarray(audio)),
                utils.Tensor("SAMPLE_RATE", np.array([vae.sample_rate], np.int32)),
            ]
        )


class _Answer:
    """One request on its way."""

    def __init__(self, model: SongModel, sender: Any, *, gathered: bool) -> None:
        self.model, self.sender, self.gathered = model, sender, gathered
        self.ticket: Ticket | None = None
        self.understood: Understood | None = None
        self.scratch = tempfile.TemporaryDirectory(prefix="mudit-request-")

    def start(self, text: bytes) -> None:
        """Checks the request and hands it in. Raises InputError, BusyError."""
        try:
            request = parse_request(text, Path(self.scratch.name))
            self.understood = self.model.engine.read(request)
            self.ticket = self.model.engine.submit(self.understood, on_event=self.heard)
        except BaseException:
            self.scratch.cleanup()
            raise

    def heard(self, event: Event) -> None:
        """From the batcher's threads."""
        if event.stage in ENDED:
            self.scratch.cleanup()
            if event.stage is Stage.COMPLETED:
                self._send(event, final=True)
            else:
                error = event.error or MuditError("the song failed")
                self.model.refuse(self.sender, error, gathered=self.gathered)
            return
        if self.ticket is not None and self.sender.is_cancelled():
            self.ticket.cancel()
            return
        self._send(event, final=False)

    def _send(self, event: Event, *, final: bool) -> None:
        assert self.understood is not None
        told: dict[str, Any] = {
            "stage": event.stage.value,
            "step": event.step,
            "steps": event.steps,
            "seconds": self.understood.seconds,
            "seed": self.understood.seed,
        }
        if final:
            told["notes"] = list(self.understood.notes)
        response = self.model.response(told, event.audio)
        _send(self.model.utils, self.sender, response, final=final)


def _send(utils: Any, sender: Any, response: Any, *, final: bool) -> None:
    sender.send(response, flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)


def _text_of(utils: Any, request: Any) -> bytes:
    values = utils.get_input_tensor_by_name(request, "REQUEST").as_numpy().reshape(-1)
    if len(values) != 1:
        raise InputError(f"REQUEST holds {len(values)} songs: send one song a request")
    text = values[0]
    return text if isinstance(text, bytes) else str(text).encode()


def device_of(args: dict[str, Any]) -> int | None:
    """The GPU that the server gave to this instance, None for a CPU instance."""
    if args.get("model_instance_kind") != "GPU":
        return None
    return int(args["model_instance_device_id"])


def parse_request(text: bytes, scratch: Path) -> SongRequest:
    """A SongRequest of its JSON. Raises InputError for anything else; a reference is written to
    `scratch`.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"REQUEST is no JSON ({error}): send an object with fields {', '.join(REMOTE_FIELDS)}"
        ) from None
    if isinstance(fields, dict):
        refuse_unknown(fields, (*REMOTE_FIELDS, "reference"), where="REQUEST")
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
