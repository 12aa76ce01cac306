"""An OpenAI-compatible server that goes on with an answer it did not finish.

After a rollback the kept text is sent back as the beginning of the assistant's message. Servers have their own ways to
go on from there (`CONTINUE`); those that have none can still complete a prompt that was laid out here (`render`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from guardkit.errors import GuardkitError
from guardkit.models.remote_client import ServerError
from guardkit.retokenize import SurrogateJoiner
from guardkit.rollback.local import INTROSPECTION_TEMPERATURE, as_mapping
from guardkit.rollback.result import FinishReason
from guardkit.rollback.transport import Delta, transport_of

Render = Callable[[Sequence[Mapping[str, Any]], str], str]
"""A conversation and the beginning of the answer, laid out as the model's prompt."""

CONTINUE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vllm": ({"continue_final_message": True, "add_generation_prompt": False}, {}),
    "sglang": ({"continue_final_message": True, "add_generation_prompt": False}, {}),
    "llama.cpp": ({}, {}),  # a last message of the assistant is gone on with
    "prefix": ({}, {"prefix": True}),  # DeepSeek (beta), Mistral
}
"""What stands in the request, and in its last message, to have that message continued."""
OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
"""From `owned_by` in a server's list of models."""
REFUSING = ("openai", "system", "openai-internal", "anthropic")
ECHO = 60  # characters by which an answer that began anew is recognised
_TOKENS = re.compile(r"\s*\S{1,16}|\s+")


class ServerModel:
    """One answer of a server. A delta counts as one token, a long one as several.

    client: see `Rollback.stream`. model: its name there; the server's first by default. continue_by: a key of
    `CONTINUE`; by default what the server's list of models tells, else vLLM's. render: lays a prompt out for
    /v1/completions, for a server that cannot continue a message; a transformers tokenizer with a chat template does
    too. max_tokens, stop, options: as in OpenAI's API; options are sent as they are.
    """

    def __init__(
        self,
        client: Any,
        messages: Any,
        *,
        model: str | None = None,
        continue_by: str | None = None,
        render: Render | Any = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ):
        if continue_by is not None and continue_by not in CONTINUE:
            raise ValueError(f"continue_by is one of {', '.join(CONTINUE)}, not {continue_by!r}")
        for name in ("stream", "n", "tools", "functions", "best_of", "messages", "prompt"):
            if name in options and (name != "n" or options[name] != 1):
                raise GuardkitError(
                    f"Rollback does not take '{name}': it streams one text answer that it can take back"
                )
        self._transport = transport_of(client)
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        self._messages = [dict(as_mapping(message)) for message in given]
        self._model, self._continue_by, self._render = model, continue_by, _renderer(render)
        self._options = options
        # The newer name of the same: what is left of it is asked for after a rollback, under the name that was given.
        self._limit = "max_completion_tokens" if "max_completion_tokens" in options else "max_tokens"
        self._most: int | None = options.pop("max_completion_tokens", max_tokens)
        self.stops: tuple[str, ...] = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        self._pieces: list[tuple[str, bool]] = []  # the answer so far; whether each piece is visible
        self._coming: deque[str] = deque()  # pieces that came and were not asked for yet
        self._deltas: AsyncGenerator[Delta, None] | None = None
        self._joiner = SurrogateJoiner()
        self._trim = False  # whether blanks that begin what comes next stand in the answer already
        self._kept = ""  # what the request under way goes on with
        self._begins = ""  # how that begins, while it is not known that the server does go on with it
        self._end: FinishReason | None = None

    async def reason(self) -> FinishReason:
        return self._end or "stop"

    async def next(self) -> str | None:
        """The next piece of text; None where the answer ends."""
        while not self._coming:
            if self._end is not None:
                return None
            if self._most is not None and self._n_tokens >= self._most:
                self._end = "length"
                return None
            await self._read()
        piece = self._coming.popleft()
        self._pieces.append((piece, True))
        return piece

    async def back(self, n_tokens: int, text: str, avoid: bool) -> None:
        """Keep the first `n_tokens` visible pieces, and the hidden ones between them."""
        await self._hang_up()
        n, seen = 0, 0
        while seen < n_tokens:
            seen += self._pieces[n][1]
            n += 1
        del self._pieces[n:]
        self._end = None

    async def insert(self, text: str, visible: bool) -> list[str]:
        pieces = _split(text)
        self._pieces += [(piece, visible) for piece in pieces]
        return pieces if visible else []

    async def introspect(self, asked: str, begin: str, most: int) -> str:
        other = ServerModel(
            self._transport,
            asked,
            model=self._model,
            continue_by=self._continue_by,
            render=self._render,
            max_tokens=most,
            **{**self._options, "temperature": INTROSPECTION_TEMPERATURE},
        )
        said = "".join(await other.insert(begin, True))
        try:
            while "\n" not in said.strip() and (piece := await other.next()) is not None:
                said += piece
        finally:
            await other._hang_up()
        return said.strip().split("\n")[0]

    async def close(self) -> None:
        await self._hang_up()
        await self._transport.close()

    @property
    def _n_tokens(self) -> int:
        return sum(visible for _, visible in self._pieces)

    # -- requests

    async def _read(self) -> None:
        """Take the next delta of the request under way; begin one where there is none."""
        if self._deltas is None:
            self._deltas = self._ask()
        text, ended = "", False
        while not ended and (not text or len(text) < len(self._begins)):
            delta = await self._next_delta()
            ended = delta is None or delta.reason is not None
            text += "" if delta is None else self._joiner.push(delta.text)
            if delta is not None and delta.reason is not None:
                self._end = "length" if delta.reason == "length" else "stop"
        if ended:
            self._end = self._end or "stop"
            text += self._joiner.finish()
        if self._begins and text.lstrip().startswith(self._begins):
            raise ServerError(
                "the server began its answer anew instead of going on with it: say how it continues a message "
                f"(continue_by: {', '.join(CONTINUE)}), or pass render="
            )
        self._begins = ""
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        self._coming.extend(_split(text))

    async def _next_delta(self) -> Delta | None:
        assert self._deltas is not None
        try:
            return await anext(self._deltas, None)
        except ServerError as error:
            if self._kept and error.status is not None and 400 <= error.status < 500:
                raise ServerError(
                    f"the server refuses to go on with an answer ({error}): say how it continues a message "
                    f"(continue_by: {', '.join(CONTINUE)}), or pass render= to complete a prompt instead",
                    error.status,
                ) from error
            raise

    async def _ask(self) -> AsyncGenerator[Delta, None]:
        await self._find()
        answer = "".join(piece for piece, _ in self._pieces)
        kept = answer.rstrip()  # templates strip a message: its blanks would be written twice
        self._kept, self._trim = kept, kept != answer
        # A model that reflected may well begin anew; else it is the server that does not go on.
        reflected = not all(visible for _, visible in self._pieces)
        begins = "" if reflected or self._render is not None else kept.lstrip()[:ECHO]
        self._begins = begins if len(begins) == ECHO else ""
        body = {"model": self._model, **self._options}
        if self.stops:
            body["stop"] = list(self.stops)
        if self._most is not None:
            body[self._limit] = self._most - self._n_tokens
        if self._render is not None:
            source = self._transport.deltas("completions", {**body, "prompt": self._render(self._messages, kept)})
        elif not kept:
            source = self._transport.deltas("chat/completions", {**body, "messages": self._messages})
        else:
            flags, own = CONTINUE[self._continue_by or "vllm"]
            message = {"role": "assistant", "content": kept, **own}
            source = self._transport.deltas(
                "chat/completions", {**body, "messages": [*self._messages, message], "extra": flags}
            )
        async with aclosing(source):
            async for delta in source:
                yield delta

    async def _find(self) -> None:
        """The model's name, and how its server continues a message, where the caller did not say."""
        if self._model is not None and (self._continue_by is not None or self._render is not None):
            return
        served = await self._transport.models()
        if self._model is None:
            if not served:
                raise ServerError("the server lists no models: pass model=")
            self._model = served[0][0]
        owner = dict(served).get(self._model, "").lower()
        if self._continue_by is None and self._render is None:
            if owner in REFUSING:
                raise ServerError(
                    f"this server ({owner}) continues no assistant message, so nothing can be taken back: use one that "
                    f"does ({', '.join(CONTINUE)}), or guard.astream without rollback"
                )
            self._continue_by = OWNERS.get(owner, "vllm")

    async def _hang_up(self) -> None:
        """End the request under way; what came of it and was not asked for is dropped."""
        deltas, self._deltas = self._deltas, None
        self._coming.clear()
        self._joiner = SurrogateJoiner()
        if deltas is not None:
            await deltas.aclose()


def _split(text: str) -> list[str]:
    """Pieces of about a token: deltas mostly are one, and a text that came whole is cut."""
    return _TOKENS.findall(text)


def _renderer(render: Any) -> Render | None:
    if render is None or not hasattr(render, "apply_chat_template"):
        return render  # type: ignore[no-any-return]

    def lay_out(messages: Sequence[Mapping[str, Any]], answer: str) -> str:
        return str(render.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)) + answer

    return lay_out
