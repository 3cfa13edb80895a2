"""Whole songs through every runtime against PyTorch: all samplers, with and without guidance, an
interval, a negative description, reference audio, no lyrics, and padded to buckets.

    rows = measure_parity(folder, runtimes=("onnxruntime", "openvino"))
    rows = session_rows("onnxruntime", session, config, dit, vae, chinmu)
    faults(rows)  # [] when everything is within the limits

Limits: latents, text and audio rel-L2 <= 1e-4; padding changes nothing above 1e-5. A codec that
searches for phases is held to that in the first 4 steps, and after all of them to twice PyTorch's
own distance from the search in float64 (`search_ratio`). The songs are short and made up, so that a
check takes seconds on the embedded model; every path of the graphs is on them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.config import ModelConfig, SamplerConfig, check_sampler, load_config
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.models.chinmu import CharacterEncoder, ChinMu
from mudit_engine.models.dit import DiT
from mudit_engine.models.folder import load_part
from mudit_engine.models.outline import outline_rows
from mudit_engine.models.vae import SpectralVAE, Spectrum
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, denoise
from mudit_engine.runtime.graph_denoiser import (
    GraphDecoder,
    GraphDenoiser,
    GraphTextEncoder,
    Lengths,
    Session,
    unpadded,
)
from mudit_engine.runtime.load import open_session
from mudit_engine.text.harmony import TimedChord, chord_symbol
from mudit_engine.text.outline import Outline

LATENTS_LIMIT, AUDIO_LIMIT, PADDING_LIMIT = 1e-4, 1e-4, 1e-5
SEARCH_LIMIT, FEW_STEPS = 2.0, 4
FIGURES = ("latents", "padding", "audio", "search", "text")
SAMPLERS = ("ode-euler", "ode-heun", "sde-euler", "ddim", "dpmpp-2m")
FRAMES, LONGER = 40, 57
TEXTS = ("流行抒情", "a slow piano ballad", "x")
STEPS = 6


@dataclass(frozen=True)
class Case:
    """A mode of the denoiser: one or several songs at once."""

    name: str
    songs: tuple[SongInputs, ...]


def cases(config: ModelConfig) -> Iterator[Case]:
    """Every sampler that the model's path allows, and every mode with the first of them."""
    tables = {}
    for name in SAMPLERS:
        sampler = SamplerConfig(name=name, steps=STEPS, guidance=3.0)
        try:
            check_sampler(config.path, sampler)
            tables[name] = sampler, sampler_table(config.path, sampler)
        except ValueError:  # a sampler for the other kind of path
            continue
    first, table = next(iter(tables.values()))
    plain = sampler_table(config.path, first.model_copy(update={"guidance": 1.0}))
    interval = sampler_table(
        config.path, first.model_copy(update={"guidance_interval": (0.2, 0.7)})
    )
    song = _song(config, FRAMES, seed=0)
    for name, (_, one) in tables.items():
        yield Case(f"sampler {name}", (replace(song, table=one),))
    song = replace(song, table=table)
    negative = torch.randn(
        2, config.dit.description_width, generator=torch.Generator().manual_seed(5)
    )
    reference = torch.randn(
        13, config.dit.latent_channels, generator=torch.Generator().manual_seed(6)
    )
    yield Case("no guidance", (replace(song, table=plain),))
    yield Case("guidance interval", (replace(song, table=interval),))
    yield Case("negative description", (replace(song, negative=negative),))
    yield Case("reference audio", (replace(song, reference=reference, reference_kind="vocals"),))
    yield Case("instrumental", (replace(song, lyric_ids=(), outline=None),))
    yield Case(
        "nothing said",
        (replace(song, lyric_ids=(), outline=None, descriptions=song.descriptions[:0]),),
    )
    longer = replace(_song(config, LONGER, seed=1), table=interval, reference=reference)
    yield Case(
        "songs of several lengths",
        (song, longer, replace(song, seed=3, lyric_ids=(), outline=None, table=plain)),
    )


def measure_parity(
    folder: Path, *, runtimes: Sequence[str], threads: int | None = None
) -> list[dict[str, Any]]:
    """One row a runtime and case: relative L2 of the latents against PyTorch, and the same when
    padded.
    """
    config = load_config(folder)
    dit, vae, chinmu = (load_part(part, config, folder) for part in ("dit", "vae", "chinmu"))
    assert isinstance(dit, DiT) and isinstance(vae, SpectralVAE) and isinstance(chinmu, ChinMu)
    rows = [
        session_rows(runtime, open_session(folder, runtime), config, dit, vae, chinmu)
        for runtime in runtimes
    ]
    return list(chain.from_iterable(rows))


def session_rows(
    name: str, session: Session, config: ModelConfig, dit: DiT, vae: SpectralVAE, chinmu: ChinMu
) -> list[dict[str, Any]]:
    """Rows of one runtime: `latents`, `audio`, `search` and `text` against PyTorch, `padding`
    against the same without.
    """
    graph, padded = (
        GraphDenoiser(config.dit, session),
        GraphDenoiser(config.dit, session, padding=_bucket, songs=8),
    )
    rows: list[dict[str, Any]] = []
    for case in cases(config):
        expected, got, wide = (
            _denoise(runtime, case) for runtime in (Denoiser(dit), graph, padded)
        )
        latents, padding = max(map(relative, got, expected)), max(map(relative, wide, got))
        rows.append({"runtime": name, "case": case.name, "latents": latents, "padding": padding})
    rows += [{"runtime": name, **row} for row in _decode(config, vae, session)]
    if isinstance(chinmu.text, CharacterEncoder):
        with torch.no_grad():
            vectors = chinmu.encode_text(TEXTS)
        encoded = GraphTextEncoder(config.chinmu, session).encode_text(TEXTS)
        rows.append({"runtime": name, "case": "text", "text": relative(encoded, vectors)})
    return rows


def faults(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows outside the limits, as sentences. A figure that is not a number is outside."""
    limits = dict(
        zip(
            FIGURES,
            (LATENTS_LIMIT, PADDING_LIMIT, AUDIO_LIMIT, SEARCH_LIMIT, LATENTS_LIMIT),
            strict=True,
        )
    )
    return [
        f"{row['runtime']}, {row['case']}: {name} differ by {row[name]:.2e}, at most {limit:g}"
        for row in rows
        for name, limit in limits.items()
        if name in row and not row[name] <= limit
    ]


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


def _bucket(lengths: Lengths) -> Lengths:
    """The next multiple of 64, of 16 and of 32."""
    exact = unpadded(lengths)
    return Lengths(
        -(-exact.targets // 64) * 64, -(-exact.others // 16) * 16, -(-exact.lyrics // 32) * 32
    )


def _denoise(runtime: Any, case: Case) -> list[Tensor]:
    return denoise(runtime, [runtime.prepare(song) for song in case.songs])


def _decode(config: ModelConfig, vae: SpectralVAE, session: Session) -> list[dict[str, Any]]:
    """Audio of made-up latents. Where the codec searches for phases, of a few steps, and of all of
    them by `search_ratio`.
    """
    latents = torch.randn(
        1, FRAMES, config.vae.latent_channels, generator=torch.Generator().manual_seed(7)
    )
    decoder = GraphDecoder(config.vae, vae.receptive_field, session)
    steps = config.vae.phase_refinements
    few = min(steps, FEW_STEPS)
    rows: list[dict[str, Any]] = [
        {
            "case": "decode",
            "audio": relative(
                decoder.decode(latents, refinements=few), synthesised(vae, latents, steps=few)
            ),
        }
    ]
    if steps > few:
        rows.append(
            {
                "case": f"decode, {steps} phase steps",
                "search": search_ratio(vae, latents, decoder.decode(latents)),
            }
        )
    return rows


@torch.no_grad()
def synthesised(vae: SpectralVAE, latents_NTC: Tensor, *, steps: int) -> Tensor:
    """PyTorch's audio of normalised latents."""
    return vae.synthesise(vae.spectrum(vae.denormalise(latents_NTC)), refinements=steps)


def search_ratio(vae: SpectralVAE, latents_NTC: Tensor, audio_NcS: Tensor) -> float:
    """How far audio is from a phase search in float64, as a share of how far PyTorch's own fp32 is.

    Roundings grow with every step of Griffin-Lim, so that two exact implementations end some 1e-3
    apart: a distance between the two would say nothing about either.
    """
    steps = vae.config.phase_refinements
    with torch.no_grad():
        spectrum = vae.spectrum(vae.denormalise(latents_NTC))
        exact = copy.deepcopy(vae).double()
        doubled = Spectrum(*(None if part is None else part.double() for part in spectrum))
        reference = exact.synthesise(doubled, refinements=steps)
        own = vae.synthesise(spectrum, refinements=steps)
    return relative(audio_NcS, reference) / max(relative(own, reference), 1e-7)


def _song(config: ModelConfig, frames: int, *, seed: int) -> SongInputs:
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = 23 + seed
    seconds = frames / config.vae.frame_rate
    times = torch.linspace(0, seconds, tokens + 1)
    chords = (TimedChord(0.0, 1.0, chord_symbol("Am")), TimedChord(1.0, 2.5, chord_symbol("E7")))
    outline = Outline(96.0, "A minor", torch.stack((times[:-1], times[1:]), 1).numpy(), chords)
    return SongInputs(
        frames=frames,
        seconds=seconds,
        table=sampler_table(config.path, config.sampler),
        seed=seed,
        descriptions=torch.randn(3, config.dit.description_width, generator=generator),
        negative=torch.zeros(0, config.dit.description_width),
        lyric_ids=torch.randint(8, 100, (tokens,), generator=generator).tolist(),
        user_type="amateur",
        outline=outline_rows(
            outline,
            frames=frames,
            frame_rate=config.vae.frame_rate,
            tokens=tokens,
            config=config.dit,
        ),
    )
