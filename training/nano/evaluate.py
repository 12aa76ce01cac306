"""Score nano with `guard eval`, and write the figures into the model card and the list of measured languages.

    python training/nano/evaluate.py --bench DIR [--train DIR] [--model FOLDER]
        [--card guardkit/models/nano/MODEL_CARD.md] [--coverage guardkit/models/nano/coverage.json] [--rows 300]

`DIR` holds *.jsonl.gz in the format of README.md. Strict counts "controversial" as positive, loose as negative, in
labels and in verdicts alike. Of sets in more than one language, and of those with more than 5,000 rows, at most `--rows`
rows of each language and label are scored, drawn by a fixed seed. With `--train`, harmless sentences and questions that
training saw in no language (prepare.py's dev side) are scored too, as the set `harmless_held_out`.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from prepare import is_dev

# Code -> name and script, of the languages that any set here has.
LANGUAGES = {
    code: (name, script)
    for script, names in {
        "Latin": "en English|de German|es Spanish|fr French|it Italian|pt Portuguese|nl Dutch|pl Polish|cs Czech|tr Turkish|"
        "vi Vietnamese|id Indonesian|ms Malay|tl Tagalog|jv Javanese|sw Swahili|ro Romanian|hu Hungarian|fi Finnish|"
        "sv Swedish|da Danish|nb Norwegian Bokmål|no Norwegian|hr Croatian|sh Serbo-Croatian|yo Yoruba|zu Zulu",
        "Cyrillic": "ru Russian|uk Ukrainian|bg Bulgarian|sr Serbian",
        "Greek": "el Greek", "Arabic": "ar Arabic|fa Persian|ur Urdu", "Hebrew": "he Hebrew", "Ethiopic": "am Amharic",
        "Devanagari": "hi Hindi", "Bengali": "bn Bengali", "Tamil": "ta Tamil", "Telugu": "te Telugu", "Thai": "th Thai",
        "Lao": "lo Lao", "Myanmar": "my Burmese", "Khmer": "km Khmer", "Han": "zh Chinese|zh-Hant Chinese (traditional)",
        "Kana": "ja Japanese", "Hangul": "ko Korean",
    }.items()
    for code, _, name in (entry.partition(" ") for entry in names.split("|"))
}  # fmt: skip
HARMLESS = ("benign_sib200_multilingual", "benign_xquad")
BIG = 5000
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


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def drawn(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` rows of each language and label."""
    taken: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        taken.setdefault((row["lang"], row["severity"], row["refusal"]), []).append(row)
    rng = random.Random(0)
    return [row for part in taken.values() for row in (part if len(part) <= most else rng.sample(part, most))]


def harmless(train: Path) -> list[dict[str, Any]]:
    rows = [
        row | {"group": row["id"].partition("/")[2]} for name in HARMLESS for row in read(train / f"{name}.jsonl.gz")
    ]
    held = [row for row in rows if is_dev(row)]
    return [
        {**row, "kind": "prompt", "prompt": row["response"] or row["prompt"], "response": None, "refusal": None}
        for row in held
    ]


def languages(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Code -> name, script and, by set, the figures of a language. One whose harm was not measured is left out."""
    found: dict[str, Any] = {}
    for result in results:
        if result["strict"] is None:
            continue
        single = {"language": result.get("language"), "n": result["n_judged"], "strict": result["strict"]["rates"], "loose": result["loose"]["rates"]}  # fmt: skip
        for one in result["languages"] or [single]:
            code = one["language"]
            if code in LANGUAGES:
                name, script = LANGUAGES[code]
                about = found.setdefault(code, {"name": name, "script": script, "figures": {}})
                about["figures"][result["dataset"]] = {"rows": one["n"]} | {
                    mode: {key: one[mode][key] and round(one[mode][key], 3) for key in ("f1", "recall", "fpr")}
                    for mode in ("strict", "loose")
                }
    return {
        code: about
        for code, about in sorted(found.items())
        if any(figures["strict"]["recall"] is not None for figures in about["figures"].values())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a name or a folder (default: nano)")
    parser.add_argument("--bench", type=Path, required=True)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--card", type=Path)
    parser.add_argument("--coverage", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    args = parser.parse_args()
    only: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        sets = {path.name: read(path) for path in sorted(args.bench.glob("*.jsonl.gz"))}
        if args.train:
            sets["harmless_held_out.jsonl.gz"] = harmless(args.train)
        for name, rows in sets.items():
            many = len({row["lang"] for row in rows})
            only[name.removesuffix(".jsonl.gz")] = rows[0]["lang"] if many == 1 else ""
            with gzip.open(Path(folder) / name, "wt", encoding="utf-8") as out:
                for row in drawn(rows, args.rows) if many > 1 or len(rows) > BIG else rows:
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
        command = [
            sys.executable,
            "-m",
            "guardkit_cli",
            "eval",
            "--model",
            args.model,
            "--data",
            folder,
            "--resamples",
            "0",
            "--json",
        ]
        run = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if run.returncode:
        sys.exit(run.returncode)
    results = [result | {"language": only.get(result["dataset"])} for result in json.loads(run.stdout)["results"]]
    measured = table(results)
    print(measured)
    if args.coverage:
        listed = json.dumps({"measured": languages(results)}, ensure_ascii=False, indent=1)
        args.coverage.write_text(listed + "\n", encoding="utf-8")
    if args.card:
        where = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
        stamp = f"Measured {datetime.date.today()} on {where}; of large sets at most {args.rows} rows of each language and label."
        before, _, rest = args.card.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        args.card.write_text(f"{before}{BEGIN}\n{stamp}\n\n{measured}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
