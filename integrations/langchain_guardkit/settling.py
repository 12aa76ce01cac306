"""What becomes of a value that flows through a chain: decided before any run shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage

from guardkit import Decision, GuardkitError, Stage
from langchain_guardkit.enforcing import Enforcement, worst
from langchain_guardkit.runs import annotate
from langchain_guardkit.values import Leaf, decide_leaves, leaves_of, scrubbed, settle

Field = tuple[str, Stage]  # a dict's key, and what its text is judged as


@dataclass(frozen=True)
class Ended:
    """A violation that ends a chain before it is run."""

    text: str
    message: AIMessage


@dataclass
class Settlement:
    """What becomes of one value. shown: the value as a run may show it. outcome: what goes on, or the error that is
    raised instead. ended: the violation that ends what would follow, where that is the exit behaviour."""

    shown: Any
    outcome: Any
    decision: Decision | None
    ended: Ended | None = None

    def finish(self, value: Any, run_manager: Any) -> Any:
        """What goes on; raises what is raised instead. The decision is put on the run."""
        return self.passed_on(run_manager)

    async def afinish(self, value: Any, run_manager: Any) -> Any:
        return self.passed_on(run_manager)

    def passed_on(self, run_manager: Any = None) -> Any:
        if self.decision is not None and run_manager is not None:
            annotate(run_manager, self.decision)
        if isinstance(self.outcome, GuardkitError):
            raise self.outcome
        return self.outcome

    def result(self, run_manager: Any) -> Any:
        """For a batch: an error is a result like any other."""
        try:
            return self.passed_on(run_manager)
        except GuardkitError as error:
            return error


def fields_of(key: str | None, stage: Stage) -> tuple[Field, ...]:
    return () if key is None else ((key, stage),)


def settlements(
    enforcement: Enforcement, values: Sequence[Any], stage: Stage | None, fields: Sequence[Field] = ()
) -> list[Settlement]:
    """The settlement of each value, all judged in one batch. fields: what alone is judged in dicts."""
    parts = [_parts(value, stage, fields) for value in values]
    leaves = [leaves_of(part, asked) for mine in parts for _, part, asked in mine]
    decided = iter(zip(leaves, decide_leaves(enforcement, leaves), strict=True))
    found = []
    for value, mine in zip(values, parts, strict=True):
        found.append(_settlement(enforcement, value, [(key, part, *next(decided)) for key, part, _ in mine]))
    return found


def _parts(value: Any, stage: Stage | None, fields: Sequence[Field]) -> list[tuple[str | None, Any, Stage | None]]:
    if not fields:
        return [(None, value, stage)]
    if not isinstance(value, Mapping):
        raise GuardkitError(f"input_key and output_key name fields of a dict, not of a {type(value).__name__}")
    present: list[tuple[str | None, Any, Stage | None]] = [(k, value[k], s) for k, s in fields if k in value]
    if not present:
        wanted = " or ".join(f"'{key}'" for key, _ in fields)
        raise GuardkitError(f"no {wanted} to judge: the keys are {', '.join(map(str, value))}")
    return present


def _settlement(
    enforcement: Enforcement,
    value: Any,
    parts: Sequence[tuple[str | None, Any, Sequence[Leaf], Sequence[Decision]]],
) -> Settlement:
    decisions = [decision for *_, found in parts for decision in found]
    stopped = [decision for decision in decisions if decision.action.stops]
    if not stopped:
        return Settlement(value, value, worst(decisions) if decisions else None)
    shown = outcome = value
    ended: Ended | None = None
    try:
        for key, part, leaves, found in parts:
            clean = scrubbed(enforcement, part, leaves, found)
            shown = clean if key is None else {**shown, key: clean}
        for key, part, leaves, found in parts:
            settled = settle(enforcement, part, leaves, found)
            outcome = settled if key is None else {**outcome, key: settled}
    except GuardkitError as error:
        outcome = error
    else:
        ends = [d for d in stopped if enforcement.behavior(d) == "end"]
        if ends:
            mark = enforcement.mark(ends[0])
            ended = Ended(mark["message"], enforcement.refusal(mark))
    return Settlement(shown, outcome, worst(decisions), ended)


def stage_of(stage: Stage | str | None) -> Stage | None:
    if stage is None or isinstance(stage, Stage):
        return stage
    try:
        return Stage(stage)
    except ValueError:
        known = ", ".join(s.value for s in Stage)
        raise GuardkitError(f"unknown stage '{stage}'; known: {known}") from None
