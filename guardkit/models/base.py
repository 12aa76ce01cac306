"""The model contract: what a model must offer to judge queries and to judge a response token by token.

`StreamModel` is the contract of Qwen3Guard-Stream, which the embedded model shares: *query heads* read at the end of
a query, *response heads* read at every token of a response. A model says how it cuts text into tokens, how it frames
a conversation, and what its scores mean; windows longer than its context are its own business.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from guardkit.coverage import Coverage
from guardkit.messages import Message
from guardkit.verdict import Category, Severity, Stage

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Tokenizer(Protocol):
    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and the index in `text` of each token's first character; both of the same length."""

    def stable_chars(self, text: str) -> int:
        """The length of a prefix of `text` that no later text can re-tokenise.

        Encoding that prefix and the rest apart must give what encoding the whole gives; the rest is bounded,
        whatever the text.
        """


@dataclass(frozen=True)
class Tokens:
    """Consecutive tokens of one stage. starts: the index of each one's first character in the response; text: what
    they were made from, the blanks around them included; end: the index in the response where `text` ends."""

    stage: Stage
    ids: Sequence[int]
    starts: Sequence[int] = ()
    text: str = ""
    end: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, n: int) -> tuple[Tokens, Tokens]:
        """The first `n` tokens, and the rest; `text` is cut where token `n` starts."""
        at = self.starts[n] - self.starts[0] if n < len(self) else len(self.text)
        return (
            Tokens(self.stage, self.ids[:n], self.starts[:n], self.text[:at], self.end - len(self.text) + at),
            Tokens(self.stage, self.ids[n:], self.starts[n:], self.text[at:], self.end),
        )

    def __add__(self, other: Tokens) -> Tokens:
        ids, starts = [*self.ids, *other.ids], [*self.starts, *other.starts]
        return Tokens(self.stage, ids, starts, self.text + other.text, other.end)

    def end_of(self, i: int) -> int:
        """Where token `i` ends, the next one's start at the latest; at least one character."""
        end = self.starts[i + 1] if i + 1 < len(self) else self.end
        return max(end, self.starts[i] + 1)


@dataclass(frozen=True)
class Scores:
    """Probabilities for n positions: severity [n, 3] in the order of `SEVERITIES`, category [n, c] in the order of
    the model's categories, refusal [n] (None where the model has no such head). windowed [n]: whether the model saw
    only part of what came before (None: it saw all). named: the categories of all n positions where the model names
    them itself (most likely first); else they are taken from the scores."""

    severity: Floats
    category: Floats
    refusal: Floats | None = None
    windowed: NDArray[np.bool_] | None = None
    named: tuple[Category, ...] | None = None

    def __len__(self) -> int:
        return len(self.severity)

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        if len(parts) == 1:
            return parts[0]
        refusal = [p.refusal for p in parts if p.refusal is not None]
        return Scores(
            np.concatenate([p.severity for p in parts]),
            np.concatenate([p.category for p in parts]),
            np.concatenate(refusal) if len(refusal) == len(parts) else None,
            np.concatenate([np.zeros(len(p), bool) if p.windowed is None else p.windowed for p in parts]),
        )


@dataclass(frozen=True)
class Query:
    """A text to be judged by the query heads, with the messages that came before it."""

    text: str
    stage: Stage = Stage.prompt
    context: tuple[Message, ...] = ()


@dataclass(frozen=True)
class QueryScores:
    """The scores of a query (n = 1). start, end: the characters of the window they come from, where it was cut.
    windowed: whether the model saw only part of the text and its context at once."""

    scores: Scores
    start: int | None = None
    end: int | None = None
    windowed: bool = False


@dataclass(frozen=True)
class Limits:
    """unsafe: the least probability of "unsafe" for that severity; flagged: the least probability of "not safe" for
    "controversial"."""

    unsafe: float
    flagged: float

    def of(self, severity: Severity) -> float:
        """What the score of a verdict of this severity is held against."""
        return self.unsafe if severity is Severity.unsafe else self.flagged


class Session(ABC):
    """One response under way: everything fed so far is in the model's cache. Not for use by two threads at once."""

    @abstractmethod
    def append(self, tokens: Tokens) -> Scores:
        """Judge the next tokens of the response; scores of each of them. After an error the session is over."""

    @abstractmethod
    def peek(self, tokens: Tokens) -> Scores:
        """Judge tokens as if they came next, and forget them again."""

    native_async: bool = False
    """Whether `aappend` takes no thread while it waits."""

    async def aappend(self, tokens: Tokens) -> Scores:
        """`append` for an event loop. Models whose streams wait in great numbers override it."""
        import asyncio  # heavy, and only an event loop needs it

        return await asyncio.to_thread(self.append, tokens)

    def close(self) -> None:  # noqa: B027 - a session without resources needs no code
        """Free what the session holds. Safe to call twice."""


class StreamModel(ABC):
    """A model with the Stream contract. Must be safe to use from several threads."""

    name: str
    tokenizer: Tokenizer
    query_categories: tuple[Category, ...]
    response_categories: tuple[Category, ...]
    judges_normalized_view: bool = False
    """Whether `check` should also judge a text's de-obfuscated view (for models that cannot see through it)."""
    whole_texts: bool = False
    """Whether the model judges texts of every stage whole (the Gen contract): `check` then hands responses to `query`,
    and only streams use sessions."""
    locate_queries: int | None = None
    """How many queries finding the flagged place in a text may take where the guard does not say; None: as many as it
    has sentences, in one batch."""
    coverage: Coverage | None = None
    """The languages and scripts that the model was measured on; None: whatever there is."""
    threshold: float | None = None
    """See `with_threshold`."""
    stride: int = 1
    """Tokens of a stream that are judged together; fewer only where a text or its reasoning ends."""

    @abstractmethod
    def query(self, queries: Sequence[Query]) -> Sequence[list[QueryScores] | Exception]:
        """Judge whole queries, all of each text, in batches. Order is kept; a batch equals one by one.

        Gives each query's windows, or those of them that can matter to a policy: the worst of each kind. A query that
        fails alone may be given as its error; where the call itself raises, its queries are tried one by one.
        """

    @abstractmethod
    def open(self, context: Sequence[Message]) -> Session:
        """Start a response that follows `context`."""

    def append_batch(self, work: Sequence[tuple[Session, Tokens]]) -> list[Scores]:
        """`append` for many sessions at once. Models that can share a forward pass override it."""
        return [session.append(tokens) for session, tokens in work]

    def limits(self, stage: Stage) -> Limits | None:
        """The probabilities from which on a text of this stage is not safe; None: the likeliest severity is named."""
        return None if self.threshold is None else Limits(self.threshold, self.threshold)

    def with_threshold(self, least: float) -> Self:
        """This model with `least` as the limit of every severity and stage; weights and caches are shared."""
        twin = copy.copy(self)
        twin.threshold = least
        return twin

    def severities(self, scores: Floats, stage: Stage) -> Ints:
        """The severity (index into `SEVERITIES`) of each row of `scores` [n, 3]."""
        limits = self.limits(stage)
        if limits is None:
            return np.asarray(np.argmax(scores, axis=1), np.int64)
        out = np.zeros(len(scores), np.int64)
        out[1.0 - scores[:, 0] >= limits.flagged] = 1
        out[scores[:, 2] >= limits.unsafe] = 2
        return out
