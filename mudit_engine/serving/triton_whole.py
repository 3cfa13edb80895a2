"""A whole song in one answer, for clients of NVIDIA's Triton Inference Server that do not stream.

    REQUEST, JSON of SongRequest's fields -> AUDIO int16 [channels, samples], SAMPLE_RATE, INFO

It asks the decoupled model mudit_song of the same server and joins the pieces, so that there is one
engine. An error comes as an event with its code: the server's own way from model to model makes
every error INTERNAL. Its instances hold nothing: each serves one client at a time.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np

OUTPUTS = ("EVENT", "AUDIO", "SAMPLE_RATE")


class WholeModel:
    """What the server calls."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Nothing is loaded here."""
        self.utils: Any = importlib.import_module("triton_python_backend_utils")

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer a request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        utils = self.utils
        # arrays of the server are views of memory that it takes back: what is kept is copied
        given = utils.get_input_tensor_by_name(request, "REQUEST").as_numpy().copy()
        asked = utils.InferenceRequest(
            model_name="mudit_song",
            requested_output_names=list(OUTPUTS),
            inputs=[utils.Tensor("REQUEST", given)],
            parameters={"gathered": True},
        )
        pieces: list[np.ndarray] = []
        last: Any = None
        for response in asked.exec(decoupled=True):
            if response.has_error():
                return utils.InferenceResponse(error=response.error())
            if len(response.output_tensors()) == 0:  # the empty one that ends the stream
                continue
            found = {
                name: utils.get_output_tensor_by_name(response, name).as_numpy() for name in OUTPUTS
            }
            told = json.loads(found["EVENT"].reshape(-1)[0])
            if "error" in told:
                code = getattr(utils.TritonError, told["code"])
                return utils.InferenceResponse(error=utils.TritonError(told["error"], code))
            pieces.append(found["AUDIO"])
            last = found
        if last is None:
            return utils.InferenceResponse(error=utils.TritonError("the song has no answer"))
        return utils.InferenceResponse(
            [
                utils.Tensor("AUDIO", np.concatenate(pieces, axis=1)),
                utils.Tensor("SAMPLE_RATE", last["SAMPLE_RATE"]),
                utils.Tensor("INFO", last["EVENT"]),
            ]
        )
