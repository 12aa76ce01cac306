"""What nano's screen settles, and what that loses: `Guard` beside `Guard(exact=True)` on whole texts.

    python benchmarks/nano_screen.py [--data DIR] [--limit N] [--lines N]

Log lines, source code and prose are made here. `DIR` holds labelled *.jsonl.gz files (`kind`, `prompt`, `lang`): their
prompts are judged, at most `N` of each file; the screen was fitted to no test set. A text is lost where nano flags it
(as controversial or unsafe, itself or its view without disguises) and the guard does not. Wanted: at most 0.5%.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import itertools
import json
import os
import random
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from common import header, note, table
from log_throughput import distinct_lines

from guardkit import Guard, Severity

LOST = 0.005


def code_and_prose(n: int) -> tuple[list[str], list[str]]:
    """Lines of packages of Python's library, and paragraphs of their docstrings."""
    code: list[str] = []
    prose: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py")):  # training saw modules, not packages
        if "test" in str(path) or "site-packages" in str(path):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        code += [line for line in text.split("\n") if len(line.strip()) > 8]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (said := ast.get_docstring(node)):
                prose += [part for part in said.split("\n\n") if len(part) > 30]
    rng = random.Random(3)
    return rng.sample(code, min(n, len(code))), rng.sample(prose, min(n, len(prose)))


def texts(args: argparse.Namespace) -> dict[str, list[str]]:
    lines = list(itertools.islice(distinct_lines(), 3 * args.lines))
    nginx = [line for line in lines if "HTTP/1.1" in line]
    chat = [line for line in lines if "role=user" in line]
    rest = [line for line in lines if "HTTP/1.1" not in line and "role=user" not in line]
    code, prose = code_and_prose(args.lines)
    found = {
        "nginx lines": nginx[: args.lines], "application and system logs": rest[: args.lines],
        "chat in logs": chat[: args.lines], "code": code, "prose": prose,
    }  # fmt: skip
    for path in sorted(args.data.glob("*.jsonl.gz")) if args.data else ():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [row["prompt"] for row in map(json.loads, file) if row["kind"] == "prompt" and row["prompt"]]
        if rows := list(dict.fromkeys(rows)):
            random.Random(3).shuffle(rows)
            found[path.name.removesuffix(".jsonl.gz")] = rows[: args.limit or None]
    return found


def judge(guard: Guard, items: Sequence[str]) -> tuple[list[tuple[bool, object]], float]:
    """Of each text whether it is flagged, and its scores; CPU seconds of all."""
    start = time.process_time()
    verdicts = [v for i in range(0, len(items), 256) for v in guard.check_batch(items[i : i + 256])]
    return [(v.severity > Severity.safe, tuple(v.scores.values())) for v in verdicts], time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of labelled files")
    parser.add_argument("--limit", type=int, default=0, help="prompts of each file, at most")
    parser.add_argument("--lines", type=int, default=1000, help="of each kind that is made here")
    args = parser.parse_args()
    header("nano's screen")
    cores = os.cpu_count() or 1
    guard = Guard.load(threads=cores, locate=False)
    exact = Guard.load(threads=None, exact=True, locate=False)  # a model of its own: neither remembers for the other
    guard.check("warm")
    exact.check("warm")
    rows, flagged_all, lost_all = [], 0, 0
    for name, items in texts(args).items():
        early, early_s = judge(guard, items)
        whole, whole_s = judge(exact, items)
        flagged = sum(f for f, _ in whole)
        lost = sum(f and not e for (f, _), (e, _) in zip(whole, early, strict=True))
        settled = sum(a != b for (_, a), (_, b) in zip(whole, early, strict=True))
        flagged_all, lost_all = flagged_all + flagged, lost_all + lost
        rows.append(
            [name, f"{len(items):,}", f"{flagged / len(items):.1%}", f"{settled / len(items):.1%}", f"{lost}",
             f"{lost / flagged:.2%}" if flagged else "-", f"{early_s / whole_s:.2f}"]
        )  # fmt: skip
        note(f"{name}: {settled / len(items):.0%} settled, {lost} of {flagged} lost")
    names = ["texts", "how many", "flagged by nano", "settled", "lost", "of the flagged", "CPU, of exact's"]
    table(names, rows)
    print(f"\nLost of all: {lost_all} of {flagged_all:,}, {lost_all / max(flagged_all, 1):.2%} (wanted: {LOST:.1%})")


if __name__ == "__main__":
    main()
