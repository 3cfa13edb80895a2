"""Songs that change another: what stays is bit for bit what it was, and what a request inherits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from micro_deployment import micro_config, save_model
from mudit_engine.cli.main import run
from mudit_engine.editing import open_edit
from mudit_engine.errors import InputError
from mudit_engine.pipeline import Song, SongPipeline
from mudit_engine.request import SongRequest, repaint_spans
from mudit_engine.runtime.graph_denoiser import GraphDenoiser
from mudit_engine.runtime.saved_song import freeze, thaw

pytestmark = pytest.mark.usefixtures("one_thread")
LYRICS = "[verse]\n月亮升起来\n[chorus]\n我们一起唱\n"


@pytest.fixture(scope="module")
def editor(tmp_path_factory) -> Path:
    """A model that takes all that an outline can say, edits too, with random weights."""
    switches = dict.fromkeys(("outline", "melody", "arrangement", "controls", "edits"), True)
    return save_model(tmp_path_factory.mktemp("editor"), micro_config(blocks=1, **switches))


@pytest.fixture(scope="module")
def pipeline(editor: Path) -> SongPipeline:
    return SongPipeline.from_pretrained(editor, dtype=torch.float32)


@pytest.fixture(scope="module")
def song(pipeline: SongPipeline, tmp_path_factory) -> tuple[Song, Path]:
    """A song of the model, with its latents kept."""
    request = SongRequest(description="钢琴，BPM 120", lyrics=LYRICS, seconds=12, seed=4)
    [made] = pipeline.generate([request])
    path = tmp_path_factory.mktemp("song") / "song.wav"
    made.save(path, latents=True)
    return made, path


def edited(pipeline: SongPipeline, **fields) -> Song:
    [made] = pipeline.generate([SongRequest(**fields)])
    return made


def made_anew(pipeline: SongPipeline, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Seconds of the frames that differ."""
    rate = pipeline.config.vae.frame_rate
    shared = min(len(before), len(after))
    differs = np.flatnonzero((before[:shared] != after[:shared]).any(axis=1))
    return (differs + 0.5) / rate


def test_a_repainted_span_changes_no_other_frame(pipeline, song):
    made, path = song
    again = edited(pipeline, edit=path, repaint="3-5, 8-9.5", seed=9)
    assert again.latents.shape == made.latents.shape
    places = made_anew(pipeline, made.latents, again.latents)
    inside = ((places >= 3) & (places < 5)) | ((places >= 8) & (places < 9.5))
    assert inside.all() and len(places) > 0.9 * 3.5 * pipeline.config.vae.frame_rate


def test_the_sidecar_names_the_same_song(pipeline, song):
    _, path = song
    from_audio = edited(pipeline, edit=path, repaint="3-5", seed=9)
    from_sidecar = edited(pipeline, edit=path.with_suffix(".json"), repaint="3-5", seed=9)
    assert np.array_equal(from_audio.latents, from_sidecar.latents)
    assert from_audio.info["edited"]["kept_latents"] is True


def test_the_frames_that_stay_are_heard_by_those_that_are_made(pipeline, song, editor):
    """Held frames go into the network clean and marked: the span is not what it would be alone."""
    made, path = song
    again = edited(pipeline, edit=path, repaint="3-5", seed=9)
    [alone] = pipeline.generate(
        [SongRequest(description="钢琴，BPM 120", lyrics=LYRICS, seconds=12, seed=9)]
    )
    rate = pipeline.config.vae.frame_rate
    span = slice(int(3 * rate) + 1, int(5 * rate) - 1)
    assert not np.allclose(again.latents[span], alone.latents[span])
    assert not np.allclose(again.latents[span], made.latents[span])


def test_alone_and_in_a_batch_an_edit_is_the_same(pipeline, song):
    _, path = song
    change = SongRequest(edit=path, repaint="3-5", seed=9)
    other = SongRequest(description="慢歌", seconds=7, seed=1)
    [alone] = pipeline.generate([change])
    batch = pipeline.generate([other, change])
    assert np.allclose(batch[1].latents, alone.latents, atol=1e-5)
    assert np.array_equal(batch[0].latents, pipeline.generate([other])[0].latents)


def test_an_edit_that_was_stopped_goes_on(pipeline, song):
    _, path = song
    inputs = pipeline.reader.inputs(pipeline.reader.read(SongRequest(edit=path, repaint="3-5")))
    whole, half = (pipeline.runtime.prepare(inputs) for _ in range(2))
    pipeline.runtime.step([half])
    again = pipeline.runtime.prepare(inputs)
    thaw(again, freeze(half))
    for state in (whole, again):
        while not state.done:
            pipeline.runtime.step([state])
    assert torch.equal(whole.x_TC, again.x_TC)


def test_an_extended_song_keeps_its_bars_and_plays_on(pipeline, song):
    made, path = song
    longer = edited(pipeline, edit=path, extend=4, seed=9)
    assert longer.info["request"]["seconds"] == 16.0 and longer.seconds == 16.0
    places = made_anew(pipeline, made.latents, longer.latents)
    # five bars of two seconds stay, without the tail in which the song ended
    assert places.min() >= 10.0 - 1e-6
    plan, before = longer.info["outline"], made.info["outline"]
    assert plan["bpm"] == before["bpm"] and plan["key"] == before["key"]
    assert [note for note in plan["melody"] if note[0] < 10] == [
        note for note in before["melody"] if note[0] < 10
    ]
    assert [one["ends"] for one in plan["arrangement"]].count(True) == 1
    assert plan["arrangement"][-1]["ends"] and plan["arrangement"][-1]["end"] > 14
    ends = [one["end"] for one in plan["arrangement"]]
    assert ends == sorted(ends)


def test_a_continued_song_begins_with_the_other(pipeline, song):
    made, path = song
    longer = edited(
        pipeline,
        edit=path,
        lyrics=LYRICS + "[verse]\n风吹过山岗\n[chorus]\n我们一起唱\n",
        seconds=19,
    )
    assert longer.seconds == 19.0
    assert made_anew(pipeline, made.latents, longer.latents).min() >= 10.0 - 1e-6
    assert longer.info["outline"]["bpm"] == made.info["outline"]["bpm"]


def test_an_edit_of_an_edit_keeps_the_plan(pipeline, song, tmp_path):
    made, path = song
    first = edited(pipeline, edit=path, repaint="3-5", seed=9)
    first.save(tmp_path / "first.wav", latents=True)
    second = edited(pipeline, edit=tmp_path / "first.wav", repaint="6-7", seed=10)
    assert second.info["outline"] == first.info["outline"] == made.info["outline"]
    assert second.info["edited"]["plan_seed"] == 4


def test_other_words_are_sung_in_the_span(pipeline, song):
    made, path = song
    words = LYRICS.replace("月亮升起来", "星星落下去")
    again = edited(pipeline, edit=path, repaint="0-6", lyrics=words, seed=9)
    assert again.info["request"]["lyrics"] == words
    assert again.info["request"]["description"] == made.info["request"]["description"]


def test_any_audio_is_encoded(pipeline, tmp_path):
    rate = pipeline.config.vae.sample_rate
    wave = 0.3 * np.sin(np.arange(6 * rate) * 0.1)
    soundfile.write(tmp_path / "x.wav", wave, rate)
    longer = edited(pipeline, edit=tmp_path / "x.wav", description="钢琴", seconds=9, seed=2)
    known = pipeline.reader.encode_reference(tmp_path / "x.wav", max_frames=10_000)
    places = made_anew(pipeline, known.numpy(), longer.latents)
    assert not len(places) or places.min() >= 6 - 1 / pipeline.config.vae.frame_rate
    assert "nothing is known of 'x.wav' but its sound" in " ".join(longer.info["notes"])


def test_audio_is_encoded_at_the_level_that_it_was_decoded_to(pipeline, song, tmp_path):
    made, _ = song
    for name, target in (("quiet", -30.0), ("as-decoded", None)):
        made.save(tmp_path / f"{name}.wav", loudness=target)
    found = {}
    for name in ("quiet", "as-decoded"):
        edit = open_edit(SongRequest(edit=tmp_path / f"{name}.wav", repaint="3-5"))
        assert (edit.level == 1.0) is (name == "as-decoded")
        found[name] = pipeline.reader.encode_reference(
            edit.audio, max_frames=10_000, level=edit.level
        )[: -math.ceil(1.5 * pipeline.config.vae.frame_rate)]  # the end of one has been faded
    spread = found["as-decoded"].std()
    assert (found["quiet"] - found["as-decoded"]).abs().mean() < 0.01 * spread
    kept = len(found["quiet"])
    loud = pipeline.reader.encode_reference(tmp_path / "quiet.wav", max_frames=kept)
    assert (loud - found["as-decoded"]).abs().mean() > 0.03 * spread


def test_latents_of_another_codec_are_not_taken(pipeline, song, tmp_path):
    from dataclasses import replace

    from mudit_engine.models.saved_latents import load_latents, save_latents

    other = pipeline.config.vae.model_copy(update={"n_fft": pipeline.config.vae.n_fft * 2})
    save_latents(tmp_path / "a.safetensors", song[0].latents, other)
    assert load_latents(tmp_path / "a.safetensors", pipeline.config.vae) is None
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"b\.safetensors' holds no latents"):
        load_latents(tmp_path / "b.safetensors", pipeline.config.vae)
    edit = replace(open_edit(SongRequest(edit=song[1], repaint="1-2")), latents=None)
    assert edit.plan_seed == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"repaint": "1-2"}, "repaint changes a song: name it with edit"),
        ({"extend": 3.0}, "extend changes a song"),
        ({"edit": "a.wav", "repaint": "5"}, "write seconds as 30-45"),
        ({"edit": "a.wav", "repaint": "5-3"}, "ends before it begins"),
        ({"edit": "a.wav", "repaint": "1-4,3-5"}, "3-5 ends before it begins, or before the one"),
        ({"edit": "a.wav", "repaint": 5}, "repaint 5 (int) is of a wrong type"),
        ({"edit": "a.wav", "extend": 0.2}, "extend=0.2 is too short"),
        ({"edit": "a.wav", "extend": float("inf")}, "extend=inf is not finite"),
        ({"edit": "a.wav", "extend": "x"}, "extend 'x' is of a wrong type"),
        ({"edit": 5, "extend": 3}, "edit 5 (int) is of a wrong type"),
    ],
)
def test_impossible_edits_are_refused(fields, said):
    with pytest.raises(InputError) as error:
        SongRequest(description="钢琴", **fields)
    assert said in str(error.value)


def test_spans_are_read_in_order():
    assert repaint_spans(" 0-1.5,2 - 3") == ((0.0, 1.5), (2.0, 3.0))


def test_files_and_spans_that_do_not_fit_are_named(pipeline, song, tmp_path):
    _, path = song
    with pytest.raises(InputError, match="is 12 s long"):
        pipeline.check(SongRequest(edit=path, repaint="3-15"))
    with pytest.raises(InputError, match=r"no audio file '.*none\.wav'"):
        pipeline.check(SongRequest(edit=tmp_path / "none.wav", repaint="3-15"))
    (tmp_path / "x.json").write_text(json.dumps({"request": {}}))
    with pytest.raises(InputError, match="is no sidecar of a song"):
        pipeline.check(SongRequest(edit=tmp_path / "x.json", repaint="3-15"))
    with pytest.raises(InputError, match=r"12 s long and 'song\.wav' is 12 s already"):
        pipeline.check(SongRequest(edit=path, seconds=12))
    with pytest.raises(InputError, match="seconds=9 is given, and the edited song is 12 s long"):
        pipeline.check(SongRequest(edit=path, repaint="1-2", seconds=9))
    with pytest.raises(InputError, match="longer than model"):
        pipeline.check(SongRequest(edit=path, extend=60))


def test_a_model_that_knows_no_edits_refuses_them(song, model):
    other = SongPipeline.from_pretrained(model, dtype=torch.float32)
    with pytest.raises(InputError, match="was not trained on edits"):
        other.check(SongRequest(edit=song[1], repaint="3-5"))


@pytest.mark.parametrize(
    "fields",
    [{"repaint": "3-5"}, {"extend": 3.0}, {"seconds": 18}],
    ids=["repaint", "extend", "continue"],
)
def test_exported_runtimes_refuse_when_a_request_is_read(pipeline, song, fields):
    runtime = GraphDenoiser(pipeline.config.dit, session=None)
    graphs = SongPipeline(pipeline.config, pipeline.vae, pipeline.chinmu, runtime=runtime)
    with pytest.raises(InputError, match="edited songs run with --runtime torch"):
        graphs.reader.read(SongRequest(edit=song[1], **fields))
    assert graphs.reader.read(SongRequest(description="钢琴", seconds=3)).edit is None


def test_the_command_refuses_before_it_exports(editor, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = ["generate", "--model", str(editor), "--runtime", "onnxruntime", "--dry-run"]
    for changes in (["--edit", "a.wav", "--repaint", "2-3"], ["--continue", "a.wav"]):
        assert run([*base, *changes]) == 2
        assert "edited songs run with --runtime torch" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_command_edits_a_song(editor, tmp_path, capsys):
    first, second = tmp_path / "a.wav", tmp_path / "b.wav"
    base = ["generate", "--model", str(editor), "--json"]
    command = [*base, "--description", "钢琴", "--seconds", "6", "--seed", "1", "--latents"]
    assert run([*command, "--out", str(first)]) == 0
    assert first.with_suffix(".safetensors").is_file()
    assert run([*base, "--edit", str(first), "--repaint", "2-3", "--out", str(second)]) == 0
    assert json.loads(second.with_suffix(".json").read_text())["edited"]["kept_latents"]
    assert run([*base, "--edit", str(first), "--extend", "3", "--out", str(second)]) == 0
    assert soundfile.info(second).duration == pytest.approx(9.0, abs=0.01)
    assert run([*base, "--continue", str(first), "--seconds", "8", "--out", str(second)]) == 0
    assert soundfile.info(second).duration == pytest.approx(8.0, abs=0.01)
    capsys.readouterr()
    for wrong, said in (
        (["--edit", str(first)], "say what, with --repaint or --extend"),
        (["--continue", str(first), "--extend", "3"], "leave out extend"),
        (["--edit", str(first), "--continue", str(first), "--extend", "3"], "keep one of them"),
    ):
        assert run([*base, *wrong, "--out", str(second)]) == 2
        assert said in capsys.readouterr().err
