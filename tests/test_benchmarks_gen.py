"""The Gen benchmarks run, on tiny shapes: their figures mean nothing here, their checks and tables do."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.engine.qwen3_tokenizer_builder import MISSING

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Run = Callable[..., tuple[str, dict[str, list[list[str]]]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script as a command would; gives its output, and its tables' rows by heading."""

    def run_script(name: str, *options: str) -> tuple[str, dict[str, list[list[str]]]]:
        path = BENCHMARKS / name
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr(sys, "argv", [str(path), "--quick", *options, "--device", "cpu", "--dtype", "float32"])
        runpy.run_path(str(path), run_name="__main__")
        out = capsys.readouterr().out
        found: dict[str, list[list[str]]] = {}
        for section in re.split(r"^#+ ", out, flags=re.MULTILINE)[1:]:
            title, _, text = section.partition("\n")
            rows = [line.strip().removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines()
                    if line.startswith("|")]  # fmt: skip
            assert len({len(row) for row in rows[:1] + rows[2:]}) <= 1, f"{title}: rows of different widths"
            found[title] = rows[2:]
        return out, found

    return run_script


def test_latency_compares_four_ways_over_the_published_lengths(run: Run) -> None:
    out, tables = run("gen_latency.py", "--runs", "2", "--warm", "1", "--sentences", "1")
    for kind in ("prompt", "response"):
        rows = {row[0]: row for row in tables[f"One {kind}"]}
        assert rows.keys() == {
            "guardkit, one pass", "guardkit, walked", "bare forward", "generate", "generate, static cache",
        }  # fmt: skip
        assert all(float(cell.replace(",", "")) > 0 for row in rows.values() for cell in row[1:])
        assert rows["generate"][4] == rows["bare forward"][5] == "1.00"
    assert "of which 201 are cached" in out
    assert "rendered alike" in out


def test_throughput_compares_with_the_better_reference(run: Run) -> None:
    out, tables = run("gen_throughput.py", "--texts", "12", "--reference-texts", "4", "--batches", "2")
    rows = {row[0]: row for row in tables["Batches"]}
    assert rows.keys() == {"guardkit, one pass", "guardkit, walked", "generate, one by one", "generate, batches of 2"}
    assert [rows[name][1] for name in rows] == ["12", "12", "4", "4"]
    assert max(float(rows[f"generate, {how}"][8]) for how in ("one by one", "batches of 2")) == 1.0
    passes = {name: int(rows[f"guardkit, {name}"][6]) for name in ("one pass", "walked")}
    assert passes["one pass"] < passes["walked"]
    assert "4 of them" in out


def test_latency_refuses_to_compare_what_differs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from guardkit.engine.qwen3 import Qwen3

    forward = Qwen3.forward
    monkeypatch.setattr(Qwen3, "forward", lambda self, *args: -forward(self, *args))
    with pytest.raises(SystemExit, match="transformers' logits"):
        run("gen_latency.py", "--runs", "1", "--warm", "0")
