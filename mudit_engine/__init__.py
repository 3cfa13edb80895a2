"""mudit_engine: a description and lyrics become a whole song, in one stage.

    from mudit_engine import SongPipeline, SongRequest
    request = SongRequest(description="流行抒情", lyrics="[verse]\n月亮升起来")
    song = SongPipeline.from_pretrained("tiny").generate([request])[0]
    song.save("song.wav")

Importing this package imports no torch; the names below load what they need on first use.
"""

from __future__ import annotations

import os.path
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Song", "SongPipeline", "SongRequest", "__version__"]

# kernels, training, export and benchmarks are links to folders beside this one. Where git made
# plain files of them (core.symlinks=false, its default on Windows), the folders are found there.
_HERE = os.path.dirname(os.path.abspath(__file__))
if os.path.isfile(os.path.join(_HERE, "kernels")):
    __path__.append(os.path.dirname(_HERE))

if TYPE_CHECKING:
    from mudit_engine.pipeline import Song, SongPipeline, SongRequest


def __getattr__(name: str) -> object:
    if name in ("Song", "SongPipeline", "SongRequest"):
        from mudit_engine import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'mudit_engine' has no attribute '{name}'")
