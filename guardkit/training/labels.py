"""Labels of three levels from labels of two: cross-annotation, then repair by a teacher.

    python -m guardkit.training.labels data/*.jsonl --out labels.jsonl --teacher Qwen/Qwen3Guard-Gen-4B

Each row comes back as it was, with its `severity` and, beside it, `severity_before`, `label_source`, `label_models` and
where something was not judged `label_error`. A run that was killed goes on where it was; what a teacher could not judge
it is asked again when the same command is run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardkit.errors import GuardkitError, LabelError
from guardkit.evaluation.rows import dig, row_of
from guardkit.evaluation.specs import Fields
from guardkit.guard import Guard
from guardkit.labelling.judging import RateLimit
from guardkit.labelling.manifest import guard_settings
from guardkit.labelling.rows import Item
from guardkit.spinning import bound_spinning
from guardkit.training.annotators import GuardTeacher, Opinion, Predictor, Trainer, asked, trainer_named
from guardkit.training.confusion import Comparison
from guardkit.training.cross import WEIGHT, Labelled, cross_annotate, disputed, repair, trained_teacher
from guardkit.training.doubt import ROUNDS, doubts, only_doubtful
from guardkit.training.files import Records, Work, fields_of, reserve
from guardkit.training.halves import halves
from guardkit.verdict import SEVERITIES, Severity

COLUMNS = ("severity_before", "label_source", "label_models", "label_error")


@dataclass(frozen=True)
class Settings:
    """How rows are labelled. fields: where their texts and labels are. group: a column whose rows stay in one half.
    weight, keep_given: see `cross_annotate`. doubt: see `only_doubtful`; 1: every disagreement counts. teacher_on:
    "disputed" rows or "all"; confidence: of the teacher, at least. suffix: of the new columns' names."""

    fields: Fields = field(default_factory=Fields)
    group: str | None = None
    seed: int = 0
    weight: float = WEIGHT
    keep_given: bool = False
    teacher_on: str = "disputed"
    confidence: float = 0.0
    suffix: str = ""
    doubt: float = 1.0

    @property
    def columns(self) -> dict[str, str]:
        return {name: f"{name}{self.suffix}" for name in COLUMNS}


@dataclass
class Read:
    """Of each row the item, the given label, the group, and why it could not be read."""

    items: list[Item | None] = field(default_factory=list)
    given: list[Severity | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)

    def add(self, number: int, record: Mapping[str, Any], settings: Settings) -> None:
        row = row_of(number, record, settings.fields)
        group = dig(record, settings.group) if settings.group is not None else None
        error = row.error or ("several texts in it: a label is of one" if row.others else None)
        self.items.append(row.item if error is None else None)
        self.given.append(SEVERITIES[row.severity] if row.severity >= 0 else None)
        self.groups.append(None if group is None else str(group))
        self.errors.append(error or (None if row.item is not None else "no text in it"))


def label(
    inputs: Sequence[str],
    out: str | Path,
    *,
    trainer: Trainer,
    teacher: Predictor | Trainer | None = None,
    teacher_trains: bool = False,
    settings: Settings | None = None,
    described: Mapping[str, Any] | None = None,
    columns: Sequence[str] = (),
    told: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Label the rows of `inputs` and write them to `out`.

    teacher: a predictor, or with `teacher_trains` a trainer of its own models. described: what stands for trainer and
    teacher in the manifest; a run goes on only with the same. columns: what the comparison tells apart, `COLUMNS` of
    `confusion` by default. told: takes lines of progress. Raises `LabelError`.
    """
    settings = settings or Settings()
    records = Records(inputs)
    work = Work(out, records)
    read = Read()
    for number, record in enumerate(records, 1):
        if number == 1:
            label_column = settings.fields.severity.column if settings.fields.severity else None
            taken = list(settings.columns.values())
            reserve(record, taken if label_column in (None, "severity") else [*taken, "severity"])
        read.add(number, record, settings)
    depends = {
        "group": settings.group, "seed": settings.seed, "weight": settings.weight, "fields": repr(settings.fields),
        "by": dict(described or {}),
    }  # fmt: skip
    with work.begun(depends):
        steps = _Steps(work, told)
        sides = halves(read.items, read.groups, seed=settings.seed)
        labelled = cross_annotate(
            read.items, read.given, sides, trainer, weight=settings.weight, keep_given=settings.keep_given, step=steps
        )
        if settings.doubt < 1:
            parts = [halves(read.items, read.groups, seed=settings.seed + 1000 + i) for i in range(ROUNDS)]
            doubted = doubts(read.items, read.given, sides, parts, trainer, step=steps)
            labelled = only_doubtful(labelled, read.given, doubted, settings.doubt)
        if teacher is not None:
            labelled = _repaired(read, labelled, settings, teacher, teacher_trains, steps)
        labelled = [
            label if error is None else Labelled(label.severity, label.source, error=error)
            for label, error in zip(labelled, read.errors, strict=True)
        ]
        found = Comparison(columns)
        work.write(_written(records, read.given, labelled, settings, found))
    return found


def _repaired(
    read: Read,
    labelled: Sequence[Labelled],
    settings: Settings,
    teacher: Any,
    trains: bool,
    steps: _Steps,
) -> list[Labelled]:
    wanted = disputed(labelled, read.given)
    if settings.teacher_on == "all":
        wanted = [i for i, (item, given) in enumerate(zip(read.items, read.given, strict=True)) if item and given]
    if trains:
        labels = [label.severity for label in labelled]
        sides = halves(read.items, read.groups, seed=settings.seed + 1)  # other halves than before
        opinions: Mapping[int, Opinion] = trained_teacher(read.items, labels, sides, teacher, wanted, step=steps)
    else:
        opinions = steps.ask("teacher", wanted, read.items, teacher)
    return repair(labelled, read.given, opinions, confidence=settings.confidence)


class _Steps:
    """Runs the steps of the work, each kept in a log of its own; a row without an opinion is asked about again."""

    def __init__(self, work: Work, told: Callable[[str], None]):
        self._work, self._told = work, told

    def __call__(self, name: str, rows: Sequence[int], make: Callable[[], Sequence[Opinion]]) -> Mapping[int, Opinion]:
        """A step that trains: done whole, or not at all."""
        log = self._work.log(name)
        known = _opinions(log.read())
        if any(i not in known for i in rows):
            self._told(f"{name}: {len(rows):,} rows")
            known = dict(zip(rows, make(), strict=True))
            log.append({i: _entry(opinion) for i, opinion in known.items()})
        return {i: known[i] for i in rows}

    def ask(
        self, name: str, rows: Sequence[int], items: Sequence[Item | None], predict: Predictor
    ) -> Mapping[int, Opinion]:
        """A step that asks about rows, kept a batch at a time."""
        log = self._work.log(name)
        known = _opinions(log.read())
        new = [(i, item) for i in rows if i not in known and (item := items[i]) is not None]
        done = 0
        for opinions in asked(predict, [item for _, item in new]):
            some = {i: opinion for (i, _), opinion in zip(new[done:], opinions, strict=False)}
            done += len(opinions)
            log.append({i: _entry(opinion) for i, opinion in some.items()})
            known |= some
            self._told(f"{name}: {done:,} of {len(new):,} rows")
        return {i: known[i] for i in rows if i in known}


def _entry(opinion: Opinion) -> dict[str, Any]:
    if opinion.severity is None:
        return {"error": opinion.error}
    return {"severity": opinion.severity.value, "confidence": round(opinion.confidence, 6)}


def _opinions(entries: Mapping[int, Mapping[str, Any]]) -> dict[int, Opinion]:
    """What was judged; what was not is left out, to be tried again."""
    return {i: Opinion(Severity(e["severity"]), e["confidence"]) for i, e in entries.items() if "severity" in e}


def _written(
    records: Records,
    given: Sequence[Severity | None],
    labelled: Sequence[Labelled],
    settings: Settings,
    found: Comparison,
) -> Iterator[Mapping[str, Any]]:
    names = settings.columns
    for record, before, label in zip(records, given, labelled, strict=True):
        found.add(record, before, label)
        said = {"strict": label.strict, "loose": label.loose, "teacher": label.teacher}
        new = {
            "severity": _value(label.severity),
            names["severity_before"]: _value(before),
            names["label_source"]: label.source or "none",
            names["label_models"]: {name: severity.value for name, severity in said.items() if severity is not None},
        }
        if label.error is not None:
            new[names["label_error"]] = label.error
        yield {**record, **new}


def _value(severity: Severity | None) -> str | None:
    return None if severity is None else severity.value


# ---------------------------------------------------------------------------------------------------------- command


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m guardkit.training.labels", description=(__doc__ or "").split("\n")[0]
    )
    made.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, patterns, URLs, hub:NAME")
    made.add_argument("--out", required=True, metavar="FILE", help="JSON lines; .gz and .zst are compressed")
    made.add_argument("--label", metavar="COLUMN", help="of the given labels; default: severity, or label")
    made.add_argument("--map", metavar="WORD=SEVERITY,…", help="what stands in it: toxic=unsafe,fine=safe")
    made.add_argument("--column", action="append", default=[], metavar="FIELD=NAME", help="prompt=question")
    made.add_argument("--group", metavar="COLUMN", help="rows with the same value stay in one half")
    made.add_argument("--seed", type=int, default=0, help="of the halves")
    made.add_argument("--weight", type=float, default=WEIGHT, help="of unsafe to safe rows, strict; inverse for loose")
    made.add_argument(
        "--doubt", type=float, default=1.0, metavar="SHARE", help="disagreement counts on the most doubtful rows only"
    )
    made.add_argument("--trainer", default="light", metavar="NAME", help="light, ngrams, heads:BASE or MODULE:NAME")
    made.add_argument("--keep-given", action="store_true", help="where both models contradict a label, keep it")
    made.add_argument("--teacher", action="append", default=[], metavar="MODEL", help="a guard; several vote")
    made.add_argument("--teacher-trainer", metavar="NAME", help="instead: trained on halves, as for --trainer")
    made.add_argument(
        "--teacher-on", choices=("disputed", "all"), default="disputed", help="the rows it is asked about"
    )
    made.add_argument("--confidence", type=float, default=0.0, help="of the teacher, at least")
    made.add_argument("--device", help="of the teacher")
    made.add_argument("--rate", type=float, help="rows a second that the teacher gets, at most")
    made.add_argument("--by", action="append", default=[], metavar="COLUMN", help="told apart in what is reported")
    made.add_argument("--json", metavar="FILE", help="what is reported, as JSON")
    made.add_argument("--report", metavar="FILE", help="the same as one HTML page")
    made.add_argument("--suffix", default="", help="of the new columns, where records have them already")
    made.add_argument("--quiet", action="store_true")
    return made


def main(argv: Sequence[str] | None = None, load: Callable[..., Guard] = Guard.load) -> int:
    """The command. load: what loads a teacher by name."""
    args = parser().parse_args(argv)
    try:
        found = _run(args, load)
    except GuardkitError as error:
        print(f"labels: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("labels: interrupted; what was done is kept: run the same command again", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"labels: {error}; what was done is kept: run the same command again", file=sys.stderr)
        return 3
    if not args.quiet:
        print("\n".join(found.lines()))
    if args.json:
        Path(args.json).write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    if args.report:
        about = f"{', '.join(args.inputs)}; {args.out}"
        Path(args.report).write_text(found.html([about]), encoding="utf-8", errors="replace")
    return 3 if found.whole.not_judged else 0


def _run(args: argparse.Namespace, load: Callable[..., Guard]) -> Comparison:
    if args.teacher and args.teacher_trainer:
        raise LabelError("--teacher or --teacher-trainer, not both")
    if not 0 < args.doubt <= 1:
        raise LabelError(f"--doubt is a share of the rows, above 0 and at most 1, not {args.doubt:g}")
    fields = fields_of(args.column, args.label, args.map)
    settings = Settings(
        fields, args.group, args.seed, args.weight, args.keep_given, args.teacher_on, args.confidence, args.suffix,
        args.doubt,
    )  # fmt: skip
    described: dict[str, Any] = {"trainer": args.trainer, "teacher": args.teacher_trainer}
    teacher: Predictor | Trainer | None = None
    if args.teacher:
        options = {"device": args.device} if args.device else {}
        limit = RateLimit(args.rate) if args.rate else None
        guards = [load(name, **options) for name in args.teacher]
        teacher = GuardTeacher.of(guards, args.teacher, limit)
        described["teacher"] = [guard_settings(g, name, None) for g, name in zip(guards, args.teacher, strict=True)]
    elif args.teacher_trainer:
        teacher = trainer_named(args.teacher_trainer)
    return label(
        args.inputs, args.out, trainer=trainer_named(args.trainer), teacher=teacher,
        teacher_trains=bool(args.teacher_trainer), settings=settings, described=described, columns=args.by,
        told=(lambda line: None) if args.quiet else lambda line: print(f"labels: {line}", file=sys.stderr),
    )  # fmt: skip


if __name__ == "__main__":
    bound_spinning()
    raise SystemExit(main())
