"""Messages, and the parts of one that are judged: each at its own stage.

`Message.of` reads the shapes that chat APIs use: dicts in OpenAI's or Anthropic's form, with plain content, content
blocks, `reasoning_content` and tool calls. `parts` lists what must be judged in a message; a part that cannot be
judged at all (an image) is listed too, without text, so that nothing is dropped in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guardkit.errors import MessageError
from guardkit.verdict import Stage

REASONING_TAG = re.compile(r"<(/?)(?:think|thinking)>")
REASONING_TAGS = ("<think>", "</think>", "<thinking>", "</thinking>")

_ROLES = {
    "user": Stage.prompt,
    "human": Stage.prompt,
    "system": Stage.prompt,
    "developer": Stage.prompt,
    "assistant": Stage.response,
    "ai": Stage.response,
    "model": Stage.response,
    "tool": Stage.tool_output,
    "function": Stage.tool_output,
}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_CALL_KEYS = ("tool_calls", "function_call")
# Keys that hold no text of the conversation. Whatever else a message carries must be judged or said to be unjudgeable.
_SILENT_KEYS = frozenset((
    "role", "name", "id", "tool_call_id", "call_id", "type", "status", "index", "annotations", "metadata",
    "response_metadata", "usage", "usage_metadata", "finish_reason", "stop_reason", "model", "created_at", "timestamp",
    "phase", "is_error",
))  # fmt: skip
_EXTRA = "additional_kwargs"  # where LangChain puts what a provider sent beside the content
_TEXT_BLOCKS = frozenset(("text", "input_text", "output_text", "refusal", "summary_text"))
_REASONING_BLOCKS = frozenset(("thinking", "reasoning", "reasoning_text", "reasoning.text", "reasoning.summary"))


@dataclass(frozen=True)
class Part:
    """One judged piece of a message. `text` is None where the content (an image, audio) cannot be judged."""

    stage: Stage
    text: str | None
    what: str = "text"


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    role: "user", "assistant", "system", "tool" or a synonym of theirs; content: the text (for an assistant the
    answer, which may still hold ``<think>`` tags); reasoning: the reasoning where the API gives it apart; tool_calls:
    each call as text, name and arguments; unjudgeable: kinds of content that no guard here can read.
    """

    role: str
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[str, ...] = ()
    unjudgeable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise MessageError(f"unknown role '{self.role}'; known: {', '.join(_ROLES)}")

    @property
    def stage(self) -> Stage:
        """The stage of the message's own content."""
        return _ROLES[self.role]

    @classmethod
    def of(cls, source: Message | Mapping[str, Any], index: int = 0) -> Message:
        """Read a chat API's message. Raises `MessageError` that names `index` and what was expected."""
        if isinstance(source, Message):
            return source
        if not isinstance(source, Mapping):
            raise MessageError(f"message {index}: expected a mapping with 'role' and 'content', got {_kind(source)}")
        role = source.get("role")
        if not isinstance(role, str):
            raise MessageError(f"message {index}: 'role' is missing or no string; known: {', '.join(_ROLES)}")
        if role not in _ROLES:
            raise MessageError(f"message {index}: unknown role '{role}'; known: {', '.join(_ROLES)}")
        read = _Reading(index)
        extra = source.get(_EXTRA)
        for key, value in source.items():
            if value is None or key in _SILENT_KEYS or read.known(key, value):
                continue
            if key == "content":
                read.content(value)
            elif key != _EXTRA or not isinstance(extra, Mapping):
                read.other(key, value)
        for key, value in extra.items() if isinstance(extra, Mapping) else ():
            if value is not None:
                read.known(key, value)  # the rest of it is the provider's own
        if "content" not in source and not (read.texts or read.thoughts or read.calls or read.unknown):
            raise MessageError(f"message {index}: no 'content'; the keys are {', '.join(map(str, source))}")
        return cls(role, "\n".join(read.texts), "\n".join(read.thoughts), tuple(read.calls), tuple(read.unknown))

    def parts(self, stage: Stage | None = None) -> list[Part]:
        """What must be judged, in order; never empty. `stage` overrides the stage of the content."""
        found = []
        if self.reasoning:
            found.append(Part(Stage.reasoning, self.reasoning, "reasoning"))
        found += [Part(Stage.tool_call, call, "tool call") for call in self.tool_calls]
        found += [Part(stage or self.stage, None, kind) for kind in self.unjudgeable]
        if self.content or not found:
            found.append(Part(stage or self.stage, self.content))
        return found


def split_reasoning(text: str) -> tuple[str, str]:
    """Split a model's output into ``(reasoning, answer)``.

    Reads ``<think>…</think>`` anywhere in the text, also unclosed (the rest is reasoning) or without its opening tag
    (all before the closing tag is reasoning), as servers give it whose chat template opens the block in the prompt.
    """
    pieces: dict[bool, list[str]] = {True: [], False: []}
    inside, at = starts_in_reasoning(text), 0
    for tag in REASONING_TAG.finditer(text):
        pieces[inside].append(text[at : tag.start()])
        inside, at = not tag[1], tag.end()
    pieces[inside].append(text[at:])
    return "".join(pieces[True]), "".join(pieces[False])


def starts_in_reasoning(text: str) -> bool:
    """Whether the first reasoning tag in `text` is a closing one."""
    first = REASONING_TAG.search(text)
    return bool(first and first[1])


def read_messages(source: Sequence[Message | Mapping[str, Any]]) -> list[Message]:
    return [Message.of(m, i) for i, m in enumerate(source)]


class _Reading:
    """Collects what a message carries: texts, reasoning, calls, and the kinds of content that cannot be judged."""

    def __init__(self, index: int):
        self.index = index
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[str] = []
        self.unknown: list[str] = []

    def known(self, key: str, value: Any) -> bool:
        """Read a key that stands beside the content, with text of the message; whether it is one, or is empty."""
        if key in _REASONING_KEYS:
            old, self.thoughts = self.thoughts, []
            self.reasoning(value)
            self.thoughts = old + [text for text in self.thoughts if text not in old]  # servers give it under two keys
        elif not value:
            return key != "content"
        elif key in _CALL_KEYS:
            calls = [value] if isinstance(value, Mapping) else _listed(value, self.index, key)
            texts = [_call(call, self.index) for call in calls]
            self.calls += [text for text in texts if text not in self.calls]
        elif key == "refusal" and isinstance(value, str):
            self.texts.append(value)
        else:
            return False
        return True

    def content(self, value: Any) -> None:
        if isinstance(value, str):
            self.texts.append(value)
            return
        for block in [value] if isinstance(value, Mapping) else _listed(value, self.index, "content"):
            self.block(block)

    def block(self, block: Any) -> None:
        if isinstance(block, str):
            self.texts.append(block)
            return
        if not isinstance(block, Mapping):
            raise MessageError(
                f"message {self.index}: a content block must be a string or a mapping, not {_kind(block)}"
            )
        kind = str(block.get("type", "text"))
        if kind in _REASONING_BLOCKS:
            self.reasoning(block)
        elif kind in ("tool_use", "tool_call", "function_call", "server_tool_use", "custom_tool_call"):
            self.calls.append(_call(block, self.index))
        elif kind in ("tool_result", "function_call_output", "custom_tool_call_output"):
            inner = block.get("content", block.get("output"))
            if inner is not None:
                self.content(inner)
        elif kind in _TEXT_BLOCKS and isinstance(text := _first_text(block, ("text", "refusal")), str):
            self.texts.append(text)
        else:
            self.other(kind, block)

    def reasoning(self, value: Any) -> None:
        if isinstance(value, str):
            self.thoughts.append(value)
        elif isinstance(value, Mapping):
            given = [value[key] for key in ("thinking", "reasoning", "text", "summary", "content") if key in value]
            for inner in filter(None, given):
                self.reasoning(inner)
            if not any(given) and "" not in given:
                self.unknown.append(str(value.get("type", "reasoning")))
        else:
            for item in _listed(value, self.index, "reasoning"):
                self.reasoning(item)

    def other(self, kind: str, value: Any) -> None:
        """Content of an unknown kind: its plain texts are judged, and the rest is said to be unjudgeable."""
        if isinstance(value, Mapping):
            self.texts += [
                t for k in ("text", "transcript", "title", "alt") if isinstance(t := value.get(k), str) and t
            ]
        self.unknown.append(kind)


def _first_text(source: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((t for k in keys if isinstance(t := source.get(k), str)), None)


def _listed(value: Any, index: int, what: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise MessageError(f"message {index}: '{what}' must be a string or a list of blocks, not {_kind(value)}")
    return value


def _call(call: Any, index: int = 0) -> str:
    """A tool call as text: its name and its arguments, JSON strings without their escapes."""
    if not isinstance(call, Mapping):
        raise MessageError(f"message {index}: a tool call must be a mapping, not {_kind(call)}")
    inner = next((call[k] for k in ("function", "custom") if isinstance(call.get(k), Mapping)), call)
    given = [inner[k] for k in ("arguments", "args", "input") if inner.get(k)]
    if not given and not inner.get("name"):
        given = [dict(call)]  # of no known shape: all of it is judged
    return " ".join([str(inner.get("name", "")), *map(_plain, given)]).strip()


def _plain(arguments: Any) -> str:
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            return arguments
        if isinstance(parsed, str):
            return parsed
        arguments = parsed
    return json.dumps(arguments, ensure_ascii=False, default=str)


def _kind(value: object) -> str:
    return type(value).__name__
