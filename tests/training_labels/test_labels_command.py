"""`python -m guardkit.training.labels`: rows in, rows out, nothing lost."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guardkit.errors import LabelError
from guardkit.labelling.rows import Item
from guardkit.testing import FakeGuard
from guardkit.training.annotators import Opinion
from guardkit.training.labels import Settings, label, main
from guardkit.training.light import Light
from guardkit.verdict import Severity
from tests.training_labels.conftest import read_jsonl, write_jsonl

HARM = dict.fromkeys(("attack", "poison", "threat", "weapon"), "unsafe")


class Teacher:
    """Says what its guard's script says. asked: the texts; dies: after so many batches, as a killed process does."""

    def __init__(self, dies: int | None = None, fails: frozenset[str] = frozenset()):
        self.asked: list[str] = []
        self._left, self._fails = dies, fails

    def __call__(self, items: Sequence[Item]) -> list[Opinion]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        self.asked += map(str, items)
        return [self._one(str(item)) for item in items]

    def _one(self, text: str) -> Opinion:
        if text in self._fails:
            return Opinion(None, 0.0, "the server is away")
        return Opinion(Severity.unsafe if any(word in text for word in HARM) else Severity.safe)


def run(source: Path, out: Path, teacher: Any = None, **more: Any) -> Any:
    return label([str(source)], out, trainer=Light(vectors=False), teacher=teacher, **more)


def test_rows_come_back_with_their_columns_and_what_has_no_label_says_so(
    tmp_path: Path, planted: list[dict[str, Any]]
) -> None:
    odd = [
        {"id": "no label", "text": "row"},
        {"id": "bad label", "text": "row", "severity": "purple"},
        {"severity": "safe"},
    ]
    source = write_jsonl(tmp_path / "in.jsonl", [*planted, *odd])
    found = run(source, tmp_path / "out.jsonl")
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert len(rows) == len(planted) + 3
    for before, after in zip([*planted, *odd], rows, strict=True):
        assert {k: v for k, v in before.items() if k != "severity"}.items() <= after.items()
        assert list(after)[: len(before)] == list(before)
    assert {row["severity"] for row in rows[:-3]} == {"safe", "controversial", "unsafe"}
    assert all(row["severity_before"] == before["severity"] for row, before in zip(rows, planted, strict=False))
    assert (rows[-3]["severity"], rows[-3]["label_source"]) == (None, "none")
    assert "label_error" not in rows[-3]
    assert "purple" in rows[-2]["label_error"]
    assert rows[-2]["severity"] is None
    assert rows[-1]["label_error"]
    assert found.whole.rows == len(rows)
    assert (found.whole.no_label, found.whole.not_judged) == (1, 2)


def test_a_run_that_was_killed_goes_on_and_ends_equal(tmp_path: Path, planted: list[dict[str, Any]]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", planted)
    whole, every = Teacher(), Settings(teacher_on="all")
    run(source, tmp_path / "whole.jsonl", whole, settings=every)
    assert len(whole.asked) == len(planted)
    killed = Teacher(dies=1)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out.jsonl", killed, settings=every)
    assert not (tmp_path / "out.jsonl").exists()
    log = tmp_path / "out.jsonl.guardkit" / "teacher.jsonl"
    with log.open("ab") as file:
        file.write(b'{"row": 3, "sever')  # killed in the middle of a line
    later = Teacher()
    run(source, tmp_path / "out.jsonl", later, settings=every)
    assert sorted(killed.asked + later.asked) == sorted(whole.asked)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_a_teacher_could_not_judge_is_kept_said_and_tried_again(
    tmp_path: Path, planted: list[dict[str, Any]]
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", planted)
    run(source, tmp_path / "whole.jsonl", Teacher())
    asked = Teacher()
    run(source, tmp_path / "probe.jsonl", asked)
    fails = frozenset(asked.asked[:5])
    found = run(source, tmp_path / "out.jsonl", Teacher(fails=fails))
    assert found.whole.errors == {"teacher: the server is away": 5}
    rows = {row["text"]: row for row in read_jsonl(tmp_path / "out.jsonl")}
    for text in fails:
        assert rows[text]["severity"] == rows[text]["severity_before"]
        assert rows[text]["label_error"] == "teacher: the server is away"
    again = Teacher()
    found = run(source, tmp_path / "out.jsonl", again)
    assert set(again.asked) == fails
    assert not found.whole.not_judged
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_other_inputs_and_taken_columns_are_errors(
    tmp_path: Path, planted: list[dict[str, Any]]
) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", planted), tmp_path / "out.jsonl"
    run(source, out)
    with pytest.raises(LabelError, match=r"by\.teacher was not set and is x"):
        run(source, out, described={"teacher": "x"})
    with pytest.raises(LabelError, match="'severity_before' already: --suffix"):
        run(out, tmp_path / "second.jsonl")
    assert (
        main([str(out), "--out", str(tmp_path / "second.jsonl"), "--suffix", "_2", "--trainer", "ngrams", "--quiet"])
        == 0
    )
    second = read_jsonl(tmp_path / "second.jsonl")[0]
    assert {"severity_before", "severity_before_2"} <= set(second)
    write_jsonl(source, planted[1:])
    with pytest.raises(LabelError, match="inputs"):
        run(source, out)
    with pytest.raises(LabelError, match="it is an input"):
        run(source, source)
    with pytest.raises(LabelError, match=r"ends in \.jsonl"):
        run(source, tmp_path / "out.parquet")


def test_the_command_with_voting_guards_other_columns_and_a_compressed_output(
    tmp_path: Path, planted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"safe": "fine", "unsafe": "toxic"}
    rows = [
        {"q": row["text"], "toxicity": words[row["severity"]], "lang": "en" if i % 2 else "de"}
        for i, row in enumerate(planted)
    ]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    loaded: list[str] = []

    def load(name: str, **_: Any) -> FakeGuard:
        loaded.append(name)
        return FakeGuard({"knife": RuntimeError("boom")} if name == "c" else HARM)

    args = [str(source), "--out", str(tmp_path / "out.jsonl.gz"), "--trainer", "ngrams", "--label", "toxicity"]
    args += ["--map", "fine=safe,toxic=unsafe", "--column", "prompt=q", "--json", str(tmp_path / "found.json")]
    args += ["--report", str(tmp_path / "page.html")]
    code = main([*args, "--teacher", "a", "--teacher", "b", "--teacher", "c"], load=load)
    assert loaded == ["a", "b", "c"]
    assert code == 3  # rows with a knife were not judged
    said = capsys.readouterr()
    assert "Cohen's kappa" in said.out
    assert "by lang:" in said.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["given and teacher"]["rows"] > 0
    assert found["not_judged"] > 0
    assert "<table" in (tmp_path / "page.html").read_text()
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as file:
        labelled = [json.loads(line) for line in file]
    assert [row["q"] for row in labelled] == [row["q"] for row in rows]
    assert all(row["toxicity"] in words.values() for row in labelled)
    assert main([*args, "--map", "fine=green"]) == 2
    assert "'green' is no severity" in capsys.readouterr().err
    assert main([str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "x.jsonl")]) == 2
    (tmp_path / "file").write_text("")
    assert main([*args, "--out", str(tmp_path / "file" / "out.jsonl")]) == 3
    assert "run the same command again" in capsys.readouterr().err
