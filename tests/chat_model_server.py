"""A small OpenAI-compatible server around a chat model of transformers, for tests with a real model.

GUARDKIT_TEST_LLM=/folder/with/a/model   # transformers' layout, or one .gguf file (it needs gguf and accelerate)
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("GUARDKIT_TEST_LLM", "")
ABSENT = "GUARDKIT_TEST_LLM names no folder with a chat model" if not Path(FOLDER or "-").is_dir() else ""


class ChatModel:
    """A model on the CPU that answers greedily, one request at a time. asked: the messages of each request.

    What was answered to its end is remembered: the same request gets the same pieces without the minutes that it takes
    where many tests share two cores."""

    def __init__(self, folder: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        gguf = next((path.name for path in sorted(Path(folder).glob("*.gguf"))), None)
        files: Any = {"gguf_file": gguf} if gguf else {}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **files)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, **files).eval()
        self.asked: list[list[dict[str, Any]]] = []
        self._answers: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def answer(self, messages: list[dict[str, Any]], max_tokens: int) -> Generator[str]:
        """The pieces of an answer, as they are made; to close it ends the making."""
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        self.asked.append(messages)
        key = json.dumps([messages, max_tokens], sort_keys=True)
        if key in self._answers:
            yield from self._answers[key]
            return
        chat = [{"role": m["role"], "content": _text(m["content"])} for m in messages]
        inputs = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer: Any = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        gone = threading.Event()
        criteria = StoppingCriteriaList([lambda ids, scores, **_: ids.new_full((len(ids),), gone.is_set()).bool()])
        with self._lock:
            options = {**inputs, "max_new_tokens": max_tokens, "do_sample": False, "streamer": streamer}
            thread = threading.Thread(target=self.model.generate, kwargs={**options, "stopping_criteria": criteria})
            thread.start()
            pieces: list[str] = []
            try:
                for piece in filter(None, streamer):
                    pieces.append(piece)
                    yield piece
                self._answers[key] = pieces
            finally:
                gone.set()
                thread.join()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content or ())


class ChatServer:
    """`with ChatServer(model) as url:`, chat completions, whole and streamed, as they are made."""

    def __init__(self, model: ChatModel):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                entry = {"id": "m", "object": "model", "created": 1, "owned_by": "us"}
                self._begin("application/json")
                self.wfile.write(json.dumps({"object": "list", "data": [entry]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                n_tokens = body.get("max_completion_tokens") or body.get("max_tokens") or 24
                pieces = model.answer(body["messages"], n_tokens)
                head = {"id": "r1", "created": 1, "model": body["model"]}
                if not body.get("stream"):
                    message = {"role": "assistant", "content": "".join(pieces)}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 1)
                    whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
                    self._begin("application/json")
                    self.wfile.write(json.dumps(whole).encode())
                    return
                self._begin("text/event-stream")
                try:
                    for piece in pieces:
                        self._event(head, {"role": "assistant", "content": piece}, None)
                    self._event(head, {}, "stop")
                    self.wfile.write(b"data: [DONE]\n\n")
                except (BrokenPipeError, ConnectionResetError):
                    pieces.close()  # a stopped stream is closed by its reader

            def _begin(self, kind: str) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.end_headers()

            def _event(self, head: dict[str, Any], delta: dict[str, Any], reason: str | None) -> None:
                choice = {"index": 0, "delta": delta, "finish_reason": reason}
                chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
