"""What a corpus holds: songs and minutes by every label that a model is to obey.

table = summarise("corpus"); table["style"]["jazz"]    {"songs": 83, "minutes": 31.2}
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mudit_engine.training.corpus.labels import Song, song_folders, split

Statistics = dict[str, dict[str, dict[str, float]]]  # {group: {value: {"songs": n, "minutes": m}}}
GROUPS: dict[str, Callable[[Song], str]] = {
    "split": split,
    "style": lambda song: song.style,
    "instrument set": lambda song: f"{song.style}/{song.instrument_set}",
    "voice": lambda song: song.voice,
    "timbre": lambda song: song.timbre,
    "language": lambda song: song.language,
    "drums": lambda song: "yes" if song.drums else "no",
    "mode": lambda song: song.mode,
    "tempo": lambda song: f"{song.bpm // 20 * 20}-{song.bpm // 20 * 20 + 19} BPM",
}


def summarise(corpus: Path | str) -> Statistics:
    """Counts by every group; "distinct lines" counts lyric lines instead of songs. Raises
    InputError when there are no songs.
    """
    songs = [Song.load(folder) for folder in song_folders(corpus)]
    table: Statistics = {"all": {"all": _count(songs)}}
    for name, group in GROUPS.items():
        values = sorted({group(song) for song in songs})
        table[name] = {
            value: _count([song for song in songs if group(song) == value]) for value in values
        }
    for side in ("train", "test"):
        mine = [song for song in songs if split(song) == side]
        if mine:
            distinct = frozenset().union(*(song.line_ids for song in mine))
            table.setdefault("distinct lines", {})[side] = {
                "songs": len(distinct),
                "minutes": _count(mine)["minutes"],
            }
    return table


def _count(songs: list[Song]) -> dict[str, float]:
    return {"songs": len(songs), "minutes": round(sum(song.seconds for song in songs) / 60, 2)}
