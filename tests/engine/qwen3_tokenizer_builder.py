"""Qwen3's own tokenizer.json for the tests, rebuilt from the ranks that the dashscope package carries.

The result is byte-identical to the published file.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path

SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
MISSING = next(
    (
        f"needs Qwen3's tokenizer: pip install {how}"
        for package, how in (("tokenizers", "tokenizers"), ("dashscope", "--no-deps dashscope"))
        if importlib.util.find_spec(package) is None
    ),
    None,
)
"""Why no test can have the tokenizer here, or None."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
ADDED = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip


def cached() -> Path:
    """A folder with tokenizer.json in it, built once per user. Runs that build at once do not disturb each other."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "guardkit-tests" / "qwen3" / "tokenizer.json"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            build(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    return path.parent


def build(path: Path) -> None:
    """Write Qwen3's tokenizer.json to `path`. Raises RuntimeError where the result is not the published file."""
    package = importlib.util.find_spec("dashscope")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("dashscope is not installed: pip install --no-deps dashscope")
    source = Path(next(iter(package.submodule_search_locations))) / "resources" / "qwen.tiktoken"
    lines = [line.split() for line in source.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    table = _byte_alphabet()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    written = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": name, **dict.fromkeys(flags, False), "special": name in SPECIAL}
            for token_id, name in enumerate(SPECIAL + ADDED, len(ranks))
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {"".join(table[byte] for byte in token): rank for token, rank in ranks.items()},
            "merges": [
                ["".join(table[byte] for byte in half) for half in _halves(token, ranks)]
                for token in ranks
                if len(token) > 1
            ],
        },
    }
    data = json.dumps(written, indent=2, ensure_ascii=False).encode()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise RuntimeError("the rebuilt tokenizer.json is not the published one: dashscope carries other ranks")
    path.write_bytes(data)


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's reversible table from bytes to characters."""
    table = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The merge that makes `token`: byte-pair encoding with all merges before it leaves two parts."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best, at = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts)))
        if best >= ranks[token]:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
