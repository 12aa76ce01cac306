"""A long text that could not be done in time is refused at once; what others compute for it does not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardkit import Guard, Overloaded
from guardkit.engine.cache import ContiguousCache
from guardkit.engine.engine import Engine, Limits
from guardkit.engine.prefixes import Prefixes
from guardkit.engine.sequence import Request, Sequence
from guardkit.engine.waiting import SHORT, Waiting
from guardkit.ticket import Ticket
from tests.engine.test_engine import engine_of, ids_of

CPU = torch.device("cpu")


def asked(ids: list[int], seconds: float | None = None, sequence: Sequence | None = None) -> Request:
    deadline = None if seconds is None else time.monotonic() + seconds
    return Request(sequence or Sequence(False), ids, "response", 0, True, 0, Ticket(None, deadline))


@pytest.fixture
def waiting(model: Any) -> Waiting:
    cache = ContiguousCache(model.engine.model.config, torch.float32, CPU, 1 << 14)
    found = Waiting(Prefixes(cache, 1 << 12))
    found.took(1000, 1.0)
    return found


def refused(request: Request) -> bool:
    return request.future.done() and isinstance(request.future.exception(), Overloaded)


def test_a_text_is_refused_where_what_waits_takes_longer_than_its_time(waiting: Waiting) -> None:
    waiting.add(first := asked(ids_of(1, 5000)))
    waiting.add(in_time := asked(ids_of(2, 100), 60))
    waiting.add(late := asked(ids_of(3, 100), 2))
    assert [refused(r) for r in (first, in_time, late)] == [False, False, True]
    assert waiting.tokens == 5100
    with pytest.raises(Overloaded, match=r"takes about 5\.2 s, more than the [12]\.\d s that are left"):
        late.future.result(0)


def test_what_is_never_refused(waiting: Waiting) -> None:
    waiting.add(asked(ids_of(1, 50_000)))
    part = Sequence(False, ids=[1, 2, 3])  # a stream that goes on
    for request in (asked(ids_of(2, SHORT), 1), asked(ids_of(3, 100)), asked(ids_of(4, 100), 1, part)):
        waiting.add(request)
        assert not request.future.done()
    unknown = Waiting(Prefixes(waiting._prefixes._cache, 0))  # how fast it is
    unknown.add(asked(ids_of(1, 50_000)))
    unknown.add(request := asked(ids_of(2, 100), 0.1))
    assert not request.future.done()


def test_where_nothing_waits_a_text_is_tried_however_slow_the_last_ones_were(waiting: Waiting) -> None:
    waiting.per_s = 0.5
    waiting.add(request := asked(ids_of(1, 100), 1))
    assert not request.future.done()
    waiting.add(late := asked(ids_of(2, 100), 1))
    assert refused(late)
    waiting.remove(request)
    waiting.add(again := asked(ids_of(2, 100), 1))
    assert not again.future.done()


def test_what_texts_begin_with_alike_counts_once(waiting: Waiting) -> None:
    start = ids_of(1, 320)
    requests = [asked(start + ids_of(n, 32)) for n in range(2, 6)]
    for request in requests:
        waiting.add(request)
    assert waiting.tokens == 320 + 4 * 32
    for request in requests:
        waiting.computed(request, 10)
        waiting.remove(request)
    assert waiting.tokens == 0
    waiting.add(asked(start))
    assert waiting.tokens == 320


def test_the_fastest_steps_count_most(waiting: Waiting) -> None:
    waiting.took(10, 5.0)  # too few to tell
    waiting.took(500, 1.0)
    assert 900 < waiting.per_s < 1000
    waiting.took(2000, 1.0)
    assert waiting.per_s == 2000


class Slow:
    """A head that takes its time."""

    def __init__(self, head: Callable[[Tensor], Tensor], seconds: float):
        self._head, self._seconds = head, seconds

    def __call__(self, hidden: Tensor) -> Tensor:
        time.sleep(self._seconds)
        return self._head(hidden)


def slow_engine(model: Any, seconds: float) -> Engine:
    heads = {name: Slow(head, seconds) for name, head in model.engine.heads.items()}
    cache = ContiguousCache(model.engine.model.config, torch.float32, CPU, 1 << 15)
    return Engine(model.engine.model, heads, cache, Limits(step_tokens=96, mixed_tokens=24, max_sequences=64))


def ended(engine: Engine, texts: list[list[int]], seconds: float | None) -> list[Any]:
    deadline = None if seconds is None else time.monotonic() + seconds
    tickets = [engine.submit(engine.open(), ids, "response", deadline=deadline) for ids in texts]
    found = [ticket.exception() for ticket in tickets]
    assert engine._waiting.tokens == 0
    return found


def test_of_a_burst_the_first_are_served_and_the_last_refused_at_once(model: Any) -> None:
    engine = slow_engine(model, 0.05)
    assert ended(engine, [ids_of(n, 96) for n in range(3)], None) == [None] * 3
    texts = [ids_of(100 + n, 96) for n in range(60)]  # three seconds' work
    found = ended(engine, texts, 1.0)
    served = [error is None for error in found]
    assert any(served)
    assert served == sorted(served, reverse=True)
    assert all(isinstance(error, Overloaded | TimeoutError) for error in found if error is not None)
    assert sum(isinstance(error, Overloaded) for error in found) > sum(isinstance(e, TimeoutError) for e in found)
    engine.shut("over")


def test_what_was_dropped_or_closed_no_longer_counts(model: Any) -> None:
    engine = slow_engine(model, 0.02)
    sequences = [engine.open() for _ in range(6)]
    tickets = [engine.submit(s, ids_of(n, 96), "response") for n, s in enumerate(sequences)]
    tickets[-1].cancel()
    engine.close(sequences[-2])
    for ticket in tickets[:-2]:
        ticket.result()
    other = engine.open()
    engine.submit(other, ids_of(9, 96), "response").result()
    assert engine._waiting.tokens == 0
    engine.shut("over")


def test_a_guard_says_that_it_was_too_much(model: Any) -> None:
    own = engine_of(model)
    own._waiting.took(1000, 100.0)
    own._waiting.add(asked(ids_of(1, 1000)))
    model_of_its_own = model.__class__.__new__(model.__class__)
    model_of_its_own.__dict__.update(model.__dict__, engine=own)
    decision = Guard(model_of_its_own, timeout=0.5).decide("A text of some length. " * 40)
    assert decision.overloaded
    assert decision.action.value == "block"
