"""`mudit serve` before it serves: its keys, and limits that are no numbers, here and elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from mudit_engine.cli._numbers import FiniteRange
from mudit_engine.cli.main import cli, run
from mudit_engine.serving.access import Keys


def test_a_new_key_opens_the_service(tmp_path: Path, capsys: Any) -> None:
    assert run(["serve", "--new-key", "team-a"]) == 0
    told = capsys.readouterr()
    (tmp_path / "keys.txt").write_text(told.out)
    key = next(word for word in told.err.split() if word.startswith("sk-"))
    assert Keys.load(tmp_path / "keys.txt").owner(f"Bearer {key}") == "team-a"


@pytest.mark.parametrize("name", ["team a", "", "a\nb sha256:0", "x" * 61, "#a"])
def test_a_key_has_a_name_that_its_file_may_hold(name: str, capsys: Any) -> None:
    assert run(["serve", "--new-key", name]) == 2
    told = capsys.readouterr()
    assert "is no name of a key" in told.err and told.out == ""


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "option", ["--quota", "--max-seconds", "--keep-days", "--keep-gib", "--drain-seconds"]
)
def test_limits_are_numbers(option: str, value: str, capsys: Any) -> None:
    assert run(["serve", "tiny", option, value, "--port", "0"]) == 2
    assert option in capsys.readouterr().err


def _options(group: click.Command, path: str = "mudit") -> list[tuple[str, click.Parameter]]:
    if not isinstance(group, click.Group):
        return [(f"{path} {one.opts[0]}", one) for one in group.params]
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        one = group.get_command(context, name)
        assert one is not None
        found += _options(one, f"{path} {name}")
    return found


def test_no_range_of_any_command_lets_nan_through() -> None:
    options = _options(cli)
    ranges = [(name, one.type) for name, one in options if isinstance(one.type, click.FloatRange)]
    assert len(ranges) > 20
    assert [name for name, kind in ranges if not isinstance(kind, FiniteRange)] == []
