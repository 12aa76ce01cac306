"""Values in a policy: names among those that are known, and errors that say where the wrong one stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NoReturn, TypeVar

from guardkit.errors import PolicyError, did_you_mean
from guardkit.verdict import Category

_E = TypeVar("_E", bound=Enum)
Where = tuple[str | int, ...]


class Invalid(PolicyError):
    """A PolicyError that still knows the path of the value that is wrong."""

    def __init__(self, path: Where, message: str):
        self.path, self.message = path, message
        super().__init__(message)


def fail(path: Where, message: str) -> NoReturn:
    raise Invalid(path, message)


def quoted(names: Iterable[object]) -> str:
    return ", ".join(f"'{n}'" for n in names)


def several(known: Mapping[str, _E], what: str, value: Any, path: Where) -> frozenset[_E]:
    """One name or a list of them."""
    if value is None:
        return frozenset()
    if not isinstance(value, list | tuple | set | frozenset):
        return frozenset((one(known, what, value, path),))
    return frozenset(one(known, what, item, (*path, i)) for i, item in enumerate(value))


def one(known: Mapping[str, _E], what: str, value: object, path: Where) -> _E:
    name = value.value if isinstance(value, Enum) else value
    if not isinstance(name, str) or name not in known:
        own = any(isinstance(c, Category) and c.is_own for c in known.values())
        hint = did_you_mean(str(name), known) if own else ""
        fail(path, f"unknown {what} '{name}'; known: {', '.join(known)}{hint}")
    return known[name]


def by_value(members: Iterable[_E]) -> dict[str, _E]:
    return {member.value: member for member in members}
