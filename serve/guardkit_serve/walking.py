"""Every string in a value of no known shape that must be judged: all but names at positions that hold no text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from guardkit import Stage
from guardkit.messages import Part
from guardkit.reading import positions as at
from guardkit.reading.values import Found, Key, is_name, texts_of, written

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


_OF_DATA = re.compile(r"[A-Za-z0-9+/=_.:~-]*")
_INSIDE = re.compile(r"\S\s+\S")
_INDEX = re.compile(r"\[\d+\]")
MAX_TOKEN = 32  # characters of a token that a vocabulary may hold


def is_opaque(text: str) -> bool:
    """Whether a string is data that only the upstream can read, rather than words, however they are joined."""
    if _OF_DATA.fullmatch(text) is None:
        return False
    return is_name(text, 6) or 16 * sum(map(str.isdigit, text)) >= len(text)


def is_token(text: str) -> bool:
    """Whether a string may be a token of a vocabulary: short, and one word at most."""
    return len(text) <= MAX_TOKEN and _INSIDE.search(text) is None


def part_of(found: Found) -> Part:
    """What was found, as a part that names its place: the same one for each entry of a list."""
    if found.text is None:
        return Part(found.stage, None, found.what)
    place = written(found.path[:-1]) + ".(key)" if found.is_key else _INDEX.sub("[]", written(found.path))
    return Part(found.stage, found.text, place)


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Seen:
    """Texts that were judged and passed, as digests: what repeats them passes."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._silent: set[tuple[Any, str]] = set()
        self._first: dict[str, str] = {}  # place -> the text that was found there first
        self._growing: set[str] = set()  # places that others were found at

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
        found = [f for f in (*found, *texts_of(value, stage, path=(key,))) if not self._passes(f, silent)]
        if not found and len(known) < 200 and (known or not isinstance(value, Mapping | list)):
            if len(self._silent) >= MAX_SILENT:
                self._silent.clear()
            self._silent.add((key, known))
        return [f for f in found if f.text is None or self._is_news(part_of(f).what, f.text, stage)]

    def _is_news(self, place: str, text: str, stage: Stage) -> bool:
        """Whether a text must be judged at this place: one that was not seen; and where texts differ from event to
        event, each of them, since they may be the pieces of one."""
        if place in self._growing:
            return True
        if not text.strip() or text in self:
            return False
        if stage.is_query:  # a request's, a document's: they stand whole
            return True
        if self._first.setdefault(place, text) != text:
            self._growing.add(place)
        return True

    def _passes(self, found: Found, silent: frozenset[str]) -> bool:
        text = found.text
        if text is None:
            return False
        names = [step for step in found.path if isinstance(step, str)]
        if names and names[-1] in OPAQUE and is_opaque(text):
            return True
        if "logprobs" in names and is_token(text):  # read apart, with the text that they are of
            return True
        return bool(names) and names[-1] in silent and is_name(text, 6)


def schema_text(schema: Any) -> str:
    """A tool's definition as one text: names, descriptions, and whatever else a model reads in it."""
    found = texts_of(schema, Stage.document, names=True)
    return "\n".join(f.text for f in found if f.text and not (f.path[-1:] == ("type",) and is_name(f.text)))


_REASONING = frozenset(("type", "id", "status", "summary", "content", "encrypted_content"))


def without_opaque(value: Any) -> Any:
    """A message or an item without what is encrypted: nobody but the upstream can read it, and it alone wrote it."""
    if isinstance(value, Mapping):
        if value.get("type") == "reasoning" and _is_hidden(value.get("encrypted_content")):
            told = value.get("summary") or value.get("content")
            more = {
                key: inner for key, inner in value.items() if key not in _REASONING or not _says_nothing(key, inner)
            }
            return value if told else {"role": "assistant", "content": "", **more}
        if (
            value.get("type") == "item_reference"
            and set(value) <= {"type", "id"}
            and _says_nothing("id", value.get("id"))
        ):
            return {"role": "assistant", "content": ""}
        content = value.get("content")
        if isinstance(content, list) and any(_is_opaque(block) for block in content):
            return {**value, "content": [block for block in content if not _is_opaque(block)]}
    return value


def _says_nothing(key: str, value: Any) -> bool:
    return key not in ("id", "status") or value is None or (isinstance(value, str) and is_name(value, 6))


def _is_opaque(block: Any) -> bool:
    if not isinstance(block, Mapping) or block.get("type") != "redacted_thinking":
        return False
    return set(block) <= {"type", "data"} and _is_hidden(block.get("data"))


def _is_hidden(value: Any) -> bool:
    return isinstance(value, str) and is_opaque(value)
