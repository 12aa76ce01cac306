"""`python -m guardkit.training.tokens`: from which character on answers are unsafe, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guardkit.errors import LabelError
from guardkit.labelling.judging import Judge
from guardkit.testing import FakeGuard
from guardkit.training.boundary import units
from guardkit.training.continuing import Continued, Ensemble, Prefix
from guardkit.training.token_search import Finder, Rule
from guardkit.training.tokens import Report, label_tokens, main, so_far
from tests.training_labels.conftest import read_jsonl, write_jsonl

SCRIPT: dict[str, Any] = {"venom": "unsafe", "trick": "controversial"}


class Writer:
    """Goes on as the answer began: once "recipe" was said, `share` of the continuations come to "venom". seen: what was
    asked; dies: after so many calls, as a killed process does; fails: prefixes with this word."""

    name = "writer"

    def __init__(self, share: float = 1.0, dies: int | None = None, fails: str = "\0"):
        self.seen: list[Prefix] = []
        self._share, self._left, self._fails = share, dies, fails

    def continuations(self, prefixes: Sequence[Prefix]) -> list[Continued | Exception]:
        found: list[Continued | Exception] = []
        for prefix in prefixes:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise KeyboardInterrupt
            self.seen.append(prefix)
            if self._fails in prefix.text:
                found.append(ConnectionError("the server is away"))
                continue
            bad = round(self._share * prefix.k) if "recipe" in prefix.text else 0
            texts = [" and venom" if i < bad else " and bread" for i in range(prefix.k)]
            found.append(Continued(tuple(texts), 1, 2 * prefix.k))
        return found


def answer(words: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "How?", "response": words, "severity": "unsafe", **more}


def finder(
    llm: Any = None, judge: dict[str, Any] | None = None, script: dict[str, Any] | None = None, **rule: Any
) -> Finder:
    """judge: the script of the judge of prefixes; without one it agrees from "recipe" on."""
    others = Judge([FakeGuard(judge if judge is not None else {**SCRIPT, "recipe": "unsafe"})])
    return Finder(
        llm or Writer(), Judge([FakeGuard(SCRIPT if script is None else script)]), others, Rule(**rule), at_once=3
    )


TEXT = "First take the old  recipe and then stir it well for an hour until the venom is strong"
ROWS: list[dict[str, Any]] = [
    answer(TEXT, id=1, lang="en"),
    answer("All of it is harmless", id=2),
    answer("Bread", id=3, severity="safe"),
    answer("Bread", id=4, severity=None),
    {"text": "a prompt", "severity": "unsafe", "id": 5},
    answer("  ", id=6),
    answer("A slow trick in a recipe with a trick and so on and on", id=7, severity="controversial"),
    answer("x", id=8, severity="purple"),
]  # fmt: skip


def run(
    tmp_path: Path, found: Finder, rows: Sequence[Any] = ROWS, out: str = "out.jsonl", **more: Any
) -> tuple[Report, list[Any]]:
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    report = label_tokens([str(source)], tmp_path / out, found, **more)
    return report, read_jsonl(tmp_path / out)


def test_each_row_comes_back_with_its_boundary_or_why_it_has_none(tmp_path: Path) -> None:
    report, rows = run(tmp_path, finder())
    assert [{k: v for k, v in row.items() if not k.startswith("unsafe_")} for row in rows] == ROWS
    assert [row["unsafe_from_status"] for row in rows] == [
        "found", "not confirmed", "safe", "no label", "no answer", "no answer", "found", "not judged",
    ]  # fmt: skip
    assert [row["unsafe_from"] for row in rows] == [TEXT.index("recipe"), None, None, None, None, None, 7, None]
    assert rows[6]["response"][7:12] == "trick"
    assert rows[0]["unsafe_from_monotone"] is True
    assert "purple" in rows[7]["unsafe_from_error"]
    assert report.statuses["found"] == 2
    assert report.odd == 0


@pytest.mark.parametrize(
    "text", ["\n  A recipe, with venom", "<think>A recipe</think>\n\nA recipe with venom", "配方 recipe 毒 venom"]
)
def test_offsets_are_into_the_answer_as_it_stands(tmp_path: Path, text: str) -> None:
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": text}]
    _, rows = run(tmp_path, finder(), [answer(text), {"messages": messages, "severity": "unsafe"}])
    assert [row["unsafe_from"] for row in rows] == [text.index("recipe")] * 2


def test_bisection_finds_what_testing_every_prefix_finds_at_a_fraction_of_the_calls(tmp_path: Path) -> None:
    rows = [answer(f"{'word ' * n} recipe {'more ' * (60 - n)} venom") for n in range(0, 60, 7)]
    every, few = Writer(), Writer()
    report, whole = run(tmp_path, finder(every, bisects=False), rows, "every.jsonl")
    quick, found = run(tmp_path, finder(few, verify=0), rows, "few.jsonl")
    assert [row["unsafe_from"] for row in found] == [row["unsafe_from"] for row in whole]
    assert all(row["response"][row["unsafe_from"] :].startswith("recipe") for row in found)
    assert quick.cost.prefixes < report.cost.prefixes / 3
    assert quick.cost.llm_calls == len(few.seen)
    assert quick.cost.llm_tokens == 2 * 8 * len(few.seen)
    assert quick.cost.guard_texts == 8 * len(few.seen) + len(rows)
    assert quick.cost.units == sum(len(units(row["response"])) for row in rows)
    # What the judge finds safe is not continued.
    assert all("recipe" in prefix.text for prefix in few.seen)


@pytest.mark.parametrize(
    ("k", "share", "found"), [(20, 0.85, True), (20, 0.8, False), (8, 0.875, True), (8, 0.75, False)]
)
def test_at_least_85_percent_of_the_continuations_must_not_be_safe(
    tmp_path: Path, k: int, share: float, found: bool
) -> None:
    _, rows = run(tmp_path, finder(Writer(share), k=k), [answer(TEXT)])
    # With too few of them only what holds "venom" itself is unsafe.
    assert rows[0]["unsafe_from"] == TEXT.index("recipe" if found else "venom")


def test_the_judge_of_prefixes_must_agree_and_the_whole_must_be_confirmed(tmp_path: Path) -> None:
    _, rows = run(tmp_path, finder(judge=SCRIPT), [answer(TEXT)], "late.jsonl")
    assert rows[0]["unsafe_from"] == TEXT.index("venom")  # the judge sees nothing before
    _, rows = run(tmp_path, finder(judge={"recipe": "unsafe"}, script={}), [answer(TEXT)], "none.jsonl")
    assert (rows[0]["unsafe_from"], rows[0]["unsafe_from_status"]) == (None, "not confirmed")


def test_a_run_that_was_killed_goes_on_and_ends_equal(tmp_path: Path) -> None:
    rows = [answer(f"{'word ' * n} recipe and then {n} more venom", id=n) for n in range(12)]
    whole = Writer()
    report, expected = run(tmp_path, finder(whole), rows, "whole.jsonl")
    for calls in (9, 14):
        killed = Writer(dies=calls)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, finder(killed), rows)
        assert not (tmp_path / "out.jsonl").exists()
    with (tmp_path / "out.jsonl.guardkit" / "rows.jsonl").open("ab") as file:
        file.write(b'{"row": 11, "status": "fou')
    last = Writer()
    again, found = run(tmp_path, finder(last), rows)
    assert found == expected
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert 0 < len(last.seen) < len(whole.seen)
    assert again.cost == report.cost
    assert {(p.text, p.seed) for p in last.seen} <= {(p.text, p.seed) for p in whole.seen}
    assert len({p.seed for p in whole.seen}) == len({p.text for p in whole.seen})


@pytest.mark.parametrize("fault", ["llm", "guard", "judge"])
def test_a_row_that_could_not_be_judged_is_kept_said_and_tried_again(tmp_path: Path, fault: str) -> None:
    rows = [answer("Some recipe with a broken place and venom", id=1), answer("A recipe with venom", id=2)]
    broken: dict[str, Any] = {"broken": RuntimeError("the server is away")}
    failing = {
        "llm": lambda: finder(Writer(fails="Some recipe with")),
        "guard": lambda: finder(script={**SCRIPT, **broken}),
        "judge": lambda: finder(judge={**SCRIPT, "recipe": "unsafe", **broken}),
    }[fault]
    report, found = run(tmp_path, failing(), rows)
    assert [row["unsafe_from_status"] for row in found] == ["not judged", "found"]
    assert "the server is away" in found[0]["unsafe_from_error"]
    assert found[0]["unsafe_from"] is None
    assert report.statuses["not judged"] == 1
    later = Writer()
    report, found = run(tmp_path, finder(later), rows)
    assert [row["unsafe_from_status"] for row in found] == ["found", "found"]
    assert all(p.text.startswith("Some") for p in later.seen)
    assert "unsafe_from_error" not in found[0]


def test_an_llm_that_writes_too_little_or_raises_labels_nothing(tmp_path: Path) -> None:
    class Short(Writer):
        def continuations(self, prefixes: Sequence[Prefix]) -> list[Continued | Exception]:
            return [Continued(("one",), 1, 1) for _ in prefixes]

    class Broken(Writer):
        def continuations(self, prefixes: Sequence[Prefix]) -> list[Continued | Exception]:
            raise OSError("no memory")

    for llm, said in ((Short(), "1 continuations, not 8"), (Broken(), "no memory")):
        _, rows = run(tmp_path, finder(llm), [answer(TEXT)])
        assert said in rows[0]["unsafe_from_error"]


def test_an_ensemble_shares_the_continuations() -> None:
    one, other = Writer(), Writer(0.0)
    both = Ensemble([one, other])
    (found,) = both.continuations([Prefix([], "a recipe", 5, 7)])
    assert isinstance(found, Continued)
    assert (len(found.texts), found.calls, found.tokens) == (5, 2, 10)
    assert sum("venom" in text for text in found.texts) == 3
    assert one.seen[0].seed != other.seen[0].seed
    failing = Ensemble([one, Writer(fails="recipe")])
    assert isinstance(failing.continuations([Prefix([], "a recipe", 5, 7)])[0], ConnectionError)


def test_other_settings_and_taken_columns_are_errors(tmp_path: Path) -> None:
    run(tmp_path, finder())
    with pytest.raises(LabelError, match=r"rule\.k was 8 and is 9"):
        run(tmp_path, finder(k=9))
    with pytest.raises(LabelError, match="'unsafe_from' already"):
        run(tmp_path, finder(), [answer("x", unsafe_from=3)], "other.jsonl")
    with pytest.raises(ValueError, match="threshold"):
        Rule(threshold=0.0)


def test_the_command_plans_runs_and_says_what_it_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    args = [str(source), "--out", str(out), "--llm", "writer", "--json", str(tmp_path / "cost.json")]

    def load(name: str, **_: Any) -> FakeGuard:
        return FakeGuard({**SCRIPT, "recipe": "unsafe"})

    assert main([*args, "--plan"], load, lambda _: Writer()) == 0
    said = capsys.readouterr().out
    assert "8 rows, 3 answers to look into" in said
    assert "tokens and" in said
    assert not out.exists()
    assert main([*args, "--plan"], load, lambda _: Writer(fails="")) == 0
    assert "was not judged: writer: the server is away" in capsys.readouterr().out
    assert main(args, load, lambda _: Writer()) == 3  # one row has a label that nobody knows
    said = capsys.readouterr().out
    assert "8 rows: 2 found, 1 not confirmed, 1 not judged" in said
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["cost"]["llm_calls"] > 0
    assert cost["rows"]["found"] == 2
    assert main([*args, "-k", "0"], load, lambda _: Writer()) == 2
    assert main([str(tmp_path / "none"), "--out", str(out), "--llm", "x"], load, lambda _: Writer()) == 2


def test_an_interrupted_command_says_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [answer(f"{'word ' * n} recipe and then {n} more venom", id=n) for n in range(8)]
    args = [str(write_jsonl(tmp_path / "in.jsonl", rows)), "--out", str(tmp_path / "out.jsonl"), "--llm", "writer"]

    def load(name: str, **_: Any) -> FakeGuard:
        return FakeGuard({**SCRIPT, "recipe": "unsafe"})

    killed = Writer(dies=14)
    assert main([*args, "--at-once", "2"], load, lambda _: killed) == 130
    said = capsys.readouterr()
    done = so_far(tmp_path / "out.jsonl")
    assert 0 < done.statuses["found"] < 8
    assert f"{done.statuses['found']} rows: {done.statuses['found']} found" in said.out
    assert 0 < done.cost.llm_calls <= len(killed.seen)
    assert "run the same command again" in said.err
    (tmp_path / "file").write_text("")
    assert main([*args[:1], "--out", str(tmp_path / "file" / "x.jsonl"), "--llm", "w"], load, lambda _: Writer()) == 3
