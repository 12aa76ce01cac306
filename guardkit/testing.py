"""Test doubles: a guard that follows a script, with the real runtime around it and no model.

guard = FakeGuard({"forbidden words": "unsafe", "hmm": "controversial", "crash": RuntimeError("boom")})
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from guardkit.guard import Guard
from guardkit.messages import Message
from guardkit.models.base import Query, QueryScores, Scores, Tokens
from guardkit.models.simple import SimpleModel, SimpleSession
from guardkit.verdict import SEVERITIES, Category, Severity

Script = Mapping[str, "str | Severity | Exception"]
_WORD = re.compile(r"\S{1,48}")
_LEVELS = np.where(np.eye(3, dtype=bool), 0.9, 0.05).astype(np.float32)
"""The scores of each severity."""


@cache
def _one(level: int, category: int, categories: int) -> Scores:
    """The scores of one position, which all that are alike share."""
    severity, row = _LEVELS[[level]], np.zeros((1, categories), np.float32)
    row[0, category] = 1.0
    refusal = np.zeros(1, np.float32)
    for numbers in (severity, row, refusal):
        numbers.setflags(write=False)
    return Scores(severity, row, refusal)


class FakeTokenizer:
    """A token is a word; ids index the words met so far."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        ids, starts = [], []
        for match in _WORD.finditer(text):
            if match[0] not in self._ids:
                self._ids[match[0]] = len(self.words)
                self.words.append(match[0])
            ids.append(self._ids[match[0]])
            starts.append(match.start())
        return ids, starts

    def stable_chars(self, text: str) -> int:
        run = len(text) - len(text.rstrip()) if text[-1:].isspace() else 0
        if run:
            return len(text)
        last = max((i for i, c in enumerate(text) if c.isspace()), default=-1) + 1
        return len(text) - (len(text) - last) % 48


class FakeModel(SimpleModel):
    """Finds the script's keys, ignoring case and runs of white space.

    A query is as bad as the worst key in it. A response is as bad as the worst key completed so far, at the token that
    completes it and at all later ones. An exception in the script is raised when its key is met. `delay`: seconds
    that every call takes. `calls` counts model calls.
    """

    name = "fake"
    tokenizer: FakeTokenizer
    query_categories: tuple[Category, ...] = tuple(Category)
    response_categories: tuple[Category, ...] = tuple(Category)[:8]

    def __init__(self, script: Script, category: Category = Category.violent, delay: float = 0.0):
        self._script = {" ".join(k.lower().split()): v for k, v in script.items()}
        self.longest = max((len(k) for k in self._script), default=0)
        self.tokenizer = FakeTokenizer()
        self._delay = delay
        if category.is_own:  # as of a model that was trained on others
            self.query_categories = self.response_categories = (*Category, category)
        self._category = self.query_categories.index(category)
        self.quick = not delay and type(self) is FakeModel  # what a subclass does may take its time
        self.calls = 0
        super().__init__()

    def level(self, text: str, start: int = 0) -> int:
        """The severity (as an index) of the keys that end after `start`. Raises what the script says."""
        worst = 0
        for key, found in self._script.items():
            if text.find(key, max(0, start - len(key) + 1)) >= 0:
                if isinstance(found, Exception):
                    raise found
                worst = max(worst, SEVERITIES.index(Severity(found)))
        return worst

    def scores(self, levels: Sequence[int], categories: int) -> Scores:
        if len(levels) == 1:
            return _one(levels[0], self._category % categories, categories)
        severity = _LEVELS[list(levels)]
        category = np.zeros((len(levels), categories), np.float32)
        category[:, self._category % categories] = 1.0
        return Scores(severity, category, np.zeros(len(levels), np.float32))

    def called(self) -> None:
        self.calls += 1
        if self._delay:
            time.sleep(self._delay)

    def query(self, queries: Sequence[Query]) -> list[list[QueryScores]]:
        self.called()
        n = len(self.query_categories)
        return [[QueryScores(self.scores([self.level(" ".join(q.text.lower().split()))], n))] for q in queries]

    def open(self, context: Sequence[Message]) -> SimpleSession:
        return _FakeSession(self)


class _FakeSession(SimpleSession):
    def __init__(self, model: FakeModel):
        self._model, self._tail, self._worst = model, "", 0

    def append(self, tokens: Tokens) -> Scores:
        self._model.called()
        levels = []
        for i in tokens.ids:
            start = len(self._tail)
            self._tail = f"{self._tail} {self._model.tokenizer.words[i].lower()}".lstrip()
            self._worst = max(self._worst, self._model.level(self._tail, start))
            levels.append(self._worst)
            self._tail = self._tail[-self._model.longest - 1 :] if self._model.longest else ""
        return self._model.scores(levels, len(self._model.response_categories))

    def peek(self, tokens: Tokens) -> Scores:
        before = self._tail, self._worst
        try:
            return self.append(tokens)
        finally:
            self._tail, self._worst = before

    def mark(self) -> tuple[str, int]:
        return self._tail, self._worst

    def rewind(self, mark: tuple[str, int]) -> None:
        self._tail, self._worst = mark


class FakeGuard(Guard):
    """A `Guard` over a `FakeModel`. `debounce` is 1 here unless given, so that one scripted word is enough."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        category: Category = Category.violent,
        delay: float = 0.0,
        **settings: Any,
    ):
        settings.setdefault("debounce", 1)
        super().__init__(FakeModel(script or {}, category, delay), **settings)


__all__ = ["FakeGuard", "FakeModel", "FakeTokenizer"]
