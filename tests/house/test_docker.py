"""The container files as far as they can be checked without a container engine: instructions,
users, paths, the options of our own commands, and a compose file that names what is there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mudit_engine.cli.serve import command as serve

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "ARG", "USER", "VOLUME", "EXPOSE"}
KNOWN |= {"STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_instructions_paths_and_options(file: Path) -> None:
    found = instructions(file)
    names = [name for name, _ in found]
    assert set(names) <= KNOWN and names[0] == "FROM" and names.count("ENTRYPOINT") == 1
    image = dict(found)["FROM"]
    assert re.search(r":[\w.-]*\d", image) and not image.endswith(":latest"), "a named release"
    for name, rest in found:
        if name == "COPY":
            source = rest.split()[0]
            assert (ROOT / source).exists(), source
    words = [
        word for name, rest in found if name in ("ENTRYPOINT", "CMD") for word in json.loads(rest)
    ]
    if words[0] == "mudit":
        assert "USER" in names, "a service needs no root"
        assert words[1] == "serve"
        arguments = words[2:]
        context = serve.make_context("serve", list(arguments))
        assert context.params["host"] == "0.0.0.0" and context.params["port"] == 8000
        assert str(context.params["folder"]) == "/songs"


def test_the_compose_file_names_what_is_there() -> None:
    yaml = pytest.importorskip("yaml")
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    used = set()
    for name, service in document["services"].items():
        assert service["profiles"] == [name]
        folder = (ROOT / "docker" / service["build"]["context"]).resolve()
        assert folder == ROOT.resolve()
        used.add(folder / service["build"]["dockerfile"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("./") or source in document["volumes"]
    assert used == {file.resolve() for file in FILES}
    assert "not been built or run" in (ROOT / "docker" / "README.md").read_text()
