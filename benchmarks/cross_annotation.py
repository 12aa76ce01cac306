"""Does cross-annotation find the rows that people call controversial? On labelled rows, with that label hidden.

    python benchmarks/cross_annotation.py --data FOLDER --rows 900 --trainer light

Of each file so many rows of each severity are drawn. A row that people called controversial gets "safe" or "unsafe" by
a coin, as annotators with two labels only would split on it; then `cross_annotate` sees two levels, and what it calls
controversial is held against the people's label. --doubt: the same, with disagreement counted only on that share of the
rows whose labels a third model finds most doubtful. --flip: so many of the other labels are turned round, and repaired
by the same trainer as a teacher of its own halves.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from pathlib import Path

from guardkit.evaluation.rows import row_of
from guardkit.evaluation.specs import Fields
from guardkit.labelling.rows import Item
from guardkit.training.annotators import Trainer, trainer_named
from guardkit.training.confusion import NAMES
from guardkit.training.cross import Labelled, cross_annotate, disputed, repair, trained_teacher
from guardkit.training.doubt import ROUNDS, doubts, only_doubtful
from guardkit.training.files import Records
from guardkit.training.halves import content_of, halves
from guardkit.verdict import SEVERITIES, Severity

FILES = ("davidson_hate", "diasafety", "germeval2018", "told_br", "toxic_spans_civil")
Drawn = list[tuple[str, Item, Severity]]


def draw(folder: Path, files: list[str], rows: int) -> Drawn:
    """Of each file up to a third of `rows` of each severity."""
    found: Drawn = []
    for name in files:
        path = next(iter(sorted(folder.glob(f"{name}.jsonl*"))), None)
        if path is None:
            sys.exit(f"{folder} holds no {name}.jsonl or {name}.jsonl.gz: --data names the folder with labelled rows")
        known: dict[str, tuple[Item, Severity]] = {}
        for number, record in enumerate(Records([str(path)]), 1):
            row = row_of(number, record, Fields())
            if row.item is not None and row.severity >= 0:
                known.setdefault(content_of(row.item), (row.item, SEVERITIES[row.severity]))
        rng = random.Random(name)
        for severity in SEVERITIES:
            of_it = [pair for pair in known.values() if pair[1] is severity]
            found += [(name, *pair) for pair in rng.sample(of_it, min(rows // 3, len(of_it)))]
    return found


def coin(item: Item) -> Severity:
    bit = hashlib.blake2b(content_of(item).encode("utf-8", "surrogatepass"), key=b"coin").digest()[0] & 1
    return Severity.unsafe if bit else Severity.safe


def flipped(given: list[Severity], true: list[Severity], share: float) -> list[int]:
    """Rows of a clear label that are turned round."""
    clear = [i for i, severity in enumerate(true) if severity is not Severity.controversial]
    return sorted(random.Random("flip").sample(clear, round(share * len(clear))))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of NAME.jsonl.gz with text and severity")
    parser.add_argument("--files", nargs="+", default=list(FILES))
    parser.add_argument("--rows", type=int, default=900, help="of each file, at most")
    parser.add_argument("--trainer", nargs="+", default=["light", "ngrams"])
    parser.add_argument("--weight", nargs="+", type=float, default=[2.0, 4.0, 8.0])
    parser.add_argument("--doubt", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--flip", type=float, default=0.05, help="the share of clear labels that is turned round")
    parser.add_argument("--confidence", nargs="+", type=float, default=[0.7, 0.8, 0.9], help="of the teacher")
    args = parser.parse_args()
    drawn = draw(args.data, args.files, args.rows)
    items = [item for _, item, _ in drawn]
    true = [severity for _, _, severity in drawn]
    given = [coin(item) if severity is Severity.controversial else severity for _, item, severity in drawn]
    sides = halves(items)
    print(f"{len(items):,} rows of {', '.join(args.files)}")
    for trainer in args.trainer:
        made = trainer_named(trainer)
        by_weight: dict[float, list[Labelled]] = {}
        for weight in args.weight:
            start = time.process_time()
            by_weight[weight] = cross_annotate(items, given, sides, made, weight=weight)
            print(f"\n{trainer}, weight {weight:g}: {time.process_time() - start:.0f} s of CPU time")
            show_files(drawn, by_weight[weight])
        if args.doubt:
            start = time.process_time()
            parts = [halves(items, seed=1000 + i) for i in range(ROUNDS)]
            doubted = doubts(items, given, sides, parts, made)
            print(f"\n{trainer}, doubt: {time.process_time() - start:.0f} s of CPU time")
            for weight, labelled in by_weight.items():
                for share in args.doubt:
                    print(f"\n{trainer}, weight {weight:g}, doubt {share:g}")
                    show_files(drawn, only_doubtful(labelled, given, doubted, share))
        if args.flip:
            mend(items, true, given, made, args.flip, args.confidence)


def mend(
    items: list[Item], true: list[Severity], given: list[Severity], made: Trainer, share: float, sure: list[float]
) -> None:
    """Flipped labels among the rows whose label is clear: how many are disputed, and what a trained teacher makes."""
    rows = [i for i, severity in enumerate(true) if severity is not Severity.controversial]
    items, true, given = ([part[i] for i in rows] for part in (items, true, given))
    turned = set(flipped(given, true, share))
    told = [
        (Severity.safe if t is Severity.unsafe else Severity.unsafe) if i in turned else t for i, t in enumerate(true)
    ]
    labelled = cross_annotate(items, told, halves(items), made)
    doubted = disputed(labelled, told)
    found = len(turned & set(doubted)) / len(turned)
    others = len(set(doubted) - turned) / (len(items) - len(turned))
    print(
        f"{len(items):,} clear rows, {len(turned):,} flipped: disputed {found:.1%} of them, {others:.1%} of the others"
    )
    opinions = trained_teacher(items, told, halves(items, seed=1), made, doubted)
    for least in sure:
        mended = repair([Labelled(label, "given") for label in told], told, opinions, confidence=least)
        wrong = sum(label.severity is not t for label, t in zip(mended, true, strict=True))
        right = sum(mended[i].severity is true[i] for i in turned)
        print(f"  teacher {least:g} sure: {right} of {len(turned)} flips mended, wrong labels {len(turned)} -> {wrong}")


def show_files(drawn: Drawn, labelled: list[Labelled]) -> None:
    """Of all files, and of each."""
    for name in ("all", *dict.fromkeys(file for file, _, _ in drawn)):
        rows = [i for i, (file, _, _) in enumerate(drawn) if name in ("all", file)]
        show(name, [drawn[i][2] for i in rows], [labelled[i].severity for i in rows])


def show(name: str, true: list[Severity], found: list[Severity | None]) -> None:
    share = {s: [f is Severity.controversial for t, f in zip(true, found, strict=True) if t is s] for s in SEVERITIES}
    n = sum(sum(hits) for hits in share.values())
    hits = sum(share[Severity.controversial])
    base = len(share[Severity.controversial]) / len(true)
    told = "  ".join(f"{k} {sum(share[s]) / max(len(share[s]), 1):.1%}" for k, s in zip(NAMES, SEVERITIES, strict=True))
    precision = f"{hits / n:.1%}" if n else "-"
    print(
        f"{name:20} called controversial, of those that people call  {told};  precision {precision} (base {base:.1%})"
    )


if __name__ == "__main__":
    main()
