"""The songs themselves: does what was generated for held-out requests sound like the corpus, and
does it follow the words?

    listener = Listener(Path("runs/eval"))
    codec = Codec.load(folder)
    report = judge_songs(pipeline, codec, held_out, training, listener, out=Path("runs/songs"))

Every request is made twice, from a professional's and from an amateur's description, with the
song's own lyrics and length. Rows: original, codec, generated (all, and by user type), permuted
requests, shuffled, noise. A tempo or key that a description does not name is not judged.
"""

from __future__ import annotations

import hashlib
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
    Background,
    Report,
    background,
    control_rows,
    hear_codec,
    over,
    own_pairs,
)
from mudit_engine.evaluation.listening import Listener, source_digest
from mudit_engine.evaluation.pictures import spectrogram_page
from mudit_engine.evaluation.songs import USERS, EvalSong, Track, silent_track
from mudit_engine.evaluation.tables import Pair, Row, permuted
from mudit_engine.metrics import figures
from mudit_engine.metrics.ctc import EPOCHS, Example, Recogniser, symbols, train
from mudit_engine.metrics.figures import Figure
from mudit_engine.models.fewstep import steps_of

if TYPE_CHECKING:
    from mudit_engine.pipeline import Song, SongPipeline

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
    seed: int = 0,
    epochs: int = EPOCHS,
    track: Track = silent_track,
) -> Report:
    """Generates, listens and judges. The songs stay in `out`, named by request and user type."""
    known = background(codec, training, listener, rivals=len(held_out), track=track)
    known.judge.recogniser = recogniser(
        codec, training, known, listener, epochs=epochs, track=track
    )
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
            made, took = generate(pipeline, song, user, seed=seed + number)
            made.save(out / f"{song.id}-{user}.flac", loudness=None)  # as the corpus is
            audio = torch.from_numpy(made.audio)
            heard = listener.measure(audio, made.sample_rate)
            pairs[user].append(Pair(number, heard, song, song.syllables, song.prompts[user]))
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
        "recogniser_epochs": epochs,
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


def generate(
    pipeline: SongPipeline, song: EvalSong, user: str, *, seed: int, seconds: float | None = None
) -> tuple[Song, float]:
    """(a song for the request with the model's default settings, wall seconds it took alone)."""
    from mudit_engine.pipeline import SongRequest

    request = SongRequest(
        description=song.prompts[user],
        lyrics=song.lyrics or None,
        seconds=min(song.seconds, pipeline.config.max_seconds) if seconds is None else seconds,
        user_type=user,
        seed=seed,
    )
    start = time.perf_counter()
    (made,) = pipeline.generate([request])
    return made, time.perf_counter() - start


def time_alone(pipeline: SongPipeline, songs: Sequence[EvalSong], *, seed: int) -> float | None:
    """Median wall seconds of a 30 s song with lyrics; None when the model makes none as long."""
    if pipeline.config.max_seconds < TIMED_SECONDS:
        return None
    song = next((song for song in songs if song.syllables), songs[0])
    took = sorted(
        generate(pipeline, song, USERS[0], seed=seed, seconds=TIMED_SECONDS)[1]
        for _ in range(TIMED_RUNS)
    )
    return took[TIMED_RUNS // 2]


def recogniser(
    codec: Codec,
    songs: Sequence[EvalSong],
    known: Background,
    listener: Listener,
    *,
    epochs: int,
    track: Track = silent_track,
) -> Recogniser | None:
    """The phoneme recogniser trained on the codec's audio of sung songs, or the one kept from
    before. None when nobody sings.
    """
    sung = [
        (song, heard)
        for song, heard in zip(songs, known.through_codec, strict=True)
        if song.syllables
    ]
    if not sung:
        return None
    code = source_digest("metrics.ctc")
    words = hashlib.sha256(repr([song.syllables for song, _ in sung]).encode()).hexdigest()

    def weights() -> dict[str, Tensor]:
        steps = iter(track(range(epochs), "training the phoneme recogniser"))
        next(steps)

        def advance(epoch: int, loss: float) -> None:
            next(steps, None)

        net = train(
            [Example(h.mel_FM, s.syllables) for s, h in sung], epochs=epochs, on_epoch=advance
        )
        return {name: value.detach().clone() for name, value in net.state_dict().items()}

    net = Recogniser(symbols())
    net.load_state_dict(listener.keep(("recogniser", code, words, codec.id, str(epochs)), weights))
    return net.eval()


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
