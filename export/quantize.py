"""`step` with its products in 8 bits, beside the deployment's graphs and held to gates.

    DEPLOY/quantized/step.fp8.onnx      from graphs/bf16/step.onnx, which stays as it is
    DEPLOY/manifest.json                its hash, what was left out, and what was measured

    found = quantize(Path("deploy"), "fp8", python=Path("/opt/modelopt/bin/python"))

Ranges come from recorded songs (export/calibration.py) by NVIDIA's ModelOpt, on a copy. Which
products stay in half precision is measured on the same songs (export/kept_products.py). Two songs
that were not recorded are then made with both graphs, and what differs is judged:

    cosine     of what the network says, at the same latents: the worst step
    distance   of the latents of a whole song, sampled as the model does: rel-L2
    deviation  of the latents' mean and standard deviation, in standard deviations
    clipping   share of samples beyond full scale, more than before

The first of them is as long as the model's longest. All runs in float32 on a CPU, where Q and DQ
are exact: it shows what 8 bits do to the song, not what an engine's own arithmetic adds.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine.availability import available, install_command, require
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import GateError, InputError, MissingError, MuditError
from mudit_engine.export import calibration, modelopt_child
from mudit_engine.export.kept_products import Search, loss, said
from mudit_engine.export.manifest import add_to_manifest
from mudit_engine.export.onnx_export import valid_onnx
from mudit_engine.export.quantized_graph import (
    KINDS,
    Ranges,
    attentions_in_8_bits,
    fold_weights,
    insert,
    products,
    ranges_of,
    smooth,
    widened,
)
from mudit_engine.runtime.decode import TorchDecoder, pieces_of_song
from mudit_engine.runtime.denoiser import SongInputs, denoise
from mudit_engine.runtime.graph_denoiser import GraphDenoiser
from mudit_engine.runtime.load import load_codec_and_text
from mudit_engine.runtime.manifest import check_deployment, file_sha256

FOLDER = "quantized"
# int8 has one step for all values of an input, which is too coarse where some of its channels are
# much larger than others
SMOOTHING = {"int8": 0.8}
LEVELS = 6  # noise levels of a recorded song
LIMITS = {"cosine": 0.99, "distance": 0.2, "deviation": 0.05, "clipping": 0.001}
# of what a song may lose, what recorded calls may: other songs lose more, the embedded model's a
# third more. Where the songs that judge still refuse, the next one is tried
MARGINS = (0.7, 0.6, 0.5)
PHASES = ("recording", "measuring ranges", "choosing products", "judging songs")


@dataclass(frozen=True)
class Options:
    """How ranges are measured.

    Args:
        flavour: of the graph.
        songs: that are recorded.
        python: an interpreter that has ModelOpt; None is this one.
        most_kept: products that may stay in half precision; None is half of them.
    """

    flavour: str = "bf16"
    songs: int = len(calibration.ASKED)
    python: Path | None = None
    most_kept: int | None = None


def graph_of(kind: str) -> str:
    """Where a deployment folder keeps the graph of this kind."""
    return f"{FOLDER}/step.{kind}.onnx"


def quantize(
    folder: Path,
    kind: str,
    *,
    options: Options | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes `step` with its products in 8 bits into a deployment folder, and its figures into the
    manifest.

    Args:
        folder: written by `export_onnx` with the flavour.
        kind: "fp8" (e4m3) or "int8".
        options: what is measured, and where ModelOpt is.
        report: told what is done next: one of PHASES, and between them how far it is.

    Returns:
        What the manifest says of it.

    Raises:
        InputError: for another kind.
        MissingError: without onnx, ONNX Runtime or ModelOpt.
        ModelError: for a folder that is not as it was exported, or has no such flavour.
        GateError: for songs that differ too much, with as many products kept as may be; nothing
            is written then.

    Examples:
        >>> quantize(Path("deploy"), "fp8")["measured"]["worst"]            # doctest: +SKIP
        {'cosine': 0.9991, 'distance': 0.04, 'deviation': 0.002, 'clipping': 0.0}
    """
    options = options or Options()
    if kind not in KINDS:
        raise InputError(f"'{kind}' is no kind of 8 bits: choose from {', '.join(KINDS)}")
    for package in ("onnx", "onnxruntime"):
        require(package, "quantising")
    python = _python_with_modelopt(options.python)
    manifest = check_deployment(folder)
    if options.flavour not in manifest["flavours"]:
        raise InputError(
            f"'{folder}' holds graphs of {', '.join(manifest['flavours'])}, not {options.flavour}: "
            f"export with `mudit export onnx MODEL {folder} --flavour {options.flavour}`"
        )
    config = load_config(folder)
    source = folder / "graphs" / options.flavour / "step.onnx"
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        report(PHASES[0])
        twin = calibration.TwinSession(folder, flavour=options.flavour)
        asked = calibration.songs(config, folder, count=options.songs)
        calls = calibration.record_calls(config, twin, asked, levels=LEVELS)
        report(PHASES[1])
        ranged = _measured(source, aside, kind, python, calls=calls)
        report(PHASES[2])
        search = Search(ranged.model, ranged.ranges, calls, kind=kind, work=aside, report=report)
        most = len(search.names) // 2 if options.most_kept is None else options.most_kept
        made = aside / Path(graph_of(kind)).name
        chosen: tuple[str, ...] = ()
        for margin in MARGINS:
            choice = search.choose(loss=margin * (1 - LIMITS["cosine"]), most=most, kept=chosen)
            chosen = choice.kept
            stays = (*search.left_out, *chosen)
            count = _write(source, made, kind, ranged, kept=stays)
            report(PHASES[3])
            rows = judge(config, folder, made, flavour=options.flavour)
            if not (wrong := faults(rows)):
                break
        else:
            raise GateError(
                f"'{folder}' in {kind} makes other songs, nothing was written: {'; '.join(wrong)}"
            )
        found = {
            "flavour": options.flavour,
            "graph": graph_of(kind),
            "source_sha256": file_sha256(source),
            "products": count,
            "kept": list(stays),
            "chosen": {
                "most": most,
                "left_out": list(search.left_out),
                "margin": margin,
                "cosine_of_none_kept": 1 - choice.before,
                "cosine_of_these_kept": 1 - choice.after,
                "cosine_alone": {name: 1 - one for name, one in choice.losses.items()},
            },
            "smoothing": SMOOTHING.get(kind),
            "calibration": {"songs": len(asked), "calls": len(calls)},
            "versions": ranged.versions,
            "measured": {"songs": rows, "worst": worst(rows), "limits": LIMITS},
        }
        (folder / FOLDER).mkdir(exist_ok=True)
        for file in sorted(aside.glob(f"{made.name}*"), reverse=True):
            file.replace(folder / FOLDER / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    known = {**manifest.get("quantized", {}), kind: found}
    add_to_manifest(folder, under=FOLDER, quantized=known)
    return found


def _python_with_modelopt(python: Path | None) -> Path:
    if python is None:
        if not available("modelopt"):
            raise MissingError(
                "quantising needs ModelOpt, which is not installed: make an environment of its own "
                "(python -m venv ENV; ENV/bin/pip install 'nvidia-modelopt[onnx]') and pass "
                f"--python ENV/bin/python, or {install_command('modelopt')}"
            )
        return Path(sys.executable)
    if not python.is_file():
        raise InputError(f"--python '{python}' is no file: name the interpreter that has ModelOpt")
    return python


@dataclass(frozen=True)
class _Ranged:
    """A graph whose channels were smoothed, and what ModelOpt measured of all its products."""

    model: Any
    ranges: dict[str, Ranges]
    peaks: dict[str, np.ndarray]  # before the smoothing
    versions: dict[str, str]


def _measured(
    source: Path, work: Path, kind: str, python: Path, *, calls: Sequence[Mapping[str, np.ndarray]]
) -> _Ranged:
    """Measures ranges of all products on a twin in `work`."""
    import onnx

    model, peaks = onnx.load(str(source)), {}
    if share := SMOOTHING.get(kind):
        peaks = calibration.channel_peaks(model, calls, work)
        smooth(model, peaks, share=share)
    twin = widened(model)
    fold_weights(twin)
    calibration.save_model(twin, work / "twin.onnx")
    calibration.save_calls(calls, work / "calibration.npz")
    names = [one.node.name for one in products(model.graph)]
    (work / "products.json").write_text(json.dumps(names), encoding="utf-8")
    done = subprocess.run(
        [str(python), str(Path(modelopt_child.__file__)), str(work), kind],
        capture_output=True,
        text=True,
    )
    if done.returncode == modelopt_child.MISSING:
        raise MissingError(
            f"{(done.stderr.strip().splitlines() or [''])[-1]}: {python} -m pip install "
            "'nvidia-modelopt[onnx]'"
        )
    if done.returncode != 0:
        raise MuditError(f"ModelOpt failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    ranges = ranges_of(onnx.load(str(work / "measured.onnx")))
    versions: dict[str, str] = json.loads((work / "modelopt.json").read_text(encoding="utf-8"))
    return _Ranged(model, ranges, peaks, versions)


def _write(source: Path, path: Path, kind: str, ranged: _Ranged, *, kept: Sequence[str]) -> int:
    """Writes the quantised graph, whose kept products are as they were exported, and checks it.
    Returns the number of products in 8 bits.
    """
    import onnx

    model = onnx.load(str(source))
    if share := SMOOTHING.get(kind):
        smooth(model, ranged.peaks, share=share, kept=kept)
    count = insert(model, ranged.ranges, kind=kind, kept=kept)
    calibration.save_model(model, path)
    wrong = valid_onnx(path)
    if touched := attentions_in_8_bits(model):
        wrong.append(f"attention {touched[0]} is in 8 bits")
    if wrong:
        raise GateError(f"the quantised graph is not as it must be: {'; '.join(wrong)}")
    return count


def judge(config: ModelConfig, folder: Path, made: Path, *, flavour: str) -> list[dict[str, Any]]:
    """What differs in songs that were not recorded, one row a song."""
    own = calibration.TwinSession(folder, flavour=flavour)
    other = calibration.TwinSession(folder, flavour=flavour, step=made)
    vae, _ = load_codec_and_text(config, folder, torch.device("cpu"), torch.float32)
    decoder = TorchDecoder(vae)
    asked = calibration.songs(config, folder, count=len(calibration.HELD_OUT), held_out=True)
    rows = []
    for song in asked:
        both = _Both(own, other)
        exact = _sampled(config, both, song)
        rough = _sampled(config, other, song)
        sounds = [_sound(decoder, latents) for latents in (exact, rough)]
        beyond = [float((one.abs() >= 1).double().mean()) for one in sounds]
        moved = (rough.mean() - exact.mean()).abs() / exact.std()
        rows.append(
            {
                "seconds": song.seconds,
                "steps": len(song.table.times),
                "cosine": min(both.cosines),
                "distance": float((rough - exact).norm() / exact.norm()),
                "deviation": max(float(moved), abs(float(rough.std() / exact.std()) - 1)),
                "clipping": beyond[1] - beyond[0],
                "clipped": {"before": beyond[0], "after": beyond[1]},
                "spectrum_db": _spectral_distance(*sounds, n_fft=vae.config.n_fft),
            }
        )
    return rows


def worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The worst of every figure with a limit."""
    return {
        name: (min if name == "cosine" else max)(float(row[name]) for row in rows)
        for name in LIMITS
    }


def faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures outside their limits, as sentences. One that is not a number is outside."""
    return [
        f"{row['seconds']:g} s: {name} is {row[name]:.4g}, "
        f"{'at least' if name == 'cosine' else 'at most'} {limit:g}"
        for row in rows
        for name, limit in LIMITS.items()
        if not (row[name] >= limit if name == "cosine" else row[name] <= limit)
    ]


class _Both:
    """A session that asks another one the same at every step, and keeps how alike they are."""

    def __init__(self, own: calibration.TwinSession, other: calibration.TwinSession) -> None:
        self.own, self.other = own, other
        self.cosines: list[float] = []

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = self.own.run(graph, inputs)
        if graph == "step":
            rough = self.other.run(graph, inputs)
            answers = [said(inputs, one[0]) for one in (outputs, rough)]
            self.cosines.append(1 - loss(*answers))
        return outputs


def _sampled(config: ModelConfig, session: Any, song: SongInputs) -> Tensor:
    runtime = GraphDenoiser(config.dit, session)
    [latents] = denoise(runtime, [runtime.prepare(song)])
    return latents


@torch.inference_mode()
def _sound(decoder: TorchDecoder, latents_TC: Tensor) -> Tensor:
    return torch.cat(list(pieces_of_song(decoder, latents_TC, stream=False)), 1)


def _spectral_distance(a_cS: Tensor, b_cS: Tensor, *, n_fft: int) -> float:
    """Root mean square of the difference of two sounds' spectra in dB, of what is above -60 dB of
    the first one's peak.
    """
    window = torch.hann_window(n_fft)
    spectra = [
        torch.stft(one.mean(0), n_fft, n_fft // 4, window=window, return_complex=True).abs()
        for one in (a_cS, b_cS)
    ]
    floor = 1e-3 * spectra[0].max()
    heard = spectra[0] > floor
    db = [20 * one.clamp_min(floor).log10() for one in spectra]
    return float((db[0] - db[1])[heard].square().mean().sqrt())
