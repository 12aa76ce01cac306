"""`GuardMemory`: a chat or agent memory that never keeps what the policy blocks, whoever writes to it."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import PrivateAttr, SerializeAsAny
from llama_index.core.memory import BaseMemory, Memory
from llama_index.postprocessor.guardkit.guards import GuardComponent, Source
from llama_index.postprocessor.guardkit.inputs import Inputs
from llama_index.postprocessor.guardkit.rules import VIOLATION_MESSAGE, ExitBehavior, Rules
from llama_index.postprocessor.guardkit.steps import arun, run

from guardkit import Guard


class GuardMemory(GuardComponent, BaseMemory):
    """Wraps a memory: messages are judged when they are put, and blocked ones are kept as the violation message.

    Agents write the user's message to memory before their LLM is asked; with
    ``agent.run(..., memory=GuardMemory(memory=memory, guard=guard))`` a blocked one is not kept there either.
    """

    memory: SerializeAsAny[BaseMemory]
    exit_behavior: ExitBehavior = "replace"
    violation_message: str = VIOLATION_MESSAGE

    _inputs: Inputs = PrivateAttr(default_factory=Inputs)

    def __init__(self, guard: Guard | Source, **fields: Any) -> None:
        super().__init__(guard=guard, **fields)

    @classmethod
    def class_name(cls) -> str:
        return "GuardMemory"

    @classmethod
    def from_defaults(cls, memory: BaseMemory | None = None, guard: Any = "nano", **kwargs: Any) -> GuardMemory:
        return cls(memory=memory or Memory.from_defaults(**kwargs), guard=guard)

    @property
    def _rules(self) -> Rules:
        return Rules(self.guard, self.exit_behavior, self.violation_message)

    def put(self, message: ChatMessage) -> None:
        self.put_messages([message])

    async def aput(self, message: ChatMessage) -> None:
        await self.aput_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        for message in run(self._inputs.passable(self._rules, messages)):
            self.memory.put(message)

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        await self.memory.aput_messages(await arun(self._inputs.passable(self._rules, messages)))

    def set(self, messages: list[ChatMessage]) -> None:
        self.memory.set(run(self._inputs.passable(self._rules, messages)))

    async def aset(self, messages: list[ChatMessage]) -> None:
        await self.memory.aset(await arun(self._inputs.passable(self._rules, messages)))

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return self.memory.get(input=input, **kwargs)

    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return await self.memory.aget(input=input, **kwargs)

    def get_all(self) -> list[ChatMessage]:
        return self.memory.get_all()

    async def aget_all(self) -> list[ChatMessage]:
        return await self.memory.aget_all()

    def reset(self) -> None:
        self.memory.reset()

    async def areset(self) -> None:
        await self.memory.areset()
