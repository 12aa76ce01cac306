"""`Rollback`: a guard's say in decoding, for local models and for servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from guardkit.astream import AsyncStreamGuard
from guardkit.batch import Item
from guardkit.errors import GuardkitError
from guardkit.guard import Guard
from guardkit.messages import Message, read_messages
from guardkit.rollback.local import Generation, LocalModel
from guardkit.rollback.result import Dropped, RollbackResult
from guardkit.rollback.server import ServerModel
from guardkit.rollback.steps import Answer, Call, Settings, Steps
from guardkit.rollback.words import words_for
from guardkit.verdict import Stage

BUFFER = 40
RETRIES = 5
INTROSPECTION_TOKENS = 40


class Source(Protocol):
    """What `steps` asks of a language model; a server's methods are the same, awaited."""

    def next(self) -> str | None: ...
    def reason(self) -> Any: ...
    def back(self, n_tokens: int, text: str, avoid: bool) -> None: ...
    def insert(self, text: str, visible: bool) -> list[str]: ...
    def introspect(self, asked: str, begin: str, most: int) -> str: ...


class Rollback:
    """Decodes beside a guard: the newest `buffer` tokens are held back, and taken back where the policy stops them.

    buffer: tokens that wait, and that a rollback drops. retries: rollbacks in one answer, behind which it refuses.
    introspect: whether the model writes a short criticism of what it wrote, which stands before the next try; else it
    is sampled again. show_introspection: whether that is part of the answer (and judged like it), as in the paper, or
    stays between the model and itself. introspection_tokens: its length at most; a shown one fits the buffer.
    stride: tokens between two looks of the guard, half of the buffer by default. refusal: what an answer ends with that
    cannot go on, in place of the built-in ones, for all languages or by code.

    Safe to share between threads and tasks. The guard's policy says what is stopped. The prompt is not judged here.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        buffer: int = BUFFER,
        retries: int = RETRIES,
        introspect: bool = True,
        show_introspection: bool = False,
        introspection_tokens: int = INTROSPECTION_TOKENS,
        stride: int | None = None,
        refusal: str | Mapping[str, str] | None = None,
    ):
        if not hasattr(guard, "stream"):
            raise GuardkitError(f"Rollback takes a Guard, not {type(guard).__name__}: Guard.load(...) makes one")
        stride = max(buffer // 2, 1) if stride is None else stride
        if buffer < 1 or stride < 1 or introspection_tokens < 1:
            raise ValueError(
                "buffer, stride and introspection_tokens must be at least 1, "
                f"not {buffer}, {stride} and {introspection_tokens}"
            )
        if retries < 0:
            raise ValueError(f"retries must be >= 0, not {retries}")
        self.guard, self.refusal = guard, refusal
        self.settings = Settings(buffer, retries, stride, introspect, show_introspection, introspection_tokens)

    def generate(self, model: Any, tokenizer: Any, messages: Item, **generation: Any) -> RollbackResult:
        """Answer `messages` with a transformers causal language model.

        generation: the settings of `Generation`, named as `generate` names them. Raises `GuardkitError`, before the
        first token, for a model that cannot go back; TypeError for a setting that is not known.
        """
        answer = self.iterate(model, tokenizer, messages, **generation)
        for _ in answer:
            pass
        return answer.result

    def iterate(self, model: Any, tokenizer: Any, messages: Item, **generation: Any) -> RollbackIterator:
        """`generate` as an iterator over the text that may be shown, as it comes; `.result` at its end."""
        options = Generation.read(generation)
        settings = self.settings
        hidden = 0 if settings.show_introspection else settings.retries * (settings.introspection_tokens + 16)
        source = LocalModel(model, tokenizer, messages, options, least=hidden if settings.introspect else 0)
        return RollbackIterator(self._answer(messages, source.stops, source.stage), source)

    def stream(
        self, client: Any, messages: Item, *, stage: Stage | str = Stage.response, **options: Any
    ) -> RollbackStream:
        """Answer `messages` with an OpenAI-compatible server: an async iterator over the text that may be shown, or,
        awaited, the `RollbackResult`. Nothing is sent before it is iterated over or awaited.

        client: an `AsyncOpenAI`, an `httpx.AsyncClient` with its `base_url`, or a server's address. stage: "reasoning"
        where the template leaves the answer inside its reasoning. options: those of `ServerModel`. Raises
        `ServerError` for a server that fails or continues no assistant message.
        """
        source = ServerModel(client, messages, **options)
        return RollbackStream(self._answer(messages, source.stops, Stage(stage)), source)

    def _answer(self, messages: Item, stops: tuple[str, ...], stage: Stage) -> Answer:
        context = [Message("user", messages)] if isinstance(messages, str) else read_messages(messages)
        return Answer(self.guard, self.settings, words_for(context, self.refusal), context, stops, stage)


class _UnderWay:
    """How an answer stands."""

    def __init__(self, answer: Answer, source: Any):
        self._answer, self._source = answer, source
        self._started = False

    @property
    def result(self) -> RollbackResult:
        """What there is so far; final behind the last text."""
        return self._answer.result

    @property
    def text(self) -> str:
        return self._answer.shown

    @property
    def rollbacks(self) -> int:
        return self._answer.rollbacks

    @property
    def wait_tokens(self) -> int:
        return self._answer.wait_tokens

    @property
    def refused(self) -> bool:
        return self._answer.refused

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        return tuple(self._answer.dropped)

    def _start(self) -> Steps:
        if self._started:
            raise GuardkitError("this answer was read already: call again for another one")
        self._started = True
        return self._answer.steps()


class RollbackIterator(_UnderWay):
    """Text that may be shown, from a local model. Made by `Rollback.iterate`; for one loop."""

    def __iter__(self) -> Generator[str, None, None]:
        return self._texts(self._start())

    def _texts(self, steps: Steps) -> Generator[str, None, None]:
        result: Any = None
        try:
            while (step := _advance(steps, result)) is not None:
                result = None
                if isinstance(step, str):
                    yield step
                    continue
                try:
                    result = _bound(step, self._source, self._answer.stream)()
                except Exception as error:
                    result = error
        finally:
            steps.close()
            self._source.close()


class RollbackStream(_UnderWay):
    """Text that may be shown, from a server: `async for`, or `await` for the result. Made by `Rollback.stream`."""

    def __aiter__(self) -> AsyncGenerator[str, None]:
        return self._texts(self._start())

    def __await__(self) -> Generator[Any, None, RollbackResult]:
        return self._whole().__await__()

    async def _whole(self) -> RollbackResult:
        async with aclosing(aiter(self)) as texts:
            async for _ in texts:
                pass
        return self.result

    async def _texts(self, steps: Steps) -> AsyncGenerator[str, None]:
        result: Any = None
        try:
            while (step := _advance(steps, result)) is not None:
                result = None
                if isinstance(step, str):
                    yield step
                    continue
                stream = self._answer.stream
                try:
                    call = _bound(step, self._source, AsyncStreamGuard(stream) if stream is not None else None)
                    result = await call()
                except Exception as error:
                    result = error
        finally:
            steps.close()
            await self._source.close()


def _advance(steps: Steps, result: Any) -> Call | str | None:
    """The next step; None at the end. result: of the step before, or its error."""
    try:
        return steps.throw(result) if isinstance(result, Exception) else steps.send(result)
    except StopIteration:
        return None


def _bound(call: Call, source: Any, stream: Any) -> Any:
    method = getattr(source if call.on == "source" else stream, call.name)

    def bound() -> Any | Awaitable[Any]:
        return method(*call.args, **dict(call.options))

    return bound
