"""A song's audio as training takes it: decoded in blocks, never longer than asked for, and refused
by name where it would teach something wrong.

    audio_cS, rate = read_song(Path("a.ogg"), max_seconds=1200.0)          # float32 [channels, S]

Refused: what cannot be decoded; files that end before their header (WAV, FLAC, MP3) or their last
page (OGG) says; longer than `max_seconds`, shorter than `min_seconds`; samples that are NaN,
infinite or beyond LOUDEST times full scale; silence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mudit_engine.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SECONDS = 1200.0
MIN_SECONDS = 0.5
LOUDEST = 8.0  # +18 dB over full scale: float files of real mixes stay below
SILENCE = 1e-4  # -80 dB below full scale at the loudest sample
BLOCK = 1 << 18  # samples of a channel decoded at a time
# an MP3's header counts the encoder's own padding in some files: two frames of it at most
MP3_SLACK = 2 * 1152
UNKNOWN_LENGTH = 0x7FFFFFF0  # programs that write into a pipe leave such a size in a WAV's header
_WAV_DATA = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_OGG_TAIL = 1 << 17  # the longest page is 65,307 bytes


def read_song(
    path: Path, *, max_seconds: float = MAX_SECONDS, min_seconds: float = MIN_SECONDS
) -> tuple[Tensor, int]:
    """(float32 [channels, samples], samples per second) of an audio file. Raises InputError that
    names the file and what is wrong with it.
    """
    import soundfile
    import torch

    name = str(path)
    if _broken(name):
        raise InputError(f"the file name {name!a} is not UTF-8: rename the song")
    if not path.is_file():
        what = f"'{name}' is a folder" if path.is_dir() else f"no audio file '{name}'"
        raise InputError(f"{what}: check the path")
    try:
        with soundfile.SoundFile(path) as file:
            rate, header = int(file.samplerate), int(file.frames)
            most = int(max_seconds * rate)
            if file.format != "OGG" and header > most:
                raise _too_long(name, header / rate, max_seconds)
            blocks, samples = _decode(file, most)
            if samples > most:
                raise _too_long(name, None, max_seconds)
            _check_whole(path, name, file, samples)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise InputError(
            f"audio file '{name}' cannot be decoded ({reason}): WAV, FLAC, OGG and MP3 are "
            f"accepted, whole"
        ) from None
    if samples < max(1, min_seconds * rate):
        raise InputError(
            f"audio file '{name}' lasts {samples / rate:.3f} s ({samples} samples): a song for "
            f"training lasts {min_seconds:g} s at least"
        )
    audio_cS = torch.from_numpy(np.concatenate(blocks).T.copy())
    peak = float(audio_cS.abs().max())  # NaN where there is one
    if not np.isfinite(peak):
        raise InputError(f"audio file '{name}' holds NaN or infinite samples: export it again")
    if peak > LOUDEST:
        raise InputError(
            f"audio file '{name}' has samples up to {peak:.3g}, full scale is 1: export it again "
            f"at its own level"
        )
    if peak < SILENCE:
        raise InputError(f"audio file '{name}' is silent (its peak is {peak:.1g})")
    return audio_cS, rate


def _broken(text: str) -> bool:
    """Whether a name came from bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _too_long(name: str, seconds: float | None, most: float) -> InputError:
    lasts = f"lasts {seconds:.0f} s" if seconds is not None else f"lasts more than {most:g} s"
    return InputError(
        f"audio file '{name}' {lasts}, at most {most:g} are read: cut it into songs, or raise "
        f"--max-seconds"
    )


def _decode(file: Any, most: int) -> tuple[list[np.ndarray], int]:
    blocks, samples = [], 0
    while samples <= most:
        block = file.read(BLOCK, dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        samples += len(block)
    return blocks, samples


def _check_whole(path: Path, name: str, file: Any, samples: int) -> None:
    """Raises InputError for a file that ends before it says it would."""
    promised: int | None = None
    if file.format in ("WAV", "WAVEX", "RF64"):
        # libsndfile corrects the header's length silently and tells so in its log only
        if found := _WAV_DATA.search(file.extra_info):
            claimed, there = int(found[1]), int(found[2])
            if there < claimed < UNKNOWN_LENGTH:
                promised = round(samples * claimed / max(there, 1))
    elif file.format == "OGG":
        if not _ogg_ends(path):
            raise InputError(
                f"audio file '{name}' is cut short: its last page is not the end of a stream. Copy "
                f"or export it again"
            )
    elif samples < file.frames - (MP3_SLACK if file.format == "MP3" else 0):
        promised = int(file.frames)
    if promised is not None:
        raise InputError(
            f"audio file '{name}' is cut short: its header promises {promised} samples, {samples} "
            f"are there. Copy or export it again"
        )


def _ogg_ends(path: Path) -> bool:
    """Whether the last page of an Ogg file is whole and marked as the last of its stream (RFC 3533:
    byte 5 holds the flags, byte 26 the number of segments, then their lengths).
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _OGG_TAIL))
        tail = file.read()
    start = tail.rfind(b"OggS\0")
    if start < 0 or start + 27 > len(tail):
        return False
    segments = tail[start + 26]
    table = tail[start + 27 : start + 27 + segments]
    whole = len(table) == segments and start + 27 + segments + sum(table) <= len(tail)
    return whole and bool(tail[start + 5] & 0x04)
