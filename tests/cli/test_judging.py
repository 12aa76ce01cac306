"""Batches, the cache, order, and faults."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Decision
from guardkit.testing import FakeGuard
from guardkit_cli.judging import DecisionCache, Judge
from guardkit_cli.output import Row
from guardkit_cli.records import Record


class Recorder(FakeGuard):
    """Remembers the batches that it was asked for."""

    def __init__(self, script: dict[str, Any] | None = None):
        super().__init__(script or {"BAD": "unsafe", "BOOM": RuntimeError("boom")})
        self.batches: list[list[Any]] = []

    def decide_batch(self, items: Sequence[Any], **options: Any) -> list[Decision]:
        self.batches.append(list(items))
        return super().decide_batch(items, **options)


def records(*items: Any) -> list[Record]:
    return [Record(i, item, item if isinstance(item, str) else "chat") for i, item in enumerate(items, 1)]


def judge_all(guard: FakeGuard, items: Sequence[Any], **options: Any) -> tuple[Judge, list[Row]]:
    rows: list[Row] = []
    judge = Judge(guard, rows.extend, **options)
    judge.add(records(*items))
    judge.flush()
    return judge, rows


def test_batches_are_bounded_and_order_is_kept():
    guard = Recorder()
    items = [f"text {i}" for i in range(150)]
    _, rows = judge_all(guard, items)
    assert [len(batch) for batch in guard.batches] == [64, 64, 22]
    assert [row.record.text for row in rows] == items
    assert [row.index for row in rows] == list(range(150))


def test_a_text_is_judged_once_within_and_across_batches():
    guard = Recorder()
    judge, rows = judge_all(guard, ["a", "b", "a", "BAD", "b", "BAD"] * 100, batch_size=4)
    assert sorted(text for batch in guard.batches for text in batch) == ["BAD", "a", "b"]
    assert len(rows) == 600
    assert judge.tally.blocked == 200


def test_chats_and_texts_and_broken_records_keep_their_places():
    guard = Recorder()
    bad = [{"role": "user", "content": "BAD"}]
    good = [{"role": "user", "content": "fine"}]
    _, rows = judge_all(guard, [bad, "x", None, good, "BAD", bad, "x"])
    assert [row.action for row in rows] == ["block", "allow", "block", "allow", "block", "block", "allow"]
    assert [row.judged for row in rows] == [True, True, False, True, True, True, True]


def test_a_fault_is_not_cached():
    guard = Recorder()
    judge, _ = judge_all(guard, ["BOOM", "fine"])
    judge.add(records("BOOM", "fine"))
    judge.flush()
    assert guard.batches == [["BOOM", "fine"], ["BOOM"]]
    assert judge.tally.not_judged == 2
    assert judge.tally.exit_code == 3


@pytest.mark.parametrize(("allow", "code"), [(False, 3), (True, 0)])
def test_a_guard_that_breaks_its_promise_is_not_taken_for_safe(allow, code):
    class Broken(FakeGuard):
        def decide_batch(self, items: Sequence[Any], **options: Any) -> list[Decision]:
            raise OSError("gone")

    judge, rows = judge_all(Broken(), ["a", "b"], allow_errors=allow)
    assert [row.judged for row in rows] == [False, False]
    assert "gone" in rows[0].error
    assert judge.tally.exit_code == code

    class Forgetful(FakeGuard):
        def decide_batch(self, items: Sequence[Any], **options: Any) -> list[Decision]:
            return super().decide_batch(items, **options)[:-1]

    _, rows = judge_all(Forgetful(), ["a", "b"])
    assert [row.judged for row in rows] == [False, False]


def test_the_cache_is_bounded_in_entries_and_characters():
    decision = FakeGuard().decide("x")
    cache = DecisionCache(max_entries=3, max_chars=100)
    for text in ("a", "b", "c"):
        cache.put(text, decision)
    cache.get("a")
    cache.put("d", decision)
    assert cache.get("b") is None
    assert cache.get("a") is not None
    cache.put("x" * 98, decision)
    assert len(cache) <= 3
    assert cache.get("c") is None
    cache.put("y" * 10_001, decision)
    assert cache.get("y" * 10_001) is None


def test_what_waits_is_bounded():
    emitted: list[int] = []
    judge = Judge(FakeGuard(), lambda rows: emitted.append(len(rows)))
    judge.add(records(*["same"] * 100_000))
    judge.flush()
    assert max(emitted) <= 1024
    judge.add(records(*["x" * 1_000_000 + str(i) for i in range(10)]))
    assert emitted[-2:] == [4, 4]


class Wide(Recorder):
    """Over a model that wants many pieces of work under way."""

    def __init__(self, script: dict[str, Any] | None = None, **settings: Any):
        super().__init__(script)
        self.model.in_flight = 16
        self.timeout = settings.get("timeout")


def test_a_batch_is_read_while_another_is_judged_and_rows_keep_their_order():
    second = threading.Event()

    class Patient(Wide):
        def decide_batch(self, items: Sequence[Any], **options: Any) -> list[Decision]:
            if items[0] == "0":
                assert second.wait(30)  # else the batches wait for each other
            second.set()
            return super().decide_batch(items, **options)

    _, rows = judge_all(Patient(), [str(i) for i in range(40)], batch_size=4)
    assert [row.record.text for row in rows] == [str(i) for i in range(40)]
    assert all(row.judged for row in rows)


def test_with_a_timeout_no_batch_waits_for_another():
    running: list[int] = []

    class Alone(Wide):
        def decide_batch(self, items: Sequence[Any], **options: Any) -> list[Decision]:
            running.append(1)
            assert len(running) == 1
            found = super().decide_batch(items, **options)
            running.pop()
            return found

    guard = Alone(timeout=5.0)
    _, rows = judge_all(guard, [str(i) for i in range(40)], batch_size=4)
    assert all(row.judged for row in rows)
    assert [text for batch in guard.batches for text in batch] == [str(i) for i in range(40)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "BAD", "BOOM", None, "chat", "bad chat"]), max_size=12)),
    st.integers(1, 5),
)
def test_rows_are_the_same_however_many_batches_are_under_way(reads: list[list[str | None]], batch_size: int):
    def rows_of(guard: Recorder) -> list[tuple[Any, ...]]:
        rows: list[Row] = []
        judge = Judge(guard, rows.extend, batch_size=batch_size)
        for read in reads:
            items = [[{"role": "user", "content": s[:3].upper()}] if s and "chat" in s else s for s in read]
            judge.add(records(*items))
        judge.flush()
        assert judge.tally.records == len(rows)
        return [(row.index, row.record.line, row.action, row.judged, row.error) for row in rows]

    assert rows_of(Wide()) == rows_of(Recorder())
