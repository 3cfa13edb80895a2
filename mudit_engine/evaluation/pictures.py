"""A page of spectrograms: one song a line, original, through the codec, generated, all on one
scale.

    rows = [("11-000003", {"original": (audio, rate), "codec": ..., "generated": ...})]
    spectrogram_page(Path("page.png"), rows)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mudit_engine.audio import resample
from mudit_engine.evaluation.listening import Audio
from mudit_engine.files import atomic_path
from mudit_engine.models.spectral import LogMel

RATE, FFT, HOP, MELS = 22050, 2048, 512, 128
RANGE_DB = 70.0


@torch.inference_mode()
def spectrogram_page(path: Path, songs: Sequence[tuple[str, Mapping[str, Audio]]]) -> None:
    """Writes a PNG of log-mel levels, dB below the loudest cell of each picture;
    titles in ASCII.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mel = LogMel(RATE, FFT, HOP, MELS)
    columns = max(len(versions) for _, versions in songs)
    figure = Figure(figsize=(6.2 * columns, 2.6 * len(songs)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(songs), columns, squeeze=False)
    for axes, (title, versions) in zip(grid, songs, strict=True):
        longest = max(audio.shape[1] / rate for audio, rate in versions.values())
        for cell, (name, (audio, rate)) in zip(axes, versions.items(), strict=False):
            mono = resample(audio.mean(0, keepdim=True), rate, RATE)
            level = mel(torch.nn.functional.pad(mono, (0, -mono.shape[1] % HOP)))[0].T * (
                20 / torch.log(torch.tensor(10.0))
            )
            extent, top = (0, audio.shape[1] / rate, 0, MELS), float(level.max())
            cell.imshow(
                level.numpy(),
                origin="lower",
                aspect="auto",
                extent=extent,
                vmin=top - RANGE_DB,
                vmax=top,
                cmap="magma",
            )
            cell.set(xlim=(0, longest), yticks=[])
            cell.set_title(f"{name}: {title}", fontsize=9)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png")
