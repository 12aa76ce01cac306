"""The `guard` of a component: what may be given, how it is written down, and how it travels to another process.

A `Guard` holds a model and locks, so it is neither JSON nor picklable. What made it is: a name, the arguments of
`Guard.load`, or a function. Each process makes it once, whatever the number of components that ask.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self
from weakref import WeakKeyDictionary

from llama_index.core.bridge.pydantic import ConfigDict
from llama_index.core.schema import BaseComponent
from pydantic import BeforeValidator, PlainSerializer

from guardkit import Guard, GuardkitError

Source = str | Mapping[str, Any] | Callable[[], Guard]
"""A model's name, the arguments of `Guard.load` as a mapping with "name", or a function that returns a guard."""

_lock = threading.Lock()
_made: dict[object, Guard] = {}
_sources: WeakKeyDictionary[Guard, Source] = WeakKeyDictionary()


def resolve(given: Guard | Source) -> Guard:
    """The guard that `given` stands for; made once in a process. Raises a `GuardkitError` that says what is wrong."""
    if isinstance(given, Guard):
        return given
    if isinstance(given, Mapping) and "factory" in given:
        raise GuardkitError(f"the guard was made by {given['factory']}: pass it again, as guard=")
    if callable(given):
        key: object = given
    elif isinstance(given, str | Mapping):
        given = {"name": given} if isinstance(given, str) else given
        key = json.dumps(given, sort_keys=True, default=str)
    else:
        raise GuardkitError(f"guard must be a Guard, a name, a mapping or a function, not {type(given).__name__}")
    with _lock:
        if key not in _made:
            made = given() if callable(given) else Guard.load(**given)
            if not isinstance(made, Guard):
                raise GuardkitError(f"{given} returned {type(made).__name__}, not a Guard")
            _made[key] = made
            _sources[made] = given
        return _made[key]


def described(guard: Guard) -> dict[str, Any]:
    """What a guard was made from, JSON-ready; changes when its judgements may change, as caches need."""
    source = _sources.get(guard)
    if callable(source):
        name = f"{source.__module__}.{getattr(source, '__qualname__', type(source).__qualname__)}"
        return {"factory": name, "policy": guard.policy.to_dict()}
    if isinstance(source, Mapping):
        return {str(k): v.to_dict() if hasattr(v, "to_dict") else v for k, v in source.items()}
    return {
        "name": guard.model.name,
        "policy": guard.policy.to_dict(),
        "timeout": guard.timeout,
        "holdback": guard.holdback,
        "debounce": guard.debounce,
        "normalize": guard.normalize,
    }


def portable(guard: Guard) -> Source:
    """What another process makes the same guard from. An audit sink stays behind. Raises `GuardkitError`."""
    source = _sources.get(guard)
    if source is not None:
        return source
    if type(guard) is Guard and guard.model.name == "nano":
        return described(guard)
    raise GuardkitError(
        f"a {type(guard).__name__} over '{guard.model.name}' cannot be sent to another process: give guard= a model's "
        "name, a mapping of Guard.load's arguments, or a module-level function that returns the guard"
    )


GuardField = Annotated[Guard, BeforeValidator(resolve), PlainSerializer(described)]


class GuardComponent(BaseComponent):
    """A LlamaIndex component with a guard. `from_dict(data, guard=...)` gives it another one."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: GuardField

    # Spelt out here and in subclasses for type checkers: they take a field's type for its argument's.
    def __init__(self, guard: Guard | Source, **fields: Any) -> None:
        super().__init__(guard=guard, **fields)  # type: ignore[call-arg]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return super().__deepcopy__({**(memo or {}), id(self.guard): self.guard})  # a guard is shared, not copied

    def __getstate__(self) -> dict[str, Any]:
        fields = {k: getattr(self, k) for k, f in type(self).model_fields.items() if not f.exclude}
        return {"__dict__": fields | {"guard": portable(self.guard)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]
