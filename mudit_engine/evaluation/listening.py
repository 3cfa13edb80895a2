"""What is heard in a piece of audio, measured once and kept: musicnn features, tempo, chroma,
log-mel for the phoneme recogniser, notes.

    listener = Listener(Path("runs/eval"))
    heard = listener.hear(song.audio)  # a file: kept by its content
    heard = listener.hear_made(("codec", codec.id, digest), lambda: (audio, rate))

Kept values live in `work/cache`, one safetensors file each, named by a hash of the audio's origin
and of the code that measures it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mudit_engine.audio import load_audio
from mudit_engine.files import atomic_path
from mudit_engine.hearing import tempo
from mudit_engine.metrics.ctc import log_mel
from mudit_engine.metrics.musicnn import Musicnn
from mudit_engine.metrics.notes import NoteListener
from mudit_engine.metrics.rhythm_and_key import chroma

CODE = (
    "audio",
    "evaluation.listening",
    "metrics.ctc",
    "metrics.musicnn",
    "metrics.rhythm_and_key",
    "metrics.notes",
    "models.spectral",
)

Audio = tuple[Tensor, int]


@dataclass(frozen=True)
class Heard:
    """Measurements of one piece of audio."""

    penultimate_PD: Tensor  # musicnn, one row a patch of 3 s
    timbre_D: Tensor  # musicnn, mean over the song
    tempo: float
    chroma_12: Tensor
    mel_FM: Tensor  # fp16 log-mel, 43 frames a second


class Listener:
    """Measures, and remembers in `work`."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "cache"
        self.code = source_digest(*CODE)

    @cached_property
    def musicnn(self) -> Musicnn:
        return Musicnn.load()

    @cached_property
    def transcriber(self) -> NoteListener:
        return NoteListener.load()

    def hear(self, path: Path) -> Heard:
        """Measurements of a file."""
        return self.hear_made(("file", file_digest(path)), lambda: load_audio(path))

    def hear_made(self, origin: tuple[str, ...], make: Callable[[], Audio]) -> Heard:
        """Measurements of audio of this origin; `make`, which gives the audio, runs only if they
        are not known.
        """
        return _heard(self.keep(("heard", *origin), lambda: self._measure(*make())))

    def measure(self, audio_cS: Tensor, rate: int) -> Heard:
        """Measurements that are not kept."""
        return _heard(self._measure(audio_cS, rate))

    def notes(self, origin: tuple[str, ...], make: Callable[[], Audio]) -> np.ndarray:
        """Notes [n, 3] of audio; see `hear_made`."""
        return self.keep(
            ("notes", *origin), lambda: {"notes": torch.from_numpy(self.transcriber(*make()))}
        )["notes"].numpy()

    def keep(
        self, key: tuple[str, ...], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What `make` gave for this key before, or gives now."""
        path = (
            self.folder
            / f"{hashlib.sha256(repr((self.code, key)).encode()).hexdigest()[:32]}.safetensors"
        )
        try:
            return load_file(path)
        except FileNotFoundError:
            pass
        except SafetensorError:
            # cut short by a full disk or a crash of the machine: measured again
            path.unlink()
        made = {name: value.contiguous() for name, value in make().items()}
        with atomic_path(path) as aside:
            save_file(made, aside)
        return made

    @torch.inference_mode()
    def _measure(self, audio_cS: Tensor, rate: int) -> dict[str, Tensor]:
        mono_S = audio_cS.mean(0)
        features = self.musicnn(mono_S, rate)
        return {
            "penultimate": features.penultimate,
            "timbre": features.song,
            "tempo": torch.tensor(tempo(mono_S, rate)),
            "chroma": chroma(mono_S, rate),
            "mel": log_mel(audio_cS, rate),
        }


def _heard(kept: dict[str, Tensor]) -> Heard:
    return Heard(
        kept["penultimate"], kept["timbre"], float(kept["tempo"]), kept["chroma"], kept["mel"]
    )


def file_digest(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(*modules: str) -> str:
    """Of the source of modules of this package: what they computed is stale when they change."""
    text = "".join(
        inspect.getsource(importlib.import_module(f"mudit_engine.{name}")) for name in modules
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
