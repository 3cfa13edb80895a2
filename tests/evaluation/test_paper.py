"""The paper's protocol: prompts, systems that make or have songs, refusals by name; each kind of
baseline with a tiny pipeline of random weights.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

import tiny_pipelines
from mudit_engine.audio import load_audio, save_audio
from mudit_engine.cli.main import run
from mudit_engine.errors import InputError, ModelError
from mudit_engine.evaluation.baselines import Baseline, Prompt, open_baseline, parse_system
from mudit_engine.evaluation.protocol import DescribedSong, cut, make_songs, paper_prompts
from mudit_engine.loudness import CEILING_DB, TARGET_LUFS, loudness, true_peak

RATE = 16000


def described(folder: Path, count: int = 6, *, english: bool = True) -> list[DescribedSong]:
    songs = []
    for number in range(count):
        texts = {
            (user, "zh"): f"{user}{'慢歌' * 80}{number}" for user in ("professional", "amateur")
        }
        if english:
            texts |= {(user, "en"): f"a slow song {number}" for user, _ in list(texts)}
        songs.append(
            DescribedSong(f"song{number}", folder / f"{number}.flac", texts, "[verse]\n月")
        )
    return songs


def test_prompts_are_of_both_users_and_cut_at_random(tmp_path: Path) -> None:
    wishes = paper_prompts(described(tmp_path), count=4, seed=1)
    assert len(wishes) == 8 and {wish.user for wish in wishes} == {"professional", "amateur"}
    assert all(100 < len(wish.text) <= 120 for wish in wishes)
    assert wishes == paper_prompts(described(tmp_path)[::-1], count=4, seed=1)
    assert wishes != paper_prompts(described(tmp_path), count=4, seed=2)
    assert cut("short", 120, random.Random(0)) == "short"
    assert {cut("abcdef", 3, random.Random(n)) for n in range(40)} == {"abc", "bcd", "cde", "def"}
    asked = wishes[0].asked()
    assert asked.user_type == wishes[0].user and asked.reference == wishes[0].target
    with pytest.raises(InputError, match="6 of 6 songs have .* 50 are asked for"):
        paper_prompts(described(tmp_path))


def counting(calls: list[Prompt]) -> Baseline:
    def make(prompt: Prompt) -> tuple[torch.Tensor, int]:
        calls.append(prompt)
        return 0.1 * torch.ones(1, round(prompt.seconds * RATE)), RATE

    return Baseline("counted", "mudit", "tiny", make)


def test_songs_are_made_once_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    wishes = paper_prompts(described(tmp_path), count=2)
    calls: list[Prompt] = []
    made = make_songs(counting(calls), wishes, tmp_path / "out", seconds=1.0, seed=7)
    assert set(made.songs) == {wish.id for wish in wishes}
    assert [one.seed for one in calls] == [7, 8, 9, 10] and calls[0].lyrics == "[verse]\n月"
    (tmp_path / "out" / f"{wishes[2].id}.flac").unlink()
    make_songs(counting(calls), wishes, tmp_path / "out", seconds=1.0, seed=7)
    assert len(calls) == 5 and calls[4] == calls[2]
    with pytest.raises(InputError, match="songs of other settings"):
        make_songs(counting(calls), wishes, tmp_path / "out", seconds=2.0, seed=7)


def test_english_systems_get_the_given_translation(tmp_path: Path) -> None:
    calls: list[Prompt] = []
    wishes = paper_prompts(described(tmp_path), count=1)
    make_songs(counting(calls), wishes, tmp_path / "en", seconds=1.0, english=True)
    assert all(one.text.startswith("a slow song") for one in calls)
    lacking = paper_prompts(described(tmp_path, english=False), count=1)
    with pytest.raises(InputError, match="2 prompts have no English text"):
        make_songs(counting(calls), lacking, tmp_path / "no", seconds=1.0, english=True)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    wishes = paper_prompts(described(tmp_path), count=1)
    for wish in wishes:
        save_audio(tmp_path / "melodist" / f"{wish.id}.wav", torch.ones(1, 800), RATE)
    save_audio(tmp_path / "melodist/other.wav", torch.ones(1, 800), RATE)
    melodist = open_baseline("folder", str(tmp_path / "melodist"), name="melodist")
    made = make_songs(melodist, wishes, tmp_path / "unused", seconds=1.0)
    assert set(made.songs) == {wish.id for wish in wishes} and not (tmp_path / "unused").exists()


def test_systems_by_name_kind_and_source() -> None:
    assert parse_system("sao=stable-audio:a/b:c") == ("sao", "stable-audio", "a/b:c")
    for text in ("sao", "sao=suno:x", "=mudit:tiny", "a=mudit:"):
        with pytest.raises(InputError, match="NAME=KIND:SOURCE"):
            parse_system(text)
    with pytest.raises(InputError, match="no folder of songs"):
        open_baseline("folder", "nowhere")


def test_what_is_not_finite_is_refused() -> None:
    broken = Baseline("broken", "mudit", "x", lambda prompt: (torch.full((1, 9), torch.nan), RATE))
    with pytest.raises(ModelError, match="'broken' .* made no finite audio"):
        broken(Prompt("slow", "", 1.0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stable-audio", "audioldm", "audioldm2", "musicgen", "ace-step"])
def test_kinds_with_tiny_random_weights(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    save = getattr(tiny_pipelines, f"save_{kind.replace('-', '_')}")
    source = str(save(tmp_path / kind))
    baseline = open_baseline(kind, source, steps=None if kind == "musicgen" else 2)
    asked = Prompt("slow piano", "[verse]\n月亮", 1.0, 0)
    audio, rate = baseline(asked)
    assert rate == RATE and audio.dtype == torch.float32 and audio.shape[0] in (1, 2)
    assert audio.shape[1] / rate == pytest.approx(1.0, abs=0.2)
    again, _ = baseline(asked)
    other, _ = baseline(Prompt("slow piano", "[verse]\n月亮", 1.0, 1))
    assert torch.equal(audio, again) and not torch.equal(audio, other)


@pytest.mark.slow  # its parts are held above and in test_systems.py; this joins them
def test_table_1_from_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number in range(2):
        tone = torch.sin(torch.arange(3 * RATE) * 0.02 * (number + 2))[None]
        save_audio(tmp_path / f"songs/{number}.wav", 0.3 * tone, RATE)
        save_audio(tmp_path / f"reference/{number}.wav", 0.3 * tone.roll(400), RATE)
        for user in ("professional", "amateur"):
            for system, gain in (("quiet", 0.1), ("loud", 0.5)):
                save_audio(tmp_path / system / f"{number}-{user}.wav", gain * tone, RATE)
        texts = [
            {"user": user, "text": f"慢歌，钢琴 {number}"} for user in ("professional", "amateur")
        ]
        rows.append({"audio": f"songs/{number}.wav", "id": str(number), "descriptions": texts})
    (tmp_path / "songs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    words = ["eval", "paper", "--songs", str(tmp_path / "songs.jsonl"), "--count", "2"]
    words += ["--reference", str(tmp_path / "reference"), "--work", str(tmp_path / "work")]
    for system in ("quiet", "loud"):
        words += ["--system", f"{system}=folder:{tmp_path / system}"]
    assert run([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert {(row["system"], row["user"], row["songs"]) for row in found["rows"]} == {
        (system, user, songs)
        for system in ("quiet", "loud")
        for user, songs in (("all", 4), ("professional", 2), ("amateur", 2))
    }
    assert (tmp_path / "out/index.html").exists() and (tmp_path / "out/songs.tex").exists()
    (tmp_path / "loud/1-amateur.wav").unlink()
    assert run(words) == 2
    assert "'loud' lacks 1-amateur" in capsys.readouterr().err
    assert load_audio(tmp_path / "quiet/1-amateur.wav")[1] == RATE


def test_this_engine_is_judged_by_songs_as_it_writes_them() -> None:
    make = open_baseline("mudit", "tiny", steps=4)
    audio_cS, rate = make(Prompt("drums, loud rock", "", 4.0, 1))
    assert abs(loudness(audio_cS, rate) - TARGET_LUFS) < 0.5
    assert true_peak(audio_cS, rate) <= CEILING_DB + 0.1
    assert audio_cS[:, -1].abs().max() < 1e-6  # faded out
