"""The async twin of `StreamGuard`, and many streams fed together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from types import TracebackType

from guardkit.errors import GuardkitError
from guardkit.events import Event, Mark
from guardkit.models.base import StreamModel
from guardkit.runner import Steps, alead, arun, run
from guardkit.stream import _UNWATCHED, StreamGuard

LARGE = 2048  # characters, or ids, of a delta: more are not read on an event loop


class AsyncStreamGuard:
    """The async twin of `StreamGuard`: the same calls, awaited; the model runs off the event loop.

    A cancelled call closes the stream: what was being judged is never released.
    """

    def __init__(self, stream: StreamGuard):
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        if name in ("verdict", "decision", "stopped", "judged", "released", "withheld", "n_tokens", "shown_early"):
            return getattr(self._stream, name)
        raise AttributeError(f"AsyncStreamGuard has no '{name}'")

    async def feed(self, delta: str | None) -> list[Event]:
        return await self._drive(self._stream._feed(delta), len(delta or ""))

    async def feed_ids(self, ids: Sequence[int]) -> list[Event]:
        return await self._drive(self._stream._feed_ids(ids), len(ids))

    async def finish(self, *, close: bool = True) -> list[Event]:
        return await self._drive(self._stream._finish(close))

    def mark(self) -> Mark:
        return self._stream.mark()

    def rewind(self, mark: Mark) -> None:
        self._stream.rewind(mark)

    async def close(self) -> None:
        self._stream.close()

    async def wrap(self, deltas: AsyncIterator[str]) -> AsyncIterator[Event]:
        """Events for a whole source, finished at its end; stops reading at the stop."""
        try:
            async for delta in deltas:
                for event in await self.feed(delta):
                    yield event
                if self._stream.stopped:
                    return
            for event in await self.finish():
                yield event
        finally:
            self._stream.close()
            if isinstance(deltas, AsyncGenerator):
                await deltas.aclose()

    async def _drive(self, steps: Steps[list[Event]], size: int = 0) -> list[Event]:
        stream = self._stream
        model, timeout = stream._guard.model, stream._guard.timeout
        try:
            with _UNWATCHED if stream._watch is None else stream._watch:
                if size <= LARGE:
                    return await alead(model, steps, timeout)
                (found,) = await arun(model, [lambda: steps], timeout)  # read in a thread
            if isinstance(found, Exception):
                raise found
            return found
        except Exception:
            raise
        except BaseException:
            stream.close()
            raise

    async def __aenter__(self) -> AsyncStreamGuard:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


Fed = tuple[StreamGuard | AsyncStreamGuard, str | Sequence[int] | None]
"""A stream, and the delta that it is fed: text, or token ids."""
Answered = list[Event] | GuardkitError
"""What a stream that is fed with others gives: events, or why there are none."""


class Feeds:
    """Many streams' deltas on their way through a model together."""

    def __init__(self, model: StreamModel, fed: Sequence[Fed]):
        self._streams = [stream._stream if isinstance(stream, AsyncStreamGuard) else stream for stream, _ in fed]
        if len(set(map(id, self._streams))) < len(fed):
            raise ValueError("a stream is fed twice in one call: join its deltas")
        if any(stream._guard.model is not model for stream in self._streams):
            raise ValueError("streams of several models cannot be fed together")
        self._model = model
        self._jobs = [partial(_fed, stream, delta) for stream, (_, delta) in zip(self._streams, fed, strict=True)]

    def run(self, timeout: float | None) -> list[Answered]:
        """Each one's answer. Raises what is no fault of a model, such as a delta that is no text."""
        try:
            return _answers(run(self._model, self._jobs, timeout))
        except Exception:
            raise
        except BaseException:
            self._close()
            raise

    async def arun(self, timeout: float | None) -> list[Answered]:
        try:
            return _answers(await arun(self._model, self._jobs, timeout))
        except Exception:
            raise
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        """Interrupted: what was being judged is never released."""
        for stream in self._streams:
            stream.close()


def _answers(found: Sequence[list[Event] | Exception]) -> list[Answered]:
    answers: list[Answered] = []
    for each in found:
        if isinstance(each, Exception) and not isinstance(each, GuardkitError):
            raise each
        answers.append(each)
    return answers


def _fed(stream: StreamGuard, delta: str | Sequence[int] | None) -> Steps[list[Event]]:
    return stream._feed(delta) if delta is None or isinstance(delta, str) else stream._feed_ids(delta)
