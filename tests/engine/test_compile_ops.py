"""torch.compile sees through every op: after an export in the same process, and when another
backend is named.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mudit_engine import ops
from mudit_engine.errors import InputError

ROOT = Path(__file__).parents[2]
TRACED = [
    ROOT / "mudit_engine/ops.py",
    *sorted((ROOT / "kernels").glob("*.py")),
    *sorted((ROOT / "mudit_engine/layouts").glob("*.py")),
]


def test_every_op_compiles_after_an_export_in_the_same_process() -> None:
    pytest.importorskip("onnxscript")
    done = subprocess.run(
        [sys.executable, ROOT / "tests/helpers/compile_every_op.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize("file", TRACED, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_traced_calls_max_and_min_without_keywords(file: Path) -> None:
    """torch.export replaces both builtins while it traces, which dynamo may remember; without
    keywords it has a way of its own for them (tests/helpers/compile_every_op.py).
    """
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    named = [node for node in calls if isinstance(node.func, ast.Name) and node.keywords]
    assert [
        f"{file.name}:{node.lineno} {ast.unparse(node)}"
        for node in named
        if isinstance(node.func, ast.Name) and node.func.id in ("max", "min")
    ] == []


def test_a_compiled_function_follows_the_backend_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops.adaln, "layer_norm_modulate", lambda x, *_: x + 1)
    monkeypatch.setattr(ops.adaln, "layer_norm_modulate_reference", lambda x, *_: x - 1)
    compiled = torch.compile(
        lambda x: ops.layer_norm_modulate(x, None, None, None), backend="eager", fullgraph=True
    )
    x = torch.zeros(2, 4)
    assert compiled(x).eq(-1).all()
    with ops.use("triton"):
        assert compiled(x).eq(1).all()
        with ops.use("eager"):
            assert compiled(x).eq(-1).all()
        assert compiled(x).eq(1).all()
    assert compiled(x).eq(-1).all()


def test_a_backend_is_named_for_one_thread_and_compiled_code_refuses_two() -> None:
    named, done = threading.Event(), threading.Event()

    def name_another() -> None:
        with ops.use("triton"):
            named.set()
            done.wait()

    compiled = torch.compile(
        lambda x: ops.layer_norm_modulate(x, None, None, None), backend="eager", fullgraph=True
    )
    other = threading.Thread(target=name_another)
    other.start()
    try:
        named.wait()
        assert ops.backend_of(torch.zeros(1)) == "eager", "named in another thread"
        with ops.use("eager"), pytest.raises((InputError, RuntimeError), match="several threads"):
            compiled(torch.zeros(2, 4))
    finally:
        done.set()
        other.join()
    assert compiled(torch.zeros(2, 4)).shape == (2, 4)
