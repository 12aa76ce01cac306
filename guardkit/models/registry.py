"""From a name to a model: the lazy name table.

A row names what loads a kind of model and what it needs; nothing is imported before a row is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from guardkit.errors import MissingExtra, ModelLoadError, UnknownModel
from guardkit.models.base import StreamModel

DEFAULT_MODEL = "nano"

# architecture (config.json) -> what it is; a loader joins its row together with the engine that it belongs to
_ARCHITECTURES = {
    "Qwen3ForGuardModel": "Qwen3Guard-Stream",
    "Qwen3ForCausalLM": "Qwen3Guard-Gen",
}
_PUBLISHED = [
    (f"Qwen/Qwen3Guard-{kind}-{size}", kind.lower(), mb)
    for kind in ("Stream", "Gen")
    for size, mb in (("0.6B", 1200.0), ("4B", 8000.0), ("8B", 16400.0))
]


@dataclass(frozen=True)
class ModelInfo:
    """A row for people. available: loads now, on this machine; size_mb: megabytes of weights (bf16 if published)."""

    name: str
    kind: str
    available: bool
    size_mb: float | None
    source: str
    note: str


def list_models() -> list[ModelInfo]:
    """The models that guardkit knows, those that load now first."""
    from guardkit.models.nano import weights_path

    weights = weights_path()
    size = weights.stat().st_size / 1e6 if weights.is_file() else None
    nano = ModelInfo(
        "nano", "embedded", size is not None, size, "in the package", "CPU, offline; prompts and responses"
    )
    note = "published weights; this version of guardkit has no engine for them yet"
    rows = [ModelInfo(n, k, False, mb, "Hugging Face Hub", note) for n, k, mb in _PUBLISHED]
    server = "an OpenAI-compatible server; this version of guardkit has no client for it yet"
    return [nano, *rows, ModelInfo("http://HOST:PORT/v1", "remote", False, None, "your server", server)]


def load_model(name: str, **options: Any) -> StreamModel:
    """Load a model by name, folder or server address.

    Raises `UnknownModel` for a name that is none of these, `MissingExtra` where a package is missing, and
    `ModelLoadError` for files that do not load. Options that the model does not take raise TypeError.
    """
    options = {k: v for k, v in options.items() if v is not None}
    if name == "nano":
        loader = cast(Callable[..., StreamModel], importlib.import_module("guardkit.models.nano").load)
        return loader(**options)
    if name.startswith(("http://", "https://")):
        raise UnknownModel(f"{name}: this version of guardkit has no client for remote servers; known: nano")
    folder = Path(name)
    if folder.is_dir():
        _refuse_folder(folder)
    if any(name == published for published, _, _ in _PUBLISHED):
        if importlib.util.find_spec("torch") is None:
            raise MissingExtra(f"{name}", "torch")
        raise UnknownModel(f"{name}: this version of guardkit has no engine for Qwen3Guard weights; known: nano")
    known = ", ".join(["nano", *(p for p, _, _ in _PUBLISHED)])
    raise UnknownModel(f"unknown model '{name}': no folder of that name, no server address; known: {known}")


def _refuse_folder(folder: Path) -> None:
    config = folder / "config.json"
    try:
        architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["(none)"]
    except OSError as error:
        raise ModelLoadError(f"{folder}: no readable config.json, so no model folder ({error})") from error
    except (ValueError, AttributeError) as error:
        raise ModelLoadError(f"{config}: not a JSON object ({error})") from error
    found = str(architectures[0])
    if found not in _ARCHITECTURES:
        raise ModelLoadError(f"{config}: architecture '{found}' is not supported; known: {', '.join(_ARCHITECTURES)}")
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(f"{folder} ({_ARCHITECTURES[found]})", "torch")
    raise UnknownModel(f"{folder}: this version of guardkit has no engine for {_ARCHITECTURES[found]} weights")
