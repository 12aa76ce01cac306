"""What a run brings along: the policy that it names, and a violation that a retry must not ask about again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from guardkit import Guard, GuardkitError, GuardViolation, Policy

_internal: ContextVar[Any] | None
_worker: ContextVar[Any] | None
try:
    from workflows.runtime.types.results import InternalContextVar as _internal
    from workflows.runtime.types.results import StepWorkerStateContextVar as _worker
except ImportError:  # workflows that do not say which run a step belongs to
    _internal = _worker = None

POLICY_KEY = "guard_policy"
"""Under this key a workflow's context names the policy of a run: ``await ctx.store.set("guard_policy", name)``."""

Policies = Mapping[str, Any]
"""A name for each policy that runs may choose: a built-in's name, a `Policy`, a mapping, a YAML file, or a `Guard`."""

_named: ContextVar[str | None] = ContextVar("guardkit_policy", default=None)
_variants: WeakKeyDictionary[Guard, dict[tuple[str, int], tuple[Any, Guard]]] = WeakKeyDictionary()


@contextmanager
def guard_policy(name: str | None) -> Iterator[None]:
    """Whatever is called inside is judged under the policy of this name, one of the `policies` of its parts."""
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)


def guard_of_run(guard: Guard, policies: Policies) -> Guard:
    """The guard under the policy that this run names; `guard` itself where it names none.

    Raises `GuardkitError` for a name that is not one of `policies`: no run goes on under other rules than it asked for.
    """
    name = _named.get()
    if name is None:
        return guard
    if name not in policies:
        known = ", ".join(map(repr, policies)) or "none: give this part `policies`"
        raise GuardkitError(f"the run names the guard policy '{name}'; known: {known}")
    source = policies[name]
    if isinstance(source, Guard):
        return source
    made = _variants.setdefault(guard, {})
    key = name, id(source)
    if key not in made:
        other = copy.copy(guard)
        other.policy = Policy.load(source, categories=guard.categories)
        made[key] = source, other  # the source stays alive, so that its id stays its own
    return made[key][1]


@contextmanager
def named(name: str | None) -> Iterator[None]:
    """The run's own name for the time of one call, unless the application named one."""
    if name is None or _named.get() is not None:
        yield
    else:
        with guard_policy(name):
            yield


async def name_in_workflow() -> str | None:
    """The policy that the workflow's context names, if this is called in a step of one."""
    reference = _internal.get(None) if _internal is not None else None
    context = reference() if reference is not None else None
    if context is None or _named.get() is not None:
        return None
    name = await context.store.get(POLICY_KEY, default=None)
    if name is not None and not isinstance(name, str):
        raise GuardkitError(f"the workflow's '{POLICY_KEY}' must be the name of a policy, not {type(name).__name__}")
    return name


def refuse_retry() -> None:
    """Raise the violation for which a workflow's retry policy runs this step again: asking again is no way round it."""
    worker = _worker.get(None) if _worker is not None else None
    error: BaseException | None = getattr(getattr(worker, "retry", None), "last_exception", None)
    seen = 0
    while error is not None and seen < 16:
        if isinstance(error, GuardViolation):
            raise error
        error, seen = error.__cause__ or error.__context__, seen + 1
