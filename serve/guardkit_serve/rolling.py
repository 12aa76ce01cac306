"""Rollback as a route's option: an answer that the policy stops is taken back and gone on with, instead of ended.

A chat completion is decoded by `guardkit.rollback` beside the guard. The upstream is asked to stream, and after each
rollback to go on with the text that stands; the client gets what may be shown as an answer of its protocol.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import httpx

from guardkit import Action, Decision, Guard, GuardkitError, Stage
from guardkit.models.remote_client import ServerError
from guardkit.reading.jsontext import parse
from guardkit.rollback import Rollback, RollbackResult, RollbackStream
from guardkit.rollback.transport import Delta, delta_of
from guardkit_serve import sse
from guardkit_serve.answering import DRAIN_S
from guardkit_serve.errors import HttpError
from guardkit_serve.observe import Observer
from guardkit_serve.protocols.base import Protocol, Violation
from guardkit_serve.protocols.chat import Chat
from guardkit_serve.settings import RollbackSettings
from guardkit_serve.sse import DONE, Parser
from guardkit_serve.upstream import failure, pieces_of

Ask = Callable[[bytes], Awaitable[httpx.Response]]
Served = Callable[[], Awaitable[list[tuple[str, str]]]]
UNSUPPORTED = "rollback_unsupported"
_OWN = ("messages", "stream", "n", "stop", "max_tokens", "max_completion_tokens", "stream_options", "model")
"""Keys of a request that are not passed on as they are."""
_NOT_TEXT = (
    "tools", "functions", "audio", "logprobs", "top_logprobs", "prediction", "best_of", "prompt", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar", "json_schema", "regex", "ebnf",
    "continue_final_message", "echo",
)  # fmt: skip
_TAKEN = ("client", "stage", "render", "continue_by", "extra", "extra_body", "self")
"""Names that mean something to `guardkit.rollback`, and nothing to an upstream."""
_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


class Refused(Exception):
    """The upstream answered a request with an error, before any text. response: still open."""

    def __init__(self, response: httpx.Response):
        self.response = response
        super().__init__(f"status {response.status_code}")


def can_roll_back(protocol: Protocol) -> bool:
    """Whether the request, which was read, is for one answer of plain text; others are guarded without rollback."""
    body, form = protocol.body, protocol.body.get("response_format")
    return (
        isinstance(protocol, Chat)
        and body.get("n") in (None, 1)
        and not any(body.get(key) for key in _NOT_TEXT)
        and (form is None or (isinstance(form, Mapping) and form.get("type") == "text"))
        and body.get("modalities") in (None, ["text"])
        and protocol.context[-1].role != "assistant"
    )


class Rolling:
    """One such answer. ask: posts a request to the upstream; served: its models, each with its owner. Raises
    `HttpError` (400) for settings that cannot be used."""

    def __init__(
        self,
        protocol: Chat,
        guard: Guard,
        options: RollbackSettings,
        observer: Observer,
        ask: Ask,
        served: Served,
        *,
        seconds: float,
        max_event_bytes: int,
        max_answer_bytes: int,
    ):
        self.protocol, self._guard, self._observer = protocol, guard, observer
        self._source = _Upstream(ask, served, max_event_bytes, max_answer_bytes, _wants_usage(protocol.body, options))
        self._answer = self._begin(options, seconds)

    def _begin(self, options: RollbackSettings, seconds: float) -> RollbackStream:
        body = self.protocol.body
        guard = copy.copy(self._guard)
        guard.timeout = seconds if guard.timeout is None else min(seconds, guard.timeout)
        rollback = Rollback(
            guard, buffer=options.buffer, retries=options.retries, stride=options.stride, introspect=options.introspect
        )
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        stop = body.get("stop")
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise HttpError(400, "'max_tokens' must be a whole number above 0", param="max_tokens")
        if not isinstance(stop, str | None) and not (isinstance(stop, list) and all(isinstance(s, str) for s in stop)):
            raise HttpError(400, "'stop' must be a string or a list of strings", param="stop")
        for key in _TAKEN:
            if key in body:
                raise HttpError(400, f"'{key}' cannot be given with rollback", param=key)
        more = {key: value for key, value in body.items() if key not in _OWN and value is not None}
        try:
            return rollback.stream(
                self._source, body["messages"], model=body.get("model") or None, continue_by=options.continue_by,
                max_tokens=most, stop=stop, **more,
            )  # fmt: skip
        except (GuardkitError, TypeError) as error:
            raise HttpError(400, f"not with rollback: {error}") from None

    async def texts(self) -> AsyncGenerator[str, None]:
        """What may be shown, as it comes. Raises `Violation` where the tries are used up or the guard cannot judge,
        `Refused` and `HttpError` for the upstream."""
        guard = self._guard
        self._observer.stream_opened(Stage.response.value, guard.model.name, guard.policy.name)
        try:
            async with aclosing(aiter(self._answer)) as coming:
                async for text in coming:
                    if not self._answer.refused:  # the refusal is this protocol's own, not the library's
                        yield text
            if self.result.refused:
                violation = Violation(self.decision, "answer")
                violation.counts = len(self.result.answer), self.withheld
                raise violation
        except ServerError as error:
            raise HttpError(502, f"rollback: {error}", UNSUPPORTED) from None
        except GuardkitError as error:
            raise HttpError(502, f"rollback: {error}", "upstream_error") from None
        finally:
            result = self.result
            self._observer.stream_closed(
                self.decision, guard.model.name, guard.policy.name, len(result.answer), self.withheld, 0
            )

    @property
    def result(self) -> RollbackResult:
        return self._answer.result

    @property
    def withheld(self) -> int:
        """Characters that were generated and taken back."""
        return sum(len(dropped.text) for dropped in self.result.dropped)

    @property
    def decision(self) -> Decision:
        result = self.result
        if result.error is not None or (result.refused and result.verdict is None):
            found = self._guard.not_judged(result.error or "not judged", Stage.response, None)
            return replace(found, action=Action.block)  # what is not judged is not shown here, whatever on_error says
        if result.verdict is None:
            return self._guard.not_judged("the answer did not come to its end", Stage.response, None)
        found = self._guard.policy.decide(result.verdict)
        return replace(found, action=Action.block) if result.refused and not found.action.stops else found

    @property
    def reason(self) -> str:
        return self.result.finish_reason

    def told(self) -> dict[str, Any]:
        """For the field `guardkit` of an answer that came to its end."""
        result = self.result
        counts = {"released": len(result.answer), "withheld": self.withheld}
        return {"action": self.decision.action.value, "rollbacks": result.rollbacks, **counts}

    @property
    def usage(self) -> dict[str, int] | None:
        """Tokens of all requests that came to their end; None where the upstream did not tell."""
        return self._source.usage or None


class _Upstream:
    """The upstream, as `guardkit.rollback` asks it (a `Transport`)."""

    def __init__(self, ask: Ask, served: Served, max_event_bytes: int, max_bytes: int, wants_usage: bool):
        self._ask, self._served = ask, served
        self._max_event_bytes, self._max_bytes, self._wants_usage = max_event_bytes, max_bytes, wants_usage
        self._n_asked = 0
        self.usage: dict[str, int] = {}

    async def deltas(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        extra = body.get("extra") or {}
        sent = {**{key: value for key, value in body.items() if key != "extra"}, **extra, "stream": True}
        if self._wants_usage:
            sent["stream_options"] = {"include_usage": True}
        response = await self._ask(json.dumps(sent, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._n_asked += 1
        if not 200 <= response.status_code < 300 and self._n_asked == 1:
            raise Refused(response)
        try:
            if not 200 <= response.status_code < 300:
                raise ServerError(f"status {response.status_code}", response.status_code)
            async with aclosing(self._read(response)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            await asyncio.shield(response.aclose())

    async def _read(self, response: httpx.Response) -> AsyncGenerator[Delta, None]:
        """The last delta comes behind what follows it, the usage above all."""
        parser, pieces = Parser(self._max_event_bytes), pieces_of(response)
        last: Delta | None = None
        left = self._max_bytes
        try:
            async for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise HttpError(
                        502, f"the upstream's answer has more than {self._max_bytes:,} bytes", "upstream_error"
                    )
                for frame in map(sse.read, parser.feed(piece)):
                    if frame.data is None or frame.data.strip() == DONE:
                        continue
                    delta = self._delta(frame.data)
                    if delta is not None and delta.reason is not None:
                        last = delta
                    elif delta is not None and last is None:
                        yield delta
                if last is not None:
                    break
            if last is not None and self._wants_usage:
                await self._rest(parser, pieces)
        except httpx.HTTPError as problem:
            raise failure(problem) from None
        if last is None:
            raise HttpError(502, "the upstream ended before its answer did", "upstream_error")
        yield last

    async def _rest(self, parser: Parser, pieces: AsyncIterator[bytes]) -> None:
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(DRAIN_S):
                async for piece in pieces:
                    for frame in map(sse.read, parser.feed(piece)):
                        if frame.data is not None and frame.data.strip() != DONE:
                            self._delta(frame.data)

    def _delta(self, data: str) -> Delta | None:
        try:
            chunk = parse(data)
        except ValueError as error:
            raise HttpError(502, f"the upstream sent an event that is {error}", "upstream_error") from None
        if not isinstance(chunk, Mapping):
            raise HttpError(502, "the upstream sent an event that is no JSON object", "upstream_error")
        if chunk.get("error"):
            raise HttpError(502, "the upstream failed", "upstream_error")
        if isinstance(used := chunk.get("usage"), Mapping):
            for key in _USAGE:
                if isinstance(used.get(key), int):
                    self.usage[key] = self.usage.get(key, 0) + used[key]
        try:
            return delta_of(chunk)
        except (AttributeError, TypeError, KeyError, IndexError):
            raise HttpError(502, "the upstream sent an event that cannot be read", "upstream_error") from None

    async def models(self) -> list[tuple[str, str]]:
        return await self._served()

    async def close(self) -> None:
        pass


def _wants_usage(body: Mapping[str, Any], options: RollbackSettings) -> bool:
    """Where the client asks for it; of a whole answer always, where the upstream is one that knows how to tell."""
    asked = body.get("stream_options")
    if body.get("stream") is True:
        return isinstance(asked, Mapping) and asked.get("include_usage") is True
    return options.continue_by != "prefix"
