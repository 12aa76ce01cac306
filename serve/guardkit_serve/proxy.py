"""The guarding proxy: a request is judged, sent on, and its answer judged on the way back, whole or event by event."""

from __future__ import annotations

import asyncio
import json

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guardkit import Guard, MessageError, Stage
from guardkit_serve.answering import json_response, until_gone
from guardkit_serve.asking import judge_request
from guardkit_serve.calls import Call, call_of, json_of, raw_body_of
from guardkit_serve.errors import HttpError
from guardkit_serve.judging import decide, item_of
from guardkit_serve.protocols.base import Protocol, Violation
from guardkit_serve.protocols.chat import Chat
from guardkit_serve.rolling import Refused, Rolling, can_roll_back
from guardkit_serve.settings import RollbackSettings, Upstream
from guardkit_serve.streamed import SSE, STREAM_HEADERS, Streamed
from guardkit_serve.upstream import failure, headers_back, headers_for, query_of
from guardkit_serve.whole import judge_answer


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
        self.raw, self.headers, self.query = raw, request.headers, query_of(request)
        self.protocol = kind(body, self.settings.message)
        self.guard: Guard = self.call.pick(
            request.headers.get("x-guardkit-model"), request.headers.get("x-guardkit-policy")
        )
        self.streams = body.get("stream") is True
        self._streamed = Streamed(self.call, self.protocol, self.guard)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            raw = await self._request()
            rollback = self.upstream.rollback
            if rollback and can_roll_back(self.protocol):
                response = await self._rolled(rollback, scope, receive, send)
                if response is None:
                    return
            else:
                response = await self._ask(raw)
        except Violation as violation:
            await self._refused(violation)(scope, receive, send)
            return
        try:
            if not 200 <= response.status_code < 300:
                answer = await self._error(response)
            elif self._is_stream(response):
                await self._streamed.send(self._streamed.guarded(response), headers_back(response), send)
                return
            else:
                answer = await self._whole(response)
        finally:
            await asyncio.shield(response.aclose())
        await answer(scope, receive, send)

    async def _ask(self, raw: bytes) -> httpx.Response:
        return await self.serving.upstreams.send(
            self.upstream, "POST", self.protocol.path, self.query, self._headers(self.protocol.path), raw
        )

    def _headers(self, path: str) -> dict[str, str]:
        return headers_for(self.upstream, path, self.headers, bool(self.settings.keys))

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
            self.call.note(violation.decision)
            raise
        self.call.action = action.value
        return self.raw if body is given else json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    @property
    def _replaces(self) -> bool:
        return self.settings.on_violation == "replace"

    def _refused(self, violation: Violation) -> Response:
        if self.settings.on_violation == "error":
            return violation.error().response(self.protocol.path)
        if self.streams:
            return Response(self.protocol.ended(violation, self._replaces), headers=STREAM_HEADERS)
        return json_response(self.protocol.refused(violation, self._replaces))

    # ------------------------------------------------------------------------------------------------ with rollback

    async def _rolled(
        self, options: RollbackSettings, scope: Scope, receive: Receive, send: Send
    ) -> httpx.Response | None:
        """Answer by going back where the policy stops the text. The upstream's error, where it has no answer at all."""
        assert isinstance(self.protocol, Chat)
        rolling = Rolling(
            self.protocol,
            self.guard,
            options,
            self.serving.observer,
            self._ask,
            lambda: self.serving.upstreams.served(self.upstream, self._headers("/v1/models")),
            seconds=self.settings.judge_s,
            max_event_bytes=self.settings.max_event_bytes,
            max_answer_bytes=self.settings.max_answer_bytes,
        )
        try:
            if self.streams:
                await self._streamed.send(self._streamed.rolled(rolling), {}, send)
            else:
                await (await self._rolled_whole(rolling))(scope, receive, send)
        except Refused as refused:
            return refused.response
        return None

    async def _rolled_whole(self, rolling: Rolling) -> Response:
        try:
            text = "".join([text async for text in rolling.texts()])
        except Violation as violation:
            self.call.note(violation.decision)
            if self.settings.on_violation == "error":
                return violation.error().response(self.protocol.path)
            told = {} if rolling.usage is None else {"usage": rolling.usage}
            return json_response({**self.protocol.refused(violation, self._replaces), **told})
        self.call.at_least(rolling.decision.action)
        return json_response(rolling.protocol.written(text, rolling.reason, rolling.usage, rolling.told()))

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
            self.call.note(violation.decision)
            if self.settings.on_violation == "error":
                return violation.error().response(self.protocol.path)
            return json_response(self.protocol.refused(violation, self._replaces))
        except MessageError:
            raise HttpError(502, "the upstream's answer is not of this protocol", "upstream_error") from None
        self.call.at_least(action)
        if new.stopped and self.settings.on_violation == "error":
            self.call.note(new.stopped.decision)
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


async def models(request: Request) -> Response:
    """``GET /v1/models``, of the first upstream."""
    call = call_of(request)
    upstream = call.serving.settings.upstream(None)
    if upstream is None:
        raise HttpError(404, "no upstream: this server only judges (guard serve --upstream URL)", "no_upstream")
    headers = headers_for(upstream, "/v1/models", request.headers, bool(call.serving.settings.keys))
    response = await call.serving.upstreams.send(upstream, "GET", "/v1/models", query_of(request), headers, b"")
    try:
        raw = await response.aread()
    except httpx.HTTPError as problem:
        raise failure(problem) from None
    finally:
        await response.aclose()
    return Response(raw, response.status_code, headers=headers_back(response))
