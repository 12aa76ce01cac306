"""LlamaIndex without a network: a tokenizer of its own needs no download."""

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import Settings


def split(text: str) -> list[str]:
    return text.split()


Settings.tokenizer = split
