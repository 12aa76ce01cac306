"""`guard eval` on many rows with a scripted guard: rows/s and memory on the way, once fresh and once from the cache.

    python benchmarks/eval_rows.py [--rows 1000000] [--chars 200]

The judge costs next to nothing, so this is the harness: reading JSONL, hashing, the cache, columns, figures, bootstrap.
The second run finds every prediction on disk and must give the same figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import header, mib, note, own_peak_mib, question, rss_mib, table

from guardkit import Action, Decision, Guard, Severity, Stage, Verdict
from guardkit.evaluation.columns import Columns
from guardkit.evaluation.figures import SetFigures
from guardkit.evaluation.runner import Settings, evaluate
from guardkit.evaluation.sources import Source
from guardkit.testing import FakeModel


class FastGuard(Guard):
    """Answers from the text's own number, without a model."""

    def __init__(self) -> None:
        super().__init__(FakeModel({}))

    def decide_batch(self, items: Sequence[Any], *, stage: Any = None) -> list[Decision]:
        return [self._decide(item) for item in items]

    def _decide(self, item: str) -> Decision:
        p = (int(item.partition(" ")[0]) * 7919 % 1000) / 1000
        severity = Severity.unsafe if p > 0.6 else Severity.controversial if p > 0.5 else Severity.safe
        scores = {"safe": 1 - p, "controversial": p * 0.1, "unsafe": p * 0.9}
        return Decision(
            Action.allow, Verdict(severity, (), scores, None, Stage.prompt, "fast"), "none", True, Stage.prompt
        )


def write_rows(path: Path, n: int, chars: int) -> None:
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            row = {
                "prompt": f"{i} {question(rng)} ".ljust(chars, "x")[:chars],
                "severity": ("safe", "safe", "controversial", "unsafe")[rng.randrange(4)],
                "lang": ("en", "de", "fr", "zh")[i % 4],
            }
            file.write(json.dumps(row) + "\n")


def run(name: str, source: Source, cache: Path, n: int) -> tuple[list[str], SetFigures]:
    marks = {n // 10: "", n // 2: "", n: ""}

    def progress(columns: Columns) -> None:
        for mark, seen in marks.items():
            if not seen and columns.n_rows >= mark:
                marks[mark] = mib(rss_mib())
                note(f"{name}: {columns.n_rows:,} rows, {marks[mark]} MiB")

    start = time.perf_counter()
    found = evaluate(FastGuard(), "fast", "1", source, Settings(cache=cache), progress)
    seconds = time.perf_counter() - start
    return [
        name,
        f"{found.n_judged:,}",
        f"{seconds:.0f}",
        f"{n / seconds:,.0f}",
        *marks.values(),
        mib(own_peak_mib()),
    ], found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--chars", type=int, default=200, help="characters of each text")
    args = parser.parse_args()
    header("guard eval on many rows")
    with tempfile.TemporaryDirectory(prefix="guardkit-bench-") as folder:
        path, cache = Path(folder) / "rows.jsonl", Path(folder) / "predictions.sqlite"
        write_rows(path, args.rows, args.chars)
        note(f"{path.stat().st_size / 1e6:,.0f} MB of rows; {mib(rss_mib())} MiB before the start")
        source = Source("rows", path=path)
        rows, found = [], []
        for name in ("fresh", "from the cache"):
            row, figures = run(name, source, cache, args.rows)
            rows.append(row)
            found.append({k: v for k, v in figures.to_dict().items() if k not in ("seconds", "n_cached")})
        size = cache.stat().st_size / 1e6
    table(
        ["run", "rows", "seconds", "rows/s", "MiB at a tenth", "at half", "at the end", "peak MiB with figures"], rows
    )
    print(f"The cache took {size:,.0f} MB. Figures of both runs equal: {found[0] == found[1]}.")
    if found[0] != found[1]:
        sys.exit(1)


if __name__ == "__main__":
    main()
