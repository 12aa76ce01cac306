"""What a record of the audit keeps of a text: a text as it is, messages as JSON, media as their kind and size."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

LEAST_MEDIA = 256  # characters of base64 from which on a value is taken for a file
_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]*)*,", re.IGNORECASE)
_MEDIA_INSIDE = re.compile(  # of a picture in a text: Markdown, HTML, JSON
    rf"(data:(?:image|audio|video|font)/[\w.+-]{{1,40}}(?:;[\w=.+-]{{1,40}})*;base64,)([A-Za-z0-9+/=_-]{{{LEAST_MEDIA},}}+)",
    re.IGNORECASE,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_SPOKEN = frozenset(("text", "content", "thinking", "reasoning", "reasoning_content", "refusal", "arguments"))
"""Keys whose strings are never files, whatever they look like."""


def audit_text(item: object) -> str:
    """`item` (a text, or messages) as a record keeps it. Never raises for an item that could be judged."""
    if isinstance(item, str):
        return _spoken(item)
    return json.dumps(_plain(item, ""), ensure_ascii=False, default=str)


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return _spoken(value) if key in _SPOKEN else _without_media(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(bytes(value)):,} bytes]"
    if is_dataclass(value) and not isinstance(value, type):
        value = {name: inner for name, inner in asdict(value).items() if inner}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(inner, key) for inner in value]
    return value


def _spoken(text: str) -> str:
    return _MEDIA_INSIDE.sub(lambda m: f"{m[1]}[{len(m[2]):,} characters]", text)


def _without_media(text: str) -> str:
    found = _DATA_URL.match(text)
    if found is not None:
        return f"{found[0]}[{len(text) - found.end():,} characters]"
    if len(text) >= LEAST_MEDIA and _BASE64.fullmatch("".join(text.split())):
        return f"[{len(text):,} characters of base64]"
    return text
