"""Base models of the lyric writer: which are taken and which are refused with a reason, their hash,
and what lies beside an adapter.

    base = find_base("Qwen/Qwen3-8B")            a folder, or an id of the Hugging Face hub
    check_base(base.config, "Qwen/Qwen3-8B")     InputError for what cannot be tuned
    weights_hash(base.folder)

An adapter folder is in peft's layout (adapter_config.json, adapter_model.safetensors) with
`mudit_lyrics.json`, which names the base and the hash of its weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudit_engine.availability import require
from mudit_engine.errors import InputError, ModelError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOTE = "mudit_lyrics.json"
TODAY = "Qwen/Qwen3-14B (or Qwen/Qwen3-8B)"


@dataclass(frozen=True)
class Base:
    """A model in transformers' layout on this machine."""

    name: str
    folder: Path
    config: dict[str, Any]


def find_base(name: str | Path) -> Base:
    """The folder of a base model. A name that is no folder is looked up in the hub's cache, and
    fetched where the machine may. Raises ModelError, or InputError for one that is refused.
    """
    refuse_by_name(str(name))
    folder = Path(name)
    if not folder.is_dir():
        folder = _from_hub(str(name))
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"'{folder}' is no model folder: config.json is missing. Give a folder in "
            f"transformers' layout or an id such as Qwen/Qwen3-8B"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"'{file}' is no JSON: {error}") from None
    check_base(config, str(name))
    return Base(str(name), folder, config)


def _from_hub(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"no model folder '{name}': give a folder in transformers' layout, or an id of the "
            f"Hugging Face hub such as Qwen/Qwen3-8B"
        )
    require("transformers", f"the base model '{name}'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "merges.txt", "vocab.json", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the base model '{name}' is neither a folder nor in the hub's cache, and could not be "
            f"fetched ({first}). Download it where there is a network and give its folder"
        ) from None


def refuse_by_name(name: str) -> None:
    """Raises InputError for what needs no look inside to be refused."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    if last.startswith(("qwen-", "qwen_")) and ("int4" in last or "int8" in last):
        raise InputError(
            f"'{name}' is GPTQ-quantised Qwen 1 with code of its own (remote code), which "
            f"transformers 5 and peft do not take: use today's equal, {TODAY}, which is quantised "
            f"to NF4 as it is loaded"
        )


def check_base(config: dict[str, Any], name: str) -> None:
    """Raises InputError, with the reason and what to use, for a model that cannot be tuned."""
    refuse_by_name(name)
    quantised = (config.get("quantization_config") or {}).get("quant_method")
    if quantised in ("gptq", "awq", "compressed-tensors", "fp8", "aqlm", "hqq"):
        raise InputError(
            f"'{name}' is quantised already ({quantised}): QLoRA quantises to NF4 itself. Use the "
            f"model's bf16 original, or {TODAY}"
        )
    if "auto_map" in config or config.get("model_type") == "qwen":
        raise InputError(
            f"'{name}' brings code of its own (remote code), which is not run: use a model that "
            f"transformers knows, such as {TODAY}"
        )
    architectures = config.get("architectures") or []
    if architectures and not any(kind.endswith("ForCausalLM") for kind in architectures):
        raise InputError(
            f"'{name}' is {', '.join(architectures)}, no causal language model: use {TODAY}"
        )


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Raises ModelError when ChatML's marks are no tokens of their own, or the tokenizer is no fast
    one.
    """
    from mudit_engine.lyric_model.prompts import END, START

    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"'{name}' has no fast tokenizer (tokenizer.json): use {TODAY}")
    unknown = getattr(tokenizer, "unk_token_id", None)
    for mark in (START, END):
        if tokenizer.convert_tokens_to_ids(mark) in (None, unknown):
            raise ModelError(
                f"'{name}' does not know ChatML's {mark}: use a Qwen2 or later model, such as "
                f"{TODAY}"
            )


def weights_hash(folder: Path) -> str:
    """sha256 over the names and contents of a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"'{folder}' holds no safetensors file: convert its weights first")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_base(folder: Path, *, base: str | None = None) -> Base:
    """The base that an adapter belongs to. Raises ModelError when its weights are other than those
    that the adapter was trained on.
    """
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    name = base or settings.get("base_model_name_or_path")
    if not name:
        raise ModelError(f"adapter '{folder}' names no base model: give one with --base")
    found = find_base(name)
    wanted = read_note(folder).get("base_sha256")
    if wanted and wanted != weights_hash(found.folder):
        raise ModelError(
            f"adapter '{folder}' was trained on other weights than '{name}' holds (their hashes "
            f"differ): give the folder it was trained on with --base"
        )
    return found


def read_note(folder: Path) -> dict[str, Any]:
    """What training noted beside an adapter: base, base_sha256, method. Empty for others."""
    file = folder / NOTE
    if not file.is_file():
        return {}
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document
