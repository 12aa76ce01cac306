"""What the shapes of records share: a record on its way to what is judged, its messages, its context, its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guardkit.messages import Message, Part
from guardkit.reading import positions as at
from guardkit.reading.message import read_message
from guardkit.reading.speakers import spoken
from guardkit.reading.values import as_sequence, is_name, texts_of
from guardkit.verdict import Stage

Told = tuple[str, int | None, Message]
"""Where a message stands in its record, its index in the list that it is in, and what it says."""
ANSWERS = ("response", "completion", "output", "answer", "generation", "generated_text")
QUESTIONS = ("prompt", "instruction", "question", "query", "input")
LISTS = ("messages", "conversations", "conversation", "contents")
PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
NUMBERED = frozenset(
    f"{name}{joint}{mark}"
    for name in ("response", "answer", "output", "completion", "generation")
    for joint in ("", "_", "-")
    for mark in "0123456789abjkxyAB"
)
"""Answers that are compared: ``response_a`` and ``response_b``, ``output_1`` and ``output_2``."""
CANDIDATES = ("completions", "responses", "generations", "outputs")
"""Lists of answers, as texts or as objects that hold one."""
SYSTEM = ("system", "instructions", "systemInstruction", "system_instruction", "system_prompt")
BESIDE = (*at.REASONING, *at.CALLS, "refusal", "additional_kwargs")
NO_TEXT = frozenset((
    *at.NO_TEXT, "custom_id", "method", "url", "service_tier", "system_fingerprint", "stopReason", "modelVersion",
    "responseId", "createTime", "done_reason", "request_id", "uuid", "lc", "error",
))  # fmt: skip
"""Of a record. Numbers hold no text anyway."""


@dataclass
class Draft:
    """messages: a conversation; answers: candidates for what comes after it; text: one plain text."""

    messages: Sequence[Told]
    answers: Sequence[tuple[str, int | None, list[Message]]]
    used: tuple[str, ...]
    text: str | None = None
    ignored: tuple[str, ...] = ()


def holds_text(key: Any, value: Any) -> bool:
    found = texts_of(value, Stage.prompt)
    if not is_name(str(key)):
        return True
    if key in NO_TEXT or key in at.RESPONSE_METADATA:
        return any(f.text is None or not is_name(f.text, 6) for f in found)
    return any(f.text is None or f.text.strip() for f in found)


def is_message(data: Mapping[Any, Any]) -> bool:
    data = spoken(data)
    kind = data.get("type")
    if kind == "message" and "content" not in data and data.get("role") is None:
        return False  # of people: Slack's, a bot framework's
    if data.get("role") is not None or ("from" in data and "value" in data):
        return any(key in data for key in (*at.CONTENT, *BESIDE, "output", "input")) or "role" not in data
    if "lc" in data and isinstance(data.get("kwargs"), Mapping):
        ids = as_sequence(data.get("id"))
        return bool(ids) and isinstance(ids[-1], str) and ids[-1] in at.ROLE_OF_TYPE  # type: ignore[index]
    if not isinstance(kind, str):
        return False
    if kind in at.ROLE_OF_TYPE:
        return any(key in data for key in ("content", "data", "summary", *at.TEXT))
    return kind in at.CALL_BLOCKS or kind in at.RESULT_BLOCKS


def messages_in(value: Any, path: str) -> list[Told]:
    """A list of messages; also one message, or a text (Gemini's ``contents``)."""
    if isinstance(value, str) and path == "contents":
        return [(path, None, Message("user", value))]
    if isinstance(value, Mapping) and path == "contents":
        return [(path, None, read_message(value, 0, "user"))]
    if not isinstance(value, list) or not value or not all(isinstance(m, Mapping) for m in value):
        raise ValueError(f"'{path or 'messages'}' must be a list of objects, with at least one")
    role = "user" if path == "contents" else None
    return [(f"{path}[{i}]", i, read_message(m, i, role)) for i, m in enumerate(value)]


def context_of(data: Any, but: str | None = None) -> tuple[list[Told], tuple[str, ...]]:
    """What was said before an answer, and the keys that it stands in and that hold nothing else."""
    found: list[Told] = []
    used: list[str] = []
    for key in SYSTEM:
        value = data.get(key)
        if value:
            listed = as_sequence(value)
            source = value if isinstance(value, Mapping) else {"content": listed or value}
            told = {k: v for k, v in source.items() if k != "role"} | {"role": "system"}
            found.append((key, None, read_message(told)))
            used.append(key)
    listed = next((k for k in (*LISTS, "prompt", "input") if k != but and is_chat(data.get(k))), None)
    if listed is None and isinstance(data.get("input"), Mapping) and "messages" in data["input"]:  # fine-tuning
        beside = any(key != "messages" and holds_text(key, value) for key, value in data["input"].items())
        return [*found, *messages_in(data["input"]["messages"], "input.messages")], (
            *used,
            *([] if beside else ["input"]),
        )
    if listed is not None:
        return [*found, *messages_in(data[listed], listed)], (*used, listed)
    for key in QUESTIONS:
        if key != but and isinstance(data.get(key), bool | int | float):
            raise ValueError(f"'{key}' must be a string, not {kind_of(data[key])}")
    asked = [k for k in QUESTIONS if k != but and isinstance(data.get(k), str) and data[k]]
    found += [(key, None, Message("user", data[key])) for key in asked]
    return found, (*used, *asked)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages to or from a model; other chats (of people, without roles) are not."""
    return (
        isinstance(value, list)
        and all(isinstance(m, Mapping) for m in value)
        and any(
            (is_message(m) and m.keys() & _SPEAKERS) or ("parts" in m and ("kind" not in m or spoken(m) is not m))
            for m in value
        )
    )


_SPEAKERS = frozenset(
    (
        "role",
        "author",
        "sender",
        "source",
        "parts",
        "value",
        "lc",
        "content",
        "data",
        "summary",
        "call_id",
        "arguments",
        "output",
    )
)


def answer_in(value: Any, key: str, beside: Mapping[str, Any]) -> list[Message]:
    """An answer as messages of which the last is judged: texts, blocks, one message, or the messages of a turn."""
    if isinstance(value, str):
        return [read_message({"role": "assistant", "content": value, **beside})]
    if isinstance(value, Mapping) and not beside:
        return [read_message(value, 0, "assistant")]
    if isinstance(value, list) and value and not beside:
        if all(isinstance(m, Mapping) and is_message(m) for m in value):
            return [read_message(m, i, "assistant") for i, m in enumerate(value)]
        if any(found.text or found.text is None for found in texts_of(value, Stage.response)):
            return [read_message({"role": "assistant", "content": value})]
    raise ValueError(f"'{key}' must be a string, not {kind_of(value)}")


def one_turn(messages: Sequence[Message]) -> list[Message]:
    """The items of one turn of a model as one message, so that each is judged."""
    return [
        Message(
            "assistant",
            "\n".join(m.content for m in messages if m.content and m.stage is Stage.response),
            "\n".join(m.reasoning for m in messages if m.reasoning),
            tuple(call for m in messages for call in m.tool_calls),
            tuple(dict.fromkeys(kind for m in messages for kind in m.unjudgeable)),
            tuple(
                part
                for m in messages
                for part in (
                    *([Part(m.stage, m.content)] if m.content and m.stage is not Stage.response else []),
                    *m.attached,
                )
            ),
        )
    ]


def one_output(data: Mapping[Any, Any], key: str, outputs: bool) -> None:
    """For traces: raises where a record holds more than one place for what a model wrote."""
    if not outputs:
        return
    given = [
        k
        for k in ("messages", "choices", "response", "content", "text", "output", "message")
        if data.get(k) is not None
    ]
    if len(given) > 1 and not (key == "output" and isinstance(data.get("text"), Mapping)):
        raise ValueError(f"only one of {quoted(given)} can be traced: a record holds one of them")
    if key in ("messages", "choices"):
        # An object beside them ({"reasoning": {"effort": …}}) is a setting of the request.
        beside = [k for k in BESIDE if isinstance(data.get(k), str | list) and data[k]]
        if beside:
            raise ValueError(
                f"{quoted(beside)} beside '{key}': not clear what belongs together; put it into the message"
            )


def first_of(data: Any, keys: Sequence[str]) -> str | None:
    return next((k for k in keys if data.get(k) is not None), None) if isinstance(data, Mapping) else None


def quoted(keys: Sequence[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def keys_of(data: Any) -> str:
    return f" (keys: {quoted([str(k) for k in list(data)[:8]]) or 'none'})" if isinstance(data, Mapping) else ""


def kind_of(value: Any) -> str:
    """What JSON calls the kind of a value."""
    names = {bool: "a boolean", type(None): "null", str: "a string"}
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else names.get(type(value), "a number")
