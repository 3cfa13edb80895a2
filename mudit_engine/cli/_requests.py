"""The songs that a command line or a manifest asks for, read and checked before a model is loaded.

    jobs, failures = jobs_of(options)               # options of `mudit generate`

A manifest is JSON Lines: an object a line, with the fields of SongRequest, those of the sampler
(`sampler`, `steps`, `guidance`, `guidance_interval`, `eta`), `lyrics_file` and `out`. The command
line's values are the defaults of every line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mudit_engine.audio import check_audio_path
from mudit_engine.cli._written_lyrics import check_write_options, written_lyrics
from mudit_engine.errors import InputError, MuditError
from mudit_engine.files import read_text
from mudit_engine.names import EDITS_NEED_TORCH, LOUDEST, QUIETEST
from mudit_engine.request import FIELDS, SongRequest, refuse_unknown

# names of the sampler's fields on the command line and in a manifest
SAMPLER_FIELDS = {
    "sampler": "name",
    "steps": "steps",
    "guidance": "guidance",
    "guidance_interval": "guidance_interval",
    "eta": "eta",
}
REQUEST_FIELDS = tuple(name for name in FIELDS if name != "sampler")
LINE_FIELDS = (*REQUEST_FIELDS, *SAMPLER_FIELDS, "lyrics_file", "out")
SINGLE_SONG_OPTIONS = ("lyrics", "reference")  # each line of a manifest has its own


@dataclass(frozen=True)
class Job:
    """A request, the file that its song becomes, and where it was written."""

    request: SongRequest
    path: Path
    where: str

    def failure(self, error: MuditError) -> dict[str, str]:
        """What is said of a song that could not be made."""
        return {"where": self.where, "out": str(self.path), "error": str(error)}


def jobs_of(options: Mapping[str, Any]) -> tuple[list[Job], list[dict[str, str]]]:
    """The jobs of a command line, and with `keep_going` the lines that are none.

    Raises InputError that names the option, or the manifest's line and field.
    """
    check_write_options(options)
    if options["manifest"] is None:
        if options["keep_going"]:
            raise InputError("--keep-going is for --manifest: one song is made or it is not")
        out = Path(options["out"])
        _check_output(out)
        fields = _request_fields(options, options, Path())
        if options["write_lyrics"] is None:
            fields["lyrics"] = _lyrics_of_option(options["lyrics"])
        else:
            fields["lyrics"] = written_lyrics(options, fields["description"])
        source = "standard input" if options["lyrics"] == "-" else options["lyrics"] or "lyrics"
        return [Job(_request(fields, source), out, "the command line")], []
    for name in SINGLE_SONG_OPTIONS:
        if options[name] is not None:
            raise InputError(
                f"--{name} is of one song: with --manifest, write it into the lines of the manifest"
            )
    return _manifest_jobs(Path(options["manifest"]), options)


def _manifest_jobs(
    path: Path, options: Mapping[str, Any]
) -> tuple[list[Job], list[dict[str, str]]]:
    folder = Path(options["out"])
    if folder.suffix:
        raise InputError(
            f"--out {folder}: with --manifest it is the folder of the songs, not a file"
        )
    jobs: list[Job] = []
    failures: list[dict[str, str]] = []
    # a song's sidecar has its name with .json: two songs may not share it
    taken: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "manifest").splitlines(), 1):
        if not line.strip():
            continue
        where = f"manifest '{path}' line {number}"
        try:
            job = _line_job(line, number, where, path.parent, folder, options)
            for name, first in ((n, taken.get(n)) for n in _names(job.path)):
                if first is not None:
                    raise InputError(
                        f"{where}: the file '{job.path.name}' or its sidecar is written by an "
                        f"earlier line ({first}): give each song its own 'out'"
                    )
                taken[name] = f"line {number}"
        except InputError as error:
            if not options["keep_going"]:
                raise
            failures.append({"where": where, "out": "", "error": str(error)})
        else:
            jobs.append(job)
    if not jobs and not failures:
        raise InputError(f"manifest '{path}' has no songs: write one JSON object a line")
    return jobs, failures


def _line_job(
    line: str, number: int, where: str, here: Path, folder: Path, options: Mapping[str, Any]
) -> Job:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise InputError(
            f'{where}: an object such as {{"description": "..."}} is needed, not '
            f"{type(fields).__name__}"
        )
    refuse_unknown(fields, LINE_FIELDS, where=where)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        name = given.pop("out", f"song-{number:04d}.wav")
        if not isinstance(name, str) or not name:
            raise InputError(f"out {name!r} is of a wrong type: give the name of an audio file")
        request_fields = _request_fields(given, options, here)
        if options["seed"] is not None and "seed" not in given:
            request_fields["seed"] = options["seed"] + number - 1
        request_fields["lyrics"] = _lyrics_of_line(given, here)
        request = _request(request_fields, given.get("lyrics_file", "lyrics"))
        out = folder / name
        _check_output(out)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Job(request, out, where)


def _request_fields(
    given: Mapping[str, Any], defaults: Mapping[str, Any], here: Path
) -> dict[str, Any]:
    """Fields of SongRequest but for the lyrics; relative paths start at `here`."""

    def value(name: str) -> Any:
        return given[name] if given.get(name) is not None else defaults.get(name)

    fields = {name: value(name) for name in REQUEST_FIELDS if name != "lyrics"}
    changed = {
        name: value(key) for key, name in SAMPLER_FIELDS.items() if value(key) not in (None, ())
    }
    fields["sampler"] = {**changed, **dict(_setting(text) for text in defaults["settings"])}
    description = fields["description"]
    if isinstance(description, str) and description.startswith("@"):
        fields["description"] = read_text(here / description[1:], "description")
    if "planned" not in given:
        fields["planned"] = not defaults.get("unplanned")
    if fields["drums"] in ("on", "off"):
        fields["drums"] = fields["drums"] == "on"
    from mudit_engine.text.composition.given import MELODY_SUFFIXES  # numpy: not for --help

    melody = fields["melody"]
    # a file by its ending, as a note has none; in a manifest it is melody_file, or melody likewise
    if isinstance(melody, str) and melody.lower().endswith(MELODY_SUFFIXES):
        fields["melody"], fields["melody_file"] = None, melody
    if isinstance(fields["melody_file"], str) and fields["melody_file"]:
        fields["melody_file"] = here / fields["melody_file"]
    if (goes_on := defaults.get("continue_")) is not None and fields["edit"] is None:
        for name in ("repaint", "extend"):
            if fields[name] is not None:
                raise InputError(f"--continue goes on to the song's own length: leave out {name}")
        fields["edit"] = goes_on
    elif goes_on is not None:
        raise InputError("--edit and --continue are both given: keep one of them")
    elif defaults.get("edit") is not None and fields["repaint"] is fields["extend"] is None:
        raise InputError("--edit says which song changes: say what, with --repaint or --extend")
    if fields["edit"] is not None and defaults["runtime"] not in ("auto", "torch"):
        raise InputError(EDITS_NEED_TORCH)
    for name in ("reference", "edit"):
        if isinstance(fields[name], str) and fields[name]:
            fields[name] = here / fields[name]
    return fields


def _request(fields: Mapping[str, Any], source: str) -> SongRequest:
    """A request whose lyrics can be read; `source` names them in messages."""
    from mudit_engine.text.phonemes import read_lyrics

    request = SongRequest(**{name: value for name, value in fields.items() if value is not None})
    if (request.lyrics or "").strip():
        read_lyrics(request.lyrics or "", source=source, ignore_times=request.ignore_times)
    return request


def _lyrics_of_line(given: Mapping[str, Any], here: Path) -> Any:
    if "lyrics_file" not in given:
        return given.get("lyrics")
    file = given["lyrics_file"]
    if not isinstance(file, str) or not file:
        raise InputError(f"lyrics_file {file!r} is of a wrong type: give the name of a text file")
    if given.get("lyrics") is not None:
        raise InputError("lyrics and lyrics_file are both given: keep one of them")
    return read_text(here / file, "lyrics")


def _lyrics_of_option(source: str | None) -> str | None:
    if source is None:
        return None
    text = sys.stdin.read() if source == "-" else read_text(Path(source), "lyrics")
    if not text.strip():
        shown = "standard input" if source == "-" else source
        raise InputError(
            f"the lyrics ({shown}) are empty: write a line, or leave out --lyrics for an "
            "instrumental"
        )
    return text


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"--set {text}: write it as KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _names(path: Path) -> set[str]:
    """What a song writes: audio and sidecar, as the file system tells names apart."""
    return {os.path.normcase(os.path.abspath(path.with_suffix(".json")))}


def _check_output(path: Path) -> None:
    """Raises InputError where a song could not be written."""
    check_audio_path(path)
    folder = next(one for one in path.absolute().parents if one.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"'{path}' cannot be written: no permission to write into '{folder}'")


def loudness_of(context: click.Context, option: click.Parameter, value: str) -> float | None:
    """LUFS of --loudness, None for 'off'."""
    if value == "off":
        return None
    try:
        target = float(value)
    except ValueError:
        target = 0.0
    if not QUIETEST <= target <= LOUDEST:
        raise click.BadParameter(
            f"'{value}' is neither 'off' nor LUFS from {QUIETEST:g} to {LOUDEST:g}, such as -16"
        )
    return target
