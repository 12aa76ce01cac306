"""What the training recipe of nano carries itself: templates, pairs, word lists, labels."""

from __future__ import annotations

import gzip
import importlib
import random
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from guardkit import Category
from guardkit.models.base import Query
from guardkit.models.nano import load, weights_path
from guardkit.models.nano.queries import PARTED

FOLDER = Path(__file__).parents[1] / "training" / "nano"
LANGUAGES = ("de", "en", "es", "fr")


def script(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(script("synthetic").rows(0))


def test_synthetic_rows_are_the_same_for_a_seed(rows: list[dict]) -> None:
    again = script("synthetic").rows(0)
    assert [next(again) for _ in range(200)] == rows[:200]


def test_synthetic_rows_have_every_slot_filled(rows: list[dict]) -> None:
    open_slots = Counter(
        (row["lang"], slot)
        for row in rows
        if row["source"] in ("synthetic_contrast", "synthetic_chat", "synthetic_curse")
        for slot in re.findall(r"\{[a-z_]+\}", row["prompt"])
    )
    assert not open_slots


def test_synthetic_rows_cover_languages_and_categories(rows: list[dict]) -> None:
    for language in LANGUAGES:
        mine = [row for row in rows if row["lang"] == language]
        assert {row["severity"] for row in mine} >= {"safe", "unsafe"}
        assert {c for row in mine for c in row["categories"]} == {c.value for c in Category}
        assert len({row["prompt"].lower() for row in mine}) == len(mine)


@pytest.mark.parametrize(("kind", "least"), [("pairs", 6000), ("chat", 1000), ("answers", 1000)])
def test_own_rows_are_whole(kind: str, least: int) -> None:
    rows = list(script("prepare").own_rows(kind))
    assert len(rows) >= least
    for row in rows:
        assert row["prompt"]
        assert (row["response"] is None) == (row["kind"] == "prompt")
        assert row["response"] is None or row["response"]
        assert bool(row["categories"]) <= (row["severity"] != "safe")
        assert set(row["categories"]) <= {category.value for category in Category}
    if kind == "pairs":
        assert Counter(row["severity"] for row in rows) == {"safe": len(rows) // 2, "unsafe": len(rows) // 2}
        languages = {row["lang"] for row in rows}
        assert languages >= set(LANGUAGES)
        assert len(languages) >= 40


def test_labels_are_letters_for_rows() -> None:
    labels = script("prepare").own_labels()
    assert set(labels.values()) == {"safe", "controversial", "unsafe"}
    assert len(labels) > 7000


def test_what_stands_before_a_late_harm_counts_as_safe() -> None:
    pytest.importorskip("torch")
    train = script("train")
    row = train.Row(False, [5, 6], [7] * 20, 2, (0,), 0, 1.0, False, "answers", "en")
    frames, rng = train.Frames([([], [])], [[8]], [[9] * 8]), random.Random(0)
    seen = [train.example(row, 112, rng, frames) for _ in range(200)]
    late = [e for e in seen if e.clean]
    assert 0.2 < len(late) / len(seen) < 0.5
    assert all(e.ids[e.first :] == [9] * e.clean + [7] * 20 for e in seen)
    e = late[0]
    found = train.tensors([e], "cpu")
    assert found["severity"].tolist() == [0] * e.clean + [2] * 20
    assert found["w"].sum().item() == pytest.approx(1)
    assert found["w"][: e.clean].sum().item() == pytest.approx(0.5)
    assert not found["wr"].any(), "whether the whole refuses is not known"
    plain = train.tensors([next(e for e in seen if not e.clean)], "cpu")
    assert plain["severity"].tolist() == [2] * 20
    assert plain["w"][-1] > plain["w"][:-1].sum() > 0
    assert plain["wr"].any()


def test_a_threshold_is_lowered_as_far_as_harmless_rows_allow() -> None:
    calibrate = script("calibrate")
    plain = {"xx": np.array([-3.0] * 97 + [0.3] * 3), "few": np.array([5.0] * 3)}
    none = np.array([])
    assert calibrate.lowered(1.0, none, none, plain) == pytest.approx(-2.75), "3 of 100 are as many as may be"
    plain["xx"][:1] = 0.3
    assert calibrate.lowered(1.0, none, none, plain) == pytest.approx(0.5)
    assert calibrate.lowered(1.0, np.full(50, 0.8), none, plain) == pytest.approx(1.0), "ordinary rows bound it too"
    assert calibrate.lowered(1.0, none, np.full(50, 0.6), plain) == pytest.approx(0.75), "so do hard ones"
    assert calibrate.lowered(1.0, none, none, {"few": plain["few"]}) == 1.0, "too little is known"


def test_the_graph_is_what_the_recipe_makes_of_the_weights() -> None:
    onnx = pytest.importorskip("onnx")
    made = onnx.load_from_string(script("graph").apart(weights_path()))
    assert made == onnx.load(weights_path().with_name("graph.onnx"), load_external_data=False)


def test_the_screen_is_fitted_to_windows_and_not_to_parts() -> None:
    pytest.importorskip("torch")
    nano = load(threads=1)
    text = "The bakery opens at nine, and the library at ten in the morning. " * 7
    (windows,) = script("screen").windows_of(nano, [("prompts", text)], dev=True)
    assert windows == [ids for ids, *_ in nano.windows(Query(text))]
    assert len(windows[0]) > PARTED


def test_a_threshold_stays_where_no_language_allows_a_lower_one() -> None:
    pytest.importorskip("scipy")
    lowered, none = script("calibrate").lowered, np.zeros(0)
    assert lowered(1.0, none, none, {}) == 1.0
    assert lowered(1.0, none, none, {"de": np.full(40, -3.0)}) < 1.0


def test_a_trial_takes_some_rows_and_never_the_packages_place(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make = script("make")
    source = tmp_path / "data" / "train"
    source.mkdir(parents=True)
    with gzip.open(source / "a.jsonl.gz", "wt") as out:
        out.writelines(f"{n}\n" for n in range(9))
    make.sample(tmp_path / "data", tmp_path / "few", 4)
    with gzip.open(tmp_path / "few" / "train" / "a.jsonl.gz", "rt") as lines:
        assert lines.read().split() == ["0", "1", "2", "3"]
    with pytest.raises(SystemExit):
        make.main(["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--trial", "4"])
    assert "--model" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
