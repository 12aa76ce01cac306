"""A conversation of twenty turns, three of them blocked, in SQLite checkpoints, with a restart in the middle."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from guardkit import GuardViolation
from langchain_guardkit import GuardMiddleware, guard_graph
from tests.langchain.scripted import ScriptedModel, looking_tool
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, make_guard

pytest.importorskip("langgraph.checkpoint.sqlite")
CONFIG: Any = {"configurable": {"thread_id": "1"}}
BLOCKED = {4: "prompt", 9: "answer", 14: "tool_output"}


class Talking(ScriptedModel):
    """Answers by what it was asked, so that it goes on after a restart; never sees what was blocked."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self._asked.append(list(messages))
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def _answer(messages: Sequence[BaseMessage]) -> AIMessage:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"I found: {last.content}")
        asked = str(last.content)
        if "look" in asked:
            query = "bad" if "badly" in asked else "good"
            call = {"name": "look", "args": {"query": query}, "id": f"call-{len(messages)}", "type": "tool_call"}
            return AIMessage("", tool_calls=[call])
        return AIMessage(BAD if "rudely" in asked else f"answer to {asked}")


def question(turn: int) -> str:
    stage = BLOCKED.get(turn)
    if stage == "prompt":
        return BAD
    words = {"answer": "answer rudely", "tool_output": "look badly"}.get(stage or "", "")
    return f"turn {turn}: {words or ('look' if turn % 5 == 0 else 'talk')}"


def conversation(path: Path, behavior: Any, run: Callable[[Any, str], Any], turns: range, saver: Any) -> None:
    model = Talking(replies=[])
    agent = create_agent(
        model,
        [looking_tool(bad=BAD)],
        middleware=[GuardMiddleware(make_guard(), exit_behavior=behavior, violation_message=VIOLATION)],
        checkpointer=saver,
    )
    graph = guard_graph(agent)
    for turn in turns:
        asked = question(turn)
        try:
            said = str(run(graph, asked)["messages"][-1].content)
        except GuardViolation:
            assert behavior == "error"
            assert turn in BLOCKED
            continue
        if turn not in BLOCKED:
            assert said == (f"I found: {SAFE}" if "look" in asked else f"answer to {asked}")
        elif behavior == "end":
            assert said == VIOLATION
        else:
            assert behavior == "replace"
            assert VIOLATION in said
    check_no_trace(model.asked, "what the model was asked")
    check_no_trace(graph.get_state(CONFIG).values, "state")


def nothing_in(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        data = file.read_bytes()
        for mark in ("¶", "§"):
            assert mark.encode() not in data, file


def ask(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
def test_twenty_turns(behavior: Any, tmp_path: Path) -> None:
    from langgraph.checkpoint.sqlite import SqliteSaver

    path = tmp_path / "chat.sqlite"
    for turns in (range(10), range(10, 20)):  # another process: nothing is left but the file
        with sqlite3.connect(path, check_same_thread=False) as connection:
            conversation(path, behavior, lambda g, text: g.invoke(ask(text), CONFIG), turns, SqliteSaver(connection))
        connection.close()
    nothing_in(path)


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
def test_twenty_turns_async(behavior: Any, tmp_path: Path) -> None:
    pytest.importorskip("aiosqlite")
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    path = tmp_path / "chat.sqlite"

    async def talk(turns: range) -> None:
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            loop = asyncio.get_running_loop()

            def run(graph: Any, text: str) -> Any:
                return asyncio.run_coroutine_threadsafe(graph.ainvoke(ask(text), CONFIG), loop).result()

            await asyncio.to_thread(conversation, path, behavior, run, turns, saver)

    for turns in (range(10), range(10, 20)):
        asyncio.run(talk(turns))
    nothing_in(path)
