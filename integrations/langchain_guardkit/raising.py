"""An agent's end with `exit_behavior="error"`: the violation for which its turn has ended is raised."""

from __future__ import annotations

import functools
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage

from guardkit import Action
from langchain_guardkit.marks import withheld
from langchain_guardkit.messages import turn_start


@functools.cache
def raising(kind: Any) -> Any:
    """A middleware's class with a hook at an agent's end: the state is clean and the turn has ended, so the violation
    can be raised."""

    def raise_violation(middleware: Any, state: Any) -> None:
        messages = state["messages"]
        for message in reversed(messages[turn_start(messages) :]):
            mark = withheld(message) if isinstance(message, AIMessage | ToolMessage) else None
            if mark is not None and mark["action"] == Action.block.value:
                raise middleware.enforcement.violation(mark)

    class Raising(kind):  # type: ignore[misc]
        given_class = kind

        def after_agent(self, state: Any, runtime: Any) -> Any:
            raise_violation(self, state)
            return super().after_agent(state, runtime)

        async def aafter_agent(self, state: Any, runtime: Any) -> Any:
            raise_violation(self, state)
            return await super().aafter_agent(state, runtime)

        def __reduce__(self) -> Any:
            return _restored, (kind, self.__dict__)

    return Raising


def _restored(kind: Any, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(raising(kind))
    made.__dict__.update(state)
    return made
