"""Shards: what goes in comes out, from any number of writers, after any interruption; damage is
noticed and named.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mudit_engine.errors import InputError
from mudit_engine.training.dataset.shard_files import Field
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import Shards, build_index

FIELDS = {"latents": Field("float16", 4), "phonemes": Field("int32")}


def song(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {
        "latents": rng.normal(size=(3 + number % 5, 4)).astype(np.float16),
        "phonemes": rng.integers(0, 99, number % 4).astype(np.int32),
    }


def write(folder: Path, numbers: range, *, writer: int = 0, shard_bytes: int = 200) -> None:
    with ShardWriter(folder, FIELDS, writer=writer, shard_bytes=shard_bytes) as out:
        for number in numbers:
            if f"歌-{number}" not in out:
                out.add(
                    f"歌-{number}",
                    song(number),
                    metadata={"bpm": number, "title": "月亮"},
                    split="test" if number % 7 == 0 else "train",
                )


def contents(folder: Path) -> dict[str, tuple[str, str, bytes, bytes]]:
    shards = Shards(folder)
    records = [shards.read(number) for number in range(len(shards))]
    return {
        r.id: (
            r.split,
            json.dumps(r.metadata, sort_keys=True),
            r["latents"].tobytes(),
            r["phonemes"].tobytes(),
        )
        for r in records
    }


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path, range(20))
    shards = Shards(tmp_path)
    assert len(shards) == 20 and len(shards.files) > 3
    assert sorted(shards.id(n) for n in range(20)) == [shards.id(n) for n in range(20)]
    for number in (19, 0, 7):
        record = shards.read(number)
        source = int(record.id.split("-")[1])
        for name, array in song(source).items():
            assert record[name].dtype == array.dtype and np.array_equal(record[name], array)
            assert not record[name].flags.writeable
        assert record.metadata == {"bpm": source, "title": "月亮", "split": record.split}
        assert shards.rows("latents")[number] == 3 + source % 5
    assert {shards.id(n) for n in shards.numbers("test")} == {"歌-0", "歌-7", "歌-14"}
    assert set(shards.read(3, fields=["phonemes"]).arrays) == {"phonemes"}


def test_few_open_files(tmp_path: Path) -> None:
    write(tmp_path, range(20), shard_bytes=1)
    shards = Shards(tmp_path, open_files=2)
    assert len({shards.read(n).id for n in range(20)}) == 20
    assert len(shards._maps) == 2


def test_writers_share_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "one", range(12))
    for writer in (0, 1, 2):
        write(tmp_path / "many", range(writer * 4, writer * 4 + 4), writer=writer)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_interrupted_writer_resumes(tmp_path: Path) -> None:
    write(tmp_path / "whole", range(12))
    with (
        pytest.raises(KeyboardInterrupt),
        ShardWriter(tmp_path / "cut", FIELDS, shard_bytes=200) as out,
    ):
        for number in range(12):
            if number == 5:
                raise KeyboardInterrupt
            out.add(
                f"歌-{number}",
                song(number),
                metadata={"bpm": number, "title": "月亮"},
                split="test" if number % 7 == 0 else "train",
            )
    assert not (tmp_path / "cut" / "index.safetensors").exists()
    with ShardWriter(tmp_path / "cut", FIELDS) as out:
        assert len(out) == 5
    write(tmp_path / "cut", range(12))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_shard_without_its_note_is_written_again(tmp_path: Path) -> None:
    """A kill between a shard and its note, or in the middle of a shard, costs the songs of that
    shard and nothing else.
    """
    write(tmp_path, range(12))
    before = contents(tmp_path)
    (tmp_path / "000-00001.json").unlink()
    with (tmp_path / "000-00002.safetensors").open("r+b") as file:
        file.truncate(100)
    write(tmp_path, range(12))
    assert contents(tmp_path) == before


def test_same_song_twice_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, FIELDS) as out:
        out.add("a", song(1))
        with pytest.raises(InputError, match="'a' is already"):
            out.add("a", song(1))
    with (
        pytest.raises(InputError, match="'a' is in .* more than once"),
        ShardWriter(tmp_path, FIELDS, writer=1) as out,
    ):
        out._done.clear()  # two processes that do not know of each other
        out.add("a", song(1))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"latents": np.full((2, 4), np.nan)}, "NaN or infinity"),
        ({"latents": np.full((2, 4), 1e6)}, "NaN or infinity"),  # overflows float16
        ({"latents": np.zeros((2, 5))}, r"shape \(2, 5\)"),
        ({"latents": np.zeros((2, 4)), "phonemes": np.zeros((2, 1))}, r"phonemes has shape"),
        ({"latent": np.zeros((2, 4))}, "takes"),
    ],
    ids=["nan", "overflow", "width", "second-field", "unknown"],
)
def test_wrong_songs_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with ShardWriter(tmp_path, FIELDS) as out:
        out.add("good", song(3))
        with pytest.raises(InputError, match=message):
            out.add("bad", arrays)
        out.add("bad", song(4))  # a refused song leaves nothing behind
    assert set(contents(tmp_path)) == {"good", "bad"}


def test_other_fields_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    with pytest.raises(InputError, match="give another folder"):
        ShardWriter(tmp_path, {"latents": Field("float16", 8)})


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(12))
    path = tmp_path / "000-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert [name for name, good in Shards(tmp_path).verify() if not good] == [path.name]
    path.write_bytes(data[:-1])
    with pytest.raises(
        InputError, match=f"{path.name}' has {len(data) - 1} bytes instead of {len(data)}"
    ):
        Shards(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}' is missing"):
        Shards(tmp_path)


def test_digest_names_the_data(tmp_path: Path) -> None:
    write(tmp_path / "a", range(8))
    write(tmp_path / "b", range(8))
    write(tmp_path / "c", range(9))
    digests = [Shards(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data set"):
        Shards(tmp_path)
    with pytest.raises(InputError, match="no shard"):
        build_index(tmp_path)
