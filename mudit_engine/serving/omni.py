"""Songs in vLLM-Omni: the model behind its step-execution contract, as a plugin.

    pip install 'mudit-engine[omni]'         # in an environment of its own: it pins other packages

    prepare_encode    a request is read; what no step changes is computed; noise is drawn
    denoise_step      one row of the sampler's table of every song of the batch, packed, unpadded
    post_decode       latents to audio

vLLM-Omni joins latents of all requests on the first axis; ours are [frames, channels], so that
songs of all lengths lie end to end as they do in our own batcher. It batches only requests of like
guidance_scale, num_frames and LoRA: guidance, length and the other fields of a song therefore come
in `extra_args`, and the sampling fields of its own stay at their defaults, but for the seed and
num_inference_steps. The prompt is the description, or a dictionary with "prompt" and "lyrics".

Written against vLLM-Omni 0.30 (SupportsStepExecution). Serving needs a GPU platform there and was
not run by this project.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mudit_engine.errors import InputError
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import REMOTE_FIELDS, SongRequest, request_from_fields

ARCHITECTURE = "MuditPipeline"
SAMPLER_FIELDS = ("guidance", "shift", "eta")
OWN = tuple(name for name in REMOTE_FIELDS if name not in ("description", "seed", "sampler"))


def register() -> None:
    """What vLLM's loader of plugins calls (entry point group vllm_omni.general_plugins)."""
    from vllm_omni.diffusion.registry import register_diffusion_model

    register_diffusion_model(ARCHITECTURE, __name__, ARCHITECTURE)


def request_of(prompt: Any, sampling: Any) -> SongRequest:
    """The song that a request of vLLM-Omni asks for.

    Args:
        prompt: the description, or a mapping with "prompt", "lyrics" and "negative_prompt".
        sampling: its sampling parameters: `seed`, `num_inference_steps` and `extra_args`.

    Raises:
        InputError: that names a field which is unknown, twice there or of a wrong type.

    Examples:
        >>> from types import SimpleNamespace
        >>> sampling = SimpleNamespace(seed=1, num_inference_steps=8, extra_args={"seconds": 12})
        >>> request_of({"prompt": "piano", "lyrics": "[verse]\\nmoon"}, sampling).seconds
        12
    """
    fields: dict[str, Any] = {}
    if isinstance(prompt, Mapping):
        named = {"prompt": "description", "lyrics": "lyrics", "negative_prompt": "negative"}
        fields = {own: prompt[name] for name, own in named.items() if prompt.get(name) is not None}
    elif prompt is not None:
        fields["description"] = prompt
    extra = dict(sampling.extra_args or {})
    sampler = {name: extra.pop(name) for name in SAMPLER_FIELDS if name in extra}
    if "sampler" in extra:
        sampler["name"] = extra.pop("sampler")
    if sampling.num_inference_steps is not None:
        sampler["steps"] = sampling.num_inference_steps
    if twice := sorted(fields.keys() & extra.keys()):
        raise InputError(f"'{twice[0]}' is in the prompt and in extra_args: give it once")
    if unknown := sorted(extra.keys() - set(OWN)):
        known = ", ".join((*OWN, "sampler", *SAMPLER_FIELDS))
        raise InputError(f"extra_args '{unknown[0]}' is unknown: known are {known}")
    fields |= extra
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    return request_from_fields({**fields, "sampler": sampler}, where="the request")


class MuditPipeline(nn.Module):
    """What vLLM-Omni's runner calls. `od_config.model` is an embedded model's name or a model
    folder.

    The class follows SupportsStepExecution and SupportAudioOutput of
    vllm_omni.diffusion.models.interface by their names; it inherits nothing of them.
    """

    supports_step_execution: ClassVar[bool] = True
    support_audio_output: ClassVar[bool] = True

    def __init__(self, *, od_config: Any, prefix: str = "") -> None:
        super().__init__()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.songs = SongPipeline.from_pretrained(od_config.model, device=device)
        self.audio_sample_rate = self.songs.config.vae.sample_rate
        self.weights_sources: tuple[Any, ...] = ()  # they are read from the model folder, here

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """There is nothing left to load."""
        return set()

    @torch.inference_mode()
    def prepare_encode(self, state: Any, **unused: Any) -> Any:
        """Reads the request and prepares its song. Raises InputError."""
        reader = self.songs.reader
        understood = reader.read(request_of(state.prompt, state.sampling))
        song = self.songs.runtime.prepare(reader.inputs(understood))
        state.extra["song"], state.extra["seconds"] = song, understood.seconds
        # guidance is part of our own step
        state.do_true_cfg = False
        state.latents, state.timesteps, state.step_index = song.x_TC, list(song.table.times), 0
        return state

    @torch.inference_mode()
    def denoise_step(
        self, input_batch: Any, *, states: Sequence[Any] = (), **unused: Any
    ) -> Tensor:
        """One step of every song. Returns their latents, end to end, in memory of their own."""
        songs = [state.extra["song"] for state in states]
        self.songs.runtime.step(songs)
        return torch.cat([song.x_TC for song in songs])

    def step_scheduler(self, state: Any, noise_pred: Tensor, **unused: Any) -> None:
        """The sampler's row was part of the step: only the request moves on."""
        state.latents = state.extra["song"].x_TC
        state.step_index += 1

    def post_decode(self, state: Any, **unused: Any) -> Any:
        """Audio fp32 [1, channels, samples] within [-1, 1]."""
        from vllm_omni.diffusion.data import DiffusionOutput

        audio = self.songs.decode(state.extra["song"].x_TC, state.extra["seconds"])
        return DiffusionOutput(output=audio[None].clamp(-1, 1))
