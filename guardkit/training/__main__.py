"""`python -m guardkit.training`: a Stream or a Gen from a Qwen3 backbone and labelled rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from guardkit.errors import GuardkitError
from guardkit.spinning import bound_spinning

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_EPILOG = """\b
Examples:
  python -m guardkit.training {kind} --base Qwen/Qwen3-0.6B --train rows.jsonl --out my-guard
  torchrun --nproc-per-node 4 -m guardkit.training {kind} --base Qwen/Qwen3-4B --train rows.jsonl --out my-guard
  python -m guardkit.training {kind} --base Qwen/Qwen3-0.6B --train rows.jsonl --categories mine.yaml --out my-guard

\b
A row is a line of JSON: prompt, response (null: the prompt is labelled), severity,
categories, refusal, unsafe_from. docs/training.md says more.
The folder opens with Guard.load, guard check --model, guard eval, guard serve.
"""
_OPTIONS = (
    click.option("--base", required=True, help="A Qwen3, or a Qwen3Guard: a folder or a hub's id."),
    click.option("--train", "train", required=True, multiple=True, type=_FILE, help="Rows; .jsonl or .jsonl.gz."),
    click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the trained guard."),
    click.option("--dev", multiple=True, type=_FILE, help="Rows to measure on; without it a share of --train."),
    click.option("--dev-share", type=click.FloatRange(0, 0.5), help="That share, by text. Default: 0.05."),
    click.option("--categories", type=_FILE, help="2 to 50 categories of one's own, YAML or JSON."),
    click.option("--backbone", type=click.Choice(["lora", "full", "frozen"]), help="What of it learns. Default: lora."),
    click.option("--rank", type=click.IntRange(1), help="Of LoRA. Default: 16."),
    click.option("--epochs", type=click.FloatRange(0, min_open=True), help="Default: 1."),
    click.option("--steps", type=click.IntRange(1), help="Instead of epochs."),
    click.option("--rate", type=float, help="Learning rate. Default: 2e-4; 2e-5 for a backbone in full."),
    click.option("--batch", type=click.IntRange(1), help="Examples of a step and process. Default: 16."),
    click.option("--accumulate", type=click.IntRange(1), help="Such batches before a step. Default: 1."),
    click.option("--max-tokens", type=click.IntRange(16), help="Longer rows are left out, and counted. Default: 1024."),
    click.option("--weights", type=click.Choice(["balanced", "none"]), help="Of the severities. Default: balanced."),
    click.option(
        "--precision", type=click.Choice(["auto", "bf16", "fp32"]), help="Default: auto, bf16 where it is fast."
    ),
    click.option("--checkpointing", is_flag=True, default=None, help="Gradient checkpointing: less memory, more time."),
    click.option("--every", type=click.IntRange(1), help="Steps between two checkpoints and measurements."),
    click.option("--resume", is_flag=True, default=None, help="Go on from the last checkpoint in --out."),
    click.option("--skip-bad", is_flag=True, default=None, help="Leave bad rows out, counted, instead of stopping."),
    click.option("--max-rows", type=click.IntRange(1), help="Of each file, the first ones."),
    click.option("--seed", type=int, help="Default: 0."),
    click.option("--cpu", is_flag=True, default=None, help="Also where there is a GPU."),
    click.option("--revision", help="Of a hub's id: a commit, tag or branch."),
)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train a guard of your own. Needs the `train` extra."""


@main.command(epilog=_EPILOG.format(kind="stream"), short_help="Heads that judge token by token.")
@_shared
@click.option(
    "--inner", type=click.IntRange(1), help="Width between backbone and heads. Default: half of the backbone's."
)
@click.option("--tail", type=click.IntRange(1), help="Labelled tokens of a response without unsafe_from. Default: 8.")
def stream(**given: Any) -> None:
    """Train Qwen3Guard-Stream's heads on a backbone: risk and category at the end of a prompt, and at every token of a
    response."""
    _run("stream", given)


@main.command(epilog=_EPILOG.format(kind="gen"), short_help="A judge that answers in the published grammar.")
@_shared
def gen(**given: Any) -> None:
    """Train Qwen3Guard-Gen by instruction tuning: the answer alone is learned."""
    _run("gen", given)


def _run(kind: str, given: dict[str, Any]) -> None:
    try:
        from guardkit.errors import MissingExtra

        try:
            from guardkit.training.resuming import is_first
            from guardkit.training.run import Settings, train
        except MissingExtra:
            raise
        except ImportError as error:
            raise MissingExtra("training", "train") from error
        found = train(kind, Settings(**{k: v for k, v in given.items() if v is not None}))
    except GuardkitError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(3)
    if not is_first():
        return
    for name, value in found.dev.items():
        at_least = found.baseline.get(name)
        beside = "" if at_least is None else f"  (the commonest severity: {at_least:.3f})"
        click.echo(f"dev {name}: {'-' if value is None else f'{value:.3f}'}{beside}", err=True)
    click.echo(str(found.out))


if __name__ == "__main__":
    bound_spinning()
    main(prog_name="python -m guardkit.training")
