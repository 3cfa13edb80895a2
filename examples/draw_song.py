"""Generates a song and draws the plan above the sound: sections, chords, lines and syllables as
they were planned, then the spectrum of the audio that the network made of them.

    python examples/draw_song.py --out song.png

The plan follows from the request alone, before any network runs (mudit_engine/text/outline.py).
So the picture shows how well the network kept to it: a voice should begin where a tick stands.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mudit_engine import Song, SongPipeline, SongRequest
from mudit_engine.files import atomic_path
from mudit_engine.models.spectral import LogMel
from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.outline import plan_bars, plan_syllables
from mudit_engine.text.phonemes import lines_of_sections, phonemize

LYRICS = Path(__file__).parent / "lyrics" / "lantern.txt"
DESCRIPTION = "A warm pop ballad with piano and strings, female voice, BPM 84, A major"
COLOURS = {"verse": "#9ec5e8", "chorus": "#f4b183", "bridge": "#b9d7a8"}
PLAYED = "#d9d9d9"  # sections without words
MELS, N_FFT, HOP = 128, 2048, 256
RANGE_DB = 65.0


def draw_plan(axes: Axes, song: Song, lyrics: str) -> None:
    """Four rows over time: sections, chords (one a bar), sung lines, and a tick a syllable."""
    outline, seconds = song.info["outline"], song.info["request"]["seconds"]
    read = parse_lyrics(lyrics)
    phonemes = phonemize(read)
    bars = plan_bars(phonemes, bpm=outline["bpm"], seconds=seconds)
    start = 0.0
    for name, count in bars.sections:
        length = count * bars.seconds
        axes.barh(3, length, left=start, color=COLOURS.get(name, PLAYED), edgecolor="white")
        axes.text(start + length / 2, 3, name, ha="center", va="center", fontsize=9)
        start += length
    for number, chord in enumerate((outline["chords"] or "").split()):
        place = (number + 0.5) * bars.seconds
        axes.barh(2, bars.seconds, left=number * bars.seconds, color="#f2f2f2", edgecolor="white")
        axes.text(place, 2, chord, ha="center", va="center", fontsize=8)
    syllables = plan_syllables(phonemes, bpm=outline["bpm"], seconds=seconds)
    axes.vlines(syllables[:, 0], -0.4, 0.35, color="#444444", linewidth=0.9)
    lines = [line.text for section in read.sections for line in section.lines]
    counts = [count for _, lengths in lines_of_sections(phonemes) for count in lengths]
    first = 0
    for text, count in zip(lines, counts, strict=True):
        words = textwrap.fill(text, 3 + len(text) // 2)
        axes.text(syllables[first, 0], 1, words, va="center", fontsize=7)
        first += count
    axes.set_yticks([3, 2, 1, 0], ["sections", "chords", "words", "syllables"], fontsize=8)
    axes.set_ylim(-0.6, 3.6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@torch.inference_mode()
def draw_sound(axes: Axes, song: Song) -> None:
    """Log-mel level in dB below the loudest cell."""
    mono = torch.from_numpy(song.audio).mean(0, keepdim=True)
    mono = torch.nn.functional.pad(mono, (0, -mono.shape[1] % HOP))
    level_FM = (
        LogMel(song.sample_rate, N_FFT, HOP, MELS)(mono)[0] * 20 / torch.log(torch.tensor(10.0))
    )
    top = float(level_FM.max())
    axes.imshow(
        level_FM.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, song.seconds, 0, MELS),
        vmin=top - RANGE_DB,
        vmax=top,
        cmap="magma",
    )
    axes.set_yticks([])
    axes.set_ylabel("pitch (mel)", fontsize=8)
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(labelsize=8)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Generate a song and draw its plan and sound.")
    parser.add_argument("--model", default="tiny", help="an embedded model or a model folder")
    parser.add_argument("--description", default=DESCRIPTION)
    parser.add_argument("--lyrics", type=Path, default=LYRICS)
    parser.add_argument("--seconds", type=float, help="default: as long as the lyrics need")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("song.png"), help="a .png")
    options = parser.parse_args(arguments)
    lyrics = options.lyrics.read_text(encoding="utf-8")
    request = SongRequest(
        description=options.description, lyrics=lyrics, seconds=options.seconds, seed=options.seed
    )
    # fp32: the same song on every CPU
    pipeline = SongPipeline.from_pretrained(options.model, dtype=torch.float32)
    [song] = pipeline.generate([request])
    figure = Figure(figsize=(11, 4.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    plan, sound = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.7))
    draw_plan(plan, song, lyrics)
    draw_sound(sound, song)
    sound.set_xlim(0, song.seconds)
    figure.suptitle(options.description, fontsize=10)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with atomic_path(options.out) as aside:  # 96 colours: a third of the bytes, and as good to see
        picture.quantize(96).save(aside, format="png", optimize=True)
    song.save(options.out.with_suffix(".wav"))
    print(f"{options.out} shows {options.out.with_suffix('.wav')}, {song.seconds:.1f} s")


if __name__ == "__main__":
    main()
