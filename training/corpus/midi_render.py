"""Music from MIDI files, as unlabelled audio: more notes, forms and instruments for the VAE than
the generator knows.

Sources are .mid files, folders of them, and Doom-format WAD archives, whose music lumps are named
D_*. Debian's freedoom package holds 66 multitrack pieces under a BSD licence (apt-get download
freedoom && dpkg -x freedoom_*.deb freedoom). Each piece is rendered with the soundfont, cut into
excerpts, brought to the corpus' loudness, and listed in manifest.jsonl, which `mudit train` reads
as a source.

    sound = find_soundfont()
    render_midi([Path("freedoom2.wad")], Path("midi"), soundfont=sound, sample_rate=22050)
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mudit_engine.errors import InputError, OutputError
from mudit_engine.training.corpus.band import RENDER_RATE, synthesise
from mudit_engine.training.corpus.mixing import PEAK, TARGET_LUFS, loudness, resample

_MIDI_MAGIC = b"MThd"
_QUIETEST = -45.0  # LUFS: below it an excerpt is a pause
_SHORTEST_SHARE = 0.4  # of an excerpt; a shorter rest of a piece is dropped


@dataclass(frozen=True, slots=True)
class Piece:
    """One MIDI file. `name` is unique among the sources and safe in a file name."""

    name: str
    data: bytes


def wad_lumps(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, data) of every lump of a WAD archive. Raises InputError for anything else.

    Layout: 4-byte kind (IWAD or PWAD), int32 count, int32 directory offset; a directory entry is
    int32 offset, int32 size, 8-byte name.
    """
    data = path.read_bytes()
    if len(data) < 12 or data[:4] not in (b"IWAD", b"PWAD"):
        raise InputError(f"'{path}' is no WAD archive")
    count, directory = struct.unpack_from("<ii", data, 4)
    if count < 0 or directory < 12 or directory + 16 * count > len(data):
        raise InputError(f"'{path}' is a damaged WAD archive: its directory lies outside the file")
    for number in range(count):
        offset, size, name = struct.unpack_from("<ii8s", data, directory + 16 * number)
        if size < 0 or offset < 0 or offset + size > len(data):
            raise InputError(
                f"'{path}' is a damaged WAD archive: entry {number} lies outside the file"
            )
        yield name.split(b"\0")[0].decode("ascii", errors="replace"), data[offset : offset + size]


def find_pieces(sources: Sequence[Path]) -> list[Piece]:
    """The MIDI pieces of all sources, without repeats. Raises InputError when a source cannot be
    read or holds none.
    """
    pieces: dict[bytes, Piece] = {}
    names: set[str] = set()
    for source in sources:
        if source.is_dir():
            found = [
                (path.stem, path.read_bytes())
                for path in sorted(source.rglob("*"))
                if path.suffix.lower() in (".mid", ".midi")
            ]
        elif source.suffix.lower() == ".wad" and source.is_file():
            found = [(name, data) for name, data in wad_lumps(source) if name.startswith("D_")]
        elif source.is_file():
            found = [(source.stem, source.read_bytes())]
        else:
            raise InputError(
                f"'{source}' does not exist: name .mid files, folders of them, or .wad archives"
            )
        music = [(name, data) for name, data in found if data.startswith(_MIDI_MAGIC)]
        if not music:
            raise InputError(
                f"'{source}' holds no MIDI music: name .mid files, folders of them, or .wad "
                f"archives with D_* lumps in MIDI format"
            )
        for name, data in music:
            if data in pieces:
                continue
            plain = re.sub(
                r"[^A-Za-z0-9_-]+",
                "-",
                f"{source.stem}-{name}" if source.suffix.lower() == ".wad" else name,
            )
            unique = next(
                option
                for option in (plain, *(f"{plain}-{k}" for k in range(2, 10_000)))
                if option not in names
            )
            names.add(unique)
            pieces[data] = Piece(unique, data)
    return list(pieces.values())


def render_midi(
    sources: Sequence[Path],
    out: Path,
    *,
    soundfont: Path,
    sample_rate: int,
    excerpt_seconds: float = 30.0,
    on_piece: Callable[[str, float], None] = lambda name, seconds: None,
) -> dict[str, float]:
    """Renders every piece that is not there yet and writes manifest.jsonl. Returns {"pieces",
    "excerpts", "minutes"} of what `out` holds.

    Calls `on_piece(name, seconds of audio)` after each. Raises InputError, OutputError.
    """
    import soundfile

    if excerpt_seconds < 5:
        raise InputError(f"--excerpt {excerpt_seconds}: excerpts have at least 5 seconds")
    pieces = find_pieces(sources)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for piece in pieces:
        listing = out / f"{piece.name}.json"  # written last: its piece is finished
        if not listing.exists():
            excerpts = _excerpts(_play(piece, soundfont), sample_rate, excerpt_seconds)
            made = []
            for number, audio in enumerate(excerpts):
                name = f"{piece.name}-{number:02d}"
                soundfile.write(
                    out / f"{name}.part", audio, sample_rate, format="FLAC", subtype="PCM_16"
                )
                os.replace(out / f"{name}.part", out / f"{name}.flac")
                made.append(
                    {
                        "id": name,
                        "audio": f"{name}.flac",
                        "seconds": len(audio) / sample_rate,
                        "sample_rate": sample_rate,
                    }
                )
            _write_aside(listing, json.dumps(made))
        mine = json.loads(listing.read_text())
        if any(row["sample_rate"] != sample_rate for row in mine):
            raise InputError(
                f"'{out}' holds excerpts at {mine[0]['sample_rate']} Hz, asked: {sample_rate}. "
                f"Choose another --out"
            )
        rows += mine
        on_piece(piece.name, sum(row["seconds"] for row in mine))
    manifest = [
        json.dumps({"id": row["id"], "audio": row["audio"], "split": "train"}) for row in rows
    ]
    _write_aside(out / "manifest.jsonl", "".join(line + "\n" for line in manifest))
    return {
        "pieces": len(pieces),
        "excerpts": len(rows),
        "minutes": sum(row["seconds"] for row in rows) / 60,
    }


def _play(piece: Piece, soundfont: Path) -> np.ndarray:
    """Mono float32 at RENDER_RATE."""
    import soundfile

    with tempfile.TemporaryDirectory(prefix="mudit-midi-") as folder:
        midi, wav = Path(folder) / f"{piece.name}.mid", Path(folder) / "piece.wav"
        midi.write_bytes(piece.data)
        synthesise(midi, wav, soundfont)
        stereo, _ = soundfile.read(wav, dtype="float32")
    if not np.any(stereo):
        raise OutputError(f"fluidsynth played nothing for '{piece.name}': is the file whole?")
    mono: np.ndarray = stereo.mean(axis=1)
    return mono


def _excerpts(audio: np.ndarray, sample_rate: int, seconds: float) -> Iterator[np.ndarray]:
    """Consecutive excerpts at the corpus' loudness, without pauses and without a short rest."""
    size = round(seconds * RENDER_RATE)
    fade = np.linspace(0, 1, round(0.02 * sample_rate))
    for start in range(0, len(audio), size):
        raw = audio[start : start + size]
        if len(raw) < _SHORTEST_SHARE * size:
            continue
        piece = resample(
            raw.astype(np.float64),
            RENDER_RATE,
            sample_rate,
            round(len(raw) / RENDER_RATE * sample_rate),
        )
        level = loudness(piece, sample_rate)
        if level < _QUIETEST:
            continue
        piece *= min(10 ** ((TARGET_LUFS - level) / 20), PEAK / float(np.abs(piece).max()))
        piece[: len(fade)] *= fade
        piece[-len(fade) :] *= fade[::-1]
        yield piece


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
