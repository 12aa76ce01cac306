"""OpenAI's chat completions, and the older completions, whose answers are shaped alike."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from guardkit import Message, MessageError, Stage
from guardkit.messages import Part
from guardkit.reading.message import read_message
from guardkit.reading.positions import REASONING
from guardkit.reading.values import is_name, texts_of
from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import (
    Answer,
    Asked,
    Piece,
    Protocol,
    Reading,
    Violation,
    asked_messages,
    asked_rest,
    asked_tools,
    parts_of,
)
from guardkit_serve.sse import DONE, Frame, frame

_READ = frozenset(("choices",))
_OF_CHOICE = frozenset(("index", "delta", "message", "text", "logprobs", "finish_reason"))
_SCHEMAS = ("tools", "functions", "response_format")
_KEPT = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
"""What of an event stands in those that are made after it."""


class _Choices(Protocol):
    """What both share: choices, each ending by its `finish_reason`; ``[DONE]`` ends the stream."""

    chunk: ClassVar[str]
    whole: ClassVar[str]

    def __init__(self, body: Mapping[str, Any], message: str):
        super().__init__(body, message)
        self._about: dict[str, Any] = {}
        self._open: dict[int, bool] = {}  # choice -> whether it has not ended, of what has gone out
        self._done = self._failed = False

    # -- whole answers

    def answers(self, data: Mapping[str, Any]) -> tuple[list[Answer], list[Part]]:
        choices = data.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
            raise MessageError("no 'choices' in the answer")
        found = [Answer(("choices", i), self._answer(choice, i)) for i, choice in enumerate(choices)]
        rest = parts_of(self.seen, data, _READ)
        for choice in choices:
            rest += parts_of(self.seen, choice, _OF_CHOICE)
        return found, rest

    def _answer(self, choice: Mapping[str, Any], index: int) -> Message:
        raise NotImplementedError

    def ended_whole(self, data: Mapping[str, Any], found: Mapping[int, Violation], replace: bool) -> dict[str, Any]:
        choices = []
        for i, choice in enumerate(data["choices"]):
            violation = found.get(i)
            choices.append(choice if violation is None else self._ended_choice(choice.get("index", i), replace))
        told = max(found.values(), key=lambda v: v.decision.action).told()
        return {**{k: v for k, v in data.items() if k in (*_KEPT, "usage")}, "choices": choices, "guardkit": told}

    def refused(self, violation: Violation, replace: bool) -> dict[str, Any]:
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        n = self.body.get("n")
        count = n if isinstance(n, int) and 0 < n <= 128 else 1
        choices = [self._ended_choice(i, replace) for i in range(count)]
        return {**self._base(), "object": self.whole, "choices": choices, "usage": usage, "guardkit": violation.told()}

    def _ended_choice(self, index: int, replace: bool) -> dict[str, Any]:
        """A whole choice in place of one that was stopped."""
        raise NotImplementedError

    # -- streams

    def parses(self, frame: Frame) -> bool:
        return frame.data is not None and frame.data.strip() != DONE

    def read(self, frame: Frame, data: Any) -> Reading:
        reading = Reading()
        if frame.data is None:
            return reading
        if data is None:
            reading.last = True
            reading.ends.append(())
            return reading
        if not isinstance(data, Mapping):
            raise HttpError(502, "the upstream sent an event that is no JSON object", "upstream_error")
        choices = data.get("choices")
        if choices is not None and not isinstance(choices, list):
            raise HttpError(502, "the upstream sent an event whose 'choices' is no list", "upstream_error")
        for at, choice in enumerate(choices or ()):
            if not isinstance(choice, Mapping):
                raise HttpError(502, "the upstream sent a choice that is no JSON object", "upstream_error")
            index = choice.get("index", 0)
            if not isinstance(index, int):
                raise HttpError(502, "the upstream sent a choice without an index", "upstream_error")
            before = len(reading.pieces)
            self._pieces(reading, choice, at, index)
            self._logprobs(reading, choice.get("logprobs"), index, before)
            for key, value in choice.items():
                if key not in _OF_CHOICE:
                    reading.wholes += _wholes(self, key, value)
            if choice.get("finish_reason") is not None:
                reading.wholes += _wholes(self, "finish_reason", choice["finish_reason"])
                reading.ends.append((index,))
        for key, value in data.items():
            if key != "choices":
                reading.wholes += _wholes(self, key, value)
        return reading

    def _pieces(self, reading: Reading, choice: Mapping[str, Any], at: int, index: int) -> None:
        raise NotImplementedError

    def _logprobs(self, reading: Reading, logprobs: Any, index: int, before: int) -> None:
        """Their tokens repeat the text of the event that they come with; what they say beyond that is judged too."""
        if not logprobs:
            return
        told = {piece.text for piece in reading.pieces[before:]}
        for text in self._tokens(logprobs):
            if text and text not in told:
                reading.pieces.append(Piece((index, "logprobs"), Stage.response, text))

    def _tokens(self, logprobs: Any) -> list[str]:
        raise NotImplementedError

    def sent(self, frame: Frame, data: Any) -> None:
        if data is None:
            self._done = self._done or (frame.data is not None and frame.data.strip() == DONE)
            return
        self._failed = self._failed or bool(data.get("error"))
        self._about |= {key: data[key] for key in _KEPT if key in data}
        for choice in data.get("choices") or ():
            index = choice.get("index", 0)
            self._open[index] = choice.get("finish_reason") is None and self._open.get(index, True)

    def cut(self, frame: Frame, data: Any, piece: Piece, text: str) -> bytes:
        self._about |= {key: data[key] for key in _KEPT if key in data}
        index = piece.key[0]
        assert isinstance(index, int)
        event = self._chunk(self._delta(index, piece, text))
        self._open[index] = True
        return event

    def _delta(self, index: int, piece: Piece | None, text: str) -> dict[str, Any]:
        """A choice of an event, with `text` where `piece` had it."""
        raise NotImplementedError

    def _chunk(self, *choices: dict[str, Any], **more: Any) -> bytes:
        return frame({**self._base(), "object": self.chunk, **self._about, "choices": list(choices), **more})

    def _base(self) -> dict[str, Any]:
        if not self._about:
            model = self.body.get("model")
            self._about = {
                "id": f"{'chatcmpl' if self.chunk.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}",
                "created": int(time.time()),
                "model": model if isinstance(model, str) else "",
            }
        return self._about

    def ended(self, violation: Violation, replace: bool) -> bytes:
        n = self.body.get("n")
        count = n if isinstance(n, int) and 0 < n <= 128 else 1
        # What was not begun has to begin, or clients that wait for all choices would wait on.
        indexes = sorted({*self._open, *range(count)} - {i for i, is_open in self._open.items() if not is_open})
        out = []
        for index in indexes:
            if replace:
                text = ("\n\n" if self.shown and index in self._open else "") + self.message
                out.append(self._chunk(self._delta(index, None, text)))
                self._open[index] = True
            end = {**self._delta(index, None, ""), "finish_reason": "stop" if replace else "content_filter"}
            out.append(self._chunk(end, guardkit=violation.told()))
            self._open[index] = False
        self._done = True
        return b"".join(out) + frame(DONE)

    def failed(self, error: HttpError) -> bytes:
        self._done = True
        return frame(error.openai()) + frame(DONE)

    @property
    def is_complete(self) -> bool:
        return self._done or self._failed or (bool(self._open) and not any(self._open.values()))

    def closing(self) -> bytes:
        return b"" if self._done else frame(DONE)


class Chat(_Choices):
    path = "/v1/chat/completions"
    chunk, whole = "chat.completion.chunk", "chat.completion"

    def asked(self) -> list[Asked]:
        asked, self.context = asked_messages(self.body.get("messages"), "messages", [])
        for key in _SCHEMAS:
            asked += asked_tools(self.body.get(key), key)
        return asked + asked_rest(self.body, frozenset(("messages", *_SCHEMAS)), self.seen)

    def _answer(self, choice: Mapping[str, Any], index: int) -> Message:
        message = choice.get("message", choice.get("delta"))
        if not isinstance(message, Mapping):
            raise MessageError(f"choice {index} has no 'message'")
        if isinstance(choice.get("text"), str):
            message = {**message, "choice_text": choice["text"]}
        if set(message) <= {"role"}:
            message = {**message, "content": None}
        return read_message({**message, "role": "assistant"}, index)

    def _ended_choice(self, index: int, replace: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.message if replace else "", "refusal": None}
        reason = "stop" if replace else "content_filter"
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def _pieces(self, reading: Reading, choice: Mapping[str, Any], at: int, index: int) -> None:
        for name in ("text", "message"):
            if choice.get(name):
                for found in texts_of(choice[name], Stage.response, path=(name,)):
                    _unknown(reading, index, found.path, found.text, found.what)
        delta = choice.get("delta")
        if delta is None:
            return
        if not isinstance(delta, Mapping):
            raise HttpError(502, "the upstream sent a 'delta' that is no JSON object", "upstream_error")
        for key, value in delta.items():
            if not is_name(key):
                reading.wholes += _wholes(self, key, None)
            if value is None or value == "":
                continue
            if key in ("audio", "images", "image", "video"):
                reading.wholes.append(Part(Stage.response, None, key))
            elif key in REASONING and isinstance(value, str):
                path = ("choices", at, "delta", key)
                if any(p.key == (index, "reasoning") and p.text == value for p in reading.pieces):
                    continue  # servers give it under two keys
                reading.pieces.append(Piece((index, "reasoning"), Stage.reasoning, value, path))
            elif key in ("content", "refusal") and isinstance(value, str):
                reading.pieces.append(Piece((index, key), Stage.response, value, ("choices", at, "delta", key)))
            elif key in ("tool_calls", "function_call"):
                for call in value if isinstance(value, list) else [value]:
                    self._call(reading, index, key, call)
            elif key in REASONING:
                for found in texts_of(value, Stage.reasoning, path=("delta", key)):
                    if found.path[-1] in ("type", "id", "format", "signature", "data", "index"):
                        reading.wholes += _wholes(self, str(found.path[-1]), found.text)
                    else:
                        _unknown(reading, index, found.path, found.text, found.what, Stage.reasoning)
            elif isinstance(value, str) and key in ("role", "id", "type", "name"):
                reading.wholes += _wholes(self, key, value)
            else:
                for found in texts_of(value, Stage.response, path=("delta", key)):
                    _unknown(reading, index, found.path, found.text, found.what)

    def _call(self, reading: Reading, index: int, key: str, call: Any) -> None:
        if not isinstance(call, Mapping):
            raise HttpError(502, "the upstream sent a tool call that is no JSON object", "upstream_error")
        which = (index, "call", call.get("index", 0) if key == "tool_calls" else key)
        inner: Any = call
        for name in ("function", "custom"):
            if isinstance(call.get(name), Mapping):
                inner = call[name]
        if isinstance(inner.get("name"), str) and inner["name"]:
            reading.pieces.append(Piece(which, Stage.tool_call, f"{inner['name']} ", arguments=True))
        for name in ("arguments", "input"):
            if isinstance(inner.get(name), str) and inner[name]:
                reading.pieces.append(Piece(which, Stage.tool_call, inner[name], arguments=True))
            elif inner.get(name):
                reading.wholes += _wholes(self, name, inner[name], Stage.tool_call)
        known = {"name", "arguments", "input", "index"}
        for source in (inner, call) if inner is not call else (call,):
            for name, value in source.items():
                if name not in known and value is not inner:
                    reading.wholes += _wholes(self, name, value, Stage.tool_call)

    def _tokens(self, logprobs: Any) -> list[str]:
        if not isinstance(logprobs, Mapping):
            return [found.text or "" for found in texts_of(logprobs, Stage.response)]
        texts = []
        for value in logprobs.values():
            tokens = [t.get("token") for t in value if isinstance(t, Mapping)] if isinstance(value, list) else []
            texts.append("".join(t for t in tokens if isinstance(t, str)))
        return texts

    def _delta(self, index: int, piece: Piece | None, text: str) -> dict[str, Any]:
        delta: dict[str, Any] = {} if index in self._open else {"role": "assistant"}
        if piece is not None and piece.path is not None:
            delta[piece.path[-1]] = text
        elif text:
            delta["content"] = text
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


class Completions(_Choices):
    path = "/v1/completions"
    chunk = whole = "text_completion"

    def asked(self) -> list[Asked]:
        prompt = self.body.get("prompt", "")
        listed = prompt if isinstance(prompt, list) and all(isinstance(p, str) for p in prompt) else [prompt]
        asked = []
        for i, text in enumerate(listed):
            path = ("prompt", i) if listed is prompt else ("prompt",)
            if isinstance(text, str):
                self.context.append(Message("user", text))
                asked.append(Asked(path, [self.context[-1]]))
            elif text is not None:
                asked.append(Asked(path, [Message("user", unjudgeable=("token ids",))]))
        suffix = self.body.get("suffix")
        if isinstance(suffix, str) and suffix:
            asked.append(Asked(("suffix",), [Message("user", suffix)]))
        return asked + asked_rest(self.body, frozenset(("prompt", "suffix")), self.seen)

    def _answer(self, choice: Mapping[str, Any], index: int) -> Message:
        text = choice.get("text")
        if not isinstance(text, str):
            raise MessageError(f"choice {index} has no 'text'")
        if choice.get("message") is not None:
            raise MessageError(f"choice {index} has a 'text' and a 'message'")
        return Message("assistant", text)

    def _ended_choice(self, index: int, replace: bool) -> dict[str, Any]:
        text, reason = (self.message, "stop") if replace else ("", "content_filter")
        return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}

    def _pieces(self, reading: Reading, choice: Mapping[str, Any], at: int, index: int) -> None:
        for name in ("delta", "message"):
            if choice.get(name):
                for found in texts_of(choice[name], Stage.response, path=(name,)):
                    _unknown(reading, index, found.path, found.text, found.what)
        text = choice.get("text")
        if isinstance(text, str):
            if text:
                reading.pieces.append(Piece((index, "text"), Stage.response, text, ("choices", at, "text")))
        elif text is not None:
            raise HttpError(502, "the upstream sent a 'text' that is no string", "upstream_error")

    def _tokens(self, logprobs: Any) -> list[str]:
        tokens = logprobs.get("tokens") if isinstance(logprobs, Mapping) else None
        return ["".join(t for t in tokens if isinstance(t, str))] if isinstance(tokens, list) else []

    def _delta(self, index: int, piece: Piece | None, text: str) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": None, "finish_reason": None}


def _unknown(
    reading: Reading, index: int, path: Any, text: str | None, what: str, stage: Stage = Stage.response
) -> None:
    """A text at a place of no known meaning: it may go on in later events, so it is judged as one that grows."""
    if text is None:
        reading.wholes.append(Part(stage, None, what))
    else:
        reading.pieces.append(Piece((index, *path), stage, text))


def _wholes(protocol: Protocol, key: str, value: Any, stage: Stage = Stage.response) -> list[Part]:
    return [Part(stage, found.text, found.what) for found in protocol.seen.new(key, value, stage)]
