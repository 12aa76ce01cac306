"""Score nano with `guard eval` and write the figures into the model card.

    python training/nano/evaluate.py --bench DIR [--card guardkit/models/nano/MODEL_CARD.md]

`DIR` holds *.jsonl.gz in the format of README.md. Strict counts "controversial" as positive, loose as negative, in
labels and in verdicts alike.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def rates(found: dict[str, Any]) -> list[str]:
    return [percent(found[name]) for name in ("f1", "precision", "recall", "fpr")]


def figures(result: dict[str, Any]) -> Iterator[str]:
    """The rows of one set: all of it, then each of its languages."""
    if result["strict"] is None:
        return
    by_mode = [result[mode] for mode in ("strict", "loose")]
    cells = [cell for mode in by_mode for cell in (*rates(mode["rates"]), percent(mode["average_precision"]))]
    yield f"| {result['dataset']} | all | {result['n_judged']} | {' | '.join(cells)} |"
    for one in result["languages"]:
        cells = [*rates(one["strict"]), "", *rates(one["loose"]), ""]
        yield f"| {result['dataset']} | {one['language']} | {one['n']} | {' | '.join(cells)} |"


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| set | language | rows | strict F1 | P | R | FPR | AP | loose F1 | P | R | FPR | AP |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(line for result in results for line in figures(result)),
        "",
        "Refusal of an answer:",
        "",
        "| set | F1 | P | R | FPR |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        if result["refusal"]:
            lines.append(f"| {result['dataset']} | {' | '.join(rates(result['refusal']))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True)
    parser.add_argument("--card", type=Path)
    args = parser.parse_args()
    command = [sys.executable, "-m", "guardkit_cli", "eval", "--model", "nano", "--data", str(args.bench), "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if run.returncode:
        sys.exit(run.returncode)
    measured = table(json.loads(run.stdout)["results"])
    print(measured)
    if args.card:
        where = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
        stamp = f"Measured {datetime.date.today()} on {where}."
        before, _, rest = args.card.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        args.card.write_text(f"{before}{BEGIN}\n{stamp}\n\n{measured}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
