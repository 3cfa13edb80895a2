"""Triton kernels of other packages at the work of ours: Liger-Kernel's LayerNorm, RoPE, GELU;
flash-attn's attention, LayerNorm, rotary.

Their own host code launches them where it accepts CPU tensors, so that blocks and warps are what a
user gets; flash-attn's attention is launched from here, at our tile. Nothing of theirs is copied
here: a package that is not installed is a reason, not a figure.

    for peer in peers():
        rows = peer.compiled("sm_80", "bf16")

flash-attn only installs where CUDA can be built, but its Triton files need no build: they are also
taken from a folder given by MUDIT_FLASH_ATTN (see FLASH_ATTN_HINT).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.compiler.errors import CompilationError

from mudit_engine.availability import available, install_command
from mudit_engine.benchmarks.static_attention import HEADS, ROWS, tiles
from mudit_engine.benchmarks.static_attention import row as attention_row
from mudit_engine.benchmarks.static_elementwise import SONGS, WIDTH, Songs, one_processor
from mudit_engine.benchmarks.static_figures import DTYPES, PEER, figures, skipped
from mudit_engine.kernels.attention_forward import Config
from mudit_engine.profiling.aot import compile_for
from mudit_engine.profiling.traffic import Traffic, count_traffic

FLASH_ATTN = "MUDIT_FLASH_ATTN"
FLASH_ATTN_HINT = (
    "flash-attn is not installed: its Triton files need no CUDA build, "
    "FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE"
    f" pip install --no-deps --no-build-isolation --target FOLDER flash-attn, then "
    f"{FLASH_ATTN}=FOLDER"
)


@dataclass(frozen=True)
class Peer:
    """One launch of another package's kernels, streaming rows as ours do."""

    package: str
    ours: tuple[str, ...]
    """Our op beside each kernel that is launched, in order."""
    launch: Callable[[torch.dtype, Songs], None]
    live: float = 1.0
    """Share of lanes that are not masked off, where rows or heads are padded to a power of two."""
    head_dim: int | None = None

    def missing(self) -> str | None:
        """Why it cannot be had, or None."""
        return _missing[self.package]()

    def compiled(self, arch: str, dtype: str) -> list[dict[str, Any]]:
        with compile_for(arch) as builds:
            self.launch(DTYPES[dtype], SONGS)
        return [
            figures(
                build,
                op=op,
                variant=f"{PEER}{self.package}",
                head_dim=self.head_dim,
                dtype=dtype,
                live=self.live,
            )
            | {"kernel": build.kernel}
            for op, build in zip(self.ours, builds, strict=True)
        ]

    def traffic(self, dtype: str, songs: Songs) -> list[Traffic]:
        with one_processor(), _interpretable(self.package), count_traffic() as launches:
            self.launch(DTYPES[dtype], songs)
        return launches


@contextlib.contextmanager
def _interpretable(package: str) -> Iterator[None]:
    """Functions of CUDA's libdevice have no interpretation; what they return changes no address."""
    if package != "liger":
        yield
        return
    from liger_kernel.ops import geglu, layer_norm

    with (
        mock.patch.object(geglu, "tanh", lambda x: x),
        mock.patch.object(layer_norm, "rsqrt", lambda x: x),
    ):
        yield


def _liger_missing() -> str | None:
    return (
        None
        if available("liger_kernel")
        else f"liger-kernel is not installed: {install_command('liger_kernel')}"
    )


def flash_attn_folder() -> Path | None:
    """Where flash-attn's Python files lie, or None. Nothing of it is imported: that needs its CUDA
    extension.
    """
    given = os.environ.get(FLASH_ATTN)
    found = importlib.util.find_spec("flash_attn") if available("flash_attn") else None
    places = (
        [Path(given, "flash_attn"), Path(given)]
        if given
        else [Path(p) for p in (found.submodule_search_locations or ())]
        if found
        else []
    )
    return next((p for p in places if (p / "flash_attn_triton.py").is_file()), None)


def _flash_missing() -> str | None:
    if flash_attn_folder() is not None:
        return None
    given = os.environ.get(FLASH_ATTN)
    return (
        f"{FLASH_ATTN}={given} holds no flash_attn/flash_attn_triton.py"
        if given
        else FLASH_ATTN_HINT
    )


_missing: dict[str, Callable[[], str | None]] = {
    "liger": _liger_missing,
    "flash-attn": _flash_missing,
}


def _flash_module(name: str) -> Any:
    """A module of flash-attn, imported without its package, which would ask for the CUDA extension.
    For a process of its own.
    """
    folder = flash_attn_folder()
    assert folder is not None
    if "flash_attn" not in sys.modules:
        package = types.ModuleType("flash_attn")
        package.__path__ = [str(folder)]
        sys.modules["flash_attn"] = package
    return importlib.import_module(f"flash_attn.{name}")


def _leaves(*shapes: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.zeros(*shape, dtype=dtype) for shape in shapes]


class _Epsilon(float):
    """The interpreter hands a kernel Python floats as they are, and Liger's norm asks its epsilon
    for another type.
    """

    def to(self, dtype: Any) -> float:
        return float(self)


def _liger_norm(dtype: torch.dtype, songs: Songs) -> None:
    from liger_kernel.ops.layer_norm import layer_norm_backward, layer_norm_forward

    x, weight, bias = _leaves((sum(songs), WIDTH), (WIDTH,), (WIDTH,), dtype=dtype)
    y, x, mean, rstd, *_ = layer_norm_forward(x, weight, bias, _Epsilon(1e-6))
    layer_norm_backward(y, x, weight, bias, mean, rstd)


def _liger_rope(head_dim: int) -> Callable[[torch.dtype, Songs], None]:
    def launch(dtype: torch.dtype, songs: Songs) -> None:
        from liger_kernel.ops.rope import rope_backward, rope_forward

        rows, heads = sum(songs), WIDTH // head_dim
        # heads before rows is how transformers hands them over; the kernel wants them back
        q, k = (x.transpose(1, 2) for x in _leaves(*2 * [(1, rows, heads, head_dim)], dtype=dtype))
        cos, sin = _leaves(*2 * [(1, rows, head_dim)], dtype=torch.float32)
        rope_forward(q, k, cos, sin)
        rope_backward(q, k, cos, sin)

    return launch


def _liger_gelu(dtype: torch.dtype, songs: Songs) -> None:
    from liger_kernel.ops.geglu import geglu_backward, geglu_forward

    a, b = _leaves(*2 * [(sum(songs), 4 * WIDTH)], dtype=dtype)
    _, _, c = geglu_forward(a, b)
    geglu_backward(a, b, c)


def _flash_norm(dtype: torch.dtype, songs: Songs) -> None:
    # the module asks a GPU for its warp size when it is imported
    device = types.SimpleNamespace(warp_size=32, multi_processor_count=108)
    with mock.patch.multiple(
        torch.cuda, current_device=lambda: 0, get_device_properties=lambda _: device
    ):
        module = _flash_module("ops.triton.layer_norm")
    x, residual, weight, bias = _leaves(
        (sum(songs), WIDTH), (sum(songs), WIDTH), (WIDTH,), (WIDTH,), dtype=dtype
    )
    out, total, stats = torch.empty_like(x), torch.empty_like(x), torch.zeros(2, sum(songs))
    # tuned by measurement on a device; here the warps that our kernel takes for such a row
    module._layer_norm_fwd_1pass_kernel.fn[(sum(songs),)](
        x, out, weight, bias, residual, None, None, None, None, total, None, None, None, None,
        *stats, WIDTH, WIDTH, WIDTH, WIDTH, 0, 0, sum(songs), WIDTH, 1e-6, 0.0, 0, False,
        triton.next_power_of_2(WIDTH), True, True, True, False, False, False, HAS_X1=False,
        HAS_W1=False, HAS_B1=False, num_warps=8,
    )  # fmt: skip


def _flash_rotary(head_dim: int) -> Callable[[torch.dtype, Songs], None]:
    def launch(dtype: torch.dtype, songs: Songs) -> None:
        kernel = _flash_module("ops.triton.rotary").rotary_kernel
        rows, heads = sum(songs), WIDTH // head_dim
        x, out = _leaves(*2 * [(1, rows, heads, head_dim)], dtype=dtype)
        cos, sin = _leaves(*2 * [(rows, head_dim // 2)], dtype=torch.float32)
        kernel[(triton.cdiv(heads, 2), triton.cdiv(rows, 8), 1)](
            out, x, cos, sin, None, 0, rows, heads, rows, *out.stride(), *x.stride(), head_dim,
            False, False, False, False, BLOCK_M=8, BLOCK_H=2,
        )  # fmt: skip

    return launch


def _padded(width: int) -> float:
    return width / triton.next_power_of_2(width)


def peers(head_dims: Sequence[int] = (64, 96, 128)) -> dict[str, Peer]:
    """Name -> peer of the row-wise kernels, whether it can be had or not."""
    found = {
        "liger/layer_norm": Peer("liger", ("norm_fwd", "norm_bwd"), _liger_norm, _padded(WIDTH)),
        "liger/gelu": Peer(
            "liger", ("bias_gelu_fwd", "bias_gelu_bwd"), _liger_gelu, _padded(4 * WIDTH)
        ),
        "flash-attn/layer_norm": Peer("flash-attn", ("norm_fwd",), _flash_norm, _padded(WIDTH)),
    }
    for head_dim in head_dims:
        # Liger pads the heads of a row to a power of two, too
        live = _padded(head_dim) * _padded(WIDTH // head_dim)
        found[f"liger/rope/{head_dim}"] = Peer(
            "liger", ("pack_fwd", "pack_bwd"), _liger_rope(head_dim), live, head_dim
        )
        found[f"flash-attn/rotary/{head_dim}"] = Peer(
            "flash-attn", ("pack_fwd",), _flash_rotary(head_dim), _padded(head_dim), head_dim
        )
    return found


def flash_attention(arch: str, head_dim: int) -> list[dict[str, Any]]:
    """flash-attn's Triton forward at our tile: the varlen kernel that its ROCm backend runs, and
    the older dense one.

    A kernel that this Triton rejects gives a row with nothing but the reason. Their host code
    insists on CUDA tensors or ROCm, so the kernels are launched from here.
    """
    config = tiles(arch, head_dim)["fwd"]
    rows = []
    for name, launch in (("varlen", _flash_varlen), ("dense", _flash_dense)):
        variant = f"{PEER}flash-attn/{name}"
        try:
            with compile_for(arch) as builds:
                launch(head_dim, config)
        except CompilationError as error:
            reason = (
                f"does not compile with triton {triton.__version__}: "
                f"{str(error).strip().splitlines()[-1]}"
            )
            rows.append(
                skipped(
                    op="attention_fwd",
                    variant=variant,
                    head_dim=head_dim,
                    dtype="bf16",
                    arch=arch,
                    reason=reason,
                )
            )
        else:
            rows.append(
                attention_row(
                    builds[0],
                    op="fwd",
                    variant=variant,
                    head_dim=head_dim,
                    dtype="bf16",
                    config=config,
                )
            )
    return rows


def _flash_varlen(head_dim: int, config: Config) -> None:
    # imported here because the module asks the active driver what it compiles for
    kernel = _flash_module("flash_attn_triton_amd.fwd_prefill").attn_fwd.fn
    q, k, v, out = _leaves(*4 * [(ROWS, HEADS, head_dim)], dtype=torch.bfloat16)
    lse, cumulative = torch.zeros(ROWS, HEADS), torch.tensor([0, ROWS], dtype=torch.int32)
    strides = (0, q.stride(1), q.stride(0), 1)
    kernel[(triton.cdiv(ROWS, config.block_q), HEADS, 1)](
        q, k, v, None, None, None, None, None, None, None, 0, 0, 0, 0, head_dim**-0.5, lse, out,
        *4 * strides, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, HEADS, cumulative, cumulative, 0.0, None,
        None, None, None, None, HQ=HEADS, HK=HEADS, ACTUAL_BLOCK_DMODEL=head_dim,
        MAX_SEQLENS_Q=ROWS, MAX_SEQLENS_K=ROWS, IS_VARLEN=True, IS_INFERENCE=False, IS_CAUSAL=False,
        BLOCK_M=config.block_q, BLOCK_DMODEL=max(triton.next_power_of_2(head_dim), 16),
        BLOCK_N=config.block_k, PRE_LOAD_V=False, USE_BIAS=False, ENABLE_DROPOUT=False,
        RETURN_SCORES=False, USE_ALIBI=False, USE_EXP2=True, IS_FP8=False, FP8_MAX=1.0,
        FP8_OUTPUT=False, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def _flash_dense(head_dim: int, config: Config) -> None:
    kernel = _flash_module("flash_attn_triton")._fwd_kernel
    q, k, v, out = _leaves(*4 * [(1, ROWS, HEADS, head_dim)], dtype=torch.bfloat16)
    lse, scratch = torch.zeros(2, 1, HEADS, ROWS)
    strides = (q.stride(0), q.stride(2), q.stride(1))
    kernel[(triton.cdiv(ROWS, config.block_q), HEADS)](
        q, k, v, None, out, lse, scratch, head_dim**-0.5, *3 * strides, 0, 0, 0, *strides, HEADS,
        ROWS, ROWS, ROWS, head_dim, ROWS // 32, ROWS // 32, "none", False,
        max(triton.next_power_of_2(head_dim), 16), BLOCK_M=config.block_q, BLOCK_N=config.block_k,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
