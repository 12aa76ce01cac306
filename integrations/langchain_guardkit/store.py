"""`GuardedStore`: what a graph keeps for later runs is judged before it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from langgraph.store.base import BaseStore, Op, PutOp, Result

from guardkit import Guard
from langchain_guardkit.enforcing import (
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    OnViolation,
    Policies,
    ViolationMessage,
)
from langchain_guardkit.tools import OutputGuard


class GuardedStore(BaseStore):
    """A LangGraph store whose values are judged, as tool output, before they are put: for tools and nodes that write to
    it themselves. ``create_agent(..., store=GuardedStore(store, guard))``.

    With "replace" (the default) the violation message stands where the offending text stood in a value; with "error",
    and where a namespace or a key is at fault, `GuardViolation` is raised and nothing is put. What is read out was
    judged when it was put; what stood in the store before is judged where it enters a prompt.
    """

    def __init__(
        self,
        store: BaseStore,
        guard: Guard,
        *,
        exit_behavior: ExitBehavior = "replace",
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
    ):
        self.inner = store
        self.supports_ttl, self.ttl_config = store.supports_ttl, store.ttl_config
        enforcement = Enforcement(guard, exit_behavior, violation_message, on_violation, policies or {})
        self._values = OutputGuard(enforcement)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return self.inner.batch([self._judged(op) for op in ops])

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        judged = await asyncio.to_thread(lambda: [self._judged(op) for op in ops])
        return await self.inner.abatch(judged)

    def __getattr__(self, name: str) -> Any:
        """What a store has beyond the common interface is the wrapped one's."""
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _judged(self, op: Op) -> Op:
        if not isinstance(op, PutOp) or op.value is None:
            return op
        run = self._values.enforcement.for_run()
        strict = replace(run, exit_behavior="error", policies={}, chosen=True)
        self._values.at(None, strict).settle([*op.namespace, op.key])
        value = self._values.at(None, run).settle(op.value)
        return op if value is op.value else op._replace(value=value)
