"""What a model's cache keeps: answers that passed. LangChain's caches store an answer before anybody can judge it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel

_held: ContextVar[list[tuple[BaseCache, str, str, Any]] | None] = ContextVar("guardkit_held_answers", default=None)


class HeldCache(BaseCache):
    """Another cache, whose updates wait until `holding` hears that the answer passed."""

    def __init__(self, cache: BaseCache | None = None):
        self._given = cache  # None: the application's own, as it is when it is used

    @property
    def _cache(self) -> BaseCache | None:
        return self._given or get_llm_cache()

    def lookup(self, prompt: str, llm_string: str) -> Any:
        return self._cache.lookup(prompt, llm_string) if self._cache else None

    async def alookup(self, prompt: str, llm_string: str) -> Any:
        return await self._cache.alookup(prompt, llm_string) if self._cache else None

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        held = _held.get()
        if held is not None and self._cache is not None:
            held.append((self._cache, prompt, llm_string, return_val))

    async def aupdate(self, prompt: str, llm_string: str, return_val: Any) -> None:
        self.update(prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        if self._cache is not None:
            self._cache.clear(**kwargs)


class Answers(list[tuple[BaseCache, str, str, Any]]):
    """What a call would have a cache keep."""

    def keep(self) -> None:
        for cache, *answer in self:
            cache.update(*answer)

    async def akeep(self) -> None:
        for cache, *answer in self:
            await cache.aupdate(*answer)


@contextmanager
def holding() -> Iterator[Answers]:
    """The answers that are stored in here, to be kept once they have passed."""
    answers = Answers()
    token = _held.set(answers)
    try:
        yield answers
    finally:
        _held.reset(token)


def uses_cache(model: BaseChatModel) -> bool:
    return model.cache is not False and (model.cache not in (None, True) or get_llm_cache() is not None)


def with_held_cache(model: BaseChatModel) -> BaseChatModel:
    """The same model, to be called in `holding`."""
    cache = model.cache
    return model.model_copy(update={"cache": HeldCache(cache if isinstance(cache, BaseCache) else None)})
