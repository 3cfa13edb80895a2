"""What a data set tells of a song's course, as the plan that the network reads.

record = shards.read(4)
outline = outline_of(record.metadata, record["phoneme_times"])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mudit_engine.names import STYLES, VOICES
from mudit_engine.text.composition.arrangement import section_of
from mudit_engine.text.composition.typed import CONTROLS
from mudit_engine.text.harmony import TONIC_NAMES, TimedChord, chord_symbol
from mudit_engine.text.outline import Controls, Outline

# a data set's own words for voices and styles are left to the description
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "drums": (True, False),
    "voice": VOICES,
    "style": STYLES,
}


def outline_of(
    metadata: Mapping[str, Any], times_L2: np.ndarray | None = None, *, triads: bool = False
) -> Outline:
    """All that is known of a song: tempo, key, chords, melody, arrangement and controls.

    Args:
        metadata: of a song in a data set; what it lacks is not said.
        times_L2: seconds at which each lyric token begins and ends; None or no rows is unknown.
        triads: chords as triads, which is what the engine plans.

    Raises:
        InputError: for chords and sections that are none.

    Examples:
        >>> told = {"bpm": 90, "key": 9, "mode": "minor", "chords": [[0, 2, "Am7"]], "drums": True}
        >>> outline = outline_of(told, triads=True)
        >>> outline.bpm, outline.key, outline.chords[0].symbol.name, outline.controls.drums
        (90.0, 'A minor', 'Am', True)
    """
    symbols = [
        (start, end, chord_symbol(name)) for start, end, name in metadata.get("chords") or ()
    ]
    said = {
        name: metadata[name]
        for name in CONTROLS
        if metadata.get(name) is not None and metadata[name] in _ACCEPTED[name]
    }
    return Outline(
        float(metadata["bpm"]) if "bpm" in metadata else None,
        f"{TONIC_NAMES[metadata['key']]} {metadata['mode']}" if "key" in metadata else None,
        times_L2 if times_L2 is not None and len(times_L2) else None,
        [TimedChord(start, end, one.triad if triads else one) for start, end, one in symbols],
        metadata.get("melody", ()),
        tuple(section_of(one) for one in metadata.get("arrangement", ())),
        Controls(**said),
    )


__all__ = ["outline_of"]
