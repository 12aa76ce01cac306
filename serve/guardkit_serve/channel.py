"""One text of a streamed answer: how much of it has come, how much of that may go out, and what ends it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from guardkit import AsyncStreamGuard, Decision, Guard, Message, NotJudged, Overloaded, Stage, StreamGuard
from guardkit.astream import LARGE
from guardkit.reading.payloads import ArgumentsReader
from guardkit.retokenize import SurrogateJoiner
from guardkit.runner import off_loop
from guardkit_serve.observe import Observer
from guardkit_serve.patience import Patience

HASHED_AT_ONCE = 64  # pieces


class Channel:
    """Fed in pieces, judged by a stream of the core's. `stop` is the decision that ended it, a fault of the guard
    included. Positions count characters as they were fed; escapes in a tool call's arguments are undone before.

    seconds: for each call of the guard.
    """

    def __init__(
        self,
        guard: Guard,
        context: Sequence[Message],
        stage: Stage,
        *,
        observer: Observer,
        seconds: float,
        holdback: int | None = None,
        arguments: bool = False,
    ):
        self.stage = stage
        self.received = self.released = 0
        self.stop: Decision | None = None
        self.finished = False
        self._guard, self._observer, self._seconds = guard, observer, seconds
        self._is_quick = guard.model.quick and guard.timeout is None
        self._patience = Patience(seconds)
        self._arguments = ArgumentsReader() if arguments else None
        self._surrogates = SurrogateJoiner()  # as the core counts characters
        self._waiting: list[str] = []
        self._raw = hashlib.blake2b(digest_size=16)
        self._unhashed: list[str] = []
        self._fault: Decision | None = None
        self._stream: StreamGuard | None = None
        self._settled = self._told = False
        observer.stream_opened(stage.value, guard.model.name, guard.policy.name)
        try:
            self._stream = guard.stream(context, stage=stage, holdback=holdback)
        except Exception as error:
            self._failed(error)
        else:
            self._twin = AsyncStreamGuard(self._stream)

    def add(self, text: str) -> int:
        """Take a piece, to be judged with the next `flush`; the position that must be released before it may go."""
        self._unhashed.append(text)
        if len(self._unhashed) >= HASHED_AT_ONCE:
            self._hash()
        self._settled = False
        if text and text.isascii() and self._arguments is None and not self._surrogates.carry:
            self.received += len(text)
            self._waiting.append(text)
            return self.received
        if self._arguments is not None:
            text = self._arguments.push(text)
        self._take(self._surrogates.push(text))
        is_cut = bool(self._surrogates.carry) or (self._arguments is not None and bool(self._arguments.pending))
        return self.received + is_cut

    def _take(self, text: str) -> None:
        self.received += len(text)
        if text:
            self._waiting.append(text)

    @property
    def digest(self) -> bytes:
        """Of all that came, as it came."""
        self._hash()
        return self._raw.digest()

    def _hash(self) -> None:
        self._raw.update("".join(self._unhashed).encode("utf-8", "surrogatepass"))
        self._unhashed.clear()

    @property
    def withheld(self) -> int:
        return self.received - self.released

    def flush(self) -> Awaitable[Any] | None:
        """Judge what was added: at once where the model is quick, else when what is returned is awaited."""
        if not self._waiting:
            return None
        text = self._waiting[0] if len(self._waiting) == 1 else "".join(self._waiting)
        self._waiting.clear()
        if (self.stop is not None or self._fault is not None) and not self._passes():
            return None
        if not self._is_quick or len(text) > LARGE:
            return self._call(self._twin.feed(text))
        stream = self._stream
        assert stream is not None
        try:
            stream.feed(text)
        except Exception as error:
            self._failed(error)
        else:
            self._judged(stream)
        return None

    async def settle(self) -> None:
        """Other texts have left it behind: release the tail, judged as it stands, but for what a flagged run may begin
        with. It may go on later."""
        if (judging := self.flush()) is not None:
            await judging
        stream = self._stream
        if self._settled or not self._passes() or stream is None:
            return
        self._settled = True
        end = self.received
        if self.released < end and stream.judged:
            found = await self._call(off_loop(stream.pause))
            if found is not None:
                decision, end = found
                self.stop = decision if decision.action.stops else None
        if self.stop is None:
            self.released = max(self.released, end)

    async def finish(self) -> None:
        """The text is complete: judge the tail."""
        if self.finished:
            return
        rest = self._arguments.pending if self._arguments is not None else ""
        self._take(self._surrogates.push(rest) + self._surrogates.finish())
        if (judging := self.flush()) is not None:
            await judging
        self.finished = True
        if self._passes():
            await self._call(self._twin.finish())
            if self.stop is None:
                self.released = self.received
        self.close()

    @property
    def decision(self) -> Decision:
        if self._fault is not None or self._stream is None:
            return self._fault or self._guard.not_judged("not judged", self.stage, None)
        return self.stop or self._stream.decision

    def close(self) -> None:
        """Nothing more is released. Safe to call twice."""
        retracted = 0
        self._patience.close()
        if self._stream is not None:
            retracted = self._stream.shown_early
            self._stream.close()
        if not self._told:
            self._told = True
            name, policy = self._guard.model.name, self._guard.policy.name
            self._observer.stream_closed(self.decision, name, policy, self.released, self.withheld, retracted)

    def _passes(self) -> bool:
        """Whether the guard is to be asked. What a fault lets through (on_error: allow) goes out unjudged."""
        if self.stop is not None:
            return False
        if self._fault is not None:
            self.released = self.received
            return False
        return True

    async def _call(self, call: Awaitable[Any]) -> Any:
        stream = self._stream
        assert stream is not None
        try:
            with self._patience:
                result = await call
        except TimeoutError:
            self._failed(TimeoutError(f"not judged within {self._seconds:g} s"))
            return None
        except Exception as error:
            self._failed(error)
            return None
        self._judged(stream)
        return result

    def _judged(self, stream: StreamGuard) -> None:
        # A stop takes back what a short hold-back let out; what went out stays out.
        self.released = max(self.released, stream.released)
        if stream.stopped:
            self.stop = stream.decision

    def _failed(self, error: Exception) -> None:
        cause = error.__cause__ if isinstance(error, NotJudged) else error
        so_far = self._stream.decision if self._stream is not None else None
        so_far = so_far if so_far is not None and so_far.judged else None
        fault = self._guard.not_judged(f"{type(error).__name__}: {error}", self.stage, so_far)
        self._fault = replace(fault, overloaded=isinstance(cause, Overloaded))
        if self._stream is not None:
            self.released = max(self.released, self._stream.released)
            self._stream.close()
        if self._fault.action.stops:
            self.stop = self._fault
        else:
            self.released = self.received
