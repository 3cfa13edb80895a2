"""A training step of the real DeepSpeed engine at any world size in one process: what it keeps and
sends, before a cluster is rented.

torch's fake process group answers every collective at once and changes nothing, so partitions,
buckets and calls are those of rank 0 of a real run while the numbers in them mean nothing. Under a
launcher (RANK set) the same measurement runs on a real gloo world.

    sharding = {"zero_stage": 2}
    job = Rehearsal(preset="musit-380m", world=64, parallel=sharding, precision="fp32")
    result = rehearse(job)  # in a child process
    rehearse_all([...])  # one world, one process, one after another

On real ranks:

    torchrun --standalone --nproc-per-node 2 -m mudit_engine.training.planning.rehearse \\
      specs.json out.json

Counted are tensor storages, each once: resident memory of a process says little (allocators keep
what they got). All on the CPU, in eager mode. bf16 products are slow on most CPUs: short songs do,
since activations are not what is rehearsed.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.errors import MuditError
from mudit_engine.files import write_json
from mudit_engine.training.ranks import leave

# the second step has moments; the first micro-batch of a step leaves its gradients
STEPS, MICRO_BATCHES = (
    2,
    2,
)
SMALL = 1024  # bytes: below it a message is a norm or a flag


@dataclass(frozen=True)
class Rehearsal:
    """What is run. `preset` is a preset or a config.json; frames and lyrics are of each song of a
    micro-batch.
    """

    preset: str
    world: int
    parallel: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    checkpointing: str = "none"
    average: bool = True
    frames: tuple[int, ...] = (24,)
    lyrics: tuple[int, ...] = (8,)
    overrides: Mapping[str, Any] = field(default_factory=dict)


def rehearse(rehearsal: Rehearsal, *, threads: int = 1) -> dict[str, Any]:
    """Runs it in a child process and returns its measurement (see `measure`). Raises MuditError
    with the child's last words.
    """
    return rehearse_all([rehearsal], threads=threads)[0]


def rehearse_all(rehearsals: Sequence[Rehearsal], *, threads: int = 1) -> list[dict[str, Any]]:
    """Several of one world, one after another in one child process. Raises MuditError with the
    child's last words.
    """
    with tempfile.TemporaryDirectory(prefix="mudit-rehearse-") as folder:
        specs, out = Path(folder) / "specs.json", Path(folder) / "out.json"
        write_json(specs, [asdict(rehearsal) for rehearsal in rehearsals])
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        }
        environment |= {
            "OMP_NUM_THREADS": str(threads),
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [
            sys.executable,
            "-m",
            "mudit_engine.training.planning.rehearse",
            str(specs),
            str(out),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            what = f"the rehearsal of {rehearsals[0].preset} at {rehearsals[0].world} ranks"
            raise MuditError(f"{what} failed ({done.returncode}): {_last(done.stderr)}")
        results: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
        return results


def _last(text: str, lines: int = 3) -> str:
    return (
        " | ".join(line.strip() for line in text.strip().splitlines()[-lines:]) or "it said nothing"
    )


def _recipe(rehearsal: Rehearsal) -> Any:
    from mudit_engine.training.recipe import parse_recipe

    fields = {
        "name": "rehearsal",
        "task": "dit-pretrain",
        "model": rehearsal.preset,
        "model_overrides": rehearsal.overrides,
        "data": {"folder": "none", "packs_per_step": MICRO_BATCHES * rehearsal.world},
        "steps": STEPS,
        "schedule": {"warmup": 0},
        "device": "cpu",
        "precision": rehearsal.precision,
        "strategy": "deepspeed",
        "parallel": rehearsal.parallel,
        "ema": {"enabled": rehearsal.average},
        "dit": {"checkpointing": rehearsal.checkpointing},
    }
    return parse_recipe(fields, source="rehearsal")


def join_fake_world(world: int) -> None:
    """Rank 0 of a world whose collectives return at once."""
    from torch import distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE=str(world),
        LOCAL_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)


def measure(rehearsal: Rehearsal) -> dict[str, Any]:
    """In this process, which has no world yet, or under a launcher: bytes by kind, the peak, and
    the messages of a step.

    state: bytes by kind (state_bytes.KINDS without gathered) after the first micro-batch of the
    second step. other: storages that are none of these. peak: the most that lived at once in that
    step, weights and all. sent: {collective: {calls, bytes}} of that step.
    """
    import torch
    from torch import distributed as dist

    started = time.monotonic()
    if not dist.is_initialized() and "RANK" not in os.environ:
        join_fake_world(rehearsal.world)
    from mudit_engine.diffusion.paths import make_path
    from mudit_engine.models.dit import DiT
    from mudit_engine.training.parallel.deepspeed_strategy import DeepSpeed
    from mudit_engine.training.planning.step_cost import Pack, make_inputs
    from mudit_engine.training.tasks.dit import DitLoss

    recipe = _recipe(rehearsal)
    config = recipe.model_config_resolved()
    strategy = DeepSpeed(recipe, torch.device("cpu"))
    real = dist.get_backend() != "fake"
    if strategy.ranks.world != rehearsal.world:
        raise MuditError(
            f"this world has {strategy.ranks.world} ranks, the rehearsal {rehearsal.world}: start "
            f"as many, or one process"
        )
    torch.manual_seed(0)
    # kept alive, so that none of their addresses is given away again
    before = _tensors()
    module = DitLoss(DiT(config.dit), make_path(config.path), recipe.dit)
    strategy.prepare({"model": module}, recipe, lr_scale={}, ema=("model",))
    inputs = make_inputs(config.dit, Pack.of(rehearsal.frames, rehearsal.lyrics, 2))
    module.train()
    strategy.begin("model", MICRO_BATCHES)
    known = _storages(before)
    state: dict[str, int] = {}
    other = 0
    watch = _watch()
    for step in range(STEPS):
        last = step == STEPS - 1
        if last:
            watch.adopt(_tensors())
        with watch if last else _nothing():
            strategy.begin("model", MICRO_BATCHES)
            for number in range(MICRO_BATCHES):
                loss, _ = strategy.forward("model", inputs)
                strategy.backward("model", loss)
                del loss, _
                if last and number == 0:
                    with _paused(watch):
                        state, other = _census(strategy, known, besides=inputs)
            strategy.step("model", lr=1e-4)
    return {
        "world": rehearsal.world,
        "rank": strategy.ranks.rank,
        "real": real,
        "parameters": strategy.engines["model"].sizes
        and sum(strategy.engines["model"].sizes.values()),
        "state": state,
        "other": other,
        "peak": watch.peak,
        "sent": watch.sent,
        "seconds": round(time.monotonic() - started, 1),
    }


NAMES = {
    "allreduce": "all-reduce",
    "allgather_base": "all-gather",
    "reduce_scatter_base": "reduce-scatter",
}


def compare(rehearsal: Rehearsal, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The measurement beside the closed forms: bytes by kind with the relative error of each, in
    all, and bytes by collective.
    """
    from mudit_engine.training.planning.state_bytes import (
        KINDS,
        Sharding,
        messages,
        parameters_of,
        state_bytes,
    )

    recipe = _recipe(rehearsal)
    parameters = parameters_of(recipe.model_config_resolved().dit, recipe.optimizer)
    sharding = Sharding.of(recipe, rehearsal.world, device="cpu")
    planned = state_bytes(parameters, sharding, rank=measured["rank"])
    # buckets and gathered weights live in the backward pass, not between two
    kinds = [kind for kind in KINDS if kind not in ("buckets", "gathered")]
    state = {
        kind: _pair(planned[kind], measured["state"].get(kind, 0))
        for kind in kinds
        if planned[kind]
    }
    state["all"] = _pair(
        sum(planned[kind] for kind in kinds),
        sum(measured["state"].get(kind, 0) for kind in kinds) + measured["other"],
    )
    wanted: dict[str, float] = {}
    for message in messages(parameters, sharding, micro_batches=MICRO_BATCHES):
        wanted[message.kind] = wanted.get(message.kind, 0.0) + message.size
    found = {NAMES.get(kind, kind): entry["bytes"] for kind, entry in measured["sent"].items()}
    return {
        "preset": rehearsal.preset,
        "world": rehearsal.world,
        "rank": measured["rank"],
        "real_ranks": measured["real"],
        "zero_stage": sharding.stage,
        "precision": rehearsal.precision,
        "parameters": measured["parameters"],
        "state": state,
        "sent": {
            kind: _pair(wanted.get(kind, 0.0), found.get(kind, 0))
            for kind in sorted(wanted.keys() | found.keys())
        },
        "peak": measured["peak"],
        "seconds": measured["seconds"],
    }


def _pair(planned: float, measured: float) -> dict[str, float | None]:
    return {
        "planned": planned,
        "measured": measured,
        "error": planned / measured - 1 if measured else None,
    }


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def _paused(watch: Any) -> Any:
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def _watch() -> Any:
    import torch

    from mudit_engine.training.planning.step_cost import Ledger

    class Watch(Ledger):
        """The ledger, and what is sent."""

        def __init__(self) -> None:
            super().__init__()
            self.sent: dict[str, dict[str, int]] = {}

        def adopt(self, tensors: list[torch.Tensor]) -> None:
            """Counts what lives already."""
            for tensor in tensors:
                self.note(tensor)
            self.peak = self.live

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "c10d":
                from torch.utils._pytree import tree_leaves

                size = max(
                    (
                        t.numel() * t.element_size()
                        for t in tree_leaves(args)
                        if isinstance(t, torch.Tensor)
                    ),
                    default=0,
                )
                if size > SMALL:
                    entry = self.sent.setdefault(func._opname.strip("_"), {"calls": 0, "bytes": 0})
                    entry["calls"] += 1
                    entry["bytes"] += size
            return super().__torch_dispatch__(func, types, args, kwargs)

    return Watch()


def _tensors() -> list[Any]:
    """Every tensor that lives in this process and holds memory."""
    import torch

    gc.collect()
    found = [
        o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.device.type == "cpu"
    ]
    found += [o.grad for o in found if o.is_leaf and o.grad is not None]
    return found


def _storages(tensors: Any = None) -> dict[int, int]:
    """{storage: bytes}."""
    out = {}
    for tensor in _tensors() if tensors is None else tensors:
        storage = tensor.untyped_storage()
        out[storage._cdata] = storage.nbytes()
    return out


def _census(
    strategy: Any, before: Mapping[int, int], *, besides: Any
) -> tuple[dict[str, int], int]:
    """(bytes by kind, bytes of all other storages made since `before`, but for the batch in
    `besides`).
    """
    from torch.utils._pytree import tree_leaves

    fields = {
        **besides.__dict__,
        **besides.clean.__dict__,
        **(besides.clean.outline.__dict__ if besides.clean.outline else {}),
    }
    kinds: dict[str, int] = {}
    counted = set(_storages([t for t in tree_leaves(fields) if hasattr(t, "untyped_storage")]))
    for kind, tensors in _by_kind(strategy.engines["model"]):
        own = {key: size for key, size in _storages(tensors).items() if key not in counted}
        kinds[kind] = kinds.get(kind, 0) + sum(own.values())
        counted |= own.keys()
    rest = {
        key: size for key, size in _storages().items() if key not in counted and key not in before
    }
    return kinds, sum(rest.values())


def _by_kind(engine: Any) -> Iterator[tuple[str, list[Any]]]:
    """What DeepSpeed 0.19.8 keeps where."""
    import torch

    optimizer, parameters = engine.partitions.optimizer, list(engine.module.parameters())
    base = getattr(optimizer, "optimizer", optimizer)
    if engine.partitions.stage == 3:
        yield (
            "weights",
            [p.ds_tensor for p in parameters]
            + [p.data for p in parameters if p.data.numel() == p.ds_numel],
        )
    else:
        yield "weights", [p.data for p in parameters]
    yield "average", list(engine.ema.shadow.values()) if engine.ema is not None else []
    if engine.partitions.stage:
        yield "master", list(engine.partitions.flats)
    yield (
        "moments",
        [v for state in base.state.values() for v in state.values() if torch.is_tensor(v)],
    )
    gradients = [p.grad for p in parameters if p.grad is not None]
    gradients += [g for p in parameters if (g := getattr(p, "grad_accum", None)) is not None]
    for name in ("grads_in_partition", "grad_partitions_flat_buffer"):
        if getattr(optimizer, name, None) is not None:
            gradients.append(getattr(optimizer, name))
    for name in ("averaged_gradients", "all_grad_tensors"):
        for parts in getattr(optimizer, name, {}).values():
            gradients += [g for g in parts or () if torch.is_tensor(g)]
    yield "gradients", gradients
    buckets: list[Any] = []
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        buffer = bucket.buffer
        buckets += list(buffer) if isinstance(buffer, list) else [buffer]
    yield "buckets", [b for b in buckets if torch.is_tensor(b)]


def main(arguments: list[str]) -> None:
    """SPECS OUT: measures what the JSON file SPECS says, one after another, and writes OUT
    (OUT.RANK on a real world).
    """
    import torch
    from torch import distributed as dist

    specs, out = (Path(argument) for argument in arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    results = []
    for fields in json.loads(specs.read_text(encoding="utf-8")):
        rehearsal = Rehearsal(
            **fields
            | {name: tuple(fields[name]) for name in ("frames", "lyrics") if name in fields}
        )
        results.append(measure(rehearsal))
        gc.collect()
    real = results[0]["real"]
    write_json(out.with_name(f"{out.name}.{results[0]['rank']}") if real else out, results)
    if real:
        dist.barrier()
        dist.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
