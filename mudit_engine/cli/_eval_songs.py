"""`mudit eval songs`: folders of songs from any systems, compared with reference songs.

mudit eval songs A/ B/ --reference REF/ --requests requests.jsonl --out report/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, tracked
from mudit_engine.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mudit_engine.evaluation.systems import (
        Asked,
        Comparison,
        Separation,
        Similarity,
        System,
    )

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--reference",
    required=True,
    type=FOLDER,
    help="Songs that the distances are to: real music, hundreds of songs where possible.",
)
@click.option(
    "--requests",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON Lines: the id of each song and what was asked for (description, user_type, bpm, "
    "key, chords, drums, voice, lyrics). Every system must have every id.",
)
@click.option(
    "--features",
    multiple=True,
    default=("musicnn",),
    show_default=True,
    metavar="KIND[:SOURCE]",
    help="Of FAD and KAD: musicnn, clap:SOURCE, encodec:SOURCE, mert:SOURCE (a folder or "
    "a hub id), ms-clap:FILE (CLAP_weights_2023.pth); may be repeated.",
)
@click.option(
    "--sst",
    metavar="SOURCE",
    help="Measure SST, the cosine of description and song, with this CLAP model, or ms-clap:FILE.",
)
@click.option(
    "--asoa",
    metavar="SOURCE",
    help="Measure ASOA, the cosine of a song and its request's reference, by this MERT model.",
)
@click.option(
    "--asoa-variant",
    type=click.Choice(["fixed", "paper"]),
    default="fixed",
    show_default=True,
    help="fixed: whole songs, resampled, layer by layer. paper: as its published script.",
)
@click.option(
    "--lyrics",
    metavar="NAME[:MODEL]",
    help="Measure the phonemes misheard of each asked line, by faster-whisper or funasr.",
)
@click.option(
    "--separate",
    metavar="NAME",
    help="Separate songs that have no stems beside them by this demucs model, for voice and "
    "vocal_balance.",
)
@click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="KIND:SOURCE",
    help="Marks by another group's model, with its licence: muq-mulan:SOURCE, "
    "clamp3:FILE,mert=SOURCE, songeval:FILE,muq=SOURCE, audiobox:FILE; may be repeated.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with weights (MERT).")
@click.option(
    "--out",
    type=FOLDER,
    help="A folder for the page (index.html), songs.csv, songs.tex and songs.json.",
)
@click.option("--copy-audio", is_flag=True, help="Copy the page's songs beside it.")
@click.option(
    "--work",
    default="runs/eval",
    show_default=True,
    type=FOLDER,
    help="Where measurements are kept, so that the next run is quick.",
)
@json_option
def command(
    folders: tuple[Path, ...],
    reference: Path,
    requests: Path | None,
    features: tuple[str, ...],
    sst: str | None,
    asoa: str | None,
    asoa_variant: str,
    lyrics: str | None,
    separate: str | None,
    judges: tuple[str, ...],
    trust_remote_code: bool,
    out: Path | None,
    copy_audio: bool,
    work: Path,
    as_json: bool,
) -> None:
    """Compare FOLDERS of songs, one a system: FAD and KAD to reference songs, adherence to tempo,
    key, chords, drums and sections, loudness, endings, with intervals and tests. Stems beside a
    song (ID.vocals.wav beside ID.wav) tell of its voice.
    """
    from mudit_engine.evaluation.listening import Listener
    from mudit_engine.evaluation.systems import System, compare, load_requests
    from mudit_engine.metrics.embeddings import open_embedder
    from mudit_engine.metrics.judges import open_judge

    systems = [System.of(folder) for folder in folders]
    held_to = System.of(reference, name="reference")
    asked = load_requests(requests) if requests else None
    embedders = [open_embedder(one, trust_remote_code=trust_remote_code) for one in features]
    if (sst or asoa or lyrics) and asked is None:
        raise InputError(
            "--sst, --asoa and --lyrics hold songs against what was asked for: give --requests"
        )
    opened = [open_judge(one, trust_remote_code=trust_remote_code) for one in judges]
    if len({one.kind for one in opened}) < len(opened):
        raise InputError("--judge names a kind twice: a table has one column for its figures")
    if unasked := [one.kind for one in opened if one.asks and asked is None]:
        raise InputError(
            f"--judge {unasked[0]} holds songs against what was asked for: give --requests"
        )
    similarities = [sst_by(sst)] if sst else []
    similarities += [asoa_by(asoa, asoa_variant, trust_remote_code)] if asoa else []
    similarities += [lyrics_by(lyrics)] if lyrics else []

    track = tracked(quiet=as_json)

    comparison = compare(
        systems,
        held_to,
        asked,
        Listener(work),
        embedders=embedders,
        similarities=similarities,
        judges=opened,
        separator=separated_by(separate) if separate else None,
        track=track,
    )
    for one in opened:
        note(f"{one.kind}: {one.licence}")
    for line in comparison.facts["not_measured"] if not as_json else []:
        note(f"not measured: {line}")
    show_comparison(comparison, systems, asked, out, copy_audio=copy_audio, as_json=as_json)


def show_comparison(
    comparison: Comparison,
    systems: Sequence[System],
    asked: Mapping[str, Asked] | None,
    out: Path | None,
    *,
    copy_audio: bool,
    as_json: bool,
) -> None:
    """Writes the page and tables into `out`, and prints the table and what differs."""
    import dataclasses

    from mudit_engine.evaluation.system_report import (
        columns,
        text_of,
        write_csv,
        write_latex,
        write_page,
    )
    from mudit_engine.files import write_json
    from mudit_engine.hardware import environment
    from mudit_engine.metrics.figures import Figure

    if out is not None:
        page = write_page(comparison, systems, asked, out, copy_audio=copy_audio)
        write_csv(comparison, out / "songs.csv")
        write_latex(comparison, out / "songs.tex")
        document = {"env": environment(), **dataclasses.asdict(comparison)}
        write_json(out / "songs.json", document)
        note(f"the page: {page}")
    if as_json:
        emit_json(comparison)
        return
    names = columns(comparison)
    cells = [
        [row.system, row.user, row.songs]
        + [text_of(row.figures.get(name, Figure(None))) for name in names]
        for row in comparison.rows
    ]
    print_table("Systems", ["system", "user", "songs", *names], cells, numeric=["songs", *names])
    told = [one for one in comparison.differences if one.adjusted_p < 0.05]
    for one in told:
        note(
            f"{one.a} and {one.b} differ in {one.measure} by {one.difference:+.3g} "
            f"(p = {one.adjusted_p:.2g} after Holm, {one.songs} songs)"
        )
    if comparison.differences and not told:
        note("no difference between the systems is significant at 5 % after Holm's adjustment")


def sst_by(source: str) -> Similarity:
    """SST with a CLAP model."""
    from mudit_engine.evaluation.rewards import similarity
    from mudit_engine.evaluation.systems import Similarity
    from mudit_engine.metrics.similarity import TextSimilarity

    if source.startswith("ms-clap:"):
        from mudit_engine.metrics.ms_clap import MsClap

        clap = MsClap.load(Path(source.removeprefix("ms-clap:")))

        def near(audio: Tensor, rate: int, wish: Asked) -> float | None:
            said = wish.description
            return similarity(clap, audio, rate, said) if said.strip() else None

        return Similarity("sst", source, near)
    model = TextSimilarity.load(source)

    def measure(audio: Tensor, rate: int, wish: Asked) -> float | None:
        return model([wish.description], [audio], rate)[0] if wish.description.strip() else None

    return Similarity("sst", source, measure)


def asoa_by(source: str, variant: Any, trust_remote_code: bool) -> Similarity:
    """ASOA with a MERT model."""
    from mudit_engine.audio import load_audio
    from mudit_engine.evaluation.systems import Similarity
    from mudit_engine.metrics.similarity import AudioSimilarity

    model = AudioSimilarity.load(source, variant=variant, trust_remote_code=trust_remote_code)

    def measure(audio: Tensor, rate: int, wish: Asked) -> float | None:
        return model(audio, rate, *load_audio(wish.reference)) if wish.reference else None

    return Similarity("asoa", f"{source} ({variant})", measure)


def separated_by(name: str) -> Separation:
    """Stems by a demucs model."""
    from mudit_engine.evaluation.systems import Separation
    from mudit_engine.training.dataset.transcribe import Transcriber

    transcriber = Transcriber(name, None)

    def separate(audio: Tensor, rate: int) -> Mapping[str, Tensor]:
        return transcriber.transcribe(audio, rate, lyrics=False).stems

    return Separation(name, separate)


def lyrics_by(name: str) -> Similarity:
    """Errors of sung lines by a recogniser of speech, which mishears singing too: compare systems,
    and look at real songs' figure beside them.
    """
    from mudit_engine.evaluation.systems import Similarity
    from mudit_engine.metrics.lyric_error import lyric_error
    from mudit_engine.training.dataset.transcribe import Transcriber

    transcriber = Transcriber(None, name)

    def measure(audio: Tensor, rate: int, wish: Asked) -> float | None:
        if not wish.lyrics.strip():
            return None
        return lyric_error(wish.lyrics, transcriber.transcribe(audio, rate).lyrics)

    return Similarity("lyrics", name, measure)
