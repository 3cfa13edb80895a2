"""Who may import whom: the rooms of docs/architecture.md against the imports of every file.

The graph is read from the files' syntax trees, through the links in mudit_engine/, imports inside
functions included. Those for type checkers alone count as arrows between rooms, not as circles.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("kernels", "training", "export", "benchmarks")
PACKAGE = "mudit_engine"
ROW = re.compile(r"^\| (\d+) \| `(\w+)` \|", re.MULTILINE)
# the package itself re-exports the pipeline lazily and holds the version; python -m starts the cli
OUTSIDE = {PACKAGE, f"{PACKAGE}.__main__"}


def levels() -> dict[str, int]:
    """Room -> level, from the table that the documentation shows."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("<!-- rooms: begin -->")[1].split("<!-- rooms: end -->")[0]
    return {room: int(level) for level, room in ROW.findall(table)}


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    parts = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    """Every module by its name; linked folders are read where they lie."""
    engine = root / PACKAGE
    files = [
        file for file in engine.rglob("*.py") if file.relative_to(engine).parts[0] not in LINKED
    ]
    files += [file for name in LINKED for file in (root / name).rglob("*.py")]
    return {module_name(file, root): file for file in files}


def imports(file: Path, root: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, bool]]:
    """(module of ours that a file imports, whether a type checker alone does)."""
    package = module_name(file, root).split(".")
    package = package if file.name == "__init__.py" else package[:-1]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = (f"{source}.{alias.name}" for alias in node.names)
            found = [name if name in known else source for name in names]
        yield from ((name, id(node) in typing) for name in found if name in known)


@functools.cache
def arrows(root: Path) -> list[tuple[str, str, bool]]:
    """(importer, imported, for type checkers alone) of all modules but those outside the rooms."""
    known = modules(root)
    return [
        (name, other, typing)
        for name, file in known.items()
        for other, typing in imports(file, root, known)
        if name not in OUTSIDE and other not in OUTSIDE and name != other
    ]


def room(module: str) -> str:
    return module.split(".")[1]


def upward(root: Path, level: Mapping[str, int]) -> set[tuple[str, str]]:
    """Imports of a higher room."""
    return {
        (name, other) for name, other, _ in arrows(root) if level[room(name)] < level[room(other)]
    }


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """The nodes of one circle, or nothing."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def graph(root: Path, *, by_room: bool = False) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for name, other, typing in arrows(root):
        a, b = (room(name), room(other)) if by_room else (name, other)
        if not typing and a != b:
            edges.setdefault(a, set()).add(b)
    return edges


def test_every_room_has_a_level() -> None:
    known = {room(name) for name in modules(ROOT) if name not in OUTSIDE}
    assert known - levels().keys() == set(), "add the room to the table in docs/architecture.md"
    assert levels().keys() - known == set(), "the table in docs/architecture.md names a lost room"


def test_no_import_runs_upward() -> None:
    assert upward(ROOT, levels()) == set()


def test_modules_import_in_no_circle() -> None:
    assert circle(graph(ROOT)) == []


def test_rooms_import_in_no_circle() -> None:
    assert circle(graph(ROOT, by_room=True)) == []


def test_nothing_imports_the_commands() -> None:
    assert {a for a, b, _ in arrows(ROOT) if room(b) == "cli" and room(a) != "cli"} == set()


PLANTED = {
    "upward": {"text/words.py": "def f():\n    from mudit_engine.pipeline import x\n"},
    "upward for types": {
        "text/words.py": "if TYPE_CHECKING:\n    from mudit_engine.pipeline import x\n"
    },
    "circle": {
        "text/a.py": "from mudit_engine.text import b\n",
        "text/b.py": "from mudit_engine.text.c import y\n",
        "text/c.py": "def f():\n    from .a import z\n",
    },
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_found(tmp_path: Path, kind: str) -> None:
    files = {"text/__init__.py": "", "pipeline.py": "", **PLANTED[kind]}
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    for name in LINKED:
        (tmp_path / name).mkdir()
    if kind == "circle":
        names = {f"{PACKAGE}.text.{one}" for one in "abc"}
        assert set(circle(graph(tmp_path))) == names
    else:
        expected = {(f"{PACKAGE}.text.words", f"{PACKAGE}.pipeline")}
        assert upward(tmp_path, {"text": 2, "pipeline": 8}) == expected
