"""Other systems to stand beside: a kind and the path or hub id of its weights make a song of a
prompt; or it is a folder of songs that were made elsewhere.

    baseline = open_baseline("stable-audio", "stabilityai/stable-audio-open-1.0")
    audio_cS, rate = baseline(Prompt("a slow piano ballad", "", 30.0, seed=0))

| kind         | what runs                                              | lyrics | at most |
| ------------ | ------------------------------------------------------ | ------ | ------- |
| mudit        | this engine, a model's name or folder                  | yes    | the model's |
| stable-audio | diffusers StableAudioPipeline                          | no     | 47 s    |
| audioldm     | diffusers AudioLDMPipeline                             | no     | -       |
| audioldm2    | diffusers AudioLDM2Pipeline                            | no     | -       |
| musicgen     | transformers MusicgenForConditionalGeneration          | no     | 30 s    |
| ace-step     | diffusers AceStepPipeline                              | yes    | 600 s   |
| folder       | files named by the request's id (Melodist, any other)  | -      | -       |

Sampler, steps and guidance are each pipeline's own defaults unless `steps` says otherwise, so that
a baseline is what its authors ship. Where more seconds are asked for than a system makes, its song
is as long as its limit.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.availability import require
from mudit_engine.errors import InputError, MissingError, ModelError

FOLDER = "folder"


@dataclass(frozen=True)
class Prompt:
    """What a baseline is asked for: description, lyrics with section tags, length in seconds."""

    text: str
    lyrics: str
    seconds: float
    seed: int
    user: str = "none"  # who wrote the text, for systems that ask


Make = Callable[[Prompt], tuple[Tensor, int]]


@dataclass(frozen=True)
class Kind:
    """How a kind is opened, what it can do, and the longest song it makes (None: any)."""

    open: Callable[[str, int | None, str], Make]
    package: str
    lyrics: bool
    limit: float | None


def _diffusers(name: str, source: str, device: str) -> Any:
    require("diffusers", f"the baseline {name}")
    import diffusers

    with _quiet():
        try:
            pipeline = getattr(diffusers, name).from_pretrained(source).to(device)
        except ImportError as error:  # a scheduler's own package: torchsde, of Stable Audio Open
            lines = str(error).strip().splitlines()
            raise MissingError(f"'{source}' needs more: {lines[0]}") from error
        except (OSError, ValueError) as error:
            raise ModelError(
                f"'{source}' cannot be opened as {name}: {str(error).splitlines()[0]}. Give a "
                "folder or a hub id that is reachable"
            ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _steps(steps: int | None) -> dict[str, int]:
    return {} if steps is None else {"num_inference_steps": steps}


def _stable_audio(source: str, steps: int | None, device: str) -> Make:
    pipeline = _diffusers("StableAudioPipeline", source, device)

    def make(prompt: Prompt) -> tuple[Tensor, int]:
        made = pipeline(
            prompt.text,
            audio_end_in_s=prompt.seconds,
            generator=_generator(prompt.seed),
            **_steps(steps),
        )
        return made.audios[0], int(pipeline.vae.sampling_rate)

    return make


def _audioldm(name: str) -> Callable[[str, int | None, str], Make]:
    def open_one(source: str, steps: int | None, device: str) -> Make:
        pipeline = _diffusers(name, source, device)

        def make(prompt: Prompt) -> tuple[Tensor, int]:
            made = pipeline(
                prompt.text,
                audio_length_in_s=prompt.seconds,
                generator=_generator(prompt.seed),
                **_steps(steps),
            )
            return torch.as_tensor(made.audios[0])[None], int(pipeline.vocoder.config.sampling_rate)

        return make

    return open_one


def _ace_step(source: str, steps: int | None, device: str) -> Make:
    pipeline = _diffusers("AceStepPipeline", source, device)

    def make(prompt: Prompt) -> tuple[Tensor, int]:
        made = pipeline(
            prompt.text,
            lyrics=prompt.lyrics,
            audio_duration=prompt.seconds,
            vocal_language="zh" if any("\u4e00" <= c <= "\u9fff" for c in prompt.lyrics) else "en",
            generator=_generator(prompt.seed),
            **_steps(steps),
        )
        return made.audios[0], int(pipeline.sample_rate)

    return make


def _musicgen(source: str, steps: int | None, device: str) -> Make:
    require("transformers", "the baseline MusicGen")
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    from mudit_engine.metrics.embeddings import loaded

    if steps is not None:
        raise InputError("musicgen samples tokens and has no steps: leave the steps out")
    model = loaded(MusicgenForConditionalGeneration, source).to(device).eval()
    words = loaded(AutoTokenizer, source)
    rate, frames = model.config.audio_encoder.sampling_rate, model.config.audio_encoder.frame_rate

    def make(prompt: Prompt) -> tuple[Tensor, int]:
        inputs = words([prompt.text], return_tensors="pt", truncation=True).to(device)
        torch.manual_seed(prompt.seed)  # generate takes no generator
        made = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            guidance_scale=3.0,
            max_new_tokens=max(1, round(prompt.seconds * frames)),
        )
        return made[0], int(rate)

    return make


def _mudit(source: str, steps: int | None, device: str) -> Make:
    from mudit_engine.loudness import mastered
    from mudit_engine.pipeline import SongPipeline
    from mudit_engine.request import SongRequest

    pipeline = SongPipeline.from_pretrained(source)

    def make(prompt: Prompt) -> tuple[Tensor, int]:
        sampler = {} if steps is None else {"steps": steps}
        [song] = pipeline.generate(
            [
                SongRequest(
                    description=prompt.text,
                    lyrics=prompt.lyrics,
                    seconds=prompt.seconds,
                    seed=prompt.seed,
                    user_type=prompt.user,
                    sampler=sampler,
                )
            ]
        )
        # as `mudit generate` writes it: others' pipelines end their songs and hold their level too
        audio_cS, _ = mastered(torch.as_tensor(song.audio), song.sample_rate)
        return audio_cS, song.sample_rate

    return make


KINDS: dict[str, Kind] = {
    "mudit": Kind(_mudit, "torch", True, None),
    "stable-audio": Kind(_stable_audio, "diffusers", False, 47.0),
    "audioldm": Kind(_audioldm("AudioLDMPipeline"), "diffusers", False, None),
    "audioldm2": Kind(_audioldm("AudioLDM2Pipeline"), "diffusers", False, None),
    "musicgen": Kind(_musicgen, "transformers", False, 30.0),
    "ace-step": Kind(_ace_step, "diffusers", True, 600.0),
}


@dataclass(frozen=True)
class Baseline:
    """A named system: its kind and source, and what makes its songs (None: a folder of them)."""

    name: str
    kind: str
    source: str
    make: Make | None

    @property
    def folder(self) -> Path:
        return Path(self.source)

    def __call__(self, prompt: Prompt) -> tuple[Tensor, int]:
        """float32 audio [1 or 2 channels, samples] on the CPU, and its rate.

        Raises ModelError when the system made no finite sound.
        """
        if self.make is None:
            raise InputError(f"system '{self.name}' is a folder of songs and makes none")
        limit = KINDS[self.kind].limit
        seconds = prompt.seconds if limit is None else min(prompt.seconds, limit)
        with torch.inference_mode():
            audio, rate = self.make(replace(prompt, seconds=seconds))
        audio = audio.detach().float().cpu()
        audio = audio[None] if audio.dim() == 1 else audio
        if not audio.isfinite().all() or not audio.shape[1]:
            raise ModelError(
                f"system '{self.name}' ({self.kind}:{self.source}) made no finite audio of "
                f"'{prompt.text[:40]}': try another precision or fewer seconds"
            )
        return audio, rate


def parse_system(text: str) -> tuple[str, str, str]:
    """(name, kind, source) of NAME=KIND:SOURCE. Raises InputError."""
    name, equals, rest = text.partition("=")
    kind, colon, source = rest.partition(":")
    if not (equals and colon and name and source) or kind not in (*KINDS, FOLDER):
        raise InputError(
            f"system '{text}' is not understood: write NAME=KIND:SOURCE with a KIND of "
            f"{', '.join((*KINDS, FOLDER))}, such as sao=stable-audio:path/to/weights"
        )
    return name, kind, source


def open_baseline(
    kind: str, source: str, *, name: str = "", steps: int | None = None, device: str = "cpu"
) -> Baseline:
    """Opens a system by its kind.

    Args:
        kind: one of KINDS, or "folder".
        source: a folder or hub id of weights; a folder of songs.
        steps: of the sampler, where it has any (None: the pipeline's own number).
        device: where it runs.

    Raises:
        InputError: for an unknown kind, or a folder that does not exist.
        MissingError: with the command that installs what the kind needs.
        ModelError: when the weights cannot be opened.
    """
    if kind == FOLDER:
        if not Path(source).is_dir():
            raise InputError(f"'{source}' is no folder of songs: check the path")
        return Baseline(name or kind, kind, source, None)
    if kind not in KINDS:
        raise InputError(f"'{kind}' is no kind of system: use {', '.join((*KINDS, FOLDER))}")
    return Baseline(name or kind, kind, source, KINDS[kind].open(source, steps, device))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """diffusers tells of every file and deprecation that it meets."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
