"""Chat logs to outputs of models: every assistant message of a record, with what came before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guardkit_cli.records import Item, Record

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a model. message: its index in the record's messages; None where the record is no list of them.
    item is None where the record cannot be read; `record.error` then says why."""

    record: Record
    message: int | None
    item: Item | None

    @property
    def prompt(self) -> str:
        """What the user said last before it, for people."""
        if not isinstance(self.item, list):
            return ""
        asked = (m.get("content") for m in reversed(self.item[:-1]) if m.get("role") in ("user", "human"))
        return next((text for text in asked if isinstance(text, str)), "")


def outputs(record: Record, *, jsonl: bool, last: bool = False) -> list[Output]:
    """The outputs in a record, never none: what cannot be read is there, without an item. last: only the newest."""
    if not jsonl:
        return [Output(record, None, record.text)]
    try:
        found = read_record(record.text)
    except ValueError as error:
        return [Output(Record(record.line, None, record.text, record.source, str(error)), None, None)]
    return [Output(record, message, item) for message, item in (found[-1:] if last else found)]


def read_record(line: str) -> list[tuple[int | None, Item]]:
    """The outputs that a JSONL line holds. Raises ValueError that says what is wrong with it."""
    import json

    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    if isinstance(data, str):
        return [(None, data)]
    if isinstance(data, list):
        return _of_messages(data)
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object, a list of messages or a string")
    if "messages" in data:
        return _of_messages(data["messages"])
    if "choices" in data:
        return _of_choices(data["choices"])
    if "role" in data:
        return _of_messages([data])
    asked = _asked(data.get("prompt"))
    thoughts = {key: data[key] for key in _THOUGHTS if data.get(key) is not None}
    answer = data.get("response", data.get("content"))
    if answer is not None or thoughts:
        return [(None, [*asked, {"role": "assistant", "content": "" if answer is None else answer, **thoughts}])]
    if isinstance(data.get("text"), str):
        return [(None, data["text"])]
    known = ", ".join(f"'{key}'" for key in list(data)[:8]) or "none"
    raise ValueError(f"no 'messages', 'response', 'reasoning_content', 'choices' or 'text' in it (keys: {known})")


def _asked(prompt: Any) -> list[dict[str, Any]]:
    if prompt is None:
        return []
    if not isinstance(prompt, str):
        raise ValueError("'prompt' must be a string")
    return [{"role": "user", "content": prompt}]


def _of_messages(messages: Any) -> list[tuple[int | None, Item]]:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("'messages' must be a list of objects, with at least one")
    found: list[tuple[int | None, Item]] = [
        (i, messages[: i + 1]) for i, m in enumerate(messages) if m.get("role") in ("assistant", "ai", "model")
    ]
    if not found:
        raise ValueError("no message of an assistant in it: nothing to trace")
    return found


def _of_choices(choices: Any) -> list[tuple[int | None, Item]]:
    """Every candidate of a response of an OpenAI-compatible server."""
    if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
        raise ValueError("'choices' must be a list of objects, with at least one")
    found: list[tuple[int | None, Item]] = []
    for i, choice in enumerate(choices):
        message = choice.get("message", choice.get("text"))
        if isinstance(message, str):
            found.append((i, message))
        elif isinstance(message, dict):
            found.append((i, [{"role": "assistant"} | message]))
        else:
            raise ValueError(f"choice {i} has no 'message'")
    return found
