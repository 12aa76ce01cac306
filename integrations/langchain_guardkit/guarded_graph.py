"""`guard_graph`: a compiled graph, an agent's or your own, whose input is judged before its first checkpoint."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command

from guardkit import Guard, GuardkitError, Stage
from langchain_guardkit.enforcing import (
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    Judged,
    OnViolation,
    Policies,
    ViolationMessage,
)
from langchain_guardkit.messages import MessageGuard
from langchain_guardkit.reading import is_empty
from langchain_guardkit.settling import settlements
from langchain_guardkit.stating import overwriting, without_passes

_REFUSAL = "__guardkit_refusal"  # with two underscores, LangGraph keeps it out of a checkpoint's metadata


def guard_graph(
    graph: Any,
    guard: Guard | None = None,
    *,
    exit_behavior: ExitBehavior | None = None,
    violation_message: ViolationMessage = VIOLATION_MESSAGE,
    on_violation: OnViolation | None = None,
    policies: Policies | None = None,
    messages_key: str = "messages",
) -> Any:
    """The same graph, with its input judged before its first checkpoint, event or callback.

    It is a graph of the same class: `invoke`, `stream` and their async twins take every argument, `get_state`,
    `get_graph` and the rest are the graph's own, and it works as a node of another graph. Judged are the state that a
    run or `update_state` brings, and what a `Command` resumes, updates or sends; what the graph itself says is judged
    by `GuardMiddleware` or `GuardedChatModel` inside it.

    guard: the one of the graph's `GuardMiddleware`, with its settings, where it is left out. exit_behavior: "end" (the
    default) ends the turn with the violation message, which state and streams get as from a node of the graph; "error"
    raises `GuardViolation` before anything is run or stored; "replace" puts the violation message where the offending
    text stood. Resumed values and updates are replaced where "end" is set. violation_message, on_violation, policies:
    see `Enforcement`.
    """
    if not isinstance(graph, Pregel):
        raise TypeError(f"guard_graph guards a compiled graph, not {type(graph).__name__}: call .compile() first")
    inside = _middleware_of(graph)
    if guard is None:
        if inside is None:
            raise TypeError("guard_graph needs a guard: this graph has no GuardMiddleware to take it from")
        enforcement = inside.enforcement
        if exit_behavior is not None:
            enforcement = replace(enforcement, exit_behavior=exit_behavior)
    else:
        enforcement = Enforcement(guard, exit_behavior or "end", violation_message, on_violation, policies or {})
    if enforcement.exit_behavior == "end" and (
        not isinstance(getattr(graph, "builder", None), StateGraph) or messages_key not in graph.channels
    ):
        raise GuardkitError(
            f"exit_behavior='end' ends a turn with a message, and this graph's state has no '{messages_key}': "
            "name its messages with messages_key=, or choose 'error' or 'replace'"
        )
    twin: Any = object.__new__(_guarded(type(graph)))
    twin.__dict__.update(graph.__dict__)
    twin.guardkit = _Entrance(enforcement, messages_key, Judged())
    return twin


@dataclass(frozen=True)
class _Entrance:
    """Judges what goes into a graph."""

    enforcement: Enforcement
    key: str
    judged: Judged

    def admit(self, value: Any, config: Any, context: Any) -> tuple[Any, Mapping[str, Any] | None]:
        """What may go in, and the mark of the violation that ends the turn. Raises `GuardViolation` with "error"."""
        if value is None:
            return None, None
        value = without_passes(value)
        run = self.enforcement.for_run(config, context)
        if isinstance(value, Command):
            quiet = run if run.exit_behavior == "error" else replace(run, exit_behavior="replace")
            return self._command(value, quiet), None
        if not (isinstance(value, Mapping) and self.key in value):
            (found,) = settlements(run, [value], Stage.prompt)
            outcome = found.shown if run.exit_behavior == "end" else found.passed_on(None)
            return outcome, run.mark(found.decision) if found.ended and found.decision else None
        rest = {key: item for key, item in value.items() if key != self.key}
        written, form = overwriting(value[self.key])
        admitted = MessageGuard(run, frozenset(Stage), self.judged, own=True).admit(_messages(written))
        refusal = admitted.refusal
        if refusal is not None and run.exit_behavior == "error":
            raise run.violation(refusal)
        messages: Any = form(list(admitted))
        if rest:
            (found,) = settlements(run, [rest], Stage.prompt)
            rest = found.shown if run.exit_behavior == "end" else found.passed_on(None)
            if found.ended and found.decision:
                refusal = refusal or run.mark(found.decision)
        return {**rest, self.key: messages}, refusal

    def update(self, value: Any, config: Any) -> Any:
        """A state update, with what may not be kept replaced, or raised with "error"."""
        run = self.enforcement.for_run(config)
        quiet = run if run.exit_behavior == "error" else replace(run, exit_behavior="replace")
        entrance = replace(self, enforcement=replace(quiet, chosen=True))
        return entrance.admit(value, config, None)[0]

    def _command(self, command: Command[Any], run: Enforcement) -> Command[Any]:
        changed: dict[str, Any] = {}
        if command.update is not None:
            changed["update"] = replace(self, enforcement=replace(run, chosen=True)).admit(command.update, {}, None)[0]
        for name in ("resume", "goto"):
            given = getattr(command, name)
            if not is_empty(given):
                (found,) = settlements(run, [given], Stage.prompt)
                changed[name] = found.passed_on(None)
        return replace(command, **changed)


class _Guarded:
    """What a guarded graph does before the graph's own methods."""

    guardkit: _Entrance

    def copy(self, update: dict[str, Any] | None = None) -> Any:
        twin = object.__new__(type(self))
        twin.__dict__.update({**self.__dict__, **(update or {})})
        return twin

    def stream(self, input: Any, config: RunnableConfig | None = None, *, context: Any = None, **kwargs: Any) -> Any:
        value, refusal = self._settled(input, config, context)
        if refusal is None:
            yield from super().stream(value, config, context=context, **kwargs)  # type: ignore[misc]
        else:
            graph, config, kwargs = self._refusing(refusal, config, kwargs)
            yield from graph.stream(value, config, context=context, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, *, context: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        value, refusal = await asyncio.to_thread(self._settled, input, config, context)
        if refusal is None:
            source = super().astream(value, config, context=context, **kwargs)  # type: ignore[misc]
        else:
            graph, config, kwargs = self._refusing(refusal, config, kwargs)
            source = graph.astream(value, config, context=context, **kwargs)
        async for item in source:
            yield item

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if kwargs.get("version") == "v3":  # shows nothing before the run
            return super().astream_events(input, config, **kwargs)  # type: ignore[misc]
        return self._watched(super().astream_events, input, config, kwargs)  # type: ignore[misc]

    def astream_log(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._watched(super().astream_log, input, config, kwargs)  # type: ignore[misc]

    async def _watched(self, watch: Any, input: Any, config: Any, kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        """The events of a run that is called with the judged input: they show it before the run begins."""
        found = await asyncio.to_thread(self._settled, input, config, kwargs.get("context"))
        value = found[0]
        if value is None:
            source = watch(value, config, **kwargs)
        else:
            value = copy.copy(value)
            source = watch(value, _with(config, {_SETTLED: (value, found[1])}), **kwargs)
        async for item in source:
            yield item

    def bulk_update_state(self, config: RunnableConfig, supersteps: Sequence[Sequence[Any]]) -> Any:
        return super().bulk_update_state(config, self._updates(config, supersteps))  # type: ignore[misc]

    async def abulk_update_state(self, config: RunnableConfig, supersteps: Sequence[Sequence[Any]]) -> Any:
        judged = await asyncio.to_thread(self._updates, config, supersteps)
        return await super().abulk_update_state(config, judged)  # type: ignore[misc]

    def _updates(self, config: RunnableConfig, supersteps: Sequence[Sequence[Any]]) -> list[list[Any]]:
        update = self.guardkit.update
        return [[step._replace(values=update(step.values, config)) for step in steps] for steps in supersteps]

    def _settled(self, input: Any, config: Any, context: Any) -> tuple[Any, Mapping[str, Any] | None]:
        known = ((config or {}).get("configurable") or {}).get(_SETTLED)
        if known is not None and known[0] is input:
            return known  # type: ignore[no-any-return]
        return self.guardkit.admit(input, ensure_config(config), context)

    def _refusing(
        self, refusal: Mapping[str, Any], config: RunnableConfig | None, kwargs: dict[str, Any]
    ) -> tuple[Any, RunnableConfig, dict[str, Any]]:
        """A graph with the same state, thread and name, whose one node gives the refusal."""
        kwargs = {k: v for k, v in kwargs.items() if k not in ("interrupt_before", "interrupt_after")}
        return _refusing_graph(self), _with(config, {_REFUSAL: dict(refusal)}), kwargs


_SETTLED = "__guardkit_settled"


def _refusing_graph(graph: Any) -> Any:
    built = graph.builder
    key, entrance = graph.guardkit.key, graph.guardkit

    def guard(state: Any, config: RunnableConfig) -> dict[str, Any]:
        return {key: [entrance.enforcement.refusal(config["configurable"][_REFUSAL])]}

    refusing: Any = StateGraph(
        built.state_schema,
        context_schema=built.context_schema,
        input_schema=built.input_schema,
        output_schema=built.output_schema,
    )
    refusing.add_node("guard", guard)
    refusing.add_edge(START, "guard")
    compiled = refusing.compile(checkpointer=graph.checkpointer, store=graph.store, name=graph.name)
    return compiled.with_config(graph.config) if graph.config else compiled


@functools.cache
def _guarded(kind: type) -> type:
    return kind if issubclass(kind, _Guarded) else type(f"Guarded{kind.__name__}", (_Guarded, kind), {})


def _with(config: RunnableConfig | None, more: dict[str, Any]) -> RunnableConfig:
    found: RunnableConfig = dict(config or {})  # type: ignore[assignment]
    found["configurable"] = {**(found.get("configurable") or {}), **more}
    return found


def _messages(given: Any) -> list[BaseMessage]:
    return convert_to_messages(given if isinstance(given, list | tuple) else [given])


def _middleware_of(graph: Any) -> Any:
    """The `GuardMiddleware` of an agent, by the hooks that its graph's nodes call."""
    for node in getattr(getattr(graph, "builder", None), "nodes", {}).values():
        runnable = getattr(node, "runnable", None)
        hook = getattr(runnable, "func", None) or getattr(runnable, "afunc", None)
        owner = getattr(hook, "__self__", None)
        if any(kind.__name__ == "GuardMiddleware" for kind in type(owner).__mro__):
            return owner
    return None
