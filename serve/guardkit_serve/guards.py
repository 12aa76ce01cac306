"""The guards that were loaded: each model under each policy that a request may ask for."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from guardkit import Guard, Policy
from guardkit_serve.asking import Passed
from guardkit_serve.errors import HttpError
from guardkit_serve.settings import Key


class Guards:
    """guards: by the name that a request gives as `model`; the first is the default, and so is its policy. policies:
    more of them, by name. A guard under another policy shares its model."""

    def __init__(self, guards: Mapping[str, Guard], policies: Mapping[str, Policy] | None = None):
        self.default = next(iter(guards))
        own = guards[self.default].policy
        self.policies = {own.name: own, **(policies or {})}
        self.default_policy = next(iter(self.policies))
        self._guards = {
            (model, name): guard if guard.policy == policy else with_policy(guard, policy)
            for model, guard in guards.items()
            for name, policy in self.policies.items()
        }
        self.models = tuple(guards)
        self._passed = {id(guard): Passed() for guard in self._guards.values()}

    def passed(self, guard: Guard) -> Passed:
        """What of requests has passed this guard."""
        return self._passed[id(guard)]

    def pick(self, model: str | None = None, policy: str | None = None, key: Key | None = None) -> Guard:
        """Raises `HttpError` for what was not loaded, or is not for this key."""
        own = key.policy if key is not None and key.policy is not None else self.default_policy
        allowed = tuple(self.policies) if key is None else dict.fromkeys((own, *key.policies))
        policy = policy or own
        model = model or (key.model if key is not None else None) or self.default
        if policy not in allowed or policy not in self.policies:
            raise HttpError(400, f"no policy '{policy[:80]}' here; there is: {', '.join(allowed)}", param="policy")
        if model not in self.models:
            raise HttpError(400, f"no model '{model[:80]}' here; there is: {', '.join(self.models)}", param="model")
        return self._guards[model, policy]

    def close(self) -> None:
        for guard in self._guards.values():
            guard.close()


def with_policy(guard: Guard, policy: Policy) -> Guard:
    """The same guard under another policy."""
    twin = copy.copy(guard)
    twin.policy = policy
    return twin
