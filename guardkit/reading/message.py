"""One message of any chat API: its texts at their stages, and what in it cannot be judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from guardkit.errors import MessageError
from guardkit.messages import Message, Part
from guardkit.reading import positions as at
from guardkit.reading.jsontext import parse
from guardkit.reading.payloads import arguments_text, file_text
from guardkit.reading.speakers import spoken, unwrapped
from guardkit.reading.values import as_sequence, is_name, texts_of
from guardkit.verdict import Stage

MAX_NESTED = 24
"""Blocks within blocks that are read as such; deeper ones are walked as plain values."""


def read_message(source: Any, index: int = 0, role: str | None = None) -> Message:
    """Read a message in the form of OpenAI (chat and Responses items), Anthropic, Bedrock, Gemini, AI SDK, LangChain
    (dicts and dumps), LlamaIndex or ShareGPT. role: where the message itself names none.

    Raises `MessageError` that names `index` and what was expected.
    """
    if isinstance(source, Message):
        return source
    if not isinstance(source, Mapping):
        raise MessageError(
            f"message {index}: expected a mapping with 'role' and 'content', got {type(source).__name__}"
        )
    source = unwrapped(source)
    source = spoken(source)
    kind = source.get("type")
    named = source.get("role", source.get("from"))
    if named is None and isinstance(kind, str):
        named = at.ROLE_OF_TYPE.get(kind) or (
            "tool" if at.is_result(kind) else "assistant" if at.is_call(kind) else None
        )
        is_block = kind in at.ITEMS or at.is_result(kind) or at.is_call(kind)
    else:
        is_block = False
    named = _enum_value(named) if named is not None else role
    if isinstance(named, str) and named.lower() in at.CALL_ROLES:
        return read_message(_as_call(source), index)
    if not isinstance(named, str):
        raise MessageError(f"message {index}: 'role' is missing or no string; known: {', '.join(at.ROLES)}")
    known = at.role_of(named)
    if known is None:
        raise MessageError(f"message {index}: unknown role '{named}'; known: {', '.join(at.ROLES)}")
    reader = MessageReader(known, index)
    if is_block:
        reader.content(source)
    else:
        reader.message(source)
    return reader.result()


def _as_call(source: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A ShareGPT message that is a tool call, as an assistant's message with that call."""
    key = next((k for k in at.CONTENT if source.get(k) is not None), "content")
    call = source.get(key)
    if isinstance(call, str):
        try:
            call = parse(call)
        except ValueError:
            call = {"arguments": call}
    listed = call if isinstance(call, list) else [call]
    calls = [c if isinstance(c, Mapping) else {"arguments": c} for c in listed]
    rest = {k: v for k, v in source.items() if k not in (key, "from", "role")}
    return rest | {"role": "assistant", "content": None, "tool_calls": calls}


class MessageReader:
    """Collects what a message carries. Texts go to `sink`, whose stage is `stage`."""

    def __init__(self, role: str, index: int):
        self.role, self.index = role, index
        self.stage = at.ROLES[role]
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[str] = []
        self.attached: list[Part] = []
        self.unknown: list[str] = []
        self.sink = self.texts
        self._has_content = False
        self._nested = 0

    def result(self) -> Message:
        return Message(
            self.role,
            "\n".join(self.texts),
            "\n".join(self.thoughts),
            tuple(self.calls),
            tuple(dict.fromkeys(self.unknown)),
            tuple(self.attached),
        )

    # ------------------------------------------------------------------------------------------------ the message

    def message(self, source: Mapping[Any, Any]) -> None:
        for key, value in source.items():
            if key == "content" and value is None:
                self._has_content = True
            elif key == "content":
                self._has_content = True
                if isinstance(value, bool | int | float):
                    raise self._wrong("content", value)
                self.content(value)
            elif value is not None and key in at.CONTENT and (key != "value" or "from" in source):
                self.content(value)
            elif key in ("additional_kwargs", "response_metadata") and isinstance(value, Mapping):
                silent = at.NO_TEXT if key == "additional_kwargs" else at.RESPONSE_METADATA
                for name, inner in value.items():
                    self.beside(name, inner, silent)
            else:
                self.beside(key, value, at.NO_TEXT)
        is_empty = not (self.texts or self.thoughts or self.calls or self.attached or self.unknown)
        if is_empty and not self._has_content and not any(key in source for key in at.CONTENT):
            raise MessageError(f"message {self.index}: no 'content'; the keys are {', '.join(map(str, source))}")

    def beside(self, key: Any, value: Any, silent: frozenset[str]) -> None:
        """What stands beside the content."""
        if value is None:
            if not is_name(str(key)):
                self.extra(key, value)
        elif key in at.REASONING:
            old, self.thoughts = self.thoughts, []
            self.reasoning(value)
            self.thoughts = old + [text for text in self.thoughts if text not in old]  # servers give it under two keys
        elif key in at.CALLS:
            listed = [value] if isinstance(value, Mapping) else as_sequence(value)
            if listed is None:
                raise self._wrong(str(key), value)
            for call in listed:
                self.call(call)
        elif key == "refusal" and isinstance(value, str):
            self.sink.extend([value] if value else ())
        elif key in ("audio", "images", "image", "video") and value:
            for item in as_sequence(value) or [value]:
                self.media(str(key), item)
        elif key in at.ASIDE:
            self.aside(value)
        elif key in at.RESULTS:
            with self.at(Stage.tool_output, str(key)):
                self.plain(value, str(key))
        elif key in silent:
            self.silent(value, str(key))
        else:
            self.extra(key, value)

    def extra(self, key: Any, value: Any) -> None:
        """A key of no known meaning: its texts are a part of their own, at the stage of the message."""
        old, self.sink = self.sink, []
        if not is_name(str(key)):
            self.sink.append(str(key))
        self.plain(value, str(key))
        if self.sink:
            self.attached.append(Part(self.stage, "\n".join(self.sink), str(key)))
        self.sink = old

    # ------------------------------------------------------------------------------------------------ its content

    def content(self, value: Any) -> None:
        """A text, a block, or a list of both."""
        if isinstance(value, str):
            self.sink.append(str(value))
        elif self._nested >= MAX_NESTED:
            self.plain(value, "content")
        else:
            self._nested += 1
            listed = as_sequence(value)
            if listed is not None and not hasattr(value, "_fields"):
                for item in listed:
                    self.content(item)
            elif isinstance(value, Mapping):
                self.block(value)
            else:
                self.plain(value, "content")
            self._nested -= 1

    def block(self, block: Mapping[Any, Any]) -> None:
        named = next((block[key] for key in ("type", "block_type", "kind", "part_kind") if key in block), None)
        kind = _enum_value(named)
        if isinstance(kind, str):
            if kind.startswith("tool-") and "toolCallId" in block and not at.is_result(kind):
                kind = "tool-call"
            if not self.known(kind, block):
                self.plain(block, kind)
            return
        bare = [key for key in at.BARE if block.get(key) is not None] if kind is None else []
        for key in bare:
            value = block[key]
            if key == "text" and block.get("thought") is True:  # Gemini's thinking
                self.reasoning(value)
            elif key in ("text", "citationsContent", "guardContent"):
                self.content(value) if isinstance(value, str) else self.inside(value)
            elif key == "document" and isinstance(value, Mapping):
                self.known("document", value)
            elif key != "cachePoint" and isinstance(value, Mapping):
                self.known(key, value)
            else:
                self.plain(value, key)
        if isinstance(block.get("blob"), str) and not bare:  # of MCP
            self.media("resource", block)
        elif bare:
            self.rest(block, bare)
        elif isinstance(block.get("value"), str):  # a text with its annotations: OpenAI's threads
            self.inside(block)
        else:
            self.plain(block, "content")

    def known(self, kind: str, block: Mapping[Any, Any]) -> bool:
        """Read a block of a known kind; whether it is one."""
        if kind in at.TEXT:
            given = [key for key in ("text", "refusal", "content") if block.get(key) is not None]
            for key in given:
                self.content(block[key])
            self.rest(block, given)
        elif kind in at.REASONING_BLOCKS:
            self.reasoning(block, kind)
        elif at.is_call(kind):
            self.call(block, kind)
        elif at.is_result(kind):
            with self.at(Stage.tool_output, kind):
                self.inside(block, at.BLOCK_NO_TEXT | at.NAMED)
        elif kind in at.DOCUMENT_BLOCKS:
            with self.at(Stage.document, kind):
                self.document(kind, block)
        elif kind in at.MEDIA_BLOCKS:
            self.media(kind, block)
        elif kind in at.WRAPPERS:
            self.inside(block)
        else:
            return False
        return True

    def document(self, kind: str, block: Mapping[Any, Any]) -> None:
        source = block.get("source")
        if block.get("format") in at.TEXT_FORMATS and isinstance(source, Mapping):  # Bedrock's
            source = {"media_type": "text/plain", **source}
        if isinstance(source, Mapping):
            if source.get("type") in ("text", "content") or "text" in source or "content" in source:
                self.inside(source)
            else:
                self.media(kind, source)
        elif (
            kind in ("document", "text-plain")
            and "text" not in block
            and any(k in block for k in ("data", "url", "base64", "file_id"))
        ):
            self.media(kind, block)
            return
        self.inside({k: v for k, v in block.items() if k != "source" or not isinstance(source, Mapping)})

    def inside(self, block: Any, silent: frozenset[str] = at.BLOCK_NO_TEXT) -> None:
        """All that a block of a known kind holds, at the present stage."""
        if not isinstance(block, Mapping):
            self.content(block)
            return
        for key, value in block.items():
            if key in at.ASIDE:
                self.aside(value)
            elif key in silent:
                self.silent(value, str(key))
            else:
                if not is_name(str(key)):
                    self.sink.append(str(key))
                if value is not None:
                    self.content(value)

    def rest(self, block: Mapping[Any, Any], read: list[str]) -> None:
        """What else stands in a block of which some keys are read."""
        self.inside({key: value for key, value in block.items() if key not in read})

    def aside(self, value: Any) -> None:
        """What is cited, at its own stage."""
        with self.at(Stage.document, "citation"):
            for item in as_sequence(value) or [value]:
                self.inside(item)

    # ----------------------------------------------------------------------------------- reasoning, calls, media

    def reasoning(self, value: Any, kind: str = "reasoning") -> None:
        if isinstance(value, str):
            self.thoughts.extend([value] if value else ())
        elif isinstance(value, Mapping):
            keys = ("thinking", "reasoning", "text", "summary", "content", "reasoningText")
            given = [value[key] for key in keys if key in value]
            if self._nested >= MAX_NESTED:
                given = [[found.text for found in texts_of(value, Stage.reasoning, names=True) if found.text]]
            self._nested += 1
            for inner in filter(None, given):
                self.reasoning(inner)
            self._nested -= 1
            old, self.sink = self.sink, self.thoughts
            self.rest(value, [*keys, "data", "redactedContent", "additional_information"])
            for found in texts_of(value.get("additional_information"), Stage.reasoning):
                if found.text and not is_name(found.text, 6):
                    self.sink.append(found.text)
            self.sink = old
            if not any(given) and "" not in given:
                self.unknown.append(str(value.get("type", kind)))
        else:
            listed = as_sequence(value)
            if listed is None:
                raise self._wrong("reasoning", value)
            for item in listed:
                self.reasoning(item)

    def call(self, call: Any, kind: str = "tool call") -> None:
        """A tool call as text: its name, its arguments (JSON strings without their escapes), and all else in it."""
        if not isinstance(call, Mapping):
            raise MessageError(f"message {self.index}: a tool call must be a mapping, not {type(call).__name__}")
        wrapped = next((k for k in ("function", "custom", "toolInvocation") if isinstance(call.get(k), Mapping)), None)
        inner = call[wrapped] if wrapped else call
        names = [str(inner[key]) for key in at.CALL_NAMES if inner.get(key)]
        given = [key for key in at.CALL_ARGUMENTS if inner.get(key)]
        old, self.sink = self.sink, [" ".join([*names, *(arguments_text(inner[key]) for key in given)]).strip()]
        if not given and not names and not wrapped and kind == "tool call":  # of no known shape: all of it is judged
            given = list(call)
            self.plain(call, kind)
        read = {*at.CALL_NAMES, *at.CALL_ARGUMENTS, *given, *at.CALL_RESULTS, "function", "custom", "toolInvocation"}
        for source in (inner, call) if wrapped else (inner,):
            self.rest(source, [*read])
        text = "\n".join(filter(None, self.sink))
        self.sink = old
        if text and text not in self.calls:  # providers repeat a call in several fields
            self.calls.append(text)
        if kind == "image_generation_call":
            self.media(kind, {"data": inner.get("result")})
            return
        with self.at(Stage.tool_output, kind):
            for key in at.CALL_RESULTS & inner.keys():
                if inner[key] is not None and key not in given:
                    self.content(inner[key])

    def media(self, kind: str, block: Any) -> None:
        """What cannot be judged, and the texts beside it. A file whose type is text is read as a document."""
        text = file_text(block)
        if text is None or text.is_picture:
            self.unknown.append(kind)
        if text is not None and text.content:
            with self.at(Stage.document, kind):
                self.sink.append(text.content)
        for found in texts_of(block, self.stage):
            is_caption = bool(found.path) and found.path[-1] in at.CAPTIONS
            if found.text and (is_caption or (not is_name(found.text) and any(c.isspace() for c in found.text))):
                self.sink.append(found.text)

    # --------------------------------------------------------------------------------------------------- the rest

    def plain(self, value: Any, what: str) -> None:
        """A value of no known shape: every text in it, keys included."""
        for found in texts_of(value, self.stage, names=True):
            if found.text is None:
                self.unknown.append(f"{what}: {found.what}")
            else:
                self.sink.append(found.text)

    def silent(self, value: Any, what: str) -> None:
        """A position without text: passed over, but for what does not look the part."""
        for found in texts_of(value, self.stage):
            if found.text is None:
                continue
            if not is_name(found.text.strip(), 6 if any(c.isdigit() for c in found.text) else 3):
                if self.sink is self.texts:
                    self.attached.append(Part(self.stage, found.text, what))
                else:
                    self.sink.append(found.text)

    @contextmanager
    def at(self, stage: Stage, what: str) -> Iterator[None]:
        """Inside, texts belong to `stage`: a part of its own, unless that is the stage already."""
        if stage is self.stage:
            yield
            return
        before, self.sink, self.stage = (self.sink, self.stage), [], stage
        try:
            yield
        finally:
            if self.sink:
                self.attached.append(Part(stage, "\n".join(self.sink), what))
            self.sink, self.stage = before

    def _wrong(self, what: str, value: object) -> MessageError:
        kind = type(value).__name__
        return MessageError(f"message {self.index}: '{what}' must be a string or a list of blocks, not {kind}")


def _enum_value(value: Any) -> Any:
    return getattr(value, "value", value) if not isinstance(value, Mapping) else value
