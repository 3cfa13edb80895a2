"""The shell around every command: what is listed, how fast help answers, exit codes, and the one
JSON document.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import mudit_engine
from mudit_engine.cli import main as cli_main
from mudit_engine.cli._console import emit_json, json_option, print_table, progress
from mudit_engine.cli.main import COMMANDS, LazyGroup, run
from mudit_engine.errors import (
    ConfigError,
    GateError,
    InputError,
    MissingError,
    ModelError,
    OutputError,
)

FOLDER = Path(cli_main.__file__).parent
FILES = sorted(
    file.stem
    for file in FOLDER.glob("*.py")
    if file.stem not in ("__init__", "main") and not file.stem.startswith("_")
)
HELP_SECONDS = 0.5


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Puts a function behind `mudit boom`, which takes --json."""

    def add(body: Callable[[], None]) -> None:
        @click.command("boom")
        @json_option
        def command(as_json: bool) -> None:
            body()

        monkeypatch.setattr(LazyGroup, "list_commands", lambda self, ctx: ["boom"])
        monkeypatch.setattr(LazyGroup, "get_command", lambda self, ctx, name: command)

    return add


def test_help_lists_exactly_the_commands_that_have_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    rows = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    listed = [row.split()[0] for row in rows if re.match(r"  \S", row)]
    assert set(FILES) <= set(COMMANDS), f"add to main.COMMANDS: {set(FILES) - set(COMMANDS)}"
    assert listed == [name for name in COMMANDS if name in FILES]


@pytest.mark.parametrize("arguments", [[], *([name] for name in FILES)], ids=["mudit", *FILES])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from mudit_engine.cli.main import run
code = run({[*arguments, "--help"]!r})
slow = "torch numpy pydantic transformers matplotlib triton scipy soundfile"
heavy = sorted(set(slow.split()) & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else code)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "Usage: mudit" in done.stdout


@pytest.mark.parametrize(
    "command",
    [["-c", "import mudit_engine"], ["-m", "mudit_engine", "--help"]],
    ids=["import", "help"],
)
def test_answers_at_once(command: list[str]) -> None:
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # processor time: on a busy machine the clock also counts what others do; start-up waits for
        # nothing else
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < HELP_SECONDS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert mudit_engine.__version__ in capsys.readouterr().out


RAISED = {
    "input": (InputError("seconds=-1 is too short: ask for at least 1"), 2, "ask for at least 1"),
    "config": (
        ConfigError("unknown field 'widht': did you mean 'width'?"),
        2,
        "did you mean 'width'?",
    ),
    "model": (ModelError("dit.safetensors is cut off"), 1, "dit.safetensors is cut off"),
    "output": (OutputError("'a.wav' could not be written"), 1, "could not be written"),
    "missing": (MissingError("needs deepspeed: pip install deepspeed"), 3, "pip install deepspeed"),
    "gate": (GateError("parity 1e-2 is above 1e-4"), 4, "above 1e-4"),
    "full": (
        OSError(errno.ENOSPC, "No space left on device", "a.wav"),
        1,
        "no space left on the device: 'a.wav'",
    ),
    "denied": (
        PermissionError(errno.EACCES, "Permission denied", "b.wav"),
        1,
        "permission denied: 'b.wav'",
    ),
    "absent": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "c.wav"),
        1,
        "No such file or directory: 'c.wav'",
    ),
    "memory": (MemoryError(), 1, "out of memory"),
    "torch-memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        1,
        "out of memory",
    ),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted"),
    "usage": (
        click.BadParameter("'x' is not a number", param_hint="--seed"),
        2,
        "'x' is not a number",
    ),
    "bug": (
        ZeroDivisionError("division by zero"),
        1,
        "ZeroDivisionError: division by zero (a bug: MUDIT_DEBUG=1 shows the traceback)",
    ),
    "exit": (SystemExit(5), 5, ""),
}


@pytest.mark.parametrize(("error", "code", "message"), RAISED.values(), ids=RAISED)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_every_failure_has_an_exit_code_and_a_short_message(
    error: BaseException,
    code: int,
    message: str,
    as_json: bool,
    install: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    install(fail)
    assert run(["boom", *(["--json"] if as_json else [])]) == code
    out, err = capsys.readouterr()
    assert message in err
    assert "Traceback" not in err
    if as_json and message:
        document = json.loads(out)
        assert set(document) == {"schema_version", "env", "error"}
        assert document["error"]["exit_code"] == code
        assert document["error"]["type"] == type(error).__name__ or isinstance(
            error, KeyboardInterrupt
        )
        assert document["env"]["command"] == "mudit boom --json"
    else:
        assert out == ""


def test_debug_shows_the_traceback(
    install: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUDIT_DEBUG", "1")
    install(lambda: 1 / 0)  # type: ignore[arg-type]
    assert run(["boom"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_gate_keeps_its_results(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def gate() -> None:
        emit_json({"error": 1e-2})
        raise GateError("parity 1e-2 is above 1e-4")

    install(gate)
    assert run(["boom", "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["results"] == {"error": 1e-2}
    assert "above 1e-4" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctr"], "did you mean 'doctor'?"),
        (["xyz"], "known are doctor"),
        (["doctor", "--jsn"], "--json"),
        ([], "Usage: mudit"),
    ],
    ids=["near", "far", "option", "nothing"],
)
def test_usage_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_an_option_that_does_not_parse_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "--no-such-option"]) == 2
    assert "--no-such-option" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_document(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Figure:
        milliseconds: float
        file: Path

    install(lambda: emit_json([Figure(1.5, Path("月亮.wav"))]))
    assert run(["boom", "--json"]) == 0
    text = capsys.readouterr().out
    document = json.loads(text)
    assert document["schema_version"] == 1
    assert document["results"] == [{"milliseconds": 1.5, "file": "月亮.wav"}]
    assert {"versions", "commit", "cpu", "cores", "command"} <= set(document["env"])
    assert document["env"]["versions"]["mudit-engine"] == mudit_engine.__version__
    assert "torch" in document["env"]["versions"]


def test_nan_is_not_json(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(lambda: emit_json({"ratio": float("nan")}))
    assert run(["boom", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ValueError"


def test_a_terminal_without_unicode_gets_valid_json() -> None:
    done = python(
        "from mudit_engine.cli.main import run; run(['月亮', '--json'])",
        PYTHONIOENCODING="ascii",
        PYTHONUTF8="0",
    )
    assert "月亮" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """`mudit --help | true`: stdout is a pipe whose other end is closed before anything is
    written.
    """
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mudit_engine", "--help"]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_interrupted_from_outside() -> None:
    code = """
import os, signal, time
from mudit_engine.cli import main
def wait(): os.kill(os.getpid(), signal.SIGINT); time.sleep(30)
import click
main.LazyGroup.list_commands = lambda self, ctx: ["wait"]
main.LazyGroup.get_command = lambda self, ctx, name: click.Command("wait", callback=wait)
raise SystemExit(main.run(["wait"]))
"""
    done = python(code)
    assert (done.returncode, done.stderr.strip()) == (130, "mudit: interrupted")


def test_a_table_in_a_pipe_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 400
    print_table("Title", ["name", "ms"], [[long, 1.5], [None, ("red", "red")]], numeric=["ms"])
    out = capsys.readouterr().out
    assert long in out
    assert "\x1b" not in out
    assert "None" not in out


def test_progress_says_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", total=3) as advance:
        advance()
        advance(2, text="still working")
    assert capsys.readouterr() == ("", "")
