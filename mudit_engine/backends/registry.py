"""What can compute attention, and what each of them serves.

    for one in ATTENTION.values(): print(one.name, one.refuses(asked))
    out = ATTENTION["flex"].attend(q, k, v, segments, cos, sin, scale=None)

A backend that serves every call needs no package; another one is an entry here. `refuses` says why
it cannot serve a call, as the error that a user who named it gets; `auto` takes the next one then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mudit_engine.availability import available, pinned, pip_install
from mudit_engine.backends.flex import flex
from mudit_engine.backends.grouped import grouped_attention
from mudit_engine.backends.varlen import package_varlen, torch_varlen, varlen_attention
from mudit_engine.errors import InputError, MissingError, MuditError
from mudit_engine.kernels import attention as kernels
from mudit_engine.kernels import attention_hopper, attention_hopper_backward
from mudit_engine.kernels.worklist import Segments

Attend = Callable[..., Tensor]
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Asked:
    """What a call asks of a backend. capability: of the CUDA device, such as 90; 0 elsewhere."""

    device: str
    capability: int
    dtype: torch.dtype
    head_dim: int
    grad: bool
    shared_keys: bool = False
    """Whether two segments read the same rows of keys."""


@dataclass(frozen=True)
class Backend:
    """An entry: its name, what it is, why it cannot serve a call (None: it can), and the call."""

    name: str
    about: str
    refuses: Callable[[Asked], MuditError | None]
    attend: Attend


def asked(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Asked:
    """What a call of ops.attention asks."""
    grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return Asked(
        q.device.type, capability(q.device), q.dtype, q.shape[2], grad, shares_keys(segments)
    )


@functools.cache
def capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shares_keys(segments: Segments) -> bool:
    """Whether two segments read the same rows of keys; found once a layout."""
    if "shares_keys" not in segments.plans:
        try:
            segments.check_keys_apart()
            segments.plans["shares_keys"] = False
        except ValueError:
            segments.plans["shares_keys"] = True
    found: bool = segments.plans["shares_keys"]
    return found


def _nothing(call: Asked) -> None:
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _triton(call: Asked) -> MuditError | None:
    from mudit_engine.kernels.attention_forward import _INTERPRETED

    if call.device != "cuda" and not _INTERPRETED:
        return MissingError("backend 'triton' needs a CUDA device: use 'eager' here")
    if call.head_dim not in kernels.HEAD_DIMS or call.dtype not in kernels.DTYPES:
        return InputError(
            f"backend 'triton' takes head widths {', '.join(map(str, kernels.HEAD_DIMS))} in "
            f"bfloat16, float16 and float32, not {call.head_dim} in {_name(call.dtype)}: use "
            f"'eager'"
        )
    if call.grad and call.shared_keys:
        return InputError("backend 'triton' has no gradients for keys that two segments share")
    return None


def _half(call: Asked, name: str, *, widest: int, step: int = 8) -> MuditError | None:
    """What every flash-attention needs."""
    if call.device != "cuda":
        return MissingError(f"backend '{name}' needs a CUDA device: use 'eager' here")
    if call.dtype not in HALVES:
        return InputError(
            f"backend '{name}' takes float16 and bfloat16, not {_name(call.dtype)}: use 'triton' "
            f"or 'eager'"
        )
    if call.head_dim > widest or call.head_dim % step:
        return InputError(
            f"backend '{name}' takes head widths up to {widest} in steps of {step}, not "
            f"{call.head_dim}: use 'triton' or 'eager'"
        )
    return None


def _hopper(
    call: Asked,
    name: str = "hopper",
    refusal: Callable[[torch.device], str | None] = attention_hopper.refusal,
) -> MuditError | None:
    if call.dtype not in HALVES or call.head_dim not in kernels.HEAD_DIMS:
        return InputError(
            f"backend '{name}' takes head widths {', '.join(map(str, kernels.HEAD_DIMS))} in "
            f"bfloat16 and float16, not {call.head_dim} in {_name(call.dtype)}: use 'triton'"
        )
    if call.grad and call.shared_keys:
        return InputError(f"backend '{name}' has no gradients for keys that two segments share")
    if call.device == "cuda" and call.capability != attention_hopper.CAPABILITY:
        return MissingError(
            f"backend '{name}' runs on an NVIDIA H100, H200 or GH200, and this card has capability "
            f"{call.capability / 10:.1f}: use 'triton'"
        )
    reason = refusal(torch.device(call.device))
    return None if reason is None else MissingError(f"backend '{name}': {reason}")


# name -> (import name, what it is called, cards by capability)
FLASH = {
    "flash2": ("flash_attn", "flash-attention 2", range(80, 1000)),
    "flash3": ("flash_attn_interface", "flash-attention 3", range(90, 100)),
    "flash4": ("flash_attn.cute", "flash-attention 4", range(90, 120)),
}


def _flash_package(name: str, call: Asked) -> MuditError | None:
    module, title, cards = FLASH[name]
    if (refused := _half(call, name, widest=128)) is not None:
        return refused
    if call.capability not in cards:
        return InputError(
            f"{title} has no kernels for capability {call.capability / 10:.1f} (it has from "
            f"{cards.start / 10:.1f}): use 'varlen' or 'triton'"
        )
    if not _found(module):
        command = (
            pip_install(pinned("flash_attn")) if name == "flash2" else f"its own build of {title}"
        )
        return MissingError(f"backend '{name}' needs the package '{module}': {command}")
    return None


@functools.cache
def _found(module: str) -> bool:
    """Like available(), for a module inside a package that may be missing itself."""
    return available(module.partition(".")[0]) and available(module)


def _varlen(call: Asked) -> MuditError | None:
    return _half(call, "varlen", widest=256)


def _cudnn(call: Asked) -> MuditError | None:
    if (refused := _half(call, "cudnn", widest=128)) is not None:
        return refused
    if not torch.backends.cudnn.is_available() or call.capability < 80:
        return MissingError("backend 'cudnn' needs a torch with cuDNN and an Ampere card or newer")
    return None


def _flex(call: Asked) -> MuditError | None:
    if call.shared_keys:
        return InputError(
            "backend 'flex' takes segments with keys of their own: a row carries one number"
        )
    if call.grad and call.device == "cpu":
        return InputError("backend 'flex' has no gradients on a CPU: use 'eager' or 'sdpa'")
    if call.device == "cuda" and call.dtype not in (*HALVES, torch.float32):
        return InputError(f"backend 'flex' takes no {_name(call.dtype)}: use 'eager'")
    return None


def _flash_of(call: Asked) -> str:
    """The newest flash-attention that serves a call; torch's own where no package does."""
    return next((name for name in reversed(FLASH) if _flash_package(name, call) is None), "varlen")


def _flash(call: Asked) -> MuditError | None:
    return _half(call, "flash", widest=128)


def _by_varlen(kernel: Callable[[], object]) -> Attend:
    def attend(*given: object, scale: float | None) -> Tensor:
        return varlen_attention(*given, scale=scale, kernel=kernel())  # type: ignore[arg-type]

    return attend


def _newest_flash(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *tables: Tensor | None,
    scale: float | None,
) -> Tensor:  # fmt: skip
    name = _flash_of(asked(q, k, v, segments))
    return ATTENTION[name].attend(q, k, v, segments, *tables, scale=scale)


_ENTRIES = (
    Backend("eager", "torch's SDPA, a segment at a time", _nothing, kernels.attention_reference),
    Backend("triton", "our kernels; queries are rotated inside", _triton, kernels.attention),
    Backend(
        "hopper",
        "our warp-specialised forward of an H100, in Gluon",
        _hopper,
        attention_hopper.attention_hopper,
    ),
    Backend("flash", "the newest flash-attention that is here", _flash, _newest_flash),
    *(
        Backend(
            name,
            title,
            functools.partial(_flash_package, name),
            _by_varlen(functools.partial(package_varlen, module)),
        )
        for name, (module, title, _) in FLASH.items()
    ),
    Backend("varlen", "torch.nn.attention.varlen", _varlen, _by_varlen(torch_varlen)),
    Backend(
        "cudnn",
        "cuDNN by torch's SDPA, segments of equal shape in one batch",
        _cudnn,
        functools.partial(grouped_attention, backend="cudnn"),
    ),
    Backend(
        "sdpa", "torch's SDPA, segments of equal shape in one batch", _nothing, grouped_attention
    ),
    Backend("flex", "torch's flex_attention with a block mask", _flex, flex),
    Backend(
        "hopper-grad",
        "the same as hopper, with gradients of the keys by it, too",
        functools.partial(_hopper, name="hopper-grad", refusal=attention_hopper_backward.refusal),
        attention_hopper_backward.attention_hopper_grad,
    ),
)
ATTENTION = {entry.name: entry for entry in _ENTRIES}
