"""One guard on one file: what is judged, kept, counted and computed."""

from __future__ import annotations

import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guardkit.errors import EvaluationError
from guardkit.evaluation import rows, runner, sources
from guardkit.evaluation.locations import first_flag
from guardkit.evaluation.predictions import Prediction, PredictionStore, key_of
from guardkit.evaluation.runner import Settings, evaluate, exit_code
from guardkit.evaluation.sources import Source
from guardkit.evaluation.specs import Fields, Labels, load_table, read_table
from guardkit.testing import FakeGuard

SCRIPT = {"BAD": "unsafe", "HMM": "controversial", "BOOM": RuntimeError("boom")}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


def score(path: Path, guard: FakeGuard | None = None, **settings: Any):
    spec = load_table().datasets["qwen3guardtest_response_loc"] if settings.pop("locations", False) else None
    source = Source("set", spec, path, settings.pop("fields", Fields()))
    return evaluate(guard or FakeGuard(SCRIPT), "fake", "1", source, Settings(resamples=100, **settings))


MIXED = [
    {"prompt": "hello", "severity": "safe", "lang": "en"},
    {"prompt": "BAD one", "severity": "unsafe", "lang": "en", "categories": ["violent"]},
    {"prompt": "quiet", "severity": "unsafe", "lang": "de", "categories": ["pii"]},
    {"prompt": "HMM", "severity": "controversial", "lang": "de"},
    {"prompt": "hello", "response": "BAD two", "severity": "unsafe", "lang": "en", "categories": ["violent"]},
    {"prompt": "BAD asked", "response": "fine", "severity": "safe", "lang": "en"},
    {"prompt": "BAD three", "severity": "safe", "lang": "de"},
]


def test_rows_to_figures(tmp_path):
    found = score(write(tmp_path / "set.jsonl", MIXED))
    assert (found.n_rows, found.n_judged, found.n_not_judged) == (7, 7, 0)
    strict, loose = found.strict.rates, found.loose.rates
    assert (strict.tp, strict.fp, strict.fn, strict.tn) == (3, 1, 1, 2)
    assert (loose.tp, loose.fp, loose.fn, loose.tn) == (2, 1, 1, 3)
    assert (found.best_mode, found.best_f1) == ("strict", strict.f1)
    assert found.confusion == [[2, 0, 1], [0, 1, 0], [1, 0, 2]]
    assert [(f.language, f.n) for f in found.languages] == [("en", 4), ("de", 3)]
    violent = next(f for f in found.categories if f.category == "violent")
    assert (violent.n, violent.flagged, violent.named.tp) == (2, 1.0, 2)
    pii = next(f for f in found.categories if f.category == "pii")
    assert (pii.n, pii.flagged, pii.named.recall) == (1, 0.0, 0.0)
    assert [-m.number for m in found.false_alarms] == [7]
    assert [m.text for m in found.misses] == ["quiet"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_not_judged_is_counted_and_ends_with_3(tmp_path):
    records = [*MIXED, {"prompt": "BOOM", "severity": "unsafe"}, "{broken", {"severity": "safe"}, {"prompt": "x"}]
    found = score(write(tmp_path / "set.jsonl", records))
    assert (found.n_rows, found.n_judged) == (11, 7)
    assert (found.n_not_judged, found.n_unread, found.n_unlabelled) == (1, 2, 1)
    assert sum(found.errors.values()) == 3
    assert any("boom" in error for error in found.errors)
    assert exit_code([found]) == 3
    assert exit_code([score(write(tmp_path / "ok.jsonl", MIXED))]) == 0


def test_a_verdict_does_not_stop_at_controversial(tmp_path):
    row = {"prompt": "q", "response": "HMM then BAD", "severity": "unsafe"}
    found = score(write(tmp_path / "set.jsonl", [row]))
    assert found.loose.rates.tp == 1


def test_refusal_not_judged_is_told(tmp_path):
    rows = [{"prompt": "q", "response": "no", "refusal": r} for r in (True, False)]
    found = score(write(tmp_path / "set.jsonl", rows))
    assert found.strict is None
    rates = found.refusal.rates
    assert found.refusal.n_not_judged + rates.tp + rates.fp + rates.fn + rates.tn == 2


def test_each_text_is_judged_once_and_kept(tmp_path):
    path = write(tmp_path / "set.jsonl", MIXED * 3)
    cache = tmp_path / "kept" / "p.sqlite"
    guard = FakeGuard(SCRIPT)
    first = score(path, guard, cache=cache)
    calls = guard.model.calls
    again = score(path, guard, cache=cache)
    assert guard.model.calls == calls
    assert again.n_cached == 21
    assert figures_of(first) == figures_of(again)
    other = evaluate(guard, "fake", "2", Source("set", path=path), Settings(cache=cache))
    assert guard.model.calls > calls, "another revision is another model"
    assert other.n_cached == 0


def test_what_failed_is_tried_again(tmp_path):
    path = write(tmp_path / "set.jsonl", [{"prompt": "BOOM", "severity": "unsafe"}])
    cache = tmp_path / "p.sqlite"
    assert score(path, cache=cache).n_not_judged == 1
    assert score(path, FakeGuard({}), cache=cache).n_judged == 1


def figures_of(found) -> dict[str, Any]:
    return {k: v for k, v in found.to_dict().items() if k not in ("seconds", "n_cached")}


def test_stopped_in_the_middle_and_run_again(tmp_path):
    path = write(tmp_path / "set.jsonl", [{**r, "prompt": f"{r['prompt']} {i}"} for i in range(40) for r in MIXED])
    cache = tmp_path / "p.sqlite"

    class Stopped(Exception):
        pass

    def stop(columns):
        if columns.n_rows >= 100:
            raise Stopped

    settings = Settings(cache=cache, batch=20, resamples=50)
    with pytest.raises(Stopped):
        evaluate(FakeGuard(SCRIPT), "fake", "1", Source("set", path=path), settings, stop)
    resumed = evaluate(FakeGuard(SCRIPT), "fake", "1", Source("set", path=path), settings)
    whole = evaluate(FakeGuard(SCRIPT), "fake", "1", Source("set", path=path), Settings(batch=7, resamples=50))
    assert resumed.n_cached == 100
    assert figures_of(resumed) == figures_of(whole)


def test_locations(tmp_path):
    text = "fine words here. Then BAD things. And more words follow after it."
    start, end = text.index("Then"), text.index(" And")
    rows = [
        {"prompt": "q", "response": text, "severity": "unsafe", "span": [start, end]},
        {"prompt": "q", "response": "BAD before. The sentence is here.", "severity": "unsafe", "span": [12, 33]},
        {"prompt": "q", "response": "nothing found", "severity": "unsafe", "span": [0, 7]},
        {"prompt": "q", "response": "nothing marked BAD", "severity": "unsafe"},
        {"prompt": "q", "response": "harmless", "severity": "safe"},
    ]
    for cache in (None, tmp_path / "p.sqlite", tmp_path / "p.sqlite"):
        found = score(write(tmp_path / "set.jsonl", rows), cache=cache, locations=True)
        stops = found.stops["strict"]
        assert {b: n for b, n in stops.bins.items() if n} == {"Hit": 1, "Ahead": 1, "Safe": 1}
        assert (stops.n, found.n_without_location) == (3, 1)
        assert stops.within == pytest.approx(2 / 3)
        # The sentence begins at token 3, BAD is token 4: one token was out; of the missed text both were.
        assert [e.mean for e in stops.early][:2] == pytest.approx([(1 + 0 + 2) / 3, 2 / 3])
        assert (found.strict.rates.tp, found.strict.rates.tn) == (3, 1)


class Words:
    """A token for each word with the blank before it, and for each line break."""

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        starts = [m.start() for m in re.finditer(r"\n+| ?\S+", text)]
        return starts, starts


def test_sentences_in_the_tokens_of_qwens_template(tmp_path):
    # 4 + 2 of the first turn, 3 + 4 of the head of the last one: the response's tokens begin at 13.
    answer = {"role": "assistant", "content": "first second third BAD fifth"}
    row = {"message": [{"role": "user", "content": "question"}, answer], "label": "Unsafe"}
    row |= {"unsafe_start_index": 13 + 2, "unsafe_end_index": 13 + 3}
    spec = load_table().datasets["qwen3guardtest_response_loc"]
    path = write(tmp_path / f"{spec.file}.jsonl", [row])
    source = sources.find(spec, tmp_path)
    assert source.path == path
    found = evaluate(FakeGuard(SCRIPT), "fake", "1", source, Settings(qwen=Words()))
    assert (found.stops["loose"].bins["Hit"], found.n_without_location) == (1, 0)
    lost = evaluate(FakeGuard(SCRIPT), "fake", "1", source, Settings())
    assert (lost.stops["loose"].n, lost.n_without_location) == (0, 1)
    assert lost.loose.rates.tp == 1


@pytest.mark.parametrize(
    "text", ["BAD", "so BAD it is", "fine", "HMM so BAD", "<think>\nHMM a b\n</think>\n\nBAD c d", ""]
)
@pytest.mark.parametrize("debounce", [1, 2, 3])
def test_a_text_is_flagged_where_its_stream_is_stopped(text, debounce):
    item = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    for policy, mode in (("strict", "strict"), ("loose", "loose")):
        guard = FakeGuard(SCRIPT, policy=policy, debounce=debounce)
        (found,) = runner._locate_all(guard, [rows.Row(1, item, text)])
        flag = first_flag(found.levels, mode, debounce)
        with guard.stream("q") as stream:
            stream.feed(text)
            stream.finish()
        if "HMM" in text:  # a stream counts labels that differ, too, so it may be earlier
            assert flag is None or (stream.stopped and stream.verdict.token_index <= flag)
        else:
            assert (stream.verdict.token_index if stream.stopped else None) == flag


@dataclass(frozen=True)
class Generated(Source):
    """Rows that were never all in memory."""

    n: int = 0
    n_chars: int = 0

    def rows(self) -> Iterator[rows.Row]:
        for i in range(1, self.n + 1):
            text = f"{'BAD' if i % 3 == 0 else 'ok'} {i} " + "x" * self.n_chars
            yield rows.Row(i, text, text, severity=2 * (i % 2), language=("en", "de")[i % 2])

    def revision(self) -> str:
        return "generated"


def test_memory_does_not_grow_with_the_texts(tmp_path):
    guard = FakeGuard({"BAD": "unsafe"}, normalize=False)
    settings = Settings(cache=tmp_path / "p.sqlite", batch=64, resamples=10)
    evaluate(guard, "fake", "1", Generated("warm", n=64), settings)
    tracemalloc.start()
    found = evaluate(guard, "fake", "1", Generated("set", n=4000, n_chars=10_000), settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n_judged == 4000
    assert peak < 8e6, "40 MB of text went through"


# --------------------------------------------------------------------------------------------------------- readers


def test_formats_give_the_same_rows(tmp_path):
    records = [{"prompt": f"BAD, {i}\nline", "severity": ("safe", "unsafe")[i % 2], "lang": "en"} for i in range(5)]
    jsonl = write(tmp_path / "a.jsonl", records)
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(jsonl.read_bytes())
    import csv

    with (tmp_path / "c.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "severity", "lang"])
        writer.writeheader()
        writer.writerows(records)
    paths = [jsonl, tmp_path / "b.jsonl.gz", tmp_path / "c.csv"]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        pass
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet")
        paths.append(tmp_path / "d.parquet")
    first, *others = [list(Source("set", path=p).rows()) for p in paths]
    assert len(first) == 5
    assert first[1].severity == 2
    assert all(other == first for other in others)


def test_a_damaged_file_is_an_error_of_the_rows_behind_it(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"prompt": f"{i} {hash(str(i))}", "severity": "safe"}) + "\n" for i in range(20_000))
    data = gzip.compress(lines.encode())
    path.write_bytes(data[: len(data) // 2])
    found = score(path)
    assert found.n_judged > 0
    assert found.n_unread == 1
    assert exit_code([found]) == 3


def test_odd_lines_are_counted_not_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xff\xfe\n\n[1]\n"text"\nnull\n{"prompt": 3, "severity": "safe"}\n{"prompt": "x", "severity": "odd"}\n'
    )
    found = score(path)
    assert (found.n_rows, found.n_unread) == (6, 6)


@pytest.mark.parametrize(
    ("labels", "record", "severity"),
    [
        (Labels(column="y", map={"0": "safe", "1": "unsafe"}), {"y": 1}, 2),
        (Labels(column="y", map={"0": "safe", "1": "unsafe"}), {"y": 0.0}, 0),
        (Labels(column="y", map={"true": "safe", "false": "unsafe"}), {"y": True}, 0),
        (Labels(column="y"), {"y": None}, -1),
        (Labels(column="y"), {}, -1),
        (Labels(column="a.b"), {"a": {"b": "harmful"}}, 2),
        (Labels(column="a", above=1), {"a": {"x": 1, "y": 1}}, 0),
        (Labels(column="a", above=1), {"a": {"x": 1, "y": 2}}, 2),
        (Labels(columns=("a", "b")), {"a": 0, "b": 1}, 2),
        (Labels(columns=("a", "b")), {"a": 0, "b": None}, 0),
        (Labels(columns=("a", "b", "c"), majority=True), {"a": "safe", "b": "safe", "c": "unsafe"}, 0),
        (Labels(columns=("a", "b"), majority=True), {"a": "safe", "b": "unsafe"}, 2),
        (Labels(columns=("a",), majority=True, map={"safe": "safe"}, default="unsafe"), {"a": "Hate"}, 2),
        (Labels(constant="unsafe"), {}, 2),
    ],
)
def test_labels(labels, record, severity):
    row = rows.row_of(1, {"prompt": "x", **record}, Fields(severity=labels))
    assert row.error is None
    assert row.severity == severity


def test_more_than_one_row_of_a_record(monkeypatch):
    spec = load_table().datasets["saferlhf"]
    record = {"prompt": "q", "response_0": "a", "response_1": "b"}
    record |= {"is_response_0_safe": True, "is_response_1_safe": False}
    monkeypatch.setattr(sources, "hub_records", lambda _: iter([record]))
    found = list(Source("saferlhf", spec).rows())
    assert [(r.text, r.severity) for r in found] == [("a", 0), ("b", 2)]


def test_through_the_datasets_library(tmp_path):
    pytest.importorskip("datasets")
    from dataclasses import replace

    (tmp_path / "hub.csv").write_text('forbidden_prompt,category\n"BAD, very",a\nquiet,b\n')
    spec = load_table().datasets["strongreject"]
    assert spec.hub is not None
    local = replace(spec, hub=replace(spec.hub, url=str(tmp_path / "hub.csv")))
    found = evaluate(FakeGuard(SCRIPT), "fake", "1", Source(local.name, local), Settings(resamples=0))
    assert (found.n_rows, found.strict.rates.tp, found.strict.rates.fn) == (2, 1, 1)
    assert found.best_interval is None
    with pytest.raises(EvaluationError, match="--data"):
        list(Source(spec.name, replace(spec, hub=replace(spec.hub, url=str(tmp_path / "none.csv")))).rows())


def test_rows_that_a_spec_leaves_out(monkeypatch):
    spec = load_table().datasets["toxicchat"]
    records = [{"user_input": str(i), "toxicity": i % 2, "human_annotation": i < 3} for i in range(6)]
    monkeypatch.setattr(sources, "hub_records", lambda _: iter(records))
    found = list(Source("toxicchat", spec).rows())
    assert [(r.text, r.severity) for r in found if not r.left_out] == [("0", 0), ("1", 2), ("2", 0)]
    assert [(r.number, r.item) for r in found if r.left_out] == [(4, None), (5, None), (6, None)]


@pytest.mark.slow
@pytest.mark.skipif("GUARDKIT_BENCH" not in os.environ, reason="GUARDKIT_BENCH names no folder of benchmark files")
def test_every_row_of_the_benchmarks_is_read():
    for path in sorted(Path(os.environ["GUARDKIT_BENCH"]).glob("*.jsonl.gz")):
        spec = load_table().of_file(sources.stem(path))
        assert spec is not None, path
        found = list(Source(spec.name, spec, path, spec.local).rows())
        assert [r.error for r in found if r.error] == [], path
        assert any(r.is_labelled for r in found), path


# ----------------------------------------------------------------------------------------------------------- table


def test_the_table_names_what_it_needs():
    table = load_table()
    for spec in table.datasets.values():
        assert spec.kind in ("prompt", "response"), spec.name
        assert spec.metric in ("f1", "recall", "fpr", "refusal", "locations"), spec.name
        assert spec.licence, spec.name
        assert spec.file or spec.hub, spec.name
        if spec.hub:
            assert spec.hub.path or spec.hub.url
            assert all(m.severity or m.refusal for m in spec.mappings), spec.name
    for members in table.suites.values():
        assert set(members) <= table.datasets.keys()
    assert table.published.keys() <= table.datasets.keys()
    assert [p.value for p in table.published["toxicchat"] if p.model == "Qwen3Guard-Gen-4B"] == [69.5, 82.8]
    assert table.resolve("streaming")[0].has_locations
    with pytest.raises(EvaluationError, match="toxicchat"):
        table.resolve("no such set")


def test_a_table_of_ones_own():
    row = {"title": "t", "kind": "prompt", "metric": "f1", "licence": "MIT", "severity": "safe"}
    table = read_table({"version": 3, "datasets": {"a": row}})
    assert table.datasets["a"].version == 3
    assert table.datasets["a"].mappings[0].severity == Labels(constant="safe")


# ----------------------------------------------------------------------------------------------------------- store


def test_predictions_come_back_as_they_were(tmp_path):
    import numpy as np

    found = Prediction(2, 5, -1, 0.1, 0.2, 0.7, np.array([0, 1, 2], np.int8))
    key = key_of("check", None, "text \ud800")
    store = PredictionStore(tmp_path / "p.sqlite", "m")
    store.put({key: found})
    store.close()
    again = PredictionStore(tmp_path / "p.sqlite", "m").get([key, b"other"])[key]
    assert again.levels.tolist() == [0, 1, 2]
    assert (again.severity, again.refusal, again.unsafe) == (2, -1, 0.7)
    assert PredictionStore(tmp_path / "p.sqlite", "m2").get([key]) == {}


def test_a_cache_that_does_not_work_says_so(tmp_path):
    broken = tmp_path / "p.sqlite"
    broken.write_bytes(b"not a database, but long enough to be read as one" * 40)
    with pytest.raises(EvaluationError, match="--no-cache"):
        PredictionStore(broken, "m")
    assert key_of("check", None, "a") != key_of("locate", None, "a")
