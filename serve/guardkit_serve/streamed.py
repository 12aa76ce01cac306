"""A streamed answer on its way out: which bytes may go, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx
from starlette.types import Send

from guardkit import Guard
from guardkit_serve.answering import Early, Out, drained, never
from guardkit_serve.calls import Call
from guardkit_serve.errors import HttpError, overloaded
from guardkit_serve.faults import told
from guardkit_serve.flow import Flow
from guardkit_serve.protocols.base import Protocol, Violation
from guardkit_serve.rolling import Refused, Rolling
from guardkit_serve.sse import Parser
from guardkit_serve.upstream import failure, pieces_of

SSE = "text/event-stream"
STREAM_HEADERS = {"content-type": f"{SSE}; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class Streamed:
    """One answer: `guarded` or `rolled` gives its bytes, `send` sends them."""

    def __init__(self, call: Call, protocol: Protocol, guard: Guard):
        self._call, self._protocol, self._guard = call, protocol, guard
        self._serving, self._settings = call.serving, call.serving.settings

    async def send(self, data: AsyncGenerator[bytes, None], headers: dict[str, str], send: Send) -> None:
        """Raises `Refused` where the bytes do, which is before the first of them."""
        out = Out(send, {**headers, **STREAM_HEADERS}, self._settings.write_s)
        try:
            with self._serving.draining.registered():
                async with aclosing(data):
                    async for piece in data:
                        if piece:
                            await out.write(piece)
            await out.end()
        except TimeoutError:
            self._call.stage = self._call.stage or "unread"  # the client reads no more: its connection is given up
            raise HttpError(408, f"the client did not read for {self._settings.write_s:g} s") from None
        except Early as early:
            await early.error.response(self._protocol.path)({"type": "http"}, never, send)
        finally:
            out.close()

    async def guarded(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """Of the upstream's events, those that may go out, to the protocol's end. Closes the upstream before a
        violation is told."""
        flow = Flow(
            self._protocol,
            self._guard,
            self._serving.observer,
            seconds=self._settings.judge_s,
            holdback=self._settings.holdback,
            max_bytes=self._settings.max_answer_bytes,
        )
        protocol, started = self._protocol, False
        observer, first = self._serving.observer, True
        error: HttpError | None = None
        parser, pieces = Parser(self._settings.max_event_bytes), pieces_of(response)
        try:
            try:
                async for piece in pieces:
                    start = time.perf_counter()
                    data = await flow.push(parser.feed(piece))
                    observer.forwarded(first, time.perf_counter() - start)
                    first, started = False, started or bool(data)
                    if flow.violation is not None:
                        await asyncio.shield(response.aclose())
                    if data:
                        yield data
                    if flow.violation is not None or flow.last:
                        break
                else:
                    frames, is_cut = parser.close()
                    data = await flow.push(frames)
                    started = started or bool(data)
                    yield data
                    if is_cut:
                        error = HttpError(502, "the upstream broke off in the middle of an event", "upstream_error")
            except HttpError as problem:
                error = problem
            except httpx.HTTPError as problem:
                error = failure(problem)
            except asyncio.CancelledError:
                error = self._shutting_down()
                if error is None:
                    raise
            except Exception as problem:  # of this server's own: the stream must still come to an end
                error = self._fault(problem)
            if flow.violation is None:
                data = await flow.finish()
                started = started or bool(data)
                yield data
            if flow.violation is not None or error is not None:
                await asyncio.shield(response.aclose())
            if flow.violation is not None:
                yield self._stopped(flow.violation, started)
            elif error is None and protocol.is_complete:
                yield protocol.closing()
                await drained(pieces)
            else:
                error = error or HttpError(502, "the upstream ended before its answer did", "upstream_error")
                yield self._failed(error, started)
        finally:
            if flow.decision is not None:
                self._call.at_least(flow.decision.action)
            flow.close()

    async def rolled(self, rolling: Rolling) -> AsyncGenerator[bytes, None]:
        """An answer that goes back where the policy stops it, as events of the protocol."""
        started = False
        error: HttpError | None = None
        try:
            async with aclosing(rolling.texts()) as texts:
                async for text in texts:
                    started = True
                    yield rolling.protocol.said(text)
        except Violation as violation:
            yield self._stopped(violation, started)
            return
        except Refused:
            raise
        except HttpError as problem:
            error = problem
        except asyncio.CancelledError:
            error = self._shutting_down()
            if error is None:
                raise
        except Exception as problem:
            error = self._fault(problem)
        if error is not None:
            yield self._failed(error, started)
            return
        self._call.at_least(rolling.decision.action)
        yield rolling.protocol.finished(rolling.reason, rolling.usage, rolling.told())

    def _stopped(self, violation: Violation, started: bool) -> bytes:
        """What ends a stream that was stopped."""
        self._call.note(violation.decision)
        if violation.decision.overloaded and not started:
            raise Early(overloaded("the guard has no room for more; try again"))
        if self._settings.on_violation == "error":
            return self._failed(violation.error(), started)
        return self._protocol.ended(violation, self._settings.on_violation == "replace")

    def _failed(self, error: HttpError, started: bool) -> bytes:
        if not started:
            raise Early(error)
        return self._protocol.failed(error)

    def _shutting_down(self) -> HttpError | None:
        """How a stream that was cancelled ends where it was the server's end; None: it was something else."""
        task = asyncio.current_task()
        if not self._serving.draining.is_over or task is None or task.uncancel():
            return None
        return HttpError(503, "the server is shutting down", "shutting_down")

    def _fault(self, problem: Exception) -> HttpError:
        told(problem, self._protocol.path)
        return HttpError(500, "a fault in the server")
