"""nano, the embedded model: a small encoder with Qwen3Guard-Stream's heads. See MODEL_CARD.md."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardkit.models.nano.model import Nano

_FOLDER = Path(__file__).parent


def weights_path() -> Path:
    return _FOLDER / "nano.onnx"


_loaded: weakref.WeakValueDictionary[tuple[Path, int | None], Nano] = weakref.WeakValueDictionary()


def load(threads: int | None = None, device: str | None = None, folder: Path = _FOLDER) -> Nano:
    """The embedded model, or one that its recipe made in `folder`; one instance is shared by all that ask for the same
    settings at a time.

    threads: CPU threads for one forward pass (default: all cores of this process). device: "cpu" or None.
    Raises `ModelLoadError`.
    """
    from guardkit.errors import ModelLoadError
    from guardkit.models.nano.model import Nano

    if device not in (None, "cpu"):
        raise ModelLoadError(f"nano runs on the CPU only, not on '{device}'")
    model = _loaded.get((folder, threads))
    if model is None or model.closed:
        model = _loaded[folder, threads] = Nano(folder, threads)
    return model
