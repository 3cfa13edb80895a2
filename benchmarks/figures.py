"""What can be counted of the engine, the same on every machine and in every run: FLOPs, bytes,
launches, programs, allocations, compiled variants, operators of graphs, registers, imports.

    found = figures()                              # {"step": {"flops": ...}, ...}
    python -m mudit_engine.benchmarks.figures      # as JSON

    step, prepare    a guided step of a mixed batch of the embedded model's size, on the CPU's path
    train            forward, backward and AdamW of the same songs
    decode           latents to audio
    triton           the same step on the Triton path: kernels, programs, variants
    batches          variants over random batches: what a server would compile in its first hours
    graphs           operators of the exported graphs of a small model
    static           registers, spills and shared memory of kernels, compiled for sm_90
    imports          modules that `mudit --help` and `import mudit_engine` load

`mudit bench gate` holds them to benchmarks/results/figures.json.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine import ops
from mudit_engine.availability import available
from mudit_engine.benchmarks.end_to_end import make_network, make_states
from mudit_engine.benchmarks.static_attention import hopper
from mudit_engine.benchmarks.train_peers import _batch, trainer
from mudit_engine.benchmarks.workloads import Workload
from mudit_engine.config import DitConfig, ModelConfig, VaeConfig
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.profiling.aot import compile_for
from mudit_engine.profiling.launches import Launches, count_launches
from mudit_engine.profiling.ledger import Ledger
from mudit_engine.runtime.decode import TorchDecoder, decode_chunked
from mudit_engine.runtime.denoiser import Denoiser

Figures = dict[str, dict[str, float]]
SONGS = ((176, 120), (352, 240), (703, 480))
SERIAL = DitConfig(width=256, blocks=4, heads=4, lyric_width=128, lyric_blocks=2)
PARALLEL = SERIAL.model_copy(update={"cross_attention": "parallel"})
RANDOM_BATCHES = 24


def figures(*, only: Sequence[str] | None = None) -> Figures:
    """All groups of figures, or the named ones."""
    groups = GROUPS if only is None else {name: GROUPS[name] for name in only}
    return {name: count() for name, count in groups.items()}


def _counts(ledger: Ledger) -> dict[str, float]:
    return {
        "flops": ledger.flops,
        "bytes": ledger.bytes,
        "launches": ledger.launches,
        "allocations": ledger.allocations,
        "allocated_bytes": ledger.allocated_bytes,
        "peak_bytes": ledger.peak_bytes,
    }


def _denoiser(config: DitConfig = SERIAL, dtype: torch.dtype = torch.float32) -> Denoiser:
    return Denoiser(make_network(config).to(dtype))


def step() -> dict[str, float]:
    """A guided step of three songs; and of parallel cross-attention."""
    found: dict[str, float] = {}
    for prefix, config in (("", SERIAL), ("parallel_", PARALLEL)):
        denoiser = _denoiser(config)
        states = make_states(denoiser, Workload("", SONGS, True, ""), steps=2)
        denoiser.step(states)  # lays the batch out, which later steps don't
        with Ledger() as ledger:
            denoiser.step(states)
        found |= {f"{prefix}{name}": value for name, value in _counts(ledger).items()}
    return found


def prepare() -> dict[str, float]:
    """What is computed once a song."""
    denoiser = _denoiser()
    with Ledger() as ledger:
        states = make_states(denoiser, Workload("", SONGS, True, ""), steps=2)
    assert len(states) == len(SONGS)
    return _counts(ledger)


def train() -> dict[str, float]:
    """One training step of the songs."""
    dit = make_network(SERIAL).train().requires_grad_(True)
    batch = _batch(dit, SONGS)
    goal = torch.zeros_like(batch.latents_TC)
    take = trainer(dit, lambda: (dit(batch) - goal).square().mean(), torch.float32, "cpu")
    take()
    with Ledger() as ledger:
        take()
    return _counts(ledger)


def decode() -> dict[str, float]:
    """Ten seconds of audio by a small codec, and by one that searches for phases."""
    found: dict[str, float] = {}
    for prefix, more in (("", {}), ("search_", {"phase_refinements": 8, "channels": 1})):
        config = VaeConfig(
            frame_width=96, frame_blocks=1, latent_width=128, latent_blocks=1, **more
        )
        vae = SpectralVAE(config).eval().requires_grad_(False)
        with torch.inference_mode(), Ledger() as ledger:
            decode_chunked(TorchDecoder(vae), torch.zeros(108, 96), chunk_frames=108)
        found |= {f"{prefix}{name}": value for name, value in _counts(ledger).items()}
    return found


@contextlib.contextmanager
def _counting(arch: str) -> Iterator[Launches]:
    """count_launches on the Triton path. Its kernels leave their outputs unwritten, so that the
    products between them would multiply nothing: they are allocated, not computed.
    """

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x.new_empty(*x.shape[:-1], len(weight))

    with (
        mock.patch.object(F, "linear", linear),
        count_launches(arch) as counted,
        ops.use("triton"),
    ):
        yield counted


def _stepping(songs: Sequence[tuple[int, int]], denoiser: Denoiser) -> Callable[[], None]:
    states = make_states(denoiser, Workload("", tuple(songs), True, ""), steps=4)
    return lambda: denoiser.step(states)


def triton() -> dict[str, float]:
    """Kernels of a step for two architectures: all launches, programs and variants, and each
    kernel's own.
    """
    found: dict[str, float] = {}
    for arch in ("sm_80", "sm_90"):
        for kind, config in (("serial", SERIAL), ("parallel", PARALLEL)):
            take = _stepping(SONGS, _denoiser(config, torch.bfloat16))
            with _counting(arch) as counted:
                take()
            name = f"{arch}/{kind}"
            found |= {
                f"{name}/launches": len(counted.launches),
                f"{name}/programs": counted.programs,
                f"{name}/variants": len(counted.variants),
            }
            for kernel, counts in counted.by_kernel().items():
                found |= {f"{name}/{kernel}/{key}": value for key, value in counts.items()}
    return found


def batches() -> dict[str, float]:
    """Variants after RANDOM_BATCHES random batches of random songs."""
    import random

    choose = random.Random(0)
    denoiser = _denoiser(dtype=torch.bfloat16)
    with _counting("sm_90") as counted:
        for _ in range(RANDOM_BATCHES):
            songs = [
                (choose.randint(20, 900), choose.randint(0, 300))
                for _ in range(choose.randint(1, 8))
            ]
            _stepping(songs, denoiser)()
    return {"variants": len(counted.variants), "batches": RANDOM_BATCHES}


def graphs() -> dict[str, float]:
    """Operators of the fp32 graphs of a small model, in all and by type."""
    if not (available("onnx") and available("onnxscript")):
        return {}
    import onnx

    from mudit_engine.export.onnx_export import export_onnx
    from mudit_engine.models.folder import PARTS, build_part, save_config, save_part

    config = ModelConfig.model_validate(
        {
            "name": "counted",
            "dit": {
                "width": 64,
                "blocks": 2,
                "heads": 1,
                "lyric_width": 64,
                "lyric_blocks": 1,
                "latent_channels": 8,
                "description_width": 32,
            },
            "vae": {
                "sample_rate": 8000,
                "channels": 1,
                "n_fft": 256,
                "stft_hop": 128,
                "fold": 4,
                "latent_channels": 8,
                "frame_width": 16,
                "frame_blocks": 1,
                "latent_width": 16,
                "latent_blocks": 1,
            },
            "chinmu": {
                "text_encoder": "characters",
                "text_width": 64,
                "text_blocks": 1,
                "audio_width": 64,
                "audio_blocks": 1,
                "embedding": 32,
            },
        }
    )
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        folder.mkdir()
        torch.manual_seed(0)
        for part in PARTS:
            module = build_part(part, config)
            for parameter in module.parameters():
                if not parameter.any():  # equal weights would share one name in a graph
                    torch.nn.init.normal_(parameter, std=0.02)
            save_part(part, module, folder)
        save_config(config, folder)
        deployed = export_onnx(folder, Path(place) / "out", flavours=("fp32",))
        for path in sorted(deployed.rglob("*.onnx")):
            model = onnx.load(str(path), load_external_data=False)
            nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
            found[f"{path.stem}/operators"] = len(nodes)
            for kind, count in Counter(node.op_type for node in nodes).items():
                if kind in ("MatMul", "Gemm", "Transpose", "Reshape", "Concat", "Cast", "Softmax"):
                    found[f"{path.stem}/{kind}"] = count
    return found


def static() -> dict[str, float]:
    """Registers, spills and shared memory of a step's kernels, the most of their variants, compiled
    for sm_90; of the Hopper forward also the order of its loop.
    """
    take = _stepping(SONGS, _denoiser(dtype=torch.bfloat16))
    with compile_for("sm_90") as builds, ops.use("triton"):
        take()
    found: dict[str, float] = {}
    for build in builds:
        for key in ("registers", "spill_bytes", "shared_bytes"):
            name = f"{build.kernel}/{key}"
            found[name] = max(found.get(name, 0), getattr(build, key))
    (row,) = hopper(SERIAL.width // SERIAL.heads, "bf16")
    keys = ("registers", "loop_registers", "spill_bytes", "shared_bytes", "loop_instructions")
    found |= {f"attention_hopper_kernel/{key}": row[key] for key in keys}
    in_the_open = 1.0 - row["exponentials_under_products"]
    found["attention_hopper_kernel/exponentials_in_the_open"] = in_the_open
    found["attention_hopper_kernel/warnings"] = len(row["ptxas_warnings"])
    return found


def imports() -> dict[str, float]:
    """Modules in memory after the help, after naming the package, and after importing the
    pipeline: all, and the packages they belong to.
    """
    found: dict[str, float] = {}
    for name, code in {
        "help": "from mudit_engine.cli.main import run; run(['--help'])",
        "package": "import mudit_engine",
        "pipeline": "import mudit_engine.pipeline",
    }.items():
        tail = "import sys; print('MODULES', *sorted(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True
        )
        modules = done.stdout.rsplit("MODULES ", 1)[1].split()
        own = [m for m in modules if m.split(".")[0] == "mudit_engine"]
        foreign = {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names)
        found |= {f"{name}/own_modules": len(own), f"{name}/packages": len(foreign)}
    return found


GROUPS: dict[str, Callable[[], dict[str, float]]] = {
    "step": step,
    "prepare": prepare,
    "train": train,
    "decode": decode,
    "triton": triton,
    "batches": batches,
    "graphs": graphs,
    "static": static,
    "imports": imports,
}


def main() -> None:
    torch.set_num_threads(1)
    only = sys.argv[1:] or None
    print(json.dumps(figures(only=only)))


if __name__ == "__main__":
    main()
