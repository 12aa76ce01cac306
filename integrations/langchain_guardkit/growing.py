"""One text that grows: how much of it was received, how much may go out, and what ends it.

What a flow does is written once, as a generator of the calls to the guard that it needs; `drive` makes them at once,
`adrive` on an event loop, without a thread where the guard needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from guardkit import AsyncStreamGuard, Decision, Guard, Message, NotJudged, Stage, StreamGuard, Verdict
from guardkit.astream import LARGE
from guardkit.reading.payloads import ArgumentsReader
from langchain_guardkit.enforcing import Enforcement
from langchain_guardkit.reading import begins_json

_T = TypeVar("_T")
_SEEN = 8000  # characters of a cited text that are judged again when it grows


class Ask(NamedTuple):
    """A call to the guard, for a thread that may wait and for an event loop. later: None where it takes no time."""

    now: Callable[..., Any]
    later: Callable[..., Awaitable[Any]] | None
    given: tuple[Any, ...] = ()

    @classmethod
    def of(cls, call: Callable[[], Any]) -> Ask:
        """A call that takes a while, and has no async twin."""
        return cls(call, partial(asyncio.to_thread, call))


Steps = Generator[Ask, Any, _T]


def drive(steps: Steps[_T]) -> _T:
    try:
        ask = next(steps)
        while True:
            try:
                result = ask.now(*ask.given)
            except NotJudged as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def adrive(steps: Steps[_T]) -> _T:
    try:
        ask = next(steps)
        while True:
            try:
                result = ask.now(*ask.given) if ask.later is None else await ask.later(*ask.given)
            except NotJudged as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


class TextFlow:
    """One text of a message: how much of it was received, and how much of that may go out.

    Each step gives the decision that ends the text, if one does; a fault of the guard is such a decision too.
    """

    def __init__(self, guard: Guard, context: Sequence[Message], stage: Stage, holdback: int | None):
        self.stage = stage
        self._arguments = ArgumentsReader()
        self._escapes: bool | None = None  # whether escapes are read; None before the text has begun
        self.received = self.released = 0
        self.texts: list[str] = []
        self._guard = guard
        self._stream: StreamGuard | None = None
        self._fault: Decision | None = None
        try:
            self._stream = guard.stream(context, stage=stage, holdback=holdback)
        except NotJudged as error:
            self._fault = guard.not_judged(str(error), stage, None)
        else:
            self._twin = AsyncStreamGuard(self._stream)
            self._quick = guard.model.quick and guard.timeout is None

    def read(self, raw: str) -> str:
        """More of the text as whoever parses it will read it: of a call's arguments, and of an answer in JSON, without
        the escapes."""
        if self._escapes is None and raw and not raw.isspace():
            self._escapes = self.stage is Stage.tool_call or begins_json(raw)
        if not self._escapes:
            return raw
        text = self._arguments.push(raw)
        return raw if text == raw else text

    @property
    def decision(self) -> Decision | None:
        """The decision so far."""
        return self._fault if self._stream is None else self._stream.decision

    @property
    def shown_early(self) -> int:
        return 0 if self._stream is None else self._stream.shown_early

    def push(self, text: str) -> Steps[Decision | None]:
        self.received += len(text)
        self.texts.append(text)
        if (stream := self._stream) is None:
            return self._fault
        later = None if self._quick and len(text) <= LARGE else self._twin.feed
        return (yield from self._step(Ask(stream.feed, later, (text,))))

    def finish(self) -> Steps[Decision | None]:
        if (stream := self._stream) is None:
            return self._fault
        stop = yield from self._step(Ask(stream.finish, self._twin.finish))
        if stop is None:
            self.released = self.received
        return stop

    def settle(self) -> Steps[Decision | None]:
        """Another text takes over: release the tail, judged as it stands."""
        if (stream := self._stream) is None:
            return self._fault
        found: list[Verdict] = []
        stop = yield from self._step(Ask.of(lambda: found.append(stream.verdict)))
        if stop is None and found and stream.judged:
            decision = self._guard.policy.decide(found[0])
            stop = decision if decision.action.stops else None
        if stop is None:
            self.released = self.received
        return stop

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _step(self, ask: Ask) -> Steps[Decision | None]:
        stream = self._stream
        assert stream is not None
        try:
            yield ask
        except NotJudged as error:
            return stream.decision if stream.stopped else self._guard.not_judged(str(error), self.stage, None)
        # A stop takes back what a short hold-back let out; what was handed on stays handed on.
        self.released = max(self.released, stream.released)
        return stream.decision if stream.stopped else None


class QueryFlow(TextFlow):
    """A text of other people's, such as a page that an answer cites: judged as it stands, each time that it grows."""

    def __init__(self, guard: Guard, context: Sequence[Message], stage: Stage, holdback: int | None):
        self.stage = stage
        self.received = self.released = 0
        self.texts = []
        self._guard = guard
        self._stream = None
        self._fault = None
        self._escapes = False

    @property
    def decision(self) -> Decision | None:
        return self._fault

    def push(self, text: str) -> Steps[Decision | None]:
        self.received += len(text)
        self.texts.append(text)
        whole = "".join(self.texts)[-_SEEN:]
        decision: Decision = yield Ask.of(lambda: self._guard.decide(whole, stage=self.stage))
        self._fault = decision
        if decision.action.stops:
            return decision
        self.released = self.received
        return None

    def finish(self) -> Steps[Decision | None]:
        yield from ()
        return self._stop()

    def settle(self) -> Steps[Decision | None]:
        yield from ()
        return self._stop()

    def _stop(self) -> Decision | None:
        return self._fault if self._fault is not None and self._fault.action.stops else None


class StringFlow:
    """Judges one streamed string. `push` and `finish` return what may go out; `decision` and `ending` as in
    `ChunkFlow`."""

    def __init__(self, enforcement: Enforcement, stage: Stage, holdback: int | None = None):
        self._enforcement = enforcement
        self._flow = TextFlow(enforcement.guard, (), stage, holdback)
        self._text = ""
        self._out = 0
        self.decision: Decision | None = None

    @property
    def decision_so_far(self) -> Decision | None:
        return self.decision or self._flow.decision

    @property
    def empty(self) -> bool:
        return self._flow.received == 0

    def push(self, text: str) -> Steps[list[str]]:
        if self.decision is not None:
            return []
        self._text += text
        self.decision = yield from self._flow.push(text)
        return self._release()

    def stop(self, decision: Decision) -> None:
        self.decision = decision

    def finish(self) -> Steps[list[str]]:
        self.decision = self.decision or (yield from self._flow.finish())
        return self._release()

    def ending(self) -> str:
        assert self.decision is not None
        self._enforcement.violated(self.decision)
        return ("\n\n" if self._out else "") + self._enforcement.text(self.decision)

    def close(self) -> None:
        self._text = ""
        self._flow.close()

    def _release(self) -> list[str]:
        ready = self._flow.released - self._out
        text, self._text = self._text[:ready], self._text[ready:]
        self._out += len(text)
        return [text] if text else []
