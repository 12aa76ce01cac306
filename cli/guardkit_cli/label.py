"""`guard label`: a data set in, each record back with what the guard found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guardkit_cli import loading
from guardkit_cli.output import say, write_lines
from guardkit_cli.settings import DEFAULTS

if TYPE_CHECKING:
    from guardkit import Guard
    from guardkit.labelling import Labeller
    from guardkit.labelling.jobs import Settings
    from guardkit.labelling.ray_engine import RayRun

_FORMATS = ("jsonl", "csv", "parquet", "arrow")
_INPUT_FORMATS = ("jsonl", "json", "text", "csv", "tsv", "parquet", "arrow")

EPILOG = """\b
Examples:
  guard label chats.jsonl --out labelled.jsonl
  guard label data/ --out labelled/
  guard label "data/**/*.parquet" --out labelled/ --model Qwen/Qwen3Guard-Gen-4B --device cuda
  guard label s3://bucket/crawl/ --out s3://bucket/labelled/ --format parquet
  guard label hub:ORGANISATION/NAME --revision COMMIT --split train --out labelled/
  guard label data/ --out safe/ --where safe --dropped unsafe/
  guard label data/ --out labelled/ --retry-errors
  guard label data/ --out labelled/ --plan

\b
Each record comes back as it was, with one object more, "guardkit": severity,
categories, scores, refusal, stage, action, model and policy; or an error where
it was not judged. Columns keep their types. What a record is, and what in it
is judged: docs/inputs.md. All else: docs/labelling.md.

A run that was killed goes on where it stopped: run the same command again.

\b
Exit codes:
  0  all rows were labelled, whatever was found      2  wrong usage
  3  the model does not load, an input cannot be read, or a row was not judged
     (rows not judged with --on-error allow: 0, and a warning)
"""


@click.command("label", epilog=EPILOG, short_help="Label data sets of any size.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--out", metavar="PATH", required=True, help="A folder, a URL, or for one input a file.")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Of the output. Default: the input's.")
@click.option("--input-format", type=click.Choice(_INPUT_FORMATS), help="Of the input, where its name does not tell.")
@click.option("--field", metavar="NAME", help="The field or column that is judged (dots go into nested objects).")
@click.option("--shape", metavar="NAME", help="Of the records, instead of finding it out (see docs/inputs.md).")
@click.option(
    "--judge",
    "which",
    type=click.Choice(["last", "prompt", "both"]),
    default="last",
    show_default=True,
    help="Of a record with a prompt and an answer: the answer, the prompt, or both.",
)
@click.option("--stage", type=click.Choice(loading.STAGES), help="What the texts are. Default: prompt.")
@click.option("--column", metavar="NAME", default="guardkit", show_default=True, help="Where the labels go.")
@click.option("--sample", metavar="N|P%", help="Only so many rows, or such a share, drawn at random.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sample.")
@click.option(
    "--where",
    metavar="CONDITION",
    multiple=True,
    help="Keep only such rows: safe, severity=safe,controversial, action=allow, category!=pii, refusal=false.",
)
@click.option("--dropped", metavar="PATH", help="Where the rows go that --where does not keep.")
@click.option("--retry-errors", is_flag=True, help="Judge the rows again that were not judged, and only those.")
@click.option("--revision", metavar="COMMIT", help="Of a hub's data set.")
@click.option("--config", metavar="NAME", help="Of a hub's data set.")
@click.option("--split", metavar="NAME", help="Of a hub's data set. Default: all of them.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 65536),
    default=1024,
    show_default=True,
    help="Rows judged at once, at most; fewer where they would take longer than two seconds.",
)
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens judged at once, at most (4 characters each).")
@click.option("--then", metavar="MODEL", help="A second guard, asked where the first one is unsure.")
@click.option("--vote", "votes", metavar="MODEL", multiple=True, help="A further guard; the label is that of most.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where rows are judged: here, or by actors on a Ray cluster.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Of the cluster. Default: one that runs here, or a new one.")
@click.option("--actors", metavar="N|MIN:MAX", default="1", show_default=True, help="Of the Ray engine.")
@click.option("--actor-cpus", type=click.FloatRange(0), default=1.0, show_default=True, help="Of each actor.")
@click.option(
    "--actor-gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="Of each; 0.25 shares one."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Rows a second, at most.")
@click.option("--model-revision", metavar="REVISION", help="Of a hub's model.")
@click.option("--plan", "plans", is_flag=True, help="Say what a run would take, by a sample, and label nothing.")
@click.option("--report", metavar="FILE", help="Write what was found, by column, as one HTML page.")
@click.option("--no-text", is_flag=True, help="Leave the texts with the highest risk out of the page.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no summary.")
@loading.guard_options
def command(
    inputs: tuple[str, ...],
    out: str,
    form: str | None,
    input_format: str | None,
    field: str | None,
    shape: str | None,
    which: str,
    stage: str | None,
    column: str,
    sample: str | None,
    seed: int,
    where: tuple[str, ...],
    dropped: str | None,
    retry_errors: bool,
    revision: str | None,
    config: str | None,
    split: str | None,
    batch_size: int,
    batch_tokens: int | None,
    then: str | None,
    votes: tuple[str, ...],
    engine: str,
    ray_address: str | None,
    actors: str,
    actor_cpus: float,
    actor_gpus: float,
    rate: float | None,
    model_revision: str | None,
    plans: bool,
    report: str | None,
    no_text: bool,
    quiet: bool,
    model: str,
    policy: str | None,
    device: str | None,
    timeout: float | None,
    on_error: str | None,
) -> int:
    """Label each record of data sets: files, folders, patterns, URLs of stores, data sets of a hub.

    Reads JSONL, JSON, CSV, TSV, lines of text (also compressed), Parquet, Arrow, and what `datasets` saved. Writes one
    output an input, in order, with every record of it.
    """
    from guardkit.errors import LabelError
    from guardkit.labelling import manifest
    from guardkit.labelling.agreement import agreement
    from guardkit.labelling.inputs import find
    from guardkit.labelling.jobs import Place, Settings, check_apart, counted, jobs_of
    from guardkit.labelling.judging import Judge, RateLimit
    from guardkit.labelling.ray_engine import RayOptions, RayRun
    from guardkit.labelling.report import as_html, collect
    from guardkit.labelling.rows import WHICH, Reading
    from guardkit.labelling.run import Run
    from guardkit.labelling.saved import describe
    from guardkit.reading.shapes import SHAPES
    from guardkit_cli.label_talk import Talk

    assert which in WHICH
    try:
        chosen = _chosen(sample, seed)
        kept = _where(where, [m for m in (model, *votes, then) if m], model_revision)
        if shape is not None and shape not in SHAPES:
            raise click.UsageError(f"--shape {shape}: not known; known: {', '.join(SHAPES)}")
        if dropped is not None and kept is None:
            raise click.UsageError("--dropped goes with --where")
        if report is not None and not Path(report).absolute().parent.is_dir():
            raise click.UsageError(f"--report {report}: there is no such folder")
        found = find(
            inputs,
            outputs=[out, *([dropped] if dropped is not None else [])],
            form=input_format,  # type: ignore[arg-type]
            revision=revision,
            config=config,
            split=split,
        )
        place = Place.of(out, found.inputs)
        side = Place.of(dropped, found.inputs) if dropped is not None else None
        jobs = jobs_of(found.inputs, place, form)
        check_apart(jobs, place, side)
        if chosen is not None:
            chosen = counted(chosen, jobs, column)
    except LabelError as error:
        raise click.UsageError(str(error)) from error
    settings = Settings(
        Reading(field, shape, which), column, form, kept, chosen, retry_errors, batch_size, batch_tokens
    )
    loaded = Loading((model, *votes), policy, on_error, device, timeout, model_revision, then)
    if plans:
        from guardkit.labelling.planning import plan

        judge = Judge(loaded.guards(), loaded.models, stage=stage)
        write_lines(sys.stdout, plan(jobs, judge, settings).lines())
        return 0
    talk = Talk(jobs, quiet)
    with place.store.locked(f"{place.kept}/lock"):
        run: Run | RayRun
        if engine == "ray":
            options = RayOptions(ray_address, _actors(actors), actor_cpus, actor_gpus, rate)
            labeller = loaded.labeller(settings, stage, actor_cpus)
            run = RayRun(jobs, place, labeller, settings, options, dropped=side, told=talk.told, problem=talk.problem)
            guards = run.judged_by(loaded.describe)
        else:
            judge = Judge(loaded.guards(), loaded.models, stage=stage, limit=RateLimit(rate) if rate else None)
            run = Run(jobs, place, judge, settings, dropped=side, told=talk.told, problem=talk.problem)
            guards = loaded.described(judge.guards)
        try:
            manifest.agree(place.store, place.kept, manifest.settings_of(guards, settings, stage))
        except LabelError as error:
            raise click.UsageError(str(error)) from error
        talk.shares = run.shares
        try:
            total = run.run()
            describe(found.saved, jobs, place)
        except KeyboardInterrupt:
            talk.wipe()
            say("interrupted; what was judged is kept: run the same command again")
            raise
        except OSError as error:
            talk.wipe()
            say(
                f"{error.filename or out}: {error.strerror or error}; run it again, it goes on after what was kept",
                "error",
            )
            return 3
    allowed = guards[0]["policy"]["on_error"] == "allow"
    talk.summary(total, found.others)
    if votes and not quiet:
        for line in agreement(total.votes, loaded.models).lines():
            say(line)
    if report is not None:
        about = f"{', '.join(inputs)}, labelled by {', '.join(g['model'] for g in guards)}; {place.store}"
        page = as_html(collect(jobs, settings), [about], with_text=not no_text)
        Path(report).write_text(page, encoding="utf-8", errors="replace")
    if talk.n_problems or (total.not_judged and not allowed):
        return 3
    return 0


@dataclass(frozen=True)
class Loading:
    """The guards that judge: here, or in the processes of a cluster."""

    models: tuple[str, ...]
    policy: str | None
    on_error: str | None
    device: str | None
    timeout: float | None
    revision: str | None
    then: str | None

    def guards(self) -> list[Guard]:
        return [
            loading.load_guard(
                model,
                policy=self.policy,
                on_error=self.on_error,
                device=self.device,
                timeout=self.timeout,
                revision=self.revision,
                then=self.then,
                exact=True,  # scores are kept
            )
            for model in self.models
        ]

    def labeller(self, settings: Settings, stage: str | None, cpus: float) -> Labeller:
        """The same guards, loaded where the labeller arrives; nano with as many threads as an actor has CPUs."""
        from guardkit.labelling import Labeller

        named: dict[str, Any] = {
            "on_error": self.on_error,
            "device": self.device,
            "timeout": self.timeout,
            "revision": self.revision,
            "then": self.then,
            "threads": max(1, int(cpus)) if set(self.models) == {"nano"} else None,
        }
        reading = settings.reading
        return Labeller(
            self.models[0],
            self.policy or DEFAULTS["policy"],
            vote=self.models[1:],
            field=reading.field,
            shape=reading.shape,
            judge=reading.which,
            stage=stage,
            column=settings.column,
            batch_rows=settings.batch_rows,
            batch_tokens=settings.batch_tokens,
            **{key: value for key, value in named.items() if value is not None},
        )

    def describe(self, labeller: Labeller) -> list[dict[str, Any]]:
        return self.described(labeller.judge.guards)

    def described(self, guards: Sequence[Guard]) -> list[dict[str, Any]]:
        from guardkit.labelling.manifest import guard_settings

        return [guard_settings(guard, name, self.revision) for guard, name in zip(guards, self.models, strict=True)]


def _actors(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    try:
        found = int(least), int(most or least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise click.UsageError(f"--actors: a number, or the least and the most, such as 2:8, not '{text}'")
    return found


def _chosen(sample: str | None, seed: int) -> Any:
    from guardkit.labelling.choosing import Sample

    try:
        return Sample.parse(sample, seed) if sample is not None else None
    except ValueError as error:
        raise click.UsageError(f"--sample: {error}") from None


def _where(texts: Sequence[str], models: Sequence[str], revision: str | None) -> Any:
    from guardkit.labelling.choosing import Where

    try:
        return Where.parse(texts, loading.categories_in(models, revision) if texts else ())
    except ValueError as error:
        raise click.UsageError(f"--where: {error}") from None
