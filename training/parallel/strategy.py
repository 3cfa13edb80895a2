"""How a step is carried out: on one device in plain torch (`single`), or spread over ranks. The
trainer knows only this interface.

A task hands over one module per *phase* (a GAN has two); its forward takes a batch and returns
(loss sum, logs). Each phase has an optimiser of its own.

    strategy = make_strategy(recipe)
    strategy.prepare({"model": module}, recipe, ema=("model",))
    loss_sum, logs = strategy.forward("model", batch)
    strategy.backward("model", loss_sum / frames_of_the_global_batch)
    # clips; leaves the weights alone when the gradient is not finite
    norm = strategy.step("model", lr=1e-4)
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mudit_engine.errors import InputError
from mudit_engine.hardware import keep_freed_memory
from mudit_engine.training.checkpoints.async_save import StateFile, write_state
from mudit_engine.training.checkpoints.saved_state import SavedState
from mudit_engine.training.parallel.muon import MuonAdamW, hidden_matrices
from mudit_engine.training.ranks import Ranks

if TYPE_CHECKING:
    from mudit_engine.training.recipe import OptimizerConfig, Recipe

# name -> (sum, weight): averages that add up over micro-batches and ranks. What lies on the device
# stays there until a step is logged.
Logs = dict[str, tuple[Tensor, Tensor | float]]
ADAM = ("exp_avg", "exp_avg_sq")
MOMENTS = (*ADAM, "momentum_buffer")  # Muon's


# of (gradient norm, figures): whether the step is taken
Judge = Callable[[float, list[float]], bool]


def decide(norm: Tensor, figures: Tensor | None, judge: Judge | None) -> tuple[float, bool]:
    """(gradient norm, whether to step), with one read of the device."""
    read = norm.detach().double().view(1)
    if figures is not None:
        read = torch.cat([read, figures.to(read.device)])
    value, *rest = read.tolist()
    wanted = judge(value, rest) if judge is not None else True
    return value, wanted and math.isfinite(value)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class Strategy(ABC):
    """How a step is carried out; what the trainer needs from an engine.

    `rank` and `world` count the ranks that take different songs; `shares` of them in a row work on
    the same songs (sequence parallelism). A phase is a module with an optimiser of its own.

    Source:
        Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), for the strategy `deepspeed`.

    Examples:
        >>> from mudit_engine.training.recipe import load_recipe
        >>> strategy = Single(torch.device("cpu"))
        >>> recipe = load_recipe("tiny-vae")
        >>> strategy.prepare({"model": nn.Linear(2, 1)}, recipe, lr_scale={}, ema=())
        >>> strategy.begin("model", passes=1)
        >>> loss = strategy.modules["model"](torch.ones(1, 2)).square().sum()
        >>> strategy.backward("model", loss)
        >>> strategy.step("model", lr=1e-3) >= 0
        True
    """

    rank: int = 0
    world: int = 1
    shares: int = 1
    ranks: Ranks
    device: torch.device

    @abstractmethod
    def prepare(
        self,
        modules: Mapping[str, nn.Module],
        recipe: Recipe,
        *,
        lr_scale: Mapping[str, float],
        ema: Sequence[str],
        called_elsewhere: Sequence[str] = (),
    ) -> None:
        """Takes over the phases' modules: places them, makes optimisers and the average of the
        phases in `ema`.

        `called_elsewhere` are phases whose module another phase's forward calls.
        """

    @abstractmethod
    def begin(self, phase: str, passes: int) -> None:
        """Clears gradients; `passes` forward and backward passes follow."""

    @abstractmethod
    def forward(self, phase: str, batch: Any) -> tuple[Tensor, Logs]:
        """The loss sum of a micro-batch and figures to log, by the module of a phase."""

    @abstractmethod
    def backward(self, phase: str, loss: Tensor) -> None:
        """Adds the gradient of a loss that is already divided by the weight of the global batch."""

    @abstractmethod
    def step(
        self, phase: str, *, lr: float, figures: Tensor | None = None, judge: Judge | None = None
    ) -> float:
        """Clips, updates the weights and their average, clears gradients. Returns the gradient norm
        before clipping.

        The norm and `figures` (fp64 [n] on the device) are read at once and handed to `judge`. When
        the norm is NaN or infinite, or judge says no, nothing but the gradients changes.
        """

    @abstractmethod
    def discard(self, phase: str) -> None:
        """Clears gradients without a step."""

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks of values [n] where they lie; a device is not waited for."""
        return self.ranks.total(values)

    def memory(self) -> dict[str, int]:
        """Bytes of the state on this rank by kind: weights, master, moments, average."""
        return {}

    @abstractmethod
    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, forward uses the averaged weights."""

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the modules can be called by themselves, not through `forward`, and hold whole
        weights.
        """
        return contextlib.nullcontext()

    def describe(self, folder: Path) -> None:  # noqa: B027 - one device has nothing more to say than the recipe
        """Writes what the engine was told into the run's folder."""

    def close(self) -> None:
        """Leaves the other ranks: the last call of a run that ended well."""
        self.ranks.close()

    @abstractmethod
    def state_files(self) -> Iterator[StateFile]:
        """Weights, optimiser and average of this rank, file by file. The tensors may be those that
        training goes on with.
        """

    def save(self, folder: Path) -> None:
        """Writes weights, optimiser and average into an empty folder (each rank its own files)."""
        write_state(self.state_files(), folder)

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, also by another number of ranks or at another ZeRO stage."""


class Single(Strategy):
    """Plain torch on one device: the reference that other strategies are held to."""

    def __init__(self, device: torch.device, *, precision: str = "fp32") -> None:
        self.device, self.precision, self.ranks = device, precision, Ranks()
        if device.type == "cpu":
            keep_freed_memory()

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
        self.clip, self.lr_scale = recipe.optimizer.clip, dict(lr_scale)
        self.optimizers = {
            phase: make_optimizer(module, recipe.optimizer)
            for phase, module in self.modules.items()
        }
        decay = recipe.ema.decay
        self.emas = (
            {phase: Ema(trained(self.modules[phase]), decay=decay) for phase in ema}
            if recipe.ema.enabled
            else {}
        )

    def begin(self, phase: str, passes: int) -> None:
        self.discard(phase)

    def forward(self, phase: str, batch: Any) -> tuple[Tensor, Logs]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return cast("tuple[Tensor, Logs]", self.modules[phase](batch))

    def backward(self, phase: str, loss: Tensor) -> None:
        loss.backward()

    def step(
        self, phase: str, *, lr: float, figures: Tensor | None = None, judge: Judge | None = None
    ) -> float:
        optimizer, parameters = self.optimizers[phase], list(trained(self.modules[phase]).values())
        for p in parameters:
            # no song of the batch had what this weight reads: a gradient of 0, as ranks that share
            # their gradients have it, and not a weight that the optimiser skips
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm, wanted = decide(total, figures, judge)
        if wanted:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, total)
            set_rates(optimizer, lr * self.lr_scale.get(phase, 1.0))
            optimizer.step()
            if phase in self.emas:
                self.emas[phase].update()
        self.discard(phase)
        return norm

    def discard(self, phase: str) -> None:
        self.optimizers[phase].zero_grad(set_to_none=True)

    def memory(self) -> dict[str, int]:
        slots = [
            value
            for optimizer in self.optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return {
            "weights": storage_bytes(p for m in self.modules.values() for p in m.parameters()),
            "moments": storage_bytes(slots),
            "average": storage_bytes(t for e in self.emas.values() for t in e.shadow.values()),
        }

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        for ema in self.emas.values():
            ema.swap()
        try:
            yield
        finally:
            for ema in self.emas.values():
                ema.swap()

    def state_files(self) -> Iterator[StateFile]:
        for phase, module in self.modules.items():
            yield StateFile(f"{phase}.safetensors", _apart(learned_state(module)))
            yield StateFile(
                f"{phase}.optimizer.safetensors",
                optimizer_tensors(module, self.optimizers[phase]),
            )
        for phase, ema in self.emas.items():
            yield StateFile(
                f"{phase}.ema.safetensors", _apart(ema.shadow), {"updates": str(ema.updates)}
            )

    def load(self, folder: Path) -> None:
        for phase, module in self.modules.items():
            saved = SavedState(folder, phase)
            shapes = {name: p.shape for name, p in trained(module).items()}
            state = saved.buffers() | (saved.whole("weight", shapes) if saved.sharded else {})
            restore(module, state, source=folder)
            load_optimizer_tensors(module, self.optimizers[phase], _optimizer_state(saved, shapes))
            if phase in self.emas:
                if saved.ema_updates is None:
                    raise missing_average(folder)
                self.emas[phase].load(saved.whole("ema", shapes), updates=saved.ema_updates)


class Ema:
    """fp32 average of parameters: a' = a + (1 - d)(w - a), d = min(decay, (1 + n) / (10 + n)), so
    that the start is soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, decay: float) -> None:
        self.parameters, self.decay, self.updates = dict(parameters), decay, 0
        self.shadow = {
            name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), current, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the parameters and their average (bf16 parameters would lose the average's
        precision: they are fp32 here).
        """
        for name, p in self.parameters.items():
            kept = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    def load(self, shadow: Mapping[str, Tensor], *, updates: int) -> None:
        _check_names(self.shadow, shadow, "averaged weights")
        for name, value in shadow.items():
            self.shadow[name].copy_(value)
        self.updates = updates


def parameter_groups(
    module: nn.Module, config: OptimizerConfig
) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """(Muon's matrices, AdamW's groups) of what is trained; none is empty but the first, which is
    without Muon.

    Embeddings and gains do not decay, whatever their shape: a gain of 0 is no rest but a loss.
    """
    kept = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)} | gains(module)
    hidden = hidden_matrices(module) if config.kind == "muon" else set()
    matrices = [p for p in trained(module).values() if id(p) in hidden]
    others = [p for p in trained(module).values() if id(p) not in hidden]
    plain = [p for p in others if p.dim() <= 1 or id(p) in kept]
    decayed = [p for p in others if p.dim() > 1 and id(p) not in kept]
    shared = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, **shared},
        {"params": plain, "weight_decay": 0.0, **shared},
    ]
    return matrices, [g for g in groups if g["params"]]


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with the fused kernel, decay on matrices only; or Muon beside it (muon.py)."""
    matrices, groups = parameter_groups(module, config)
    if config.kind == "muon":
        return MuonAdamW(
            matrices,
            groups,
            lr=config.muon_lr,
            momentum=config.muon_momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(groups, fused=True)


def gains(module: nn.Module) -> set[int]:
    """Ids of the gains of norms, which are named so (q_gain [streams, head width], k_gain)."""
    return {id(p) for name, p in module.named_parameters() if name.endswith("gain")}


def set_rates(optimizer: Any, lr: float) -> None:
    """The learning rate of every group: `lr`, times the share of a group that has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Learning rate of step 0, 1, ...: a pure function, so that a resumed run needs no scheduler
    state.
    """
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    total = schedule.steps or recipe.steps
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(total - schedule.warmup, 1)
    if schedule.kind == "constant":
        share = 1.0
    elif schedule.kind == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    else:
        share = min(1.0, max(0.0, total - step) / max(schedule.decay * total, 1))
    return peak * (schedule.floor + (1 - schedule.floor) * share)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state without frozen parameters, which a resumed run has from where this one had
    them.
    """
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def restore(module: nn.Module, state: Mapping[str, Tensor], *, source: Path) -> None:
    """Loads weights of the same names and shapes. Raises InputError that names the first
    difference.
    """
    _check_names(learned_state(module), state, f"weights in '{source}'")
    module.load_state_dict(dict(state), strict=False)


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `exp_avg/<parameter>`, `exp_avg_sq/<parameter>`,
    `step/<parameter>`, Muon's `momentum_buffer/<parameter>`.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    state = optimizer.state
    return _apart(
        {
            f"{kind}/{names[id(p)]}": value
            for p, slots in state.items()
            for kind, value in slots.items()
        }
    )


def load_optimizer_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    parameters = dict(module.named_parameters())
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise InputError(
                f"the checkpoint's optimiser knows parameter '{name}', this model does not: it was "
                f"trained with another configuration"
            )
        slots.setdefault(name, {})[kind] = value
    optimizer.state.clear()
    for name, state in slots.items():
        p = parameters[name]
        optimizer.state[p] = {kind: value.to(p.device) for kind, value in state.items()}


def _optimizer_state(saved: SavedState, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    state = {
        f"{kind}/{name}": value
        for kind in MOMENTS
        for name, value in saved.whole(kind, shapes).items()
    }
    unknown = {name for kind in MOMENTS for name in saved.names(kind)} - shapes.keys()
    state |= {f"exp_avg/{name}": torch.empty(0) for name in unknown}  # refused by name below
    return state | {
        f"step/{name}": torch.tensor(steps)
        for name in shapes
        if (steps := saved.step(name)) is not None
    }


def missing_average(folder: Path) -> InputError:
    return InputError(
        f"checkpoint '{folder}' holds no averaged weights: resume with --set ema.enabled=false, as "
        f"it was trained"
    )


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, with clones of those that share a storage (tied weights), which
    safetensors refuses.
    """
    seen: set[int] = set()
    out = {}
    for name, value in tensors.items():
        own = value.detach().contiguous()
        out[name] = own.clone() if own.data_ptr() in seen and own.numel() else own
        seen.add(own.data_ptr())
    return out


def _check_names(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    wrong = [f"{name} is missing" for name in own.keys() - given.keys()] + [
        f"{name} is unknown" for name in given.keys() - own.keys()
    ]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(t.shape)}"
        for name, t in own.items()
        if name in given and given[name].shape != t.shape
    ]
    if wrong:
        raise InputError(
            f"{what} do not fit this model: {sorted(wrong)[0]} ({len(wrong)} differences). Use the "
            f"configuration they were trained with"
        )
