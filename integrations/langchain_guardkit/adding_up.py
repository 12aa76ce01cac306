"""What a stream's chunks say together and none of them alone.

LangChain adds chunks up field by field: halves of a word in two chunks' metadata, or in two pieces of a block that
another one stands between, become one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessageChunk

from guardkit.reading.positions import REASONING, REASONING_BLOCKS
from langchain_guardkit.reading import is_empty

_SEEN = 8000  # characters of a text that are judged again when it grows
_CALLS = frozenset(("tool_calls", "function_call"))
_OWN = frozenset((*REASONING, *_CALLS))  # of the additional fields: texts that are judged as they grow
_FRAME = frozenset(("index", "id", "type"))


class Sum:
    """The fields of a message's chunks, added up."""

    def __init__(self) -> None:
        self._fields: dict[Any, Any] = {}
        self._text_of: dict[Any, list[str]] = {}  # of each text block, by its index
        self._block: Any = None  # the text block that the latest text belongs to
        self._interleaved = False

    def add(self, message: AIMessageChunk, about: Mapping[str, Any]) -> list[str]:
        """The texts that have grown by a chunk, whole. about: its metadata, empty where it only repeats."""
        grown: list[str] = []
        extra = {key: value for key, value in message.additional_kwargs.items() if key not in _OWN}
        calls = [call for call in message.tool_call_chunks if call.get("index") is not None]
        names = {call["index"]: {"name": call.get("name")} for call in calls}
        for kind, source in (("extra", extra), ("about", about), ("names", names)):
            if source:
                _add(self._fields.setdefault(kind, {}), source, grown)
        if isinstance(message.content, list):
            for block in message.content:
                if isinstance(block, Mapping) and block.get("index") is not None:
                    grown += self._of_block(block)
        return [text[-_SEEN:] for text in grown]

    def _of_block(self, block: Mapping[str, Any]) -> Iterator[str]:
        index, kind = block["index"], block.get("type")
        if kind == "text" and isinstance(text := block.get("text"), str):
            again = index != self._block and index in self._text_of
            self._block, self._interleaved = index, self._interleaved or again
            self._text_of.setdefault(index, []).append(text)
            if self._interleaved:
                yield "".join(self._text_of[index])
        elif kind not in REASONING_BLOCKS:
            grown: list[str] = []
            _add(self._fields.setdefault("blocks", {}).setdefault(index, {}), block, grown)
            yield from grown


def _add(whole: dict[Any, Any], part: Mapping[Any, Any], grown: list[str]) -> None:
    for key, value in part.items():
        if key in _FRAME or is_empty(value):
            continue
        if isinstance(value, str):
            before = whole.get(key)
            whole[key] = value
            if isinstance(before, str):
                whole[key] = before + value
                grown.append(whole[key])
        elif isinstance(value, Mapping):
            if isinstance(inner := whole.setdefault(key, {}), dict):
                _add(inner, value, grown)
        elif isinstance(value, list) and isinstance(inner := whole.setdefault(key, {}), dict):
            for item in value:  # only those with an index are added up
                if isinstance(item, Mapping) and item.get("index") is not None:
                    _add(inner.setdefault(item["index"], {}), item, grown)
