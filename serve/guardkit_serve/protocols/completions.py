"""OpenAI's older completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardkit import Message, MessageError, Stage
from guardkit.reading.values import texts_of
from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import Asked, Piece, Reading, asked_rest
from guardkit_serve.protocols.choices import Choices, unknown


class Completions(Choices):
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
                    unknown(reading, index, found.path, found.text, found.what)
        text = choice.get("text")
        if isinstance(text, str):
            if text:
                reading.pieces.append(Piece((index, "text"), Stage.response, text, ("choices", at, "text")))
        elif text is not None:
            raise HttpError(502, "the upstream sent a 'text' that is no string", "upstream_error")

    def _delta(self, index: int, piece: Piece | None, text: str) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": None, "finish_reason": None}
