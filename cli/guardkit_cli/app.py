"""The `guard` group: commands are imported when they are asked for, errors become exit codes in one place."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

COMMANDS = ("check", "stream", "trace", "eval", "label", "serve", "models", "policy", "doctor", "help")

EPILOG = """\b
Examples:
  echo hello | guard check
  guard check --input app.log --only-flagged
  some-llm | guard stream
  guard trace --html page.html chats.jsonl
  guard doctor

\b
Exit codes:
  0    nothing was blocked (flagged alone is 0)
  1    something was blocked
  2    wrong usage, or a policy that is not valid
  3    a model that does not load, or a record that was not judged
  130  interrupted (Ctrl-C)
  141  the reader of standard output went away (as in "guard check | head -1")

\b
Shell completion:
  bash: eval "$(_GUARD_COMPLETE=bash_source guard)"    in ~/.bashrc
  zsh:  eval "$(_GUARD_COMPLETE=zsh_source guard)"     in ~/.zshrc
  fish: _GUARD_COMPLETE=fish_source guard | source     in ~/.config/fish/completions/guard.fish

\b
Defaults of --model and --policy: GUARDKIT_MODEL and GUARDKIT_POLICY in the
environment, or "model" and "policy" in the config file (guard doctor names it).

\b
Colour is used on a terminal; NO_COLOR turns it off, CLICOLOR_FORCE=1 on.
"""


_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT)
"""What goes wrong where a text is written without a file's name."""


class Interrupted(Exception):
    """Ctrl-C, in a form that click does not turn into its own message and exit code."""


class PipeClosed(Exception):
    """Nobody reads standard output any more."""


@contextmanager
def _own_exits() -> Iterator[None]:
    """Keep click from turning these two into exit code 1, which means "something was blocked"."""
    try:
        yield
    except BrokenPipeError as error:
        raise PipeClosed from error
    except KeyboardInterrupt as error:
        raise Interrupted from error


class LazyGroup(click.Group):
    """A group whose commands are the `command` of the modules named in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"guardkit_cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from guardkit.errors import did_you_mean

            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _own_exits():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> object:
        with _own_exits():
            return super().invoke(ctx)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from guardkit._version import __version__

        click.echo(f"guard, version {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    "-V",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def app() -> None:
    """Judge what goes into a language model and what comes out of it."""


def exit_code_of(error: Exception) -> int:
    """Tell `error` on stderr and give the exit code for it."""
    if isinstance(error, click.exceptions.Abort):
        return 130
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    from guardkit.errors import GuardkitError, PolicyError
    from guardkit_cli.output import say

    if isinstance(error, PolicyError):
        say(str(error), "error")
        return 2
    if isinstance(error, GuardkitError):
        say(str(error), "error")
        return 3
    if isinstance(error, OSError):
        where = error.filename or ("standard output" if error.errno in _OUTPUT_ERRORS else None)
        say(f"{where}: {error.strerror or error}" if where else f"{error.strerror or error}", "error")
        return 3
    import os
    import traceback

    if os.environ.get("GUARDKIT_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in last)
    say(
        f"this is a bug in guard: nothing more was judged. {type(error).__name__}: {error}{where}. "
        "GUARDKIT_DEBUG=1 shows more; please report it",
        "error",
    )
    return 3
