"""The TensorRT runtime without a GPU: its launches, buffers and captured graph, on engines that are
the exported modules themselves.

What is checked here is everything but TensorRT and CUDA: sizes within the profiles, order, what
each launch reads and writes, no wait and no allocation inside a graph, and that whole songs come
out as PyTorch makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from micro_deployment import micro_config, save_model
from mudit_engine.cli.main import run
from mudit_engine.config import ModelConfig, SamplerConfig
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import InputError, ModelError
from mudit_engine.export.graphs import graphs
from mudit_engine.models.folder import load_part
from mudit_engine.models.outline import OutlineRows, outline_rows
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.runtime.buckets import (
    CHUNK,
    CHUNK_STEP,
    Bucket,
    default_buckets,
    parse_buckets,
    profiles,
)
from mudit_engine.runtime.decode import TorchDecoder, decode_chunked
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, denoise
from mudit_engine.runtime.graph_denoiser import text_inputs
from mudit_engine.runtime.limits import SongShape
from mudit_engine.runtime.manifest import files_of
from mudit_engine.runtime.trt_denoiser import (
    ENGINES,
    TEXT_ENGINE,
    NoText,
    TrtDecoder,
    TrtDenoiser,
    pick_target,
)
from mudit_engine.runtime.trt_device import RuntimeCache
from mudit_engine.runtime.trt_program import chunk_of, chunks_of, plan_chunks
from mudit_engine.text.harmony import TimedChord, chord_symbol
from mudit_engine.text.outline import Outline


class FakeDevice:
    """Runs launches at once, or records them while a graph is captured; refuses what a stream
    capture would refuse.
    """

    def __init__(
        self, modules: Mapping[str, Any], config: ModelConfig, buckets: tuple[Bucket, ...]
    ) -> None:
        self.modules, self.profiles = (
            modules,
            {name: profiles(config, buckets, name) for name in modules},
        )
        self.recorded: list[Callable[[], object]] | None = None
        self.owned: set[int] = set()
        self.log: list[str] = []
        self.waits = self.captures = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert self.recorded is None, "allocated while capturing"
        tensor = torch.full(shape, float("nan") if dtype.is_floating_point else 77).to(dtype)
        self.owned.add(tensor.untyped_storage().data_ptr())
        self.alive = [*getattr(self, "alive", []), tensor]
        return tensor

    pinned = empty

    def run(self, work: Callable[[], object]) -> None:
        self._do(work)

    def launch(
        self, graph: str, profile: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        limits = self.profiles[graph][profile]
        assert set(limits) == set(inputs)
        for name, tensor in (*inputs.items(), *outputs.items()):
            assert tensor.is_contiguous(), f"{graph}: {name}"
            assert tensor.untyped_storage().data_ptr() in self.owned, (
                f"{graph}: {name} is no persistent buffer"
            )
        for name, tensor in inputs.items():
            smallest, _, largest = limits[name]
            inside = all(
                a <= size <= b for a, size, b in zip(smallest, tensor.shape, largest, strict=True)
            )
            assert inside, f"{graph}: {name} {tensor.shape}"
            assert graph != "chinmu_text" or tuple(tensor.shape) == tuple(limits[name][1]), (
                "the builder tunes for another shape"
            )

        def work() -> None:
            self.log.append(graph)
            results = self.modules[graph](**inputs)
            results = results if isinstance(results, tuple) else (results,)
            for target, result in zip(outputs.values(), results, strict=True):
                target.copy_(result.reshape(target.shape))

        self._do(work)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded = recorded = []
        self.captures += 1
        work()
        self.recorded = None

        def replay() -> None:
            with torch.inference_mode():
                for one in recorded:
                    one()

        return replay

    def wait(self) -> None:
        assert self.recorded is None, "waited while capturing"
        self.waits += 1

    def _do(self, work: Callable[[], object]) -> None:
        if self.recorded is not None:
            self.recorded.append(work)
        else:
            with torch.inference_mode():
                work()


class Setting:
    """A model in PyTorch and the same one behind the fake device."""

    def __init__(self, folder: Path, *, reads_text: bool = False, **dit: Any) -> None:
        self.reads_text = reads_text
        self.config = micro_config(**dit)
        save_model(folder, self.config)
        self.dit: Any
        self.dit, self.vae, self.chinmu = (
            load_part(part, self.config, folder).eval() for part in ("dit", "vae", "chinmu")
        )
        made = {
            name: make()
            for name, make in graphs(self.dit, self.vae, self.chinmu).items()
            if reads_text or name != "chinmu_text"
        }  # type: ignore[arg-type]
        self.buckets = parse_buckets(self.config, ["6:64", "20"])
        self.device = FakeDevice(
            {name: graph.module.eval() for name, graph in made.items()}, self.config, self.buckets
        )
        self.runtime = TrtDenoiser(
            self.config,
            self.device,
            self.buckets,
            self.vae.receptive_field,
            torch.float32,
            reads_text,
        )  # type: ignore[arg-type]

    def song(
        self,
        frames: int = 70,
        *,
        tokens: int = 9,
        reference: int = 0,
        seed: int = 3,
        **sampler: Any,
    ) -> SongInputs:
        draw = torch.Generator().manual_seed(seed)
        c = self.config.dit
        outline: OutlineRows | None = None
        if c.outline:
            rate, chords = self.config.vae.frame_rate, [TimedChord(0.5, 3.0, chord_symbol("Am7"))]
            outline = outline_rows(
                Outline(100, "A minor", chords=chords),
                frames=frames,
                frame_rate=rate,
                tokens=tokens,
            )
        texts, negative_texts = ("温暖的女声", f"piano, {seed * 30} BPM"), (f"noise {seed}",)
        descriptions, negative = (
            self.chinmu.encode_text(one).detach() for one in (texts, negative_texts)
        )
        values = {"name": "ode-euler", "steps": 3, "guidance": 2.0, **sampler}
        return SongInputs(
            frames=frames,
            seconds=frames / self.config.vae.frame_rate,
            table=sampler_table(self.config.path, SamplerConfig.model_validate(values)),
            seed=seed,
            descriptions=descriptions,
            negative=negative,
            lyric_ids=torch.randint(0, 100, (tokens,), generator=draw).tolist(),
            user_type="amateur",
            reference=torch.randn(reference, c.latent_channels, generator=draw)
            if reference
            else None,
            reference_kind="vocals",
            outline=outline,
            texts=texts,
            negative_texts=negative_texts,
        )

    def expected(self, song: SongInputs) -> tuple[Tensor, Tensor]:
        runtime = Denoiser(self.dit)
        (latents,) = denoise(runtime, [runtime.prepare(song)])
        with torch.inference_mode():
            audio = decode_chunked(TorchDecoder(self.vae), latents, chunk_frames=song.frames)  # type: ignore[arg-type]
        return latents, (audio.clamp(-1, 1) * 32767).round().to(torch.int16)

    def check(self, song: SongInputs) -> None:
        given = song
        if self.reads_text:  # the vectors are not looked at
            nothing = {
                name: torch.full_like(getattr(song, name), torch.nan)
                for name in ("descriptions", "negative")
            }
            given = replace(song, **nothing)  # type: ignore[arg-type]
        latents, pcm = self.runtime.render(given)
        wanted, wanted_pcm = self.expected(song)
        assert latents.shape == wanted.shape and pcm.shape == wanted_pcm.shape
        assert float((latents - wanted).norm() / wanted.norm()) < 1e-5
        assert int((pcm.int() - wanted_pcm.int()).abs().max()) <= 1
        assert int(wanted_pcm.int().abs().max()) > 100, "silence proves nothing"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("plain"))


MODES: dict[str, dict[str, Any]] = {
    "guided": {},
    "unguided": {"guidance": 1.0},
    "interval": {"guidance_interval": (0.3, 0.8), "steps": 5},
    "noise": {"name": "sde-euler", "steps": 4},
    "2m": {"name": "dpmpp-2m", "steps": 4},
    "heun": {"name": "ode-heun", "steps": 2},
    "reference": {"reference": 40},
    "reference unguided": {"reference": 13, "guidance": 1.0},
    "instrumental": {"tokens": 0},
    "one frame": {"frames": 1},
    "two short chunks": {"frames": 127},
    "full bucket": {"frames": 128, "tokens": 64, "reference": 128},
    "chunks": {"frames": CHUNK + 33},
    "chunks to the end": {"frames": 320, "tokens": 100},
}


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("reading"), reads_text=True, pooled_description=True)


@pytest.mark.parametrize("mode", ["guided", "unguided", "noise", "reference", "instrumental"])
def test_text_is_read_in_the_graph(reading: Setting, mode: str) -> None:
    reading.check(reading.song(**MODES[mode]))


def test_text_in_half_precision_is_nearly_the_towers(reading: Setting) -> None:
    texts = ["温暖的女声", "a very long description of a slow song with piano and strings", "x"]
    graph = graphs(reading.dit, reading.vae, reading.chinmu, precision="bf16")[
        "chinmu_text"
    ]().module.eval()
    with torch.inference_mode():
        wanted = reading.chinmu.encode_text(texts)
        found = graph(
            **text_inputs(
                texts,
                reading.config.chinmu,
                fragments=5,
                length=reading.config.chinmu.max_characters,
            )
        )
    assert found.isfinite().all(), "rows of padding alone"
    assert float((found[:3] - wanted).norm() / wanted.norm()) < 2e-2


def test_a_graph_that_reads_keeps_nothing_of_the_last_text(reading: Setting) -> None:
    songs = [reading.song(seed=seed, steps=4) for seed in (1, 2)]
    said = replace(
        songs[0],
        texts=(),
        negative_texts=(),
        descriptions=songs[0].descriptions[:0],
        negative=songs[0].negative[:0],
    )
    before = reading.device.captures
    for song in (*songs, said, songs[0]):
        reading.check(song)
    assert reading.device.captures == before + 1
    halo = reading.vae.receptive_field
    decodes = chunks_of(chunk_of(songs[0].frames, halo=halo), bucket=128, halo=halo)
    launched = reading.device.log[-(2 + 1 + 2 + 1 + 4 + decodes) :]
    assert launched[:6] == [
        "lyric_kv",
        "chinmu_text",
        "chinmu_text",
        "conditions",
        "conditions",
        "modulation",
    ]
    with pytest.raises(InputError, match="2 descriptions and 1 negative ones, but 0 and 1 texts"):
        reading.runtime.prepare(replace(songs[0], texts=()))


@pytest.mark.parametrize("mode", MODES)
def test_whole_songs_equal_pytorch(plain: Setting, mode: str) -> None:
    plain.check(plain.song(**MODES[mode]))


@pytest.mark.parametrize(
    "dit", [{"outline": True}, {"modulation": "per_block"}, {"pooled_description": True}], ids=str
)
def test_other_networks_too(tmp_path: Path, dit: dict[str, Any]) -> None:
    setting = Setting(tmp_path, **dit)
    setting.check(setting.song(reference=5))
    setting.check(setting.song(tokens=0, guidance=1.0))


def test_a_graph_serves_every_song_of_its_mode_and_keeps_nothing(plain: Setting) -> None:
    before = plain.device.captures
    plain.check(plain.song(frames=120, tokens=60, seed=1, name="ddim", steps=6))
    plain.check(plain.song(frames=66, tokens=2, seed=2, name="ode-euler", steps=6))
    plain.check(plain.song(frames=100, tokens=2, seed=2, name="dpmpp-2m", steps=6))
    assert plain.device.captures == before + 2, "120 and 100 frames are decoded by chunks of 96"
    plain.check(plain.song(frames=300, tokens=90, seed=1, steps=2))
    plain.check(plain.song(frames=270, tokens=1, seed=5, steps=2, name="ddim"))
    assert plain.device.captures == before + 3


def test_what_is_kept_is_within_its_budget(tmp_path: Path) -> None:
    """The longest unused program goes first, and its mode is captured again when it is wanted."""
    setting = Setting(tmp_path)
    runtime = setting.runtime
    songs = [setting.song(seed=1, steps=steps) for steps in (2, 3, 4)]
    setting.check(songs[0])
    [[one]] = [programs for programs in runtime.idle.values() if programs]
    assert one.bytes > 10_000
    runtime.kept_bytes = int(2.5 * one.bytes)
    for song in songs:
        setting.check(song)
    assert sum(map(len, runtime.idle.values())) == 2
    before = setting.device.captures
    setting.check(songs[2])
    assert setting.device.captures == before, "the newest are kept"
    setting.check(songs[0])
    assert setting.device.captures == before + 1
    held = sum(map(len, runtime.idle.values()))
    runtime.release(runtime.prepare(songs[0]))
    assert sum(map(len, runtime.idle.values())) == held, "a song that was stopped gives it back"


def test_one_wait_a_song_and_the_launches_in_order(plain: Setting) -> None:
    song = plain.song(frames=310, steps=3, guidance_interval=(0.3, 0.8))
    plain.runtime.render(song)
    plain.device.log.clear()
    waits = plain.device.waits
    plain.runtime.render(song)
    assert plain.device.waits == waits + 1
    chunks = len(plan_chunks(310, bucket=320, chunk=CHUNK, halo=plain.vae.receptive_field)[0])
    assert plain.device.log == [
        "lyric_kv",
        "conditions",
        "conditions",
        "modulation",
        *["step"] * 3,
        *["vae_decode"] * chunks,
    ]


def test_row_by_row_equals_pytorch_with_songs_side_by_side(plain: Setting) -> None:
    songs = [
        plain.song(frames=50, seed=1),
        plain.song(frames=90, seed=2),
        plain.song(frames=50, seed=3, steps=5),
    ]
    found = denoise(plain.runtime, [plain.runtime.prepare(song) for song in songs])
    for song, latents in zip(songs, found, strict=True):
        wanted = plain.expected(song)[0]
        assert float((latents - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("reads_text", [False, True])
def test_the_pipeline_takes_whole_songs_from_it(
    plain: Setting, reading: Setting, reads_text: bool
) -> None:
    plain = reading if reads_text else plain
    c = plain.config
    sung = SongRequest(description="piano", lyrics="你好世界", seconds=4.0, seed=1)
    requests = [sung, SongRequest(description="drums", seconds=18.0, seed=2)]
    stages: list[tuple[str, int, int]] = []
    decoder, text = (
        TrtDecoder(plain.runtime),
        NoText(c.dit.description_width) if reads_text else None,
    )
    engines = SongPipeline(
        c,
        plain.vae,
        plain.chinmu,
        runtime=plain.runtime,
        decoder=decoder,
        text=text,
        runtime_name="tensorrt",
    )
    found = engines.generate(requests, progress=lambda *report: stages.append(report))
    wanted = SongPipeline(c, plain.vae, plain.chinmu, runtime=Denoiser(plain.dit)).generate(
        requests
    )
    for song, expected in zip(found, wanted, strict=True):
        assert (
            song.audio.shape == expected.audio.shape
            and np.abs(song.audio - expected.audio).max() < 2e-4
        )
        assert song.info["runtime"] == "tensorrt"
    assert [stage for stage, _, _ in stages] == ["denoise", "decode"] * 2
    latents = torch.from_numpy(wanted[1].latents)
    audio = engines.decode(latents, 18.0)
    assert np.abs(audio.numpy() - wanted[1].audio).max() < 2e-4, (
        "chunk by chunk through the decode engine"
    )
    assert TrtDecoder(plain.runtime).chunk_frames + 2 * plain.vae.receptive_field == CHUNK, (
        "a longer halo leaves a shorter chunk"
    )


def test_generate_without_a_gpu_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert (
        run(["generate", "--description", "piano", "--seconds", "2", "--runtime", "tensorrt"]) == 3
    )
    assert "nvidia-smi names none" in capsys.readouterr().err


def test_a_mask_that_is_not_applied_is_noticed(
    plain: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: without the masks padding is heard."""
    step = plain.device.modules["step"]
    real = step.forward
    ones = {"target_mask": True, "other_mask": True}
    monkeypatch.setattr(
        step,
        "forward",
        lambda **inputs: real(**inputs | {n: torch.ones_like(inputs[n]) for n in ones}),
    )
    with pytest.raises(AssertionError):
        plain.check(plain.song())


def test_short_songs_share_programs() -> None:
    for halo in (0, 7, 20):
        chunks = {chunk_of(frames, halo=halo) for frames in range(1, 256)}
        # below it, a song's own length
        shared = {chunk for chunk in chunks if chunk >= 2 * (halo + CHUNK_STEP)}
        assert len(shared) <= 7 and all(chunk % CHUNK_STEP == 0 for chunk in shared)
        assert all(chunk_of(frames, halo=halo) <= frames for frames in range(1, 256))


@pytest.mark.parametrize("frames", [5, 95, 96, 127, 128, 255, 256, 257, 300, 320])
def test_chunks_cover_every_frame_once_with_its_halo(frames: int) -> None:
    chunk = chunk_of(frames, halo=20)
    gather, place = plan_chunks(frames, bucket=320, chunk=chunk, halo=20)
    assert len(gather) == chunks_of(chunk, bucket=320, halo=20), "whatever the song"
    numbers = torch.arange(len(gather))[:, None].expand_as(gather)
    owned = torch.stack((place, gather, numbers), -1).flatten(0, 1).tolist()
    kept = [(frame, source, number) for frame, source, number in owned if frame < 320]
    assert sorted(frame for frame, _, _ in kept) == list(range(frames)) and all(
        frame == source for frame, source, _ in kept
    )
    for frame, _, number in kept:
        first, last = int(gather[number].min()), int(gather[number].max())
        assert (first == 0 or frame - first >= 20) and (last == frames - 1 or last - frame >= 20)


def test_refusals_name_what_to_do(plain: Setting) -> None:
    with pytest.raises(InputError, match=r"400 frames.*fits no engine \(at most 320"):
        plain.runtime.prepare(plain.song(frames=400))
    with pytest.raises(InputError, match="at most 1024; use fewer steps"):
        plain.runtime.prepare(plain.song(name="ode-heun", steps=600))
    # what is known of a request before any network runs is refused then already
    fits = SongShape(frames=300, tokens=64, reference=300, rows=1024, edited=False)
    plain.runtime.check(fits)
    for wrong, said in (
        ({"frames": 400}, "400 frames.*fits no engine"),
        ({"tokens": 4000}, "4000 lyric tokens.*fits no engine"),
        ({"reference": 4000}, "4000 reference frames fits no engine"),
        ({"rows": 1025}, "a sampler of 1025 rows"),
        ({"edited": True}, "edited songs run with --runtime torch"),
    ):
        with pytest.raises(InputError, match=said):
            plain.runtime.check(replace(fits, **wrong))
    with pytest.raises(InputError, match="write SECONDS or SECONDS:TOKENS"):
        parse_buckets(plain.config, ["ten"])
    with pytest.raises(InputError, match="songs of up to 20 s"):
        parse_buckets(plain.config, ["21"])
    with pytest.raises(InputError, match="cannot decode"):
        plan_chunks(300, bucket=320, chunk=100, halo=50)


def test_the_gpu_decides_which_engines_run() -> None:
    whole: dict[str, Any] = {"engines": {name: {} for name in ENGINES}}
    manifest = {
        "engines": {"rtx-portable": whole, "a100": whole, "rtx-sm89": {"engines": {"step": {}}}}
    }
    assert pick_target(manifest, "8.0")[0] == "a100"
    assert pick_target(manifest, "8.9")[0] == "rtx-portable", "an incomplete set is passed over"
    with pytest.raises(ModelError, match=rf"a100 lacks {TEXT_ENGINE}"):
        pick_target(manifest, "8.0", (*ENGINES, TEXT_ENGINE))
    with pytest.raises(ModelError, match=r"capability 9.0.*--target h100"):
        pick_target({"engines": {"a100": {"engines": {"step": {}}}}}, "9.0", gpu="NVIDIA H100 PCIe")
    several = {"engines": {"h100": whole, "sm_90": whole, "h200": whole}}
    assert pick_target(several, "9.0", gpu="NVIDIA H200")[0] == "h200"
    assert pick_target(several, "9.0", gpu="NVIDIA GH200")[0] == "sm_90"


def test_compiled_kernels_are_kept_beside_the_engine(tmp_path: Path) -> None:
    class Cache:
        data = b""

        def deserialize(self, data: bytes) -> None:
            if data.startswith(b"junk"):
                raise RuntimeError("not a cache")
            self.data = data

        def serialize(self) -> bytes:
            return self.data

    class Config:
        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> None:
            self.cache = cache

    home = tmp_path / "engines" / "rtx-sm80"
    first, config = RuntimeCache(home / "runtime.cache"), Config()
    first.give(config)
    config.cache.data = b"kernels"
    first.save()
    again, other = RuntimeCache(home / "runtime.cache"), Config()
    again.give(other)
    assert other.cache.data == b"kernels"
    assert list(files_of(tmp_path)) == [], "it is no part of the deployment"
    (home / "runtime.cache").write_bytes(b"junk")
    RuntimeCache(home / "runtime.cache").give(other)
    assert other.cache.data == b"", "compiled anew"
    (home / "kernels.cache").write_bytes(b"x")
    assert list(files_of(tmp_path)) == ["engines/rtx-sm80/kernels.cache"]


def test_default_buckets_double_up_to_the_longest_song() -> None:
    config = ModelConfig.model_validate({"name": "musit-380m", "max_seconds": 260.0})
    assert [bucket.frames for bucket in default_buckets(config)] == [384, 704, 1408, 2816]
    assert all(bucket.lyrics % 8 == 0 for bucket in default_buckets(config))
