"""Generates two songs of different lengths in one batch, then one again with another sampler.

python examples/generate_songs.py --out out/songs
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mudit_engine import SongPipeline, SongRequest

LYRICS = """\
[verse]
月亮升起来
照着小河流
[chorus]
点一盏灯笼
等你回家来
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Generate songs from Python.")
    parser.add_argument("--model", default="tiny", help="an embedded model or a model folder")
    parser.add_argument("--out", type=Path, default=Path("songs"), help="folder of the songs")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = SongPipeline.from_pretrained(options.model)

    requests = [
        SongRequest(description="流行抒情，钢琴，女声，BPM 84", lyrics=LYRICS, seed=1),
        SongRequest(description="a fast electronic song in A minor", seconds=8, seed=2),
    ]
    for request in requests:
        for message in pipeline.check(request):  # what was read otherwise than written, and so on
            print(message)
    # both songs are one batch: neither is padded to the length of the other
    for number, song in enumerate(pipeline.generate(requests), 1):
        files = song.save(options.out / f"song-{number}.wav", spectrogram=True)
        print(f"{song.seconds:.1f} s in key {song.info['outline']['key']}: {files[0]}")

    # the same words and seed, denoised by a stochastic sampler with fewer steps
    sde = SongRequest(
        description="a fast electronic song in A minor",
        seconds=8,
        seed=2,
        sampler={"name": "sde-euler", "steps": 16, "guidance": 2.0},
    )
    [song] = pipeline.generate([sde])
    song.save(options.out / "song-2-sde.wav")


if __name__ == "__main__":
    main()
