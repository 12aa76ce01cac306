"""`GuardedStore`: what a graph keeps for later runs is judged before it is kept."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from langgraph.store.base import BaseStore, Item, Op, PutOp, Result

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
    """A LangGraph store whose values are judged, as tool output, before they are put and when they are read: for tools
    and nodes that use it themselves. ``create_agent(..., store=GuardedStore(store, guard))``.

    With "replace" (the default) the violation message stands where the offending text stood in a value; with "error",
    and where a namespace or a key is at fault, `GuardViolation` is raised and nothing is put. What stood in the store
    before is read with its offending texts replaced, whatever the exit behaviour, and not at all where its key or
    namespace is at fault.
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
        return self._read(self.inner.batch([self._judged(op) for op in ops]))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        judged = await asyncio.to_thread(lambda: [self._judged(op) for op in ops])
        return await asyncio.to_thread(self._read, await self.inner.abatch(judged))

    def __getattr__(self, name: str) -> Any:
        """What a store has beyond the common interface is the wrapped one's."""
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _read(self, results: list[Result]) -> list[Result]:
        run = self._values.enforcement.for_run()
        output = self._values.at(None, replace(run, exit_behavior="replace", policies={}, chosen=True))
        return [self._shown(output, result) for result in results]

    def _shown(self, output: OutputGuard, result: Any) -> Any:
        """An item, a list of them, or of namespaces, as they may be read; None for what may not."""
        if isinstance(result, list):
            return [shown for one in result if (shown := self._shown(output, one)) is not None]
        names = result if isinstance(result, tuple) else (*result.namespace, result.key) if result is not None else ()
        if output.settle([*names]) != [*names]:
            return None
        if not isinstance(result, Item) or (value := output.settle(result.value)) is result.value:
            return result
        shown = copy.copy(result)
        shown.value = value if isinstance(value, dict) else {"value": value}
        return shown

    def _judged(self, op: Op) -> Op:
        if not isinstance(op, PutOp) or op.value is None:
            return op
        run = self._values.enforcement.for_run()
        strict = replace(run, exit_behavior="error", policies={}, chosen=True)
        self._values.at(None, strict).settle([*op.namespace, op.key])
        value = self._values.at(None, run).settle(op.value)
        return op if value is op.value else op._replace(value=value)
