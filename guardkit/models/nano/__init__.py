"""nano, the embedded model: a small encoder with Qwen3Guard-Stream's heads. See MODEL_CARD.md."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardkit.models.nano.model import Nano

_FOLDER = Path(__file__).parent


def weights_path() -> Path:
    return _FOLDER / "nano.onnx"


@lru_cache(maxsize=4)
def load(threads: int | None = None, device: str | None = None) -> Nano:
    """The embedded model; one instance is shared by all that ask for the same settings.

    threads: CPU threads for one forward pass (default: all cores of this process). device: "cpu" or None.
    Raises `ModelLoadError`.
    """
    from guardkit.errors import ModelLoadError
    from guardkit.models.nano.model import Nano

    if device not in (None, "cpu"):
        raise ModelLoadError(f"nano runs on the CPU only, not on '{device}'")
    return Nano(_FOLDER, threads)
