"""Chat logs to outputs of models: every assistant message of a record, with what came before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from guardkit_cli.records import Item, Record

_OUTPUTS = ("messages", "choices", "role", "response", "content", "text", "output", "message")
"""Where a record may hold what a model wrote. With two of them it is not clear which one to trace."""
_BESIDE = (
    *("reasoning_content", "reasoning", "thinking", "reasoning_details", "refusal"),
    *("tool_calls", "invalid_tool_calls", "function_call", "additional_kwargs"),
)
"""What else a model writes, beside its answer."""


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
    data = _parsed(line)
    if isinstance(data, str):
        return [(None, data)]
    if isinstance(data, list):
        return _of_messages(data)
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object, a list of messages or a string")
    if data.get("done") is False or data.get("stop") is False:  # a run of flagged tokens is longer than a piece
        raise ValueError("a piece of a stream ('done' or 'stop' is false): join the pieces to one record")
    given = [key for key in _OUTPUTS if data.get(key) is not None]
    if len(given) > 1 and given != ["role", "content"]:
        raise ValueError(f"only one of {_names(given)} can be traced: a record holds one of them")
    key = given[0] if given else "response"
    if key in ("messages", "choices"):
        # An object beside them ({"reasoning": {"effort": …}}) is a setting of the request.
        _nothing_beside(key, {name: value for name, value in data.items() if isinstance(value, str | list)})
        return _of_messages(data[key]) if key == "messages" else _of_choices(data[key])
    if key == "role":
        return _of_messages([data])
    if key in ("output", "message"):
        raise ValueError(f"'{key}' cannot be read: give what the model wrote as 'messages', 'response' or 'text'")
    return _of_fields(data, key)


def reads_as_json(text: str) -> bool:
    """Whether a text, or its first line, is a JSON object or a list of them."""
    text = text.lstrip()
    return text.startswith(("{", "[")) and any(_is_record(t) for t in (text.partition("\n")[0], text))


def _is_record(text: str) -> bool:
    try:
        data = _parsed(text)
    except ValueError:
        return False
    return all(isinstance(d, dict) for d in (data if isinstance(data, list) else [data])) and data != []


def _parsed(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None


def _names(keys: Iterable[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _nothing_beside(where: str, data: dict[str, Any]) -> None:
    """Raises where a model's words stand beside `where`, and would go unread."""
    beside = [key for key in _BESIDE if data.get(key)]
    if beside:
        raise ValueError(f"{_names(beside)} beside '{where}': not clear what belongs together; put it into the message")


def _of_fields(data: dict[str, Any], key: str) -> list[tuple[int | None, Item]]:
    """A record whose own fields are one output; its answer, if it has one, is at `key`."""
    answer, beside = data.get(key), {name: data[name] for name in _BESIDE if data.get(name) is not None}
    if answer is None and not any(beside.values()):
        known = _names(list(data)[:8]) or "none"
        raise ValueError(f"no 'messages', 'response', 'reasoning_content', 'choices' or 'text' in it (keys: {known})")
    if data.get("type") not in (None, "ai", "AIMessage"):
        raise ValueError(f"'type' is '{data['type']}': without a 'role', only 'ai' is known to be a model's")
    if key == "text" and not isinstance(answer, str):
        raise ValueError("'text' must be a string")
    message = {"role": "assistant", "content": "" if answer is None else answer, **beside}
    return [(None, [*_asked(data.get("prompt")), message])]


def _asked(prompt: Any) -> list[dict[str, Any]]:
    if prompt is None:
        return []
    if not isinstance(prompt, str):
        raise ValueError("'prompt' must be a string")
    return [{"role": "user", "content": prompt}]


def _of_messages(messages: Any) -> list[tuple[int | None, Item]]:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("'messages' must be a list of objects, with at least one")
    from guardkit import Stage
    from guardkit.messages import read_messages

    # All of them are read, so that none of a role that nobody knows passes for a user's.
    read = read_messages(messages)
    found: list[tuple[int | None, Item]] = [
        (i, messages[: i + 1]) for i, m in enumerate(read) if m.stage is Stage.response
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
        given = [key for key in ("message", "text", "delta") if choice.get(key) is not None]
        if len(given) > 1:
            raise ValueError(f"choice {i}: only one of {_names(given)} can be traced")
        message = choice[given[0]] if given else None
        _nothing_beside(f"choices[{i}]", choice)
        if given == ["delta"] or (given == ["text"] and choice.get("finish_reason", "") is None):
            raise ValueError(f"choice {i} is a piece of a stream: join the pieces to one record")
        if isinstance(message, str):
            found.append((i, message))
        elif isinstance(message, dict):
            found.append((i, [{"role": "assistant"} | message]))
        else:
            raise ValueError(f"choice {i} has no 'message'")
    return found
