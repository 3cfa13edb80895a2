"""The Triton kernels as TensorRT plugins: compiled ahead of time to PTX and offered through
tensorrt.plugin's aot_impl. Opt-in.

    mudit::attention      q [N, H, K], k and v [L, H, K], tiles
                          -> out [N, H, K], lse [H, N]
    mudit::residual_norm  x, y [N, D], gate, shift, scale [R, D], tiles
                          -> x + gate y, its modulated LayerNorm
    mudit::guided_step    x, kept [T, C], out [N, C], noise [T, C], rows [S, 7], spans [S, 4]
                          -> next x, next kept

    register(importlib.import_module("tensorrt.plugin"), arch="sm_90")
    layer = network.add_plugin(trtp.op.mudit.attention(q, k, v, tiles), aot=True)

TensorRT launches a kernel with its inputs, then int32 scalars (expressions of the shapes), then its
outputs, and nothing else: the entry points here have their parameters in that order and everything
else as constants. Triton appends two pointers to scratch memory, which these kernels do not use:
they are cut from the PTX's parameter list, after a check that nothing reads them. tiles and spans
are made on the host, as kernels/worklist.py and kernels/adaln.py make them, so rows of padding cost
no work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from mudit_engine.errors import InputError, MuditError
from mudit_engine.kernels.adaln import EPS
from mudit_engine.kernels.adaln_kernels import norm_fwd_kernel, shape_of_program
from mudit_engine.kernels.attention_forward import attention_fwd_kernel, chunks, forward_config
from mudit_engine.kernels.guided_step import BLOCK, _guided_step_kernel

NAMESPACE = "mudit"
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
}


@triton.jit
def attention_entry(
    q_ptr, k_ptr, v_ptr, tiles_ptr, n_rows, out_ptr, lse_ptr, SCALE: tl.constexpr,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rotated queries come from the graph, and rows of all heads are dense."""
    attention_fwd_kernel(
        q_ptr, k_ptr, v_ptr, None, None, None, None, None, None, out_ptr, lse_ptr, tiles_ptr, SCALE,
        HEADS, n_rows, HEADS * HEAD_DIM, HEAD_DIM, HEAD_DIM, HEAD_DIM, HEADS * HEAD_DIM,
        HEADS * HEAD_DIM, HEADS * HEAD_DIM, HEAD_DIM, MAIN, REST, BLOCK_Q, BLOCK_K, False, False,
        False, "tf32",
    )  # fmt: skip


@triton.jit
def residual_norm_entry(
    x_ptr, y_ptr, gate_ptr, shift_ptr, scale_ptr, tiles_ptr, n_rows, sum_ptr, h_ptr,
    EPSILON: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    norm_fwd_kernel(
        x_ptr, y_ptr, gate_ptr, shift_ptr, scale_ptr, tiles_ptr, sum_ptr, h_ptr, None,
        D, D, D, D, D, D, n_rows, 1, EPSILON, D, BLOCK_D, ROW_BLOCK, True, True, True, True, False,
    )  # fmt: skip


@triton.jit
def guided_step_entry(
    x_ptr, kept_ptr, out_ptr, noise_ptr, rows_ptr, spans_ptr, new_x_ptr, new_kept_ptr,
    C: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    _guided_step_kernel(
        x_ptr, kept_ptr, out_ptr, noise_ptr, rows_ptr, spans_ptr, new_x_ptr, new_kept_ptr, C, C, C,
        C, C, C, C, BLOCK, True
    )  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What TensorRT is given of a kernel."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int
    parameters: tuple[str, ...]  # PTX types, in order

    def check(self, pointers_before: int, scalars: int, pointers_after: int) -> None:
        """Raises MuditError unless the entry takes inputs, int32 scalars and outputs, in this
        order.
        """
        wanted = ("u64",) * pointers_before + ("u32",) * scalars + ("u64",) * pointers_after
        if tuple(kind.replace("b", "u").replace("s", "u") for kind in self.parameters) != wanted:
            raise MuditError(
                f"kernel {self.name} takes {self.parameters} and TensorRT passes {wanted}: another "
                f"triton is installed"
            )


def compile_entry(
    fn: Any,
    kinds: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    arch: str,
    warps: int,
    stages: int,
) -> Compiled:
    """Compiles an entry for an architecture such as sm_90, with no GPU. `kinds`: Triton types of
    its parameters but the constants.

    Pointers are 16-byte aligned, as TensorRT's are. Raises MuditError for a kernel that needs
    scratch memory.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not re.fullmatch(r"sm_\d+", arch):
        raise InputError(f"arch '{arch}' is not known: write sm_80, sm_90, ...")
    names = [name for name in fn.arg_names if name in kinds]
    signature = {name: kinds.get(name, "constexpr") for name in fn.arg_names}
    aligned = {
        (fn.arg_names.index(name),): [["tt.divisibility", 16]]
        for name in names
        if kinds[name].startswith("*")
    }
    source = ASTSource(fn=fn, signature=signature, constexprs=dict(constants), attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(
        source, target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32), options=options
    )
    meta = built.metadata
    if meta.global_scratch_size or getattr(meta, "profile_scratch_size", 0):
        raise MuditError(
            f"kernel {meta.name} wants scratch memory, which TensorRT does not pass: use it "
            f"through torch instead"
        )
    ptx, parameters = without_scratch(built.asm["ptx"], len(names))
    return Compiled(meta.name, ptx, meta.num_warps * 32, meta.shared, parameters)


def without_scratch(ptx: str, used: int) -> tuple[str, tuple[str, ...]]:
    """PTX whose entry has its first `used` parameters alone, and their types. Raises MuditError
    when a later one is read.
    """
    entry = re.search(r"(\.visible \.entry (\w+)\(\s*)(.*?)(\s*\))", ptx, re.DOTALL)
    if entry is None:
        raise MuditError("the compiler gave PTX without an entry: another triton is installed")
    listed = [one.strip() for one in entry[3].split(",\n")]
    kept, cut = listed[:used], listed[used:]
    body = ptx[entry.end() :]
    for parameter in cut:
        name = parameter.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", body):
            raise MuditError(
                f"kernel {entry[2]} reads its parameter {name}, which TensorRT does not pass: "
                f"another triton is installed"
            )
    kinds = tuple(re.match(r"\.param \.(\w+)", one)[1] for one in kept)  # type: ignore[index]
    return ptx[: entry.start(3)] + ",\n\t".join(kept) + ptx[entry.end(3) :], kinds


def compile_attention(
    dtype: torch.dtype, heads: int, head_dim: int, *, scale: float, arch: str
) -> Compiled:
    # descriptors would need the host's addresses: pointers everywhere
    config = forward_config(head_dim, dtype, min(int(arch.removeprefix("sm_")), 89))
    main, rest = chunks(head_dim)
    kind = POINTERS[dtype]
    kinds = {
        "q_ptr": kind,
        "k_ptr": kind,
        "v_ptr": kind,
        "tiles_ptr": "*i32",
        "n_rows": "i32",
        "out_ptr": kind,
        "lse_ptr": "*fp32",
    }
    constants = {"SCALE": scale, "HEADS": heads, "HEAD_DIM": head_dim, "MAIN": main, "REST": rest}
    constants |= {"BLOCK_Q": config.block_q, "BLOCK_K": config.block_k}
    built = compile_entry(
        attention_entry, kinds, constants, arch=arch, warps=config.warps, stages=config.stages
    )
    built.check(4, 1, 2)
    return built


def compile_residual_norm(dtype: torch.dtype, width: int, *, eps: float, arch: str) -> Compiled:
    shape = shape_of_program(width)
    kinds = dict.fromkeys(("x_ptr", "y_ptr", "gate_ptr", "shift_ptr", "scale_ptr"), POINTERS[dtype])
    kinds |= {
        "tiles_ptr": "*i32",
        "n_rows": "i32",
        "sum_ptr": POINTERS[dtype],
        "h_ptr": POINTERS[dtype],
    }
    constants = {
        "EPSILON": eps,
        "D": width,
        "BLOCK_D": shape["BLOCK_D"],
        "ROW_BLOCK": shape["ROW_BLOCK"],
    }
    built = compile_entry(
        residual_norm_entry, kinds, constants, arch=arch, warps=shape["num_warps"], stages=3
    )
    built.check(6, 1, 2)
    return built


def compile_guided_step(dtype: torch.dtype, channels: int, *, arch: str) -> Compiled:
    """`dtype` is that of the network's output."""
    kinds = dict.fromkeys(
        ("x_ptr", "kept_ptr", "noise_ptr", "rows_ptr", "new_x_ptr", "new_kept_ptr"), "*fp32"
    )
    kinds |= {"out_ptr": POINTERS[dtype], "spans_ptr": "*i32"}
    built = compile_entry(
        guided_step_entry, kinds, {"C": channels, "BLOCK": BLOCK}, arch=arch, warps=4, stages=3
    )
    built.check(6, 0, 2)
    return built


def register(trtp: Any, *, arch: str, dtypes: Mapping[Any, torch.dtype]) -> tuple[str, ...]:
    """Registers the three plugins with a tensorrt.plugin module; returns their names. `dtypes`:
    TensorRT's types to torch's.

    Head count, head width and channels must be constants of the network (they are of every exported
    graph).
    """
    # tensorrt.plugin reads the annotations: they must be its own classes, not strings
    one, two = trtp.TensorDesc, tuple[trtp.TensorDesc, trtp.TensorDesc]

    def annotated(
        function: Callable[..., Any], inputs: int, returns: Any, **attributes: type
    ) -> Callable[..., Any]:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        function.__annotations__ = {**dict.fromkeys(names[:inputs], one), **attributes}
        if returns is not None:
            function.__annotations__["return"] = returns
        return function

    def attention(q, k, v, tiles, scale):
        lse = trtp.TensorDesc(
            trtp.ShapeExprs.from_tuple((q.shape_expr[1], q.shape_expr[0])), _float(dtypes)
        )
        return q.like(), lse

    def attention_impl(q, k, v, tiles, scale, outputs, tactic):
        heads, head_dim = (
            _constant(q.shape_expr[1], "heads"),
            _constant(q.shape_expr[2], "head width"),
        )
        built = compile_attention(dtypes[q.dtype], heads, head_dim, scale=float(scale), arch=arch)
        # heads are the fast axis of the one grid dimension
        return _launch(trtp, built, grid=(tiles.shape_expr[0] * heads,), scalars=(q.shape_expr[0],))

    def residual_norm(x, y, gate, shift, scale, tiles):
        return x.like(), x.like()

    def residual_norm_impl(x, y, gate, shift, scale, tiles, outputs, tactic):
        built = compile_residual_norm(
            dtypes[x.dtype], _constant(x.shape_expr[1], "width"), eps=EPS, arch=arch
        )
        return _launch(trtp, built, grid=(tiles.shape_expr[0],), scalars=(x.shape_expr[0],))

    def guided_step(x, kept, out, noise, rows, spans):
        return x.like(), x.like()

    def guided_step_impl(x, kept, out, noise, rows, spans, outputs, tactic):
        channels = _constant(x.shape_expr[1], "channels")
        built = compile_guided_step(dtypes[out.dtype], channels, arch=arch)
        # no song has more rows than all together; programs past a song's end return at once
        return _launch(
            trtp,
            built,
            grid=(trtp.cdiv(x.shape_expr[0] * channels, BLOCK), spans.shape_expr[0]),
            scalars=(),
        )

    plugins = (
        ("attention", annotated(attention, 4, two, scale=float), attention_impl),
        ("residual_norm", annotated(residual_norm, 6, two), residual_norm_impl),
        ("guided_step", annotated(guided_step, 6, two), guided_step_impl),
    )
    for name, describe, implement in plugins:
        trtp.register(f"{NAMESPACE}::{name}")(describe)
        trtp.aot_impl(f"{NAMESPACE}::{name}")(implement)
    return tuple(f"{NAMESPACE}::{name}" for name, _, _ in plugins)


def _launch(
    trtp: Any, built: Compiled, *, grid: tuple[Any, ...], scalars: tuple[Any, ...]
) -> tuple[bytes, bytes, Any, Any]:
    """What an aot_impl returns: name, PTX, launch parameters, int32 scalars."""
    launch = trtp.KernelLaunchParams()
    launch.grid_x = grid[0]
    if len(grid) > 1:
        launch.grid_y = grid[1]
    launch.block_x = built.threads
    launch.shared_mem = built.shared_bytes
    arguments = trtp.SymIntExprs.from_tuple([trtp.SymInt32(scalar) for scalar in scalars])
    return built.name.encode(), built.ptx.encode(), launch, arguments


def _constant(size: Any, what: str) -> int:
    """A size that is a constant of the network. Raises InputError where it is not."""
    if size.is_fake or not size.is_constant:
        raise InputError(
            f"{what} of a plugin's input must be a constant of the network: it is compiled into "
            f"the kernel"
        )
    return int(size.constant_value())


def _float(dtypes: Mapping[Any, torch.dtype]) -> Any:
    return next(theirs for theirs, ours in dtypes.items() if ours is torch.float32)
