"""Some turns of a conversation, with a chat store on disk: the program of test_conversation.py.

    python -m tests.llama_index.conversation {chat,agent} FIRST LAST FOLDER

prints what each turn was answered, and all that the model was asked, as one JSON object, by exit behaviour.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import Memory
from llama_index.postprocessor.guardkit import GuardChatEngine, GuardMemory, guarded, guarded_tools

from guardkit import GuardViolation
from tests.leaks import BAD, FLAGGED, VIOLATION, make_guard
from tests.llama_index.doubles import FunctionLLM, PlainLLM, reply

BLOCKED = {
    4: "prompt",
    9: "answer",
    13: "inner",
}  # inner: the reasoning of a chat engine's model; an agent's tool output
TURNS = range(20)
EXITS = ("error", "end", "replace")


def prompt(turn: int) -> str:
    return f"turn {turn}: {FLAGGED}" if BLOCKED.get(turn) == "prompt" else f"turn {turn}"


def answer(turn: int) -> str:
    return BAD if BLOCKED.get(turn) == "answer" else f"answer {turn}"


class Conversation:
    def __init__(self, exit_behavior: Any, folder: Path):
        self.exit_behavior, self.guard = exit_behavior, make_guard()
        store = f"sqlite+aiosqlite:///{folder / exit_behavior}"
        self.memory = Memory.from_defaults(session_id="talk", async_database_uri=store, token_limit=100_000)
        self.asked: list[str] = []
        self.settings: dict[str, Any] = {"exit_behavior": exit_behavior, "violation_message": VIOLATION}

    def chat(self, turn: int) -> str:
        thinking = BAD if BLOCKED.get(turn) == "inner" else "hm"
        llm = PlainLLM(reply(answer(turn), thinking=thinking))
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=self.memory)
        guarded_engine = GuardChatEngine(engine, self.guard, **self.settings)
        try:
            if turn % 2:
                return "".join(guarded_engine.stream_chat(prompt(turn)).response_gen)
            return str(guarded_engine.chat(prompt(turn)))
        finally:
            self.asked += [str(messages) for messages in llm.script.asked]

    def agent(self, turn: int) -> str:
        def look() -> str:
            """Looks."""
            return BAD if BLOCKED.get(turn) == "inner" else "found"

        llm = FunctionLLM(reply(calls=[("look", {})]), reply(answer(turn)))
        made = FunctionAgent(
            tools=guarded_tools([look], self.guard, **self.settings),
            llm=guarded(llm, self.guard, **self.settings),
            streaming=bool(turn % 2),
        )
        memory = GuardMemory(memory=self.memory, guard=self.guard, violation_message=VIOLATION)

        async def go() -> str:
            return str(await made.run(prompt(turn), memory=memory))

        try:
            return asyncio.run(go())
        finally:
            self.asked += [str(messages) for messages in llm.script.asked]

    def run(self, kind: str, turns: range) -> dict[str, Any]:
        said: dict[int, str] = {}
        for turn in turns:
            try:
                said[turn] = getattr(self, kind)(turn)
            except GuardViolation as violation:
                said[turn] = f"raised: {violation}"
        return {"said": said, "asked": self.asked}


def halves(kind: str, turns: range, folder: Path) -> dict[str, Any]:
    """Some turns under each exit behaviour, each with its own store."""
    return {exit_behavior: Conversation(exit_behavior, folder).run(kind, turns) for exit_behavior in EXITS}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kind, first, last, folder = sys.argv[1:]
    print(json.dumps(halves(kind, range(int(first), int(last)), Path(folder)), ensure_ascii=False))
