"""The entry points that docs/api shows say what they take and return, and their examples run.

The names come from the pages, so that a page cannot show what this test does not hold.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    name
    for page in (ROOT / "docs/api").glob("*.md")
    for name in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.MULTILINE)
)
# whose example is shown and not run, with what runs it instead
SHOWN = {
    "mudit_engine.export.onnx_export.export_onnx": "tests/export/test_onnx_export.py",
    "mudit_engine.export.tensorrt_build.build_engines": "tests/export/test_tensorrt_build.py",
    "mudit_engine.export.tensorrt_build.make_plan": "tests/export/test_tensorrt_build.py",
}
# whose example takes a deployment folder, which takes half a minute to make
DEPLOYED = (
    "mudit_engine.export.verify.verify",
    "mudit_engine.export.model_repository.write_repository",
)


def find(name: str) -> tuple[Any, Any]:
    """The object of a dotted name, and the module that defines it."""
    module, _, attribute = name.rpartition(".")
    found = importlib.import_module(module)
    return getattr(found, attribute), found


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 40 and len(set(NAMES)) == len(NAMES)
    assert set(NAMES) >= SHOWN.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_is_whole(name: str) -> None:
    thing, _ = find(name)
    text = inspect.getdoc(thing) or ""
    summary = text.split("\n\n")[0]
    assert summary.endswith((".", ":")) and "\n" not in summary, "one sentence, on one line"
    assert "\nExamples:\n" in text and ">>>" in text, "an example"
    function = thing.__init__ if inspect.isclass(thing) else thing
    parameters = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if not parameter.name.startswith("_") and parameter.name not in ("self", "args", "kwargs")
    ]
    described = re.findall(r"^    (\w+): ", text.partition("\nArgs:\n")[2], re.MULTILINE)
    described = described[: len(parameters)]
    # fields that carry docstrings of their own need no list, and protocols take nothing
    if described or not inspect.isclass(thing):
        assert described == parameters
    returns = inspect.signature(thing).return_annotation if not inspect.isclass(thing) else None
    if returns not in (None, "None", inspect.Signature.empty) and not inspect.isgeneratorfunction(
        inspect.unwrap(thing)
    ):
        assert "\nReturns:\n" in text


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples take as given: data sets, runs and folders that a reader has."""
    from mudit_engine.profiling import strict
    from mudit_engine.training.trainer import Trainer
    from small_songs import small_recipe, write_songs

    strict.install()  # Triton kernels on CPU tensors
    folder = tmp_path_factory.mktemp("examples")
    recipe = small_recipe(write_songs(folder / "songs"), steps=2, schedule__warmup=1)
    Trainer(recipe, folder / "trained", quiet=True).run()
    (folder / "audio").mkdir()
    for name in ("one", "two"):
        soundfile.write(folder / "audio" / f"{name}.wav", np.zeros(8000), 8000)
    return {
        "small_recipe": recipe,
        "trained_run": folder / "trained",
        "audio_folder": folder / "audio",
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in DEPLOYED else ()) for n in NAMES],
)
def test_the_examples_run(
    name: str,
    names: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    thing, module = find(name)
    monkeypatch.chdir(tmp_path)
    given = {**names, "new_folder": tmp_path / "new", "run_folder": tmp_path / "run"}
    if name in DEPLOYED:
        given["deployed"] = request.getfixturevalue("deployed")
    found = doctest.DocTestFinder(recurse=False).find(
        thing, name, module=module, globs={**vars(module), **given}
    )
    [example] = [one for one in found if one.examples]
    if name in SHOWN:
        assert all(doctest.SKIP in one.options for one in example.examples)
        assert (ROOT / SHOWN[name]).is_file()
        return
    assert not any(doctest.SKIP in one.options for one in example.examples)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    result = runner.run(example, out=said.append)
    assert result.attempted and not result.failed, "".join(said)
