"""A step spread over ranks by DeepSpeed ZeRO 0 to 3: the same losses as `single`, state in pieces,
checkpoints of any world and stage.

    loss handed to the engine = loss / weight of the global batch * ranks

since DeepSpeed averages over ranks and we want the sum.

One engine a phase. Engines are made when they are first needed, so that a stage may still fit its
weights in closed form before they are partitioned. Written against DeepSpeed 0.19.8 (setup.py pins
it): what is read besides its public API is gathered in `_Partitions`.

    strategy = DeepSpeed(recipe, torch.device("cuda"))  # under torchrun; alone it is a world of one
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mudit_engine.training.checkpoints.async_save import StateFile
from mudit_engine.training.checkpoints.saved_state import SavedState, buffers_file, rank_file
from mudit_engine.training.parallel.deepspeed_config import (
    data_ranks,
    deepspeed_config,
    save_deepspeed_config,
)
from mudit_engine.training.parallel.strategy import (
    ADAM,
    MOMENTS,
    Ema,
    Judge,
    Logs,
    Strategy,
    decide,
    learned_state,
    make_optimizer,
    missing_average,
    set_rates,
    storage_bytes,
    trained,
)
from mudit_engine.training.ranks import join

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe


class DeepSpeed(Strategy):
    """ZeRO through DeepSpeed's engine, with the recipe's own clipping,
    accumulation and schedule.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        if device.type == "cuda":
            import os

            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
            torch.cuda.set_device(device)
        self.recipe, self.device = recipe, device
        self.ranks = join(device, timeout_seconds=recipe.parallel.timeout_seconds)
        self.world = data_ranks(recipe, self.ranks.world)
        self.shares = recipe.parallel.sequence_parallel
        self.rank = self.ranks.rank // self.shares
        self.modules: dict[str, nn.Module] = {}
        self._engines: dict[str, _Engine] = {}

    def prepare(
        self,
        modules: Mapping[str, nn.Module],
        recipe: Recipe,
        *,
        lr_scale: Mapping[str, float],
        ema: Sequence[str],
        called_elsewhere: Sequence[str] = (),
    ) -> None:
        self.modules = {phase: module.to(self.device) for phase, module in modules.items()}
        self.lr_scale = dict(lr_scale)
        self._averaged = tuple(ema) if recipe.ema.enabled else ()
        self._called_elsewhere = tuple(called_elsewhere)

    @property
    def engines(self) -> dict[str, _Engine]:
        if not self._engines:
            self._engines = {
                phase: self._engine(phase, module) for phase, module in self.modules.items()
            }
        return self._engines

    def _engine(self, phase: str, module: nn.Module) -> _Engine:
        # weights that another phase reads outside of this engine's own forward must lie whole on
        # every rank
        stage = min(self.recipe.parallel.zero_stage, 2) if phase in self._called_elsewhere else None
        parameters = sum(p.numel() for p in trained(module).values())
        config = deepspeed_config(
            self.recipe,
            parameters=parameters,
            world=self.ranks.world,
            device=self.device.type,
            zero_stage=stage,
        )
        decay = self.recipe.ema.decay if phase in self._averaged else None
        return _Engine(
            module,
            make_optimizer(module, self.recipe.optimizer),
            config,
            decay=decay,
            ranks=self.ranks.world,
        )

    def describe(self, folder: Path) -> None:
        engines = self.engines  # made by all ranks together
        if self.ranks.main:
            for phase, engine in engines.items():
                save_deepspeed_config(
                    engine.config, folder, phase=phase if len(self.modules) > 1 else None
                )

    def begin(self, phase: str, passes: int) -> None:
        self.engines[phase].passes = passes

    def forward(self, phase: str, batch: Any) -> tuple[Tensor, Logs]:
        return self.engines[phase].forward(batch)

    def backward(self, phase: str, loss: Tensor) -> None:
        self.engines[phase].backward(loss)

    def step(
        self, phase: str, *, lr: float, figures: Tensor | None = None, judge: Judge | None = None
    ) -> float:
        return self.engines[phase].step(lr * self.lr_scale.get(phase, 1.0), figures, judge)

    def discard(self, phase: str) -> None:
        self.engines[phase].discard()

    def memory(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for engine in self.engines.values():
            for kind, size in engine.memory().items():
                found[kind] = found.get(kind, 0) + size
        return found

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        engines = [engine for engine in self.engines.values() if engine.ema is not None]
        for engine in engines:
            engine.swap()
        try:
            yield
        finally:
            for engine in engines:
                engine.swap()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for engine in self.engines.values():
                stack.enter_context(engine.whole())
            yield

    def state_files(self) -> Iterator[StateFile]:
        for phase, engine in self.engines.items():
            yield from engine.state_files(phase, rank=self.ranks.rank, world=self.ranks.world)

    def load(self, folder: Path) -> None:
        for phase, engine in self.engines.items():
            engine.load(SavedState(folder, phase))

    def close(self) -> None:
        self._engines = {}
        super().close()


class _Precise(nn.Module):
    """Runs a module under bf16 autocast: what must stay fp32 (times, angles, losses) stays so, as
    under strategy single.
    """

    def __init__(self, inner: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.inner, self._device = inner, device

    def forward(self, batch: Any) -> tuple[Tensor, Logs]:
        with torch.autocast(self._device.type, torch.bfloat16):
            return cast("tuple[Tensor, Logs]", self.inner(batch))


@dataclass(frozen=True)
class Piece:
    """A run of elements of one flattened parameter that this rank keeps, and where: views into the
    master weights, moments and average.
    """

    name: str
    start: int
    group: int
    view: slice  # of the group's flat tensor
    saved: bool = True  # by this rank: where all hold the same, one saves it

    @property
    def count(self) -> int:
        return int(self.view.stop - self.view.start)


class _Engine:
    """DeepSpeed's engine of one phase."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
        *,
        decay: float | None,
        ranks: int,
    ) -> None:
        import deepspeed

        self.module, self.config, self.ranks, self.passes = module, config, ranks, 0
        self.bf16 = "bf16" in config
        self.names = {id(p): name for name, p in trained(module).items()}
        self.sizes = {name: p.numel() for name, p in trained(module).items()}
        self.shapes = {name: p.shape for name, p in trained(module).items()}
        device = next(module.parameters()).device
        wrapped = _Precise(module, device) if self.bf16 else module
        # a copy: DeepSpeed writes into it
        given = {**config, "zero_optimization": dict(config["zero_optimization"])}
        # DeepSpeed makes its master weights from weights it has rounded to bf16: they get theirs
        # back below
        exact = (
            {
                name: p.detach().to("cpu", torch.float32, copy=True).view(-1)
                for name, p in trained(module).items()
            }
            if self.bf16
            else {}
        )
        for p in module.parameters():
            if (
                p.dim() == 0
                # 0.19.8 sends weights around as bytes, which a tensor without dimensions cannot be
                # viewed as
            ):
                p.data = p.data.view(1)
        with _zero_optimizer_at_stage_1():
            self.engine, *_ = deepspeed.initialize(
                model=wrapped, optimizer=optimizer, config=given, dist_init_required=False
            )
        self.partitions = _Partitions(self.engine, self.names)
        for piece in self.partitions.pieces if exact else ():
            self.partitions.flats[piece.group].data[piece.view] = exact[piece.name][
                piece.start : piece.start + piece.count
            ]
        self.gate = _Gate(self.engine.optimizer) if self.partitions.stage else None
        flats = {
            str(number): cast(nn.Parameter, flat)
            for number, flat in enumerate(self.partitions.flats)
        }
        self.ema = Ema(flats, decay=decay) if decay is not None else None

    def forward(self, batch: Any) -> tuple[Tensor, Logs]:
        if torch.is_grad_enabled():
            self.engine.set_gradient_accumulation_boundary(self.passes <= 1)
        return cast("tuple[Tensor, Logs]", self.engine(batch))

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.ranks, scale_wrt_gas=False)
        self.passes -= 1

    def step(self, lr: float, figures: Tensor | None, judge: Judge | None) -> float:
        set_rates(self.engine.optimizer, lr)
        if self.gate is None:
            # stage 0: whole gradients, averaged already, on every rank
            norm, wanted = decide(
                nn.utils.get_total_norm(
                    [p.grad for p in self.engine.module.parameters() if p.grad is not None]
                ),
                figures,
                judge,
            )
            if not wanted:
                self.engine.zero_grad()
                return norm
            self.engine.step()
        else:
            norm = self.gate.step(self.engine, figures, judge)
        if self.engine.was_step_applied() and self.ema is not None:
            self.ema.update()
        return norm

    def memory(self) -> dict[str, int]:
        """Bytes of the state on this rank by kind."""
        groups = range(len(self.partitions.flats))
        weights = [getattr(p, "ds_tensor", p) for p in self.module.parameters()]
        return {
            "weights": storage_bytes(weights),
            "master": storage_bytes(self.partitions.flats) if self.partitions.stage else 0,
            "moments": storage_bytes(
                value
                for group in groups
                for kind, value in self.partitions.state(group).items()
                if kind in MOMENTS
            ),
            "average": storage_bytes(self.ema.shadow.values()) if self.ema is not None else 0,
        }

    def discard(self) -> None:
        if self.gate is None:
            self.engine.zero_grad()
        else:
            self.gate.step(self.engine, None, lambda norm, figures: False)

    def swap(self) -> None:
        assert self.ema is not None
        self.ema.swap()
        self.partitions.publish()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.partitions.stage == 3:
                import deepspeed

                stack.enter_context(
                    deepspeed.zero.GatheredParameters(list(self.module.parameters()))
                )
            if self.bf16:
                stack.enter_context(
                    torch.autocast(next(self.module.parameters()).device.type, torch.bfloat16)
                )
            yield

    def state_files(self, phase: str, *, rank: int, world: int) -> Iterator[StateFile]:
        tensors: dict[str, Tensor] = {}
        for piece in (piece for piece in self.partitions.pieces if piece.saved):
            where = f"{piece.name}@{piece.start}"
            for kind, flat in self._kinds(piece.group).items():
                tensors[f"{kind}/{where}"] = flat.detach()[piece.view]
            steps = self.partitions.state(piece.group).get("step")
            if piece.start == 0 and steps is not None:
                tensors[f"step/{where}"] = torch.tensor([float(steps)])
        metadata = {"ema_updates": str(self.ema.updates)} if self.ema is not None else {}
        yield StateFile(rank_file(phase, rank, world), tensors, metadata)
        if rank == 0:
            state = learned_state(self.module)
            rest = {
                name: value.detach().contiguous().clone()
                for name, value in state.items()
                if name not in self.sizes
            }
            yield StateFile(buffers_file(phase), rest)

    def _kinds(self, group: int) -> dict[str, Tensor]:
        """Flat tensors of a group by the kind under which they are saved."""
        kinds = {"weight": self.partitions.flats[group]}
        kinds |= {
            kind: value for kind, value in self.partitions.state(group).items() if kind in MOMENTS
        }
        if self.ema is not None:
            kinds["ema"] = self.ema.shadow[str(group)]
        return kinds

    @torch.no_grad()
    def load(self, saved: SavedState) -> None:
        saved.check(self.sizes)
        if self.ema is not None:
            if saved.ema_updates is None:
                raise missing_average(saved.folder)
            self.ema.updates = saved.ema_updates
        started = saved.names("exp_avg") | saved.names("momentum_buffer")
        for group in range(len(self.partitions.flats)):
            names = {piece.name for piece in self.partitions.pieces if piece.group == group}
            muon = not names.isdisjoint(saved.names("momentum_buffer"))
            self.partitions.reset_state(group, (MOMENTS[2:] if muon else ADAM) if started else ())
        for piece in self.partitions.pieces:
            for kind, flat in self._kinds(piece.group).items():
                # never stepped: its moments are 0
                if kind in MOMENTS and piece.name not in started:
                    continue
                flat.data[piece.view] = saved.read(
                    kind, piece.name, start=piece.start, count=piece.count
                ).to(flat.device)
            if started and (steps := saved.step(piece.name)) is not None:
                self.partitions.state(piece.group)["step"].fill_(steps)
        rest = {name: value for name, value in saved.buffers().items() if name not in self.sizes}
        own = self.module.state_dict()
        for name, value in rest.items():
            own[name].copy_(value)
        self.partitions.publish()


@contextlib.contextmanager
def _zero_optimizer_at_stage_1() -> Iterator[None]:
    """Inside, bf16 weights with fp32 accumulation take ZeRO's optimiser at stage 1 too.

    DeepSpeed 0.19.8 would take its BF16_Optimizer, which keeps fp32 gradients of all weights on
    every rank for good and shards otherwise; ZeRO's own adds up in fp32 where it is told to.
    """
    from deepspeed.runtime.engine import ZERO_OPTIMIZATION, DeepSpeedEngine

    check = DeepSpeedEngine._do_optimizer_sanity_check

    def choose(engine: Any, optimizer: Any) -> Any:
        chosen = check(engine, optimizer)
        return ZERO_OPTIMIZATION if engine.zero_optimization() else chosen

    DeepSpeedEngine._do_optimizer_sanity_check = choose
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = check


class _Gate:
    """Sees the gradient norm before DeepSpeed steps on it, reads it together with the step's other
    figures, and has the step skipped, gradients and all, when the judge says no.

    DeepSpeed skips a step whose norm is not finite; the gate tells it so for others. What it is
    given lies on the host, so that it asks the device for nothing more.
    """

    def __init__(self, optimizer: Any) -> None:
        self.norm = math.inf
        self._figures: Tensor | None = None
        self._judge: Judge | None = None
        self._seen = False
        self._grouped = hasattr(optimizer, "_get_norm_groups")  # stage 3
        if self._grouped:
            self._original = optimizer._get_norm_groups
            optimizer._get_norm_groups = self._groups
        else:
            self._original = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = self._total
            if not optimizer.cpu_offload:
                # it would look for NaN in every gradient and wait for the answer: the norm says
                # the same
                optimizer.check_overflow = lambda *args, **kwargs: None

    def step(self, engine: Any, figures: Tensor | None, judge: Judge | None) -> float:
        self._figures, self._judge, self._seen, self.norm = figures, judge, False, math.inf
        engine.step()
        if not self._seen:  # a gradient that is not finite was found before its norm was taken
            decide(torch.tensor(math.inf), figures, judge)
        return self.norm

    def _decide(self, norm: Tensor, groups: Sequence[Tensor]) -> tuple[bool, list[float]]:
        """(whether to step, the groups' norms), by one read."""
        self._seen = True
        device = norm.device
        beside = torch.stack([group.to(device).double().view(()) for group in groups])
        rest = [beside] if self._figures is None else [beside, self._figures.to(device)]

        def judge(value: float, values: list[float]) -> bool:
            groups_read.extend(values[: len(groups)])
            return self._judge is None or self._judge(value, values[len(groups) :])

        groups_read: list[float] = []
        self.norm, wanted = decide(norm, torch.cat(rest), judge)
        return wanted, groups_read

    def _total(self, *args: Any, **kwargs: Any) -> Tensor:
        norm = self._original(*args, **kwargs)
        wanted, (value,) = self._decide(norm, [norm])
        return torch.tensor(value if wanted else math.inf, dtype=norm.dtype)

    def _groups(self) -> list[Tensor]:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        groups: list[Tensor] = self._original()
        norm = combine_grad_norm_groups(groups)
        wanted, values = self._decide(norm, groups)
        return [torch.tensor(value if wanted else math.inf, dtype=norm.dtype) for value in values]


class _Partitions:
    """What this rank keeps of the state: flat fp32 master weights by group, the optimiser's state
    of each, and whose elements they are.
    """

    def __init__(self, engine: Any, names: Mapping[int, str]) -> None:
        self.optimizer: Any = engine.optimizer
        self.stage = int(engine.zero_optimization_stage())
        parameters = [(names[id(p)], p) for p in engine.module.parameters() if id(p) in names]
        if self.stage == 0:
            self._views = [p for _, p in parameters]
            rank, world = engine.global_rank, engine.world_size
            self.pieces = [
                Piece(name, 0, i, slice(0, p.numel()), i % world == rank)
                for i, (name, p) in enumerate(parameters)
            ]
            self.flats = [p.detach().view(-1) for _, p in parameters]
        elif self.stage < 3:
            self.flats = list(self.optimizer.single_partition_of_fp32_groups)
            self.pieces = [
                piece for name, p in parameters if (piece := self._mapped(name, p)) is not None
            ]
        else:
            self.flats = list(self.optimizer.fp32_partitioned_groups_flat)
            self.pieces = [
                piece for name, p in parameters if (piece := self._partitioned(name, p)) is not None
            ]

    def _mapped(self, name: str, p: Any) -> Piece | None:
        mapping = p._hp_mapping
        if mapping is None:
            return None
        source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Piece(
            name,
            source.start,
            mapping.param_group_index,
            slice(target.start, target.start + target.numel),
        )

    def _partitioned(self, name: str, p: Any) -> Piece | None:
        group, offset, count = self.optimizer.grad_position[self.optimizer.get_param_id(p)]
        start = self.optimizer._get_param_partition_rank(p) * count
        real = min(count, p.ds_numel - start)  # the last ranks pad
        return Piece(name, start, group, slice(offset, offset + real)) if real > 0 else None

    def state(self, group: int) -> dict[str, Tensor]:
        """The optimiser's state of a group: exp_avg, exp_avg_sq and step, nothing before the first
        step.
        """
        base = getattr(self.optimizer, "optimizer", self.optimizer)
        key = self._views[group] if self.stage == 0 else self.flats[group]
        found: dict[str, Tensor] = base.state.get(key, {})
        if self.stage == 0:
            return {
                kind: value.view(-1) if kind in MOMENTS else value for kind, value in found.items()
            }
        return found

    def reset_state(self, group: int, moments: Sequence[str]) -> None:
        """Zeros of these kinds in place of a group's state, with AdamW's count of steps."""
        base = getattr(self.optimizer, "optimizer", self.optimizer)
        key = self._views[group] if self.stage == 0 else self.flats[group]
        if not moments:
            base.state.pop(key, None)
            return
        base.state[key] = {kind: torch.zeros_like(key, requires_grad=False) for kind in moments}
        if ADAM[0] in moments:
            base.state[key]["step"] = torch.zeros((), dtype=torch.float32, device=key.device)

    @torch.no_grad()
    def publish(self) -> None:
        """The master weights become the weights that forward uses."""
        opt = self.optimizer
        if self.stage in (1, 2):
            opt.update_lp_params()
        elif self.stage == 3:
            opt._partition_all_parameters()  # what stays gathered would not be gathered anew
            for group in range(len(self.flats)):
                opt._reassign_or_swap_out_partitioned_parameters(group)
            if opt.persistent_parameters:
                opt.persistent_parameters[0].all_gather(opt.persistent_parameters)
            opt.invalidate_secondary_tensor()
