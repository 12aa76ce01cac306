"""A stream of values: text and message chunks are judged as they arrive, anything else when it is complete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessageChunk

from guardkit import Stage
from langchain_guardkit.enforcing import Enforcement
from langchain_guardkit.growing import Ask, Steps, StringFlow, adrive, drive
from langchain_guardkit.runs import added, annotate
from langchain_guardkit.settling import Field, settlements
from langchain_guardkit.streaming import ChunkFlow


class ValueFlow:
    """`push` and `finish` give what may go out. fields: in a stream of dicts, whose texts alone are judged."""

    def __init__(
        self,
        enforcement: Enforcement,
        stage: Stage | None,
        fields: Sequence[Field],
        holdback: int | None,
        run: Any,
    ):
        self._enforcement, self._stage, self._fields = enforcement, stage, dict(fields)
        self._holdback, self._run = holdback, run
        self._flow: ChunkFlow | StringFlow | None = None
        self._key: str | None = None  # the field that the flow is of
        self._whole: list[Any] = []

    @property
    def stopped(self) -> bool:
        return self._flow is not None and self._flow.decision is not None

    def push(self, chunk: Any) -> Steps[list[Any]]:
        if self._fields and isinstance(chunk, Mapping):
            return (yield from self._push_fields(chunk))
        return (yield from self._push(chunk, self._stage))

    def _push_fields(self, chunk: Mapping[str, Any]) -> Steps[list[Any]]:
        """A dict of a stream: its judged fields by themselves, in the order in which they come; the rest at once."""
        out: list[Any] = []
        rest = {key: value for key, value in chunk.items() if key not in self._fields}
        if rest:
            out.append(rest)
        for key in chunk.keys() & self._fields.keys():
            if self._key is not None and self._key != key:
                out += yield from self.finish()
                self._flow, self._whole = None, []
                if self.stopped:
                    return out
            self._key = key
            pieces = yield from self._push(chunk[key], self._fields[key])
            out += [{key: piece} for piece in pieces]
        return out

    def _push(self, chunk: Any, stage: Stage | None) -> Steps[list[Any]]:
        if self._flow is None and not self._whole:
            self._flow = yield Ask.of(lambda: self._start(chunk, stage))
        flow = self._flow
        if flow is None:
            self._whole = [added(self._whole[0], chunk)] if self._whole else [chunk]
            return []
        if isinstance(flow, StringFlow) and isinstance(chunk, str):
            if flow.empty and stage is None:
                # A string in one piece may be a prompt: the first piece is judged as one before any of it goes on.
                decision = yield Ask.of(lambda: self._enforcement.guard.decide(chunk, stage=Stage.prompt))
                if decision.action.stops:
                    flow.stop(decision)
            return (yield from flow.push(chunk))
        if isinstance(flow, ChunkFlow) and isinstance(chunk, AIMessageChunk):
            return [message for message, *_ in (yield from flow.push(chunk))]
        raise TypeError(f"the stream changed from one kind of value to another: {type(chunk).__name__}")

    def finish(self) -> Steps[list[Any]]:
        flow = self._flow
        if flow is None:
            stage = self._stage if self._key is None else self._fields[self._key]
            if not self._whole:
                return []
            (found,) = yield Ask.of(lambda: settlements(self._enforcement, self._whole, stage))
            return self._keyed([found.passed_on(self._run)])
        if isinstance(flow, StringFlow):
            return self._keyed((yield from flow.finish()))
        return self._keyed([message for message, *_ in (yield from flow.finish())])

    def ending(self) -> list[Any]:
        """What takes the place of a stopped stream's rest. Raises `GuardViolation` where that is the exit behaviour."""
        if self._flow is None:
            return []
        if (decision := self._flow.decision_so_far) is not None:
            annotate(self._run, decision)
        return self._keyed([self._flow.ending()]) if self._flow.decision is not None else []

    def close(self) -> None:
        if self._flow is not None:
            self._flow.close()

    def _keyed(self, pieces: Sequence[Any]) -> list[Any]:
        return list(pieces) if self._key is None else [{self._key: piece} for piece in pieces]

    def _start(self, chunk: Any, given: Stage | None) -> ChunkFlow | StringFlow | None:
        stage = given or Stage.response
        if stage.is_query:
            return None
        if isinstance(chunk, str):
            return StringFlow(self._enforcement, stage, self._holdback)
        if isinstance(chunk, AIMessageChunk):
            return ChunkFlow(self._enforcement, holdback=self._holdback)
        return None


def judged(chunks: Iterator[Any], flow: ValueFlow) -> Iterator[Any]:
    try:
        for chunk in chunks:
            yield from drive(flow.push(chunk))
            if flow.stopped:
                break
        yield from drive(flow.finish())
        yield from flow.ending()
    finally:
        flow.close()
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


async def ajudged(chunks: AsyncIterator[Any], flow: ValueFlow) -> AsyncIterator[Any]:
    try:
        async for chunk in chunks:
            for out in await adrive(flow.push(chunk)):
                yield out
            if flow.stopped:
                break
        for out in await adrive(flow.finish()):
            yield out
        for out in flow.ending():
            yield out
    finally:
        flow.close()
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


NOTHING = object()


def chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


async def achained(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        yield first
        async for item in rest:
            yield item
    finally:
        close = getattr(rest, "aclose", None)
        if close is not None:
            await close()
