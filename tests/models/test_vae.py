"""The spectral VAE: shapes, the linear start, stereo, gradients, reach, the export form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mudit_engine.config import VaeConfig, load_config
from mudit_engine.models.spectral import magnitude
from mudit_engine.models.vae import SpectralVAE, sample_posterior

SMALL = VaeConfig(
    sample_rate=8000, channels=1, n_fft=128, stft_hop=32, fold=4, latent_channels=16,
    frame_width=24, frame_blocks=1, latent_width=32, latent_blocks=1, kernel_size=5,
)  # fmt: skip
STEREO = SMALL.model_copy(update={"channels": 2})
POWER = SMALL.model_copy(update={"compression": 0.3})


def build(config: VaeConfig, *, trained: bool = True, seed: int = 0) -> SpectralVAE:
    """A VAE whose zero layers hold noise when `trained`, so that every branch counts."""
    torch.manual_seed(seed)
    vae = SpectralVAE(config)
    if trained:
        for layer in (vae.encoder.out, vae.decoder.feature_out, vae.decoder.phase_out):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return vae.eval()


def tune(seconds: float, *, rate: int = 8000, seed: int = 0, pan: float | None = None) -> Tensor:
    """Decaying notes with partials [channels, S]; pan from -1 (left) to 1 (right) gives stereo."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * rate)) / rate
    audio = torch.zeros(len(time))
    for start in range(int(seconds * 4)):
        pitch = 110.0 * 2 ** (float(torch.randint(0, 24, (), generator=generator)) / 12)
        since = time - start / 4
        envelope = torch.where(since >= 0, torch.exp(-5 * since), 0.0)
        audio += (
            envelope
            * sum(torch.sin(2 * math.pi * pitch * n * since) / n for n in (1, 2, 3, 4))
            * 0.15
        )
    return (
        audio[None]
        if pan is None
        else torch.stack((audio * math.sqrt((1 - pan) / 2), audio * math.sqrt((1 + pan) / 2)))
    )


@pytest.mark.parametrize("config", [SMALL, STEREO, POWER], ids=["mono", "stereo", "power"])
@pytest.mark.parametrize("samples", [1, 50, 127, 128, 129, 5000])
def test_encode_pads_to_whole_frames_and_decode_returns_them(
    config: VaeConfig, samples: int
) -> None:
    vae = build(config)
    mean, logvar = vae.encode(0.1 * torch.randn(2, config.channels, samples))
    frames = math.ceil(samples / config.hop)
    assert mean.shape == logvar.shape == (2, frames, config.latent_channels)
    audio = vae.decode(mean)
    assert audio.shape == (2, config.channels, frames * config.hop) and audio.dtype == torch.float32
    assert audio.isfinite().all()


@pytest.mark.parametrize("config", [SMALL, STEREO, POWER], ids=["mono", "stereo", "power"])
def test_silence_comes_back_silent_and_finite(config: VaeConfig) -> None:
    vae = build(config, trained=False)
    mean, _ = vae.encode(torch.zeros(1, config.channels, 4 * config.hop))
    assert mean.isfinite().all() and vae.decode(mean).isfinite().all()


def test_wrong_channel_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \[songs, 1, samples > 0\]"):
        build(SMALL).encode(torch.zeros(1, 2, 512))


@pytest.mark.parametrize("config", [SMALL, STEREO, POWER], ids=["mono", "stereo", "power"])
def test_the_module_starts_as_the_principal_components_of_its_patches(config: VaeConfig) -> None:
    vae = build(config, trained=False)
    songs = [
        tune(6, seed=seed, pan=None if config.channels == 1 else 0.5 * (-1) ** seed)
        for seed in range(8)
    ]
    kept = vae.fit_linear(songs, patches=100_000, emphasis=0.0)
    patches = torch.cat(
        [vae.features(song[None])[0].unflatten(0, (-1, config.fold)).flatten(1) for song in songs]
    )
    centred = patches.double()
    basis = torch.linalg.eigh(centred.T @ centred)[1][:, -config.latent_channels :]
    expected = centred @ basis @ basis.T
    with torch.no_grad():
        mean = torch.cat([vae.encode(song[None])[0] for song in songs], 1)
        got = vae.spectrum(mean).features_NFX[0].unflatten(0, (-1, config.fold)).flatten(1).double()
    error, best = (got - centred).square().sum(), (expected - centred).square().sum()
    assert error <= 1.01 * best, "a randomised basis may lose a hair, no more"
    assert abs(kept - float(1 - error / centred.square().sum())) < 1e-3
    torch.testing.assert_close(
        mean[0].square().mean(0), torch.ones(config.latent_channels), atol=0.02, rtol=0
    )


def test_fit_needs_more_patches_than_channels() -> None:
    with pytest.raises(ValueError, match="cannot fit 16 components: give more audio"):
        build(SMALL).fit_linear([tune(0.2)])


def test_fit_leaves_the_global_generator_alone() -> None:
    vae = build(SMALL)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    vae.fit_linear([tune(4)])
    torch.testing.assert_close(torch.rand(3), expected)


def test_the_linear_start_keeps_the_spectrum_of_what_it_was_fitted_on() -> None:
    vae = build(
        SMALL.model_copy(update={"latent_channels": 64, "phase_refinements": 32}), trained=False
    )
    songs = [tune(8, seed=seed) for seed in range(6)]
    vae.fit_linear(songs)
    with torch.no_grad():
        audio = vae.decode(vae.encode(songs[0][None])[0])[0]
    got, wanted = (
        magnitude(*vae.stft(signal[:, : len(songs[0][0]) // SMALL.hop * SMALL.hop]))
        for signal in (audio, songs[0])
    )
    assert float((got - wanted).norm() / wanted.norm()) < 0.35


@pytest.mark.parametrize("pan", [-1.0, -0.6, 0.0, 0.6, 1.0])
def test_a_panned_tune_stays_on_its_side(pan: float) -> None:
    vae = build(
        STEREO.model_copy(update={"latent_channels": 48, "phase_refinements": 8}), trained=False
    )
    vae.fit_linear(
        [tune(6, seed=seed, pan=p) for seed, p in enumerate((-1.0, -0.6, 0.0, 0.6, 1.0) * 2)]
    )
    song = tune(6, seed=3, pan=pan)
    with torch.no_grad():
        left, right = vae.decode(vae.encode(song[None])[0])[0].square().sum(1)
    got = float((right - left) / (right + left))
    assert abs(got - pan) < 0.2, f"energy balance {got:.2f}"


def test_normalised_latents_are_centred_and_spread_by_what_is_heard_of_them() -> None:
    vae = build(SMALL)
    songs = [tune(6, seed=seed) for seed in range(4)]
    vae.fit_latents(songs)
    mean, logvar = (
        torch.cat(part, 1) for part in zip(*(vae.encode(song[None]) for song in songs), strict=True)
    )
    drawn = vae.normalise(
        sample_posterior(mean, logvar, generator=torch.Generator().manual_seed(0))
    )
    assert drawn.mean((0, 1)).abs().max() < 0.15
    spread = drawn.std((0, 1))
    assert abs(float(spread.square().mean()) - 1) < 0.15
    # a channel in which one standard deviation changes the features four times as much is spread
    # twice as widely
    plain = vae.decoder(mean)[0]
    deviation = torch.diag((mean.var((0, 1)) + logvar.exp().mean((0, 1))).sqrt())
    heard = torch.stack(
        [(vae.decoder(mean + move)[0] - plain).square().mean().sqrt() for move in deviation]
    )
    assert heard.max() > 1.5 * heard.min()
    ratio = spread / heard.sqrt()
    assert float((ratio / ratio.mean() - 1).abs().max()) < 0.2
    torch.testing.assert_close(vae.denormalise(vae.normalise(mean)), mean, atol=1e-5, rtol=1e-5)


def test_without_a_phase_head_refinement_starts_from_each_bins_own_frequency() -> None:
    with_head = build(SMALL.model_copy(update={"phase_refinements": 8}), trained=False)
    without = build(
        SMALL.model_copy(update={"phase_refinements": 8, "phase_head": False}), trained=False
    )
    weights = with_head.state_dict()
    del weights["decoder.phase_out.weight"], weights["decoder.phase_out.bias"]
    without.load_state_dict(weights)
    latents = torch.randn(1, 12, SMALL.latent_channels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(without.decode(latents), with_head.decode(latents))
    for fields in ({"phase_refinements": 0}, {"phase_refinements": 8, "channels": 2}):
        with pytest.raises(ValueError, match="phase_head=false"):
            VaeConfig(**{**SMALL.model_dump(), "phase_head": False, **fields})


@pytest.mark.parametrize("config", [SMALL, STEREO, POWER], ids=["mono", "stereo", "power"])
def test_every_parameter_gets_a_finite_gradient(config: VaeConfig) -> None:
    vae = build(config.model_copy(update={"phase_refinements": 2})).train()
    audio = tune(1) if config.channels == 1 else tune(1, pan=0.3)
    mean, logvar = vae.encode(audio[None])
    decoded = vae.decode(sample_posterior(mean, logvar, generator=torch.Generator().manual_seed(0)))
    decoded.square().mean().backward()
    for name, parameter in vae.named_parameters():
        assert (
            parameter.grad is not None
            and parameter.grad.isfinite().all()
            and parameter.grad.abs().max() > 0
        ), name


def test_at_the_start_the_zero_layers_learn_first() -> None:
    vae = build(SMALL, trained=False).train()
    audio = tune(1)
    mean, _ = vae.encode(audio[None])
    (
        vae.decode(mean) - torch.nn.functional.pad(audio, (0, -audio.shape[1] % SMALL.hop))
    ).abs().mean().backward()
    for layer in (vae.encoder.out, vae.decoder.feature_out, vae.decoder.phase_out):
        assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("refinements", [0, 3])
@pytest.mark.parametrize("config", [SMALL, STEREO], ids=["mono", "stereo"])
def test_the_receptive_field_is_what_a_sample_depends_on(
    config: VaeConfig, refinements: int
) -> None:
    vae = build(config.model_copy(update={"phase_refinements": refinements}))
    frames, at = 41, 20
    latents = torch.randn(
        1, frames, config.latent_channels, generator=torch.Generator().manual_seed(1)
    )
    changed = latents.clone()
    changed[:, at] += 3.0
    with torch.no_grad():
        moved = (vae.decode(latents) - vae.decode(changed)).abs().amax((0, 1)).unflatten(
            0, (frames, config.hop)
        ).amax(1) > 0
    touched = moved.nonzero()[:, 0]
    reach = max(at - int(touched.min()), int(touched.max()) - at)
    assert reach <= vae.receptive_field, "a chunked decode would not be exact"
    assert reach >= vae.receptive_field - 1, "a halo this long is wasted work"


def test_matrix_form_decodes_the_same_audio_with_no_complex_numbers() -> None:
    vae = build(STEREO.model_copy(update={"phase_refinements": 2}))
    latents = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = vae.decode(latents)
        vae.stft.set_transform("matrix")
        torch.testing.assert_close(vae.decode(latents), expected, atol=1e-4, rtol=1e-4)


class DecodeOnly(torch.nn.Module):
    def __init__(self, vae: SpectralVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents_NTC: Tensor) -> Tensor:
        return self.vae.decode(latents_NTC)


@pytest.mark.parametrize(
    "config",
    [pytest.param(SMALL, marks=pytest.mark.slow), STEREO],  # tests/export has one of mono
    ids=["mono", "stereo"],
)
def test_decode_exports_with_any_number_of_frames(config: VaeConfig) -> None:
    vae = build(config.model_copy(update={"phase_refinements": 1}))
    vae.stft.set_transform("matrix")
    frames = torch.export.Dim("frames", min=2, max=4096)
    program = torch.export.export(
        DecodeOnly(vae), (torch.randn(1, 12, 16),), dynamic_shapes={"latents_NTC": {1: frames}}
    )
    for node in program.graph.nodes:
        assert "fft" not in str(node.target)
        value = node.meta.get("val")
        assert not (isinstance(value, Tensor) and value.is_complex()), node
    latents = torch.randn(1, 29, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(latents), vae.decode(latents), atol=1e-5, rtol=1e-5
        )


@pytest.mark.slow
def test_decode_runs_in_onnx_runtime(tmp_path: object) -> None:
    """In stereo; tests/export/test_parity.py holds a graph of one channel to this."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    vae = build(STEREO.model_copy(update={"phase_refinements": 1}))
    vae.stft.set_transform("matrix")
    path = f"{tmp_path}/decode.onnx"
    frames = torch.export.Dim("frames", min=2, max=4096)
    shapes = {"latents_NTC": {1: frames}}
    torch.onnx.export(
        DecodeOnly(vae),
        (torch.randn(1, 12, 16),),
        path,
        dynamo=True,
        dynamic_shapes=shapes,
        opset_version=20,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    latents = torch.randn(1, 23, 16, generator=torch.Generator().manual_seed(4))
    (audio,) = session.run(None, {session.get_inputs()[0].name: latents.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(audio), vae.decode(latents), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("preset", ["tiny", "musit-380m", "published"])
def test_presets_build_at_about_ten_frames_a_second(preset: str) -> None:
    config = load_config(preset).vae
    with torch.device("meta"):
        vae = SpectralVAE(config)
    assert 5 < config.frame_rate < 12
    assert vae.receptive_field < 64, "halo on each side of a chunk, in latent frames"
