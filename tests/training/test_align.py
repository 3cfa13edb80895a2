"""mudit align, as a person runs it: from requests or listeners' answers to a model and a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mudit_engine.audio import save_audio
from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.evaluation.adherence import adherence
from mudit_engine.evaluation.rewards import Reward, ranked_pairs, spreads, standing
from mudit_engine.evaluation.systems import Asked, Comparison, Difference, System, SystemRow
from mudit_engine.evaluation.telling import VALUES, Telling
from mudit_engine.metrics.figures import Figure
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest
from mudit_engine.text.composition.typed import control_words
from mudit_engine.training.align import listeners
from mudit_engine.training.align.asked import as_understood, composed, read_requests, repeated
from mudit_engine.training.align.pairs import HEAVIEST, Candidates, Songs, ranked_songs
from mudit_engine.training.align.report import file_name, suspects, unlike, wins_of
from mudit_engine.training.dataset.shards import Shards

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 8000


MADE = ("--songs", "3", "--least-gap", "0", "--pairs-each", "1")


def align(out: Path, model: Path, *more: str, made: Sequence[str] = MADE) -> list[str]:
    small = ["--requests", "builtin:5", "--held-out", "2", "--seconds", "2", *made]
    small += ["--held-out-songs", "2"]
    command = ["align", "--out", str(out), "--model", str(model), *small, "--steps", "3"]
    return [*command, "--device", "cpu", "--set", "log.tensorboard=false", *more, "--json"]


def results(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)["results"]


def test_requests_become_an_aligned_model_and_a_report(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    assert run(align(out, micro)) == 0
    found = results(capsys)
    assert found["pairs"] >= 2 and found["judge_is_reward"]
    measured = {(one["measure"], one["user"]): one for one in found["wins"]}
    for user, count in (("all", 2), ("professional", 1), ("amateur", 1)):
        one = measured["chinmu", user]
        assert one["wins"] + one["losses"] + one["draws"] == 2 * count  # two songs of each request
        assert one["share"]["n"] == count
    assert measured["adherence", "amateur"]["share"]["n"] == 1, "what amateurs ask for counts too"
    assert {row["system"] for row in found["comparison"]["rows"]} == {"before", "after"}
    assert json.loads((out / "align.json").read_text())["results"]["wins"] == found["wins"]
    # it plays, whole or as a LoRA of what it was
    song = SongRequest(description="piano", seconds=2, seed=1)
    whole = SongPipeline.from_pretrained(out).generate([song])[0]
    assert whole.audio.shape == (1, 2 * RATE)
    # the same command makes nothing again, and another plan is refused
    made = {path: path.stat().st_mtime_ns for path in (out / "work/songs").iterdir()}
    assert run(align(out, micro)) == 0
    assert results(capsys)["wins"] == found["wins"]
    assert made == {path: path.stat().st_mtime_ns for path in made}
    assert run(align(out, micro, "--seed", "3")) == 2
    assert (
        "work of other settings (seed)" in json.loads(capsys.readouterr().out)["error"]["message"]
    )


@pytest.mark.slow  # two whole runs; parts of it are held by the seeds' own tests
def test_a_seed_gives_the_same_again(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wins = []
    for name in ("one", "other"):
        assert run(align(tmp_path / name, micro)) == 0
        wins.append(results(capsys)["wins"])
    assert wins[0] == wins[1]
    pairs = [Shards(tmp_path / name / "work/pairs") for name in ("one", "other")]
    assert pairs[0].digest == pairs[1].digest


def test_what_belongs_together_is_asked_for(micro: Path, tmp_path: Path) -> None:
    assert run(align(tmp_path / "a", micro, "--system", str(tmp_path))) == 2
    assert run([*align(tmp_path / "b", micro), "--requests", "builtin:none"]) == 2
    assert run([*align(tmp_path / "c", micro), "--mismatched", "3"]) == 2


@pytest.fixture
def heard(micro: Path, tmp_path: Path) -> dict[str, Any]:
    """Two systems' songs for two requests, and what listeners preferred."""
    pipeline = SongPipeline.from_pretrained(micro)
    for seed, name in enumerate(("a", "b")):
        for number in range(2):
            request = SongRequest(
                description="slow piano", seconds=2, bpm=80, key="C major", seed=7
            )
            [song] = pipeline.generate([request])
            song.save(tmp_path / name / f"r{number}.wav")
            if seed:  # another song of the same plan
                save_audio(tmp_path / name / f"r{number}.wav", torch.zeros(1, 2 * RATE), RATE)
    lines = [
        {"request": f"r{number}", "user_type": user, "description": "slow piano", "winner": "a"}
        | {"loser": "b", "votes": 2, "question": "overall"}
        for number, user in enumerate(("professional", "amateur"))
    ]
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return {
        "path": path,
        "systems": [System.of(tmp_path / name) for name in ("a", "b")],
        "pipeline": pipeline,
    }


def pairs_of(heard: dict[str, Any], **options: Any) -> list[Any]:
    systems, pipeline = heard["systems"], heard["pipeline"]
    return list(listeners.preferred_pairs(heard["path"], systems, {}, pipeline, **options))


def test_listeners_pairs_are_encoded_and_told_their_common_plan(heard: dict[str, Any]) -> None:
    pairs = pairs_of(heard)
    assert [pair.won_TC.shape == pair.lost_TC.shape for pair in pairs] == [True, True]
    assert pairs[0].outline.bpm == 80 and pairs[0].outline.key == "C major"
    assert [len(pairs_of(heard, user_type=user)) for user in ("all", "amateur")] == [2, 1]
    # songs of other systems have no sidecar: nothing is said of their plan
    heard["systems"][1].songs["r0"].with_suffix(".json").unlink()
    assert pairs_of(heard)[0].outline.bpm is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["{"], "line 1 is no preference"),
        (lambda lines: [lines[0].replace('"winner": "a"', '"winner": "c"')], "of 'c', which no"),
        (lambda lines: [lines[0].replace('"r0"', '"r9"')], "song 'r9' of 'a'"),
    ],
    ids=["not JSON", "unknown system", "unknown song"],
)
def test_bad_preferences_are_named(
    heard: dict[str, Any], change: Callable[[list[str]], list[str]], message: str
) -> None:
    heard["path"].write_text("\n".join(change(heard["path"].read_text().splitlines())))
    with pytest.raises(InputError, match=message):
        pairs_of(heard)


def test_songs_of_other_lengths_are_refused(heard: dict[str, Any]) -> None:
    save_audio(heard["systems"][1].songs["r1"], torch.zeros(1, 3 * RATE), RATE)
    with pytest.raises(InputError, match=r"line 2: 'r1.wav' lasts 2.0 s and 'r1.wav' 3.0 s"):
        pairs_of(heard)


def test_answers_of_a_survey_are_learned_from(
    heard: dict[str, Any], micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--preferences", str(heard["path"])]
    given += ["--system", str(tmp_path / "a"), "--system", str(tmp_path / "b")]
    assert run(align(tmp_path / "mine", micro, *given, made=())) == 0
    assert results(capsys)["pairs"] == 2
    assert not (tmp_path / "mine/work/songs").exists(), "no songs are made to learn from"


@pytest.mark.parametrize(
    ("source", "idle"),
    [
        ("--preferences", ["--mismatched", "1"]),
        ("--preferences", ["--reward", "adherence"]),
        ("--originals", ["--reward", "both"]),
        ("--preferences", ["--songs", "4"]),
        ("--preferences", ["--most", "4"]),
        ("--originals", ["--guidance", "2"]),
        ("--originals", ["--least-gap", "0"]),
        (None, ["--most", "4"]),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    source: str | None, idle: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "preferences.jsonl"
    answers.touch()
    given = {
        "--preferences": ["--preferences", str(answers), "--system", str(tmp_path)],
        "--originals": ["--originals", str(tmp_path)],
        None: [],
    }[source]
    assert run(["align", "--out", str(tmp_path / "mine"), *given, *idle]) == 2
    said = capsys.readouterr().err
    assert f"{idle[0]} has no effect" in said and (source or "without --originals") in said
    assert not (tmp_path / "mine").exists()


def test_composed_requests_are_of_both_kinds_and_drawn_by_the_seed() -> None:
    asked = composed(6, seed=3, seconds=10.0)
    assert [one["user_type"] for one in asked] == ["professional", "amateur"] * 3
    assert asked == composed(6, seed=3, seconds=10.0) != composed(6, seed=4, seconds=10.0)
    assert all(one["lyrics"].startswith("[") or not one["lyrics"] for one in asked)
    assert any(one["lyrics"] for one in asked)
    assert {one["user_type"] for one in composed(3, seed=3, seconds=9, user_type="amateur")} == {
        "amateur"
    }


def test_requests_of_a_file_are_held_out_by_their_ids(tmp_path: Path) -> None:
    lines = [{"id": f"s{n}", "description": "BPM 90", "user_type": "amateur"} for n in range(8)]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))

    def split(count: int) -> tuple[set[str], set[str]]:
        train, held = read_requests(
            str(file), held_out=count, seed=0, seconds=4.0, out=tmp_path, user_type="all"
        )
        return set(train), set(held)

    train, held = split(3)
    assert len(held) == 3 and not train & held and len(train | held) == 8
    assert split(5)[1] > held
    with pytest.raises(InputError, match="hold 8 of user type 'all', of which 8 would be"):
        split(8)


def test_mismatched_songs_are_of_the_same_plan_in_words_for_another_style(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = SongPipeline.from_pretrained(micro)
    told: list[Any] = []
    prepare = pipeline.runtime.prepare
    monkeypatch.setattr(
        pipeline.runtime, "prepare", lambda inputs: told.append(inputs) or prepare(inputs)
    )
    made = Candidates(
        tmp_path,
        pipeline,
        Reward("similarity", Louder()),
        count=3,
        seconds=2.0,
        seed=0,
        sampler={"steps": 2},
        mismatched=1,
    )
    jazz, rock, sung = (
        Asked(name, f"{name}, BPM {bpm}, A minor", "amateur", lyrics=lyrics)
        for name, bpm, lyrics in (("jazz", 90, ""), ("rock", 120, ""), ("funk", 70, "moon"))
    )
    songs = made.of(jazz, [jazz, sung, rock])
    own, again, other = told
    assert torch.equal(own.descriptions, again.descriptions) and own.seed != again.seed
    assert torch.equal(other.descriptions, made.of(rock, [jazz]).inputs.descriptions)
    assert torch.equal(own.descriptions, songs.inputs.descriptions), "all are for its own words"
    plan = [one.outline.features_TF for one in told[:3]]
    assert torch.equal(plan[0], plan[2]) and songs.outline.bpm == 90
    assert not torch.equal(plan[0], made.of(rock, [jazz]).inputs.outline.features_TF)
    assert len(songs.latents_NTC) == len(songs.parts) == 3
    with pytest.raises(InputError, match="no request asks for another style than 'funk'"):
        made.of(sung, [jazz, sung, rock])


def test_held_out_words_are_in_no_other_request() -> None:
    asked, held = (composed(4, seed=3, seconds=9.0, unseen=unseen) for unseen in (False, True))
    assert not {one["id"] for one in asked} & {one["id"] for one in held}
    for one in held:
        start = ("Looking for", "需要", "Could you make", "麻烦做一首")
        assert one["description"].startswith(start)
    assert [one["user_type"] for one in held] == ["professional", "amateur"] * 2


def test_what_the_reader_understood_is_what_was_asked(micro: Path) -> None:
    reader = SongPipeline.from_pretrained(micro).reader

    def asked(words: str, **fields: Any) -> Asked:
        wish = Asked("s", words, "amateur", **fields)
        return as_understood(wish, reader.read(SongRequest(description=words, seconds=4, seed=1)))

    slow = asked("slow rock, a woman sings, no drums")
    assert (slow.bpm, slow.style, slow.voice, slow.drums) == (76.0, "rock", "female", False)
    assert slow.key is None and asked("something nice").bpm is None, "what is drawn is not asked"
    assert asked("slow", bpm=90.0).bpm == 90.0, "a field goes before the words"
    twice = repeated({"s": slow}, 2)
    assert [one.id for one in twice.values()] == list(twice) == ["s.0", "s.1"]


def click_track(bpm: float, seconds: float = 6.0) -> torch.Tensor:
    t = torch.arange(int(RATE * seconds)) / RATE
    chord = sum(torch.sin(2 * math.pi * 440 * 2 ** (n / 12) * t) for n in (0, 3, 7, 12))
    return (0.2 * chord * torch.exp(-8 * (t % (60 / bpm))))[None]


class Louder:
    """An encoder that takes loudness for nearness."""

    def encode_text(self, texts: Any) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]] * len(texts))

    def encode_audio(self, songs: Any, sample_rate: int) -> torch.Tensor:
        levels = torch.stack([song.abs().max() for song in songs])
        return torch.stack([levels, 1 - levels], 1)


def test_rewards_rank_what_was_asked() -> None:
    asked = Asked("s", description="x", bpm=120.0, key="A minor")
    right, wrong = click_track(120), click_track(97)
    done = [adherence(one, RATE, asked) for one in (right, wrong)]
    assert done[0]["tempo"] > 0.9 and done[1]["tempo"] == 0.0 and done[0]["key"] > 0.9
    assert adherence(right, RATE, Asked("s")) == {}
    reward = Reward("both", Louder())
    parts = [reward.parts(one, RATE, asked) for one in (0.5 * wrong, right, wrong)]
    merits = standing(parts, spreads([parts]))
    assert merits[1] > merits[2] > merits[0]
    assert set(Reward("similarity", Louder()).parts(right, RATE, asked)) == {"similarity"}


def test_parts_count_in_units_of_their_spread() -> None:
    # cosines differ by hundredths, adherence by tenths; a request's own level counts for nothing
    one = [{"similarity": 0.40 + 0.01 * n, "adherence": 0.5 - 0.1 * n} for n in range(3)]
    other = [{"similarity": 0.10 + 0.01 * n, "adherence": 0.9 - 0.1 * n} for n in range(3)]
    spread = spreads([one, other])
    assert spread == pytest.approx({"similarity": 0.01, "adherence": 0.1})
    assert standing(one, spread) == pytest.approx([0.0] * 3, abs=1e-6), "the two parts cancel"
    assert standing([{"similarity": 0.1}, {}], spread) == [0.0, 0.0], "a part of one song alone"
    assert spreads([[{"similarity": 0.5}] * 2]) == {}
    assert ranked_pairs([0.0, 2.0, 2.0, 0.1], each=2) == [(1, 0, 2.0), (2, 3, 1.9)]
    assert ranked_pairs([0.0, 2.0, 2.0, 0.1], each=2, least=1.95) == [(1, 0, 2.0)]
    assert ranked_pairs([1.0, 1.0]) == [] == ranked_pairs([1.0])


def test_pairs_weigh_by_how_far_they_are_apart() -> None:
    def songs(name: str, *similarities: float) -> Songs:
        latents = np.arange(len(similarities), dtype=np.float16)[:, None, None]
        parts = [{"similarity": one} for one in similarities]
        return Songs(Asked(name), None, None, latents, parts)  # type: ignore[arg-type]

    requests = [songs("far", 0.0, 0.9), songs("near", 0.5, 0.51), songs("some", 0.4, 0.1)]
    pairs = ranked_songs(requests, each=1, least=0.1)
    assert [one.id for one in pairs] == ["far", "some"], "the near ones are left out"
    assert (pairs[0].won_TC.item(), pairs[0].lost_TC.item()) == (1.0, 0.0)
    assert (pairs[1].won_TC.item(), pairs[1].lost_TC.item()) == (0.0, 1.0)
    assert [one.weight for one in pairs] == pytest.approx([1.5, 0.5])
    assert pairs[0].weight < HEAVIEST
    two = ranked_songs([songs("a", 0.1, 0.9, 0.2, 0.8)], each=2, least=0.0)
    assert [(one.id, one.request) for one in two] == [("a.0", "a"), ("a.1", "a")]


class Words:
    """An encoder whose songs are the words of a value."""

    def __init__(self, *words: str) -> None:
        known = [control_words(name, value) for name, of in VALUES.items() for value in of]
        self.place = {word: n for n, both in enumerate(known) for word in both}
        self.song = torch.eye(len(known))[[self.place[word] for word in words]].sum(0)

    def encode_text(self, texts: Any) -> torch.Tensor:
        return torch.eye(len(self.song))[[self.place[text] for text in texts]]

    def encode_audio(self, songs: Any, sample_rate: int) -> torch.Tensor:
        return torch.nn.functional.normalize(self.song, dim=0)[None]


def test_an_encoder_tells_style_and_voice() -> None:
    telling, nothing = Telling(Words("jazz", "male voice")), torch.zeros(1, RATE)
    told = telling.of(nothing, RATE, style="jazz", voice="female")
    assert told["style"] > 0.9 and told["voice"] < 0.1
    assert telling.of(nothing, RATE) == {} == telling.of(nothing, RATE, style="polka")
    asked = Asked("s", style="jazz", voice="male")
    assert set(adherence(nothing, RATE, asked, telling=telling)) == {"style", "voice"}
    assert adherence(nothing, RATE, asked) == {}, "nobody can tell without an encoder"


def figures(**values: float) -> dict[str, Figure]:
    return {name: Figure(value, value - 0.1, value + 0.1) for name, value in values.items()}


def test_a_gamed_reward_is_told() -> None:
    def compared(judge: float, judge_p: float, fad: float) -> Comparison:
        moved = [("reward", -0.2, 0.001), ("chinmu", -judge, judge_p), ("loudness", -3.0, 0.01)]
        differences = [Difference("before", "after", m, 9, d, p) for m, d, p in moved]
        rows = [
            SystemRow("before", "all", 9, figures(fad_musicnn=1.0)),
            SystemRow("after", "all", 9, figures(fad_musicnn=fad)),
        ]
        return Comparison(rows, differences, {}, {})

    same = {"before": 0.5, "after": 0.5}
    gamed = suspects(compared(0.0, 0.9, 1.05), same)
    assert len(gamed) == 2 and "gamed" in gamed[0] and gamed[1].startswith("loudness moves by +3")
    worse = suspects(compared(0.1, 0.01, 1.2), {"before": 0.5, "after": 0.3})
    assert [line.split()[0] for line in worse] == ["loudness", "fad_musicnn", "songs"]


def test_wins_by_measure_and_user() -> None:
    asked = {str(n): Asked(str(n), user_type=("amateur", "professional")[n % 2]) for n in range(4)}
    before = {one: {"chinmu": 0.5, "adherence": 0.5} for one in asked}
    after = {
        "0": {"chinmu": 0.6, "adherence": 0.5},
        "1": {"chinmu": 0.4, "adherence": 0.5},
        "2": {"chinmu": 0.6, "adherence": 0.4},
        "3": {"chinmu": 0.5, "adherence": 0.9},
    }
    comparison = Comparison([], [], {"before": before, "after": after}, {})
    found = {(one.measure, one.user): one for one in wins_of(comparison, asked)}
    counts = {key: (one.wins, one.losses, one.draws) for key, one in found.items()}
    assert counts["chinmu", "all"] == (2, 1, 1) and counts["chinmu", "amateur"] == (2, 0, 0)
    assert counts["adherence", "all"] == (1, 1, 2)
    # a tenth of a cosine is a larger step than a tenth of adherence, where 0.9 has been seen
    assert counts["chinmu and adherence", "all"] == (3, 1, 0)
    assert counts["reward", "all"] == (0, 0, 0) and found["reward", "all"].share.value is None
    assert found["chinmu", "all"].share.value == pytest.approx(0.625)


def test_songs_of_one_request_are_one_request_in_the_interval() -> None:
    asked = repeated({str(n): Asked(str(n), user_type="amateur") for n in range(3)}, 4)
    before = {one: {"chinmu": 0.5} for one in asked}
    after = {one: {"chinmu": 0.4 if one[0] == "0" else 0.6} for one in asked}
    comparison = Comparison([], [], {"before": before, "after": after}, {})
    chinmu = wins_of(comparison, asked, songs=4)[0]
    assert (chinmu.measure, chinmu.wins, chinmu.losses) == ("chinmu", 8, 4)
    assert (chinmu.share.n, chinmu.share.low, chinmu.share.high) == (3, 0.0, 1.0)


def test_variety_and_names() -> None:
    assert unlike([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]) == pytest.approx(1.0)
    assert unlike([torch.tensor([1.0, 0.0])] * 3) == pytest.approx(0.0)
    assert file_name("s-1") == "s-1" and "/" not in file_name("../s") and file_name("月") == "月"
