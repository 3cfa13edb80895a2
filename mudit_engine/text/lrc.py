"""Time stamps of LRC files and of the formats that Chinese players make of them.

[00:12.34] minutes, seconds and hundredths; [1:02:03.4] with hours; [12340,500] milliseconds and how
long; <00:12.34> and <0,200,0> stand before a word. A header [offset:+500] lets all lines start so
many milliseconds sooner.

    seconds("[00:12.34]", 0.0)        12.34
"""

from __future__ import annotations

import re

STAMP = re.compile(
    r"\[\d{1,3}:\d{1,2}(?:[.:,]\d{1,3}){0,2}\]|<\d{1,3}:\d{1,2}(?:[.:,]\d{1,3}){0,2}>"
    r"|\[\d+,\d+\]|<\d+,\d+(?:,\d+)?>"
)
HEADER = re.compile(
    r"\[(?:ti|ar|al|au|lr|by|offset|re|tool|ve|la|id|length|hash|sign|qq|total|language|encoding"
    r"|kana|#)\s*:[^\[\]]*\]",
    re.IGNORECASE,
)
_OFFSET = re.compile(r"\[offset\s*:\s*([+-]?\d{1,7})\s*\]", re.IGNORECASE)
_LEADING = re.compile(rf"(?:\s*(?:{STAMP.pattern}))+")
_LATEST = 999 * 60 + 59.999  # what a stamp of ours can hold


def seconds(stamp: str, offset: float) -> float | None:
    """When the line behind a stamp starts, None for a stamp of a word or of no time in a song."""
    if stamp[0] == "<":
        return None
    parts = re.split(r"[:.,]", stamp[1:-1])
    if ":" not in stamp:
        return _in_song(int(parts[0]) / 1000 - offset)
    hours = parts.pop(0) if len(parts) == 4 else "0"
    minutes, whole, fraction = (*parts, "0")[:3]
    time = 3600 * int(hours) + 60 * int(minutes) + int(whole)
    return _in_song(time + int(fraction) / 10 ** len(fraction) - offset)


def _in_song(time: float) -> float | None:
    return round(max(0.0, time), 3) if time <= _LATEST else None


def offset(header: str, before: float) -> float:
    """Seconds that a header takes off every stamp; any other header changes nothing."""
    match = _OFFSET.fullmatch(header)
    return int(match[1]) / 1000 if match else before


def stamp(start: float | None) -> str:
    """[mm:ss.fff] of a start, nothing for none."""
    if start is None:
        return ""
    minutes, rest = divmod(round(start * 1000), 60_000)
    return f"[{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}]"


def asks_for_repeats(line: str) -> bool:
    """True for words behind several stamps, which are sung at each."""
    behind = _LEADING.match(line)
    return bool(behind and len(STAMP.findall(behind[0])) > 1 and line[behind.end() :].strip())
