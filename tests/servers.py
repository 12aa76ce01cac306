"""Small HTTP servers on this machine, in the shape of those that serve Qwen3Guard-Gen; they misbehave when told to."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

MODEL = "Qwen/Qwen3Guard-Gen-0.6B"
_PIECES = re.compile(r"\n| ?[A-Za-z]+| ?[^A-Za-z\s]|\s")
_FIRST = {
    "Violent": "Viol",
    "PII": "P",
    "Non": "Non",
    "Unethical": "Un",
    "Politically": "Polit",
    "Controversial": "Cont",
}


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    port: int  # of the client: one a connection

    @property
    def messages(self) -> list[dict[str, str]]:
        return self.body["messages"]  # type: ignore[no-any-return]

    @property
    def judged(self) -> str:
        """The last message that is not empty."""
        return next(m["content"] for m in reversed(self.messages) if m["content"])


@dataclass
class Reply:
    """body: bytes as they are, else JSON. cut: bytes after which the connection is closed; drip: seconds before each
    byte; delay: seconds before the first."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    drip: float = 0.0


Respond = Callable[[Request], Reply]


class LocalServer:
    """Answers on 127.0.0.1 as `respond` says. requests: of chat completions, in order; most: under way at once."""

    def __init__(self, respond: Respond):
        self.respond = respond
        self.requests: list[Request] = []
        self.most = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer._handle(self)

            def do_POST(self) -> None:
                outer._handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.host = f"127.0.0.1:{self._http.server_port}"
        self.url = f"http://{self.host}/v1"

    def __enter__(self) -> LocalServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        body = json.loads(raw) if raw else None
        request = Request(handler.command, handler.path, dict(handler.headers), body, handler.client_address[1])
        with self._lock:
            if body is not None:
                self.requests.append(request)
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        try:
            self._send(handler, self.respond(request))
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self._lock:
                self._under_way -= 1

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        self._stopping.wait(reply.delay)
        raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        handler.send_header("Content-Length", str(len(raw)))
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if reply.drip:
            for byte in raw:
                if self._stopping.wait(reply.drip):
                    break
                handler.wfile.write(bytes([byte]))
        else:
            handler.wfile.write(raw[: reply.cut])
        if reply.cut is not None:
            handler.close_connection = True


class GenServer:
    """Serves a model that finds the script's words, in the shape of `owner`'s server.

    script: word -> answer ("Unsafe: Violent, PII"), the worst match counts. refuses: fields that give a 422; names:
    whether it says which. logprobs: whether it gives them where asked. max_chars: longer requests exceed the model's
    context. key: what it asks for. listed: whether it lists its models. broken: word -> the reply to every text with
    it. faults: replies that come first, each once.
    """

    def __init__(
        self,
        script: Mapping[str, str] | None = None,
        *,
        owner: str = "vllm",
        models: Iterable[str] = (MODEL,),
        refuses: Iterable[str] = (),
        names: bool = True,
        logprobs: bool = True,
        max_chars: int = 1 << 30,
        key: str | None = None,
        listed: bool = True,
        delay: float = 0.0,
    ):
        self.script, self.owner, self.models, self.refuses = dict(script or {}), owner, list(models), set(refuses)
        self.names, self.logprobs, self.max_chars, self.key, self.listed = names, logprobs, max_chars, key, listed
        self.delay = delay
        self.faults: list[Reply] = []
        self.broken: dict[str, Reply] = {}

    def __call__(self, request: Request) -> Reply:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return Reply({"error": {"message": f"no such key: {request.headers.get('Authorization')}"}}, 401)
        if request.path == "/v1/models":
            rows = [{"id": m, "object": "model", "owned_by": self.owner} for m in self.models]
            return Reply({"object": "list", "data": rows}) if self.listed else Reply({"detail": "Not Found"}, 404)
        if request.path != "/v1/chat/completions":
            return Reply({"detail": "Not Found"}, 404)
        for word, reply in self.broken.items():
            if word in request.judged:
                return reply
        if self.faults:
            return self.faults.pop(0)
        refused = self.refuses & set(request.body)
        if refused:
            said = f"Unexpected fields in the request: {refused}" if self.names else "Bad request"
            return Reply({"detail": said}, 422)
        if request.body["model"] not in self.models:
            return Reply({"error": {"message": f"The model `{request.body['model']}` does not exist."}}, 404)
        if sum(len(m["content"]) for m in request.messages) > self.max_chars:
            said = f"This model's maximum context length is {self.max_chars} tokens. However, you requested more."
            return Reply({"error": {"message": said, "type": "BadRequestError", "code": 400}}, 400)
        answer = self.answer(request)
        given = self.logprobs and request.body.get("logprobs") is True
        reply = completion(answer, request.body["model"], logprobs_of(answer) if given else None)
        return Reply(reply, delay=self.delay)

    def answer(self, request: Request) -> str:
        text = request.judged.lower()
        found = [said for word, said in self.script.items() if word in text]
        level, _, categories = max(found or ["Safe: None"], key=_rank).partition(": ")
        lines = f"Safety: {level}\nCategories: {categories}"
        is_query = [m for m in request.messages if m["role"] != "system" or m["content"]][-1]["role"] == "user"
        return lines if is_query else f"{lines}\nRefusal: {'Yes' if 'cannot help' in text else 'No'}"


def _rank(said: str) -> int:
    return ("Safe", "Controversial", "Unsafe").index(said.partition(":")[0])


def completion(
    answer: str | None, model: str = MODEL, logprobs: Any = None, finish_reason: str = "stop"
) -> dict[str, Any]:
    """A chat completion as servers send it."""
    message = {"role": "assistant", "content": answer}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}
    usage = {"prompt_tokens": 300, "completion_tokens": 12, "total_tokens": 312}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def logprobs_of(answer: str, likely: float = 0.9) -> dict[str, Any]:
    """Logprobs in OpenAI's shape: what the answer says has probability `likely`, the labels beside it share the rest
    in falling order."""
    others = {
        "Safety": ["Unsafe", "Controversial", "Safe"],
        "Categories": ["None", "Violent", "PII", "Unethical"],
        "Refusal": ["No", "Yes"],
    }
    tokens, line = [], ""
    for match in _PIECES.finditer(answer):
        piece, bare = match[0], match[0].strip()
        if bare in others:
            line = bare
        token = piece.replace(bare, _FIRST.get(bare, bare)) if bare else piece
        top = [{"token": token, "logprob": math.log(likely)}]
        if line and bare not in (line, ":", ","):
            rest = [o for o in others[line] if o != bare]
            shares = [(1 - likely) * w / sum(range(1, len(rest) + 1)) for w in range(len(rest), 0, -1)]
            top += [
                {"token": " " + _FIRST.get(o, o), "logprob": math.log(p)} for o, p in zip(rest, shares, strict=True)
            ]
        tokens.append({"token": token, "logprob": math.log(likely), "bytes": None, "top_logprobs": top})
        if token != piece:
            tokens.append({"token": piece[len(token) :], "logprob": 0.0, "bytes": None, "top_logprobs": []})
    return {"content": tokens}
