"""nano beside other classifiers that run inside the process, offline: speed, cold start, memory, quality.

    python benchmarks/embedded_classifiers.py [--bench DIR] [--only SET ...] [--limit N] [--runs 5]

The others, where they are installed, are what PyPI has with its weights inside the wheel: alt-profanity-check
(profanity), securevector-guardian-model and prompt-guardrail (attacks in prompts), and better-profanity, a word list. A
further one is a row in `OTHERS`. `DIR` holds labelled *.jsonl.gz files: `kind` ("prompt" or "response"), `prompt`,
`response`, `severity`. Strict counts "controversial" as harmful, loose as harmless, in labels and in verdicts alike.
nano sees the prompt that a response answers; the others have no notion of one and are given the response alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Ran, header, median, mib, note, peak_of, percentile, question, run, table

Row = dict[str, Any]
LEVELS = ("safe", "controversial", "unsafe")
BATCH = 512


@dataclass(frozen=True)
class Classifier:
    """judge: the level (index into `LEVELS`) of each row. start: code that loads it and judges `TEXTS`."""

    name: str
    judge: Callable[[Sequence[Row]], list[int]]
    start: str


def _judged(row: Row) -> str:
    return (row["response"] if row["kind"] == "response" else row["prompt"]) or ""


def _nano() -> Classifier:
    from guardkit import Guard

    guard = Guard.load()

    def item(row: Row) -> Any:
        if row["kind"] == "prompt":
            return row["prompt"] or ""
        asked = [{"role": "user", "content": row["prompt"]}] if row.get("prompt") else []
        return [*asked, {"role": "assistant", "content": row["response"] or ""}]

    def judge(rows: Sequence[Row]) -> list[int]:
        return [LEVELS.index(verdict.severity.value) for verdict in guard.check_batch([item(row) for row in rows])]

    return Classifier("guardkit nano", judge, "from guardkit import Guard; Guard.load().check_batch(TEXTS)")


def _alt_profanity_check() -> Classifier:
    from profanity_check import predict

    def judge(rows: Sequence[Row]) -> list[int]:
        return [2 * int(said) for said in predict([_judged(row) for row in rows])]

    return Classifier("alt-profanity-check", judge, "from profanity_check import predict; predict(TEXTS)")


def _better_profanity() -> Classifier:
    from better_profanity import profanity

    def judge(rows: Sequence[Row]) -> list[int]:
        return [2 * profanity.contains_profanity(_judged(row)) for row in rows]

    code = "from better_profanity import profanity; [profanity.contains_profanity(t) for t in TEXTS]"
    return Classifier("better-profanity", judge, code)


def _securevector_guardian() -> Classifier:
    from svguardian import resolve_runtime
    from svguardian.model.pure_infer import PureGuardian
    from svguardian.serve import analyze

    guardian = PureGuardian.load(resolve_runtime(download=False))

    def judge(rows: Sequence[Row]) -> list[int]:
        return [2 * analyze(_judged(row), guardian)["is_threat"] for row in rows]

    code = (
        "from svguardian import resolve_runtime; from svguardian.model.pure_infer import PureGuardian; "
        "from svguardian.serve import analyze; g = PureGuardian.load(resolve_runtime(download=False)); "
        "[analyze(t, g) for t in TEXTS]"
    )
    return Classifier("securevector-guardian-model", judge, code)


def _prompt_guardrail() -> Classifier:
    from guardify import detect

    def judge(rows: Sequence[Row]) -> list[int]:
        return [2 * (detect(_judged(row))["label"] != "safe") for row in rows]

    return Classifier("prompt-guardrail", judge, "from guardify import detect; [detect(t) for t in TEXTS]")


OTHERS = {  # module -> (what pip installs, maker)
    "profanity_check": ("alt-profanity-check scikit-learn", _alt_profanity_check),
    "better_profanity": ("better-profanity", _better_profanity),
    "svguardian": ("securevector-guardian-model", _securevector_guardian),
    "guardify": ("prompt-guardrail", _prompt_guardrail),
}


def load(without: Sequence[str]) -> list[Classifier]:
    found = [_nano()]
    for module, (package, make) in OTHERS.items():
        if module in without:
            continue
        if find_spec(module) is None:
            print(f"SKIPPED: {module} is not installed: pip install {package}\n")
            continue
        try:
            found.append(make())
        except Exception as error:  # whatever a foreign package does when it is loaded
            print(f"SKIPPED: {module} does not load: {type(error).__name__}: {error}\n")
    return found


# ------------------------------------------------------------------------------------------- speed and memory


def start_command(classifier: Classifier, texts: int) -> list[str]:
    """A process that loads the classifier and judges that many lines of its standard input."""
    return [sys.executable, "-c", f"TEXTS = open(0).read().splitlines()[:{texts}]\n{classifier.start}"]


def _rows(texts: Sequence[str]) -> list[Row]:
    return [{"kind": "prompt", "prompt": text, "response": None} for text in texts]


def speed(classifiers: list[Classifier], count: int, singles: int, runs: int) -> None:
    """Every run has texts of its own, since nano remembers what it has judged."""
    rng = random.Random(3)
    texts = [question(rng) for _ in range(count)]
    batched: dict[str, list[float]] = {c.name: [] for c in classifiers}
    single: dict[str, list[float]] = {c.name: [] for c in classifiers}
    cold: dict[str, list[Ran]] = {c.name: [] for c in classifiers}
    stdin = ("\n".join(texts) + "\n").encode()
    for c in classifiers:
        c.judge(_rows([question(rng) for _ in range(BATCH)]))  # warm
    for i in range(runs):
        rows, others = (_rows([question(rng) for _ in range(n)]) for n in (count, singles))
        turn = i % len(classifiers)
        for c in classifiers[turn:] + classifiers[:turn]:
            start = time.perf_counter()
            for at in range(0, len(rows), BATCH):
                c.judge(rows[at : at + BATCH])
            batched[c.name].append(time.perf_counter() - start)
            for row in others:
                start = time.perf_counter()
                c.judge([row])
                single[c.name].append(time.perf_counter() - start)
            ran = run(start_command(c, 1), stdin)
            if ran.code:
                sys.exit(f"{c.name} failed in a process of its own:\n{ran.stderr[-2000:]}")
            cold[c.name].append(ran)
        note(f"speed, run {i + 1} of {runs}")
    size = sum(map(len, texts)) / len(texts)
    print(f"## Speed: {len(texts):,} harmless questions, {size:.0f} characters each\n")
    names = [c.name for c in classifiers]
    rate = {name: len(texts) / median(batched[name]) for name in names}
    table(
        ["classifier", f"texts/s in batches of {BATCH}", "nano, of this", "one by one: median ms", "p95", "texts/s",
         "cold start, one text: median ms", "nano, of this", "peak MiB, one text", f"peak MiB, {len(texts):,} texts"],
        [
            [
                c.name,
                f"{rate[c.name]:,.0f}",
                f"{rate[names[0]] / rate[c.name]:.2f}",
                f"{median(single[c.name]) * 1e3:.2f}",
                f"{percentile(single[c.name], 95) * 1e3:.2f}",
                f"{1 / median(single[c.name]):,.0f}",
                f"{median([r.seconds for r in cold[c.name]]) * 1e3:,.0f}",
                f"{median([r.seconds for r in cold[names[0]]]) / median([r.seconds for r in cold[c.name]]):.2f}",
                mib(peak_of(start_command(c, 1), stdin)),
                mib(peak_of(start_command(c, len(texts)), stdin, every_s=0.02)),
            ]
            for c in classifiers
        ],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ quality


def f1_and_fpr(said: Sequence[bool], true: Sequence[bool]) -> tuple[float | None, float | None]:
    """In percent; None where undefined."""
    pairs = list(zip(said, true, strict=True))
    hit, false, missed = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
    harmless = false + pairs.count((False, False))
    f1 = 200 * hit / (2 * hit + false + missed) if hit + missed else None
    return f1, 100 * false / harmless if harmless else None


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def read(path: Path, limit: int) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as source:
        rows = [row for row in map(json.loads, source) if row.get("severity")]
    return random.Random(0).sample(rows, limit) if 0 < limit < len(rows) else rows


def quality(classifiers: list[Classifier], bench: Path, only: Sequence[str], limit: int) -> None:
    cells, ahead, two_class = [], {c.name: 0 for c in classifiers[1:]}, 0
    for path in sorted(bench.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        if (only and name not in only) or not (rows := read(path, limit)):
            continue
        gold = [LEVELS.index(row["severity"]) for row in rows]
        has_both = any(gold) and not all(gold)
        two_class += has_both
        strict_f1: dict[str, float] = {}
        for c in classifiers:
            start = time.perf_counter()
            said = [level for at in range(0, len(rows), BATCH) for level in c.judge(rows[at : at + BATCH])]
            seconds = time.perf_counter() - start
            found = [f1_and_fpr([s >= n for s in said], [g >= n for g in gold]) for n in (1, 2)]
            strict_f1[c.name] = found[0][0] or 0.0
            figures = [percent(value) for pair in found for value in pair]
            cells.append([name, f"{len(rows):,}", c.name, *figures, f"{len(rows) / seconds:,.0f}"])
            note(f"{name}: {c.name}: {seconds:.1f} s")
        for other in ahead:
            ahead[other] += has_both and strict_f1[classifiers[0].name] > strict_f1[other]
    if not cells:
        sys.exit(f"{bench} holds no labelled *.jsonl.gz{' of the names given by --only' if only else ''}")
    print(f"## Quality: {bench.name}{f', at most {limit:,} rows a set, drawn at random' if limit else ''}\n")
    table(["set", "rows", "classifier", "strict F1", "FPR", "loose F1", "FPR", "texts/s"], cells)
    for other, wins in ahead.items():
        print(f"nano has the higher strict F1 on {wins} of the {two_class} sets with both classes, against {other}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, metavar="DIR", help="folder with labelled *.jsonl.gz")
    parser.add_argument("--only", nargs="+", default=[], metavar="SET", help="file names without .jsonl.gz")
    parser.add_argument("--limit", type=int, default=0, help="rows of each set, drawn at random (default: all)")
    parser.add_argument("--texts", type=int, default=2000, help="texts of the speed test")
    parser.add_argument("--singles", type=int, default=300, help="further ones, judged one by one")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quality-alone", action="store_true", help="no speed, as on a busy machine")
    parser.add_argument("--without", nargs="+", default=[], choices=sorted(OTHERS), help="leave these out")
    args = parser.parse_args()
    if args.bench and not args.bench.is_dir():
        sys.exit(f"--bench {args.bench}: no such folder")

    header(
        "Embedded classifiers",
        "alt-profanity-check",
        "scikit-learn",
        "better-profanity",
        "securevector-guardian-model",
        "prompt-guardrail",
    )
    classifiers = load(args.without)
    if not args.quality_alone:
        speed(classifiers, args.texts, args.singles, args.runs)
        print(
            f"Medians of {args.runs} interleaved runs. A cold start is a whole process that loads, judges one text.\n"
        )
    if args.bench:
        quality(classifiers, args.bench, args.only, args.limit)
    else:
        print("SKIPPED: quality. No labelled texts come with guardkit: pass their folder with --bench DIR.")


if __name__ == "__main__":
    main()
