"""What was understood of requests, as tables: a row a property, and the words that no table knows.

print_understood([{"out": "song.wav", **understood.read}])
"""

from __future__ import annotations

from typing import Any

from mudit_engine.cli._console import print_table


def print_understood(read: list[dict[str, Any]]) -> None:
    """A row for each property of each song, and the words that no table knows."""
    for one in read:
        cells = [
            [name, _shown(found["value"]), found["source"], found.get("words", "")]
            for name, found in one["properties"].items()
        ]
        if one["unread"]:
            cells.append(["for the text encoder", "", "words", ", ".join(one["unread"])])
        print_table(one["out"], ["property", "value", "from", "words"], cells)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
