"""What a data set tells of a song's course, as the plan that the network reads.

record = shards.read(4)
outline = outline_of(record.metadata, record["phoneme_times"])
metadata = {**labels_read(["摇滚，男声，BPM 120"]), **song.metadata}      # of a song without labels
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mudit_engine.names import STYLES, VOICES
from mudit_engine.text.composition.arrangement import section_of
from mudit_engine.text.composition.typed import CONTROLS
from mudit_engine.text.harmony import TONIC_NAMES, TimedChord, chord_symbol, key_parts
from mudit_engine.text.outline import Controls, Outline
from mudit_engine.text.wishes import read_description

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


def labels_read(descriptions: Iterable[str]) -> dict[str, Any]:
    """What descriptions say of drums, voice, style, tempo and key, as a request in their words is
    read: a song is learned under what will be said of it when one like it is asked for.

    Args:
        descriptions: of one song. What two of them say differently is left out.

    Returns:
        Fields of a song's metadata.

    Examples:
        >>> labels_read(["rock with drums, in A minor", "摇滚，男声"])
        {'drums': True, 'voice': 'male', 'style': 'rock', 'key': 9, 'mode': 'minor'}
        >>> labels_read(["female voice", "男声"])
        {}
    """
    names = (*CONTROLS, "bpm", "key")
    wishes = [read_description(one) for one in descriptions]
    said = {name: {getattr(one, name) for one in wishes} - {None} for name in names}
    labels = {name: values.pop() for name, values in said.items() if len(values) == 1}
    if "key" in labels:
        labels["key"], labels["mode"] = key_parts(labels["key"])
    return labels


__all__ = ["labels_read", "outline_of"]
