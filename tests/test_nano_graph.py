"""Passes side by side, and arithmetic that no processor's instructions change."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardkit import Guard, GuardkitError, Message, Overloaded, Stage
from guardkit.models.base import Append, Query, Scores, Tokens, Work
from guardkit.models.nano import weights_path
from guardkit.models.nano.graph import SHARE_TOKENS, Graph, Pass, shares
from guardkit.models.nano.model import Nano
from guardkit.models.nano.pace import LEAST_TOKENS, Pace
from guardkit.models.nano.queries import Queries
from guardkit.models.nano.screen import tensors
from guardkit.ticket import Ticket
from tests.asking import ask, ask_all

WORDS = ("one", "two", "three", "four")
TEXTS = [f"{'A line of a log, then a recipe for soup. ' * (n % 7)}Number {WORDS[n % 4]} {'x' * n}" for n in range(40)]


@pytest.fixture
def nano() -> Nano:
    model = Guard.load(threads=3).model
    assert isinstance(model, Nano)
    return model


@given(lengths=st.lists(st.integers(1, 192), min_size=1, max_size=80), most=st.integers(1, 9))
def test_shares_are_all_rows_in_order(lengths: list[int], most: int) -> None:
    found = shares(lengths, most)
    assert [at for share in found for at in range(share.start, share.stop)] == list(range(len(lengths)))
    assert all(lengths[share] for share in found)
    assert len(found) <= max(1, min(most, sum(lengths) // SHARE_TOKENS))


@given(lengths=st.lists(st.integers(20, 192), min_size=7, max_size=9), most=st.integers(2, 4))
def test_no_other_shares_have_a_cheaper_costliest_pass(lengths: list[int], most: int) -> None:
    def cost(cuts: Sequence[int]) -> int:
        ends = [0, *cuts, len(lengths)]
        return max((b - a) * max(lengths[a:b]) for a, b in itertools.pairwise(ends))

    n = min(most, sum(lengths) // SHARE_TOKENS)
    others = (cuts for k in range(n) for cuts in itertools.combinations(range(1, len(lengths)), k))
    assert cost([share.start for share in shares(lengths, most)][1:]) == min(map(cost, others))


def test_windows_side_by_side_score_as_alone(nano: Nano) -> None:
    queries = [Query(text) for text in TEXTS]
    nano._seen.clear()
    together = ask(nano, queries)
    assert nano._graph._helpers is not None
    for query, batched in zip(queries, together, strict=True):
        nano._seen.clear()
        for a, b in zip(ask(nano, [query])[0], batched, strict=True):
            assert np.array_equal(a.scores.severity, b.scores.severity)
            assert np.array_equal(a.scores.category, b.scores.category)


class Watched(Nano):
    """Counts the passes that run while more is read, and fails for windows that hold `poison`."""

    begun = 0
    poison = -1

    def begin_windows(self, windows: Sequence[list[int]]) -> Callable[[], list[Scores]]:
        self.begun += 1
        end = super().begin_windows(windows)

        def scores() -> list[Scores]:
            self._refuse(windows)
            return end()

        return scores

    def judge_windows(self, windows: Sequence[list[int]]) -> list[Scores]:
        self._refuse(windows)
        return super().judge_windows(windows)

    def _refuse(self, windows: Sequence[list[int]]) -> None:
        if any(self.poison in ids for ids in windows):
            raise ValueError("poison")


def many(n: int) -> list[Query]:
    """Texts of several passes, each of them twice, the second time behind all others."""
    made = [f"{WORDS[i % 4]} {WORDS[i // 4 % 4]} {WORDS[i // 16 % 4]} {WORDS[i // 64 % 4]}" for i in range(n)]
    return [Query(f"A letter to {who} of the gardeners, about soup and rain.") for who in made] * 2


def test_what_is_read_while_passes_run_scores_as_alone() -> None:
    model = Watched(weights_path().parent, threads=2)
    queries = many(240)
    tickets = model.submit(queries)
    together = [ticket.result(60) for ticket in tickets]
    assert model.begun > 2
    model._seen.clear()
    for at in range(0, len(queries), 13):
        for a, b in zip(model.judge(queries[at]), together[at], strict=True):
            assert np.array_equal(a.scores.severity, b.scores.severity)
            assert np.array_equal(a.scores.category, b.scores.category)


def test_a_window_that_fails_under_way_fails_alone() -> None:
    model = Watched(weights_path().parent, threads=2)
    (model.poison,) = model.tokenizer.encode("zebra")[0]
    queries = many(200)
    bad = {3, 77, 250}
    for at in bad:
        queries[at] = Query(f"{(at % 2 and 'a zebra') or 'the zebra'} at the gate")
    tickets = model.submit(queries)
    assert {at for at, ticket in enumerate(tickets) if ticket.exception(60) is not None} == bad
    assert model.begun > 1


def test_who_stands_behind_a_pass_under_way_learns_that_it_cannot_end_in_time() -> None:
    model = Watched(weights_path().parent, threads=2)
    pace = Pace(2)
    pace.per_s = 1.0  # tokens a second: a pass is the least there is
    sentence = "The gardeners wrote a letter about soup and rain. "
    long, short = Query(sentence * 9), Query(sentence * 8)
    counts = [len(next(model.windows(query))[0]) for query in (long, short)]
    assert counts[0] >= LEAST_TOKENS > counts[1]
    first = Ticket[Work](long, None, model)
    second = Ticket[Work](short, time.monotonic() + sum(counts) - 20, model)  # enough for itself
    queries = Queries(model, pace, lambda _: None)
    for ticket, query in ((first, long), (second, short)):
        queries.take(ticket, query)
    queries.step()
    assert isinstance(second.exception(0), Overloaded)
    assert first.result(0)
    assert model.begun == 1


def test_a_model_that_is_closed_while_passes_run_leaves_nobody_waiting() -> None:
    model = Watched(weights_path().parent, threads=2)
    tickets = model.submit(many(256))
    tickets[0].result(60)
    model.close()
    assert all(ticket.done() for ticket in tickets)
    assert {type(ticket.exception(0)) for ticket in tickets} <= {type(None), GuardkitError}


def test_passes_that_were_begun_end_in_order_and_one_that_fails_fails_by_itself() -> None:
    graph = Graph(weights_path().parent, threads=2)
    ids = np.array([[0, 300, 301, 2]], np.int64)
    good = Pass(ids, None, np.array([3]), np.array([3]))
    bad = Pass(ids, None, np.array([99]), np.array([3]))  # no such position
    first, second, third = graph.begin([good, good]), graph.begin([bad, good]), graph.begin([good])
    (one, _), (two, _) = first()
    with pytest.raises(Exception, match=r"(?i)indices|out of"):
        second()
    ((three, _),) = third()
    assert np.array_equal(one, two)
    assert np.array_equal(one, three)
    graph.free()
    ((again, _),) = graph.begin([good])()
    assert np.array_equal(one, again)


def test_where_queries_meet_keys_float32_holds_every_sum() -> None:
    """32 products of a byte and a clipped byte: whole numbers that are exact in whatever order they are added."""
    found = {name.decode(): place for name, place in tensors(weights_path().read_bytes())}
    high = np.frombuffer(weights_path().read_bytes(), np.int8, 1, found["high"][0])[0]
    assert 32 * 128 * int(high) < 2**24
    onnx = pytest.importorskip("onnx")
    nodes = onnx.load(weights_path().with_name("graph.onnx"), load_external_data=False).graph.node
    assert sum(node.op_type == "FusedMatMul" for node in nodes) == 8


def test_streams_side_by_side_score_as_alone(nano: Nano) -> None:
    context = [Message("user", "tell me a story")]
    tokens = [Tokens(Stage.response, nano.tokenizer.encode(text)[0]) for text in TEXTS]
    together = ask_all(nano, [Append(nano.open(context), each) for each in tokens])
    for each, batched in zip(tokens, together, strict=True):
        (alone,) = ask_all(nano, [Append(nano.open(context), each)])
        assert np.array_equal(alone.severity, batched.severity)
        assert np.array_equal(alone.refusal, batched.refusal)


def test_of_passes_side_by_side_one_that_fails_fails_after_the_others_ended() -> None:
    graph = Graph(weights_path().parent, threads=2)
    ids = np.array([[0, 300, 301, 2]], np.int64)
    good = Pass(ids, None, np.array([3]), np.array([3]))
    bad = Pass(ids, None, np.array([99]), np.array([3]))  # no such position
    for passes in ([good, bad], [bad, good]):
        with pytest.raises(Exception, match=r"(?i)indices|out of"):
            graph.forward(passes)
    (logits, _), (same, _) = graph.forward([good, good])
    assert np.array_equal(logits, same)


def test_the_graph_finds_its_tensors_where_they_lie_in_the_weights() -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(weights_path().with_name("graph.onnx"), load_external_data=False).graph
    data = weights_path().read_bytes()
    lies = {name.decode(): place for name, place in tensors(data)}
    outside = 0
    for tensor in graph.initializer:
        told = {entry.key: entry.value for entry in tensor.external_data}
        at, size = lies.get(tensor.name, (0, 0))
        if told:
            assert (told["location"], int(told["offset"]), int(told["length"])) == ("nano.onnx", at, size)
            outside += size
        elif tensor.raw_data:
            assert tensor.raw_data == data[at : at + size]
    assert outside > 45_000_000


def test_a_graph_beside_other_weights_is_refused(tmp_path: Path) -> None:
    folder = weights_path().parent
    shutil.copy(folder / "graph.onnx", tmp_path)
    shutil.copy(folder / "nano.onnx", tmp_path)
    assert Graph(tmp_path).window == Graph(folder).window
    with (tmp_path / "nano.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="is not the file"):
        Graph(tmp_path)


def test_no_product_of_bytes_can_overflow_where_pairs_are_added_in_16_bits() -> None:
    """Processors without VNNI multiply an unsigned byte with a signed one, and add two such products in 16 bits: the
    signed one must keep to 7 bits, or sums would differ from those of other processors."""
    data = weights_path().read_bytes()
    found = {name.decode(): data[at : at + size] for name, (at, size) in tensors(data)}
    weights = [np.frombuffer(raw, np.int8) for name, raw in found.items() if re.fullmatch(r"w\d+", name)]
    assert sum(map(len, weights)) > 14_000_000
    widest = max(int(np.abs(w.astype(np.int16)).max()) for w in weights)
    for name in ("low", "high"):  # to which keys and values are clipped
        widest = max(widest, abs(int(np.frombuffer(found[name], np.int8)[0])))
    assert 2 * 255 * widest <= 2**15 - 1
