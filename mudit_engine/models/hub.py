"""Models on the Hugging Face Hub: `org/name`, or `org/name@revision`.

    folder = fetch("org/name", revision="v1")           # in the hub's own cache

Cache, offline mode and token are huggingface_hub's own: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN or
`hf auth login`. A model folder is a repository as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from mudit_engine.availability import require
from mudit_engine.errors import ModelError

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
FILES = ("*.json", "*.safetensors", "*.txt", "*.md", "text_encoder/*", "lora/*", "fewstep/*")


def hub_name(source: str | Path) -> tuple[str, str | None] | None:
    """(repository, revision) where a model's name could be one on the hub, else None."""
    match = _NAME.fullmatch(str(source))
    return (match["repo"], match["revision"]) if match else None


def fetch(repo: str, *, revision: str | None = None) -> Path:
    """The folder of a model in the hub's cache, fetched if it is not there.

    Raises MissingError without huggingface_hub, ModelError when there is no such model or it
    cannot be reached.
    """
    require("huggingface_hub", f"the model '{repo}', which is no folder here,")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repo, revision=revision, allow_patterns=list(FILES))
    except (OSError, ValueError) as error:
        at = f" at revision '{revision}'" if revision else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"no model folder '{repo}', and the hub gave none of that name{at}: {reason}"
        ) from None
    return Path(found)
