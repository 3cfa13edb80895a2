"""mudit doctor: what it finds, the commands it gives, and when it fails."""

from __future__ import annotations

import email
import importlib.metadata
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from mudit_engine import availability
from mudit_engine.cli import doctor
from mudit_engine.cli.main import run
from mudit_engine.config import PRESETS, load_config
from mudit_engine.sizes import lyric_cache_bytes, parameter_counts, song_frames

# without the build: 2.13.0+cpu is 2.13.0
TORCH = str(availability.version("torch")).partition("+")[0]
METADATA = """Metadata-Version: 2.1
Name: mudit-engine
Version: 0.1.0
Requires-Dist: numpy>=1.26
Requires-Dist: torch==TORCH
Requires-Dist: winonly==1; platform_system == "Plan9"
Provides-Extra: good
Requires-Dist: click>=8; extra == "good"
Provides-Extra: old
Requires-Dist: rich==1.0; extra == "old"
Provides-Extra: absent
Requires-Dist: no-such-package==1.2.3; extra == "absent"
Requires-Dist: click>=8; extra == "absent"
"""


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Metadata with one complete extra, one of another version, and one that is missing."""
    monkeypatch.setattr(
        importlib.metadata,
        "metadata",
        lambda name: email.message_from_string(METADATA.replace("TORCH", TORCH)),
    )
    availability.requirements.cache_clear()
    yield
    availability.requirements.cache_clear()


def report(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run(["doctor", "--json", *arguments]) == code
    results: dict[str, Any] = json.loads(capsys.readouterr().out)["results"]
    return results


def status(results: dict[str, Any], extra: str, package: str) -> str:
    [row] = [
        row for row in results["packages"] if (row["extra"], row["package"]) == (extra, package)
    ]
    return str(row["status"])


def test_the_core_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    results = report(capsys)
    assert results["lacking"] == []
    assert {row["package"] for row in results["packages"] if row["extra"] == "core"} >= {
        "torch",
        "numpy",
        "click",
        "pydantic",
    }
    assert results["torch"]["version"].startswith(TORCH)
    assert results["machine"]["cores"] >= 1
    assert 0 < results["machine"]["memory_available_mib"] <= results["machine"]["memory_mib"]


@pytest.mark.usefixtures("pins")
def test_each_package_is_held_to_its_pin(capsys: pytest.CaptureFixture[str]) -> None:
    results = report(capsys)
    assert status(results, "good", "click") == "ok"
    assert status(results, "core", "torch") == "ok"  # 2.13.0+cpu is 2.13.0
    assert status(results, "old", "rich") == "other version"
    assert status(results, "absent", "no-such-package") == "missing"
    assert "winonly" not in {row["package"] for row in results["packages"]}
    assert set(results["mend"]) == {"old", "absent"}


@pytest.mark.usefixtures("pins")
@pytest.mark.parametrize(
    ("extra", "code"), [("good", 0), ("old", 3), ("absent", 3), ("nonsense", 2)]
)
def test_require(extra: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--require", extra]) == code
    err = capsys.readouterr().err
    if code == 3:
        assert re.search(
            rf"{extra} is not complete: \S+ -m pip install (rich==1\.0|no-such-package==1\.2\.3)$",
            err,
            re.MULTILINE,
        )
    if code == 2:
        assert "absent, good, old" in err


def test_a_core_that_does_not_import_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(name: str) -> None:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    errors = doctor.import_errors()
    monkeypatch.undo()  # the command itself is found by an import
    monkeypatch.setattr(doctor, "import_errors", lambda: errors)
    results = report(capsys, code=3)
    assert status(results, "core", "torch") == "broken"
    assert results["torch"] is None
    assert results["lacking"] == ["core"]
    mend = results["mend"]["core"]
    [pin] = [one for one in availability.requirements()[availability.CORE] if one.name == "torch"]
    assert "-m pip install --force-reinstall" in mend and f"torch{pin.specifier}" in mend


def test_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "requirements", dict)
    assert run(["doctor"]) == 3
    assert "-m pip install -e ." in capsys.readouterr().err


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--preset", "tiny"]) == 0
    out = capsys.readouterr().out
    assert all(
        word in out for word in ("Machine", "Packages", "Programs", "Parameters of tiny", TORCH)
    )


def test_preset_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--preset", "musit-38m"]) == 2
    assert "musit-380m" in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS)
def test_sizes_of_every_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    size = report(capsys, "--preset", preset)["size"]
    config = load_config(preset)
    assert size["totals"]["dit"] == sum(size["parameters"]["dit"].values())
    assert size["song_frames"] == song_frames(config.vae, 260.0)
    assert (size["parameters"]["chinmu"]["text"] is None) == (
        config.chinmu.text_encoder != "characters"
    )
    assert size["dit_training_bytes"] == 16 * size["totals"]["dit"]


NAMED_SIZES = {
    "mudit-380m": 380,
    "musit-380m": 380,
    "musit-1b": 1000,
    "musit-3b": 3000,
    "published": 428,
}


@pytest.mark.parametrize(("preset", "millions"), NAMED_SIZES.items(), ids=NAMED_SIZES)
def test_a_preset_is_as_big_as_its_name(preset: str, millions: int) -> None:
    dit = sum(count or 0 for count in parameter_counts(load_config(preset))["dit"].values())
    tolerance = 0.03 if millions == 380 else 0.07
    assert abs(dit / 1e6 / millions - 1) < tolerance


def test_counts_are_those_of_the_built_network() -> None:
    from mudit_engine.models.dit import DiT
    from mudit_engine.models.vae import SpectralVAE

    config = load_config("tiny")
    counts = parameter_counts(config)
    for part, module in {"dit": DiT(config.dit), "vae": SpectralVAE(config.vae)}.items():
        assert sum(count or 0 for count in counts[part].values()) == sum(
            p.numel() for p in module.parameters()
        )


def test_a_full_size_song_is_2800_tokens() -> None:
    config = load_config("musit-380m")
    assert song_frames(config.vae, 260.0) == 2800
    assert lyric_cache_bytes(config.dit, tokens=1000, bytes_per_value=2) == 1000 * 10 * 2 * 1536 * 2


@pytest.mark.parametrize("module", availability.PACKAGES)
def test_every_optional_package_is_in_the_extra_it_names(module: str) -> None:
    name, extra = availability.PACKAGES[module]
    pinned = {
        requirement.name for requirement in availability.requirements()[extra or availability.CORE]
    }
    assert name in pinned


def test_install_command_is_the_pin_for_this_interpreter() -> None:
    words = shlex.split(availability.install_command("onnx"))
    assert words[1:4] == ["-m", "pip", "install"]
    [pin] = [pin for pin in availability.requirements()["export"] if pin.name == "onnx"]
    assert words[4:] == [f"onnx{pin.specifier}"]


@pytest.mark.parametrize(
    ("torch", "triton", "name"),
    [
        ("2.13.0+cpu", "3.7.1", "constraints"),
        ("2.13.0+cu130", "3.7.1", "constraints"),
        ("2.11.0", "3.6.0", "floor"),
        ("2.12.1", "3.7.0", "between"),
        ("2.13.0", "3.6.0", "between"),
        ("2.10.0", "3.6.0", "other"),
        ("2.13.0", "3.8.0", "other"),
        ("2.13.0", None, "other"),
    ],
)
def test_says_which_tested_set_it_found(
    torch: str,
    triton: str | None,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"torch": torch, "triton": triton}
    monkeypatch.setattr(availability, "version", found.get)
    assert availability.tested_set() == name
    assert set(doctor.TESTED_SETS) == {*availability.TESTED, "between", "other"}
