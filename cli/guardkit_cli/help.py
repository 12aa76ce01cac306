"""`guard help [COMMAND]...`: the same as `guard COMMAND --help`."""

from __future__ import annotations

import click

from guardkit.errors import did_you_mean
from guardkit_cli.app import COMMANDS


def _complete(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    return [name for name in COMMANDS if name.startswith(begun)]


EPILOG = """\b
Examples:
  guard help check
  guard help policy show
"""


@click.command("help", epilog=EPILOG, short_help="Show the help of a command.")
@click.argument("names", metavar="[COMMAND]...", nargs=-1, shell_complete=_complete)
@click.pass_context
def command(context: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of guard, or of COMMAND."""
    at = context.parent
    assert at is not None
    found: click.Command = at.command
    for name in names:
        group = found if isinstance(found, click.Group) else None
        inner = group.get_command(at, name) if group is not None else None
        if inner is None:
            known = group.list_commands(at) if group is not None else ()
            raise click.UsageError(f"no command '{name}'{did_you_mean(name, known)}", at)
        found, at = inner, type(at)(inner, info_name=name, parent=at)
    click.echo(found.get_help(at))
