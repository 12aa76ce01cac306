"""The model contract: what a model must offer to judge queries and to judge a response token by token.

`StreamModel` is the contract of Qwen3Guard-Stream, which the embedded model shares: *query heads* read at the end of
a query, *response heads* read at every token of a response. A model says how it cuts text into tokens, how it frames
a conversation, and what its scores mean; windows longer than its context are its own business.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from guardkit.coverage import Coverage
from guardkit.loop import Turn
from guardkit.messages import Message
from guardkit.ticket import Pending
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

    @property
    def likeliest(self) -> Ints:
        """The likeliest severity (index into `SEVERITIES`) of each position."""
        found: Ints = self.severity.argmax(axis=1)
        return found

    def check(self, rows: int) -> None:
        """Raise ValueError for scores that no comparison may be trusted with: not-a-number would compare as safe."""
        if len(self.severity) != rows or len(self.category) != rows:
            raise ValueError(f"the model gave scores for {len(self.severity)} of {rows} positions")
        if not (are_finite(self.severity) and are_finite(self.category)):
            raise ValueError("the model gave scores that are not finite")

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


def are_finite(numbers: Floats) -> bool:
    """Whether all are numbers, and none is infinite. Of the few that a token has their sum tells, at a third of
    `isfinite`'s time; where it overflows, the slow way decides. (A dot product would hand the interpreter over.)"""
    if numbers.size <= 64 and math.isfinite(sum(numbers.ravel().tolist())):
        return True
    return bool(np.isfinite(numbers).all())


@dataclass(frozen=True)
class Query:
    """A text to be judged by the query heads, with the messages that came before it. early: whether it may be settled
    by less than the whole model where it is clearly harmless, for models that can."""

    text: str
    stage: Stage = Stage.prompt
    context: tuple[Message, ...] = ()
    early: bool = False


@dataclass(frozen=True)
class QueryScores:
    """The scores of a query (n = 1). start, end: the characters of the window they come from, where it was cut.
    windowed: whether the model saw only part of the text and its context at once."""

    scores: Scores
    start: int | None = None
    end: int | None = None
    windowed: bool = False


def windows(n: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """How `n` tokens or characters are cut where `room` fit: begin and end of windows that share `overlap`."""
    for begin in range(0, max(n - overlap, 1), room - overlap):
        yield begin, min(begin + room, n)


@dataclass(frozen=True)
class Limits:
    """unsafe: the least probability of "unsafe" for that severity; flagged: the least probability of "not safe" for
    "controversial"; categories: other limits of "unsafe", where the likeliest category is one of these."""

    unsafe: float
    flagged: float
    categories: Mapping[Category, float] = field(default_factory=dict)

    def of(self, severity: Severity, category: Category | None = None) -> float:
        """What the score of a verdict of this severity, and of this likeliest category, is held against."""
        if severity is not Severity.unsafe:
            return self.flagged
        return self.unsafe if category is None else self.categories.get(category, self.unsafe)


class Session(ABC):  # noqa: B024 - what it holds is its model's business
    """One response under way. Its tokens are judged by work that names it, in the order of submission; after an error
    the session is over."""

    def mark(self) -> Any:
        """Where the response is now, for `rewind`. Called, like that, while no work of the session is under way.
        Raises NotImplementedError where the session cannot be taken back."""
        raise NotImplementedError

    def rewind(self, mark: Any) -> None:
        """Forget all tokens since `mark`, which may be used again; marks made since are void."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 - a session without resources needs no code
        """Free what the session holds. Safe to call twice."""


@dataclass(frozen=True, eq=False)
class Append:
    """The next tokens of a response, to be judged each: the result is their `Scores`.

    keep: whether they stay; else they are judged as if they came next, and forgotten again.
    """

    session: Session
    tokens: Tokens
    keep: bool = True


Work = Query | Append
"""What a model is asked. A `Query` gives its windows' scores, or those of them that can matter to a policy: the worst
of each kind (a list of `QueryScores`); an `Append` gives `Scores`."""


class StreamModel(ABC):
    """A model with the Stream contract, safe to use from any thread or task.

    Work is submitted and gives futures; nothing else touches what the model holds. What waits together is judged
    together, and a batch equals one by one. A piece that fails, fails alone.
    """

    name: str
    tokenizer: Tokenizer
    query_categories: tuple[Category, ...]
    response_categories: tuple[Category, ...]
    judges_normalized_view: bool = False
    """Whether `check` should also judge a text's de-obfuscated view (for models that cannot see through it)."""
    whole_texts: bool = False
    """Whether the model judges texts of every stage whole (the Gen contract): `check` then hands responses over as
    queries, and only streams use sessions."""
    locate_queries: int | None = None
    """How many queries finding the flagged place in a text may take where the guard does not say; None: as many as it
    has sentences, in one batch."""
    coverage: Coverage | None = None
    """The languages and scripts that the model was measured on; None: whatever there is."""
    threshold: float | None = None
    """See `with_threshold`."""
    quick: bool = False
    """Whether judging a piece of a stream takes less time than handing it to a thread: event loops then do it
    themselves."""
    stride: int = 1
    """Tokens of a stream that are judged together; fewer only where a text or its reasoning ends."""
    in_flight: int = 64
    """Pieces of work that one caller should have submitted at a time: enough for full batches."""
    source: tuple[str, dict[str, Any]] | None = None
    """Name and options that `load_model` loads this model by, elsewhere too."""

    @abstractmethod
    def submit(self, works: Sequence[Work], deadline: float | None = None) -> list[Pending]:
        """Hand work over, all at once; a future of each result. Order is kept within a session.

        deadline: of `time.monotonic`; what is not begun by then ends in a TimeoutError. A future that is cancelled
        in time is not worked on. Raises `GuardkitError` once the model is closed.
        """

    @abstractmethod
    def open(self, context: Sequence[Message]) -> Session:
        """Start a response that follows `context`. Raises `Overloaded` where no more may be open."""

    @property
    def max_streams(self) -> int | None:
        """Sessions that may be open at a time; None: as many as there is memory for."""
        return None

    @property
    def categories(self) -> tuple[Category, ...]:
        """All that the model names, of queries and responses."""
        return tuple(dict.fromkeys((*self.query_categories, *self.response_categories)))

    @property
    def holders(self) -> WeakSet[Any]:
        """The guards that use this model: it is closed with the last of them."""
        found: WeakSet[Any] = vars(self).setdefault("_holders", WeakSet())
        return found

    def turn(self) -> Turn | None:
        """For a caller that will wait for what it submits: its turn at the model, where it may serve itself."""
        return None

    def judge(self, work: Work, timeout: float | None = None) -> Any:
        """Submit one piece of work and wait for its result, `timeout` seconds at the most (else a TimeoutError)."""
        turn = self.turn() if timeout is None else None
        deadline = None if timeout is None else time.monotonic() + timeout
        with turn or nullcontext():
            (future,) = self.submit([work], deadline)
            try:
                if turn is not None and turn.owned:
                    while not future.done() and turn.step():
                        pass
                    if not future.done():  # it waits for the work of others
                        turn.leave()
                return future.result(timeout)
            except TimeoutError as error:
                if deadline is None or time.monotonic() < deadline:  # the model's own
                    raise
                raise too_late(timeout) from error
            finally:
                if not future.done():
                    future.cancel()

    async def ajudge(self, work: Work, timeout: float | None = None) -> Any:
        """`judge` for an event loop, which goes on meanwhile."""
        from guardkit.awaiting import Late, bell, end_of

        deadline = None if timeout is None else time.monotonic() + timeout
        own = bell()
        own.is_alone()  # counts, whatever the answer
        with own.round:
            (future,) = self.submit([work], deadline)
        try:
            return await end_of(future, deadline, own)
        except Late as error:
            raise too_late(timeout) from error

    def close(self) -> None:  # noqa: B027 - a model without resources needs no code
        """End its thread and free its memory; what is submitted later raises `GuardkitError`. Safe to call twice."""

    def n_locate(self, locate: bool | int) -> int | None:
        """How many parts of a text may be asked about to find the place in it; None: all. locate: the guard's."""
        return self.locate_queries if locate is True else int(locate)

    def limits(self, stage: Stage) -> Limits | None:
        """The probabilities from which on a text of this stage is not safe; None: the likeliest severity is named."""
        return None if self.threshold is None else Limits(self.threshold, self.threshold)

    def with_threshold(self, least: float) -> Self:
        """This model with `least` as the limit of every severity and stage; all else is shared."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), _holders=self.holders, threshold=least)
        return twin

    def severities(self, scores: Scores, stage: Stage) -> Ints:
        """The severity (index into `SEVERITIES`) of each of n positions."""
        limits = self.limits(stage)
        if limits is None:
            return scores.likeliest
        severity = scores.severity
        out = np.zeros(len(severity), np.int64)
        out[1.0 - severity[:, 0] >= limits.flagged] = 1
        least: float | Floats = limits.unsafe
        if limits.categories:
            names = self.query_categories if stage.is_query else self.response_categories
            by_name = np.array([limits.of(Severity.unsafe, name) for name in names], np.float32)
            least = by_name[scores.category.argmax(axis=1)]
        out[severity[:, 2] >= least] = 2
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A loaded model travels by its name, and is loaded again where it arrives."""
        if self.source is None:
            return super().__reduce_ex__(protocol)
        return _load_again, (*self.source, self.threshold)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # loaded once, shared by all


def too_late(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"the model took longer than {timeout:.4g} s")


def _load_again(name: str, options: dict[str, Any], threshold: float | None) -> StreamModel:
    from guardkit.models.registry import load_model

    model = load_model(name, **options)
    return model if threshold is None else model.with_threshold(threshold)
