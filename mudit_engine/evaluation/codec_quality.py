"""What listeners lose to the codec: PESQ of the vocal stems and ViSQOL of the mixes of held-out
songs, and what a second of sound costs to decode.

    quality = judge_quality(Codec.load(folder), held_out)
    quality.pesq.value, quality.visqol.low
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mudit_engine.audio import load_audio, resample, to_channels
from mudit_engine.availability import require
from mudit_engine.errors import InputError
from mudit_engine.evaluation.bars import CODEC_QUALITY, Verdict, verdicts
from mudit_engine.evaluation.codec import Codec
from mudit_engine.evaluation.songs import EvalSong, Track, silent_track
from mudit_engine.metrics import figures
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.perceptual import pesq_wideband, visqol
from mudit_engine.runtime.decode import decode_song

SECONDS = 15.0  # of each song: PESQ is made for utterances
HEARD = 0.02  # a voice begins where a sample reaches this


@dataclass(frozen=True)
class Quality:
    """Mean over songs, with intervals."""

    pesq: Figure
    visqol: Figure
    decode: Figure  # CPU-seconds a second of sound

    def facts(self) -> dict[str, float | int | str | None]:
        """Each figure with the ends of its interval, and the songs behind it."""
        return {
            f"{name}{end}": getattr(figure, key)
            for name, figure in (
                ("pesq", self.pesq),
                ("visqol", self.visqol),
                ("decode_cpu_seconds_a_second", self.decode),
            )
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high"), ("_songs", "n"))
        }

    def verdicts(self) -> list[Verdict]:
        return verdicts(CODEC_QUALITY, {"pesq": self.pesq.value, "visqol": self.visqol.value})


def judge_quality(
    codec: Codec, songs: Sequence[EvalSong], *, track: Track = silent_track
) -> Quality:
    """Judges the first SECONDS of every mix, and of every voice from where it begins.

    Raises:
        InputError: when no song has a vocal stem (vocals.flac beside its mix).
        MissingError: without the packages of the extra 'quality'.
    """
    for package in ("pesq", "visqol"):
        require(package, "the codec's quality for listeners")  # told before minutes of work
    voices = [path for song in songs if song.sung and (path := _vocals(song)).is_file()]
    if not voices:
        raise InputError(
            "no held-out song has its voice beside the mix (vocals.flac): make the corpus with "
            "stems"
        )
    pesqs, visqols, costs = [], [], []
    for path in track(voices, "voices"):
        original_S, decoded_S, _ = _through(codec, path, from_sound=True)
        pesqs.append(pesq_wideband(original_S, decoded_S, codec.vae.config.sample_rate))
    for song in track(songs, "mixes"):
        original_S, decoded_S, cost = _through(codec, song.audio, from_sound=False)
        visqols.append(visqol(original_S, decoded_S, codec.vae.config.sample_rate))
        costs.append(cost)
    return Quality(figures.mean(pesqs), figures.mean(visqols), figures.mean(costs))


def _vocals(song: EvalSong) -> Path:
    return song.audio.with_name("vocals.flac")


@torch.inference_mode()
def _through(codec: Codec, path: Path, *, from_sound: bool) -> tuple[Tensor, Tensor, float]:
    """(original [samples], decoded [samples], CPU-seconds of decoding a second); two channels
    are averaged.
    """
    config = codec.vae.config
    audio_cS, rate = load_audio(path)
    audio_cS = to_channels(resample(audio_cS, rate, config.sample_rate), config.channels)
    if from_sound:
        loud = (audio_cS.abs().amax(0) > HEARD).nonzero()
        audio_cS = audio_cS[:, int(loud[0]) if len(loud) else 0 :]
    audio_cS = audio_cS[:, : round(SECONDS * config.sample_rate)]
    latents_TC = codec.vae.encode(audio_cS[None])[0][0]
    start = time.process_time()
    decoded_cS = decode_song(codec.vae, latents_TC, seconds=audio_cS.shape[1] / config.sample_rate)
    seconds = time.process_time() - start
    return (
        audio_cS.mean(0),
        decoded_cS.mean(0),
        seconds * config.sample_rate / audio_cS.shape[1],
    )
