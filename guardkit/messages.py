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
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


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
        texts: list[str] = []
        thoughts = [t for key in _REASONING_KEYS if isinstance(t := source.get(key), str) and t]
        calls = [_call(c) for c in source.get("tool_calls") or ()]
        if isinstance(source.get("function_call"), Mapping):
            calls.append(_call(source["function_call"]))
        unknown: list[str] = []
        content = source.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, Sequence):
            for block in content:
                _read_block(block, texts, thoughts, calls, unknown, index)
        elif content is not None:
            raise MessageError(f"message {index}: 'content' must be a string or a list of blocks, not {_kind(content)}")
        return cls(role, "\n".join(texts), "\n".join(thoughts), tuple(calls), tuple(unknown))

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


def _read_block(
    block: Any, texts: list[str], thoughts: list[str], calls: list[str], unknown: list[str], index: int
) -> None:
    if isinstance(block, str):
        texts.append(block)
        return
    if not isinstance(block, Mapping):
        raise MessageError(f"message {index}: a content block must be a string or a mapping, not {_kind(block)}")
    kind = str(block.get("type", "text"))
    if kind in ("thinking", "reasoning", "redacted_thinking"):
        text = next((t for k in ("thinking", "reasoning", "text") if isinstance(t := block.get(k), str)), None)
        unknown.append(kind) if text is None else thoughts.append(text)
    elif kind in ("tool_use", "tool_call", "function_call"):
        calls.append(_call(block))
    elif kind == "tool_result":
        inner = block.get("content", "")
        for item in [inner] if isinstance(inner, str) else inner or ():
            _read_block(item, texts, thoughts, calls, unknown, index)
    elif isinstance(text := next((t for k in ("text", "refusal") if isinstance(t := block.get(k), str)), None), str):
        texts.append(text)
    else:
        unknown.append(kind)


def _call(call: Any) -> str:
    """A tool call as text: its name, then its arguments as they were given (JSON where they were parsed)."""
    if not isinstance(call, Mapping):
        raise MessageError(f"a tool call must be a mapping, not {_kind(call)}")
    inner = call.get("function", call)
    inner = inner if isinstance(inner, Mapping) else call
    arguments = next((inner[k] for k in ("arguments", "args", "input") if k in inner), "")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, default=str)
    return f"{inner.get('name', '')} {arguments}".strip()


def _kind(value: object) -> str:
    return type(value).__name__
