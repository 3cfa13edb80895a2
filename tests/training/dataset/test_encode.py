"""Songs on disk become shards: the same latents, phonemes and vectors that the pipeline would make,
in parts and after interruptions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mudit_engine.audio import save_audio
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import MissingError
from mudit_engine.models.chinmu import ChinMu
from mudit_engine.models.folder import build_part, load_part, save_config, save_part
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.names import USER_TYPES
from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.phonemes import phonemize
from mudit_engine.training.dataset.encode import encode_audio, encode_latents
from mudit_engine.training.dataset.encode_ray import RayJob, encode_on_ray, encode_part
from mudit_engine.training.dataset.shards import LANGUAGES, LEVELS, Shards, build_index
from mudit_engine.training.dataset.sources import SourceSong, open_source

RATE = 8000
VAE = {
    "sample_rate": RATE,
    "channels": 1,
    "n_fft": 256,
    "stft_hop": 64,
    "fold": 4,
    "latent_channels": 8,
    "phase_refinements": 0,
}
VAE |= {"frame_width": 16, "frame_blocks": 1, "latent_width": 16, "latent_blocks": 1}
CHINMU = {
    "text_encoder": "characters",
    "text_width": 32,
    "text_blocks": 1,
    "audio_width": 32,
    "audio_blocks": 1,
    "head_dim": 16,
}
LYRICS = "[verse]\n月亮升起来\n[chorus]\nla la"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    fields = {
        "name": "small",
        "vae": VAE,
        "chinmu": CHINMU,
        "dit": {"latent_channels": 8, "width": 16, "heads": 2},
    }
    config = ModelConfig.model_validate(fields)
    torch.manual_seed(0)
    save_config(config, folder)
    for part in ("vae", "chinmu"):
        save_part(part, build_part(part, config), folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(5):
        save_audio(
            folder / f"{number}.wav",
            torch.randn(1, 9000 + 700 * number, generator=generator) * 0.1,
            RATE,
        )
        rows.append(
            {
                "audio": f"{number}.wav",
                "split": "test" if number == 4 else "train",
                "metadata": {"bpm": 90 + number},
            }
        )
    save_audio(folder / "v.wav", torch.randn(1, 9000, generator=generator) * 0.1, RATE)
    save_audio(folder / "stereo.flac", torch.randn(2, 20000, generator=generator) * 0.1, 2 * RATE)
    rows[0] |= {"lyrics": LYRICS, "stems": {"vocals": "v.wav"}}
    rows[0]["descriptions"] = [
        {"language": "zh", "user": "amateur", "text": "温暖的女声，钢琴"},
        {"language": "en", "user": "professional", "text": "warm piano. slow"},
    ]
    rows[1]["descriptions"] = [{"language": "en", "user": "amateur", "text": "warm piano. slow"}]
    rows += [{"audio": "stereo.flac"}, {"audio": "missing.wav"}]
    path = folder / "songs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    shards = Shards(folder)
    return {
        record.id: {name: record[name].tobytes() for name in shards.fields}
        for record in map(shards.read, range(len(shards)))
    }


def test_audio(manifest: Path, tmp_path: Path) -> None:
    done = encode_audio(open_source(manifest), tmp_path, sample_rate=RATE, channels=1)
    assert (
        done.songs == 6
        and list(done.refused) == ["missing"]
        and "no audio file" in done.refused["missing"]
    )
    shards = Shards(tmp_path)
    assert shards.rows("audio").tolist() == [9000, 9700, 10400, 11100, 11800, 10000], (
        "stereo at twice the rate is mixed and resampled"
    )
    record = shards.read(0)
    assert (
        record.metadata["bpm"] == 90
        and record.metadata["sample_rate"] == RATE
        and record.metadata["seconds"] == 9000 / RATE
    )
    assert (
        record.metadata["descriptions"][0]["user"] == "amateur"
        and "钢琴" in record.metadata["descriptions"][0]["phrase"]
    )
    assert encode_audio(open_source(manifest), tmp_path, sample_rate=RATE, channels=1).skipped == 6


def test_latents(manifest: Path, model: Path, tmp_path: Path) -> None:
    done = encode_latents(open_source(manifest), tmp_path, model=model)
    assert done.songs == 6 and list(done.refused) == ["missing"]
    shards, config = Shards(tmp_path), load_config(model)
    vae, chinmu = (load_part(part, config, model) for part in ("vae", "chinmu"))
    assert isinstance(vae, SpectralVAE) and isinstance(chinmu, ChinMu)
    first, second = shards.read(0), shards.read(1)
    from mudit_engine.audio import load_audio

    with torch.inference_mode():
        expected = vae.normalise(vae.encode(load_audio(manifest.parent / "0.wav")[0][None])[0])[0]
    torch.testing.assert_close(
        torch.from_numpy(first["latents"].astype(np.float32)), expected, rtol=1e-3, atol=1e-3
    )
    assert len(first["latents"]) == -(-9000 // 256) == len(first["stem.vocals"]) and not len(
        second["stem.vocals"]
    )
    assert tuple(first["phonemes"]) == phonemize(parse_lyrics(LYRICS)).ids and not len(
        second["phonemes"]
    )
    assert first.metadata["lyrics"] == LYRICS and shards.numbers("test").tolist() == [4]
    kinds = first["fragment_kinds"]
    assert set(map(tuple, kinds[:, 1:4].tolist())) == {
        (LANGUAGES.index("zh"), USER_TYPES.index("amateur"), 0),
        (LANGUAGES.index("en"), USER_TYPES.index("professional"), 1),
    }
    assert {LEVELS[level] for level in kinds[:, 0]} == {"word", "phrase", "sentence"} and 0 < kinds[
        :, 4
    ].sum() < len(kinds)
    with torch.inference_mode():
        vector = chinmu.encode_text(["温暖的女声，钢琴"])[0]
    torch.testing.assert_close(
        torch.from_numpy(first["fragments"][0].astype(np.float32)), vector, rtol=0, atol=1e-3
    )
    shared = second["fragments"][0]
    assert any(np.array_equal(shared, row) for row in first["fragments"]), "a text has one vector"


def test_what_no_label_says_is_read_of_the_descriptions(
    manifest: Path, model: Path, tmp_path: Path
) -> None:
    """As the engine reads a request in these words; a label goes before it."""
    own = {"voice": "male", "bpm": 120, "mode": "minor"}
    text = "rock with drums, female voice, 90 bpm, in A major"
    rows = [
        {"audio": str(manifest.parent / "0.wav"), "id": name, "descriptions": [text], **more}
        for name, more in {"bare": {}, "labelled": {"metadata": own}}.items()
    ]
    (tmp_path / "songs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encode_latents(open_source(tmp_path / "songs.jsonl"), tmp_path / "out", model=model)
    shards = Shards(tmp_path / "out")
    bare, labelled = (shards.read(number).metadata for number in range(2))
    read = {"drums": True, "voice": "female", "style": "rock", "bpm": 90, "key": 9, "mode": "major"}
    assert read.items() <= bare.items() and bare["read"] == sorted(read)
    assert {**own, "drums": True, "style": "rock"}.items() <= labelled.items()
    assert labelled["read"] == ["drums", "style"] and "key" not in labelled


def test_parts_and_interruption(manifest: Path, model: Path, tmp_path: Path) -> None:
    encode_latents(open_source(manifest), tmp_path / "one", model=model)
    for number in (1, 0):
        encode_latents(open_source(manifest), tmp_path / "parts", model=model, part=(number, 2))
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")

    def stop(song_id: str, seconds: float) -> None:
        if song_id == "2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_latents(open_source(manifest), tmp_path / "cut", model=model, on_song=stop)
    done = encode_latents(open_source(manifest), tmp_path / "cut", model=model)
    assert done.skipped == 3 and contents(tmp_path / "cut") == contents(tmp_path / "one")


def test_syllable_times_follow_the_phonemes(manifest: Path, model: Path, tmp_path: Path) -> None:
    sequence = phonemize(parse_lyrics(LYRICS))
    times = tuple((0.1 * n, 0.1 * n + 0.09) for n in range(sequence.syllables))
    audio = manifest.parent / "0.wav"
    songs = [
        SourceSong("timed", audio, lyrics=LYRICS, syllables=times),
        SourceSong("miscounted", audio, lyrics=LYRICS, syllables=times[:-1]),
    ]
    encode_latents(songs, tmp_path, model=model, descriptions=False)
    shards = Shards(tmp_path)
    assert [len(shards.read(number)["phoneme_times"]) for number in (0, 1)] == [0, len(sequence)]
    timed = shards.read(1)["phoneme_times"]
    for token, syllable, (start, end) in zip(
        sequence.tokens, sequence.syllable_of, timed.tolist(), strict=True
    ):
        assert (start, end) == (pytest.approx(times[syllable]) if syllable >= 0 else (-1, -1)), (
            token
        )


def assert_same_songs(one: Shards, other: Shards) -> None:
    assert len(one) == len(other)
    for number in range(len(one)):
        a, b = one.read(number), other.read(number)
        assert a.id == b.id and a.metadata == b.metadata and a.split == b.split
        assert all(np.array_equal(a[name], b[name]) for name in one.fields)


@pytest.mark.parametrize("latents", [False, True], ids=["audio", "latents"])
def test_parts_of_a_ray_job(manifest: Path, model: Path, tmp_path: Path, latents: bool) -> None:
    """What a worker does with its row: shards without an index, counts that add up, errors as
    values.
    """
    if latents:
        encode_latents(open_source(manifest), tmp_path / "one", model=model)
    else:
        encode_audio(open_source(manifest), tmp_path / "one", sample_rate=RATE, channels=1)
    job = RayJob(
        manifest, tmp_path / "parts", model if latents else None, sample_rate=RATE, channels=1
    )
    rows = [encode_part({"part": part, "parts": 3}, job) for part in range(3)]
    assert not (tmp_path / "parts" / "index.safetensors").exists() and not any(
        row["error"] for row in rows
    )
    done = [json.loads(row["done"]) for row in rows]
    build_index(tmp_path / "parts")
    one = Shards(tmp_path / "one")
    assert (
        sum(part["songs"] for part in done) == len(one)
        and sum(len(part["refused"]) for part in done) == 1
    )
    assert_same_songs(one, Shards(tmp_path / "parts"))
    again = json.loads(encode_part({"part": 1, "parts": 3}, job)["done"])
    assert again["songs"] == 0 and again["skipped"] == done[1]["songs"]
    lost = encode_part(
        {"part": 0, "parts": 1}, RayJob(manifest, tmp_path / "none", tmp_path / "no-model")
    )
    assert "no-model" in lost["error"]


def test_ray_that_is_not_installed_is_named(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mudit_engine.availability.available", lambda module: False)
    with pytest.raises(MissingError, match="--ray needs the package 'ray', which is not installed"):
        encode_on_ray(RayJob(manifest, tmp_path))


@pytest.mark.slow
def test_ray_writes_what_one_process_writes(manifest: Path, tmp_path: Path) -> None:
    """The same songs in the same data set, in parts dealt out by Ray Data; a second run finds
    everything there.
    """
    pytest.importorskip("ray")
    encode_audio(open_source(manifest), tmp_path / "one", sample_rate=RATE, channels=1)
    job = RayJob(manifest, tmp_path / "ray", sample_rate=RATE, channels=1)
    done = encode_on_ray(job, parts=3, workers=2)
    one = Shards(tmp_path / "one")
    assert done.songs == len(one) and len(done.refused) == 1
    assert_same_songs(one, Shards(tmp_path / "ray"))
    again = encode_on_ray(job, parts=3, workers=2)
    assert again.songs == 0 and again.skipped == len(one)
