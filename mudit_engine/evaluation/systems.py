"""Songs of any systems, in any folders, side by side: distances to reference songs, and how well
each song does what was asked for.

    systems = [System.of(Path("A")), System.of(Path("B"))]
    asked = load_requests(Path("requests.jsonl"))               # optional
    comparison = compare(systems, reference, asked, Listener(work), features=["musicnn"])
    comparison.rows, comparison.differences

A song is a file; its name without the suffix is its id. With requests (a JSON object a line: id,
and any of description, user_type, bpm, key, lyrics, reference) every system must have a song of
every id, and the rows are given for each user type and for all. Without, sets are compared as sets.

Distances are figures of a set; the others are means over songs. Differences between systems are
tested on what both made of the same ids (metrics/significance.py), adjusted by Holm over all
comparisons of a table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine import loudness
from mudit_engine.audio import FORMATS, load_audio, resample
from mudit_engine.errors import InputError
from mudit_engine.evaluation.adherence import further_parts
from mudit_engine.evaluation.listening import Listener, file_digest, source_digest
from mudit_engine.evaluation.songs import Track, silent_track
from mudit_engine.evaluation.stems import stem_levels, stem_of
from mudit_engine.files import read_text
from mudit_engine.metrics import figures
from mudit_engine.metrics.embeddings import Embedder
from mudit_engine.metrics.fad import FrechetReference, frechet_infinity
from mudit_engine.metrics.figures import NOTHING, Figure
from mudit_engine.metrics.judges import FIGURES, Judge
from mudit_engine.metrics.kad import kernel_distance, median_distance
from mudit_engine.metrics.repetition import repetition
from mudit_engine.metrics.rhythm_and_key import octave_error, rank_in_chroma
from mudit_engine.metrics.significance import holm, paired_permutation
from mudit_engine.names import USER_TYPES, VOICES
from mudit_engine.request import refuse_unknown
from mudit_engine.text.descriptions import requested_bpm, requested_key
from mudit_engine.text.harmony import parse_chords
from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.wishes import read_description

TEMPO_TOLERANCE = 0.04
KEY_RANK = 2  # the asked key among the best two of twelve
EVERYBODY = "all"
_ASKED = ("id", "description", "user_type", "bpm", "key", "lyrics", "seconds", "reference")
ASKED_FIELDS = (*_ASKED, "chords", "drums", "voice")
# what is measured of a song by itself, with its unit and which way is better (0: neither)
MEASURES: dict[str, tuple[str, int]] = {
    "sst": ("cosine of description and song", 1),
    "asoa": ("cosine of the song and its target", 1),
    "chinmu": ("cosine of description and song", 1),
    "reward": ("cosine of description and song, by what rewarded", 0),
    "muq_mulan": ("cosine of description and song, by MuQ-MuLan", 1),
    "clamp3": ("cosine of description and song, by CLaMP 3", 1),
    **dict.fromkeys(FIGURES["songeval"], ("SongEval's mark, 1 to 5", 1)),
    **dict.fromkeys(FIGURES["audiobox"], ("Audiobox' mark, 1 to 10", 1)),
    "audiobox_pc": ("complexity by Audiobox, 1 to 10", 0),
    "adherence": ("mean share of what was asked for", 1),
    "told_style": ("share at which ChinMu takes a song for the asked style", 1),
    "told_voice": ("share at which ChinMu takes a song for the asked voice", 1),
    "lyrics": ("share of phonemes misheard, mean over lines", -1),
    "tempo": ("share of songs within 4 %", 1),
    "key": ("share of songs", 1),
    "chords": ("share of beats on the asked chord", 1),
    "drums": ("share of songs with drums or none, as asked", 1),
    "sections": ("asked sections found, 0 to 1", 1),
    "voice": ("share of songs sung or not, as asked", 1),
    "vocal_balance": ("LU of the voice over the accompaniment", 0),
    "loudness": ("LUFS", 0),
    "true_peak": ("dB", -1),
    "ending": ("dB", -1),
    "repetition": ("best match of 4 s windows of harmony", 0),
    "seconds": ("s", 0),
}
TESTED = tuple(name for name in MEASURES if name != "seconds")  # a length is asked for


@dataclass(frozen=True)
class System:
    """A named set of songs: id -> file, and the stems that lie beside them: id -> kind -> file."""

    name: str
    songs: Mapping[str, Path]
    stems: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, *, name: str | None = None) -> System:
        """The audio files of a folder. Raises InputError for none, or for two of one id."""
        if not folder.is_dir():
            raise InputError(f"'{folder}' is no folder of songs: give a folder of audio files")
        songs: dict[str, Path] = {}
        stems: dict[str, dict[str, Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in FORMATS or path.name.startswith("."):
                continue
            if stem := stem_of(path):
                stems.setdefault(stem[0], {})[stem[1]] = path
                continue
            if path.stem in songs:
                raise InputError(
                    f"'{folder}' has two songs of the id '{path.stem}' "
                    f"({songs[path.stem].name}, {path.name}): keep one of them"
                )
            songs[path.stem] = path
        if not songs:
            raise InputError(f"'{folder}' has no songs: {', '.join(FORMATS)} are read")
        return cls(name or folder.resolve().name, songs, stems)


@dataclass(frozen=True)
class Asked:
    """What was asked of one song; None is not said."""

    id: str
    description: str = ""
    user_type: str = "none"
    bpm: float | None = None
    key: str | None = None
    reference: Path | None = None  # the song that the description is of
    lyrics: str = ""
    chords: str | None = None  # as SongRequest takes them
    drums: bool | None = None
    voice: str | None = None  # one of names.VOICES
    style: str | None = None  # one of names.STYLES

    @property
    def sections(self) -> list[tuple[str, float | None]]:
        """The tags of the lyrics in order, with the time at which a section's first line is
        stamped; none of lyrics that cannot be read.
        """
        try:
            sections = parse_lyrics(self.lyrics).sections if self.lyrics.strip() else ()
        except InputError:
            return []
        return [(one.kind, one.lines[0].start if one.lines else None) for one in sections]


@dataclass(frozen=True)
class Similarity:
    """A similarity of a song to what was asked, by a model that the user names. `key` is the
    model's source: measurements are kept by it.
    """

    name: str  # one of MEASURES
    key: str
    measure: Callable[[Tensor, int, Asked], float | None]


def load_requests(path: Path) -> dict[str, Asked]:
    """Requests by id. Tempo and key are read from the description where no field gives them.

    Raises InputError that names the line.
    """
    found: dict[str, Asked] = {}
    for number, line in enumerate(read_text(path, "requests").splitlines(), 1):
        if not line.strip():
            continue
        where = f"requests '{path}' line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
            raise InputError(f'{where}: an object with the song\'s "id" is needed')
        refuse_unknown(fields, ASKED_FIELDS, where=where)
        if fields["id"] in found:
            raise InputError(f"{where}: the id '{fields['id']}' is asked for twice")
        found[fields["id"]] = _asked(fields, where, path.parent)
    if not found:
        raise InputError(f"requests '{path}' are empty: write one JSON object a line")
    return found


def _asked(fields: Mapping[str, Any], where: str, here: Path) -> Asked:
    description, user = fields.get("description") or "", fields.get("user_type") or "none"
    bpm, key = fields.get("bpm"), fields.get("key")
    if not isinstance(description, str):
        raise InputError(f"{where}: description {description!r} is of a wrong type: give a text")
    if not isinstance(fields.get("lyrics") or "", str):
        raise InputError(f"{where}: lyrics are of a wrong type: give a text")
    if not isinstance(fields.get("reference") or "", str):
        raise InputError(f"{where}: reference is of a wrong type: give the path of a song")
    if user not in USER_TYPES:
        raise InputError(
            f"{where}: user_type {user!r} is unknown: use one of {', '.join(USER_TYPES)}"
        )
    if bpm is not None and (isinstance(bpm, bool) or not isinstance(bpm, (int, float))):
        raise InputError(f"{where}: bpm {bpm!r} is of a wrong type: give a number")
    if key is not None and (not isinstance(key, str) or requested_key(key) is None):
        raise InputError(f"{where}: key {key!r} is unknown: write it as 'A minor' or '降E大调'")
    chords, drums, voice = (fields.get(name) for name in ("chords", "drums", "voice"))
    if chords is not None:
        try:
            parse_chords(str(chords))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if drums is not None and not isinstance(drums, bool):
        raise InputError(f"{where}: drums {drums!r} is of a wrong type: give true or false")
    if voice is not None and voice not in VOICES:
        raise InputError(f"{where}: voice {voice!r} is unknown: use one of {', '.join(VOICES)}")
    said = read_description(description)
    return Asked(
        fields["id"],
        description,
        user,
        float(bpm) if bpm is not None else requested_bpm(description),
        requested_key(key or description),
        here / fields["reference"] if fields.get("reference") else None,
        fields.get("lyrics") or "",
        chords,
        said.drums if drums is None else drums,
        said.voice if voice is None else voice,
    )


def check_paired(systems: Sequence[System], asked: Mapping[str, Asked]) -> None:
    """Raises InputError that names the songs which a system lacks or has beside the requests."""
    for system in systems:
        missing = [one for one in asked if one not in system.songs]
        extra = [one for one in system.songs if one not in asked]
        for names, what in ((missing, "lacks"), (extra, "has songs that nobody asked for:")):
            if names:
                shown = ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
                raise InputError(
                    f"system '{system.name}' {what} {shown} ({len(names)} of {len(asked)} "
                    "requests): a comparison needs one song of each request"
                )


@dataclass(frozen=True)
class SystemRow:
    """Figures of one system for one kind of user, by measure or distance."""

    system: str
    user: str
    songs: int
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Difference:
    """Mean of a measure of system `a` minus that of `b` over common songs, and its test."""

    a: str
    b: str
    measure: str
    songs: int
    difference: float
    p: float
    adjusted_p: float = field(default=1.0)


@dataclass(frozen=True)
class Comparison:
    """The table, the tests, and each song's own values by system and id."""

    rows: list[SystemRow]
    differences: list[Difference]
    songs: dict[str, dict[str, dict[str, float]]]
    facts: dict[str, Any]


def compare(
    systems: Sequence[System],
    reference: System,
    asked: Mapping[str, Asked] | None,
    listener: Listener,
    *,
    embedders: Sequence[Embedder],
    similarities: Sequence[Similarity] = (),
    judges: Sequence[Judge] = (),
    separator: Separation | None = None,
    track: Track = silent_track,
) -> Comparison:
    """Measures every song once and compares. Measurements are kept by the content of the files, so
    that a run that was stopped goes on. Raises InputError for unpaired, doubled or unreadable
    songs, by name.
    """
    names = [system.name for system in systems]
    if len(set(names)) != len(names):
        raise InputError(f"two systems are named alike ({', '.join(names)}): rename a folder")
    if asked is not None:
        check_paired(systems, asked)
    values: dict[str, dict[str, dict[str, float]]] = {}
    features: dict[str, dict[str, dict[str, Tensor]]] = {}
    for system in (*systems, reference):
        measured = {}
        for name, path in track(list(system.songs.items()), f"listening to {system.name}"):
            wish = asked.get(name) if asked and system is not reference else None
            own, features_of = _measure(path, listener, embedders, similarities, wish)
            if system is not reference:
                own |= _stems(path, system.stems.get(name, {}), listener, separator)
                own |= _judged(path, judges, listener, wish)
            measured[name] = own, features_of
        features[system.name] = {name: rows for name, (_, rows) in measured.items()}
        values[system.name] = {
            name: _held(own, asked.get(name) if asked else None)
            for name, (own, _) in measured.items()
        }
    known = {one.name: _Reference(features[reference.name], one.name) for one in embedders}
    rows = []
    users = _users(asked)
    for system in systems:
        for user, ids in users.items():
            chosen = [one for one in system.songs if ids is None or one in ids]
            found = {name: _mean(values[system.name], chosen, name) for name in MEASURES}
            for name, held in known.items():
                found |= held.figures([features[system.name][one][name] for one in chosen], name)
            rows.append(SystemRow(system.name, user, len(chosen), found))
    return Comparison(
        rows,
        _differences(systems, values),
        {system.name: values[system.name] for system in systems},
        {
            "reference": reference.name,
            "reference_songs": len(reference.songs),
            "features": [one.key for one in embedders],
            "similarities": {one.name: one.key for one in similarities},
            "judges": {one.key: one.licence for one in judges},
            "separator": separator.key if separator else None,
            "not_measured": _silent_on(systems, separator),
        },
    )


@dataclass(frozen=True)
class Separation:
    """What separates a song without stems: audio and rate -> stems by kind, at that rate."""

    key: str
    separate: Callable[[Tensor, int], Mapping[str, Tensor]]


def _judged(
    path: Path, judges: Sequence[Judge], listener: Listener, wish: Asked | None
) -> dict[str, float]:
    """Figures by the judges; those that ask for a description give none without."""
    found: dict[str, float] = {}
    for judge in judges:
        said = wish.description if wish is not None and judge.asks else ""
        if judge.asks and not said.strip():
            continue

        def measured(judge: Judge = judge, said: str = said) -> dict[str, Tensor]:
            given = judge(*load_audio(path), said)
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}

        kept = listener.keep(("judge", judge.key, file_digest(path), said), measured)
        found |= {name: float(value) for name, value in kept.items()}
    return found


def _stems(
    path: Path, stems: Mapping[str, Path], listener: Listener, separator: Separation | None
) -> dict[str, float]:
    """The levels of a song's stems; nothing where there are none and nothing separates."""
    if not stems and separator is None:
        return {}
    others = [file_digest(one) for _, one in sorted(stems.items())]
    key = ("stems", source_digest("evaluation.stems"), file_digest(path), *others)
    key += (separator.key,) if separator and not stems else ()

    def measured() -> dict[str, Tensor]:
        audio, rate = load_audio(path)
        if stems:
            loaded = {kind: load_audio(one) for kind, one in stems.items()}
            parts = {kind: resample(one, own, rate) for kind, (one, own) in loaded.items()}
        else:
            assert separator is not None
            parts = dict(separator.separate(audio, rate))
        try:
            found = stem_levels(parts, audio, rate)
        except InputError as error:
            raise InputError(f"'{path}': {error}") from None
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    return {f"heard_{name}": float(value) for name, value in listener.keep(key, measured).items()}


def _silent_on(systems: Sequence[System], separator: Separation | None) -> list[str]:
    """Sentences on what could not be measured."""
    lacking = [
        system.name
        for system in systems
        if separator is None
        and any("vocals" not in system.stems.get(one, {}) for one in system.songs)
    ]
    if not lacking:
        return []
    return [
        f"voice and vocal_balance of songs of {', '.join(lacking)} without stems: put "
        "ID.vocals.wav beside ID.wav, or separate them (--separate)"
    ]


def _users(asked: Mapping[str, Asked] | None) -> dict[str, set[str] | None]:
    """User type -> ids; all of them, and each type where the requests name more than one."""
    if asked is None:
        return {EVERYBODY: None}
    types = sorted({one.user_type for one in asked.values()} - {"none"})
    users: dict[str, set[str] | None] = {EVERYBODY: None}
    for user in types:
        users[user] = {one.id for one in asked.values() if one.user_type == user}
    return users


def _measure(
    path: Path,
    listener: Listener,
    embedders: Sequence[Embedder],
    similarities: Sequence[Similarity],
    wish: Asked | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    digest = file_digest(path)
    audio: list[tuple[Tensor, int]] = []

    def load() -> tuple[Tensor, int]:
        if not audio:
            audio.append(load_audio(path))
        return audio[0]

    heard = listener.hear_made(("file", digest), load)
    levels = listener.keep(("levels with repetition", digest), lambda: _levels(*load()))

    def embedded(one: Embedder) -> dict[str, Tensor]:
        return {"rows": one(*load()).float()}

    rows = {
        one.name: listener.keep(("features", one.key, digest), partial(embedded, one))["rows"]
        for one in embedders
    }
    own: dict[str, Any] = {name: float(value) for name, value in levels.items()}
    if wish is not None:
        own |= _further(wish, digest, listener, load, heard.tempo)
        for similarity in similarities:
            own[similarity.name] = _similar(similarity, wish, digest, listener, load)
    return {**own, "heard_tempo": heard.tempo, "heard_chroma": heard.chroma_12}, rows


def _further(
    wish: Asked,
    digest: str,
    listener: Listener,
    load: Callable[[], tuple[Tensor, int]],
    tempo: float,
) -> dict[str, float]:
    """Chords, drums and sections, of which those that were asked for are measured."""
    asked = (str(wish.chords), str(wish.drums), str(wish.bpm), repr(wish.sections))
    if asked[:2] == ("None", "None") and len(wish.sections) < 2:
        return {}
    code = source_digest("metrics.chord_following", "metrics.drum_presence", "metrics.structure")

    def measured() -> dict[str, Tensor]:
        found = further_parts(*load(), wish, tempo=tempo)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    kept = listener.keep(("asked parts", code, digest, *asked), measured)
    return {name: float(value) for name, value in kept.items()}


def _similar(
    one: Similarity,
    wish: Asked,
    digest: str,
    listener: Listener,
    load: Callable[[], tuple[Tensor, int]],
) -> float:
    """NaN where the request says nothing to hold the song against."""
    other = file_digest(wish.reference) if wish.reference else ""
    key: tuple[str, ...] = (one.name, one.key, digest, wish.description, other)
    key += (wish.lyrics,) if wish.lyrics else ()

    def measured() -> dict[str, Tensor]:
        value = one.measure(*load(), wish)
        return {"value": torch.tensor(nan_of(value))}

    return float(listener.keep(key, measured)["value"])


def nan_of(value: float | None) -> float:
    """NaN stands for nothing among kept measurements."""
    return float("nan") if value is None else value


def _levels(audio: Tensor, rate: int) -> dict[str, Tensor]:
    found = {
        "loudness": loudness.loudness(audio, rate),
        "true_peak": loudness.true_peak(audio, rate),
        "ending": loudness.ending_level(audio, rate),
        "seconds": audio.shape[1] / rate,
        "repetition": nan_of(repetition(audio, rate)),
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def _held(own: dict[str, Any], asked: Asked | None) -> dict[str, float]:
    """A song's values, its tempo and key held against what was asked for."""
    found = {name: own[name] for name in MEASURES if name in own and np.isfinite(own[name])}
    if asked is not None and asked.bpm is not None:
        found["tempo"] = float(octave_error(own["heard_tempo"], asked.bpm) <= TEMPO_TOLERANCE)
    if asked is not None and asked.key is not None:
        found["key"] = float(rank_in_chroma(own["heard_chroma"], asked.key) <= KEY_RANK)
    if asked is not None and asked.voice is not None and "heard_voice" in own:
        found["voice"] = float(own["heard_voice"] == float(asked.voice != "none"))
    if "heard_vocal_balance" in own:
        found["vocal_balance"] = own["heard_vocal_balance"]
    return found


class _Reference:
    """The reference songs' features of one kind."""

    def __init__(self, songs: Mapping[str, Mapping[str, Tensor]], name: str) -> None:
        self.rows = torch.cat([song[name] for song in songs.values()])
        self.frechet = FrechetReference(self.rows)
        self.bandwidth = median_distance(self.rows)

    def figures(self, songs: Sequence[Tensor], name: str) -> dict[str, Figure]:
        rows = torch.cat(list(songs)) if songs else self.rows[:0]
        if len(rows) < 2:
            return {f"fad_{name}": NOTHING, f"kad_{name}": NOTHING}
        found = {f"fad_{name}": figures.fad(self.frechet, songs)}
        kad = kernel_distance(self.rows, rows, bandwidth=self.bandwidth)
        found[f"kad_{name}"] = Figure(kad, n=len(songs))
        try:
            found[f"fad_inf_{name}"] = Figure(
                frechet_infinity(self.frechet, rows).value, n=len(songs)
            )
        except InputError:
            found[f"fad_inf_{name}"] = NOTHING
        return found


def _mean(songs: Mapping[str, Mapping[str, float]], ids: Sequence[str], name: str) -> Figure:
    known = [songs[one][name] for one in ids if name in songs[one]]
    return figures.mean(known) if known else NOTHING


def _differences(
    systems: Sequence[System], values: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> list[Difference]:
    found = []
    for number, a in enumerate(systems):
        for b in systems[number + 1 :]:
            for name in TESTED:
                both = [
                    (values[a.name][one][name], values[b.name][one][name])
                    for one in a.songs
                    if one in b.songs
                    and name in values[a.name][one]
                    and name in values[b.name][one]
                ]
                if len(both) < 2:
                    continue
                ours, theirs = zip(*both, strict=True)
                found.append(
                    Difference(
                        a.name,
                        b.name,
                        name,
                        len(both),
                        float(np.mean(ours) - np.mean(theirs)),
                        paired_permutation(ours, theirs),
                    )
                )
    adjusted = holm([one.p for one in found])
    return [
        Difference(one.a, one.b, one.measure, one.songs, one.difference, one.p, p)
        for one, p in zip(found, adjusted, strict=True)
    ]
