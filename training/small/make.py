"""A guard of 2.7 million weights, from nothing to `guard eval` in minutes on a CPU: the proof that the recipe works.

    python training/small/make.py --data DATA --work WORK          # or $GUARDKIT_TRAINING_DATA

Rows are drawn from DATA/train/*.jsonl.gz (see ../nano/README.md), as many of each file; a tenth of the texts is held
out. The backbone starts from random weights, so it learns words and risks at once: what it reaches says that training
works, not what a guard can do. `--base FOLDER` takes a real Qwen3 in its place.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from base import write_base

from guardkit.training.categories import PUBLISHED
from guardkit.training.rows import row_of, split

MOST_CHARS = 1200
KEY_WORDS = 24  # rows whose texts begin alike count as one, where rows of another guard are left out


def records(file: Path, language: str) -> Iterator[dict[str, Any]]:
    """The labelled records of a file in one language, of texts that are not long."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            text = record["response"] if record["kind"] == "response" else record["prompt"]
            if record["severity"] and record["lang"] == language and text and len(text) <= MOST_CHARS:
                record["prompt"] = (record["prompt"] or "")[-MOST_CHARS:]
                yield record


def beginning(record: dict[str, Any]) -> str:
    text: str = record["response"] if record["kind"] == "response" else record["prompt"]
    return " ".join(text.split()[:KEY_WORDS])


def draw(
    folder: Path, per_file: int, seed: int, language: str, answers: int, taken: frozenset[str] = frozenset()
) -> list[tuple[dict[str, Any], Any]]:
    """Up to `per_file` rows of each file, each text once, with what they were before they were cut. answers: responses
    alone, cut to so many words; 0: all rows as they are. taken: beginnings of texts that are left out."""
    rng, seen, found = random.Random(seed), set(), []
    for file in sorted(folder.glob("*.jsonl.gz")):
        own = [r for r in records(file, language) if not answers or r["kind"] == "response"]
        own = [r for r in own if beginning(r) not in taken]
        for record in rng.sample(own, min(per_file, len(own))):
            row = row_of(record, PUBLISHED)
            if answers:
                record["response"] = " ".join(record["response"].split()[:answers])
            key = record["response"] if answers else row and row.key
            if row is not None and key not in seen:
                seen.add(key)
                found.append((record, row))
    rng.shuffle(found)
    return found


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--data", type=Path, default=os.environ.get("GUARDKIT_TRAINING_DATA"), help="holds train/")
    parse.add_argument("--work", type=Path, required=True, help="where rows and guards are written")
    parse.add_argument("--kind", choices=["stream", "gen"], default="stream")
    parse.add_argument("--base", help="a Qwen3 (or a guard) to start from; default: one made from nothing")
    parse.add_argument("--per-file", type=int, default=250)
    parse.add_argument("--answers", type=int, default=0, metavar="WORDS", help="responses alone, cut to so many words")
    parse.add_argument("--language", default="en")
    parse.add_argument("--without", nargs="*", type=Path, default=[], help="train.jsonl of guards: none of their rows")
    parse.add_argument("--hidden", type=int, default=128, help="width of a base made from nothing")
    parse.add_argument("--layers", type=int, default=3, help="of a base made from nothing")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("rest", nargs="*", help="options of python -m guardkit.training, behind --")
    given = parse.parse_args()
    if given.data is None or not (Path(given.data) / "train").is_dir():
        parse.error("--data names no folder with train/*.jsonl.gz in it (nor does GUARDKIT_TRAINING_DATA)")
    given.work.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for file in given.without:
        with file.open(encoding="utf-8") as lines:
            taken |= {beginning(json.loads(line)) for line in lines}
    drawn = draw(
        Path(given.data) / "train", given.per_file, given.seed, given.language, given.answers, frozenset(taken)
    )
    held = {row.key for row in split((row for _, row in drawn), 0.1, given.seed)[1]}
    for name, is_held in (("train", False), ("held-out", True)):
        part = [(record, row) for record, row in drawn if (row.key in held) is is_held]
        written = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record, _ in part)
        (given.work / f"{name}.jsonl").write_text(written, encoding="utf-8")
        counts = Counter(record["kind"] + " " + record["severity"] for record, _ in part)
        print(f"{name}: {len(part)} rows, {dict(sorted(counts.items()))}", flush=True)
    base = given.base
    if base is None:
        base = given.work / "base"
        texts = (t for record, row in drawn if row.key not in held for t in (record["prompt"], record["response"]) if t)
        shape = {"vocab": 16384, "hidden": given.hidden, "layers": given.layers, "heads": 4, "positions": 1024}
        write_base(base, texts, **shape, seed=given.seed)
    out = given.work / given.kind
    told = [
        "--dev-share",
        "0",
        "--seed",
        str(given.seed),
        "--base",
        str(base),
        "--train",
        str(given.work / "train.jsonl"),
        "--out",
        str(out),
    ]
    train = [sys.executable, "-m", "guardkit.training", given.kind, *told, *given.rest]
    subprocess.run(train, check=True)
    report = ["eval", "held-out.jsonl", "--model", given.kind, "--json", "--no-cache"]
    with (given.work / f"{given.kind}-eval.json").open("w") as file:
        subprocess.run([Path(sys.executable).with_name("guard"), *report], cwd=given.work, stdout=file, check=True)


if __name__ == "__main__":
    main()
