"""A rollback together with what it decodes, sync and async alike: what chat models of frameworks are made of."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from guardkit.errors import GuardkitError
from guardkit.rollback.result import RollbackResult
from guardkit.rollback.rollback import Rollback, RollbackIterator, RollbackStream

Messages = Sequence[Mapping[str, Any]]


@dataclass
class RollbackChat:
    """Either `model` and `tokenizer` (transformers), or `client` (see `Rollback.stream`).

    options: of each answer, those of `Rollback.iterate` or `Rollback.stream`.
    """

    rollback: Rollback
    model: Any = None
    tokenizer: Any = None
    client: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.rollback, Rollback):
            raise GuardkitError(f"a Rollback is needed, as Rollback(guard), not {type(self.rollback).__name__}")
        if (self.client is None) == (self.model is None) or (self.model is None) != (self.tokenizer is None):
            raise GuardkitError("give either model= and tokenizer=, or client=")

    def texts(
        self, messages: Messages, stop: Sequence[str] | None = None, **options: Any
    ) -> Generator[str, None, RollbackResult]:
        """The text that may be shown, as it comes; returns the result. Raises `GuardkitError` for a client object:
        one belongs to an event loop; an address works in both worlds."""
        answer = self._answer(messages, stop, options)
        if isinstance(answer, RollbackIterator):
            yield from answer
        elif isinstance(self.client, str):
            yield from _in_a_thread(answer)
        else:
            raise GuardkitError("an async client is for async calls (ainvoke, astream, achat): or pass its address")
        return answer.result

    async def atexts(
        self, messages: Messages, stop: Sequence[str] | None = None, **options: Any
    ) -> AsyncGenerator[str | RollbackResult, None]:
        """The text that may be shown, as it comes, and last the result. A local model runs in threads."""
        answer = self._answer(messages, stop, options)
        if isinstance(answer, RollbackStream):
            async with aclosing(aiter(answer)) as coming:
                async for text in coming:
                    yield text
        else:
            texts = iter(answer)

            def more() -> str | None:
                return next(texts, None)

            try:
                while (said := await asyncio.to_thread(more)) is not None:
                    yield said
            finally:
                await asyncio.to_thread(texts.close)
        yield answer.result

    def _answer(
        self, messages: Messages, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> RollbackIterator | RollbackStream:
        own = {**self.options, **options}
        if self.client is None:
            if stop:
                own["stop_strings"] = list(stop)
            return self.rollback.iterate(self.model, self.tokenizer, list(messages), **own)
        if stop:
            own["stop"] = list(stop)
        return self.rollback.stream(self.client, list(messages), **own)


def _in_a_thread(answer: RollbackStream) -> Generator[str, None, None]:
    """An async answer for a caller without an event loop, or inside one that it blocks."""
    texts: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    left = threading.Event()

    async def read() -> None:
        async with aclosing(aiter(answer)) as coming:
            async for text in coming:
                texts.put(text)
                if left.is_set():
                    return

    def work() -> None:
        try:
            asyncio.run(read())
        except BaseException as error:
            texts.put(error)
        else:
            texts.put(None)

    thread = threading.Thread(target=work, name="guardkit-rollback", daemon=True)
    thread.start()
    try:
        while (text := texts.get()) is not None:
            if isinstance(text, BaseException):
                raise text
            yield text
    finally:
        left.set()
