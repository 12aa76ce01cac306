"""Loads a chat model of transformers, also from one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardkit.errors import MissingExtra, ModelLoadError


def load_chat_model(
    name: str, *, gguf: str | None = None, device: str = "cpu", dtype: str | None = None, extra: str = "rl"
) -> tuple[Any, Any]:
    """The model, ready to generate, and its tokenizer.

    name: a folder, a hub id, or the path of a GGUF file; gguf: the file's name in the folder (needs the package gguf).
    dtype: "bfloat16" and so on; by default float32 on a CPU, else as it was saved. Raises `MissingExtra` that names
    `extra`, and `ModelLoadError`.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra(f"the chat model '{name}'", extra) from error
    if gguf is None and name.endswith(".gguf"):
        name, gguf = str(Path(name).parent), Path(name).name
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    file = {"gguf_file": gguf} if gguf else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **file)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **file)
    except (OSError, ValueError, ImportError) as error:
        raise ModelLoadError(f"the chat model '{name}' does not load: {error}") from error
    if gguf:  # its weights were made whole again, but it would still pass for a quantised model
        weights, generation = model.state_dict(), model.generation_config
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
        model.load_state_dict(weights)
        model.generation_config = generation
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer
