"""`Labeller`: batches in the kinds that pipelines have; votes; rates."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guardkit.errors import LabelError
from guardkit.labelling import Labeller
from guardkit.labelling.judging import Judge, RateLimit
from guardkit.labelling.labels import voted
from guardkit.labelling.ray_engine import check_reachable
from guardkit.labelling.rows import Pace, Row, batches
from guardkit.testing import FakeGuard
from tests.labelling.conftest import SCRIPT, Label, read_jsonl, write_jsonl

TEXTS = ["fine", "BAD", "HMM", "BOOM", "fine"]
FOUND = ["safe", "unsafe", "controversial", None, "safe"]


def labeller(**settings: Any) -> Labeller:
    return Labeller(FakeGuard(SCRIPT), **settings)


@pytest.mark.parametrize("make", [list, lambda v: np.array(v, dtype=object), np.array])
def test_columns_in_and_the_same_kind_out(make: Any) -> None:
    batch = {"text": make(TEXTS), "n": make([1, 2, 3, 4, 5])}
    out = labeller()(batch)
    assert list(out) == ["text", "n", "guardkit"]
    assert out["text"] is batch["text"]
    assert type(out["guardkit"]) is type(batch["text"])
    assert [label["severity"] for label in out["guardkit"]] == FOUND
    assert "boom" in out["guardkit"][3]["error"]


def test_arrow_in_and_arrow_out() -> None:
    pa = pytest.importorskip("pyarrow", reason="the label extra is not installed")
    columns = {"text": pa.array(TEXTS), "none": pa.array([None] * 5, pa.string())}
    assert [v["severity"] for v in labeller()(columns)["guardkit"].to_pylist()] == FOUND
    table = labeller()(pa.table(columns))
    assert table.schema.names == ["text", "none", "guardkit"]
    assert [v["severity"] for v in table["guardkit"].to_pylist()] == FOUND


def test_nested_columns_and_missing_values() -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "BAD", "tool_calls": None}]
    batch = {"messages": np.array([np.array(chat, dtype=object), None], dtype=object), "n": np.array([np.nan, 1.0])}
    first, second = labeller()(batch)["guardkit"]
    assert (first["severity"], first["stage"]) == ("unsafe", "response")
    assert second["severity"] is None


def test_what_is_no_batch_is_an_error() -> None:
    with pytest.raises(LabelError, match="different lengths"):
        labeller()({"a": ["x"], "b": ["x", "y"]})
    with pytest.raises(LabelError, match="already"):
        labeller()({"text": ["x"], "guardkit": ["y"]})
    assert labeller()({"text": []}) == {"text": [], "guardkit": []}


def test_it_is_small_and_loads_where_it_arrives() -> None:
    made = Labeller("nano")
    assert (
        made(  # the embedded model, loaded now
            {"text": ["How do I bake bread?"]}
        )["guardkit"][0]["severity"]
        == "safe"
    )
    data = pickle.dumps(made)
    assert len(data) < 2000
    assert pickle.loads(data)({"text": ["Hello"]})["guardkit"][0]["model"] == "nano"
    assert [v["severity"] for v in pickle.loads(pickle.dumps(labeller()))({"text": TEXTS})["guardkit"]] == FOUND


def test_batches_by_tokens() -> None:
    guard = FakeGuard()
    model: Any = guard.model
    texts = [f"{i} {'x' * 400}" for i in range(10)]
    Labeller(guard, batch_tokens=210)({"text": texts})
    few = model.calls
    Labeller(guard, batch_rows=1)({"text": texts})
    assert few == 5
    assert model.calls == few + 10


def test_a_batch_takes_a_few_seconds_and_holds_what_fits_into_memory() -> None:
    now = [0.0]
    pace = Pace(1024, clock=lambda: now[0])
    told = []
    for seconds_a_row in [0.0001] * 4 + [1.0] * 3:
        n = pace.rows()
        told.append(n)
        now[0] += n * seconds_a_row
        pace.judged(n)
    assert told == [32, 128, 512, 1024, 1024, 8, 8]
    rows = [Row(i, ("x" * (1 << 21),)) for i in range(9)]
    assert [len(batch) for batch in batches([rows], lambda: 1024)] == [4, 4, 1]


# ------------------------------------------------------------------------------------------------------------ votes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["safe", "unsafe", "unsafe"], "unsafe"),
        (["safe", "safe", "unsafe"], "safe"),
        (["safe", "unsafe"], "unsafe"),
        (["safe", "controversial"], "controversial"),
        (["unsafe", "controversial", "safe"], "unsafe"),
        (["safe", "safe", "unsafe", "unsafe"], "unsafe"),
    ],
)
def test_most_decide_and_of_equally_many_the_worse(given: list[str], said: str) -> None:
    names = [f"guard {i}" for i in range(len(given))]
    labels = [{"severity": s, "action": "allow", "model": n} for s, n in zip(given, names, strict=True)]
    label = voted(labels, names)
    assert label["severity"] == said
    assert label["model"] == names[given.index(said)]
    assert [v["severity"] for v in label["votes"]] == given


def test_a_guard_that_does_not_judge_leaves_the_row_unjudged() -> None:
    judge = Judge([FakeGuard(), FakeGuard({"BOOM": RuntimeError("boom")})], ["one", "two"])
    labels = Labeller(FakeGuard()).labels(["x"])
    assert labels[0]["severity"] == "safe"
    from guardkit.labelling.rows import Reading

    (label,) = judge.labels([Reading().row(0, "BOOM")])
    assert label["severity"] is None
    assert label["error"].startswith("two: ")
    with pytest.raises(LabelError, match="names of their own"):
        Judge([FakeGuard(), FakeGuard()])


def test_votes_by_the_command(label: Label, tmp_path: Path) -> None:
    label.scripts = {"a": {"ONE": "unsafe"}, "b": {"ONE": "unsafe", "TWO": "unsafe"}, "c": {}}
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": t} for t in ("ONE", "TWO", "nil")])
    args = ["--model", "a", "--vote", "b", "--vote", "c"]
    done = label(source, "--out", tmp_path / "out.jsonl", *args)
    assert done.code == 0
    found = [r["guardkit"] for r in read_jsonl(tmp_path / "out.jsonl")]
    assert [f["severity"] for f in found] == ["unsafe", "safe", "safe"]
    assert [v["severity"] for v in found[1]["votes"]] == ["safe", "unsafe", "safe"]
    assert [v["model"] for v in found[1]["votes"]] == ["a", "b", "c"]
    again = label(source, "--out", tmp_path / "out.jsonl", "--model", "a", "--vote", "b")
    assert again.code == 2
    assert "votes" in again.err


# ------------------------------------------------------------------------------------------------------------- rate


def test_a_rate_is_kept() -> None:
    now = [0.0]
    limit = RateLimit(100, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    for _ in range(10):
        limit.wait(50)
    assert now[0] == pytest.approx(4.0)  # 500 rows at 100 a second, a second's worth at once
    now[0] += 10.0
    limit.wait(100)
    assert now[0] == pytest.approx(14.0)  # what was not used is not saved up


def test_a_ray_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        for address in (None, "auto", "local", there, f"ray://{there}"):
            check_reachable(address)
    for address in (there, f"ray://{there}"):
        with pytest.raises(LabelError, match=r"the cluster at .*127.* did not answer"):
            check_reachable(address)
