"""A local server of Anthropic's shape (`/v1/messages`), whole and streamed: for the tests of real clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.leaks import cut

USAGE = {"input_tokens": 3, "output_tokens": 5}


def text_block(text: str, cited: str = "") -> dict[str, Any]:
    place = {"type": "search_result_location", "source": "x", "title": "t", "search_result_index": 0}
    citation = {**place, "cited_text": cited, "start_block_index": 0, "end_block_index": 1}
    return {"type": "text", "text": text, "citations": [citation] if cited else None}


def thinking_block(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "c2ln"}


def call_block(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": arguments}


class AnthropicServer:
    """Answers with `says`: lists of content blocks, one a request, the last one again. size: characters a piece."""

    def __init__(self, *says: list[dict[str, Any]], size: int = 7):
        self.says, self.size = list(says), size
        self.asked: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append(body)
                blocks = server.says.pop(0) if len(server.says) > 1 else server.says[0]
                streams = bool(body.get("stream"))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream" if streams else "application/json")
                self.end_headers()
                try:
                    if not streams:
                        self.wfile.write(json.dumps(server.message(blocks)).encode())
                        return
                    for event in server.events(blocks):
                        self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
                except (BrokenPipeError, ConnectionResetError):
                    pass  # a stopped stream is closed by its reader

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> AnthropicServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @staticmethod
    def message(blocks: list[dict[str, Any]]) -> dict[str, Any]:
        reason = "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
        return {**head, "content": blocks, "stop_reason": reason, "usage": USAGE}

    def events(self, blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        whole = self.message(blocks)
        yield {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
        for i, block in enumerate(blocks):
            yield from ({**event, "index": i} for event in self._block(block))
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": USAGE,
        }
        yield {"type": "message_stop"}

    def _block(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind = block["type"]
        empty = {"text": {"text": "", "citations": None}, "thinking": {"thinking": "", "signature": ""}}
        start = {**block, **empty.get(kind, {}), **({"input": {}} if kind == "tool_use" else {})}
        deltas: list[dict[str, Any]] = []
        if kind == "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in cut(block["text"], self.size)]
            deltas += [{"type": "citations_delta", "citation": citation} for citation in block["citations"] or ()]
        elif kind == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in cut(block["thinking"], self.size)]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif kind == "tool_use":
            pieces = cut(json.dumps(block["input"]), self.size)
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        yield {"type": "content_block_start", "content_block": start}
        yield from ({"type": "content_block_delta", "delta": delta} for delta in deltas)
        yield {"type": "content_block_stop"}


def search_block(title: str) -> list[dict[str, Any]]:
    """A search that the server has made itself: the call, and what it found."""
    call = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}}
    result = {
        "type": "web_search_result",
        "title": title,
        "url": "http://x",
        "encrypted_content": "ZQ==",
        "page_age": None,
    }
    return [call, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [result]}]
