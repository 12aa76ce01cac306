"""Token labels: from which character on is an unsafe answer unsafe?

    python -m guardkit.training.tokens rows.jsonl --out located.jsonl --llm Qwen/Qwen3-4B --guard Qwen/Qwen3Guard-Gen-4B
    python -m guardkit.training.tokens rows.jsonl --out located.jsonl --llm http://127.0.0.1:8000/v1 --plan

Each row comes back as it was, with `unsafe_from`: a character of its answer, or null, and `unsafe_from_status`, which
says why. A run that was killed goes on where it was; rows that could not be judged are tried again when the same
command is run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guardkit.errors import GuardkitError
from guardkit.evaluation.rows import row_of
from guardkit.evaluation.specs import Fields
from guardkit.guard import Guard
from guardkit.labelling.judging import Judge, RateLimit
from guardkit.labelling.manifest import guard_settings
from guardkit.labelling.planning import duration
from guardkit.spinning import bound_spinning
from guardkit.training.boundary import most_tests, units
from guardkit.training.continuing import LLM, Ensemble, LocalLLM, RemoteLLM, Sampling
from guardkit.training.files import Records, Work, fields_of, reserve
from guardkit.training.token_search import THRESHOLD, Answer, Cost, Finder, Finished, Rule
from guardkit.verdict import Stage

COLUMNS = ("unsafe_from", "unsafe_from_status", "unsafe_from_monotone", "unsafe_from_error")
STATUSES = ("found", "not confirmed", "not judged", "safe", "no label", "no answer")


@dataclass
class Report:
    """statuses: rows by what became of them; cost: of all rows that are done, in this run and before; odd: boundaries
    that not all tests agree with; seconds: of this run."""

    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    cost: Cost = field(default_factory=Cost)
    odd: int = 0
    seconds: float = 0.0

    def add(self, status: str, entry: Mapping[str, Any], error: str | None) -> None:
        """Count a row. entry: of the log, empty where there is none."""
        self.statuses[status] += 1
        self.odd += status == "found" and not entry["monotone"]
        if error is not None:
            self.errors[error] += 1
        if "cost" in entry:
            self.cost.add(Cost(**entry["cost"]))

    def to_dict(self) -> dict[str, Any]:
        counts = {name: self.statuses[name] for name in STATUSES}
        cost = asdict(self.cost)
        return {
            "rows": counts,
            "errors": dict(self.errors),
            "not_monotone": self.odd,
            "cost": cost,
            "seconds": self.seconds,
        }

    def lines(self) -> list[str]:
        """For people."""
        cost = self.cost
        counts = ", ".join(f"{self.statuses[name]:,} {name}" for name in STATUSES if self.statuses[name])
        return [
            f"{self.statuses.total():,} rows: {counts or 'none'}",
            f"{cost.prefixes:,} of {cost.units:,} prefixes tested, {cost.continued:,} of them continued; "
            f"{cost.llm_calls:,} calls of the LLM, {cost.llm_tokens:,} tokens written; "
            f"{cost.judge_texts:,} prefixes, {cost.guard_texts:,} answers judged",
            f"{self.odd:,} boundaries that not all tests agree with; {duration(self.seconds)} in this run",
            *(f"{n:,} rows not judged: {error}" for error, n in self.errors.most_common(5)),
        ]


@dataclass(frozen=True)
class Reading:
    """Where texts and labels are, and what the new columns are called."""

    fields: Fields = field(default_factory=Fields)
    suffix: str = ""

    @property
    def columns(self) -> dict[str, str]:
        return {name: f"{name}{self.suffix}" for name in COLUMNS}

    def answer(self, index: int, record: Mapping[str, Any]) -> tuple[str, Answer | None, str | None]:
        """The status of a row without looking for anything, its answer where a boundary is to be looked for (the status
        is "" then), and what is wrong with the row."""
        row = row_of(index + 1, record, self.fields)
        if row.error is not None or row.item is None:
            return "not judged", None, row.error or "no text in it"
        if isinstance(row.item, str) or row.item[-1].stage is not Stage.response:
            return "no answer", None, None
        if row.severity < 0:
            return "no label", None, None
        if row.severity == 0:
            return "safe", None, None
        last = row.item[-1]
        if row.others or last.reasoning or last.tool_calls or last.attached:
            return "not judged", None, "several texts in it: a boundary is looked for in one answer"
        if not units(last.content):
            return "no answer", None, None
        return "", Answer(index, tuple(row.item[:-1]), last.content), None


def label_tokens(
    inputs: Sequence[str],
    out: str | Path,
    finder: Finder,
    *,
    reading: Reading | None = None,
    described: Mapping[str, Any] | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> Report:
    """Look for the boundary of each unsafe or controversial answer of `inputs`, and write all rows to `out`.

    described: what stands for the LLM and the guards in the manifest; a run goes on only with the same. told: takes how
    many rows are done. Raises `LabelError`.
    """
    start = time.monotonic()
    reading = reading or Reading()
    records = Records(inputs)
    work = Work(out, records)
    depends = {"rule": asdict(finder.rule), "fields": repr(reading.fields), "by": dict(described or {})}
    with work.begun(depends):
        log = work.log("rows")
        known = log.read()
        for done, finished in enumerate(finder.find(_open(records, reading, known)), 1):
            entry = _entry(finished)
            log.append({finished.answer.index: entry})
            known[finished.answer.index] = entry
            told(done)
        report = Report()
        work.write(_written(records, reading, known, report))
    report.seconds = time.monotonic() - start
    return report


def so_far(out: str | Path) -> Report:
    """What is done of a run that did not end, by its log: the answers alone, without rows that need no boundary."""
    report = Report()
    for entry in Work.log_of(out, "rows").read().values():
        report.add(entry.get("status", "not judged"), entry, entry.get("error"))
    return report


def _open(records: Records, reading: Reading, known: Mapping[int, Mapping[str, Any]]) -> Iterator[Answer]:
    """The answers whose boundary is not known yet."""
    for index, record in enumerate(records):
        if not index:
            reserve(record, list(reading.columns.values()))
        if "status" not in known.get(index, {}):
            answer = reading.answer(index, record)[1]
            if answer is not None:
                yield answer


def _entry(finished: Finished) -> dict[str, Any]:
    if finished.boundary is None:
        return {"error": finished.error}
    at = finished.boundary.unit
    found = {"status": "not confirmed", "unsafe_from": None} if at is None else {
        "status": "found", "unsafe_from": units(finished.answer.text)[at][0]
    }  # fmt: skip
    return {**found, "monotone": finished.boundary.monotone, "cost": asdict(finished.answer.cost)}


def _written(
    records: Records, reading: Reading, known: Mapping[int, Mapping[str, Any]], report: Report
) -> Iterator[Mapping[str, Any]]:
    names = reading.columns
    for index, record in enumerate(records):
        status, answer, error = reading.answer(index, record)
        entry = known.get(index, {}) if answer is not None else {}
        status = status or entry.get("status", "not judged")
        error = error or entry.get("error")
        report.add(status, entry, error)
        new: dict[str, Any] = {names["unsafe_from"]: entry.get("unsafe_from"), names["unsafe_from_status"]: status}
        if status == "found":
            new[names["unsafe_from_monotone"]] = entry["monotone"]
        if error is not None:
            new[names["unsafe_from_error"]] = error
        yield {**record, **new}


# ------------------------------------------------------------------------------------------------------------- plan


def plan(inputs: Sequence[str], finder: Finder, reading: Reading) -> list[str]:
    """What a run takes at most, in lines for people: counted, and timed on one prefix of the middle answer."""
    sizes: list[tuple[int, Answer]] = []
    n_rows = 0
    for index, record in enumerate(Records(inputs)):
        n_rows += 1
        answer = reading.answer(index, record)[1]
        if answer is not None:
            sizes.append((len(units(answer.text)), answer))
    rule = finder.rule
    if not sizes:
        return [f"{n_rows:,} rows, none of them with an unsafe answer: nothing to do"]
    every = sum(n for n, _ in sizes)
    continued = sum(most_tests(n, rule.verify) for n, _ in sizes) if rule.bisects else every
    judged = min(every, continued + sum(most_tests(n) for n, _ in sizes)) if rule.bisects else every
    middle = sorted(sizes, key=lambda pair: pair[0])[len(sizes) // 2][1]
    timed = finder.timed(middle)
    prefixes = max(continued - len(sizes), 0)  # whole answers are not continued
    least = min(prefixes, (1 + rule.verify) * len(sizes)) if rule.bisects else len(sizes)
    lines = [
        f"{n_rows:,} rows, {len(sizes):,} answers to look into, {every:,} prefixes; about {judged:,} are tested",
        f"at most {prefixes * rule.k:,} continuations, {least * rule.k:,} where guard and judge agree; at most "
        f"{prefixes * rule.k + judged + len(sizes):,} texts judged",
    ]
    if isinstance(timed, str):
        return [*lines, f"one prefix was tried, and was not judged: {timed}"]
    seconds, tokens = timed
    return [
        *lines,
        f"measured on one prefix: {seconds:.1f} s for {rule.k} continuations and their judgement, {tokens:,} tokens",
        f"at most about {prefixes * tokens:,} tokens and {duration(prefixes * seconds)}; "
        f"{least * tokens:,} and {duration(least * seconds)} where guard and judge agree",
    ]


# ---------------------------------------------------------------------------------------------------------- command


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m guardkit.training.tokens", description=(__doc__ or "").split("\n")[0]
    )
    made.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, patterns, URLs, hub:NAME")
    made.add_argument("--out", required=True, metavar="FILE", help="JSON lines; .gz and .zst are compressed")
    made.add_argument(
        "--llm",
        action="append",
        required=True,
        metavar="MODEL",
        help="that goes on with answers: a folder, a hub id, a .gguf file, or a server's URL; several share the work",
    )
    made.add_argument("--llm-model", metavar="NAME", help="on the servers; default: the first one listed")
    made.add_argument(
        "--continue-by", metavar="WAY", help="how servers continue a message: vllm, sglang, llama.cpp, prefix"
    )
    made.add_argument(
        "--guard", action="append", metavar="MODEL", help="judges continuations; several vote; default: nano"
    )
    made.add_argument("--judge", action="append", metavar="MODEL", help="judges prefixes; default: the guard")
    made.add_argument("--device", help="of local models")
    made.add_argument("--dtype", help="of the local LLM; default: float32 on a CPU, else as it was saved")
    made.add_argument("-k", type=int, default=8, help="continuations of a prefix")
    made.add_argument("--threshold", type=float, default=THRESHOLD, help="the share of them that is not safe, at least")
    made.add_argument("--verify", type=int, default=1, help="prefixes tested on each side of the boundary")
    made.add_argument("--every-prefix", action="store_true", help="instead of bisection")
    made.add_argument("--tokens", type=int, default=64, help="of a continuation, at most")
    made.add_argument("--temperature", type=float, default=1.0)
    made.add_argument("--top-p", type=float, default=0.95)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch", type=int, default=16, help="continuations that a local model writes at a time")
    made.add_argument("--at-once", type=int, default=8, help="rows that are looked into at a time")
    made.add_argument("--rate", type=float, help="requests a second to a server, at most")
    made.add_argument("--label", metavar="COLUMN", help="of the labels; default: severity, or label")
    made.add_argument("--map", metavar="WORD=SEVERITY,…", help="what stands in it: toxic=unsafe,fine=safe")
    made.add_argument("--column", action="append", default=[], metavar="FIELD=NAME", help="response=answer")
    made.add_argument("--suffix", default="", help="of the new columns, where records have them already")
    made.add_argument("--plan", action="store_true", help="say what a run takes, and label nothing")
    made.add_argument("--json", metavar="FILE", help="counts and cost, as JSON")
    made.add_argument("--quiet", action="store_true")
    return made


def main(
    argv: Sequence[str] | None = None,
    load: Callable[..., Guard] = Guard.load,
    llm: Callable[[argparse.Namespace], LLM] | None = None,
) -> int:
    """The command. load: what loads a guard by name; llm: makes the LLM of the options."""
    args = parser().parse_args(argv)
    try:
        reading = Reading(fields_of(args.column, args.label, args.map), args.suffix)
        rule = Rule(args.k, args.threshold, args.verify, not args.every_prefix, args.seed)
        guard, judge, described = _judges(args, load)
        model = (llm or _llm)(args)
        described |= {
            "llm": args.llm,
            "llm_model": args.llm_model,
            "dtype": args.dtype,
            "sampling": asdict(_sampling(args)),
        }
        finder = Finder(model, guard, judge, rule, max(args.at_once, 1))
        if args.plan:
            print("\n".join(plan(args.inputs, finder, reading)))
            return 0
        talk = (lambda done: None) if args.quiet else _talk
        report = label_tokens(args.inputs, args.out, finder, reading=reading, described=described, told=talk)
    except (GuardkitError, ValueError) as error:
        print(f"tokens: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tokens: {error}; what was done is kept: run the same command again", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\n".join(so_far(args.out).lines()))
        print("tokens: interrupted; what was done is kept: run the same command again", file=sys.stderr)
        return 130
    if not args.quiet:
        print("\n".join(report.lines()))
    if args.json:
        Path(args.json).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return 3 if report.statuses["not judged"] else 0


def _talk(done: int) -> None:
    print(f"tokens: {done:,} answers done", file=sys.stderr)


def _judges(args: argparse.Namespace, load: Callable[..., Guard]) -> tuple[Judge, Judge | None, dict[str, Any]]:
    options = {"device": args.device} if args.device else {}
    names = args.guard or ["nano"]
    guards = [load(name, **options) for name in names]
    described = {"guard": [guard_settings(g, name, None) for g, name in zip(guards, names, strict=True)]}
    if not args.judge or args.judge == names:
        return Judge(guards, names), None, described
    others = [load(name, **options) for name in args.judge]
    described["judge"] = [guard_settings(g, name, None) for g, name in zip(others, args.judge, strict=True)]
    return Judge(guards, names), Judge(others, args.judge), described


def _sampling(args: argparse.Namespace) -> Sampling:
    return Sampling(args.temperature, args.top_p, args.tokens)


def _llm(args: argparse.Namespace) -> LLM:
    from guardkit.adapters.chat_models import load_chat_model

    limit = RateLimit(args.rate) if args.rate else None
    llms: list[LLM] = []
    for name in args.llm:
        if name.startswith(("http://", "https://")):
            llms.append(
                RemoteLLM(name, _sampling(args), model=args.llm_model, continue_by=args.continue_by, limit=limit)
            )
        else:
            model, tokenizer = load_chat_model(name, device=args.device or "cpu", dtype=args.dtype, extra="train")
            llms.append(LocalLLM(model, tokenizer, _sampling(args), batch=args.batch, name=name))
    return llms[0] if len(llms) == 1 else Ensemble(llms)


if __name__ == "__main__":
    bound_spinning()
    raise SystemExit(main())
