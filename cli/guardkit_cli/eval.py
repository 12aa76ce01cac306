"""`guard eval`: scores guards on labelled texts, side by side, and writes the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from guardkit_cli import loading, settings
from guardkit_cli.output import escape, is_terminal, say, to_json

if TYPE_CHECKING:
    from guardkit.evaluation.columns import Columns
    from guardkit.evaluation.figures import SetFigures
    from guardkit.evaluation.report import PublishedTable
    from guardkit.evaluation.sources import Source
    from guardkit.evaluation.specs import Fields

_PATH = click.Path(dir_okay=False, path_type=Path)

EPILOG = """\b
Examples:
  guard eval my-labels.jsonl
  guard eval --data bench/
  guard eval --data bench/ --suite core --html report.html --markdown report.md
  guard eval --suite prompts --model nano --model Qwen/Qwen3Guard-Stream-0.6B
  guard eval answers.csv --column response=answer --column severity=verdict --label bad=unsafe --label ok=safe
  guard eval --list

\b
Rows of a file, one a line (JSONL), or columns of a CSV or Parquet file:
  {"prompt": …, "severity": "safe" | "controversial" | "unsafe"}   judges the prompt
  {"prompt": …, "response": …, "severity": …}                      judges the response
  any other shape that `guard check` reads, with "severity" (or "label") beside it (see docs/inputs.md)
  also: "kind", "language", "categories", "refusal", "span" (see docs/eval.md)

Predictions are kept on disk: a run that was stopped goes on where it was, and gives the same figures.

\b
Exit codes:
  0  scored     2  wrong usage
  3  a model or a data set does not load, or a row was not judged
"""


@click.command("eval", epilog=EPILOG, short_help="Score guards on labelled texts.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--suite", "suites", metavar="NAME", multiple=True, help="A data set, a suite (see --list), or a FILE.")
@click.option(
    "--data",
    envvar="GUARDKIT_DATA",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with local copies; without --suite and FILE, all of it. Default: $GUARDKIT_DATA.",
)
@settings.option("model", "May be repeated.", multiple=True)
@click.option("--revision", help="The revision of a hub's model.")
@click.option("--device", help="Where the model runs: cpu, cuda, cuda:1. Default: the model's own choice.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for one judgement.")
@click.option("--column", "columns", metavar="FIELD=NAME", multiple=True, help="The column of a FILE for a field.")
@click.option("--label", "labels", metavar="VALUE=SEVERITY", multiple=True, help="What a label of a FILE means.")
@click.option("--limit", type=click.IntRange(1), help="Only the first rows of each set.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, help="0: no intervals.")
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), default=256, show_default=True, help="Texts judged at once."
)
@click.option("--cache", metavar="FILE", type=_PATH, help="Where predictions are kept.")
@click.option("--no-cache", is_flag=True, help="Keep no predictions, and use none.")
@click.option(
    "--qwen-tokenizer",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with Qwen3's tokenizer.json, for the locations of Qwen3GuardTest.",
)
@click.option("--published", metavar="MODEL", default=None, help="Whose published figures stand beside.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--text", "with_text", is_flag=True, help="Put the texts of mistakes into the JSON.")
@click.option("--markdown", metavar="FILE", type=_PATH, help="Write a Markdown report.")
@click.option("--html", metavar="FILE", type=_PATH, help="Write a report as one HTML page.")
@click.option("--no-text", is_flag=True, help="Leave the texts of mistakes out of the HTML page.")
@click.option("--list", "list_sets", is_flag=True, help="Show the data sets and suites.")
def command(
    files: tuple[Path, ...],
    suites: tuple[str, ...],
    data: Path | None,
    model: tuple[str, ...],
    revision: str | None,
    device: str | None,
    timeout: float | None,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    limit: int | None,
    seed: int,
    resamples: int,
    batch_size: int,
    cache: Path | None,
    no_cache: bool,
    qwen_tokenizer: Path | None,
    published: str | None,
    as_json: bool,
    with_text: bool,
    markdown: Path | None,
    html: Path | None,
    no_text: bool,
    list_sets: bool,
) -> int:
    """Score guards on data sets (--suite), on a folder of them (--data), or on a FILE with labels.

    Prints precision, recall and F1 in strict and loose mode with bootstrap intervals, average precision, calibration,
    refusal, and where streams are stopped. The policy plays no part.
    """
    from guardkit.errors import GuardkitError
    from guardkit.evaluation import report
    from guardkit.evaluation.runner import Settings, evaluate, exit_code, model_revision, shown_name
    from guardkit.evaluation.specs import load_table

    table = load_table()
    beside = {} if limit else table.published  # a part of a set is not the set
    if list_sets:
        _list()
        return 0
    if with_text and not as_json:
        raise click.UsageError("--text goes with --json")
    shown = published or report.SHOWN_PUBLISHED
    known_models = {p.model for figures in table.published.values() for p in figures}
    if shown not in known_models:
        raise click.UsageError(f"--published: no figures of '{shown}'; known: {', '.join(sorted(known_models))}")
    files = (*files, *(Path(name) for name in suites if Path(name).is_file()))
    suites = tuple(name for name in suites if not Path(name).is_file())
    sources, missing = _sources(files, suites, data, _fields(columns, labels, files), limit)
    for name in missing:
        say(f"{name}: not at hand: no file of it in --data, and it cannot be fetched here", "error")
    if not sources:
        raise click.UsageError("nothing to score" if missing else _NOTHING)
    for target in (markdown, html):
        if target is not None and not target.absolute().parent.is_dir():
            raise click.UsageError(f"{target}: there is no folder {target.absolute().parent}")

    options = Settings(seed, resamples, batch_size, None if no_cache else cache or _default_cache())
    if qwen_tokenizer is not None:
        from guardkit.models.qwen_tokenizer import QwenTokenizer

        options = replace(options, qwen=QwenTokenizer(qwen_tokenizer))
    results: list[SetFigures] = []
    for named in dict.fromkeys(model):
        name = shown_name(named)
        try:
            # A policy that stops a response at what is controversial (strict) would end its verdict there; and it is
            # the model's own scores that are measured.
            guard = loading.load_guard(
                named, policy="loose", device=device, timeout=timeout, revision=revision, exact=True
            )
            at = model_revision(guard, name, revision)
        except (GuardkitError, OSError) as error:  # the tables of the other models are not lost with it
            say(str(error), "error")
            missing.append(name)
            continue
        for source in sources:
            progress = _Progress(f"{name}, {source.name}")
            try:
                results.append(evaluate(guard, name, at, source, options, progress))
            except (GuardkitError, OSError) as error:
                progress.wipe()
                say(f"{source.name}: {error}", "error")
                missing.append(source.name)
                continue
            except KeyboardInterrupt:
                progress.wipe()
                say("interrupted" + ("" if no_cache else "; what was judged is kept: run the same command again"))
                raise
            finally:
                progress.wipe()
            _tell(results[-1])
        del guard
    missing = list(dict.fromkeys(missing))
    if not results:
        return 3
    if markdown is not None:
        markdown.write_text(report.as_markdown(results, beside, shown), encoding="utf-8", errors="replace")
    if html is not None:
        from guardkit.evaluation.page import as_html

        page = as_html(results, beside, shown, missing=missing, with_text=not no_text)
        html.write_text(page, encoding="utf-8", errors="replace")
    if as_json:
        print(to_json(report.as_dict(results, beside, missing, with_text=with_text), sys.stdout.encoding))
    else:
        _print(results, beside, shown)
    if missing:
        return 3
    if not any(r.n_judged or r.n_not_judged or r.n_unread for r in results):
        say(
            "no row has a label that is known: name its column with --column severity=NAME, its values with --label",
            "error",
        )
        return 2
    return exit_code(results)


_NOTHING = "nothing to score: give a FILE with labels, --suite NAME (see --list), or --data DIR"


def _fields(columns: Sequence[str], labels: Sequence[str], files: Sequence[Path]) -> Fields:
    """--column and --label, which are about FILEs."""
    from guardkit.evaluation.specs import Fields, Labels

    if (columns or labels) and not files:
        raise click.UsageError("--column and --label go with a FILE")
    at = dict(_pair("--column", c, "FIELD=NAME") for c in columns)
    means = {value.lower(): name for value, name in (_pair("--label", v, "VALUE=SEVERITY") for v in labels)}
    severities = ("safe", "controversial", "unsafe")
    for name in means.values():
        if name not in severities:
            raise click.UsageError(f"--label: '{name}' is not safe, controversial or unsafe")
    if means:  # the severities' own names are clear beside any others; what 1 means beside "yes" is not
        means = {name: name for name in severities} | means
    known = ("prompt", "response", "messages", "kind", "stage", "severity", "refusal", "language", "categories", "span")
    for name in at:
        if name not in known:
            raise click.UsageError(f"--column: unknown field '{name}'; known: {', '.join(known)}")
    severity = Labels(column=at.get("severity", "severity"), map=means) if "severity" in at or means else None
    refusal = Labels(column=at["refusal"]) if "refusal" in at else None
    return Fields({k: v for k, v in at.items() if k not in ("severity", "refusal")}, severity, refusal)


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise click.UsageError(f"{option} takes {form}, not '{text}'")
    return name, value


def _sources(
    files: Sequence[Path], suites: Sequence[str], data: Path | None, fields: Fields, limit: int | None
) -> tuple[list[Source], list[str]]:
    """What is to be scored, and the names of what is not at hand."""
    from guardkit.errors import EvaluationError
    from guardkit.evaluation.sources import ENDINGS, KNOWN, Source, find, stem
    from guardkit.evaluation.specs import load_table

    table, sources, missing = load_table(), [], []
    try:
        specs = {spec.name: spec for name in suites for spec in table.resolve(name)}
    except EvaluationError as error:
        raise click.UsageError(str(error)) from error
    for spec in specs.values():
        found = find(spec, data, limit)
        if found is not None:
            sources.append(found)
        else:
            missing.append(spec.name)
    for path in files:
        if not path.name.endswith(ENDINGS):
            raise click.UsageError(f"{path}: not a kind of file that is known; known: {KNOWN}")
        sources.append(Source(stem(path), None, path, fields, limit))
    if data is not None and not suites and not files:
        for path in sorted(p for p in data.iterdir() if p.name.endswith(ENDINGS)):
            known = table.of_file(stem(path))
            if known is not None:
                sources.append(Source(known.name, known, path, known.local, limit))
            else:
                sources.append(Source(stem(path), None, path, limit=limit))
    return _named_apart(sources), missing


def _named_apart(sources: Sequence[Source]) -> list[Source]:
    """Each source under a name of its own: of several of one name a data set keeps it, the others get a "+"."""
    names: dict[int, str] = {}
    for i, source in sorted(enumerate(sources), key=lambda found: found[1].spec is None):
        name = source.name
        while name in names.values():
            name += "+"
        names[i] = name
    return [replace(source, name=names[i]) for i, source in enumerate(sources)]


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache")
    return Path(base) / "guardkit" / "predictions.sqlite"


def _list() -> None:
    from guardkit.evaluation.specs import load_table

    table = load_table()
    for spec in table.datasets.values():
        source = f"{spec.hub.path or spec.hub.url} @ {spec.hub.revision[:12]}" if spec.hub else "local file only"
        print(f"{spec.name:<30} {spec.kind:<9} {spec.metric:<10} {spec.title}")
        print(f"{'':<30} {source}; file: {spec.file}.jsonl.gz; {spec.licence}")
    for name, members in table.suites.items():
        print(f"suite {name:<24} {', '.join(members)}")


def _print(results: Sequence[SetFigures], published: PublishedTable, shown: str) -> None:
    from guardkit.evaluation import report

    tables = [t for t in report.all_tables(results, published, shown) if t.title != "Published by others, same sets"]
    if len(results) > 4:  # the reports have them all
        tables = [t for t in tables if t.title not in ("By language", "By category", "Labels by verdicts")]
    for i, table in enumerate(tables):
        lines = report.as_text(table).split("\n")
        print("\n".join([*([""] if i else []), *(escape(line) for line in lines)]))
    print(f"\n{report.NOTE}")


def _tell(found: SetFigures) -> None:
    lost = found.n_not_judged + found.n_unread
    if lost:
        reason = next(iter(found.errors), "")
        say(f"{found.dataset}: {lost:,} of {found.n_rows:,} rows not judged by {found.model}: {reason}", "error")
    if found.n_judged == 0:
        others = f"{found.n_unlabelled:,} without a label, {found.n_left_out:,} that the set leaves out"
        say(f"{found.dataset}: no row was scored ({others})", "warning")
    if found.n_without_location:
        say(
            f"{found.dataset}: {found.n_without_location:,} unsafe rows whose sentence is not known in the tokens of "
            f"{found.model} (--qwen-tokenizer may help)",
            "warning",
        )


class _Progress:
    """One line on stderr, a few times a second, where stderr is a terminal."""

    def __init__(self, what: str):
        self._what, self._start = what, perf_counter()
        self._next = 0.0
        self._shows, self._is_drawn = is_terminal(sys.stderr), False

    def __call__(self, columns: Columns) -> None:
        now = perf_counter()
        if not self._shows or now < self._next:
            return
        self._next = now + 0.2
        rate = columns.n_rows / max(now - self._start, 1e-6)
        sys.stderr.write(f"\r\x1b[K{escape(self._what)}  {columns.n_rows:,} rows  {rate:,.0f}/s")
        sys.stderr.flush()
        self._is_drawn = True

    def wipe(self) -> None:
        if self._is_drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._is_drawn = False
