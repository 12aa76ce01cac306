"""From a name to a model: the lazy name table.

A row names what loads a kind of model and what it needs; nothing is imported before a row is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from guardkit.errors import MissingExtra, ModelLoadError, UnknownModel, did_you_mean
from guardkit.models.base import StreamModel
from guardkit.verdict import Category

DEFAULT_MODEL = "nano"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# architecture (config.json) -> the module that loads it
_LOADERS = {"Qwen3ForGuardModel": "guardkit.models.stream", "Qwen3ForCausalLM": "guardkit.models.gen"}
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
    torch = importlib.util.find_spec("torch") is not None
    note = "published weights, fetched when first used" if torch else "needs pip install 'guardkit[torch]'"
    rows = [ModelInfo(n, k, torch, mb, "Hugging Face Hub", note) for n, k, mb in _PUBLISHED]
    client = any(importlib.util.find_spec(package) for package in ("httpx2", "httpx"))
    server = "vLLM, SGLang and other OpenAI-compatible servers" if client else "needs pip install 'guardkit[remote]'"
    return [nano, *rows, ModelInfo("http://HOST:PORT/v1", "remote", client, None, "your server", server)]


def load_model(name: str | Path, **options: Any) -> StreamModel:
    """Load a model by name, folder (``~`` stands for the home folder) or server address. `process` as in `Guard.load`.

    Raises `UnknownModel` for a name that is none of these, `MissingExtra` where a package is missing, and
    `ModelLoadError` for files that do not load. Options that the model does not take raise TypeError.
    """
    _check_interpreter()
    options = {k: v for k, v in options.items() if v is not None}
    if isinstance(name, Path) or name.startswith("~"):
        name = str(Path(name).expanduser().absolute())
    process = options.pop("process", False)
    if process and not _is_server(name):  # a server's model is in one already
        try:
            apart = importlib.import_module("guardkit.process")
        except ImportError as error:  # Windows
            why = "a process of its own needs Unix sockets and file locks, which this system has not"
            raise ModelLoadError(f"{why}; leave process= out") from error
        return cast(StreamModel, apart.load(name, options, process))
    model = _load(name, dict(options))
    model.source = name, options
    return model


def _is_server(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _check_interpreter() -> None:
    """ONNX Runtime and torch hang where Python is not the process's first interpreter, as under mod_wsgi."""
    for module in ("_interpreters", "_xxsubinterpreters"):  # the name since Python 3.13, and before
        with suppress(ImportError):
            python = importlib.import_module(module)
            if python.get_current() != python.get_main():
                raise ModelLoadError(
                    "models do not run in a sub-interpreter: load them in the main one (mod_wsgi: "
                    "WSGIApplicationGroup %{GLOBAL}), or in a process of its own"
                )
            return


def categories_of(name: str | Path, revision: str | None = None) -> tuple[Category, ...]:
    """What a model names, from its config.json alone: nothing is loaded, of a hub's model only that file. Qwen3Guard's
    nine for whatever says nothing else; what is wrong with a model, loading it will tell."""
    folder = Path(name).expanduser()
    file: Path | None = folder / "config.json"
    if not folder.is_dir():
        file = None
        if name != DEFAULT_MODEL and _HUB_ID.fullmatch(str(name)):
            try:
                from huggingface_hub import hf_hub_download

                file = Path(hf_hub_download(str(name), "config.json", revision=revision))
            except Exception:  # no package, no network, no such model
                pass
    from guardkit.engine.config import Categories

    try:
        return Categories.from_json(json.loads(file.read_text(encoding="utf-8")), file).all if file else tuple(Category)
    except (OSError, ValueError, ModelLoadError, AttributeError, TypeError):
        return tuple(Category)


def _load(name: str, options: dict[str, Any]) -> StreamModel:
    if name == "nano" or (Path(name) / "graph.onnx").is_file():
        loader = cast(Callable[..., StreamModel], importlib.import_module("guardkit.models.nano").load)
        return loader(**options) if name == "nano" else loader(**options, folder=Path(name).absolute())
    if _is_server(name):
        loader = cast(Callable[..., StreamModel], importlib.import_module("guardkit.models.remote").load)
        return loader(name, **options)
    if not Path(name).is_dir() and not _HUB_ID.fullmatch(name):
        known = ["nano", *(p for p, _, _ in _PUBLISHED)]
        short = [p.split("/")[1] for p in known[1:]]
        like = did_you_mean(name, known) or did_you_mean(name, short).replace("mean '", "mean 'Qwen/")
        raise UnknownModel(
            f"unknown model '{name}': no folder of that name, no server address; known: {', '.join(known)}{like}"
        )
    try:
        return _load_weights(name, options)
    except ModelLoadError as error:
        published = [p for p, _, _ in _PUBLISHED]
        like = "" if name in published or Path(name).is_dir() else did_you_mean(name, published)
        if not like:
            raise
        raise ModelLoadError(f"{error}{like}") from error


def _load_weights(name: str, options: dict[str, Any]) -> StreamModel:
    """Load published weights from a folder or a hub, with what config.json says they are."""
    for package in ("torch", "safetensors", "tokenizers", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(name, "torch")
    checkpoints = importlib.import_module("guardkit.engine.checkpoint")
    checkpoint = checkpoints.Checkpoint.open(checkpoints.locate(name, options.pop("revision", None)))
    settings = importlib.import_module("guardkit.engine.setup").Options(**options)
    module = importlib.import_module(_LOADERS[checkpoint.architecture])
    return cast(StreamModel, module.load(checkpoint, name, settings))
