"""What belongs to the server, and what to one request under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from guardkit import Action, Decision, Guard
from guardkit.reading.jsontext import parse
from guardkit_serve.errors import HttpError
from guardkit_serve.guards import Guards
from guardkit_serve.observe import Observer
from guardkit_serve.settings import Key, Settings
from guardkit_serve.upstream import Upstreams

NOT_JUDGED = "none"
"""The action of an answer for which nothing was judged."""


class Draining:
    """Streams under way, which the end of the server ends in their protocol's own way."""

    def __init__(self) -> None:
        self.is_over = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def registered(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        self.is_over = True
        for task in self._tasks:
            task.cancel()


@dataclass
class Serving:
    """The server's state, of which a reload replaces settings and guards. ready: whether the models are warm."""

    settings: Settings
    guards: Guards
    observer: Observer
    upstreams: Upstreams
    draining: Draining = field(default_factory=Draining)
    ready: bool = False


@dataclass
class Call:
    """One request. action: the strictest so far, which the answer's header and the access log name."""

    serving: Serving
    key: Key | None = None
    action: str = NOT_JUDGED
    stage: str | None = None
    policy: str | None = None
    model: str | None = None
    started: float = field(default_factory=time.perf_counter)

    def pick(self, model: str | None, policy: str | None) -> Guard:
        guard = self.serving.guards.pick(model, policy, self.key)
        self.model, self.policy = guard.model.name, guard.policy.name
        return guard

    def note(self, decision: Decision) -> None:
        """A violation."""
        self.action, self.stage = decision.action.value, decision.stage.value

    def at_least(self, action: Action) -> None:
        """Something was found."""
        self.action = max(Action(self.action), action).value


def call_of(request: Request) -> Call:
    call: Call = request.scope["state"]["call"]
    return call


async def raw_body_of(request: Request) -> bytes:
    """Raises `HttpError` for a body that is too large, too slow or in an encoding."""
    settings = call_of(request).serving.settings
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "send the body without a content-encoding")
    most = settings.max_request_bytes
    given = request.headers.get("content-length", "")
    if given.isdigit() and int(given) > most:
        raise _too_large(most)
    pieces: list[bytes] = []
    n_bytes, is_all = 0, False
    try:
        async with asyncio.timeout(settings.body_s):
            while not is_all:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise HttpError(499, "the client went away")
                pieces.append(message.get("body", b""))
                is_all = not message.get("more_body", False)
                n_bytes += len(pieces[-1])
                if n_bytes > most:
                    raise _too_large(most)
    except TimeoutError:
        raise HttpError(408, f"the body did not arrive within {settings.body_s:g} s") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(most: int) -> HttpError:
    return HttpError(413, f"a request may have {most:,} bytes", "request_too_large")


def json_of(raw: bytes) -> Any:
    """Strict JSON: what is judged is what any other reader of these bytes sees. Raises `HttpError` (400)."""
    try:
        return parse(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise HttpError(400, "the body is not UTF-8") from None
    except ValueError as error:
        raise HttpError(400, f"the body is {error}") from None


async def body_of(request: Request) -> Any:
    return json_of(await raw_body_of(request))
