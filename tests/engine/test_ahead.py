"""Steps that are under way while the host goes on, as on a GPU. Here a step is over once it is begun."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from guardkit.engine.cache import Cache, ContiguousCache
from guardkit.engine.engine import Engine
from guardkit.engine.paged_cache import PagedCache
from tests.engine.test_engine import CACHES, engine_of, ids_of


def ahead_of(model: Any, cache: type[Cache], **options: Any) -> Engine:
    engine = engine_of(model, cache, **options)
    engine._ahead = True
    return engine


def alone(model: Any, ids: list[int], sizes: list[int]) -> np.ndarray:
    engine = engine_of(model, ContiguousCache)
    sequence, at, found = engine.open(), 0, []
    for n in sizes:
        found.append(engine.submit(sequence, ids[at : at + n], "response").result())
        at += n
    return np.concatenate(found)


@pytest.mark.parametrize("cache", CACHES)
def test_what_is_closed_or_cut_back_while_its_step_is_under_way_books_nothing(model: Any, cache: type[Cache]) -> None:
    engine = ahead_of(model, cache, kept_tokens=1024)
    closed, cut, stays = (engine.open() for _ in range(3))
    first, second, third = (ids_of(seed, 40) for seed in (1, 2, 3))
    with engine._loop.turn() as turn:
        engine.submit(cut, second[:20], "response")
        gone = engine.submit(closed, first, "response")
        kept = engine.submit(stays, third[:30], "response")
        turn.step()  # begun, not booked
        assert not kept.done()
        engine.close(closed)
        given_up = engine.submit(cut, second[20:], "response")
        turn.step()
        assert kept.done()
        turn.step()
        assert given_up.done() or engine.busy
        more = engine.submit(stays, third[30:], "response")
        while turn.step():
            pass
    with pytest.raises(CancelledError):
        gone.result()
    np.testing.assert_allclose(np.concatenate([kept.result(), more.result()]), alone(model, third, [30, 10]), atol=2e-3)
    engine.truncate(cut, 10)
    np.testing.assert_allclose(
        engine.submit(cut, second[10:], "response").result(), alone(model, second, [10, 30])[10:], atol=2e-3
    )
    engine.close(cut)
    engine.close(stays)
    assert not engine.busy
    assert (engine.cache.used, engine.open_sequences) == (0, 0)


def test_who_gives_up_in_flight_can_go_on_from_where_it_was(model: Any) -> None:
    engine = ahead_of(model, PagedCache)
    sequence, ids = engine.open(), ids_of(4, 30)
    engine.submit(sequence, ids[:10], "response").result()
    with engine._loop.turn() as turn:
        wasted = engine.submit(sequence, ids_of(5, 7), "response")
        turn.step()
        wasted.cancel()
        engine.truncate(sequence, 10)  # nothing that is wanted waits any more
        found = engine.submit(sequence, ids[10:], "response")
        while turn.step():
            pass
    np.testing.assert_allclose(found.result(), alone(model, ids, [10, 20])[10:], atol=2e-3)


def test_many_are_cut_into_steps_and_all_are_answered(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardkit.engine.scheduler.FIRST", 3)
    engine = ahead_of(model, PagedCache, step_sequences=5)
    ids = [ids_of(seed, 6) for seed in range(16)]
    sequences = [engine.open() for _ in ids]
    for at in range(6):
        with engine._loop.turn() as turn:
            found = [engine.submit(s, own[at : at + 1], "response") for s, own in zip(sequences, ids, strict=True)]
            while turn.step():
                pass
        rows = [one.result() for one in found]
    assert engine.counters.steps == 6 * 4  # 3, 5, 5, 3
    for own, row in zip(ids, rows, strict=True):
        np.testing.assert_allclose(row, alone(model, own, [6])[5:], atol=2e-3)


def test_a_step_that_fails_beside_others_strikes_its_own(model: Any) -> None:
    engine = ahead_of(model, ContiguousCache)
    head, faults = engine.heads["response"], [False, True]

    def failing(hidden: Any) -> Any:
        if faults and faults.pop(0):
            raise RuntimeError("a head failed")
        return head(hidden)

    engine.heads = {**engine.heads, "response": failing}
    good, bad = engine.open(), engine.open()
    ids = ids_of(6, 12)
    with engine._loop.turn() as turn:
        first = engine.submit(good, ids, "response")
        turn.step()
        second = engine.submit(bad, ids, "response")
        while turn.step():
            pass
    np.testing.assert_allclose(first.result(), alone(model, ids, [12]), atol=2e-3)
    with pytest.raises(RuntimeError, match="a head failed"):
        second.result()
    assert engine.submit(good, ids_of(7, 3), "response").result().shape[0] == 3


def test_an_interrupt_fails_what_is_under_way(model: Any) -> None:
    engine = ahead_of(model, ContiguousCache)
    sequence = engine.open()
    asked = []

    def interrupted() -> None:
        with engine._loop.turn() as turn:
            asked.append(engine.submit(sequence, ids_of(8, 9), "response"))
            turn.step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(Exception, match="interrupted"):
        asked[0].result(1)
    assert not engine.busy
    fresh = engine.open()
    assert engine.submit(fresh, ids_of(8, 9), "response").result().shape[0] == 9
