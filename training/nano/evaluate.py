"""Score nano on public benchmarks and print (or write into the model card) one table.

    python training/nano/evaluate.py --bench DIR [--only NAME ...] [--card guardkit/models/nano/MODEL_CARD.md]

`DIR` holds *.jsonl.gz in the format of README.md. Strict counts "controversial" as positive, loose as negative, in
labels and in verdicts alike. Where alt-profanity-check is installed its scores stand beside.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import platform
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from guardkit import Guard, Severity  # noqa: E402

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def counts(said: np.ndarray, true: np.ndarray) -> tuple[float, float, float, float]:
    """F1, precision, recall and false-positive rate in percent (nan where undefined)."""
    tp, fp, fn, tn = (said & true).sum(), (said & ~true).sum(), (~said & true).sum(), (~said & ~true).sum()
    part = lambda a, b: 100 * a / b if b else float("nan")  # noqa: E731
    return part(2 * tp, 2 * tp + fp + fn), part(tp, tp + fp), part(tp, tp + fn), part(fp, fp + tn)


def profanity(texts: list[str]) -> np.ndarray | None:
    try:
        from profanity_check import predict
    except ImportError:
        return None
    return np.asarray(predict(texts)) == 1


def show(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--card", type=Path)
    args = parser.parse_args()
    paths = sorted(args.bench.glob("*.jsonl.gz"))
    if not paths:
        sys.exit(f"{args.bench} holds no *.jsonl.gz: pass the folder of the benchmark files with --bench")
    guard = Guard.load()
    lines = [
        "| set | lang | rows | strict F1 | P | R | FPR | loose F1 | P | R | FPR | alt-profanity-check F1 | FPR |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    refusals = []
    for path in paths:
        name = path.name.removesuffix(".jsonl.gz")
        if args.only and name not in args.only:
            continue
        with gzip.open(path, "rt", encoding="utf-8") as source:
            rows = [json.loads(line) for line in source]
        rows = [r for r in rows if r["severity"] or r["refusal"] is not None]
        items = [
            r["prompt"] if r["kind"] == "prompt" else
            ([{"role": "user", "content": r["prompt"]}] if r["prompt"] else [])
            + [{"role": "assistant", "content": r["response"] or ""}]
            for r in rows
        ]  # fmt: skip
        verdicts = [v for i in range(0, len(items), 512) for v in guard.check_batch(items[i : i + 512])]
        level = np.array([list(Severity).index(v.severity) for v in verdicts])
        groups: dict[str, list[int]] = defaultdict(list)
        for i, r in enumerate(rows):
            if r["severity"]:
                groups["all"].append(i)
                groups[r["lang"]].append(i)
        if len(groups) == 2:
            del groups["all"]
        for lang, picked in groups.items():
            at = np.array(picked)
            gold = np.array([list(Severity).index(Severity(rows[i]["severity"])) for i in picked])
            cells = []
            for least in (1, 2):
                cells += [show(v) for v in counts(level[at] >= least, gold >= least)]
            said = profanity([(rows[i]["response"] if rows[i]["kind"] == "response" else rows[i]["prompt"]) or "" for i in picked])  # fmt: skip
            other = [show(v) for v in counts(said, gold >= 1)] if said is not None else ["", "", "", ""]
            lines.append(f"| {name} | {lang} | {len(picked)} | {' | '.join(cells)} | {other[0]} | {other[3]} |")
            print(lines[-1], flush=True)
        judged = [(v.refusal, r["refusal"]) for v, r in zip(verdicts, rows, strict=True) if r["refusal"] is not None and v.refusal is not None]  # fmt: skip
        if judged:
            said, true = np.array([j[0] for j in judged]), np.array([j[1] for j in judged])
            f1, p, r, _ = counts(said, true)
            refusals.append(f"| {name} | {len(judged)} | {f1:.1f} | {p:.1f} | {r:.1f} |")
            print(refusals[-1], flush=True)
    table = "\n".join(lines)
    if refusals:
        table += "\n\nRefusal:\n\n| set | rows | F1 | P | R |\n|---|---|---|---|---|\n" + "\n".join(refusals)
    if args.card:
        stamp = f"Measured {datetime.date.today()} on {platform.machine()}, {platform.system()}, Python {platform.python_version()}."
        before, _, rest = args.card.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        args.card.write_text(f"{before}{BEGIN}\n{stamp}\n\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
