"""OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardkit import Message, MessageError, Stage
from guardkit.messages import Part
from guardkit.reading.message import read_message
from guardkit.reading.positions import REASONING
from guardkit.reading.values import is_name, texts_of
from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import Asked, Piece, Reading, asked_messages, asked_rest, asked_tools
from guardkit_serve.protocols.choices import Choices, unknown, wholes
from guardkit_serve.sse import DONE, frame

_SCHEMAS = ("tools", "functions", "response_format")
_DELTA = frozenset(("role", "content", "refusal", "tool_calls", "function_call", *REASONING))


class Chat(Choices):
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

    # -- an answer that is written here

    def said(self, text: str) -> bytes:
        """More of it."""
        event = self._chunk(self._delta(0, None, text))
        self._open[0], self.shown = True, True
        return event

    def finished(self, reason: str, usage: Mapping[str, int] | None, about: Mapping[str, Any]) -> bytes:
        """Its end. about: for the field `guardkit`."""
        out = self._chunk({**self._delta(0, None, ""), "finish_reason": reason}, guardkit=about)
        if usage is not None:
            out += self._chunk(usage=usage)
        self._open[0], self._done = False, True
        return out + frame(DONE)

    def written(
        self, text: str, reason: str, usage: Mapping[str, int] | None, about: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The same, whole."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        told = {} if usage is None else {"usage": usage}
        return {**self._base(), "object": self.whole, "choices": [choice], **told, "guardkit": about}

    # -- streams

    def _pieces(self, reading: Reading, choice: Mapping[str, Any], at: int, index: int) -> None:
        for name in ("text", "message"):
            if choice.get(name):
                for found in texts_of(choice[name], Stage.response, path=(name,)):
                    unknown(reading, index, found.path, found.text, found.what)
        delta = choice.get("delta")
        if delta is None:
            return
        if not isinstance(delta, Mapping):
            raise HttpError(502, "the upstream sent a 'delta' that is no JSON object", "upstream_error")
        for key, value in delta.items():
            if key not in _DELTA and not is_name(key):
                reading.wholes += wholes(self, key, None)
            if value is None or value == "":
                continue
            if key in ("content", "refusal") and isinstance(value, str):
                reading.pieces.append(Piece((index, key), Stage.response, value, ("choices", at, "delta", key)))
            elif key in ("audio", "images", "image", "video"):
                self._media(reading, index, key, value)
            elif key in REASONING and isinstance(value, str):
                path = ("choices", at, "delta", key)
                if any(p.key == (index, "reasoning") and p.text == value for p in reading.pieces):
                    continue  # servers give it under two keys
                reading.pieces.append(Piece((index, "reasoning"), Stage.reasoning, value, path))
            elif key in ("tool_calls", "function_call"):
                for call in value if isinstance(value, list) else [value]:
                    self._call(reading, index, key, call)
            elif key in REASONING:
                for found in texts_of(value, Stage.reasoning, path=("delta", key)):
                    if found.path[-1] in ("type", "id", "format", "signature", "data", "index"):
                        reading.wholes += wholes(self, str(found.path[-1]), found.text)
                    else:
                        unknown(reading, index, found.path, found.text, found.what, Stage.reasoning)
            elif isinstance(value, str) and key in ("role", "id", "type", "name"):
                reading.wholes += wholes(self, key, value)
            else:
                for found in texts_of(value, Stage.response, path=("delta", key)):
                    unknown(reading, index, found.path, found.text, found.what)

    def _media(self, reading: Reading, index: int, key: str, value: Any) -> None:
        """What is no text cannot be judged; what is said about it, as a transcript, can."""
        data = value if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping) or not set(value) <= {"id", "transcript", "expires_at"}:
            reading.wholes.append(Part(Stage.response, None, key))
        for name, said in data.items():
            if name == "transcript" and isinstance(said, str):
                reading.pieces += [Piece((index, "transcript"), Stage.response, said)] if said else []
            elif name != "data":
                reading.wholes += wholes(self, name, said)

    def _call(self, reading: Reading, index: int, key: str, call: Any) -> None:
        if not isinstance(call, Mapping):
            raise HttpError(502, "the upstream sent a tool call that is no JSON object", "upstream_error")
        which = (index, "call", call.get("index", 0) if key == "tool_calls" else key)
        inner: Any = call
        for name in ("function", "custom"):
            if isinstance(call.get(name), Mapping):
                inner = call[name]
        if isinstance(inner.get("name"), str) and inner["name"]:
            reading.pieces.append(Piece(which, Stage.tool_call, f"{inner['name']} ", arguments=True, added=1))
        for name in ("arguments", "input"):
            if isinstance(inner.get(name), str) and inner[name]:
                reading.pieces.append(Piece(which, Stage.tool_call, inner[name], arguments=True))
            elif inner.get(name):
                reading.wholes += wholes(self, name, inner[name], Stage.tool_call)
        known = {"name", "arguments", "input", "index"}
        for source in (inner, call) if inner is not call else (call,):
            for name, value in source.items():
                if name not in known and value is not inner:
                    reading.wholes += wholes(self, name, value, Stage.tool_call)

    def _delta(self, index: int, piece: Piece | None, text: str) -> dict[str, Any]:
        delta: dict[str, Any] = {} if index in self._open else {"role": "assistant"}
        if piece is not None and piece.path is not None:
            delta[piece.path[-1]] = text
        elif text:
            delta["content"] = text
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
