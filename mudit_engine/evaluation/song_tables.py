"""The songs themselves: does what was generated for held-out requests sound like the corpus, and
does it follow the words?

    listener = Listener(Path("runs/eval"))
    codec, recogniser = Codec.load(folder), Recogniser.load()
    report = judge_songs(
        pipeline, codec, test, training, listener, out=Path("songs"), recogniser=recogniser
    )

Every request is made twice, from a professional's and from an amateur's description, with the
song's own lyrics and length. Rows: original, codec, generated (all, and by user type), permuted
requests, shuffled, noise. A tempo or key that a description does not name is not judged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mudit_engine.audio import load_audio
from mudit_engine.evaluation.bars import TINY, Verdict, verdicts
from mudit_engine.evaluation.codec import Codec
from mudit_engine.evaluation.codec_gate import (
    Report,
    background,
    control_rows,
    hear_codec,
    over,
    own_pairs,
)
from mudit_engine.evaluation.listening import Listener
from mudit_engine.evaluation.pictures import spectrogram_page
from mudit_engine.evaluation.songs import USERS, EvalSong, Track, silent_track
from mudit_engine.evaluation.tables import Pair, Row, permuted
from mudit_engine.metrics import figures
from mudit_engine.metrics.ctc import Recogniser, Window, line_windows
from mudit_engine.metrics.figures import Figure
from mudit_engine.models.fewstep import steps_of

if TYPE_CHECKING:
    from mudit_engine.pipeline import Song, SongPipeline
    from mudit_engine.reading import Understood
    from mudit_engine.request import SongRequest

TIMED_SECONDS = 30.0
TIMED_RUNS = 3
PAGE_SONGS = 6


def judge_songs(
    pipeline: SongPipeline,
    codec: Codec,
    held_out: Sequence[EvalSong],
    training: Sequence[EvalSong],
    listener: Listener,
    *,
    out: Path,
    recogniser: Recogniser,
    seed: int = 0,
    track: Track = silent_track,
) -> Report:
    """Generates, listens and judges. The songs stay in `out`, named by request and user type.

    The recogniser is the embedded one, or one that was trained on the corpus' training songs; it
    reads each line of a song where its plan, or the corpus, says that it is sung.
    """
    known = background(codec, training, listener, rivals=len(held_out), track=track)
    known.judge.recogniser = recogniser
    originals = [
        listener.hear(song.audio) for song in track(held_out, "listening to held-out songs")
    ]
    through = [
        hear_codec(codec, song, listener)
        for song in track(held_out, "held-out songs through the codec")
    ]

    pairs: dict[str, list[Pair]] = {user: [] for user in USERS}
    vectors: dict[str, list[Tensor]] = {user: [] for user in USERS}
    seconds: dict[str, list[float]] = {user: [] for user in USERS}
    for number, song in enumerate(track(held_out, "generating")):
        for user in USERS:
            request = request_of(pipeline, song, user, seed=seed + number)
            made, took = generate(pipeline, request)
            made.save(out / f"{song.id}-{user}.flac", loudness=None)  # as the corpus is
            audio = torch.from_numpy(made.audio)
            heard = listener.measure(audio, made.sample_rate)
            windows = planned_windows(pipeline.understand(request))
            pairs[user].append(
                Pair(number, heard, song, song.syllables, song.prompts[user], windows)
            )
            seconds[user].append(took)
            with torch.inference_mode():
                vectors[user].append(pipeline.chinmu.encode_audio([audio], made.sample_rate)[0])

    judge, everything = known.judge, [pair for user in USERS for pair in pairs[user]]
    rows = [
        judge.row("original", own_pairs(originals, held_out), probes=known.original_probes),
        judge.row("codec", own_pairs(through, held_out)),
        judge.row(
            "generated",
            everything,
            extra={"seconds": figures.mean(seconds[USERS[0]] + seconds[USERS[1]])},
        ),
        *(
            judge.row(
                f"  {user} words", pairs[user], extra={"seconds": figures.mean(seconds[user])}
            )
            for user in USERS
        ),
        judge.row("permuted requests", permuted(everything, held_out)),
        *control_rows(judge, held_out, listener, track=track),
    ]
    by_features = {
        user: [pair.heard.penultimate_PD.mean(0) for pair in pairs[user]] for user in USERS
    }
    closeness = {"chinmu": twins(vectors), "musicnn": twins(by_features)}
    alone = time_alone(pipeline, held_out, seed=seed)
    found = _verdicts(
        {row.name: row for row in rows}, {name: pair[0] for name, pair in closeness.items()}, alone
    )
    _page(out.parent / "spectrograms.png", codec, held_out, out)
    facts: dict[str, float | int | str | None] = {
        "sampler": steps_of(pipeline.config.sampler),
        "few_step_student": pipeline.student.sha256 if pipeline.student else None,
        "seconds_for_30_s": alone,
        "recogniser_epochs": int(recogniser.trained.get("epochs", 0)),
        **known.facts(),
    }
    for name, (share, same, other) in closeness.items():
        facts |= {
            f"twins_{name}": share.value,
            f"twins_{name}_cosine": same,
            f"others_{name}_cosine": other,
        }
    return Report(rows, found, facts)


def _page(path: Path, codec: Codec, songs: Sequence[EvalSong], out: Path) -> None:
    lines = []
    for song in songs[:: max(1, len(songs) // PAGE_SONGS)][:PAGE_SONGS]:
        audio, rate = song.load()
        generated = load_audio(out / f"{song.id}-{USERS[0]}.flac")
        title = (
            f"{song.id} {song.style} {song.bpm:g} BPM {song.key}, {song.voice} voice, drums "
            f"{'on' if song.drums else 'off'}"
        )
        lines.append(
            (
                title,
                {"original": (audio, rate), "codec": codec(audio, rate), "generated": generated},
            )
        )
    spectrogram_page(path, lines)


def request_of(
    pipeline: SongPipeline, song: EvalSong, user: str, *, seed: int, seconds: float | None = None
) -> SongRequest:
    """What a user of this type asks for to get the song, in its own length unless `seconds` says
    another.
    """
    from mudit_engine.request import SongRequest

    return SongRequest(
        description=song.prompts[user],
        lyrics=song.lyrics or None,
        seconds=min(song.seconds, pipeline.config.max_seconds) if seconds is None else seconds,
        user_type=user,
        seed=seed,
    )


def generate(pipeline: SongPipeline, request: SongRequest) -> tuple[Song, float]:
    """(a song for the request with the model's default settings, wall seconds it took alone)."""
    start = time.perf_counter()
    (made,) = pipeline.generate([request])
    return made, time.perf_counter() - start


def planned_windows(understood: Understood) -> tuple[Window, ...] | None:
    """Where each line of a planned song is listened to; a line that the plan leaves unsung has an
    empty window. None for a model without a plan, and for an instrumental.
    """
    times, song = understood.outline.token_times, understood.phonemes
    if times is None or song is None:
        return None
    spans: list[Window | None] = []
    sung: list[Window] = []
    for token, syllable, (start, end) in zip(
        song.tokens, song.syllable_of, times.tolist(), strict=True
    ):
        if syllable >= 0 and start >= 0:
            sung.append((start, end))
        elif token == "<line>":
            spans.append((sung[0][0], sung[-1][1]) if sung else None)
            sung = []
    windows = iter(line_windows([span for span in spans if span is not None]))
    return tuple((0.0, 0.0) if span is None else next(windows) for span in spans)


def time_alone(pipeline: SongPipeline, songs: Sequence[EvalSong], *, seed: int) -> float | None:
    """Median wall seconds of a 30 s song with lyrics; None when the model makes none as long."""
    if pipeline.config.max_seconds < TIMED_SECONDS:
        return None
    song = next((song for song in songs if song.syllables), songs[0])
    request = request_of(pipeline, song, USERS[0], seed=seed, seconds=TIMED_SECONDS)
    took = sorted(generate(pipeline, request)[1] for _ in range(TIMED_RUNS))
    return took[TIMED_RUNS // 2]


def twins(vectors: dict[str, list[Tensor]]) -> tuple[Figure, float | None, float | None]:
    """(share of other songs' that are farther than its twin's, mean cosine of twins, mean cosine of
    others).

    A professional's song has one twin, the amateur's of the same request, and is compared with
    every other amateur's; 0.5 is chance.
    """
    a, b = (
        torch.nn.functional.normalize(torch.stack(vectors[user]).double(), dim=-1) for user in USERS
    )
    if len(a) < 2:
        return figures.NOTHING, None, None
    cosine = a @ b.T
    same, off = cosine.diagonal(), ~torch.eye(len(a), dtype=torch.bool)
    # both ways, ties count half
    wins = [
        ((same[:, None] > c).double() + 0.5 * (same[:, None] == c).double())[off]
        .view(len(a), -1)
        .mean(1)
        for c in (cosine, cosine.T)
    ]
    return (
        figures.mean(((wins[0] + wins[1]) / 2).tolist()),
        float(same.mean()),
        float(cosine[off].mean()),
    )


def lyric_position(row: dict[str, Row]) -> float | None:
    """Where the upper end of the generated songs' error rate lies between the codec's (0) and that
    against other lyrics (1).

    None when the recogniser does not tell the codec's songs from other lyrics: it then says nothing
    about any song.
    """
    per = {
        name: row[name].figures.get("per", figures.NOTHING)
        for name in ("codec", "generated", "permuted requests")
    }
    codec, other, upper = per["codec"].value, per["permuted requests"].value, per["generated"].high
    if codec is None or other is None or upper is None or other - codec < 0.1:
        return None
    return (upper - codec) / (other - codec)


def _verdicts(
    row: dict[str, Row], closeness: dict[str, Figure], alone: float | None
) -> list[Verdict]:
    generated, codec, chance = row["generated"], row["codec"], row["permuted requests"]
    followed = ("tempo", "key", "drums", "vocals", "voice", "style", "instrumental")
    measured = {
        "fad_codec": over(generated.value("fad"), codec.value("fad")),
        "fad_shuffled": over(generated.value("fad"), row["shuffled"].value("fad")),
        **{name: generated.value(name) for name in followed},
        "lyrics": lyric_position(row),
        **{f"twins_{name}": figure.value for name, figure in closeness.items()},
        "seconds": alone,
    }
    nothing = figures.NOTHING
    notes = {
        name: f"codec {codec.figures.get(name, nothing)}, permuted "
        f"{chance.figures.get(name, nothing)}"
        for name in followed
    }
    notes["lyrics"] = " ".join(
        f"{name} {row[name].figures.get('per', nothing)}"
        for name in ("codec", "generated", "permuted requests")
    )
    return verdicts(TINY, measured, notes)
