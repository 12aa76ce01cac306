"""The Stream benchmarks run, on tiny shapes: their figures mean nothing here, their checks and tables do."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.engine.qwen3_tokenizer_builder import MISSING

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Run = Callable[..., dict[str, list[list[str]]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script as a command would; gives its tables' rows by heading."""

    def run_script(name: str, *options: str) -> dict[str, list[list[str]]]:
        path = BENCHMARKS / name
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr(sys, "argv", [str(path), *options, "--device", "cpu", "--dtype", "float32"])
        runpy.run_path(str(path), run_name="__main__")
        found: dict[str, list[list[str]]] = {}
        for section in re.split(r"^#+ ", capsys.readouterr().out, flags=re.MULTILINE)[1:]:
            title, _, text = section.partition("\n")
            rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
            assert len({len(row) for row in rows[:1] + rows[2:]}) <= 1, f"{title}: rows of different widths"
            found[title] = rows[2:]
        return found

    return run_script


def test_context_compares_three_ways_and_they_agree(run: Run) -> None:
    tables = run("stream_context.py", "--size", "tiny", "--contexts", "70", "130", "--runs", "2", "--warm", "1")
    single = tables["One token at a time"]
    assert [row[0] for row in single] == ["70", "130"]
    assert all(float(cell) > 0 for row in single for cell in (row[1], row[4], row[6], row[8]))
    assert [row[:2] for row in tables["Several tokens at a time"]] == [
        ["70", "4"], ["70", "16"], ["130", "4"], ["130", "16"],
    ]  # fmt: skip
    agreement = {row[0]: row for row in tables["Agreement"]}
    assert {"guardkit", "guardkit, 16 at a time", "loop"} <= agreement.keys()
    assert all(int(row[2]) > 0 and row[3] == "0" for row in agreement.values())


def test_verdicts_that_differ_where_the_margin_is_clear_are_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    agreement = runpy.run_path(str(BENCHMARKS / "stream_context.py"))["agreement"]
    base = torch.tensor([1.0, 2.0, 0.0, *([0.0] * 7), 3.0])
    close, flipped = base + 0.1, base[[1, 0, *range(2, 11)]]
    for other, same in ((close, True), (flipped, False), (base * float("nan"), False)):
        assert agreement({5: {"bare": base, "guardkit": other}}, 0.5) is same
    assert agreement({5: {"bare": base, "guardkit": flipped}, 6: {"bare": base, "guardkit": base}}, 1.5)  # no margin
    assert not agreement({5: {"guardkit": base}}, 0.5)  # nothing to compare with
    capsys.readouterr()


def test_concurrency_finds_a_bound(run: Run) -> None:
    options = ("--size", "tiny", "--quick", "--contexts", "60", "--max-streams", "3", "--budget-ms", "0.001", "60000")
    tables = run("stream_concurrency.py", *options, "--paced-seconds", "0.1")
    held = tables["Streams held"]
    assert [row[:5] for row in held if row[1] == "1"] == [
        ["60", "1", "0.001", "0", "time"],
        ["60", "1", "60000", "3", "--max-streams"],
    ]
    assert [row[2] for row in tables["Steps"]] == ["1", "2", "3", "1", "2", "3"]
    parts = {row[3]: float(row[4]) for row in tables["Where a step's time goes"] if row[1] == "1"}
    together = parts.pop("together")
    assert parts["forward: attention"] > 0
    assert parts["forward: the rest"] > 0
    assert sum(parts.values()) == pytest.approx(together, abs=0.1)


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_soak_leaves_nothing_behind(run: Run) -> None:
    options = ("--quick", "--streams", "80", "--tasks", "20", "--threads", "4", "--parts", "2", "--sample", "10")
    tables = run("stream_soak.py", *options, "--cache-tokens", "576", "--idle-s", "0.1")
    outcomes = {name: int(count) for name, count in tables["What became of the streams"]}
    assert sum(outcomes.values()) == 80
    assert {"finished", "left", "cancelled", "stopped"} <= outcomes.keys()


def test_the_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_the_gpu_benchmark_runs_small_and_writes_one_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if MISSING:
        pytest.skip(MISSING)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    docs = tmp_path / "performance.md"
    docs.write_text("# Performance\n\n## Streams\n\ntext\n\n## Not measured yet\n\nmuch\n")
    options = ["--device", "cpu", "--small", "--dtype", "float32", "--write", str(docs)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^\| (.*) \| (.*) \| (.*) \|$", shown, flags=re.MULTILINE)
    assert any(what.startswith("verdicts unlike") and found.startswith("0 of") for what, found, _ in rows)
    assert {"Gen, one prompt", "Gen, one response"} <= {what for what, _, _ in rows}
    sections = docs.read_text().split("\n## ")
    assert [part.partition("\n")[0] for part in sections[1:]] == ["Streams", "On a GPU: cpu, tiny", "Not measured yet"]
    assert "| Gen, one prompt |" in sections[2]


def test_the_gpu_benchmark_leaves_out_what_there_is_no_time_for_and_tells_what_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if MISSING:
        pytest.skip(MISSING)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    report = gpu.Report(time.monotonic() + 5)
    report.part("long", 60, lambda: pytest.fail("there was no time for it"))
    report.part("broken", 0, lambda: 1 / 0)
    assert report.left_out == ["long"]
    assert not report.right
    made = gpu.section("A card", "bfloat16", "command", report, "0.6B")
    assert "| broken | failed: ZeroDivisionError: division by zero |" in made
    assert "Left out, since the time was up: long." in made
    assert gpu.put("# T\n\n## A\n\na\n", made).count("## On a GPU: A card") == 1
