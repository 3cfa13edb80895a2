"""README, docs and examples are true: links lead somewhere, named files exist, commands run, Python
runs, figures are those of the result files, and the site builds without a warning.

A command is run in a folder prepared for its page, on a model small enough for a test. What cannot
run here is named in ELSEWHERE with its reason, and its options are still checked.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile

from mudit_engine.cli.main import cli, run
from mudit_engine.export import onnx_export
from mudit_engine.runtime.manifest import read_manifest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
RESULTS = ROOT / "benchmarks/results"

# what a command begins with or holds -> why it is not run here
ELSEWHERE = {
    "make song": "test_make_song_is_a_command_that_runs takes it apart",
    "make test": "is what runs this test",
    "make test-long": "hours",
    "make lint": "is part of make test",
    "make docs": "test_the_site_builds does",
    "make tiny": "hours on two cores",
    "make ranks": "an hour on two cores",
    "make gpu": "needs a GPU",
    "pytest": "is what runs this test",
    ".venv/bin/pytest": "is what runs this test",
    "python -m pip install": "fetches packages from the network",
    ". .venv/bin/activate": "an environment of `make`",
    "python examples/": "tests/examples runs every example",
    "examples/": "tests/examples runs every example",
    "--runtime tensorrt": "needs a GPU and engines",
    "tritonserver": "needs NVIDIA's server",
    "mudit serve": "runs until it is stopped; tests/serving",
    "curl": "needs a running service; tests/serving",
    "bench run": "minutes; tests/benchmarks/test_registry.py",
    "mudit profile": "minutes; tests/profiling",
    "--transcribe": "fetches models from the network",
    "--rehearse": "minutes; tests/training/planning/test_rehearse.py",
    "doctor --cluster": "starts ranks; tests/cli/test_cluster.py",
    "--ray": "starts a cluster; tests/training/dataset/test_encode.py",
    "export quantize": "needs ModelOpt; tests/export/test_quantize.py",
    "python3 -m venv": "fetches packages from the network",
    "export tensorrt": "builds engines for minutes; tests/export/test_tensorrt_build.py",
    "bench e2e": "minutes at the published size; tests/benchmarks",
    "bench tune": "minutes; tests/backends",
    "bench kernels": "compiles; tests/cli/test_bench_kernels.py",
    "bench runtimes": "minutes; tests/runtime/test_deployed_runtimes.py",
    "eval songs": "needs folders of songs; tests/evaluation/test_systems.py",
    "data annotations": "needs annotations; tests/training/dataset/test_annotations.py",
    "data encode songs.jsonl --audio-only": "needs annotated songs; tests/training/dataset",
    "eval paper": "needs songs and weights; tests/evaluation/test_paper.py",
    "eval survey": "needs folders of songs and answers; tests/evaluation/survey",
    "eval retrieval --train": "trains for minutes; tests/training/test_retrieval_table.py",
    "mudit align": "makes songs and trains for minutes; tests/training/test_align.py",
    "eval references": "sings for minutes; tests/evaluation/test_references.py",
    "eval whole": "sings for minutes; tests/evaluation/test_whole_songs.py",
    "eval users": "sings for minutes; tests/evaluation/test_user_types.py",
    "eval tiny": "needs a corpus and minutes; tests/cli/test_eval.py",
    "eval codec": "needs a corpus and packages; tests/evaluation/test_codec_quality.py",
    "eval melody": "needs a corpus and minutes; tests/evaluation/test_melodies.py",
    "lyrics train": "needs a base model; tests/training/tasks/test_lyrics.py",
    "lyrics score --run": "needs a run; tests/cli/test_lyrics_write.py",
    "--model Qwen": "needs a model of the hub; tests/lyric_model",
    "--model http": "needs a server; tests/lyric_model/test_server.py",
    "train tiny-dit-fewstep": "needs latents; tests/training/tasks/test_distill.py",
    "train --export runs/fewstep": "needs a run; tests/training/test_fewstep_export.py",
    "cp -r models/fewstep": "needs a run; tests/training/test_fewstep_export.py",
    "--fast": "needs a student; tests/models/test_fewstep.py",
    "train lyrics-small": "twenty minutes; tests/training/tasks/test_lyrics.py",
    "data synth": "needs espeak-ng and fluidsynth; tests/training/corpus",
    "data stats": "needs a corpus; tests/training/corpus",
    "mudit_engine.benchmarks": "minutes; tests/benchmarks",
    "mudit_engine.training.tiny.recogniser": "needs a corpus and minutes; tests/training/tiny",
}


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """Contents of fenced blocks in one of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Commands of the page's shell blocks as words, comments left out."""
    found = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                found.append(words)
    return found


def elsewhere(words: list[str]) -> str | None:
    text = shlex.join(words).replace("'", "")
    for start, reason in ELSEWHERE.items():
        if text.startswith(start) or (" " + start) in text or ("-m " + start) in text:
            return reason
    return None


def anchors(page: Path) -> set[str]:
    """Ids of headings, as mkdocs and GitHub make them of plain words."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKD", t)).lower())
        for t in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(
        r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE
    )
    for target in targets:
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{relative(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{relative(page)}: no heading {target}"


ROOMS = "mudit_engine|kernels|training|export|benchmarks|tests|docs|examples"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_named_files_exist(page: Path) -> None:
    for name in re.findall(rf"`((?:{ROOMS})/[\w./-]+)`", prose(page)):
        assert (ROOT / name).exists(), f"{relative(page)} names {name}"
    for name in re.findall(r"`([\w.-]+\.json)`", prose(page)) if "measure" in page.name else ():
        assert (RESULTS / name).exists(), f"{relative(page)} names {name}"


# files that are ours in no checkout: written elsewhere, or other packages'
FOREIGN = {"build_engines.py", "model.py", "model_config_pb2.py", "flash_attn_triton.py"}


def test_sources_name_files_that_exist() -> None:
    """Comments and docstrings of the package lead to files that are there."""
    listed = [
        path
        for folder in ("mudit_engine", "kernels", "training", "export", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    ]
    tests = list((ROOT / "tests").rglob("*.py")) + list((ROOT / "examples").rglob("*.py"))
    known = {path.relative_to(ROOT).as_posix() for path in (*listed, *tests, ROOT / "setup.py")}
    tails = {"/".join(name.split("/")[-k:]) for name in known for k in range(1, 6)}
    lost = [
        f"{relative(path)}: {name}"
        for path in listed
        for name in re.findall(
            r"(?<![\w./{])((?:[\w-]+/)*[\w-]+\.py)\b", path.read_text(encoding="utf-8")
        )
        if name not in tails and name.split("/")[-1] not in FOREIGN
    ]
    assert lost == []


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 100] == []


@pytest.fixture(scope="module")
def figures() -> dict[str, str]:
    """What the README's table and docs/measurements.md say, from the result files."""

    def read(name: str) -> dict:
        return json.loads((RESULTS / f"{name}.json").read_text())

    runs = read("cpu_runtimes_musit-380m_step")["runs"]
    [bf16] = [
        row
        for row in runs[0]["results"]["rows"]
        if row["runtime"] == "torch-bf16" and row["song_seconds"] == 30
    ]
    [generated] = [
        row for row in read("tiny_songs")["results"]["rows"] if row["name"] == "generated"
    ]
    parity = read("onnx_parity_tiny")["results"]["parity"]
    steps = [
        row
        for row in read("tensorrt_rtx_engines")["results"]["engines"]
        if row["name"] == "step" and row["target"] == "rtx-sm80"
    ]
    fused = {
        (one["attentions"], one["attentions_wanted"]) for row in steps for one in row["fusion"]
    }
    faults = read("fault_runs")["results"]

    def of_both_machines(name: str, places: int) -> str:
        rows = [read(f"{name}{machine}")["results"][0] for machine in ("", "_avx512")]
        low, high = sorted(row["ratio_to_peer"] for row in rows)
        return f"{low:.{places}f} to {high:.{places}f} x as fast"

    state = read("plan_memory")["results"]["gates"]["state"]["worst_error"]
    tempo, key = (generated["figures"][name]["value"] for name in ("tempo", "key"))
    return {
        "[bench e2e][1]": of_both_machines("e2e_published_1536", 2),
        "[bench e2e][2]": of_both_machines("e2e_published_mixed", 1),
        "[bench runtimes][3]": f"{bf16['cpu_ratio_to_torch']:.1f} x as fast",
        "[eval tiny][4]": f"{tempo:.2f} and {key:.2f}",
        "[export onnx][5]": f"{max(row.get('latents') or 0 for row in parity):.1e}",
        "[export tensorrt][6]": " ".join(f"{found} of {wanted}" for found, wanted in fused),
        "[make ranks][7]": f"{faults['losses']} of {faults['trainings']}",
        "[plan_memory][8]": f"within {0.001:.3f} %" if state < 1e-5 else "not so",
    }


def test_the_readmes_figures_are_those_of_the_result_files(figures: dict[str, str]) -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:2] == "| "]
    said = {source: result for _, result, source in rows if source.startswith("[")}
    assert said == figures


class Sandbox:
    """A folder with what the commands of a page name, and the small stand-ins for what is large."""

    def __init__(self, folder: Path, micro: Path, page: Path) -> None:
        self.folder, self.micro = folder, micro
        rng = np.random.default_rng(0)
        (folder / "songs").mkdir()
        for name in ("one", "two", "loop", *(f"songs/{number}" for number in range(4))):
            wave = 0.1 * rng.normal(size=8000 * 3) + 0.3 * np.sin(np.arange(24000) * 0.2)
            soundfile.write(folder / f"{name}.wav", wave, 8000)
            (folder / f"{name}.txt").write_text("[verse]\n月亮升起来\n", "utf-8")
        (folder / "song.txt").write_text("[verse]\n月亮升起来\n[chorus]\nhome tonight\n", "utf-8")
        shutil.copytree(micro, folder / "models/mine")
        for text in blocks(page, "json"):  # the page's own manifest
            (folder / "songs.jsonl").write_text(text, "utf-8")

    def small(self, words: list[str]) -> list[str]:
        """The same command on the micro model, in seconds."""
        swapped = [re.sub(r"^(.+=)?tiny$", rf"\g<1>{self.micro}", word) for word in words]
        match words[:3]:
            case ["mudit", "generate", *_]:
                model = [] if "--model" in words else ["--model", str(self.micro)]
                length = [] if {"--seconds", "--edit"} & {*words} else ["--seconds", "3"]
                return [*swapped, *model, *length, "--steps", "2"]
            case ["mudit", "lyrics", "write"] if not {"--structure", "--from"} & {*words}:
                return [*swapped, "--seconds", "12"]
            case ["mudit", "finetune", *_]:
                return [*swapped, "--model", str(self.micro), "--steps", "2", "--samples", "0"]
            case ["mudit", "train", recipe] if "--launch" not in words:
                swapped[2] = recipe
                less = {"model": self.micro, "model_overrides": "{}", "steps": 2}
                less |= {"schedule.warmup": 1, "log.validate_every": 0, "log.tensorboard": "false"}
                return [
                    *(word for word in swapped),
                    *(
                        part
                        for name, value in less.items()
                        for part in ("--set", f"{name}={value}")
                    ),
                ]
            case ["mudit", "data", "encode"]:  # at the micro model's rate
                return ["8000" if word == "22050" else word for word in swapped]
            case ["mudit", "export", "onnx"]:
                fewer = [word for word in swapped if word not in ("--flavour", "fp32", "bf16")]
                return [*fewer, "--flavour", "fp32", "--no-parity"]
            case ["mudit", "export", "verify"]:
                return [*swapped, "--no-parity"]
        return swapped


def reuse_graphs(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an export of the model of `deployed` take its graphs, which take most of a minute to
    trace; tests/export holds them to the model.
    """

    def copied(source: Path, folder: Path, **options: Any) -> dict[str, Any]:
        shutil.copytree(deployed / "graphs/fp32", folder)
        flavours: dict[str, Any] = read_manifest(deployed)["flavours"]
        return flavours["fp32"]

    monkeypatch.setattr(onnx_export, "export_graphs", copied)


RUN = [page for page in PAGES if any(not elsewhere(words) for words in commands(page))]


@pytest.mark.parametrize("page", RUN, ids=relative)
def test_commands_run(
    page: Path,
    micro: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    wanted = [words for words in commands(page) if not elsewhere(words)]
    if any(words[:3] == ["mudit", "export", "onnx"] for words in wanted):
        micro = request.getfixturevalue("model")
        reuse_graphs(request.getfixturevalue("deployed"), monkeypatch)
    sandbox = Sandbox(tmp_path, micro, page)
    monkeypatch.chdir(tmp_path)
    for words in wanted:
        small = sandbox.small(words)
        assert words[0] == "mudit", f"{relative(page)}: what runs `{shlex.join(words)}`?"
        code = run(small[1:])
        said = capsys.readouterr()
        assert code == 0, f"`{shlex.join(words)}` ended with {code}\n{said.err}\n{said.out}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_options_exist(page: Path) -> None:
    """Of every command, also those that cannot run here."""
    for words in commands(page):
        if words[0] != "mudit":
            continue
        command: click.Command = cli
        rest = words[1:]
        context = click.Context(command, info_name="mudit")
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest[0])
            assert found, f"{relative(page)}: no command `mudit {' '.join(words[1:])}`"
            command, rest = found, rest[1:]
            context = click.Context(command, info_name=command.name, parent=context)
        try:
            command.make_parser(context).parse_args(list(rest))
        except click.UsageError as error:
            pytest.fail(f"{relative(page)}: `{shlex.join(words)}`: {error.format_message()}")


def test_commands_in_the_text_exist() -> None:
    """`mudit something` between backticks names a command."""
    for page in PAGES:
        for text in re.findall(r"`mudit\s+([a-z][^`]*)`", prose(page)):
            command: click.Command = cli
            for word in re.split(r"[\s|]+", text):
                if not isinstance(command, click.Group) or word.startswith("-"):
                    break
                found = command.get_command(click.Context(command), word)
                assert found or not word.islower(), f"{relative(page)}: `mudit {text}`"
                command = found or command


PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON, ids=relative)
def test_python_runs(
    page: Path, micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    Sandbox(tmp_path, micro, page)
    monkeypatch.chdir(tmp_path)
    for number, text in enumerate(blocks(page, "python")):
        if ">>>" in text:
            example = doctest.DocTestParser().get_doctest(text, {}, relative(page), None, 0)
            assert doctest.DocTestRunner().run(example).failed == 0
            continue
        code = text.replace('"tiny"', repr(str(micro)))
        exec(compile(code, f"{relative(page)} block {number}", "exec"), {"__name__": "page"})


def test_make_song_is_a_command_that_runs(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """`make song` as make would run it, on the small model."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shown = subprocess.run(
        ["make", "-n", "song"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    [line] = [line for line in shown.splitlines() if "mudit generate" in line]
    words = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "mudit_engine/assets/examples", "mudit_engine/assets/examples")
    swapped = [str(micro) if word == "tiny" else word for word in words]
    assert run([*swapped[1:], "--seconds", "6", "--steps", "2"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {"song.wav", "song.json", "song.png"}


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a warning (a lost page, a dead link, an unknown name) is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'(?:src|<link[^>]+href)="(https?://[^"]+)"', page.read_text("utf-8"))
        assert not fetched, f"{page.name} fetches {fetched}"
