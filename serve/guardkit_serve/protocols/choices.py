"""What OpenAI's chat completions and completions share: choices, each ending by its `finish_reason`; ``[DONE]``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from guardkit import Message, MessageError, Stage
from guardkit.messages import Part
from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import Answer, Piece, Protocol, Reading, Violation, parts_of
from guardkit_serve.protocols.logprobs import read_logprobs
from guardkit_serve.sse import DONE, Frame, frame
from guardkit_serve.walking import part_of

_READ = frozenset(("choices",))
_OF_CHOICE = frozenset(("index", "delta", "message", "text", "logprobs", "finish_reason"))
_KEPT = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
"""What of an event stands in those that are made after it."""


class Choices(Protocol):
    """chunk, whole: the `object` of an event and of a whole answer."""

    chunk: ClassVar[str]
    whole: ClassVar[str]

    def __init__(self, body: Mapping[str, Any], message: str):
        super().__init__(body, message)
        self._about: dict[str, Any] = {}
        self._newest: Callable[[], Mapping[str, Any]] = dict  # makes what the newest event says that has gone out
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
            said = [
                choice.get("text"),
                *(choice["message"].values() if isinstance(choice.get("message"), Mapping) else ()),
            ]
            joined, beside = read_logprobs(choice.get("logprobs"))
            rest += [Part(Stage.response, text, "logprobs") for text in joined if text not in said]
            rest += beside
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
                    reading.wholes += wholes(self, key, value)
            if choice.get("finish_reason") is not None:
                reading.wholes += wholes(self, "finish_reason", choice["finish_reason"])
                reading.ends.append((index,))
        for key, value in data.items():
            if key != "choices" and not self.seen.knows(key, value):
                reading.wholes += wholes(self, key, value)
        return reading

    def _pieces(self, reading: Reading, choice: Mapping[str, Any], at: int, index: int) -> None:
        raise NotImplementedError

    def _logprobs(self, reading: Reading, logprobs: Any, index: int, before: int) -> None:
        """Their tokens repeat the text of the event that they come with; what they say beyond that is judged too."""
        if not logprobs:
            return
        joined, beside = read_logprobs(logprobs)
        told = {piece.text for piece in reading.pieces[before:]}
        for text in joined:
            if text not in told:
                reading.pieces.append(Piece((index, "logprobs"), Stage.response, text))
        reading.wholes += beside

    def sent(self, frame: Frame, data: Any) -> None:
        if data is None:
            self._done = self._done or (frame.data is not None and frame.data.strip() == DONE)
            return
        self._failed = self._failed or bool(data.get("error"))
        self._newest = lambda: data
        for choice in data.get("choices") or ():
            index = choice.get("index", 0)
            self._open[index] = choice.get("finish_reason") is None and self._open.get(index, True)

    def sent_again(self, data: Callable[[], Any]) -> None:
        self._newest = data

    def cut(self, frame: Frame, data: Any, piece: Piece, text: str) -> bytes:
        self._newest = lambda: data
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
        newest = self._newest()
        self._about |= {key: newest[key] for key in _KEPT if key in newest}
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


def unknown(
    reading: Reading, index: int, path: Any, text: str | None, what: str, stage: Stage = Stage.response
) -> None:
    """A text at a place of no known meaning: it may go on in later events, so it is judged as one that grows."""
    if text is None:
        reading.wholes.append(Part(stage, None, what))
    else:
        reading.pieces.append(Piece((index, *path), stage, text))


def wholes(protocol: Protocol, key: str, value: Any, stage: Stage = Stage.response) -> list[Part]:
    return [part_of(found) for found in protocol.seen.new(key, value, stage)]
