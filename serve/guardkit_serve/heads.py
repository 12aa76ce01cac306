"""uvicorn's C parser, held to what a server that is open to others needs: requests' heads that end, by size and in
time; no headers behind the body; answers that old clients can read."""

from __future__ import annotations

import asyncio
from typing import Any

MAX_HEAD_BYTES = 64 << 10
HEAD_S = 30.0  # that a request's line and headers may take, and a connection before its first

try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
except ImportError:  # httptools is not there
    HTTP: Any = "h11"
else:

    class _UntilClosed(RequestResponseCycle):
        """An answer over HTTP/1.0, which knows no chunks: what is of no known length ends with the connection."""

        async def send(self, message: Any) -> None:
            self.chunked_encoding = False
            if message["type"] == "http.response.body":
                self.expected_content_length = len(message.get("body", b""))  # whatever comes is expected
            await super().send(message)

    class BoundedHeads(HttpToolsProtocol):
        """Refuses a request whose line and headers do not end, before it fills the memory."""

        head_s = HEAD_S

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._head_bytes: int | None = 0  # None: while a body comes
            self._head_timer: asyncio.TimerHandle | None = None
            self._upgrades = False  # whether the request under way asks for another protocol
            super().connection_made(transport)  # type: ignore[arg-type]
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_is_there()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            if self._head_bytes is not None:
                self._head_bytes += len(data)
                self._await_head()
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._stay(data[upgrade.args[0] :])
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            if (self._head_bytes or 0) > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's head is too large.")

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._head_bytes is not None:  # what comes behind the body was not there when the request was let in
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._upgrades = self.parser.should_upgrade()
            if self._upgrades:
                return
            self._head_bytes = None
            self._head_is_there()
            before = self.cycle
            super().on_headers_complete()
            if self.cycle is not before and self.scope["http_version"] == "1.0":
                self.cycle.__class__ = _UntilClosed

        def on_message_complete(self) -> None:
            if not self._upgrades:
                self._head_bytes = 0
                super().on_message_complete()

        def _stay(self, rest: bytes) -> None:
            """Answer a request for another protocol in this one, which its client must be ready for: its body, that the
            parser would leave to the other, is read."""
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            if method == b"CONNECT":
                self.send_400_response("This is no proxy of that kind.")
                return
            kept = [
                (name, b"close" if name == b"connection" else value)
                for name, value in self.headers
                if name != b"connection" or b"close" in value.lower()
            ]
            head = b"".join(b"%b: %b\r\n" % pair for pair in kept)
            self.parser = httptools.HttpRequestParser(self)
            self._head_bytes = 0
            self.data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, head, rest))

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(self.head_s, self._too_late)

        def _head_is_there(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _too_late(self) -> None:
            self._head_timer = None
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if self._head_bytes is not None and not is_answering and not self.transport.is_closing():
                self.transport.close()

    HTTP = BoundedHeads
