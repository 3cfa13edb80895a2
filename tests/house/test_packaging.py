"""What a user installs: wheel, source archive and editable install hold every file once and work
anywhere; nothing is shadowed.
"""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mudit_engine.availability import TESTED, tested_set

ROOT = Path(__file__).parents[2]
LINKED = ("kernels", "training", "export", "benchmarks")
NOT_SHIPPED = {"ruff.toml"}
WEIGHTS = ".safetensors"

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="needs a git checkout to know which files belong to it"
)

# what each kind of install must be able to do in another folder
USE = """
import os, sys
import mudit_engine, mudit_engine.kernels.attention, mudit_engine.kernels.worklist
import mudit_engine.training.dataset.batching
assert "torch" in sys.modules
from mudit_engine.cli.main import run
from mudit_engine.config import PRESETS, load_config
for preset in PRESETS:
    load_config(preset)
from mudit_engine.text.vocabulary import Vocabulary
assert len(Vocabulary.load())
assert run(["--version"]) == 0
"""


def run_in(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def use(folder: Path, path: str, more: str = "") -> Path:
    """Runs USE, and `more` after it, in `folder` on a path that the code `path` extends; returns
    the file that it imported.

    -S keeps this environment's own editable install of the project out; its other packages are
    appended.
    """
    code = f"import sys, site; {path}; sys.path.append({sysconfig.get_paths()['purelib']!r})\n"
    code += f"{USE}{more}\nprint(os.path.realpath(mudit_engine.kernels.attention.__file__))"
    return Path(run_in(folder, sys.executable, "-I", "-S", "-c", code).split()[-1])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's files (no build leftovers), symlinks as symlinks. Of weights the first bytes:
    to pack them whole, again and again, takes most of the time and shows nothing more.
    """
    target = tmp_path_factory.mktemp("tree")
    for name in run_in(ROOT, "git", "ls-files", "-coz", "--exclude-standard").split("\0"):
        source = ROOT / name
        if not name or not os.path.lexists(source):
            continue
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        elif source.suffix == WEIGHTS:
            copy.write_bytes(source.read_bytes()[:64])
        else:
            shutil.copyfile(source, copy)
    return target


@pytest.fixture(scope="module")
def shipped(tree: Path) -> list[str]:
    """Every file of the package, by its path inside it."""
    own = [
        file.relative_to(tree)
        for file in (tree / "mudit_engine").rglob("*")
        if file.is_file() and not _linked(file, tree)
    ]
    linked = [
        Path("mudit_engine") / file.relative_to(tree)
        for name in LINKED
        for file in (tree / name).rglob("*")
        if file.is_file()
    ]
    return sorted(
        {
            str(file)
            for file in own + linked
            if file.name not in NOT_SHIPPED
            and not file.name.startswith(".")
            and file.suffix != ".pyc"  # of a test that imported from there before
        }
    )


def _linked(file: Path, tree: Path) -> bool:
    return file.relative_to(tree / "mudit_engine").parts[0] in LINKED


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a user's pip builds it."""
    target = tmp_path_factory.mktemp("wheel")
    run_in(
        target,
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(target),
        str(tree),
    )
    [file] = target.glob("mudit_engine-*.whl")
    return file


def build(kind: str, tree: Path, target: Path) -> Path:
    """The "wheel", "sdist" or "editable" of a tree, by what pip calls."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    run_in(tree, sys.executable, "-c", code)
    [file] = target.glob("mudit_engine-*")
    return file


def contents(wheel: Path) -> list[str]:
    return sorted(name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name)


def test_the_wheel_holds_every_file_once(wheel: Path, shipped: list[str]) -> None:
    assert [name for name, count in Counter(contents(wheel)).items() if count > 1] == []
    assert contents(wheel) == shipped, (
        "a kind of file that is new belongs into package_data of setup.py"
    )
    assert any(
        name.endswith(("licenses/LICENSE", "dist-info/LICENSE"))
        for name in zipfile.ZipFile(wheel).namelist()
    )


def test_models_with_parts_of_others_and_students_are_packed(tree: Path, tmp_path: Path) -> None:
    """Folders of assets need no line in setup.py, whatever their names."""
    files = [
        "tiny-mudit/config.json",
        "tiny-mudit/contract.json",
        "tiny-mudit/parts.json",
        "tiny-mudit/README.md",
        "tiny-mudit/dit.safetensors",
        "tiny/fewstep/adapter_config.json",
        "tiny/fewstep/adapter_model.safetensors",
        "tiny/fewstep/student.json",
    ]
    root = tmp_path / "tree"
    for name in ("setup.py", "pyproject.toml", "mudit_engine/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / name, root / name)
    for name in LINKED:
        (root / name).mkdir()
        (root / "mudit_engine" / name).symlink_to(f"../{name}")
    for name in files:
        path = root / "mudit_engine/assets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    run_in(root, sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "out"))
    packed = tmp_path / "out/mudit_engine/assets"
    assert sorted(str(file.relative_to(packed)) for file in packed.rglob("*.*")) == sorted(files)


def test_the_source_archive_builds_the_same_wheel(
    tree: Path, shipped: list[str], tmp_path: Path
) -> None:
    packed, built = tmp_path / "packed", tmp_path / "built"
    for folder in (packed, built):
        folder.mkdir()
    with tarfile.open(build("sdist", tree, packed)) as tar:
        names = tar.getnames()
        # Python 3.11.2 and 3.11.3 have no filters yet
        tar.extractall(
            tmp_path / "sources", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    assert [name for name, count in Counter(names).items() if count > 1] == []
    [sources] = (tmp_path / "sources").iterdir()
    assert contents(build("wheel", sources, built)) == shipped


def test_the_wheel_imports_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    assert use(elsewhere, f"sys.path.insert(0, {str(site)!r})").is_relative_to(site)


def test_an_editable_install_imports_from_another_folder(tree: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(build("editable", tree, tmp_path)).extractall(site)
    assert use(elsewhere, f"site.addsitedir({str(site)!r})") == tree / "kernels" / "attention.py"


@pytest.mark.parametrize("name", [*LINKED, "tests"])
def test_a_real_package_wins_over_a_folder_of_the_checkout(name: str, tmp_path: Path) -> None:
    """A folder without __init__.py is a namespace, which a regular package of that name beats from
    anywhere on the path.
    """
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("REAL = True\n")
    code = (
        f"import sys; assert sys.path[0] == ''; sys.path.append({str(tmp_path)!r}); import {name}; "
        f"assert {name}.REAL"
    )
    run_in(ROOT, sys.executable, "-c", code)


def test_transformers_and_diffusers_do_not_take_our_kernels_for_theirs() -> None:
    """They look when they are first imported, here with the checkout on the path."""
    transformers = pytest.importorskip("transformers.utils")
    diffusers = pytest.importorskip("diffusers.utils")
    assert str(ROOT) in sys.path
    try:
        importlib.metadata.version("kernels")
        installed = True
    except importlib.metadata.PackageNotFoundError:
        installed = False
    assert transformers.is_kernels_available() == installed
    assert diffusers.is_kernels_available() == installed


@pytest.fixture(scope="module")
def unlinked(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as git makes it where links are off: plain files that hold the links' targets."""
    origin = tmp_path_factory.mktemp("origin") / "tree"
    clone = origin.with_name("clone")
    shutil.copytree(tree, origin, symlinks=True)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    run_in(origin, *git, "init", "-q")
    run_in(origin, *git, "add", "-A", "-f")
    run_in(origin, *git, "commit", "-q", "-m", "tree")
    run_in(origin, "git", "clone", "-q", "-c", "core.symlinks=false", str(origin), str(clone))
    assert all((clone / "mudit_engine" / name).read_text() == f"../{name}" for name in LINKED)
    return clone


RENDER = """
import torch
import mudit_engine.export.manifest, mudit_engine.benchmarks, mudit_engine.training.corpus
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.worklist import Segments
from mudit_engine.training.recipe import load_recipe
x = torch.randn(3, 2, 16)
assert attention_reference(x, x, x, Segments.self_attention([2, 1])).shape == x.shape
assert load_recipe("tiny-dit-pretrain").steps
from mudit_engine import SongPipeline, SongRequest
asked = {"description": "quiet piano", "lyrics": "[verse]\\nmoon", "sampler": {"steps": 2}}
request = SongRequest(**asked, seconds=2)
[song] = SongPipeline.from_pretrained("tiny").generate([request])
assert song.audio.shape[-1] > 0
"""


def test_a_checkout_without_links_imports_and_runs(unlinked: Path, tmp_path: Path) -> None:
    clone, tiny = tmp_path / "clone", "mudit_engine/assets/tiny"
    shutil.copytree(unlinked, clone, ignore=shutil.ignore_patterns(".git"))
    for weights in (ROOT / tiny).glob(f"*{WEIGHTS}"):
        shutil.copyfile(weights, clone / tiny / weights.name)
    path = f"sys.path.insert(0, {str(clone)!r})"
    assert use(tmp_path, path, RENDER) == clone / "kernels" / "attention.py"


def test_a_checkout_without_links_builds_the_same_wheel(
    unlinked: Path, shipped: list[str], tmp_path: Path
) -> None:
    assert contents(build("wheel", unlinked, tmp_path)) == shipped


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(name) for name, _ in pins]
    assert names == sorted(set(names)), "one line a package, in order"
    return dict(zip(names, (release for _, release in pins), strict=True))


def stated(wheel: Path, extra: str) -> list[Requirement]:
    """What the project asks for with an extra, on this platform."""
    [name] = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("dist-info/METADATA")]
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    found = [Requirement(line) for line in metadata.get_all("Requires-Dist") or ()]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


def test_the_constraints_lie_in_the_ranges_of_what_make_installs(wheel: Path) -> None:
    pins = constraints()
    for asked in stated(wheel, "dev") + stated(wheel, "docs"):
        name = canonicalize_name(asked.name)
        assert name in pins, f"{asked} has no line in constraints.txt"
        assert asked.specifier.contains(pins[name]), f"{asked} is not {pins[name]}"


def test_what_is_asked_for_in_turn_is_pinned_too(wheel: Path) -> None:
    """Nothing that `make` installs is left to the day on which it runs."""
    pins = constraints()
    seen: set[tuple[str, str]] = set()
    waiting = stated(wheel, "dev")
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        for extra in {"", *asked.extras} - {known for other, known in seen if other == name}:
            seen.add((name, extra))
            if name == "torch" and tested_set() != "constraints":
                continue  # another torch than make installs, which pins what it brings
            try:
                needs = [Requirement(need) for need in importlib.metadata.requires(name) or ()]
            except importlib.metadata.PackageNotFoundError:
                continue  # not asked for on this platform, or not installed here
            waiting += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})]
    assert sorted(name for name, _ in seen if name not in pins) == []


def test_the_ends_of_the_ranges_are_the_sets_that_were_tested(wheel: Path) -> None:
    pins = constraints()
    assert TESTED["constraints"] == {name: pins[name] for name in ("torch", "triton")}
    for asked in stated(wheel, ""):
        if asked.name in TESTED["floor"]:
            low = SpecifierSet(f">={TESTED['floor'][asked.name].removesuffix('.0')}")
            assert str(low) in str(asked.specifier)
    makefile = (ROOT / "Makefile").read_text()
    for name, release in TESTED["floor"].items():
        assert re.search(rf"\b{name}==\.\*/{name}=={re.escape(release)}/", makefile)
