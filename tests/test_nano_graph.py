"""Passes side by side, and arithmetic that no processor's instructions change."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardkit import Guard, Message, Stage
from guardkit.models.base import Append, Query, Tokens
from guardkit.models.nano import weights_path
from guardkit.models.nano.graph import SHARE_TOKENS, Graph, Pass, shares
from guardkit.models.nano.model import Nano
from guardkit.models.nano.screen import tensors
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
