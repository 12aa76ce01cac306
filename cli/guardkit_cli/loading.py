"""The options that every judging command shares, and the one place that loads a guard.

Tests of the commands replace `load_guard` with a function that returns a `guardkit.testing.FakeGuard`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from guardkit_cli import settings

if TYPE_CHECKING:
    from guardkit import Category, Guard, Stage

STAGES = ("prompt", "response", "reasoning", "tool_call", "tool_output", "document")
"""The values of `guardkit.Stage`, written out so that `--help` need not import it."""

_F = TypeVar("_F", bound=Callable[..., Any])


def load_guard(
    model: str,
    *,
    policy: str | None = None,
    on_error: str | None = None,
    device: str | None = None,
    timeout: float | None = None,
    revision: str | None = None,
    threshold: float | None = None,
    **more: Any,
) -> Guard:
    """`Guard.load` with the options that were given; the others keep the guard's own defaults."""
    from guardkit import Guard

    given = {
        "policy": policy, "on_error": on_error, "device": device, "timeout": timeout, "revision": revision,
        "threshold": threshold, **more,
    }  # fmt: skip
    return Guard.load(model, **{name: value for name, value in given.items() if value is not None})


def categories_in(models: Sequence[str], revision: str | None = None) -> tuple[Category, ...]:
    """All that some of the models name; none of them is loaded for it."""
    from guardkit.models import categories_of

    return tuple(dict.fromkeys(c for model in models for c in categories_of(model, revision)))


def stage_of(name: str | None) -> Stage | None:
    """The stage of a `--stage` option."""
    from guardkit import Stage

    return None if name is None else Stage(name)


def guard_options(command: _F) -> _F:
    """--model, --policy, --device, --timeout, --on-error."""
    for option in (
        click.option(
            "--on-error",
            type=click.Choice(["block", "allow"]),
            help="What becomes of what cannot be judged. Default: the policy's setting, which is block.",
        ),
        click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for one judgement."),
        click.option("--device", help="Where the model runs: cpu, cuda, cuda:1. Default: the model's own choice."),
        settings.option("policy", "strict, balanced, loose, or a YAML file."),
        settings.option("model", "A name of `guard models`, a folder, a hub id or a URL."),
    ):
        command = option(command)
    return command


def allows_errors(guard: Guard) -> bool:
    """Whether the guard lets through what it cannot judge."""
    return guard.policy.on_error.value == "allow"
