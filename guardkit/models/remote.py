"""Qwen3Guard-Gen behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`.

A query is one chat completion, judged by the chat template that the server loaded with the model. What that template
would drop is rendered so that it does not (`gen_messages`). An answer outside the grammar, an error that outlasts the
retries or an answer by another model raises: nothing is taken for safe.

A text that outgrows the server's context is judged in windows that overlap; of a long conversation before it only the
end is kept. A stream's text so far is judged whole once every `STRIDE` tokens; where it outgrows the context, its last
part.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guardkit.engine.config import PUBLISHED, Categories
from guardkit.errors import GuardkitError, ModelLoadError
from guardkit.messages import Message
from guardkit.models.base import Query, QueryScores, Scores, Session, StreamModel, Tokens, Work, windows
from guardkit.models.gen_grammar import Unparsable, gbnf, regex
from guardkit.models.gen_messages import render, shortened
from guardkit.models.remote_answer import Judged, read
from guardkit.models.remote_client import ContextTooLong, Limits, Server, ServerError, Unreachable
from guardkit.models.word_tokenizer import WordTokenizer
from guardkit.ticket import Pending
from guardkit.verdict import Category, Severity, Stage

STRIDE = 32  # tokens of a stream between two requests
MAX_TOKENS = 64  # of an answer; the longest takes about 55
TOP_LOGPROBS = 20  # what servers allow
MIN_WINDOW = 256  # characters; a server whose context has no room for these cannot judge
OVERLAP = 16  # windows share 1/OVERLAP of their characters
COLD_START = 600.0  # seconds that a server may take to load a model when it is first asked for
# Servers that take a final assistant message as one, and never continue it; llama.cpp, for one, continues it.
_TAKES_LAST = ("vllm", "sglang")


def load(
    url: str,
    *,
    model: str | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    categories: Sequence[str] | None = None,
) -> RemoteGen:
    """Connect to a server and find `model` there (may be left out where it serves one model only). categories: the
    labels that the model was trained on, where they are not Qwen3Guard's: a server does not tell.

    A key is read from the environment, GUARDKIT_API_KEY or OPENAI_API_KEY; a user and a password may stand in the
    address. `threads` is ignored. Raises `ModelLoadError` for a server that cannot be reached or has no such model.
    """
    known = PUBLISHED
    if categories is not None:
        try:
            named = tuple(Category.named(name) for name in categories)
        except ValueError as error:
            raise ModelLoadError(str(error)) from error
        known = Categories(named, named)
    server = Server(url, limits)
    try:
        found = server.run(_find(server, model, known))
    except BaseException as error:
        server.close()
        if isinstance(error, Unreachable):
            raise ModelLoadError(f"{error}; is the server running, and is this its address?") from error
        if isinstance(error, ServerError):
            raise ModelLoadError(str(error)) from error
        raise
    return RemoteGen(server, found, known)


@dataclass(frozen=True)
class Served:
    """A model as its server lists it. names: all it may answer as; owner: which software serves it, where it says so;
    max_tokens: of its context, where known."""

    name: str
    names: frozenset[str]
    owner: str = ""
    max_tokens: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Served:
        name = str(row["id"])
        meta = row.get("meta")
        size = row.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
        others = [row.get("root"), *(aliases if isinstance(aliases := row.get("aliases"), list) else ())]
        names = frozenset((name, *(n for n in others if isinstance(n, str))))
        return cls(name, names, str(row.get("owned_by")), size if isinstance(size, int) else None)


async def _find(server: Server, name: str | None, categories: Categories) -> Served:
    try:
        listing = await server.get("/models")
    except ServerError as error:
        if error.status in (None, 401, 403):
            raise
        listing = None  # not every server has a list that works
    rows = listing.get("data") if isinstance(listing, dict) else listing
    served = [Served.of(r) for r in rows if isinstance(r, dict) and r.get("id")] if isinstance(rows, list) else []
    known = f"it serves {', '.join(s.name for s in served[:8])}" if served else "it lists no models"
    if name is None:
        if len(served) == 1:
            return served[0]
        raise ModelLoadError(f"{server.where}: give model=...; {known}")
    for row in served:
        if name in row.names:
            return row
    found = Served(name, frozenset((name,)))
    if any(s.owner in (*_TAKES_LAST, "llamacpp") for s in served):
        raise ModelLoadError(f"{server.where}: no model '{name}'; {known}")
    try:  # some servers load what they do not list
        body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": MAX_TOKENS}
        read(await server.chat(body, {}, COLD_START), found.names, server.where, categories)
    except Unparsable:
        pass
    except Unreachable:
        raise
    except ServerError as error:
        said = str(error).removeprefix(f"{server.where}: ")
        raise ModelLoadError(f"{server.where}: model '{name}' does not answer ({said}); {known}") from error
    return found


class RemoteGen(StreamModel):
    """A Qwen3Guard-Gen on a server. Safe to share between threads and event loops; after a fork, the child opens
    connections of its own. The connections end with `close`, or when this object is dropped."""

    whole_texts = True
    locate_queries = 8
    stride = STRIDE

    def __init__(self, server: Server, served: Served, categories: Categories = PUBLISHED):
        self.name, self.tokenizer = served.name, WordTokenizer()
        # One order for both: an answer about a response may name what only prompts are of, and is heard.
        self.query_categories = self.response_categories = categories.all
        self._categories = categories
        own = sum(len(c.label) for c in categories.all if c.is_own)
        self._max_tokens = MAX_TOKENS + own // 2
        self._server, self._served = server, served

    def __repr__(self) -> str:
        return f"RemoteGen({self.name!r} at '{self._server.where}')"

    def submit(self, works: Sequence[Work], deadline: float | None = None) -> list[Pending]:
        """All at once, up to the limit of concurrent requests."""
        try:
            return [self._server.submit(self._answer(work, deadline)) for work in works]
        except RuntimeError as error:
            raise GuardkitError(f"{self._server.where}: {error}") from error

    def open(self, context: Sequence[Message]) -> Session:
        return _RemoteSession(self, tuple(context))

    def close(self) -> None:
        self._server.close()

    # -- in the server's event loop

    async def _answer(self, work: Work, deadline: float | None) -> list[QueryScores] | Scores:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        try:
            async with asyncio.timeout(left):
                if isinstance(work, Query):
                    return await self._judge(work)
                if not isinstance(work.session, _RemoteSession):
                    raise TypeError(f"a session of another model: {type(work.session).__name__}")
                return await work.session.judge(work.tokens, work.keep)
        except asyncio.CancelledError as error:
            if self._server.closed:
                raise GuardkitError(f"{self._server.where}: the guard was closed meanwhile") from error
            raise

    async def _judge(self, query: Query) -> list[QueryScores]:
        try:
            return [_whole(await self.ask(query))]
        except ContextTooLong:
            short = shortened(query)
        if render(short) != render(query):
            try:
                return [_whole(await self.ask(short), windowed=True)]
            except ContextTooLong:
                pass
        size = len(short.text) // 2
        if self._served.max_tokens is not None:
            size = min(size, 3 * self._served.max_tokens)
        return await self._windows(short, 0, len(short.text), size)

    async def _windows(self, query: Query, start: int, end: int, size: int) -> list[QueryScores]:
        """Judge the characters from `start` to `end` in windows of `size`; one that is still too long, in halves."""
        size = max(size, MIN_WINDOW)
        spans = windows(end - start, size, size // OVERLAP)
        found = await asyncio.gather(*(self._window(query, start + a, start + b) for a, b in spans))
        return [row for rows in found for row in rows]

    async def _window(self, query: Query, start: int, end: int) -> list[QueryScores]:
        try:
            judged = await self.ask(replace(query, text=query.text[start:end]))
        except ContextTooLong:
            if end - start > MIN_WINDOW:
                return await self._windows(query, start, end, (end - start) // 2)
            if not query.context:
                raise
            return await self._window(replace(query, context=()), start, end)
        return [replace(_whole(judged, windowed=True), start=start, end=end)]

    async def ask(self, query: Query) -> Judged:
        """One request. Raises `ServerError` or `Unparsable`."""
        messages = render(query)
        if messages[-1]["role"] == "assistant" and self._served.owner not in _TAKES_LAST:
            # The template drops it, and the server does not take the judged answer for one to be continued.
            messages.append({"role": "system", "content": ""})
        body = {"model": self.name, "messages": messages, "max_tokens": self._max_tokens, "temperature": 0, "n": 1}
        is_query = query.stage.is_query
        constraint: dict[str, Any] = {"structured_outputs": {"regex": regex(is_query, self._categories)}}
        if self._served.owner == "sglang":
            constraint = {"regex": regex(is_query, self._categories)}
        elif self._served.owner == "llamacpp":
            constraint = {"grammar": gbnf(is_query, self._categories)}
        logprobs = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        completion = await self._server.chat(body, {"constraint": constraint, "logprobs": logprobs})
        return read(completion, self._served.names, self._server.where, self._categories)


def _whole(judged: Judged, windowed: bool = False) -> QueryScores:
    return QueryScores(judged.scores, windowed=windowed)


class _RemoteSession(Session):
    """A response under way: its text so far is judged anew at each append."""

    def __init__(self, model: RemoteGen, context: tuple[Message, ...]):
        self._model = model
        self._so_far = _SoFar(context)
        self._order = asyncio.Lock()

    async def judge(self, tokens: Tokens, keep: bool) -> Scores:
        async with self._order:
            before, self._so_far = self._so_far, self._so_far.after(tokens)
            try:
                return await self._judge(tokens)
            finally:
                if not keep:
                    self._so_far = before

    def mark(self) -> _SoFar:
        return self._so_far

    def rewind(self, mark: _SoFar) -> None:
        self._so_far = mark

    async def _judge(self, tokens: Tokens) -> Scores:
        while True:
            now = self._so_far
            if not now.text.strip():
                return _repeat(_safe(len(self._model.query_categories)), len(tokens), now.windowed)
            query = Query(now.text, tokens.stage, now.context)
            try:
                judged = await self._model.ask(query)
                return _repeat(judged.scores, len(tokens), now.windowed)
            except ContextTooLong:
                context, text = shortened(query).context, now.text
                if context == now.context:
                    if len(text) > MIN_WINDOW:
                        text = text[len(text) // 2 :]  # what no longer fits was judged when it came
                    elif context:
                        context = ()
                    else:
                        raise
                self._so_far = replace(now, context=context, text=text, windowed=True)


@dataclass(frozen=True)
class _SoFar:
    """A response up to now, with think tags where its stage changed. windowed: whether its beginning is left out."""

    context: tuple[Message, ...]
    text: str = ""
    stage: Stage | None = None
    windowed: bool = False

    def after(self, tokens: Tokens) -> _SoFar:
        text, change = self.text, self.stage is not None and self.stage is not tokens.stage
        if change and self.stage is Stage.reasoning:
            opening = "" if "<think>" in text or self.windowed else "<think>"
            text = f"{opening}{text}</think>"
        elif change:
            text += "<think>"
        return replace(self, text=text + tokens.text, stage=tokens.stage)


def _safe(n_categories: int) -> Scores:
    severity = np.zeros((1, len(Severity)), np.float32)
    severity[0, 0] = 1
    return Scores(severity, np.zeros((1, n_categories), np.float32), named=())


def _repeat(scores: Scores, n: int, windowed: bool) -> Scores:
    """The same scores for each of n tokens."""
    refusal = None if scores.refusal is None else scores.refusal.repeat(n)
    severity, category = scores.severity.repeat(n, 0), scores.category.repeat(n, 0)
    return Scores(severity, category, refusal, np.full(n, windowed), scores.named)
