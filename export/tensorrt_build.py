"""A deployment folder's graphs become TensorRT engines, here or on the GPU host.

    OUT/engines/TARGET/spec.json  what is built: graphs, profiles per length bucket, flags
                                  (export/tensorrt_engine.py)
    OUT/engines/TARGET/build_engines.py     builds it, with the builder's package alone
    OUT/engines/TARGET/build.sh             runs it, and records the engines in the manifest
    OUT/engines/TARGET/*.engine, *.log.gz   the engines and what the builder said

    plan = make_plan(Path("deploy"), TARGETS["rtx-sm80"], buckets=[], options=Options())
    rows = build_engines(plan)  # raises MissingError on a machine that cannot build the target

    rows = record_built(Path("deploy"), "a100")  # after build.sh, on the GPU host

Where what is built, runtime/trt_targets.py says. The gate of export/fusion.py is on every engine.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.availability import available, install_command, pinned, require
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import GateError, InputError, MissingError, ModelError, MuditError
from mudit_engine.export.manifest import add_to_manifest
from mudit_engine.export.tensorrt_engine import BUILT
from mudit_engine.files import atomic_path, write_json, write_text
from mudit_engine.hardware import machine
from mudit_engine.runtime.buckets import Bucket, default_buckets, parse_buckets, profiles
from mudit_engine.runtime.manifest import differences, file_sha256, read_manifest
from mudit_engine.runtime.trt_targets import TARGETS, Target, target_of_gpu

ENGINES = ("modulation", "lyric_kv", "conditions", "step", "vae_decode", "chinmu_text")
TIMING_CACHE = "timing.cache"
ENTRY = ("flavour", "quantized", "buckets", "package", "capability")  # of a target's engines
NAMED = 6  # faults that an error names


@dataclass(frozen=True)
class Options:
    """What the user may ask of the builder."""

    flavour: str = "bf16"
    timing_cache: bool = True
    optimization_level: int | None = None
    vae_optimization_level: int | None = None
    # "fp8" or "int8": of `step`, the graph that `mudit export quantize` made
    quantize: str | None = None


@dataclass(frozen=True)
class Plan:
    """What will be built, and where everything lies."""

    folder: Path
    target: Target
    config: ModelConfig
    buckets: tuple[Bucket, ...]
    options: Options
    graphs: tuple[str, ...]
    spec: dict[str, Any] = field(repr=False)

    @property
    def out(self) -> Path:
        return self.folder / "engines" / self.target.name


def make_plan(
    folder: Path,
    target: Target,
    *,
    buckets: Sequence[str] = (),
    options: Options | None = None,
    graphs: Sequence[str] = (),
) -> Plan:
    """Reads a deployment folder and decides every engine's shapes and flags; builds nothing.

    Args:
        folder: written by `export_onnx` with a TensorRT flavour.
        target: where the engines run (`TARGETS`).
        buckets: "SECONDS" or "SECONDS:TOKENS" each, the longest song of a profile; none gives four.
        options: flavour, levels of the builder, quantising.
        graphs: those to build now; none is all. The build package has all.

    Returns:
        What `write_package` and `build_engines` take.

    Raises:
        ModelError: for a folder without graphs of the flavour, and for one that is not as it was
            exported: what changed would be built into the engines.
        InputError: for options that do not fit.

    Examples:
        >>> plan = make_plan(deploy, TARGETS["rtx-sm80"], graphs=["step"])    # doctest: +SKIP
        >>> plan.graphs, plan.out.name                                      # doctest: +SKIP
        (('step',), 'rtx-sm80')
    """
    options = options or Options()
    manifest = read_manifest(folder)
    wrong = [text for text in differences(folder, manifest) if not text.startswith("engines/")]
    if wrong:
        raise ModelError(
            f"'{folder}' is not as it was exported: {'; '.join(wrong[:NAMED])}. Engines are built "
            "from what was exported: export it again, or copy it whole"
        )
    config = load_config(folder)
    if options.flavour not in manifest["flavours"]:
        raise ModelError(
            f"'{folder}' holds graphs of {', '.join(manifest['flavours'])}; TensorRT takes "
            f"{options.flavour}: "
            f"export with `mudit export onnx MODEL {folder} --flavour {options.flavour}`"
        )
    exported = tuple(
        name for name in ENGINES if name in manifest["flavours"][options.flavour]["graphs"]
    )
    if unknown := [name for name in graphs if name not in exported]:
        raise InputError(f"no graph {', '.join(unknown)}: this export has {', '.join(exported)}")
    chosen = parse_buckets(config, buckets) if buckets else default_buckets(config)
    names = tuple(name for name in exported if not graphs or name in graphs)
    entries = []
    for name in exported:
        level = (
            options.vae_optimization_level if name == "vae_decode" else options.optimization_level
        )
        entries.append(
            {
                "name": name,
                "onnx": f"../../{_source(folder, manifest, options, name)}",
                "engine": f"{name}.engine",
                "profiles": profiles(config, chosen, name),
                "optimization_level": level,
            }
        )
    spec = {
        "target": target.name,
        "package": target.package,
        # on the host that builds: no path of this one
        "install": f"pip install {pinned(target.package)}",
        "capability": target.compiles_for,
        # TensorRT-RTX picks kernels without timing them: a cache would be empty
        "timing_cache": TIMING_CACHE if options.timing_cache and not target.ahead_of_time else None,
        "model": config.name,
        "flavour": options.flavour,
        **({"quantized": options.quantize} if options.quantize else {}),
        "buckets": [asdict(bucket) for bucket in chosen],
        "engines": entries,
    }
    return Plan(folder, target, config, chosen, options, names, spec)


def _source(folder: Path, manifest: dict[str, Any], options: Options, name: str) -> str:
    """Where the graph of an engine lies in the deployment."""
    own = f"graphs/{options.flavour}/{name}.onnx"
    if options.quantize is None or name != "step":
        return own
    known: dict[str, Any] = manifest.get("quantized", {}).get(options.quantize, {})
    if known.get("flavour") != options.flavour:
        raise InputError(
            f"'{folder}' has no {options.flavour} step in {options.quantize}: make it with `mudit "
            f"export quantize {folder} --to {options.quantize} --flavour {options.flavour}`"
        )
    if known["source_sha256"] != manifest["files"][own]["sha256"]:
        raise ModelError(
            f"{known['graph']} was made of another {own}: make it again with `mudit export "
            f"quantize {folder} --to {options.quantize}`"
        )
    return str(known["graph"])


def write_package(plan: Plan) -> Path:
    """Writes what a GPU host needs beside the graphs: specification and scripts.

    Returns its folder.
    """
    write_json(plan.out / "spec.json", plan.spec)
    source = Path(__file__).with_name("tensorrt_engine.py")
    with atomic_path(plan.out / "build_engines.py") as aside:
        shutil.copyfile(source, aside)
    write_text(plan.out / "build.sh", build_script(plan))
    return plan.out


def build_script(plan: Plan) -> str:
    """A shell script that builds every engine and records them in the deployment's manifest."""
    record = f"mudit export tensorrt ../.. --record --target {plan.target.name}"
    lines = [
        "#!/bin/sh",
        f"# Engines of model '{plan.config.name}' for target {plan.target.name}. Run it in this "
        f"folder, on the GPU that will run them.",
        "# python build_engines.py spec.json --measure   also times them with CUDA graphs.",
        "set -eu",
        'cd "$(dirname "$0")"',
        f"# {plan.spec['install']}",
    ]
    lines += [
        "python build_engines.py spec.json",
        "# --runtime tensorrt takes engines that have passed the fusion gate and are recorded",
        "if command -v mudit > /dev/null; then",
        f"  {record}",
        "else",
        f"  echo 'now run, in this folder, where mudit-engine is installed: {record}'",
        "fi",
    ]
    return "\n".join([*lines, ""])


def lacking(target: Target) -> str | None:
    """Why this machine cannot build a target's engines, with what to do; None when it can."""
    gpus = machine().gpus
    if target.ahead_of_time:
        if not available(target.package):
            return f"the package tensorrt-rtx is not installed: {install_command(target.package)}"
        return None
    reasons = []
    if not gpus:
        reasons.append("there is no NVIDIA driver or GPU (nvidia-smi answers nothing)")
    elif all(gpu.compute_capability != target.capability for gpu in gpus):
        reasons.append(
            f"the GPU is {gpus[0].name} (compute capability {gpus[0].compute_capability}), not "
            f"{target.capability}"
        )
    if not available(target.package):
        reasons.append(f"the package tensorrt is not installed ({install_command(target.package)})")
    return " and ".join(reasons) or None


def build_engines(
    plan: Plan,
    *,
    measured: bool = False,
    report: Callable[[str], None] = lambda text: None,
    keep: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Writes the build package, builds each engine in a child process, and holds it to a gate.

    Args:
        plan: what `make_plan` decided.
        measured: also runs each engine; needs its GPU.
        report: told the name of an engine before it is built.
        keep: told the row of an engine once it has passed the gate, whatever becomes of the next.

    Returns:
        A row an engine: seconds, bytes, memory, and what is fused in each profile.

    Raises:
        MissingError: when the machine cannot build this target; the package is there nonetheless.
        GateError: when an attention, a projection or an adaptive norm is not fused or masked.
        MuditError: when the builder fails.

    Examples:
        >>> rows = build_engines(plan)                                      # doctest: +SKIP
        >>> rows[0]["fusion"][0]["faults"]                                  # doctest: +SKIP
        []
    """
    out = write_package(plan)
    if reason := lacking(plan.target):
        raise MissingError(
            f"engines for {plan.target.name} cannot be built here: {reason}. The build package is "
            f"in '{out}': copy '{plan.folder}' to "
            f"the GPU host and run this command again there, or `sh "
            f"engines/{plan.target.name}/build.sh` in it"
        )
    rows, faults = [], []
    for entry in plan.spec["engines"]:
        if entry["name"] not in plan.graphs:
            continue
        report(entry["name"])
        engine = out / entry["engine"]
        for file in (engine, engine.with_suffix(".log.gz")):
            # an engine of an earlier specification must not pass for this one
            file.unlink(missing_ok=True)
        row = _run(plan, entry["name"], measured=measured)
        rows.append(row)
        faults += _gate(plan, entry, row, keep)
    _report(plan, rows, faults)
    return rows


def _gate(
    plan: Plan, entry: dict[str, Any], row: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> list[str]:
    """Holds a built engine to the fusion gate and adds what it found to the row; an engine with
    faults is removed, another is told to `keep`. Returns the faults.
    """
    fusion = check_engine(plan, entry)
    row |= {"target": plan.target.name, "fusion": fusion["profiles"], "masks": fusion["masks"]}
    wrong = [
        *fusion["masks"],
        *(fault for profile in fusion["profiles"] for fault in profile["faults"]),
    ]
    if wrong:
        (plan.out / entry["engine"]).unlink()
        return [f"{entry['name']}: {fault}" for fault in dict.fromkeys(wrong)]
    keep(row)
    return []


def _report(plan: Plan, rows: Sequence[dict[str, Any]], faults: Sequence[str]) -> None:
    """Writes the report of a build. Raises GateError for faults."""
    out = plan.out
    write_json(out / "report.json", rows)
    if faults:
        rest = (
            f"; and {len(faults) - NAMED} more ({out / 'report.json'})"
            if len(faults) > NAMED
            else ""
        )
        raise GateError(
            f"engines for {plan.target.name} are not as they must be and were removed: "
            f"{'; '.join(faults[:NAMED])}{rest}"
        )


def record_built(folder: Path, target: str) -> tuple[Plan, list[dict[str, Any]]]:
    """Holds engines that build_engines.py built in a deployment's package to the fusion gate, and
    enters those that pass into the manifest, so that `--runtime tensorrt` takes them.

    Args:
        folder: the deployment.
        target: name of the package, a folder in `engines/`.

    Returns:
        The plan of the package, and a row an engine.

    Raises:
        MissingError: without onnx, which the gate reads graphs with.
        ModelError: where there is no such package, it was changed after it was written, or an
            engine was built from other graphs.
        GateError: as `build_engines`; engines that pass are recorded nonetheless.

    Examples:
        >>> plan, rows = record_built(Path("deploy"), "a100")               # doctest: +SKIP
    """
    require("onnx", "the gate on engines")
    manifest, home = read_manifest(folder), folder / "engines" / target
    if target not in TARGETS or not (home / "spec.json").is_file():
        there = sorted(path.parent.name for path in folder.glob("engines/*/spec.json"))
        raise ModelError(
            f"'{folder}' has no build package of target '{target}': it has "
            f"{', '.join(there) or 'none'}. Write one with --package-only"
        )
    added = f"engines/{target}/"
    fresh = ("spec.json", "build_engines.py", "build.sh")
    wrong = [
        text
        for text in differences(folder, manifest)
        # what was built lies beside the package, here and of other targets
        if not text.startswith("engines/") or text.removeprefix(added).split()[0] in fresh
    ]
    if wrong:
        raise ModelError(
            f"'{folder}' is not as it was exported: {'; '.join(wrong[:NAMED])}. Its engines cannot "
            "be recorded: export it again, write the package and build in it"
        )
    spec = json.loads((home / "spec.json").read_text(encoding="utf-8"))
    built: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        built = json.loads((home / BUILT).read_text(encoding="utf-8"))
    entries = [
        entry
        for entry in spec["engines"]
        if entry["name"] in built and (home / entry["engine"]).is_file()
    ]
    if not entries:
        raise ModelError(
            f"'{home}' holds no engine that build_engines.py built: run build.sh there, on the GPU"
        )
    plan = Plan(
        folder,
        TARGETS[target],
        load_config(folder),
        tuple(Bucket(**bucket) for bucket in spec["buckets"]),
        Options(flavour=spec["flavour"], quantize=spec.get("quantized")),
        tuple(entry["name"] for entry in entries),
        spec,
    )
    for entry in entries:
        row, engine = built[entry["name"]], home / entry["engine"]
        source = file_sha256((home / entry["onnx"]).resolve())
        if row["onnx_sha256"] != source or row["engine_sha256"] != file_sha256(engine):
            raise ModelError(
                f"engine '{entry['name']}' of target '{target}' was built from another graph or "
                "changed since: build it again"
            )
    rows: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    faults: list[str] = []
    for entry in entries:
        rows.append(built[entry["name"]])
        faults += _gate(plan, entry, rows[-1], kept.append)
    try:
        _report(plan, rows, faults)
    finally:
        record_engines(plan, kept)  # the report is one of the files
    return plan, rows


def target_here() -> str:
    """The target of this machine's GPU. Raises MissingError without one that any target is for."""
    gpus = machine().gpus
    found = target_of_gpu(gpus[0].name, gpus[0].compute_capability) if gpus else None
    if found is None:
        seen = f"{gpus[0].name} ({gpus[0].compute_capability})" if gpus else "none"
        raise MissingError(
            f"--target here is the GPU of this machine, and it has {seen}: name the target, one of "
            f"{', '.join(TARGETS)}"
        )
    return found


def record_engines(plan: Plan, rows: Sequence[dict[str, Any]]) -> None:
    """Makes the manifest say what lies in the target's folder after a build of `plan` that kept the
    engines of `rows`.

    An engine that is gone, because its rebuild failed or it would not go together with the new
    ones, is no longer named.
    """
    manifest = read_manifest(plan.folder)
    known = dict(manifest.get("engines") or {})
    built = {row["name"]: _brief(row) for row in rows}
    entry = {key: plan.spec[key] for key in ENTRY if key in plan.spec}
    before = known.pop(plan.target.name, None)
    old = before["engines"] if before else {}
    if built and before and {**before, "engines": None} != {**entry, "engines": None}:
        old = {}  # engines of other buckets or another precision do not go together with these
    elif not built and before:
        entry = {key: value for key, value in before.items() if key != "engines"}
    engines = {
        name: one for name, one in {**old, **built}.items() if (plan.out / one["engine"]).is_file()
    }
    if engines:
        known[plan.target.name] = {**entry, "engines": engines}
    changes = {"engines": known} if known or "engines" in manifest else {}
    add_to_manifest(plan.folder, under=f"engines/{plan.target.name}", **changes)


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of an engine."""
    kept = {
        key: row[key]
        for key in ("engine", "bytes", "profiles", "memory", "version", "build_seconds")
    }
    return {**kept, "measured": row.get("measured")}


def check_engine(plan: Plan, entry: dict[str, Any]) -> dict[str, Any]:
    """The fusion report of each profile of a built engine, and faults of its masks."""
    import onnx

    from mudit_engine.export.fusion import fusion_reports, mask_faults, network_counts

    model = onnx.load(str((plan.out / entry["onnx"]).resolve()), load_external_data=False)
    with gzip.open(
        (plan.out / entry["engine"]).with_suffix(".log.gz"), "rt", encoding="utf-8"
    ) as file:
        log = file.read()
    found = fusion_reports(
        log, model, entry["name"], counts=network_counts(plan.config, entry["name"])
    )
    return {"profiles": [one.row() for one in found], "masks": mask_faults(model, entry["name"])}


def _run(plan: Plan, name: str, *, measured: bool) -> dict[str, Any]:
    """Builds one engine in a child: its peak memory is its own, and a crash of the builder is a
    message.
    """
    command = [
        sys.executable,
        str(plan.out / "build_engines.py"),
        str(plan.out / "spec.json"),
        "--only",
        name,
    ]
    done = subprocess.run(
        [*command, *(["--measure"] if measured else [])], capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = re.sub(
            r"^error: ",
            "",
            (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1],
        )
        raise MuditError(
            f"the builder failed on '{name}' for {plan.target.name}: {reason}. Its log: "
            f"{plan.out / name}.log.gz"
        )
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row
