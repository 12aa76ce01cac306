"""`guard models`: what is installed, what could be, how large it is and where it comes from."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from guardkit_cli.output import GREEN, YELLOW, escape, fit, is_coloured, paint, to_json, width_of

EPILOG = """\b
Examples:
  guard models
  guard models --json
  guard check --model nano "a text"

\b
Other models are given by what they are: a local folder, a hub id, or the URL of
an OpenAI-compatible server.
"""


@click.command("models", epilog=EPILOG, short_help="List the models that guard knows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a model.")
def command(as_json: bool) -> None:
    """List the models: kind, whether each can be used now, size, source."""
    from guardkit.models import list_models

    found = list_models()
    if as_json:
        for model in found:
            click.echo(to_json(asdict(model)))
        return
    coloured = is_coloured(sys.stdout)
    width = max([len("NAME"), *(len(m.name) for m in found)])
    room = width_of(sys.stdout)
    if room is not None and room < width + 60:  # a narrow terminal: what can be used, and its name
        for m in found:
            usable = paint(f"{'yes' if m.available else 'no':<3}", GREEN if m.available else YELLOW, coloured)
            click.echo(f"{usable} {fit(escape(m.name), room - 4)}")
        return
    click.echo(f"{'NAME':<{width}}  {'KIND':<8}  {'USABLE':<6}  {'SIZE':>11}  SOURCE")
    for m in found:
        usable = paint(f"{'yes' if m.available else 'no':<6}", GREEN if m.available else YELLOW, coloured)
        size = "-" if m.size_mb is None else f"{m.size_mb:,.1f} MB"
        about = escape(m.source) + (f"  ({escape(m.note)})" if m.note else "")
        click.echo(f"{escape(m.name):<{width}}  {m.kind:<8}  {usable}  {size:>11}  {about}")
