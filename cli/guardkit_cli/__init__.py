"""The `guard` command. `main` is the console script; each command lives in a module of its own name.

    app.py      the lazy group: a command's module is imported when that command runs
    check.py    records in, decisions out      records.py (input)  judging.py (batches, cache)  output.py (printing)
    stream.py   a filter that stops at a violation
    trace.py    where in a model's thinking and answer the risk begins      trace_records.py (input)  trace_html.py
    eval.py     scores guards on labelled texts (guardkit/evaluation)
    label.py    labels data sets of any size (guardkit/labelling)
    models.py  policy.py  doctor.py  help.py
    settings.py  defaults from the environment and the config file      excerpt.py  summary.py  what rows show

Exit codes: 0 nothing was blocked, 1 something was, 2 wrong usage, 3 something could not be judged, 130 Ctrl-C,
141 the reader of standard output went away (what a shell reports for `yes | head`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `guard` and leave the process with its exit code."""
    is_own = sys._getframe(1).f_globals.get("__name__") == "__main__"
    if is_own:
        from guardkit.spinning import bound_spinning

        bound_spinning()
    code = run(argv)
    if is_own:
        # All is written. Taking the interpreter and the model apart costs a tenth of a short run, and it would wait for
        # a model call that has timed out.
        os._exit(code)
    sys.exit(code)


def run(argv: Sequence[str] | None = None) -> int:
    """Run `guard` and return its exit code; whatever goes wrong is said on stderr and never looks like "safe"."""
    try:
        return _flush(_run(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str]) -> int:
    from guardkit_cli.app import Interrupted, PipeClosed, app, exit_code_of

    try:
        result = app.main(args=list(argv), prog_name="guard", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Interrupted:
        return 130
    except PipeClosed:
        return 141
    except Exception as error:  # a traceback must not exit with 1, which means "something was blocked"
        return exit_code_of(error)


def _flush(code: int) -> int:
    """Empty stdout now, while an error can still be told; at interpreter shutdown it would be noise."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout.fileno())
        code = 141
    except OSError as error:
        _discard(sys.stdout.fileno())
        if code != 3:
            print(f"guard: error: standard output: {error.strerror}", file=sys.stderr)
        code = 3
    if sys.stderr is not None:
        sys.stderr.flush()
    return code


def _discard(fd: int) -> None:
    """Point `fd` at the null device, so that what is still buffered goes nowhere without an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
