"""OpenAI's Responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardkit import Message, MessageError, Stage
from guardkit.messages import Part
from guardkit.reading.drafts import one_turn
from guardkit.reading.message import read_message
from guardkit.reading.positions import CALL_BLOCKS, RESULT_BLOCKS
from guardkit.reading.values import texts_of
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
    asked_system,
    asked_tools,
    parts_of,
)
from guardkit_serve.protocols.logprobs import logprobs_in
from guardkit_serve.protocols.responses_ending import Shown
from guardkit_serve.sse import DONE, Frame
from guardkit_serve.walking import without_opaque

_TEXTS = {  # event, without its ".delta" or ".done" -> stage, kind, whether it is JSON
    "response.output_text": (Stage.response, "text", False),
    "response.refusal": (Stage.response, "refusal", False),
    "response.reasoning_text": (Stage.reasoning, "reasoning", False),
    "response.reasoning_summary_text": (Stage.reasoning, "summary", False),
    "response.function_call_arguments": (Stage.tool_call, "call", True),
    "response.mcp_call_arguments": (Stage.tool_call, "call", True),
    "response.custom_tool_call_input": (Stage.tool_call, "call", False),
    "response.code_interpreter_call_code": (Stage.tool_call, "call", False),
    "response.audio.transcript": (Stage.response, "transcript", False),
}
_LAST = ("response.completed", "response.incomplete", "response.failed")
_MEDIA = frozenset(("response.audio.delta", "response.image_generation_call.partial_image"))
_READ = frozenset(("input", "instructions", "tools", "text"))


class Responses(Protocol):
    path = "/v1/responses"

    def __init__(self, body: Mapping[str, Any], message: str):
        super().__init__(body, message)
        self._shown = Shown(body, message)

    def asked(self) -> list[Asked]:
        if self.body.get("background") is True and self.body.get("stream") is not True:
            said = "a background response could not be fetched here: ask for it without 'background', or streamed"
            raise HttpError(400, said, "background_not_supported", param="background")
        asked, system = asked_system(self.body.get("instructions"), "instructions")
        given = self.body.get("input")
        if given is None or isinstance(given, str):
            told = [Message("user", given)] if given else []
            self.context = [*system, *told]
            asked += [Asked(("input",), [*self.context])] if told else []
        else:
            more, self.context = asked_messages(given, "input", system)
            asked += more
        for key in ("tools", "text"):
            asked += asked_tools(self.body.get(key), key)
        return asked + asked_rest(self.body, _READ, self.seen)

    # -- whole answers

    def answers(self, data: Mapping[str, Any]) -> tuple[list[Answer], list[Part]]:
        output = data.get("output")
        if not isinstance(output, list):
            raise MessageError("no 'output' in the answer")
        read = [read_message(without_opaque(item), i, "assistant") for i, item in enumerate(output)]
        rest = parts_of(self.seen, data, frozenset(("output",)))
        for texts, beside in logprobs_in(data):
            rest += [*(Part(Stage.response, text, "logprobs") for text in texts), *beside]
        return ([Answer(("output",), one_turn(read)[0])] if read else []), rest

    def ended_whole(self, data: Mapping[str, Any], found: Mapping[int, Violation], replace: bool) -> dict[str, Any]:
        return self._shown.whole(data, found[0], replace)

    def refused(self, violation: Violation, replace: bool) -> dict[str, Any]:
        return self._shown.whole({}, violation, replace)

    # -- streams

    def parses(self, frame: Frame) -> bool:
        return frame.data is not None and frame.data.strip() != DONE

    def read(self, frame: Frame, data: Any) -> Reading:
        reading = Reading()
        if data is None:
            return reading
        if not isinstance(data, Mapping) or not isinstance(data.get("type"), str):
            raise HttpError(502, "the upstream sent an event without a type", "upstream_error")
        kind = data["type"]
        rest = {"type"}
        if kind in _MEDIA:
            reading.wholes.append(Part(Stage.response, None, kind))
        elif kind.endswith(".delta"):
            rest.add("delta")
            self._delta(reading, kind.removesuffix(".delta"), data)
        elif kind.endswith(".done"):
            self._done(reading, kind.removesuffix(".done"), data)
        elif kind in _LAST:
            reading.ends.append(())
            reading.last = True
        stage = Stage.response
        item = data.get("item")
        for one in (item, *_output(data)):
            if isinstance(one, Mapping):
                reading.wholes += self._unjudgeable(one)
        if isinstance(item, Mapping):
            rest.add("item")
            named = item.get("type")
            stage = Stage.tool_call if named in CALL_BLOCKS else Stage.response
            stage = Stage.tool_output if named in RESULT_BLOCKS else stage
            reading.wholes += parts_of(self.seen, item, frozenset(("type",)), stage)
        if data.get("logprobs") or isinstance(item, Mapping) or "part" in data or "response" in data:
            self._logprobs(reading, data)
        if reading.ends:
            # What these events repeat is known once the texts that they end are judged.
            reading.late = lambda: parts_of(self.seen, data, frozenset(rest))
        else:
            reading.wholes += parts_of(self.seen, data, frozenset(rest))
        return reading

    def _delta(self, reading: Reading, kind: str, data: Mapping[str, Any]) -> None:
        delta, at = data.get("delta"), data.get("output_index", data.get("item_id"))
        if kind in _TEXTS and isinstance(delta, str):
            stage, name, is_json = _TEXTS[kind]
            if delta:
                key = (at, name, _index(data))
                reading.pieces.append(Piece(key, stage, delta, ("delta",), is_json))
            return
        for found in texts_of(delta, Stage.response, path=("delta",)):
            if found.text is None:
                reading.wholes.append(Part(Stage.response, None, found.what))
            else:
                reading.pieces.append(Piece((at, kind, *found.path), Stage.response, found.text))

    def _logprobs(self, reading: Reading, data: Mapping[str, Any]) -> None:
        """They repeat the text that they stand beside, token by token; what they say beyond that is judged too."""
        for texts, beside in logprobs_in(data):
            reading.wholes += beside
            for text in texts:
                reading.pieces.append(Piece((data.get("output_index"), "logprobs"), Stage.response, text))

    def _done(self, reading: Reading, kind: str, data: Mapping[str, Any]) -> None:
        at = data.get("output_index", data.get("item_id"))
        if kind in _TEXTS:
            reading.ends.append((at, _TEXTS[kind][1], _index(data)))
        elif kind == "response.content_part":
            reading.ends += [(at, name, _index(data)) for name in ("text", "refusal", "reasoning")]
        elif kind == "response.reasoning_summary_part":
            reading.ends.append((at, "summary", _index(data)))
        elif kind == "response.output_item":
            reading.ends.append((at,))

    def _unjudgeable(self, item: Mapping[str, Any]) -> list[Part]:
        try:
            message = read_message(without_opaque(item), 0, "assistant")
        except (MessageError, RecursionError):
            return []  # of no known type: its strings are judged as they stand
        return [Part(Stage.response, None, kind) for kind in message.unjudgeable]

    def sent(self, frame: Frame, data: Any) -> None:
        if data is not None:
            self._shown.add(data)

    def cut(self, frame: Frame, data: Any, piece: Piece, text: str) -> bytes:
        return b"" if piece.stage is Stage.tool_call else self._shown.cut(data, text)

    def ended(self, violation: Violation, replace: bool) -> bytes:
        return self._shown.ended(violation, replace)

    def failed(self, error: HttpError) -> bytes:
        return self._shown.failed(error)

    @property
    def is_complete(self) -> bool:
        return self._shown.done


def _index(data: Mapping[str, Any]) -> Any:
    return data.get("content_index", data.get("summary_index"))


def _output(data: Mapping[str, Any]) -> list[Any]:
    response = data.get("response")
    output = response.get("output") if isinstance(response, Mapping) else None
    return output if isinstance(output, list) else []
