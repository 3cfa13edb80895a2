"""What a song is conditioned on at a step: the odds of every case, the unconditional sequence, and
that only (seed, step, id) decide.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.models.dit import REFERENCE_KINDS
from mudit_engine.models.folder import save_config, save_part
from mudit_engine.models.outline import CHORD, outline_columns
from mudit_engine.text.harmony import TimedChord, chord_symbol
from mudit_engine.text.outline import Outline
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import Shards, SongRecord, audio_fields
from mudit_engine.training.dataset.told import outline_of
from mudit_engine.training.tasks.dit import Conditions, DitTask, choose_fragments, edited_frames
from mudit_engine.training.tasks.task import Moment
from run_ranks import wake
from small_songs import small_recipe, write_songs


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return Shards(write_songs(tmp_path_factory.mktemp("songs")))


def task(shards: Shards, **changes: object) -> DitTask:
    return DitTask(small_recipe(shards.folder, **changes), shards)


def full_song(shards: Shards) -> int:
    """A song that has lyrics, fragments and a stem."""
    fields = ("phonemes", "fragments", "stem.vocals")
    return next(n for n in range(len(shards)) if all(shards.rows(field)[n] > 1 for field in fields))


def conditions(task: DitTask, number: int, steps: int = 2000) -> list[Conditions]:
    record = task.shards.read(number)
    return [task._conditions(record, Moment(0, 0, step)) for step in range(steps)]


def test_conditions_are_dropped_by_their_odds(shards: Shards) -> None:
    odds = {
        "dit__drop_descriptions": 0.2,
        "dit__drop_lyrics": 0.3,
        "dit__drop_both": 0.1,
        "dit__drop_user": 0.25,
    }
    drawn = conditions(task(shards, **odds), full_song(shards))
    cases = Counter((bool(len(c.lyrics)), bool(len(c.fragments))) for c in drawn)
    share = {case: count / len(drawn) for case, count in cases.items()}
    assert share == pytest.approx(
        {(True, True): 0.4, (True, False): 0.2, (False, True): 0.3, (False, False): 0.1}, abs=0.035
    )
    assert all(c.user == 0 for c in drawn if not len(c.fragments)), (
        "no description: nobody's words, user type none"
    )
    described = [c for c in drawn if len(c.fragments)]
    assert sum(c.user == 0 for c in described) / len(described) == pytest.approx(0.25, abs=0.035)


def test_independent_conditions_meet_in_all_mixtures(shards: Shards) -> None:
    odds = {
        "dit__dropping": "independent",
        "dit__drop_descriptions": 0.4,
        "dit__drop_lyrics": 0.5,
        "dit__drop_both": 0.2,
        "dit__drop_user": 0.25,
    }
    drawn = conditions(task(shards, **odds), full_song(shards))
    cases = Counter((bool(len(c.lyrics)), bool(len(c.fragments))) for c in drawn)
    share = {case: count / len(drawn) for case, count in cases.items()}
    kept = {(True, True): 0.24, (True, False): 0.16, (False, True): 0.24, (False, False): 0.36}
    assert share == pytest.approx(kept, abs=0.035)


def test_chords_by_their_odds_and_half_of_them_as_triads(shards: Shards) -> None:
    drawn = conditions(
        task(shards, dit__drop_chords=0.4, dit__drop_both=0.0, model_overrides__dit__outline=True),
        full_song(shards),
    )
    roots = slice(CHORD, CHORD + 12)
    cases = Counter(
        tuple(c.outline.features_TF[0, CHORD + 12 : CHORD + 24].nonzero().flatten().tolist())
        for c in drawn
    )
    share = {case: count / len(drawn) for case, count in cases.items()}
    assert share == pytest.approx({(): 0.4, (2, 5, 9): 0.3, (0, 2, 5, 9): 0.3}, abs=0.035)
    for c in drawn:
        assert c.outline.features_TF[0, roots].nonzero().flatten().tolist() == (
            [2] if c.outline.features_TF[0, CHORD + 12 : CHORD + 24].any() else []
        )


def test_reference_by_its_odds(shards: Shards) -> None:
    number = full_song(shards)
    drawn = conditions(task(shards, dit__reference=0.4), number)
    given = [c for c in drawn if len(c.reference)]
    assert len(given) / len(drawn) == pytest.approx(0.4, abs=0.035)
    record = shards.read(number)
    kinds = Counter(REFERENCE_KINDS[c.reference_kind] for c in given)
    assert set(kinds) == {"mix", "vocals"} and min(kinds.values()) > 0.4 * len(given)
    for c in given:
        if REFERENCE_KINDS[c.reference_kind] == "vocals":
            assert np.array_equal(c.reference, record["stem.vocals"])
        else:
            assert len(c.reference) <= len(record["latents"]) / 2 + 1, (
                "the whole mix would give the song away"
            )
    assert not any(
        len(c.reference) for c in conditions(task(shards, dit__reference=0.0), number, 100)
    )


def test_pretraining_hears_no_descriptions_and_no_sections(shards: Shards) -> None:
    pretrain = task(
        shards,
        dit__use_descriptions=False,
        dit__structured_lyrics=False,
        dit__drop_both=0.0,
        dit__drop_lyrics=0.0,
    )
    number = full_song(shards)
    for c in conditions(pretrain, number, 50):
        assert not len(c.fragments) and c.user == 0
        assert not set(c.lyrics.tolist()) & set(pretrain.sections.tolist())
        expected = [
            i for i in shards.read(number)["phonemes"].tolist() if i not in pretrain.sections
        ]
        assert c.lyrics.tolist() == expected
    assert len(pretrain.sections) > 3


def test_fragments_are_of_one_description() -> None:
    # (level, language, user, description, asked): two descriptions of 6 and 3 fragments
    levels = np.array([2, 1, 1, 0, 0, 0, 2, 1, 0])
    number = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    kinds = np.stack([levels, number, number + 1, number, levels > 0], 1)
    draws = [choose_fragments(kinds, (1, 1, 1), 4, 0.3, Random(seed)) for seed in range(3000)]
    assert all(
        len(rows) and len(set(number[rows])) == 1 and np.all(np.diff(rows) > 0) for rows in draws
    )
    assert {tuple(rows) for rows in draws} >= {(0, 1, 2), (6, 7)}, "as a request would ask"
    assert max(len(rows) for rows in draws) == 4 and min(len(rows) for rows in draws) == 1
    single = Counter(int(levels[rows[0]]) for rows in draws if len(rows) == 1)
    assert all(
        count / single.total() == pytest.approx(1 / 3, abs=0.07) for count in single.values()
    ), "levels, not their sizes, have the odds"
    words = [choose_fragments(kinds, (1, 0, 0), 4, 0.0, Random(seed)) for seed in range(100)]
    assert {int(level) for rows in words for level in levels[rows]} == {0}
    assert all(
        tuple(choose_fragments(kinds, (1, 1, 1), 4, 1.0, Random(seed))) in {(0, 1, 2), (6, 7)}
        for seed in range(50)
    )
    assert len(choose_fragments(np.empty((0, 5)), (1, 1, 1), 4, 0.3, Random(0))) == 0


def test_a_song_sees_the_same_alone_and_in_company(shards: Shards) -> None:
    """Noise, time and conditions depend on (seed, step, song id) and on nothing else."""
    number = full_song(shards)
    one = task(shards)
    alone = one.load([number], Moment(0, 0, 7)).inputs
    company = one.load([number + 1, number, number - 1], Moment(0, 5, 7)).inputs
    first, rows = company.clean.frames[0], alone.clean.frames[0]
    assert torch.equal(company.noise_TC[first : first + rows], alone.noise_TC)
    assert torch.equal(company.clean.latents_TC[first : first + rows], alone.clean.latents_TC)
    assert (
        company.times_B[1] == alone.times_B[0]
        and company.clean.fragments[1] == alone.clean.fragments[0]
    )
    for other in (Moment(1, 0, 7), Moment(0, 0, 8)):
        assert not torch.equal(one.load([number], other).inputs.noise_TC, alone.noise_TC)


def test_evaluation_is_fixed_and_undisturbed(shards: Shards) -> None:
    one = task(
        shards,
        dit__drop_both=0.9,
        dit__drop_descriptions=0.05,
        dit__drop_lyrics=0.05,
        dit__reference=0.0,
    )
    songs = [
        n for n in range(len(shards)) if shards.rows("phonemes")[n] and shards.rows("fragments")[n]
    ][:6]
    first, again = (one.load(songs, Moment(0, 0, 0, training=False)).inputs for _ in range(2))
    assert (
        torch.equal(first.noise_TC, again.noise_TC)
        and first.clean.fragments == again.clean.fragments
    )
    assert all(first.clean.lyrics)
    even = one.path.t_min + (1 - one.path.t_min) * (torch.arange(6) + 0.5) / 6
    torch.testing.assert_close(first.times_B, even)


@pytest.mark.parametrize("kind", ["bezier", "linear", "ddpm"])
def test_loss_of_every_path_has_gradients(shards: Shards, kind: str) -> None:
    path = {"kind": kind, "prediction": "v" if kind == "ddpm" else "velocity"}
    changes = {
        "model_overrides__path": path,
        "model_overrides__sampler": {"name": "ddim" if kind == "ddpm" else "ode-euler"},
    }
    one = task(
        shards, dit__times="uniform", dit__min_snr_gamma=5.0 if kind == "ddpm" else None, **changes
    )
    loss, logs = one.modules["model"](one.load(range(6), Moment(0, 0, 0)).inputs)
    loss.backward()
    assert torch.isfinite(loss) and float(one.part_module().final.weight.grad.abs().max()) > 0  # type: ignore[union-attr]
    bands = [logs[f"mse_noise{i}of3"] for i in (1, 2, 3)]
    assert sum(float(total) for total, _ in bands) == pytest.approx(float(logs["mse"][0]), rel=1e-5)
    assert sum(frames for _, frames in bands) == logs["mse"][1]


@pytest.mark.parametrize("on_ranks", [False, True], ids=["alone", "with a filler"])
def test_contrastive_flow_matching_takes_off_the_next_songs_distance(
    shards: Shards, on_ranks: bool
) -> None:
    """loss = |out - target|^2 - 0.05 |out - target of the next song|^2, in training alone, and
    not where a pack holds one song.
    """
    one = task(shards, dit__contrastive=0.05)
    one.on_ranks = on_ranks
    wake(one, 0.05)
    module, outs = one.modules["model"], []
    one.part_module().register_forward_hook(lambda *given: outs.append(given[2].detach()))
    inputs = one.load(range(3), Moment(0, 0, 0)).inputs
    frames = inputs.clean.frames[:3]
    total = sum(frames)
    with torch.no_grad():
        loss, logs = module(inputs)
        times_T = inputs.times_B[:3].repeat_interleave(torch.tensor(frames))
        target = one.path.target(
            inputs.clean.latents_TC[:total], inputs.noise_TC[:total], times_T
        ).split(frames)
        others = torch.cat(
            [
                torch.cat([target[(i + 1) % 3]] * (1 + frames[i] // len(target[(i + 1) % 3])))[
                    : frames[i]
                ]
                for i in range(3)
            ]
        )
        distance = float((outs[0][:total] - others).square().mean(1).sum())
        mse = float(logs["mse"][0])
        assert float(loss) == pytest.approx(mse - 0.05 * distance, rel=1e-5)
        assert distance > mse * 0.5, "it would show"
        alone, logs = module(one.load([0], Moment(0, 0, 0)).inputs)
        assert float(alone) == pytest.approx(float(logs["mse"][0]), rel=1e-5)
        module.eval()
        assert float(module(inputs)[0]) == pytest.approx(mse, rel=1e-5)


def test_checkpointing_changes_nothing_but_memory(shards: Shards) -> None:
    results = []
    for checkpointing in ("none", "full", "selective"):
        one = task(shards, dit__checkpointing=checkpointing)
        loss, _ = one.modules["model"](one.load(range(6), Moment(0, 0, 0)).inputs)
        loss.backward()
        results.append(
            [
                loss.detach(),
                *(p.grad for p in one.modules["model"].parameters() if p.grad is not None),
            ]
        )
    assert len(results[0]) == len(results[1]) == len(results[2]) > 10
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_songs_without_any_condition(shards: Shards) -> None:
    """A pack of songs with no lyrics, no description and no reference is a batch like any other."""
    one = task(
        shards,
        dit__drop_both=1.0,
        dit__drop_descriptions=0.0,
        dit__drop_lyrics=0.0,
        dit__reference=0.0,
    )
    inputs = one.load(range(4), Moment(0, 0, 0)).inputs
    assert (
        not any(inputs.clean.lyrics)
        and not any(inputs.clean.fragments)
        and not any(inputs.clean.reference_frames)
    )
    loss, _ = one.modules["model"](inputs)
    loss.backward()
    assert torch.isfinite(loss)
    assert dataclasses.asdict(inputs)["clean"]["references"].shape == (0, 8)


def test_data_of_another_stage_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, audio_fields(channels=1)) as writer:
        writer.add("a", {"audio": np.zeros((10, 1), np.int16)})
    with pytest.raises(InputError, match=r"needs the fields \['latents', 'phonemes'"):
        DitTask(small_recipe(tmp_path), Shards(tmp_path))


def test_latents_of_another_codec_are_refused(shards: Shards) -> None:
    with pytest.raises(
        InputError,
        match="holds latents of width 8, the model takes 4: encode the songs with this model's VAE",
    ):
        task(
            shards,
            model_overrides__dit={"latent_channels": 4, "width": 16, "heads": 2},
            model_overrides__vae__latent_channels=4,
        )


COMPOSED = {
    f"model_overrides__dit__{name}": True
    for name in ("outline", "melody", "arrangement", "controls", "edits")
}


def known_song(shards: Shards, number: int, *, style: str = "shoegaze") -> SongRecord:
    """A record with everything that a plan can say."""
    record = shards.read(number)
    section = {"name": "verse", "start": 0.0, "end": 3.0, "plays": ["drums"], "energy": 0.5}
    known = {"melody": [(0.0, 1.0, 60)], "arrangement": [section]}
    known |= {"drums": True, "voice": "female", "style": style, "bpm": 90.0}
    told = json.dumps({**record.metadata, **known}).encode()
    return dataclasses.replace(record, _metadata=np.frombuffer(told, np.uint8))


def test_parts_of_the_plan_are_dropped_by_their_odds(shards: Shards) -> None:
    odds = {
        "dit__drop_melody": 0.3,
        "dit__drop_arrangement": 0.6,
        "dit__drop_controls": 0.5,
        "dit__drop_referenced": 0.0,
        "dit__drop_both": 0.0,
    }
    made = task(shards, **odds, **COMPOSED)
    record = known_song(shards, full_song(shards))
    columns = outline_columns(made.config.dit)
    drawn = [made._conditions(record, Moment(0, 0, step)) for step in range(600)]
    said = {
        name: np.mean([bool(c.outline.features_TF[:, place].any()) for c in drawn])
        for name, place in columns.items()
    }
    assert said["melody"] == pytest.approx(0.7, abs=0.06)
    assert said["arrangement"] == pytest.approx(0.4, abs=0.06)
    # drums and voice are each said half of the time; the data set's own style has no column
    assert said["controls"] == pytest.approx(0.75, abs=0.06)
    controls = [c.outline.features_TF[0, columns["controls"]] for c in drawn]
    assert max(int((one > 0).sum()) for one in controls) == 2
    validated = made._conditions(record, Moment(0, 0, 0, training=False))
    assert all(
        validated.outline.features_TF[:, columns[name]].any() for name in ("melody", "controls")
    )


def test_misworded_songs_have_words_of_others_and_all_controls_of_their_own(
    shards: Shards,
) -> None:
    record = known_song(shards, full_song(shards), style="rock")
    own = record["fragments"]

    def drawn(share: float, record: SongRecord = record) -> list[tuple[np.ndarray, int]]:
        odds = {"dit__drop_controls": 1.0, "dit__whole_description": 0.0}
        made = task(shards, dit__misworded=share, **odds, **COMPOSED)
        columns = outline_columns(made.config.dit)["controls"]
        return [
            (c.fragments, int((c.outline.features_TF[0, columns] > 0).sum()))
            for c in (made._conditions(record, Moment(0, 0, step)) for step in range(200))
            if len(c.fragments)
        ]

    def is_own(fragments: np.ndarray) -> bool:
        return all((row == own).all(1).any() for row in fragments)

    own_words, told = drawn(0.0), drawn(0.5)
    assert all(is_own(fragments) and not said for fragments, said in own_words)
    assert len(told) == len(own_words), "a song without a description lends none"
    others = [said for fragments, said in told if not is_own(fragments)]
    # every song of the fixture may be drawn, the song itself included
    assert len(others) / len(told) == pytest.approx(0.5, abs=0.15)
    assert set(others) == {3}
    # nothing would say that a style without a column goes before another song's words
    unknown = known_song(shards, full_song(shards))
    assert all(is_own(fragments) for fragments, _ in drawn(1.0, unknown))
    validated = task(shards, dit__misworded=1.0, **COMPOSED)
    assert is_own(validated._conditions(record, Moment(0, 0, 0, training=False)).fragments)


def test_what_a_reference_lets_hear_is_left_out_of_the_plan(shards: Shards) -> None:
    made = task(
        shards, dit__drop_referenced=1.0, dit__drop_melody=0.0, dit__drop_tempo=0.0, **COMPOSED
    )
    known = outline_of(known_song(shards, full_song(shards)).metadata)
    moment = Moment(0, 0, 0)
    whole = Outline(90.0, "C major", None, (TimedChord(0.0, 1.0, chord_symbol("C")),))
    heard = {
        kind: made._composed(whole, known, moment, "x", kind)
        for kind in ("nothing", "drums", "chords", "vocals")
    }
    assert heard["nothing"].bpm and heard["nothing"].melody and heard["nothing"].key
    drums, chords = heard["drums"], heard["chords"]
    assert drums.bpm is None and not drums.melody and not drums.chords and drums.key
    assert not chords.chords and chords.key is None and not chords.melody and chords.bpm
    assert not heard["vocals"].melody and heard["vocals"].chords


def test_edits_give_frames_without_noise_and_learn_the_others(shards: Shards) -> None:
    made = task(shards, dit__edit=1.0, **COMPOSED)
    loss = made.build()["model"].train()
    batch = made.load([0, 1, 2], Moment(0, 0, 0))
    held_T, inputs = batch.inputs.held_T, batch.inputs
    assert held_T is not None and held_T.any() and not held_T.all()
    column = outline_columns(made.config.dit)["edits"].start
    assert torch.equal(inputs.clean.outline.features_TF[:, column] > 0, held_T)
    seen = []
    made.dit.register_forward_pre_hook(lambda _, given: seen.append(given[0].latents_TC))
    first, _ = loss(inputs)
    clean = inputs.clean.latents_TC
    assert torch.equal(seen[0][held_T], clean[held_T])
    assert not torch.isclose(seen[0][~held_T], clean[~held_T]).any(1).all()
    # the noise of a given frame is neither seen nor asked for
    noise = torch.where(held_T[:, None], torch.randn(clean.shape), inputs.noise_TC)
    again, _ = loss(dataclasses.replace(inputs, noise_TC=noise))
    assert torch.allclose(first, again)
    assert made.load([0, 1, 2], Moment(0, 0, 0, training=False)).inputs.held_T is None


def test_kinds_of_edits_leave_something_and_give_something() -> None:
    times = np.array([[0.0, 0.5], [0.5, 1.0], [-1.0, -1.0], [2.0, 3.0]])
    shapes = set()
    for seed in range(200):
        held = edited_frames(64, times, 10.0, Random(seed))
        assert held.any() and not held.all()
        shapes.add((bool(held[0]), bool(held[-1])))
    assert shapes >= {(True, True), (True, False), (False, True)}
    assert edited_frames(1, times[:0], 10.0, Random(1)).shape == (1,)


def test_training_goes_on_from_weights_without_the_new_columns(
    shards: Shards, tmp_path: Path
) -> None:
    narrow = task(shards, model_overrides__dit__outline=True)
    narrow.build()
    torch.nn.init.normal_(narrow.dit.outline_in.weight)
    save_config(narrow.config, tmp_path)
    save_part("dit", narrow.dit, tmp_path)
    wide = task(shards, init=str(tmp_path), **COMPOSED)
    wide.build()
    old, new = narrow.dit.outline_in.weight, wide.dit.outline_in.weight
    assert torch.equal(new[:, : old.shape[1]], old) and not new[:, old.shape[1] :].any()
    with pytest.raises(ConfigError, match="outline"):
        task(shards, init=str(tmp_path), model_overrides__dit__outline=False).build()
