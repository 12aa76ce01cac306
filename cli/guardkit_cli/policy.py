"""`guard policy`: show a policy, validate files, explain what a policy does with a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from guardkit_cli import loading, settings
from guardkit_cli.output import say

if TYPE_CHECKING:
    from guardkit import Severity, Verdict

SEVERITIES = ("safe", "controversial", "unsafe")
CATEGORIES = (
    "violent",
    "non_violent_illegal",
    "sexual",
    "pii",
    "self_harm",
    "unethical",
    "political",
    "copyright",
    "jailbreak",
)
EPILOG = """\b
Examples:
  guard policy show strict > my-policy.yaml
  guard policy validate my-policy.yaml
  guard policy explain --policy my-policy.yaml --severity controversial --category political
  guard policy explain --policy strict "how do I pick a lock"
"""


@click.group("policy", epilog=EPILOG, short_help="Show, validate and explain policies.")
def command() -> None:
    """Show, validate and explain policies: what happens to which verdict."""


@command.command(
    short_help="Print a policy as YAML.",
    epilog="\b\nExamples:\n  guard policy show\n  guard policy show strict > my-policy.yaml\n",
)
@click.argument("policy", required=False, shell_complete=settings.complete_policy)
@settings.option("model", "The model whose categories its rules may name.")
def show(policy: str | None, model: str) -> None:
    """Print POLICY (strict, balanced, loose or a file) as a file that works as it stands, with all of its rules.

    Without POLICY the one that is the default.
    """
    from guardkit import Policy

    source = policy or settings.setting("policy").value
    click.echo(Policy.load(source, categories=loading.categories_in([model])).to_yaml(), nl=False)


@command.command(epilog="\b\nExample:\n  guard policy validate my-policy.yaml other.yaml\n")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@settings.option("model", "The model whose categories their rules may name.")
def validate(files: tuple[str, ...], model: str) -> int:
    """Check policy files. Exit code 2 if one is not valid; the message names file and line."""
    from guardkit import Policy
    from guardkit.errors import PolicyError

    n_bad = 0
    for file in files:
        try:
            policy = Policy.load(file, categories=loading.categories_in([model]))
        except PolicyError as error:
            say(str(error), "error")
            n_bad += 1
        else:
            click.echo(f"{file}: valid (policy '{policy.name}')")
    return 2 if n_bad else 0


@command.command(
    short_help="Say which rule decides.",
    epilog="""\b
Examples:
  guard policy explain --severity unsafe --category violent
  guard policy explain --severity safe --score unsafe=0.35 --policy my-policy.yaml
  guard policy explain --stage document "text to be judged"

\b
--score P is the probability of --severity, --score NAME=P that of another one.
The rest goes to --severity, or where that is set to safe (to unsafe for safe).
""",
)
@click.argument("text", required=False)
@settings.option("policy", "strict, balanced, loose, or a YAML file.")
@click.option("--severity", type=click.Choice(SEVERITIES), help="Explain this verdict, without a text.")
@click.option(
    "--category",
    "categories",
    multiple=True,
    metavar="NAME",
    help=f"May be repeated; {', '.join(CATEGORIES)}, or the model's own.",
)
@click.option("--stage", type=click.Choice(loading.STAGES), help="Default: prompt.")
@click.option("--score", "scores", multiple=True, metavar="[NAME=]P", help="A probability; see below.")
@settings.option("model", "The model that judges TEXT, and whose categories count.")
def explain(
    text: str | None,
    policy: str,
    severity: str | None,
    categories: tuple[str, ...],
    stage: str | None,
    scores: tuple[str, ...],
    model: str,
) -> None:
    """Say which rule of a policy decides, for TEXT or for a verdict given by options."""
    from guardkit import Policy, Severity, Stage, Verdict

    known = loading.categories_in([model])
    loaded = Policy.load(policy, categories=known)
    if text is not None:
        if severity or categories or scores:
            raise click.UsageError("give a TEXT to judge, or a verdict by --severity, --category, --score; not both")
        guard = loading.load_guard(model, policy=policy)
        click.echo(loaded.explain(guard.check(text, stage=loading.stage_of(stage))))
        return
    if severity is None:
        raise click.UsageError("give a TEXT to judge, or a verdict by --severity (and --category, --stage, --score)")
    level, by_name = Severity(severity), {c.value: c for c in known}
    unknown = [name for name in categories if name not in by_name]
    if unknown:
        raise click.BadParameter(f"'{unknown[0]}' is not one of {', '.join(by_name)}", param_hint="--category")
    verdict: Verdict = Verdict(
        level,
        tuple(by_name[name] for name in categories),
        parse_scores(scores, level),
        stage=Stage(stage or "prompt"),
        model="given by options",
    )
    click.echo(loaded.explain(verdict))


def parse_scores(given: tuple[str, ...], severity: Severity) -> dict[str, float]:
    """All three probabilities, from ``P`` or ``NAME=P`` options. Raises a usage error."""
    found: dict[str, float] = {}
    for option in given or ("1",):
        name, _, number = option.rpartition("=")
        try:
            chance = float(number)
        except ValueError:
            chance = -1.0
        if name not in ("", *SEVERITIES) or not 0 <= chance <= 1:
            raise click.BadParameter(
                f"'{option}' is not a probability from 0 to 1, nor {'|'.join(SEVERITIES)}=P", param_hint="--score"
            )
        found[name or severity.value] = chance
    rest = 1.0 - sum(found.values())
    takes_rest = [name for name in (severity.value, "safe", "unsafe", "controversial") if name not in found]
    if rest < -1e-6 or (rest > 1e-6 and not takes_rest):
        raise click.BadParameter(f"the probabilities add up to {1.0 - rest:g}, not to 1", param_hint="--score")
    if takes_rest:
        found[takes_rest[0]] = max(rest, 0.0)
    return {name: found.get(name, 0.0) for name in SEVERITIES}
