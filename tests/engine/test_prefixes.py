"""What others begin with is computed once: shared between open and closed sequences, with the same results."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guardkit import Guard
from guardkit.engine.cache import GROW, Cache, ContiguousCache
from guardkit.engine.paged_cache import PAGE, PagedCache
from guardkit.engine.prefixes import BLOCK, WAIT
from tests.asking import eventually
from tests.engine.checkpoints import built, reference_logits, write_gen
from tests.engine.test_engine import CACHES, close, engine_of, feed, ids_of

KEEP = 1 << 13
WATCH = {"name": "watch", "rules": [{"action": "flag"}]}
TURNS = [
    (
        f"Turn {i}: my neighbour asked me about the garden chairs before the weekend starts, and I would like to know "
        "which of the three kinds lasts longer in the rain, since the shop wants an answer by Thursday.",
        f"The wooden ones last {i + 2} winters.",
    )
    for i in range(10)
]


def reference(folder: Path, ids: list[int]) -> np.ndarray:
    found = reference_logits(folder, ids)
    return np.concatenate([found.risk.numpy(), found.category.numpy()], 1)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_a_shared_beginning_is_computed_once_and_changes_nothing(
    model: Any, folder: Path, cache: type[Cache], closed: bool
) -> None:
    """Beginnings that end at a block, behind one, and inside a page; the first owner goes on, is cut back, or gone."""
    engine = engine_of(model, cache, kept_tokens=KEEP)
    ids = ids_of(7, 300)
    first = engine.open()
    feed(engine, first, ids, [90, 1, 30])
    if closed:
        engine.close(first)
        assert eventually(lambda: engine.cache.used == 0)
    for n in (299, 200, 2 * PAGE, PAGE, 3 * BLOCK + 5, BLOCK):
        other = [*ids[:n], *ids_of(n, 60)]
        before, shared = engine.counters.tokens, engine.counters.shared
        sequence = engine.open()
        rows = engine.submit(sequence, other, "response", read_from=n).result()
        assert (engine.counters.tokens - before, engine.counters.shared - shared) == (60, n)
        close(rows, reference(folder, other)[n:])
        engine.close(sequence)
    if not closed:
        more = ids_of(8, 40)
        close(engine.submit(first, more, "response").result(), reference(folder, [*ids, *more])[300:])
        engine.truncate(first, 100)  # into what others have in common with it
        other = engine.open()
        engine.submit(other, ids[:100]).result()
        close(engine.submit(first, more, "response").result(), reference(folder, [*ids[:100], *more])[100:])
        close(engine.submit(other, ids[100:150], "response").result(), reference(folder, ids[:150])[100:])
        engine.close(first)
        engine.close(other)
    assert eventually(lambda: (engine.cache.used, engine.open_sequences) == (0, 0))


@pytest.mark.parametrize("cache", CACHES)
def test_what_is_to_be_read_is_computed(model: Any, folder: Path, cache: type[Cache]) -> None:
    engine = engine_of(model, cache, kept_tokens=KEEP)
    ids = ids_of(9, 130)
    expected = reference(folder, ids)
    for read_from in (0, 100, 129):
        sequence = engine.open()
        close(engine.submit(sequence, ids, "response", read_from=read_from).result(), expected[read_from:])
        engine.close(sequence)
    assert engine.counters.shared == 100 + 129


@pytest.mark.parametrize("cache", CACHES)
def test_kept_tokens_make_room_for_others(model: Any, folder: Path, cache: type[Cache]) -> None:
    """The least recently used go first, before anything that is open is evicted; no more is kept than may be."""
    engine = engine_of(model, cache, capacity=512, kept_tokens=256)
    texts = [ids_of(seed, 100) for seed in range(4)]
    for text in texts:
        sequence = engine.open()
        engine.submit(sequence, text).result()
        engine.close(sequence)
    assert eventually(lambda: engine.cache.kept == 256)
    before = engine.counters.shared
    for text, known in zip(texts[::-1], (True, True, False, False), strict=True):
        sequence = engine.open()
        engine.submit(sequence, [*text, 5]).result()
        assert (engine.counters.shared - before > 0) is known
        before = engine.counters.shared
        engine.close(sequence)
    sequences = [engine.open() for _ in range(4)]
    for sequence, text in zip(sequences, texts, strict=True):
        engine.submit(sequence, text).result()
    assert engine.counters.evicted == 0
    assert engine.cache.used <= 512
    more = ids_of(50, 20)
    close(engine.submit(sequences[0], more, "response").result(), reference(folder, [*texts[0], *more])[100:])


def test_nothing_is_kept_of_what_failed_or_where_nothing_may_be(model: Any) -> None:
    engine = engine_of(model, kept_tokens=KEEP)
    engine.heads = {**engine.heads, "broken": lambda _: 1 / 0}  # type: ignore[dict-item]
    ids = ids_of(1, 100)
    sequence = engine.open()
    engine.submit(sequence, ids).result()
    with pytest.raises(ZeroDivisionError):
        engine.submit(sequence, [1], "broken").result()
    sequence = engine.open()
    engine.submit(sequence, ids).result()
    assert engine.counters.shared == 0
    engine.submit(sequence, [5] * 100, "response", keep=False).result()  # on trial: nobody finds it
    engine.submit(engine.open(), [*ids, *[5] * 100]).result()
    assert engine.counters.shared == 100
    plain = engine_of(model)
    for _ in range(2):
        sequence = plain.open()
        plain.submit(sequence, ids).result()
        plain.close(sequence)
    assert (plain.counters.shared, plain.cache.kept) == (0, 0)


@pytest.mark.parametrize("cache", CACHES)
def test_texts_that_come_together_wait_for_their_common_beginning(model: Any, folder: Path, cache: type[Cache]) -> None:
    engine = engine_of(model, cache, kept_tokens=KEEP)
    start = ids_of(3, 200)
    texts = [[*start, *ids_of(seed, 20)] for seed in range(10, 16)]
    with engine._loop.turn():  # so that they are seen together
        futures = [engine.submit(engine.open(), text, "response", read_from=210) for text in texts]
    for future, text in zip(futures, texts, strict=True):
        close(future.result(), reference(folder, text)[210:])
    assert engine.counters.tokens < 200 + 6 * 20 + 5 * WAIT


@pytest.mark.parametrize("cache", CACHES)
def test_many_threads_that_begin_alike(model: Any, folder: Path, cache: type[Cache]) -> None:
    """Under pressure: shared, copied on writing, evicted, kept and dropped, all at once."""
    engine = engine_of(model, cache, capacity=8 * GROW * 2, kept_tokens=4 * GROW)
    start = ids_of(4, 100)
    found: dict[int, bool] = {}

    def work(seed: int) -> None:
        for turn in range(4):
            ids = [*start[: 100 - 7 * (turn % 2)], *ids_of(seed * 10 + turn, 30)]
            sequence = engine.open()
            engine.submit(sequence, ids[:-30]).result()
            rows = [
                engine.submit(sequence, ids[at : at + 6], "response").result()
                for at in range(len(ids) - 30, len(ids), 6)
            ]
            engine.close(sequence)
            close(np.concatenate(rows), reference(folder, ids)[-30:])
        found[seed] = True

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert eventually(lambda: (engine.cache.used, engine.open_sequences) == (0, 0))
    engine._prefixes.clear()
    if isinstance(engine.cache, PagedCache):
        assert len(engine.cache._free) * PAGE == engine.cache.capacity
    else:
        assert isinstance(engine.cache, ContiguousCache)
        assert engine.cache.kept == 0


# -- a conversation


def chat(guard: Guard) -> tuple[int, int, list[Any]]:
    """Ten turns, each prompt checked and each answer streamed: tokens computed, tokens of the whole, verdicts."""
    engine = guard.model.engine  # type: ignore[attr-defined]
    before, verdicts, talk = engine.counters.tokens, [], list[dict[str, str]]()
    for prompt, answer in TURNS:
        talk.append({"role": "user", "content": prompt})
        verdicts.append(guard.check(talk))
        with guard.stream(talk) as stream:
            for word in answer.split(" "):
                stream.feed(word + " ")
            stream.finish()
        verdicts.append(stream.verdict)
        talk.append({"role": "assistant", "content": answer})
    return engine.counters.tokens - before, len(tokens_of(guard, talk)), verdicts


def tokens_of(guard: Guard, talk: list[dict[str, str]]) -> list[int]:
    from guardkit.messages import read_messages

    messages = read_messages(talk)
    return guard.model.frames.query(messages, "")  # type: ignore[attr-defined,no-any-return]


def test_a_chat_of_ten_turns_costs_its_tokens_once(folder: Path) -> None:
    """But for the answers: where one is under way the template has an empty think block before it, later it has not."""
    guard = Guard.load(str(folder), device="cpu", dtype="float32", policy=WATCH)
    spent, whole, verdicts = chat(guard)
    assert spent <= 1.2 * whole
    unshared = Guard.load(str(folder), device="cpu", dtype="float32", policy=WATCH)
    unshared.model.engine._prefixes.room = 0  # type: ignore[attr-defined]
    costly, _, expected = chat(unshared)
    assert costly > 8 * whole
    assert verdicts == expected
    for verdict, alone in zip(verdicts, expected, strict=True):
        for name in verdict.scores:
            assert abs(verdict.scores[name] - alone.scores[name]) < 1e-4


def test_a_prompts_check_and_the_stream_behind_it_are_one_pass(folder: Path) -> None:
    guard = Guard.load(str(folder), device="cpu", dtype="float32", policy=WATCH)
    engine = guard.model.engine  # type: ignore[attr-defined]
    prompt = TURNS[0][0] * 3
    guard.check(prompt)
    before = engine.counters.tokens
    with guard.stream(prompt) as stream:
        stream.feed("Fine. ")
        stream.finish()
    assert engine.counters.tokens - before < 16  # the scaffold, and what was fed


def test_gens_turns_share_what_they_have_in_common(root: Path) -> None:
    guard = Guard.load(str(built(root, write_gen, positions=4096)), device="cpu", dtype="float32", policy=WATCH)
    engine = guard.model.engine  # type: ignore[attr-defined]
    spent, talk, scores = [], list[dict[str, str]](), []
    for prompt, answer in TURNS[:5]:
        talk += [{"role": "user", "content": prompt}]
        before = engine.counters.tokens
        scores.append(guard.check(talk).scores)
        spent.append(engine.counters.tokens - before)
        talk += [{"role": "assistant", "content": answer}]
    assert max(spent[1:]) < 1.3 * min(spent[1:])  # not more with every turn
    engine._prefixes.room = 0
    engine._prefixes.clear()
    again = [guard.check(talk[: 2 * i + 1]).scores for i in range(5)]
    for a, b in zip(scores, again, strict=True):
        assert max(abs(a[name] - b[name]) for name in a) < 1e-4
