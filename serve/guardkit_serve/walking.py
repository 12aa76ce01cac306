"""Every string in a value of no known shape that must be judged: all but names at positions that hold no text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from guardkit import Stage
from guardkit.reading import positions as at
from guardkit.reading.values import Found, Key, is_name, texts_of

SILENT = at.NO_TEXT | at.BLOCK_NO_TEXT | at.RESPONSE_METADATA | frozenset((
    "obfuscation", "service_tier", "system_fingerprint", "item_id", "response_id", "sequence_number", "event",
    "output_index", "content_index", "summary_index", "provider", "native_finish_reason", "effort", "truncation",
    "previous_response_id", "parent_id", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "reasoning_effort", "verbosity", "tool_choice", "mode", "stop_details", "encrypted_content",
    "inference_geo", "param", "severity", "tier", "speed", "context_management", "tool_use_id", "strict",
))  # fmt: skip
"""Keys whose values hold no text; one that reads as text is judged all the same."""
OPAQUE = frozenset(("encrypted_content", "signature", "thought_signature", "thoughtSignature"))
"""What only the upstream can read."""
MAX_SILENT = 500  # values of silent keys that are remembered: most events repeat them
_NUMBERS = (int, float)
SETTINGS = SILENT | frozenset((
    "modalities", "stop", "stop_sequences", "include", "store", "logit_bias", "betas", "voice", "size", "quality",
    "user_id", "session_id", "request_id", "trace_id", "conversation_id", "thread_id", "conversation",
    "allowed_tools", "anthropic_version", "anthropic_beta", "search_context_size", "vector_store_ids", "effort",
))  # fmt: skip
"""The same of a request."""


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Seen:
    """Texts that were judged and passed, as digests: what repeats them passes."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._silent: set[tuple[Any, str]] = set()

    def add(self, texts: Iterable[str]) -> None:
        self._digests.update(map(digest, texts))

    def add_digest(self, one: bytes) -> None:
        self._digests.add(one)

    def __contains__(self, text: str) -> bool:
        return digest(text) in self._digests

    def knows(self, key: str, value: Any) -> bool:
        """Whether this very value passed under this key before; quick."""
        if isinstance(value, str):
            return (key, value) in self._silent
        return (value is None or isinstance(value, _NUMBERS)) and (key, "") in self._silent

    def new(self, key: str, value: Any, stage: Stage = Stage.response, silent: frozenset[str] = SILENT) -> list[Found]:
        """What stands in `value`, under `key`, and is neither a name where names belong nor seen before; the key too,
        where it reads as text."""
        if self.knows(key, value):
            return []
        known = value if isinstance(value, str) else ""
        found = [] if is_name(key) else [Found((Key(key),), key, stage)]
        left = [f for f in (*found, *texts_of(value, stage, path=(key,))) if not self._passes(f, silent)]
        if not left and len(known) < 200 and (known or not isinstance(value, Mapping | list)):
            if len(self._silent) >= MAX_SILENT:
                self._silent.clear()
            self._silent.add((key, known))
        return left

    def _passes(self, found: Found, silent: frozenset[str]) -> bool:
        text = found.text
        if text is None:
            return False
        if not text.strip():
            return True
        names = [step for step in found.path if isinstance(step, str)]
        if names and names[-1] in OPAQUE and not any(c.isspace() for c in text):
            return True
        if names and names[-1] in silent and is_name(text, 6):
            return True
        return text in self


def schema_text(schema: Any) -> str:
    """A tool's definition as one text: names, descriptions, and whatever else a model reads in it."""
    found = texts_of(schema, Stage.document, names=True)
    return "\n".join(f.text for f in found if f.text and not (f.path[-1:] == ("type",) and is_name(f.text)))


def without_opaque(value: Any) -> Any:
    """A message or an item without what is encrypted: nobody but the upstream can read it, and it alone wrote it."""
    if isinstance(value, Mapping):
        if value.get("type") == "reasoning" and isinstance(value.get("encrypted_content"), str):
            told = value.get("summary") or value.get("content")
            return value if told else {"role": "assistant", "content": ""}
        if value.get("type") == "item_reference" and set(value) <= {"type", "id"}:
            return {"role": "assistant", "content": ""}
        content = value.get("content")
        if isinstance(content, list) and any(_is_opaque(block) for block in content):
            return {**value, "content": [block for block in content if not _is_opaque(block)]}
    return value


def _is_opaque(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "redacted_thinking" and set(block) <= {"type", "data"}
