"""uvicorn's C parser, with the bound on a request's head that its other parser has."""

from __future__ import annotations

import asyncio
from typing import Any

MAX_HEAD_BYTES = 64 << 10

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # httptools is not there
    HTTP: Any = "h11"
else:

    class BoundedHeads(HttpToolsProtocol):
        """Refuses a request whose line and headers do not end in time, before it fills the memory."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._head_bytes: int | None = 0  # None: while a body comes
            super().connection_made(transport)  # type: ignore[arg-type]

        def data_received(self, data: bytes) -> None:
            if self._head_bytes is not None:
                self._head_bytes += len(data)
            super().data_received(data)
            if (self._head_bytes or 0) > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's head is too large.")

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._head_bytes = 0
            super().on_message_complete()

    HTTP = BoundedHeads
