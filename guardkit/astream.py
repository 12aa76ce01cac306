"""The async twin of `StreamGuard`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import nullcontext
from types import TracebackType

from guardkit.events import Event, Mark
from guardkit.runner import Steps, alead
from guardkit.stream import StreamGuard


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
        return await self._drive(self._stream._feed(delta))

    async def feed_ids(self, ids: Sequence[int]) -> list[Event]:
        return await self._drive(self._stream._feed(self._stream._decode(ids)))

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

    async def _drive(self, steps: Steps[list[Event]]) -> list[Event]:
        stream = self._stream
        try:
            with nullcontext() if stream._watch is None else stream._watch.judging():
                return await alead(stream._guard.model, steps, stream._guard.timeout)
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
