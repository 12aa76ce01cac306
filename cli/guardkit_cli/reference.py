"""The reference of the `guard` command, made from its help: ``python -m guardkit_cli.reference > docs/cli.md``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from guardkit_cli.app import app

WIDTH = 100
HEAD = """# The `guard` command

Made from the help by `python -m guardkit_cli.reference > docs/cli.md`.
"""


def reference() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *(f"## `{name}`\n\n```text\n{text}\n```\n" for name, text in _helps(app, "guard", None))])


def _helps(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    path = context.command_path
    yield path, command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                yield from _helps(found, inner, context)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
