"""The forms in which a graph's state is written, and what in it nobody but the guard may write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage

PASSED = "guardkit_passed"
"""The key of an agent's state that holds digests of what passed. Anybody can make a digest of a text: one from outside,
or from a tool, would let that text pass."""

_OVERWRITE = "__overwrite__"


def passed_in(state: Any) -> frozenset[str]:
    return frozenset(state.get(PASSED) or ()) if isinstance(state, Mapping) else frozenset()


def without_passes(written: Any) -> Any:
    """An update of a state, a command, or a list of them, without digests of what passed."""
    if isinstance(written, Mapping):
        return {k: v for k, v in written.items() if k != PASSED} if PASSED in written else written
    if isinstance(written, list):
        return [without_passes(one) for one in written] if any(_is_command(one) for one in written) else written
    if not _is_command(written):
        return written
    update = written.update
    if isinstance(update, list | tuple):
        update = [pair for pair in update if not (isinstance(pair, tuple) and pair[:1] == (PASSED,))]
    goto = written.goto
    if isinstance(goto, list | tuple):
        goto = [_sent(one) for one in goto]
    return replace(written, update=without_passes(update), goto=_sent(goto))


def _sent(target: Any) -> Any:
    """A node's name, or what is sent to one."""
    arg = getattr(target, "arg", None)
    clean = without_passes(arg)
    return target if clean is arg else type(target)(target.node, clean)


def _is_command(value: Any) -> bool:
    return type(value).__name__ == "Command" and hasattr(value, "goto")


def overwriting(given: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What is written to a key, without the form that says that it takes the place of all that stood there; and what
    puts it into that form again."""
    if type(given).__name__ == "Overwrite" and hasattr(given, "value"):
        return given.value, lambda value: replace(given, value=value)
    if isinstance(given, Mapping):
        if len(given) == 1 and _OVERWRITE in given:
            return given[_OVERWRITE], lambda value: {_OVERWRITE: value}
        if given.get("type") == _OVERWRITE and "value" in given:
            return given["value"], lambda value: {**given, "value": value}
    return given, lambda value: value


def messages_in(command: Any) -> list[BaseMessage]:
    """The messages that a command writes to a state."""
    update = command.update
    values = update.values() if isinstance(update, Mapping) else [value for _, value in update or ()]
    written = [overwriting(value)[0] for value in values]
    return [
        m for value in written for m in (value if isinstance(value, list) else [value]) if isinstance(m, BaseMessage)
    ]
