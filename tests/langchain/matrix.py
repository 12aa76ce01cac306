"""The leak matrix of an agent, for any middleware: which of the four places where a bad text can come from are seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver

from tests.langchain.scripted import ScriptedModel, looking_tool, script_for
from tests.langchain.surfaces import AGENT_SURFACES
from tests.leaks import FLAGGED_MARK, strings_in

STAGES = {"answer": "answer", "reasoning": "reasoning", "tool_call": "tool call", "tool_output": "tool output"}
SIZE = 3
Make = Callable[[], Any]
_T = TypeVar("_T")


def leaks(value: Any) -> bool:
    return any(FLAGGED_MARK in text or "\\u00b6" in text for text in strings_in(value))


def run(make: Make, surface: str, stage: str) -> tuple[bool, bool]:
    """Whether flagged words were seen on the surface, and whether they were left in the state or the checkpoints."""
    prompt, replies, outputs = script_for(stage)
    saver = InMemorySaver()
    graph = create_agent(
        ScriptedModel(replies=replies, size=SIZE),
        [looking_tool(**outputs)],
        middleware=[make()],
        checkpointer=saver,
    )
    seen: list[Any] = []
    config: Any = {"configurable": {"thread_id": "1"}}
    try:
        for item in AGENT_SURFACES[surface](graph, {"messages": [("user", prompt)]}, config):
            seen.append(item)
    except Exception as error:
        seen.append(error)
    return leaks(seen), leaks([saver.storage, saver.writes, saver.blobs])


def alone(call: Callable[..., _T], *given: Any) -> _T:
    """Call it in a thread of its own: some parts keep an event loop in theirs, which another run has closed."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *given).result()


def table(contenders: Mapping[str, Make]) -> str:
    rows = [f"| surface | {' | '.join(contenders)} |", f"|---|{'---|' * len(contenders)}"]
    stored: dict[str, set[str]] = {name: set() for name in contenders}
    for surface in AGENT_SURFACES:
        cells = []
        for contender, make in contenders.items():
            found = []
            for stage, label in STAGES.items():
                seen, kept = alone(run, make, surface, stage)
                found += [label] if seen else []
                stored[contender] |= {label} if kept else set()
            cells.append(cell(found, len(STAGES)))
        rows.append(f"| {surface} | {' | '.join(cells)} |")
    kept_cells = [
        cell([label for label in STAGES.values() if label in stored[name]], len(STAGES)) for name in contenders
    ]
    rows.append(f"| state, writes, checkpoints | {' | '.join(kept_cells)} |")
    return "\n".join(rows)


def cell(found: list[str], n_all: int) -> str:
    all_ = {2: "both leak", 3: "all three leak", 4: "all four leak"}[n_all]
    return all_ if len(found) == n_all else ", ".join(found) if found else "clean"
