"""Message chunks in, judged message chunks out: each whole, in order, and none before its text was judged.

A message has several texts that grow side by side: the answer, the reasoning, the arguments of each tool call. Each is
a stream of the core's. A chunk waits in one queue until all its texts are released, so order and metadata stay; a
plain text chunk is cut where the guard's release ends. When another text takes over, the one before it has ended for
now: its tail is judged as it stands and released.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from typing import Any, cast

from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from guardkit import Decision, Message, Stage
from guardkit.reading.payloads import arguments_text
from guardkit.reading.positions import CALL_ARGUMENTS, CALL_BLOCKS, REASONING, REASONING_BLOCKS
from langchain_guardkit.adding_up import Sum
from langchain_guardkit.enforcing import (
    Conversation,
    Enforcement,
    Judged,
    digest,
    worst,
)
from langchain_guardkit.growing import Ask, QueryFlow, Steps, TextFlow, adrive, drive
from langchain_guardkit.marks import METADATA_KEY, foreign
from langchain_guardkit.reading import beside, is_empty, is_id, joined_texts
from langchain_guardkit.results import chunk_of

OUTPUT_STAGES = frozenset((Stage.response, Stage.reasoning, Stage.tool_call))
_FRAME = frozenset(("type", "index", "id", "signature", "encrypted_content"))
_FRAME_IDS = ("index", "id", "call_id", "tool_call_id", "signature", "encrypted_content")
_TEXT_FRAME = frozenset(("type", "text", "index"))
_CALL_FRAME = frozenset(("type", "index", "name", "id", "call_id", "tool_call_id", *CALL_ARGUMENTS))
_TEXT = ("text", None)
_BESIDE = (
    "additional_kwargs", "response_metadata", "tool_call_chunks", "invalid_tool_calls", "usage_metadata", "name",
)  # fmt: skip
ASIDE = "metadata "  # of the pieces that stand beside a text and do not end it
Out = tuple[AIMessageChunk, dict[str, Any] | None, Any]  # message, generation info, what it came wrapped in
Piece = tuple[tuple[str, Any], Stage, str | None]  # which of the message's texts, its stage, the text (None: no text)


class _Entry:
    """A chunk in the queue, and the marks that its texts must reach before it may go."""

    __slots__ = ("divisible", "info", "judged", "marks", "message", "wrapper")

    def __init__(self, message: AIMessageChunk, info: dict[str, Any] | None, wrapper: Any):
        self.message, self.info, self.wrapper = message, info, wrapper
        self.marks: list[tuple[TextFlow, int]] = []
        self.divisible = False
        self.judged = False  # whether all its texts were handed to the guard


class ChunkFlow:
    """Judges one streamed message. `push` and `finish` return what may go out, as (message, generation info, wrapper):
    the wrapper that the chunk was pushed with, or None where only a part of it goes.

    stages: which parts are judged; the others pass. `decision` is set once a violation has ended the message; then
    `ending` gives the last chunk, or raises. judged: is told what passed. index: the message's place in its list.
    """

    def __init__(
        self,
        enforcement: Enforcement,
        conversation: Conversation | None = None,
        stages: frozenset[Stage] = OUTPUT_STAGES,
        holdback: int | None = None,
        judged: Judged | None = None,
        index: int | None = None,
    ):
        self._index = index
        self._enforcement, self._stages, self._holdback = enforcement, stages, holdback
        self._conversation = conversation or Conversation([], "")
        self._judged = judged
        self._flows: dict[tuple[str, Any], TextFlow] = {}
        self._current: TextFlow | None = None
        self._queue: deque[_Entry] = deque()
        self._last = AIMessageChunk(content="")
        self._about: dict[str, Any] = {}
        self._sum = Sum()
        self._id: str | None = None
        self.shown = False  # whether any text went out
        self.decision: Decision | None = None

    def push(
        self, message: AIMessageChunk, info: dict[str, Any] | None = None, wrapper: Any = None
    ) -> Steps[list[Out]]:
        if self.decision is not None:
            return []
        self._last = message
        entry = _Entry(message, info, wrapper)
        self._queue.append(entry)
        flow = self._current
        if flow is not None and flow is self._flows.get(_TEXT) and not info and self._is_more_text(message):
            text = flow.read(cast(str, message.content))
            entry.divisible = text is message.content
            entry.marks.append((flow, flow.received + len(text)))
            self.decision = yield from flow.push(text)
        else:
            yield from self._take(entry)
        entry.judged = self.decision is None
        return self._pump()

    def _is_more_text(self, message: AIMessageChunk) -> bool:
        """Whether a chunk holds more of the text and nothing beside it: most do."""
        fields = vars(message)
        return (
            type(fields["content"]) is str
            and fields["content"] != ""
            and not any(map(fields.get, _BESIDE))
            and fields["id"] == self._id
            and type(message) is AIMessageChunk
            and not message.model_extra
        )

    def _take(self, entry: _Entry) -> Steps[None]:
        """Judge all that a chunk holds."""
        message, info = entry.message, entry.info
        pieces = _pieces(message)
        about = {**message.response_metadata, **(info or {})}
        news = about if about != self._about else {}  # many providers repeat the same with each chunk
        if news:
            self._about = about
            pieces += metadata_pieces(about)
        if message.id != self._id:
            self._id = message.id
            if not is_id(message.id):
                pieces += _aside({"id": message.id})
        if message.usage_metadata:
            pieces += _aside({"usage_metadata": message.usage_metadata})
        if message.model_extra or type(message) is not AIMessageChunk:
            pieces += _aside({"extra": beside(message).get("extra")})
        entry.divisible = len(pieces) == 1 and pieces[0][0] == _TEXT and isinstance(message.content, str)
        for key, stage, text in pieces:
            # What an answer carries of other stages, such as the pages that it cites, belongs to the answer.
            if stage in self._stages or (stage.is_query and Stage.response in self._stages):
                yield from self._judge(entry, key, stage, text)
                if self.decision is not None:
                    return
        if Stage.response in self._stages and (grown := self._sum.add(message, news)):
            yield from self._judge_sum(grown)

    def _judge_sum(self, grown: list[str]) -> Steps[None]:
        """Judge what chunks say together, where no text of the message has grown so."""
        known = ["".join(flow.texts) for flow in self._flows.values()]
        if text := "\n".join(text for text in grown if not any(text in whole for whole in known)):
            decision: Decision = yield Ask.of(lambda: self._enforcement.guard.decide(text, stage=Stage.response))
            self.decision = decision if decision.action.stops else None

    def finish(self) -> Steps[list[Out]]:
        """The message is complete: judge the tails and release them."""
        for flow in self._flows.values():
            self.decision = self.decision or (yield from flow.finish())
        if self.decision is None and self._judged is not None:
            scope = self._enforcement.key + self._conversation.scope
            for flow in self._flows.values():
                self._judged.add(digest(flow.stage.value, "".join(flow.texts), scope))
        return self._pump()

    @property
    def decision_so_far(self) -> Decision | None:
        """The worst decision about the message's texts; None before there is any."""
        found = [self.decision, *(flow.decision for flow in self._flows.values())]
        return worst([d for d in found if d is not None]) if any(found) else None

    def ending(self) -> AIMessageChunk:
        """The last chunk of a message that was stopped. Raises `GuardViolation` where that is the exit behaviour."""
        assert self.decision is not None
        self._enforcement.violated(self.decision, self._index)
        details = self._enforcement.mark(self.decision, self._index)
        text = ("\n\n" if self.shown else "") + details["message"]
        if early := sum(flow.shown_early for flow in self._flows.values()):
            details["shown_early"] = early  # characters that a hold-back this short let out before they were judged
        return AIMessageChunk(
            content=text if isinstance(self._last.content, str) else [{"type": "text", "text": text}],
            id=self._last.id if is_id(self._last.id) else None,
            name=self._last.name if is_id(self._last.name) else None,
            response_metadata={METADATA_KEY: details},
            chunk_position="last",
        )

    def close(self) -> None:
        self._queue.clear()
        for flow in self._flows.values():
            flow.close()

    def _judge(self, entry: _Entry, key: tuple[str, Any], stage: Stage, text: str | None) -> Steps[None]:
        guard = self._enforcement.guard
        if text is None:
            refusal = guard.not_judged(f"{key[0]} content cannot be judged by {guard.model.name}", stage, None)
            self.decision = refusal if refusal.action.stops else None
            return
        flow = self._flows.get(key)
        if flow is None:
            kind = QueryFlow if stage.is_query else TextFlow
            flow = yield Ask.of(lambda: kind(guard, self._conversation.context, stage, self._holdback))
            self._flows[key] = flow
        aside = key[0].startswith(ASIDE)
        if self._current is not None and self._current is not flow and not aside:
            self.decision = yield from self._current.settle()
            if self.decision is not None:
                return
        if not aside:
            self._current = flow
        whole, text = text, flow.read(text)
        entry.divisible = entry.divisible and text is whole
        entry.marks.append((flow, flow.received + len(text)))
        self.decision = yield from flow.push(text)
        if aside and self.decision is None:  # it is whole as it stands, and the text that it is about goes on
            self.decision = yield from flow.settle()

    def _pump(self) -> list[Out]:
        out: list[Out] = []
        while self._queue:
            entry = self._queue[0]
            if entry.judged and all(flow.released >= end for flow, end in entry.marks):
                out.append((entry.message, entry.info, entry.wrapper))
                self._queue.popleft()
                continue
            if entry.divisible and entry.marks:
                self._cut(entry, out)
            break
        if self.decision is not None:
            self._queue.clear()
        self.shown = self.shown or any(message.content for message, *_ in out)
        return out

    @staticmethod
    def _cut(entry: _Entry, out: list[Out]) -> None:
        """Let the released front of a text chunk go; its metadata stays with the rest, which may repeat its text."""
        flow, end = entry.marks[0]
        content = entry.message.content
        ready = flow.released - (end - len(content))
        if ready <= 0 or not isinstance(content, str):
            return
        bare: dict[str, Any] = {
            "content": content[:ready],
            "additional_kwargs": {},
            "response_metadata": {},
            "usage_metadata": None,
            "chunk_position": None,
        }
        out.append((entry.message.model_copy(update=bare), None, None))
        entry.message, entry.wrapper = entry.message.model_copy(update={"content": content[ready:]}), None


def _pieces(message: AIMessageChunk) -> list[Piece]:
    """The texts in a chunk, in order. A call that a provider repeats in several fields comes once."""
    found: list[Piece] = []
    content, extra, calls = message.content, message.additional_kwargs, message.tool_call_chunks
    if extra:
        found += _extra_pieces(extra)
    if isinstance(content, str):
        if content:
            found.append((_TEXT, Stage.response, content))
    else:
        for i, block in enumerate(content):
            found += _block_pieces(i, block)
    if calls:
        found += [_call_piece("call", c.get("index"), i, _name_of(c), c.get("args")) for i, c in enumerate(calls)]
        streamed = {text for key, _, text in found if key[0] == "call"}
        found = [p for p in found if p[0][0] not in ("block call", "raw call") or p[2] not in streamed]
    for call in message.invalid_tool_calls:
        if error := call.get("error"):
            found.append((("error", None), Stage.response, str(error)))
    if message.name:
        found += _parts({"name": message.name})
    return [piece for piece in found if piece[2] != ""]


def _block_pieces(i: int, block: Any) -> Iterator[Piece]:
    if isinstance(block, str):
        yield _TEXT, Stage.response, block
        return
    if not isinstance(block, Mapping):
        yield (type(block).__name__, None), Stage.response, None
        return
    kind = block.get("type")
    if kind == "non_standard" and isinstance(block.get("value"), Mapping):
        yield from _block_pieces(i, block["value"])
    elif kind == "text" and isinstance(block.get("text"), str) and block.keys() <= _TEXT_FRAME:
        yield _TEXT, Stage.response, block["text"]
        yield from _frame(block)
    elif kind in CALL_BLOCKS:
        given = next((block[key] for key in CALL_ARGUMENTS if block.get(key)), "")
        yield _call_piece("block call", block.get("index"), i, block.get("name"), given)
        yield from _frame(block)
        rest = {key: value for key, value in block.items() if key not in _CALL_FRAME}
        if rest:
            text, unknown = joined_texts(rest, Stage.response)
            yield ("call extra", block.get("index", i)), Stage.response, None if unknown else text
    elif kind in REASONING_BLOCKS and not any(value for field, value in block.items() if field not in _FRAME):
        yield from _parts({"content": [{**block, "type": "text", "text": ""}]})  # a block's start, or its signature
        yield from _frame(block)
    else:
        yield from _parts({"content": [block]})


def _frame(block: Mapping[str, Any]) -> Iterator[Piece]:
    """What stands as a block's index or ids and is none."""
    odd = {key: block[key] for key in _FRAME_IDS if isinstance(block.get(key), str) and not is_id(block[key])}
    yield from _aside({"extra": odd}) if odd else ()


def _parts(source: dict[str, Any]) -> Iterator[Piece]:
    """What the core reads in a part of a message. Texts of one kind grow together."""
    message = Message.of({"role": "assistant", "content": "", **source})
    attached = set(map(id, message.attached))
    for part in message.parts():
        if part.text != "":
            own = part.stage is Stage.response and part.text is not None and id(part) not in attached
            yield ("text" if own else part.what, None if own else part.stage), part.stage, part.text


def _extra_pieces(extra: Mapping[str, Any]) -> Iterator[Piece]:
    for key, value in extra.items():
        if is_empty(value):
            continue
        if key == "tool_calls" and isinstance(value, list) and all(isinstance(call, Mapping) for call in value):
            for i, call in enumerate(value):
                function = call.get("function") or {}
                yield _call_piece("raw call", call.get("index"), i, function.get("name"), function.get("arguments"))
        elif key == "function_call" and isinstance(value, Mapping):
            yield _call_piece("raw call", None, 0, value.get("name"), value.get("arguments"))
        elif key in REASONING and isinstance(value, str):
            yield ("reasoning", None), Stage.reasoning, value
        else:
            yield from _parts({"additional_kwargs": {key: value}})


def metadata_pieces(metadata: Mapping[str, Any]) -> list[Piece]:
    """The texts in what a provider says about an answer, such as the pages that it stands on."""
    if METADATA_KEY in metadata:
        metadata = {**metadata, METADATA_KEY: foreign(metadata[METADATA_KEY]) or None}
    return _aside({"response_metadata": metadata})


def _aside(source: dict[str, Any]) -> list[Piece]:
    """Pieces that stand beside a text and do not end it."""
    return [((f"{ASIDE}{key[0]}", key[1]), stage, text) for key, stage, text in _parts(source)]


def _name_of(call: Any) -> Any:
    """A call's name, with its id where that is none."""
    name, id_ = call.get("name"), call.get("id")
    return name if is_id(id_) else f"{name or ''} {id_}"


def _call_piece(kind: str, index: Any, position: int, name: Any, args: Any) -> Piece:
    text = (args if isinstance(args, str) else arguments_text(args)) if args else ""
    return (kind, position if index is None else index), Stage.tool_call, f" {name} {text}" if name else text


def guard_chunks(
    source: Iterator[ChatGenerationChunk], flow: ChunkFlow, repairs: int = 0
) -> Generator[ChatGenerationChunk, None, Decision | None]:
    """A model's chunks, judged. The source is closed when the guard stops the message or the consumer leaves.

    Returns the decision that asks for a repair: the message was stopped with nothing shown, and `repairs` are left.
    """
    try:
        for chunk in source:
            for out in drive(flow.push(chunk_of(chunk), chunk.generation_info, chunk)):
                yield _wrapped(*out)
            if flow.decision is not None:
                break
        else:
            for out in drive(flow.finish()):
                yield _wrapped(*out)
        if flow.decision is not None:
            if repairs and not flow.shown:
                return flow.decision
            yield ChatGenerationChunk(message=flow.ending())
        return None
    finally:
        flow.close()
        close = getattr(source, "close", None)
        if close is not None:
            close()


async def aguard_chunks(
    source: AsyncIterator[ChatGenerationChunk], flow: ChunkFlow, repairs: int = 0
) -> AsyncIterator[ChatGenerationChunk | Decision]:
    """The async twin of `guard_chunks`; a decision that asks for a repair comes last."""
    try:
        async for chunk in source:
            for out in await adrive(flow.push(chunk_of(chunk), chunk.generation_info, chunk)):
                yield _wrapped(*out)
            if flow.decision is not None:
                break
        else:
            for out in await adrive(flow.finish()):
                yield _wrapped(*out)
        if flow.decision is not None:
            if repairs and not flow.shown:
                yield flow.decision
            else:
                yield ChatGenerationChunk(message=flow.ending())
    finally:
        flow.close()
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


def _wrapped(message: AIMessageChunk, info: dict[str, Any] | None, wrapper: Any) -> ChatGenerationChunk:
    if wrapper is not None:
        return cast(ChatGenerationChunk, wrapper)
    return ChatGenerationChunk(message=message, generation_info=info)
