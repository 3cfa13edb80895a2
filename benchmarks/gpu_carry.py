"""What a GPU machine without a network lacks, in parts that can be carried to it.

    python -m mudit_engine.benchmarks.gpu_carry --python 3.12 --out .whl                  # wheels
    python -m mudit_engine.benchmarks.gpu_carry --triton 3.7.1 --out .whl --part-mib 18

Wheels come by pip for that Python. Triton's wheel is 190 MB; what compiling for one NVIDIA GPU
needs of it fits into 48: profilers, static libraries, the other vendor's compiler and the
disassemblers are left out, symbols are stripped, the rest is one xz archive cut into parts.
`manifest.json` names every file with its sha256: parts may arrive one by one, and nothing is
unpacked before all are there and whole, since half a Triton would hide the machine's own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError, MuditError, OutputError
from mudit_engine.files import write_json

# what `import mudit_engine` and the stages need beyond torch, triton and numpy
PACKAGES = (
    "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions",
    "soundfile", "cffi", "pycparser", "pypinyin", "safetensors", "click",
)  # fmt: skip
LEFT_OUT = (
    "libproton", "libnvperf", "ptxas-blackwell", "nvdisasm", "cuobjdump", "backends/amd",
    "instrumentation", "profiler/", "_C/libproton",
)  # fmt: skip


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kept(name: str) -> bool:
    """Whether a file of Triton's wheel travels."""
    return (
        name.startswith(("triton/", "triton-"))
        and not name.endswith(".a")
        and not any(part in name for part in LEFT_OUT)
    )


def slim(wheel: Path, out: Path, *, part_bytes: int) -> list[str]:
    """Cuts what is kept of a wheel into parts NAME.tar.xz.000 and so on; their names."""
    name = f"{wheel.name.split('-')[0]}.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, name)
        with zipfile.ZipFile(wheel) as source, tarfile.open(archive, "w:xz", preset=6) as target:
            for entry in source.infolist():
                if entry.is_dir() or not kept(entry.filename):
                    continue
                content = source.read(entry)
                if entry.filename.endswith(".so"):
                    content = stripped(content)
                info = tarfile.TarInfo(entry.filename)
                # ptxas must stay executable, which zip keeps in the upper half
                info.size, info.mode = len(content), (entry.external_attr >> 16) & 0o777 or 0o644
                target.addfile(info, io.BytesIO(content))
        parts: list[str] = []
        with archive.open("rb") as whole:
            while chunk := whole.read(part_bytes):
                part = out / f"{name}.{len(parts):03d}"
                part.write_bytes(chunk)
                parts.append(part.name)
    return parts


def stripped(library: bytes) -> bytes:
    """A shared library without its symbols of debugging, where binutils are at hand."""
    if shutil.which("strip") is None:
        return library
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        done = subprocess.run(["strip", "--strip-unneeded", file.name], capture_output=True)
        return Path(file.name).read_bytes() if done.returncode == 0 else library


def download(wanted: Sequence[str], out: Path, *, python: str) -> None:
    """Wheels of `wanted` for Linux on x86-64. Raises OutputError with pip's words."""
    platforms = (
        "manylinux_2_28",
        "manylinux_2_27",
        "manylinux_2_17",
        "manylinux2014",
        "manylinux1",
    )
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(out)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in platforms:
        command += ["--platform", f"{platform}_x86_64"]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise OutputError(
            f"pip could not download {', '.join(wanted)}: {done.stderr.strip()[-400:]}"
        )


def record(out: Path) -> dict[str, Any]:
    """Writes manifest.json over everything in the folder, and returns it."""
    files = sorted(p for p in out.iterdir() if p.is_file() and p.name != "manifest.json")
    manifest = {
        "schema_version": 1,
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def join_parts(carried: Path, site: Path) -> list[str]:
    """Unpacks archives that came in parts into `site`, once all parts that the manifest names are
    there and whole; returns the archives' names. Raises InputError for a broken part.
    """
    files = json.loads((carried / "manifest.json").read_text())["files"]
    done = []
    for name in sorted({part.rpartition(".")[0] for part in files if ".tar.xz." in part}):
        parts = sorted(part for part in files if part.startswith(f"{name}."))
        if not all((carried / part).exists() for part in parts):
            continue
        mark = site / f".{name}"
        if not mark.exists():
            for part in parts:
                if sha256(carried / part) != files[part]["sha256"]:
                    raise InputError(f"{carried / part} is not what was packed: carry it again")
            whole = io.BytesIO(b"".join((carried / part).read_bytes() for part in parts))
            site.mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=whole, mode="r:xz") as archive:
                archive.extractall(site, filter="data")
            mark.touch()
        done.append(name)
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(".whl"))
    parser.add_argument("--python", default="3.12", help="of the machine [3.12]")
    parser.add_argument("--packages", default=",".join(PACKAGES), help="wheels; '' for none")
    parser.add_argument("--triton", help="a version of Triton to carry in parts")
    parser.add_argument("--part-mib", type=int, default=18)
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if wanted := [name for name in options.packages.split(",") if name]:
            download(wanted, options.out, python=options.python)
        if options.triton:
            with tempfile.TemporaryDirectory() as folder:
                download([f"triton=={options.triton}"], Path(folder), python=options.python)
                (wheel,) = Path(folder).glob("triton-*.whl")
                slim(wheel, options.out, part_bytes=options.part_mib << 20)
        for name, held in record(options.out)["files"].items():
            print(f"{held['bytes'] / 2**20:8.2f} MiB  {name}")
    except MuditError as error:
        print(f"gpu_carry: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
