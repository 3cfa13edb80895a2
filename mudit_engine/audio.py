"""Audio files and sample rates: load, save, resample, channels, a picture of the spectrum.

audio_cS, rate = load_audio("reference.mp3")                 # float32 [channels, samples]
audio_cS = to_channels(resample(audio_cS, rate, 44100), 2)
save_audio("song.flac", audio_cS, 44100)
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mudit_engine.errors import InputError, OutputError
from mudit_engine.files import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from torch import Tensor

# suffix -> (libsndfile format, sample type)
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
)
# samples written at once: libsndfile's Vorbis writer puts a whole block on the stack and overflows
# it on a song
BLOCK = 65536

PHASES = 64  # of a resampler, in one convolution

logger = logging.getLogger(__name__)


def check_audio_path(path: str | Path) -> None:
    """Raises InputError when `save_audio` could not write there: unknown suffix, a folder, or a
    parent that is a file.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"'{path}' has the suffix '{path.suffix}': use one of {', '.join(FORMATS)}"
        )
    if path.is_dir():
        raise InputError(f"'{path}' is a folder: give a file name such as {path / 'song.wav'}")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"'{path}' cannot be written: '{parent}' is a file and not a folder")


def load_audio(path: str | Path) -> tuple[Tensor, int]:
    """(float32 [channels, samples], samples per second) of a WAV, FLAC, OGG or MP3 file.

    Raises InputError for a missing, broken, empty or unsupported file, and for samples that are not
    finite.
    """
    import soundfile
    import torch

    path = Path(path)
    with _reading(path):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(samples):
        raise InputError(f"audio file '{path}' holds no samples: give a file with sound in it")
    audio_cS = torch.from_numpy(samples.T.copy())
    if not audio_cS.isfinite().all():
        raise InputError(f"audio file '{path}' holds NaN or infinite samples: export it again")
    return audio_cS, int(rate)


def audio_seconds(path: str | Path) -> float:
    """Length of an audio file, from its header. Raises InputError for one that cannot be read."""
    import soundfile

    path = Path(path)
    with _reading(path):
        return float(soundfile.info(path).duration)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises InputError for a file that is missing, and in place of what soundfile raises."""
    import soundfile

    if not path.is_file():
        raise InputError(
            f"audio '{path}' is a folder: give a file"
            if path.is_dir()
            else f"no audio file '{path}': check the path"
        )
    try:
        yield
    except PermissionError:
        raise InputError(f"audio file '{path}' cannot be read: permission denied") from None
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        # ffmpeg does not write into what it reads
        other = path.stem + (".flac" if path.suffix.lower() == ".wav" else ".wav")
        raise InputError(
            f"audio file '{path}' cannot be decoded ({reason}): WAV, FLAC, OGG and MP3 are "
            f"accepted; "
            f"convert it, for example with: ffmpeg -i '{path.name}' '{other}'"
        ) from None


def save_audio(path: str | Path, audio_cS: Tensor, sample_rate: int) -> int:
    """Writes float audio [channels, samples] in the format of the suffix, aside and then renamed;
    returns how many samples were clipped.

    WAV and FLAC are 16 bit. Raises InputError for a suffix, rate or shape that the format does not
    have, OutputError when nothing can be written or the audio is not finite.
    """
    import soundfile

    path = Path(path)
    check_audio_path(path)
    kind, subtype = FORMATS[path.suffix.lower()]
    if kind == "MP3" and sample_rate not in MP3_RATES:
        accepted = ", ".join(map(str, MP3_RATES))
        raise InputError(
            f"MP3 has no sample rate {sample_rate}: write .wav, .flac or .ogg, or resample to one "
            f"of {accepted}"
        )
    if audio_cS.dim() != 2 or not 1 <= audio_cS.shape[0] <= 2 or audio_cS.shape[1] == 0:
        raise InputError(
            f"audio of shape {tuple(audio_cS.shape)} cannot be saved: it must be [1 or 2 channels, "
            f"samples > 0]"
        )
    if not audio_cS.isfinite().all():
        raise OutputError(f"'{path}' was not written: the audio holds NaN or infinite samples")
    samples, clipped = to_int16(audio_cS)
    # libsndfile 1.2 mixes up its units when it is given 16-bit stereo for MP3
    block = samples if kind != "MP3" else samples.astype("float32") / 32768.0
    if clipped:
        logger.warning(
            "%s: %d of %d samples were beyond full scale and are clipped",
            path.name,
            clipped,
            samples.size,
        )
    with atomic_path(path) as aside:
        try:
            with soundfile.SoundFile(
                aside, "w", sample_rate, samples.shape[1], subtype=subtype, format=kind
            ) as file:
                for start in range(0, len(block), BLOCK):
                    file.write(block[start : start + BLOCK])
        except soundfile.LibsndfileError as error:
            raise OutputError(
                f"'{path}' could not be written: {error.error_string}. Free some space or choose "
                f"another file"
            ) from error
    return clipped


def to_int16(audio_cS: Tensor) -> tuple[np.ndarray, int]:
    """(int16 [samples, channels] of float audio [channels, samples], number of samples clipped):
    rounded to nearest, no dither.

    1.0 is 32768 as in libsndfile, so that loading and saving a 16-bit file changes nothing.
    """
    scaled = (audio_cS.detach().cpu().float() * 32768.0).round()
    # full scale itself is one step too high, which nobody hears: it is not counted
    clipped = int((scaled.abs() > 32768).sum())
    return scaled.clamp(-32768, 32767).short().T.contiguous().numpy(), clipped


def resample(
    audio_cS: Tensor,
    source: int,
    target: int,
    *,
    zeros: int = 32,
    rolloff: float = 0.945,
    beta: float = 11.0,
) -> Tensor:
    """Audio [..., ceil(S target / source)] at another sample rate, by a Kaiser-windowed sinc
    low-pass (exact for any pair of rates).

        y[m] = sum_n x[n] h(m source / target - n)
        h(t) = c sinc(c t) kaiser(c t / zeros)        c = rolloff min(1, target / source)

    zeros: zero crossings of the sinc on each side; rolloff: the pass band's share of the lower
    Nyquist frequency; beta: of the Kaiser window (11: stop band below -100 dB). Differentiable.
    Raises ValueError for rates < 1.
    """
    import torch
    import torch.nn.functional as F

    if source < 1 or target < 1:
        raise ValueError(f"cannot resample from {source} to {target} Hz: rates must be positive")
    if source == target or audio_cS.numel() == 0:
        return audio_cS
    divisor = math.gcd(source, target)
    down, up = source // divisor, target // divisor
    cutoff = rolloff * min(1.0, target / source)
    width = math.ceil(zeros / cutoff)
    samples = -(-audio_cS.shape[-1] * up // down)
    per_phase = -(-samples // up)
    # output m = k up + p reads around input k down + p down / up: a strided convolution for each
    # phase p, PHASES of them at once
    flat = audio_cS.reshape(-1, 1, audio_cS.shape[-1])
    padded = F.pad(flat, (width, per_phase * down + width + down - audio_cS.shape[-1] + 1))
    phases = []
    for first in range(0, up, PHASES):
        phase = torch.arange(first, min(first + PHASES, up), dtype=torch.float64)[:, None]
        start, stop = first * down // up, int(phase[-1]) * down // up + 2 * width + 1
        time = cutoff * (
            phase * down / up - torch.arange(start - width, stop - width, dtype=torch.float64)
        )
        kernel = (
            torch.sinc(time)
            * torch.special.i0(beta * (1 - (time / zeros).square()).clamp_min(0).sqrt())
            * (time.abs() < zeros)
        )
        # unit gain at DC for every phase, or a constant would come out as a faint tone
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(flat)
        phases.append(
            F.conv1d(
                padded[..., start : stop + (per_phase - 1) * down], kernel[:, None], stride=down
            )
        )
    return (
        torch.cat(phases, 1)
        .transpose(1, 2)
        .flatten(1)[:, :samples]
        .reshape(*audio_cS.shape[:-1], samples)
    )


def to_channels(audio_cS: Tensor, channels: int) -> Tensor:
    """Audio [channels, samples]: the mean of all channels for 1; mono doubled, or the first two
    (front left and right), for 2.
    """
    if audio_cS.shape[0] == channels:
        return audio_cS
    if channels == 1:
        return audio_cS.mean(0, keepdim=True)
    if channels == 2:
        return audio_cS.expand(2, -1) if audio_cS.shape[0] == 1 else audio_cS[:2]
    raise ValueError(f"channels={channels} must be 1 or 2")


def save_spectrogram(path: str | Path, audio_cS: Tensor, sample_rate: int, title: str = "") -> None:
    """Writes a PNG: level in dB below full scale over time (s) and frequency (Hz, log scale), all
    channels averaged in power.
    """
    import numpy as np
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_fft = 4096 if sample_rate > 32000 else 2048
    audio_cS = audio_cS.detach().cpu().float()
    # about 1,600 columns whatever the length: more would not be seen, and a 260 s song must not
    # take 1 GB
    hop = max(n_fft // 8, -(-audio_cS.shape[-1] // 1600))
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(
        audio_cS, n_fft, hop, window=window, return_complex=True, pad_mode="constant"
    ).abs() * (2.0 / window.sum())
    power_KF = spectrum.square().mean(0).numpy()
    # rows evenly spaced in log frequency, each the loudest of its bins: a thin partial stays
    # visible
    lowest, highest, rows = 40.0, sample_rate / 2, 420
    edges = np.floor(
        np.geomspace(lowest, highest, rows, endpoint=False) * n_fft / sample_rate
    ).astype(int)
    level = 10 * np.log10(np.maximum(np.maximum.reduceat(power_KF, edges, axis=0), 1e-12))
    figure = Figure(figsize=(12, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (0.0, level.shape[1] * hop / sample_rate, math.log(lowest), math.log(highest))
    image = axes.imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=extent,
        cmap="magma",
        vmin=-100,
        vmax=-10,
        interpolation="nearest",
    )
    marks = [
        (hertz, f"{hertz // 1000}k" if hertz >= 1000 else str(hertz))
        for hertz in (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
    ]
    marks = [mark for mark in marks if mark[0] < highest]
    axes.set_yticks([math.log(hertz) for hertz, _ in marks], [label for _, label in marks])
    axes.set(xlabel="seconds", ylabel="Hz")
    _set_title(axes, title)
    figure.colorbar(image, label="dB re full scale", pad=0.01)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png")


def _set_title(axes: Axes, title: str) -> None:
    """matplotlib's own font has no CJK: name an installed one that does, or show ? for what cannot
    be drawn.
    """
    from matplotlib import font_manager

    fonts = ["DejaVu Sans"]
    if any(character >= "\u2e80" for character in title):
        installed = {font.name for font in font_manager.fontManager.ttflist}
        usable = [name for name in CJK_FONTS if name in installed]
        fonts = usable + fonts
        if not usable:
            title = "".join("?" if character >= "\u2e80" else character for character in title)
    axes.set_title(title, fontfamily=fonts)
