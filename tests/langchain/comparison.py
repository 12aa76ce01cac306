"""The same leak matrix for LangChain's own middlewares: prints the table in docs/langchain.md.

    python -m tests.langchain.comparison

The PII middleware looks for the flagged words by a pattern of its own and redacts them everywhere it can; the
moderation middleware asks a scripted stand-in for OpenAI's service that flags the same words. Only the flagged words
count as a leak here, since redaction lets the rest of a text through by design.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import PIIMiddleware
from langchain_openai.middleware import OpenAIModerationMiddleware
from langgraph.checkpoint.memory import InMemorySaver

from langchain_guardkit import GuardMiddleware
from tests.langchain.scripted import ScriptedModel, looking_tool, script_for
from tests.langchain.surfaces import AGENT_SURFACES
from tests.leaks import FLAGGED, FLAGGED_MARK, make_guard, strings_in

STAGES = {"answer": "answer", "reasoning": "reasoning", "tool_call": "tool call", "tool_output": "tool output"}
SIZE = 3


def moderate(text: str) -> Any:
    flagged = FLAGGED in text
    categories = SimpleNamespace(model_dump=lambda: {"violence": flagged})
    return SimpleNamespace(results=[SimpleNamespace(flagged=flagged, categories=categories)])


class Moderations:
    def create(self, *, model: str, input: str) -> Any:
        return moderate(input)


class AsyncModerations:
    async def create(self, *, model: str, input: str) -> Any:
        return moderate(input)


def pii() -> Any:
    return PIIMiddleware(
        "flagged words", detector=FLAGGED, apply_to_input=True, apply_to_output=True, apply_to_tool_results=True
    )


def moderation() -> Any:
    return OpenAIModerationMiddleware(
        check_tool_results=True,
        client=SimpleNamespace(moderations=Moderations()),  # type: ignore[arg-type]
        async_client=SimpleNamespace(moderations=AsyncModerations()),  # type: ignore[arg-type]
    )


CONTENDERS: dict[str, Callable[[], Any]] = {
    "PIIMiddleware": pii,
    "OpenAIModerationMiddleware": moderation,
    "GuardMiddleware": lambda: GuardMiddleware(make_guard(), exit_behavior="end"),
}


def leaks(value: Any) -> bool:
    return any(FLAGGED_MARK in text or "\\u00b6" in text for text in strings_in(value))


def run(contender: str, surface: str, stage: str) -> tuple[bool, bool]:
    """Whether flagged words were seen on the surface, and whether they were left in the state or the checkpoints."""
    prompt, replies, outputs = script_for(stage)
    saver = InMemorySaver()
    graph = create_agent(
        ScriptedModel(replies=replies, size=SIZE),
        [looking_tool(**outputs)],
        middleware=[CONTENDERS[contender]()],
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


def table() -> str:
    rows = [f"| surface | {' | '.join(CONTENDERS)} |", f"|---|{'---|' * len(CONTENDERS)}"]
    stored: dict[str, set[str]] = {name: set() for name in CONTENDERS}
    for surface in AGENT_SURFACES:
        cells = []
        for contender in CONTENDERS:
            found = []
            for stage, label in STAGES.items():
                seen, kept = run(contender, surface, stage)
                found += [label] if seen else []
                stored[contender] |= {label} if kept else set()
            cells.append(_cell(found))
        rows.append(f"| {surface} | {' | '.join(cells)} |")
    kept_cells = [_cell([label for label in STAGES.values() if label in stored[name]]) for name in CONTENDERS]
    rows.append(f"| state, writes, checkpoints | {' | '.join(kept_cells)} |")
    return "\n".join(rows)


def _cell(found: list[str]) -> str:
    return "all four leak" if len(found) == len(STAGES) else ", ".join(found) if found else "clean"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table())
