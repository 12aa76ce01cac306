"""The guarding proxy: a request is judged, sent on, and its answer judged on the way back, whole or event by event."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guardkit import Action, Guard, MessageError, Stage
from guardkit_serve.answering import Early, Out, drained, json_response, never, until_gone
from guardkit_serve.asking import judge_request
from guardkit_serve.calls import Call, call_of, json_of, raw_body_of
from guardkit_serve.errors import HttpError, overloaded
from guardkit_serve.faults import told
from guardkit_serve.flow import Flow
from guardkit_serve.judging import decide, item_of
from guardkit_serve.protocols.base import Protocol, Violation
from guardkit_serve.settings import Upstream
from guardkit_serve.sse import Parser
from guardkit_serve.upstream import headers_back, headers_for
from guardkit_serve.whole import judge_answer

SSE = "text/event-stream"
STREAM_HEADERS = {"content-type": f"{SSE}; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class Proxy:
    """An endpoint for one protocol."""

    def __init__(self, kind: type[Protocol]):
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        raw = await raw_body_of(request)
        exchange = _Exchange(self._kind, request, raw)
        await until_gone(receive, exchange.run(scope, receive, send))


class _Exchange:
    """One request and its answer."""

    def __init__(self, kind: type[Protocol], request: Request, raw: bytes):
        self.call: Call = call_of(request)
        self.serving = self.call.serving
        self.settings = self.serving.settings
        body = json_of(raw)
        if not isinstance(body, dict):
            raise HttpError(400, "the body must be a JSON object")
        found = self.settings.upstream(body.get("model"))
        if found is None:
            raise HttpError(404, "no upstream: this server only judges (guard serve --upstream URL)", "no_upstream")
        self.upstream: Upstream = found
        self.raw, self.headers, self.query = raw, request.headers, request.scope.get("query_string", b"")
        self.protocol = kind(body, self.settings.message)
        self.guard: Guard = self.call.pick(
            request.headers.get("x-guardkit-model"), request.headers.get("x-guardkit-policy")
        )
        self.streams = body.get("stream") is True

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            raw = await self._request()
            response = await self.serving.upstreams.send(
                self.upstream,
                "POST",
                self.protocol.path,
                self.query,
                headers_for(self.upstream, self.protocol.path, self.headers, bool(self.settings.keys)),
                raw,
            )
        except Violation as violation:
            await self._refused(violation)(scope, receive, send)
            return
        try:
            if response.status_code >= 300:
                answer = await self._error(response)
            elif self._is_stream(response):
                await self._stream(response, send)
                return
            else:
                answer = await self._whole(response)
        finally:
            await asyncio.shield(response.aclose())
        await answer(scope, receive, send)

    def _is_stream(self, response: httpx.Response) -> bool:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return bool(kind == SSE or (self.streams and not kind.endswith("json")))

    async def _request(self) -> bytes:
        """Judge the request; its body for the upstream. Raises `Violation`."""
        protocol, given = self.protocol, self.protocol.body
        try:
            body, action = await judge_request(
                protocol,
                self.guard,
                self.serving.guards.passed(self.guard),
                self.serving.observer,
                self.settings.judge_s,
            )
        except Violation as violation:
            self._note(violation)
            raise
        self.call.action = action.value
        return self.raw if body is given else json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    def _worst(self, flow: Flow) -> None:
        if flow.decision is not None:
            self.call.action = max(Action(self.call.action), flow.decision.action).value

    def _note(self, violation: Violation) -> None:
        self.call.action, self.call.stage = violation.decision.action.value, violation.decision.stage.value

    @property
    def _replaces(self) -> bool:
        return self.settings.on_violation == "replace"

    def _refused(self, violation: Violation) -> Response:
        if self.settings.on_violation == "error":
            return violation.error().response(self.protocol.path)
        if self.streams:
            return Response(self.protocol.ended(violation, self._replaces), headers=STREAM_HEADERS)
        return json_response(self.protocol.refused(violation, self._replaces))

    # ---------------------------------------------------------------------------------------------- whole answers

    async def _body(self, response: httpx.Response) -> bytes:
        most = self.settings.max_answer_bytes
        raw = bytearray()
        try:
            async for piece in response.aiter_bytes():
                raw += piece
                if len(raw) > most:
                    raise HttpError(502, f"the upstream's answer has more than {most:,} bytes", "upstream_error")
        except httpx.ReadTimeout:
            raise HttpError(504, "the upstream did not answer in time", "upstream_timeout") from None
        except httpx.HTTPError:
            raise HttpError(502, "the upstream's answer broke off or cannot be read", "upstream_error") from None
        return bytes(raw)

    async def _whole(self, response: httpx.Response) -> Response:
        raw = await self._body(response)
        headers = headers_back(response)
        try:
            data = json_of(raw)
        except HttpError as error:
            raise HttpError(502, f"the upstream's answer: {error.message}", "upstream_error") from None
        try:
            new, action = await judge_answer(
                self.protocol, data, self.guard, self.serving.observer, self.settings.judge_s, self._replaces
            )
        except Violation as violation:
            self._note(violation)
            if self.settings.on_violation == "error":
                return violation.error().response(self.protocol.path)
            return json_response(self.protocol.refused(violation, self._replaces))
        except MessageError:
            raise HttpError(502, "the upstream's answer is not of this protocol", "upstream_error") from None
        self.call.action = max(Action(self.call.action), action).value
        if new.stopped and self.settings.on_violation == "error":
            self._note(new.stopped)
            return new.stopped.error().response(self.protocol.path)
        return Response(raw, headers=headers) if new.data is data else json_response(new.data, headers)

    async def _error(self, response: httpx.Response) -> Response:
        """An upstream's error, as it is where it can be read and passes; else one that only names its status."""
        status = response.status_code if response.status_code >= 400 else 502
        headers = headers_back(response)
        plain = HttpError(status, f"the upstream answered with status {response.status_code}", "upstream_error")
        plain.headers = {name: value for name, value in headers.items() if name != "content-type"}
        try:
            raw = await self._body(response)
            data = json_of(raw)
        except HttpError:
            return plain.response(self.protocol.path)
        parts = [(Stage.response, found.text) for found in self.protocol.seen.new("", data) if found.text]
        if response.status_code < 400 or not isinstance(data, dict) or len(parts) > 64:
            return plain.response(self.protocol.path)
        items = [item_of(text, stage) for stage, text in parts]
        decisions = await decide(self.guard, items, self.serving.observer, self.settings.judge_s) if items else []
        if any(decision.action.stops for decision in decisions):
            return plain.response(self.protocol.path)
        return Response(raw, status, headers=headers)

    # -------------------------------------------------------------------------------------------- streamed answers

    async def _stream(self, response: httpx.Response, send: Send) -> None:
        flow = Flow(
            self.protocol,
            self.guard,
            self.serving.observer,
            seconds=self.settings.judge_s,
            holdback=self.settings.holdback,
            max_bytes=self.settings.max_answer_bytes,
        )
        out = Out(send, {**headers_back(response), **STREAM_HEADERS}, self.settings.write_s)
        drain = self.serving.draining
        try:
            with drain.registered():
                async for data in self._guarded(flow, response):
                    if data:
                        await out.write(data)
            self._worst(flow)
            await out.end()
        except TimeoutError:
            self.call.stage = self.call.stage or "unread"  # the client reads no more: its connection is given up
            raise HttpError(408, f"the client did not read for {self.settings.write_s:g} s") from None
        except Early as early:
            self._worst(flow)
            await early.error.response(self.protocol.path)({"type": "http"}, never, send)
        finally:
            out.close()
            flow.close()

    async def _guarded(self, flow: Flow, response: httpx.Response) -> AsyncIterator[bytes]:
        """The bytes that may go out, to the protocol's end. Closes the upstream before a violation is told."""
        protocol, started = self.protocol, False
        observer, first = self.serving.observer, True
        error: HttpError | None = None
        parser, pieces = Parser(self.settings.max_event_bytes), response.aiter_bytes()
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
            error = _upstream_error(problem)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.serving.draining.is_over or task is None or task.uncancel():
                raise
            error = HttpError(503, "the server is shutting down", "shutting_down")
        except Exception as problem:  # of this server's own: the stream must still come to an end
            told(problem, protocol.path)
            error = HttpError(500, "a fault in the server")
        if flow.violation is None:
            data = await flow.finish()
            started = started or bool(data)
            yield data
        if flow.violation is not None or error is not None:
            await asyncio.shield(response.aclose())
        if flow.violation is not None:
            violation = flow.violation
            self._note(violation)
            if violation.decision.overloaded and not started:
                raise Early(overloaded("the guard has no room for more; try again"))
            if self.settings.on_violation == "error":
                if not started:
                    raise Early(violation.error())
                yield protocol.failed(violation.error())
            else:
                yield protocol.ended(violation, self._replaces)
        elif error is None and protocol.is_complete:
            yield protocol.closing()
            await drained(pieces)
        else:
            error = error or HttpError(502, "the upstream ended before its answer did", "upstream_error")
            if not started:
                raise Early(error)
            yield protocol.failed(error)


def _upstream_error(problem: httpx.HTTPError) -> HttpError:
    if isinstance(problem, httpx.TimeoutException):
        return HttpError(504, "the upstream fell silent", "upstream_timeout")
    return HttpError(502, "the upstream broke off", "upstream_error")


async def models(request: Request) -> Response:
    """``GET /v1/models``, of the first upstream."""
    call = call_of(request)
    upstream = call.serving.settings.upstream(None)
    if upstream is None:
        raise HttpError(404, "no upstream: this server only judges (guard serve --upstream URL)", "no_upstream")
    headers = headers_for(upstream, "/v1/models", request.headers, bool(call.serving.settings.keys))
    response = await call.serving.upstreams.send(
        upstream, "GET", "/v1/models", request.scope.get("query_string", b""), headers, b""
    )
    try:
        raw = await response.aread()
    except httpx.HTTPError as problem:
        raise _upstream_error(problem) from None
    finally:
        await response.aclose()
    return Response(raw, response.status_code, headers=headers_back(response))
