"""The deployment folder of a model: the folder itself where it is one, else an export that is kept
in the user's cache.

    # exported the first time, found again after
    folder = deployed("tiny", runtime="onnxruntime")
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mudit_engine import __version__
from mudit_engine.cli._console import note, progress


def deployed(model: str | Path, *, runtime: str, quiet: bool = False) -> Path:
    """Raises what `mudit export onnx` raises."""
    from mudit_engine.availability import require
    from mudit_engine.models.folder import model_folder
    from mudit_engine.runtime.manifest import FILE, SCHEMA, file_sha256

    require(runtime, f"runtime '{runtime}'")
    folder = model_folder(model)
    if (folder / FILE).is_file():
        return folder
    # by content: another model, or another version of the exporter, is another folder
    parts = [
        f"{path.name} {file_sha256(path)}"
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".safetensors")
    ]
    key = hashlib.sha256("\n".join([__version__, str(SCHEMA), *parts]).encode()).hexdigest()[:16]
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "mudit-engine"
        / f"{folder.name}-{key}"
    )
    if not (cache / FILE).is_file():
        from mudit_engine.export.onnx_export import export_onnx

        note(f"exporting '{model}' for {runtime}, once: it will be kept in {cache}")
        with progress("exporting", total=7, quiet=quiet) as advance:
            export_onnx(
                folder,
                cache,
                flavours=("fp32",),
                runtimes=(runtime,),
                report=lambda text: advance(1, text=f"exporting {text}"),
            )
    return cache
