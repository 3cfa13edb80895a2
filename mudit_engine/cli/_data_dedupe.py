"""`mudit data dedupe`: names songs that are copies of others, before they are encoded.

mudit data dedupe songs/ --out dedupe
mudit data encode songs/ --out data/latents --model tiny --leave-out dedupe/copies.jsonl
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import (
    emit_json,
    json_option,
    note,
    print_table,
    progress,
    stop_on_sigterm,
)
from mudit_engine.cli._numbers import FiniteRange

SHOWN = 20


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the fingerprints and of copies.jsonl; what is there is kept.",
)
@click.option(
    "--share",
    type=FiniteRange(0, 1, min_open=True),
    default=0.12,
    show_default=True,
    help="Of the landmarks of two songs that must agree for a near copy.",
)
@click.option(
    "--max-seconds",
    type=FiniteRange(min=0, min_open=True),
    default=1200.0,
    show_default=True,
    help="Longer files are left out, by name.",
)
@click.option(
    "--part",
    metavar="I/N",
    help="Only fingerprint every N-th song from the I-th: one part a process or machine. A run "
    "without it then compares.",
)
@click.option(
    "--ray",
    metavar="local|auto|ADDRESS",
    help="Fingerprint on a Ray cluster: one started here, this machine's own, or another's.",
)
@click.option("--ray-parts", type=click.IntRange(1), help="Parts dealt out to the cluster.")
@click.option("--ray-workers", type=click.IntRange(1), help="Parts at a time.")
@json_option
def dedupe(
    source: Path,
    out: Path,
    share: float,
    max_seconds: float,
    part: str | None,
    ray: str | None,
    ray_parts: int | None,
    ray_workers: int | None,
    as_json: bool,
) -> None:
    """Find copies among the songs of SOURCE (a corpus, a .jsonl manifest, a folder of audio).

    Exact copies and near ones (re-encoded, trimmed, louder, at another sample rate), also between
    the training and the held-out splits. OUT/copies.jsonl names what to leave out and why.
    """
    from mudit_engine.training.dataset.dedupe import COPIES, find_copies, fingerprint_songs
    from mudit_engine.training.dataset.encode import Encoded
    from mudit_engine.training.dataset.shards import Shards
    from mudit_engine.training.dataset.sources import open_source

    number, slash, parts = (part or "0/1").partition("/")
    if not (slash and number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise click.BadParameter(
            f"'{part}' must be I/N with I from 0 to N - 1, for example 0/4", param_hint="--part"
        )
    if ray is None and (ray_parts or ray_workers):
        raise click.UsageError("--ray-parts and --ray-workers belong to --ray")
    if ray is not None and part is not None:
        raise click.UsageError("--ray makes parts of its own: leave --part out")
    done = Encoded()
    with progress("fingerprinting", total=None, quiet=as_json) as step, stop_on_sigterm():
        if ray is not None:
            from mudit_engine.training.dataset.encode_ray import FingerprintJob, encode_on_ray

            done = encode_on_ray(
                FingerprintJob(source.resolve(), out.resolve(), max_seconds),
                address=ray,
                parts=ray_parts,
                workers=ray_workers,
                on_part=lambda text: step(text=text),
            )
        else:
            fingerprint_songs(
                open_source(source, on_bad=done.refuse),
                out,
                part=(int(number), int(parts)),
                index=part is None,
                max_seconds=max_seconds,
                done=done,
                on_song=lambda song_id, seconds: step(text=f"fingerprinting {song_id}"),
            )
        copies = []
        if part is None:
            shards = Shards(out)
            copies = find_copies(shards, out, share=share, on_step=lambda text: step(text=text))
    counts = Counter(copy.kind for copy in copies)
    results: dict[str, Any] = {
        "out": str(out),
        "songs": done.songs + done.skipped,
        "exact": counts["exact"],
        "near": counts["near"],
        "across_splits": sum(copy.split != copy.split_of_kept for copy in copies),
        "compared": part is None,
    }
    if as_json:
        told = [{**dataclasses.asdict(copy), "reason": copy.reason} for copy in copies]
        results |= {"copies": told, "refused": done.refused, "flagged": done.flagged}
        emit_json(results)
        return
    rows = [
        ["compared" if part is None else "fingerprinted", results["songs"]],
        ["exact copies", results["exact"]],
        ["near copies", results["near"]],
        ["across splits", results["across_splits"]],
        ["cannot be read", len(done.refused)],
        ["too little to compare", len(done.flagged)],
    ]
    print_table(f"Copies in {source}", ["songs", "count"], rows, numeric=["count"])
    for copy in copies[:SHOWN]:
        note(f"{copy.id}: {copy.reason}")
    if len(copies) > SHOWN:
        note(f"... and {len(copies) - SHOWN} more in {out / COPIES}")
    for name, reason in list(done.refused.items())[:SHOWN]:
        note(f"cannot be read: {name}: {reason}")
    if copies:
        note(f"to encode the others: mudit data encode ... --leave-out {out / COPIES}")
