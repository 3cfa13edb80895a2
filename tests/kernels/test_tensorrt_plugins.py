"""The kernels as TensorRT plugins, to the last stage that needs no driver: numbers in TensorRT's
order of arguments, PTX, launches.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from forked import run_compiling
from mudit_engine.errors import MuditError
from mudit_engine.export import tensorrt_plugins as plugins
from mudit_engine.kernels.adaln import EPS, residual_norm_reference
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.attention_forward import chunks
from mudit_engine.kernels.guided_step import SongRows, guided_step_reference
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compiled in a process of its own: this one interprets."""
    log = tmp_path_factory.mktemp("built") / "log"
    return json.loads(run_compiling("fake_tensorrt_plugin", request.param, log=log))


def test_ptx_takes_inputs_scalars_outputs_and_nothing_else(built: dict[str, Any]) -> None:
    for one in built["built"]:
        entry = re.search(rf"\.visible \.entry {one['kernel']}\((.*?)\)", one["ptx"], re.DOTALL)
        assert entry, one["plugin"]
        kinds = re.findall(r"\.param \.(\w)(\d+)", entry[1])
        assert [bits for _, bits in kinds] == ["64"] * one["inputs"] + ["32"] * len(
            one["scalars"]
        ) + ["64"] * len(one["outputs"])
        code, log = one["ptxas"]
        assert code == 0, log
        assert "0 bytes spill stores" in log, f"{one['plugin']} spills"


def test_launches_follow_the_shapes(built: dict[str, Any]) -> None:
    attention, norm, step = built["built"]
    assert attention["grid_x"] == 7 * 12 and attention["scalars"] == [832], (
        "a program a tile and head"
    )
    assert attention["outputs"] == [[832, 12, 128], [12, 832]]
    assert (
        norm["grid_x"] == 53 and norm["scalars"] == [832] and norm["outputs"] == [[832, 1536]] * 2
    )
    assert (step["grid_x"], step["grid_y"]) == (768 * 96 // 1024, 2) and step["scalars"] == []
    for one in built["built"]:
        threads = int(re.search(r"\.reqntid (\d+)", one["ptx"])[1])  # type: ignore[index]
        assert one["block_x"] == threads and one["block_y"] == one["block_z"] == one["grid_z"] == 1
        assert 0 < one["shared_mem"] <= 163 * 1024


def test_sizes_that_are_compiled_in_must_be_constants(built: dict[str, Any]) -> None:
    assert "must be a constant of the network" in built["refused"]


@pytest.mark.parametrize("head_dim", [64, 96, 128], ids="K{}".format)
def test_attention_in_tensorrts_order(head_dim: int, device: str) -> None:
    heads, lengths, keys = 2, [37, 5], [19, 0]
    q = torch.randn(sum(lengths), heads, head_dim, device=device)
    k, v = (torch.randn(sum(keys), heads, head_dim, device=device) for _ in range(2))
    segments = Segments.cross_attention(lengths, keys)
    tiles = segments.query_tiles(32, q.device)
    out, lse = torch.empty_like(q), torch.empty(heads, len(q), device=device)
    main, rest = chunks(head_dim)
    grid = (len(tiles) * heads,)
    constants = {
        "SCALE": head_dim**-0.5,
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "MAIN": main,
        "REST": rest,
        "BLOCK_Q": 32,
        "BLOCK_K": 32,
    }
    plugins.attention_entry[grid](q, k, v, tiles, len(q), out, lse, **constants)
    torch.testing.assert_close(out, attention_reference(q, k, v, segments), atol=2e-3, rtol=2e-3)


def test_residual_norm_in_tensorrts_order(device: str) -> None:
    width, runs = 136, Runs(((13, 1), (6, 0)))
    x, y = (torch.randn(19, width, device=device) for _ in range(2))
    gate, shift, scale = (torch.randn(2, width, device=device) for _ in range(3))
    tiles, _ = runs.tiles(x.device, tile_rows=4, table_rows=2)
    total, h = torch.empty_like(x), torch.empty_like(x)
    constants = {"EPSILON": EPS, "D": width, "BLOCK_D": 256, "ROW_BLOCK": 4}
    plugins.residual_norm_entry[(len(tiles),)](
        x, y, gate, shift, scale, tiles, len(x), total, h, **constants
    )
    wanted = residual_norm_reference(x, y, gate, shift, scale, runs)
    torch.testing.assert_close((total, h), wanted)


def test_guided_step_in_tensorrts_order(device: str) -> None:
    spans = SongRows(((0, 9, 0, 14), (9, 5, 9, -1)))
    x, kept, noise = (torch.randn(14, 24, device=device) for _ in range(3))
    out, rows = torch.randn(23, 24, device=device), torch.randn(2, 7, device=device)
    new_x, new_kept = torch.empty_like(x), torch.empty_like(x)
    grid = (-(-14 * 24 // 64), 2)
    plugins.guided_step_entry[grid](
        x, kept, out, noise, rows, spans.tensor(x.device), new_x, new_kept, C=24, BLOCK=64
    )
    torch.testing.assert_close(
        (new_x, new_kept),
        guided_step_reference(x, kept, out, noise, rows, spans),
        atol=1e-5,
        rtol=1e-5,
    )


PTX = (
    ".visible .entry f(\n\t.param .u64 .ptr .global .align 1 f_param_0,\n\t.param .u32 f_param_1,\n"
    "\t.param .u64 .ptr f_param_2\n)\n"
)


def test_scratch_parameters_are_cut_only_when_nothing_reads_them() -> None:
    body = ".reqntid 128\n{ ld.param.u64 %rd1, [f_param_0]; }"
    ptx, kinds = plugins.without_scratch(PTX + body, 2)
    assert kinds == ("u64", "u32") and "f_param_2" not in ptx and ptx.endswith(body)
    with pytest.raises(MuditError, match="reads its parameter f_param_2"):
        plugins.without_scratch(PTX + body.replace("f_param_0", "f_param_2"), 2)
    with pytest.raises(MuditError, match="without an entry"):
        plugins.without_scratch("nothing", 2)


def test_another_order_of_arguments_is_refused() -> None:
    right = plugins.Compiled("k", "", 128, 0, ("u64", "u64", "u32", "u64"))
    right.check(2, 1, 1)
    with pytest.raises(MuditError, match="another triton is installed"):
        plugins.Compiled("k", "", 128, 0, ("u64", "u32", "u64", "u64")).check(2, 1, 1)
