"""What the server is told: frozen values, each default in one place."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from guardkit.rollback.rollback import BUFFER, RETRIES

ON_VIOLATION = ("end", "error", "replace")
VIOLATION_MESSAGE = "This was withheld by a safety check."
LOOPBACK = ("127.0.0.1", "localhost", "::1")
INSIDE = (".internal", ".localhost", ".svc", ".cluster.local")
"""Ends of names that no public DNS has."""
PORT = 8642
MIB = 1 << 20


@dataclass(frozen=True)
class RollbackSettings:
    """An answer that is stopped is taken back and gone on with (see `guardkit.rollback.Rollback`). continue_by: how
    the upstream goes on with a message (a key of `guardkit.rollback.server.CONTINUE`); None: by its list of models."""

    buffer: int = BUFFER
    retries: int = RETRIES
    introspect: bool = True
    stride: int | None = None
    continue_by: str | None = None


@dataclass(frozen=True)
class Upstream:
    """A server that answers. url: its base URL, as an SDK would be given it. key_env: the environment variable that
    holds its key; without one, the client's own key is passed on. connect_s: seconds for a connection; read_s: without
    a byte; retries: of a call of which not a byte of an answer has come. rollback: of its chat completions; None: what
    is stopped ends the answer."""

    url: str
    name: str = "default"
    key_env: str | None = None
    connect_s: float = 10.0
    read_s: float = 600.0
    retries: int = 2
    rollback: RollbackSettings | Literal[False] | None = None


@dataclass(frozen=True)
class Route:
    """Requests whose `model` matches a pattern (``claude-*``) go to the upstream of that name. rollback: in place of
    the upstream's own; False: without it."""

    model: str
    upstream: str
    rollback: RollbackSettings | Literal[False] | None = None


@dataclass(frozen=True)
class Key:
    """One API key of this server. sha256: of the key, in hex; policy, model: what its requests are judged by;
    policies: which others it may ask for; per_minute: requests, None: without a limit."""

    name: str
    sha256: str
    policy: str | None = None
    policies: tuple[str, ...] = ()
    model: str | None = None
    per_minute: float | None = None


@dataclass(frozen=True)
class Settings:
    """on_violation: "end", "error" or "replace" (with `message`). holdback: tokens; None: the guard's own. judge_s:
    seconds in which a request must be judged; body_s: in which its body must come; write_s: that a client may take to
    read on. max_*_bytes: of a request, a whole answer, one event of a stream.
    max_requests: under way at once. page_texts: whether the page may show the texts of decisions. grace_s: that
    requests have to end when the server does. hosts: names that it may be called by beside those of `answers_to`;
    patterns (``*.example.com``, ``*``)."""

    upstreams: tuple[Upstream, ...] = ()
    routes: tuple[Route, ...] = ()
    keys: tuple[Key, ...] = ()
    host: str = LOOPBACK[0]
    port: int = PORT
    hosts: tuple[str, ...] = ()
    on_violation: str = ON_VIOLATION[0]
    message: str = VIOLATION_MESSAGE
    holdback: int | None = None
    judge_s: float = 30.0
    body_s: float = 30.0
    write_s: float = 120.0
    max_request_bytes: int = 16 * MIB
    max_answer_bytes: int = 32 * MIB
    max_event_bytes: int = 4 * MIB
    max_requests: int = 2000
    grace_s: float = 30.0
    access_log: bool = True
    page_texts: bool = False

    @property
    def is_loopback(self) -> bool:
        try:
            return self.host in LOOPBACK or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # another name
            return False

    def answers_to(self, host: str) -> bool:
        """Whether a request may call this server by a name. No web page can have its own name point here (DNS
        rebinding): on loopback it answers to that interface's names alone; beyond, where no key says who calls, also to
        addresses, this machine's name and names that are not of the public DNS, as of the services of a cluster."""
        if self.is_told(host):
            return True
        if self.is_loopback or not host:
            return False
        inside = "." not in host or host.endswith(INSIDE) or host == socket.gethostname().lower()
        return bool(self.keys) or inside or _is_address(host)

    def is_told(self, host: str) -> bool:
        """Whether a name is one that pages elsewhere may have, to ask this server: loopback's, or of `hosts`."""
        return host in (*LOOPBACK, self.host) or any(fnmatchcase(host, pattern.lower()) for pattern in self.hosts)

    def upstream(self, model: object) -> Upstream | None:
        """The upstream for a request's `model`, as the first route that matches has it; else the first upstream."""
        by_name = {each.name: each for each in self.upstreams}
        for route in self.routes:
            if isinstance(model, str) and fnmatchcase(model, route.model):
                found = by_name[route.upstream]
                return found if route.rollback is None else replace(found, rollback=route.rollback or None)
        return self.upstreams[0] if self.upstreams else None

    def key_of(self, given: str) -> Key | None:
        """The key that `given` is. Takes the same time whichever it is, and where it is none."""
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.sha256.lower()):
                found = key
        return found


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def duplicates(names: Sequence[str]) -> list[str]:
    seen: Mapping[str, int] = {name: names.count(name) for name in names}
    return [name for name, count in seen.items() if count > 1]
