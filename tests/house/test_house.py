"""Rules of the house that no other test would notice: who imports whom, imports without side
effects, names, no machine paths.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mudit_engine.availability import PACKAGES

ROOT = Path(__file__).parents[2]
LINKED = ("kernels", "training", "export", "benchmarks")
DATA_FOLDERS = {"assets", "presets"}


def sources(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.py") if "__pycache__" not in file.parts)


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "mudit_engine" else ("mudit_engine", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ENGINE = [
    file
    for file in sources(ROOT / "mudit_engine")
    if not any(file.is_relative_to(ROOT / "mudit_engine" / name) for name in LINKED)
]
FILES = ENGINE + [file for name in LINKED for file in sources(ROOT / name)]
MODULES = [module_name(file) for file in FILES]


def imported(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it."""
    package = (
        module_name(file).split(".")
        if file.name == "__init__.py"
        else module_name(file).split(".")[:-1]
    )
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("name", LINKED)
def test_top_level_folders_are_namespaces_under_the_package(name: str) -> None:
    assert not (ROOT / name / "__init__.py").exists(), (
        "a regular package at the root would shadow a third-party one"
    )
    link = ROOT / "mudit_engine" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


def test_every_other_package_says_what_it_is() -> None:
    for folder in {file.parent for file in ENGINE}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{folder} needs an __init__.py with a docstring"


def test_every_module_says_what_it_is() -> None:
    assert [
        str(file)
        for file in FILES
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ] == []


@pytest.mark.parametrize("file", sources(ROOT / "kernels"), ids=lambda file: file.stem)
def test_kernels_import_torch_and_triton_only(file: Path) -> None:
    allowed = {"torch", "triton", "__future__", *sys.stdlib_module_names}
    foreign = {
        name
        for name in imported(file)
        if name.split(".")[0] not in allowed and not within(name, "mudit_engine.kernels")
    }
    assert not foreign


def test_no_module_is_named_like_a_package() -> None:
    """A folder of ours on sys.path (a script's own folder, a test's) would otherwise hide that
    package.
    """
    taken = {
        name for name in importlib.metadata.packages_distributions() if name != "mudit_engine"
    } | PACKAGES.keys()
    assert [str(file) for file in FILES if file.stem in taken] == []


IMPORT_ALL = """
import importlib, logging, os, signal, sys, threading, warnings

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Blocker())
import torch

def state():
    return {
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "seed": torch.initial_seed(),
        "rng": torch.get_rng_state().sum().item(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "benchmark": torch.backends.cudnn.benchmark,
        "cuda": torch.cuda.is_initialized(), "environment": dict(os.environ), "folder": os.getcwd(),
        "handlers": list(logging.getLogger().handlers),
        "interrupt": signal.getsignal(signal.SIGINT), "terminate": signal.getsignal(signal.SIGTERM),
        "running": threading.active_count(),
    }

for module in MODULES:
    before = state()
    importlib.import_module(module)
    after = state()
    changed = {key for key in before if before[key] != after[key]}
    assert not changed, f"importing {module} changes {changed}"
"""


def test_every_module_imports_without_optional_packages_and_side_effects(tmp_path: Path) -> None:
    blocked = {module for module, (_, extra) in PACKAGES.items() if extra is not None}
    modules = [module for module in MODULES if module != "mudit_engine.__main__"]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nBLOCKED = {blocked!r}\nMODULES = "
        f"{modules!r}\n{IMPORT_ALL}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# written in pieces, so that this file does not hold what it looks for
MACHINE_PATH = re.compile(
    r"(^|[^A-Za-z0-9_.~\w])/(wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|Us" + r"ers/\w+)/"
)
HOSTS = [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("deb", "debian", "org")]
REGISTRIES = re.compile("|".join(re.escape(".".join(host)) for host in HOSTS))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_file_names_a_machine_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = []
    for name in filter(None, listed):
        file = ROOT / name
        if file.is_symlink() or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # audio, weights
            continue
        found += [
            f"{name}: {match[0]}"
            for pattern in (MACHINE_PATH, REGISTRIES)
            if (match := pattern.search(text))
        ]
    assert not found
