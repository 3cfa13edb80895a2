"""`step` with its products in 8 bits, beside the deployment's graphs and held to gates.

    DEPLOY/quantized/step.fp8.onnx      from graphs/bf16/step.onnx, which stays as it is
    DEPLOY/manifest.json                its hash, what was left out, and what was measured

    found = quantize(Path("deploy"), "fp8", python=Path("/opt/modelopt/bin/python"))

Ranges come from recorded songs (export/calibration.py) by NVIDIA's ModelOpt, on a copy. Two songs
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
from mudit_engine.export.manifest import add_to_manifest
from mudit_engine.export.onnx_export import valid_onnx
from mudit_engine.export.quantized_graph import (
    KINDS,
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
# Where all error passes: the first and the last product, and the first block, which alone takes the
# embedded model's worst step from a cosine of .989 to .993 in fp8
KEPT = ("target_in", "final", "blocks.0.")
# int8 has one step for all values of an input, which is too coarse where some of its channels are
# much larger than others. Smoothed, one product costs the embedded model more than all others: the
# last one of the last block, whose input is largest
SMOOTHING = {"int8": 0.8}
KEPT_LAST = {"int8": ("down.",)}  # of the last block
LEVELS = 6  # noise levels of a recorded song
LIMITS = {"cosine": 0.99, "distance": 0.2, "deviation": 0.05, "clipping": 0.001}


@dataclass(frozen=True)
class Options:
    """How ranges are measured.

    Args:
        flavour: of the graph.
        songs: that are recorded.
        python: an interpreter that has ModelOpt; None is this one.
    """

    flavour: str = "bf16"
    songs: int = len(calibration.ASKED)
    python: Path | None = None


def kept(kind: str, blocks: int) -> tuple[str, ...]:
    """What names of weights hold whose products stay as they are, in a network of so many blocks.

    Examples:
        >>> kept("int8", blocks=6)
        ('target_in', 'final', 'blocks.0.', 'blocks.5.down.')
    """
    return (*KEPT, *(f"blocks.{blocks - 1}.{name}" for name in KEPT_LAST.get(kind, ())))


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
        report: told what is done next.

    Returns:
        What the manifest says of it.

    Raises:
        InputError: for another kind, and for a model all of whose products are kept.
        MissingError: without onnx, ONNX Runtime or ModelOpt.
        ModelError: for a folder that is not as it was exported, or has no such flavour.
        GateError: for songs that differ too much; nothing is written then.

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
    stays = kept(kind, config.dit.blocks)
    _check_products(source, config, stays)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        report("recording")
        twin = calibration.TwinSession(folder, flavour=options.flavour)
        asked = calibration.songs(config, folder, count=options.songs)
        calls = calibration.record_calls(config, twin, asked, levels=LEVELS)
        calibration.save_calls(calls, aside / "calibration.npz")
        report("measuring ranges")
        versions, count = _quantise(source, aside, kind, python, calls=calls, stays=stays)
        made = aside / Path(graph_of(kind)).name
        report("judging songs")
        rows = judge(config, folder, made, flavour=options.flavour)
        found = {
            "flavour": options.flavour,
            "graph": graph_of(kind),
            "source_sha256": file_sha256(source),
            "products": count,
            "kept": list(stays),
            "smoothing": SMOOTHING.get(kind),
            "calibration": {"songs": len(asked), "calls": len(calls)},
            "versions": versions,
            "measured": {"songs": rows, "worst": worst(rows), "limits": LIMITS},
        }
        if wrong := faults(rows):
            raise GateError(
                f"'{folder}' in {kind} makes other songs, nothing was written: {'; '.join(wrong)}"
            )
        (folder / FOLDER).mkdir(exist_ok=True)
        for file in sorted(aside.glob(f"{made.name}*"), reverse=True):
            file.replace(folder / FOLDER / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    known = {**manifest.get("quantized", {}), kind: found}
    add_to_manifest(folder, under=FOLDER, quantized=known)
    return found


def _check_products(source: Path, config: ModelConfig, stays: Sequence[str]) -> None:
    """Raises InputError for a graph all of whose products are kept as they are."""
    import onnx

    if not products(onnx.load(str(source), load_external_data=False).graph, kept=stays):
        raise InputError(
            f"model '{config.name}' has no product to put into 8 bits: the first and the last one "
            f"and those of the first block stay as they are, and it has {config.dit.blocks} "
            f"block{'s' if config.dit.blocks > 1 else ''}. Take a model of two or more"
        )


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


def _quantise(
    source: Path,
    work: Path,
    kind: str,
    python: Path,
    *,
    calls: Sequence[Mapping[str, np.ndarray]],
    stays: Sequence[str],
) -> tuple[dict[str, str], int]:
    """Measures ranges on a twin in `work` and writes the quantised graph there. Returns versions,
    and the number of products.
    """
    import onnx

    model = onnx.load(str(source))
    if share := SMOOTHING.get(kind):
        smooth(model, calibration.channel_peaks(model, calls, work), share=share, kept=stays)
    twin = widened(model)
    fold_weights(twin)
    calibration.save_model(twin, work / "twin.onnx")
    names = [one.node.name for one in products(model.graph, kept=stays)]
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
    count = insert(model, ranges, kind=kind, kept=stays)
    path = work / Path(graph_of(kind)).name
    calibration.save_model(model, path)
    wrong = valid_onnx(path)
    if touched := attentions_in_8_bits(model):
        wrong.append(f"attention {touched[0]} is in 8 bits")
    if wrong:
        raise GateError(f"the quantised graph is not as it must be: {'; '.join(wrong)}")
    versions: dict[str, str] = json.loads((work / "modelopt.json").read_text(encoding="utf-8"))
    return versions, count


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
            a, b, c, d = (inputs["coefficients"][:, i, None, None].double() for i in range(4))
            x, kept, noise = (inputs[name].double() for name in ("x", "kept", "noise"))
            # next = a x + b out + c kept + d noise
            said = [
                ((following.double() - a * x - c * kept - d * noise) / b).flatten()
                for following in (outputs[0], self.other.run(graph, inputs)[0])
            ]
            self.cosines.append(float(torch.cosine_similarity(*said, dim=0)))
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
