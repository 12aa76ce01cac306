"""Who speaks in a message, in the forms of dumps, exports and frameworks: each as one with a `role`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardkit.reading import positions as at
from guardkit.reading.values import as_sequence, is_name, texts_of
from guardkit.verdict import Stage


def unwrapped(source: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The message in LangChain's dumps: ``{"lc": 1, "id": [..., "HumanMessage"], "kwargs": {...}}`` and
    ``{"type": "human", "data": {...}}``; any other mapping as it is."""
    inner, name = source.get("kwargs"), as_sequence(source.get("id"))
    if "lc" in source and isinstance(inner, Mapping) and name:
        rest = {k: v for k, v in source.items() if k not in ("lc", "id", "kwargs")}
        return _untyped(rest) | {"type": name[-1]} | _untyped(inner)
    inner = source.get("data")
    kind = source.get("type")
    if isinstance(kind, str) and kind in at.ROLE_OF_TYPE and isinstance(inner, Mapping) and "content" in inner:
        rest = {k: v for k, v in source.items() if k != "data"}
        return rest | _untyped(inner)
    return source


def spoken(source: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A message that says elsewhere who speaks, with a role: exports of chats (`author`, `sender`), AutoGen's `source`,
    Pydantic AI's `kind`; any other mapping as it is."""
    if source.get("role") is not None or "from" in source:
        return source
    author, content, kind, parts = (source.get(key) for key in ("author", "content", "type", "parts"))
    if isinstance(author, Mapping) and (role := at.role_of(author.get("role"))) and content is not None:
        if isinstance(content, Mapping) and "content_type" in content:
            content = _exported(content)
        return _but_names(source, "author") | {"role": role, "content": content}
    role = at.role_of(source.get("sender"))
    if role and any(isinstance(source.get(key), str | list) for key in ("text", "content")):
        return _but_names(source, "sender") | {"role": role}
    if isinstance(kind, str) and kind.endswith(("Message", "Event")) and isinstance(source.get("source"), str):
        told = _but_names(source, "source", "type")
        if kind == "ToolCallRequestEvent" and isinstance(content, list):
            return told | {"role": "assistant", "content": None, "tool_calls": content}
        return told | {"role": "tool" if "Execution" in kind else at.role_of(source["source"]) or "assistant"}
    if isinstance(parts, list) and any(isinstance(part, Mapping) and "part_kind" in part for part in parts):
        return _but_names(source, "kind") | {"role": at.ROLE_OF_KIND.get(str(source.get("kind")), "assistant")}
    return source


def _but_names(source: Mapping[Any, Any], *keys: str) -> dict[Any, Any]:
    """A mapping without those of `keys` that hold nothing but names."""

    def is_named(value: Any) -> bool:
        return all(found.text is not None and is_name(found.text, 6) for found in texts_of(value, Stage.prompt))

    return {key: value for key, value in source.items() if key not in keys or not is_named(value)}


def _exported(content: Mapping[Any, Any]) -> list[Any]:
    """The content of a message of ChatGPT's export."""
    kind = content["content_type"]
    told = {key: value for key, value in content.items() if key != "content_type"}
    if kind == "thoughts":
        return [{"type": "reasoning", "content": list(told.values())}]
    return [{"type": "tool_call", "input": told}] if kind == "code" else list(told.values())


def _untyped(inner: Mapping[Any, Any]) -> dict[Any, Any]:
    """A part of a dump, without its type; what stands there and is no name is a text."""
    found = dict(inner)
    kind = found.pop("type", None)
    return found if kind is None or (isinstance(kind, str) and is_name(kind)) else {**found, "other type": kind}
