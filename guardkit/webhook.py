"""Audit records to a web address, behind the guard's back: nothing that is judged ever waits for it."""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from guardkit.audit import AuditRecord

BATCH = 100  # records in one request
MAX_WAITING = 10_000  # records; the oldest are dropped, counted, and told
TIMEOUT_S = 10.0
RETRY_S = (1.0, 5.0, 15.0)  # after a failure; then the records are dropped
IDLE_S = 5.0  # an idle thread ends; the next record starts another
LOG = logging.getLogger("guardkit")


class WebhookSink:
    """Posts records as JSON, ``{"records": [...]}``, in the order they came, from a thread of its own. What cannot be
    delivered is tried again a few times, then dropped, counted (`dropped`) and logged. Safe to share between threads.

    headers: sent with each request, such as one with a token.
    """

    def __init__(self, url: str, headers: dict[str, str] | None = None, *, retry_s: tuple[float, ...] = RETRY_S):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"a webhook's address begins with http:// or https://, unlike {url!r}")
        self._made_from = url, headers, retry_s
        self._url, self._headers, self._retry_s = url, headers or {}, retry_s
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.dropped = 0

    def __call__(self, record: AuditRecord) -> None:
        with self._changed:
            if self._closed:
                raise ValueError("this webhook was closed")
            self._waiting.append(record.to_dict())
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._count(1, "too many wait")
            if self._thread is None or not self._thread.is_alive():  # a forked child has none
                self._thread = threading.Thread(
                    target=_deliver, args=(weakref.ref(self),), name="guardkit-audit", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout: float | None = TIMEOUT_S) -> None:
        """Deliver what waits, for at most `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        return WebhookSink, self._made_from[:2]

    def _count(self, n: int, why: str) -> None:
        self.dropped += n
        if self.dropped == n or (self.dropped - n) // 1000 != self.dropped // 1000:
            LOG.error("the audit webhook: %d records were dropped so far (%s)", self.dropped, why)

    def _next(self) -> list[dict[str, Any]]:
        """The records to send next; empty where the thread may end."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(IDLE_S)
            if not self._waiting:
                self._thread = None
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _send(self, records: list[dict[str, Any]]) -> None:
        body = json.dumps({"records": records}).encode()
        headers = {"content-type": "application/json", **self._headers}
        for wait in (*self._retry_s, None):
            try:
                request = urllib.request.Request(self._url, body, headers, method="POST")
                with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                    return
            except HTTPError as error:
                why = f"HTTP {error.code}"
                if error.code < 500 and error.code not in (408, 429):
                    break
            except Exception as error:  # no route, no answer, no valid answer: whatever it is, judging goes on
                why = type(error).__name__
            if wait is None:
                break
            with self._changed:
                if not self._closed:
                    self._changed.wait_for(lambda: self._closed, wait)
        with self._changed:
            self._count(len(records), why)


def _deliver(ref: weakref.ref[WebhookSink]) -> None:
    while (sink := ref()) is not None:
        records = sink._next()
        if not records:
            return
        sink._send(records)
        del sink
