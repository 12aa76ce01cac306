"""`GuardMemory`: a chat or agent memory that neither keeps nor gives out what the policy blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ContentBlock, TextBlock
from llama_index.core.bridge.pydantic import Field, PrivateAttr, SerializeAsAny
from llama_index.core.memory import BaseMemory, BaseMemoryBlock, Memory
from llama_index.postprocessor.guardkit.guards import GuardComponent, Source
from llama_index.postprocessor.guardkit.inputs import Inputs
from llama_index.postprocessor.guardkit.messages import read, texts_in
from llama_index.postprocessor.guardkit.rules import (
    VIOLATION_MESSAGE,
    ExitBehavior,
    OnViolation,
    Rules,
    ViolationMessage,
)
from llama_index.postprocessor.guardkit.runs import Policies
from llama_index.postprocessor.guardkit.steps import Steps, arun, run

from guardkit import Decision, Guard, Stage


class GuardMemory(GuardComponent, BaseMemory):
    """Wraps a memory: messages are judged when they are put, and blocked ones are kept as the violation message.

    What it gives out is judged, too: messages that were there before, and memory blocks (facts, retrieved or static
    text), each by itself and as documents; a blocked one is replaced and the others stay. exit_behavior: "error" raises
    `GuardViolation` after the message was kept as the violation message. A guarded LLM knows a question that was
    withheld here, and follows its own exit behaviour.

    Agents write the user's message to memory before their LLM is asked; with
    ``agent.run(..., memory=GuardMemory(memory=memory, guard=guard))`` a blocked one is not kept there either.
    """

    memory: SerializeAsAny[BaseMemory]
    exit_behavior: ExitBehavior = "replace"
    violation_message: ViolationMessage = VIOLATION_MESSAGE
    on_violation: OnViolation | None = Field(default=None, exclude=True)
    policies: Policies = Field(default_factory=dict, exclude=True)

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
        return Rules(self.guard, self.exit_behavior, self.violation_message, self.on_violation, self.policies)

    @property
    def _inner(self) -> BaseMemory:
        """The memory, its blocks judged; the stores are those of the memory that was given."""
        if not isinstance(self.memory, Memory) or not self.memory.memory_blocks:
            return self.memory
        blocks = [_GuardedBlock.around(block, self) for block in self.memory.memory_blocks]
        return self.memory.model_copy(update={"memory_blocks": blocks})

    # -- in

    def put(self, message: ChatMessage) -> None:
        self.put_messages([message])

    async def aput(self, message: ChatMessage) -> None:
        await self.aput_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        kept, violation = run(self._inputs.passable(self._rules, messages))
        for message in kept:
            self._inner.put(message)
        if violation:
            raise violation

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        kept, violation = await arun(self._inputs.passable(self._rules, messages))
        await self._inner.aput_messages(kept)
        if violation:
            raise violation

    def set(self, messages: list[ChatMessage]) -> None:
        kept, violation = run(self._inputs.passable(self._rules, messages))
        self._inner.set(kept)
        if violation:
            raise violation

    async def aset(self, messages: list[ChatMessage]) -> None:
        kept, violation = await arun(self._inputs.passable(self._rules, messages))
        await self._inner.aset(kept)
        if violation:
            raise violation

    # -- out: what stands there from before the guard is replaced and never raised, or no later turn could be answered

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return run(self._given_out(self._inner.get(input=input, **kwargs)))

    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return await arun(self._given_out(await self._inner.aget(input=input, **kwargs)))

    def get_all(self) -> list[ChatMessage]:
        return run(self._given_out(self._inner.get_all()))

    async def aget_all(self) -> list[ChatMessage]:
        return await arun(self._given_out(await self._inner.aget_all()))

    def _given_out(self, messages: Sequence[ChatMessage]) -> Steps[list[ChatMessage]]:
        kept, _ = yield from self._inputs.passable(replace(self._rules, exit_behavior="replace"), messages)
        return kept

    def reset(self) -> None:
        self._inner.reset()

    async def areset(self) -> None:
        await self._inner.areset()


class _GuardedBlock(BaseMemoryBlock[Any]):
    """A memory block whose content is judged as a document before it enters a prompt."""

    block: Any  # a memory block, of any type of content
    _owner: GuardMemory = PrivateAttr()

    @classmethod
    def around(cls, block: BaseMemoryBlock[Any], owner: GuardMemory) -> _GuardedBlock:
        settings = {k: getattr(block, k) for k in ("name", "description", "priority", "accept_short_term_memory")}
        made = cls(block=block, **settings)
        made._owner = owner
        return made

    async def _aget(self, messages: list[ChatMessage] | None = None, **kwargs: Any) -> Any:
        content = await self.block.aget(messages, **kwargs)
        return await arun(self._judged(content)) if content else content

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await self.block.aput(messages)
        await arun(self._scrub())

    def _scrub(self) -> Steps[None]:
        """What a block has made of messages and keeps in a list, such as facts, goes where the policy stops it: a model
        of the block's own wrote it, and is shown it again."""
        rules = replace(self._owner._rules, exit_behavior="replace")
        for name in type(self.block).model_fields:
            texts = getattr(self.block, name)
            if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
                decisions: list[Decision] = yield partial(rules.guard.decide_batch, texts, stage=Stage.document)
                for decision in decisions:
                    if decision.action.stops:
                        rules.withheld(decision, f"memory block '{self.name}'", "dropped")
                kept = [text for text, decision in zip(texts, decisions, strict=True) if not decision.action.stops]
                if len(kept) < len(texts):
                    setattr(self.block, name, kept)

    async def atruncate(self, content: Any, tokens_to_truncate: int) -> Any:
        return await self.block.atruncate(content, tokens_to_truncate)

    def _judged(self, content: Any) -> Steps[Any]:
        """Messages one by one, and everything else as it is: text, or content blocks."""
        rules = replace(self._owner._rules, exit_behavior="replace")
        where = f"memory block '{self.name}'"
        if isinstance(content, list) and content and all(isinstance(item, ChatMessage) for item in content):
            kept, _ = yield from self._owner._inputs.passable(rules, content)
            return kept
        if isinstance(content, str):
            text, _ = yield from rules.text(content, Stage.document, where)
            return text
        kept_blocks: list[ContentBlock] = []
        for block in content if isinstance(content, list) else [content]:
            kept_blocks.append((yield from _passable_block(rules, block, where)))
        return kept_blocks


def _passable_block(rules: Rules, block: Any, where: str) -> Steps[Any]:
    """The block, or the violation message as one. Media follow on_error."""
    if isinstance(block, TextBlock):
        text, decision = yield from rules.text(block.text, Stage.document, where)
        return TextBlock(text=text) if decision.action.stops else block
    try:
        item: Any = [read(ChatMessage(role="user", blocks=[block]))]
    except ValueError:  # no content block: what a block of another kind gave
        item = "\n".join(texts_in(block))
    decision = (yield partial(rules.guard.decide_batch, [item], stage=Stage.document))[0]
    return TextBlock(text=_said(rules, decision, where)) if decision.action.stops else block


def _said(rules: Rules, decision: Decision, where: str) -> str:
    rules.withheld(decision, where, "replaced")
    return rules.message(decision)


__all__ = ["GuardMemory"]
