"""`GuardChatEngine`: the message in, the nodes, the answer out of any chat engine, and what its memory keeps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    MessageRole,
)
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import (
    AGENT_CHAT_RESPONSE_TYPE,
    AgentChatResponse,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.llms import LLM
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import ToolOutput
from llama_index.postprocessor.guardkit.guards import Source, resolve
from llama_index.postprocessor.guardkit.inputs import Inputs
from llama_index.postprocessor.guardkit.llm import guarded
from llama_index.postprocessor.guardkit.marks import mark_of
from llama_index.postprocessor.guardkit.memory import GuardMemory
from llama_index.postprocessor.guardkit.postprocessor import GuardNodePostprocessor
from llama_index.postprocessor.guardkit.query_engine import (
    GuardQueryEngine,
    nodes_of,
    passable_metadata,
    with_guarded_parts,
)
from llama_index.postprocessor.guardkit.rules import (
    VIOLATION_MESSAGE,
    ExitBehavior,
    OnViolation,
    Rules,
    ViolationMessage,
)
from llama_index.postprocessor.guardkit.runs import Policies
from llama_index.postprocessor.guardkit.steps import Steps, arun, run
from llama_index.postprocessor.guardkit.streaming import TextStream
from llama_index.postprocessor.guardkit.tools import judged_output

from guardkit import Decision, Guard, Message, Stage

# Engines whose every answer comes from an LLM or query engine that is swapped for a guarded one.
_KNOWN = (SimpleChatEngine, ContextChatEngine, CondensePlusContextChatEngine, CondenseQuestionChatEngine)


class GuardChatEngine(BaseChatEngine):
    """Wraps any chat engine; the engine that was given stays as it is, and its memory is shared.

    exit_behavior: "error" raises `GuardViolation`; otherwise a blocked message is answered with `violation_message`
    and enters no memory, and a blocked answer is replaced by it, in the memory too; a stream ends with it. Nodes go
    through `node_postprocessor` (default: a `GuardNodePostprocessor` that drops). A ``chat_history`` that comes with a
    call is judged as well.
    """

    def __init__(
        self,
        chat_engine: BaseChatEngine,
        guard: Guard | Source,
        *,
        exit_behavior: ExitBehavior = "end",
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
        check_input: bool = True,
        check_nodes: bool = True,
        check_output: bool = True,
        node_postprocessor: GuardNodePostprocessor | None = None,
    ):
        self._rules = Rules(resolve(guard), exit_behavior, violation_message, on_violation, policies or {})
        self._check_input, self._check_output = check_input, check_output
        self._nodes = node_postprocessor or nodes_of(self._rules)
        self._check_nodes = check_nodes
        self._inputs = Inputs()
        self._given = chat_engine
        self._engine = self._guarded_copy(chat_engine)
        self._judges_itself = type(chat_engine) in _KNOWN

    def _guarded_copy(self, engine: BaseChatEngine) -> BaseChatEngine:
        """The engine with its parts swapped for guarded ones: answers are judged before memory and events see them."""
        given = self._rules
        made = with_guarded_parts(engine, self._nodes if self._check_nodes else None, None)
        shared: dict[str, Any] = {
            "violation_message": given.violation_message,
            "on_violation": given.on_violation,
            "policies": given.policies,
        }
        for name, value in vars(engine).items():
            if isinstance(value, BaseMemory) and not isinstance(value, GuardMemory):
                memory = GuardMemory(memory=value, guard=given.base, **shared)
                memory._inputs = self._inputs
                setattr(made, name, memory)
            elif isinstance(value, LLM) and self._check_output:
                settings = shared | {"check_input": False, "check_tool_results": False}
                part = guarded(value, given.base, exit_behavior=given.exit_behavior, **settings)
                part._inputs = self._inputs
                setattr(made, name, part)
            elif isinstance(value, BaseQueryEngine) and self._check_output:
                part_of = GuardQueryEngine(
                    value,
                    given.base,
                    exit_behavior=given.exit_behavior,
                    check_input=False,
                    check_nodes=self._check_nodes,
                    node_postprocessor=self._nodes,
                    **shared,
                )
                setattr(made, name, part_of)
        return made

    def chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> AGENT_CHAT_RESPONSE_TYPE:
        message, history, refused = run(self._input(message, chat_history))
        if refused:
            return AgentChatResponse(response=self._rules.message(refused), metadata=mark_of(refused))
        response = self._engine.chat(message, history, **kwargs)
        return response if self._judges_itself else run(self._whole(message, response))

    async def achat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> AGENT_CHAT_RESPONSE_TYPE:
        message, history, refused = await arun(self._input(message, chat_history))
        if refused:
            return AgentChatResponse(response=self._rules.message(refused), metadata=mark_of(refused))
        response = await self._engine.achat(message, history, **kwargs)
        return response if self._judges_itself else await arun(self._whole(message, response))

    def stream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> StreamingAgentChatResponse:
        message, history, refused = run(self._input(message, chat_history))
        if refused:
            chunks = (chunk for chunk in [_chunk(self._rules.message(refused))])
            return StreamingAgentChatResponse(chat_stream=chunks, is_writing_to_memory=False)
        response = self._engine.stream_chat(message, history, **kwargs)
        if self._judges_itself:
            return response
        sources = run(self._sources(response))
        stream = TextStream(self._rules.of_run(), [Message("user", message)])
        return StreamingAgentChatResponse(
            chat_stream=_released(response.response_gen, stream), is_writing_to_memory=False, **sources
        )

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> StreamingAgentChatResponse:
        message, history, refused = await arun(self._input(message, chat_history))
        if refused:

            async def chunks() -> ChatResponseAsyncGen:
                yield _chunk(self._rules.message(refused))

            return StreamingAgentChatResponse(achat_stream=chunks(), is_writing_to_memory=False)
        response = await self._engine.astream_chat(message, history, **kwargs)
        if self._judges_itself:
            return response
        sources = await arun(self._sources(response))
        stream = TextStream(await arun(self._of_run()), [Message("user", message)])
        return StreamingAgentChatResponse(
            achat_stream=_areleased(response.async_response_gen(), stream), is_writing_to_memory=False, **sources
        )

    def reset(self) -> None:
        self._given.reset()

    @property
    def chat_history(self) -> list[ChatMessage]:
        return self._given.chat_history

    # -- decisions

    def _of_run(self) -> Steps[Rules]:
        yield from ()
        return self._rules.of_run()

    def _input(
        self, message: str, history: Sequence[ChatMessage] | None
    ) -> Steps[tuple[str, list[ChatMessage] | None, Decision | None]]:
        """The message and the history as they may go on, and the decision for which the engine must not be asked."""
        given = None if history is None else list(history)
        if not self._check_input:
            return message, given, None
        messages = [*(given or []), ChatMessage(role=MessageRole.USER, content=message)]
        # The message is always this turn's; in what came before it a violation is replaced.
        rules = replace(self._rules, exit_behavior="end") if self._rules.exit_behavior == "replace" else self._rules
        earlier, _ = yield from self._inputs.passable(replace(rules, exit_behavior="replace"), messages[:-1])
        (last,), refused = yield from self._inputs.judge(rules, messages[-1:], lambda _: True)
        return last.content or "", None if given is None else earlier, refused

    def _whole(self, message: str, response: AGENT_CHAT_RESPONSE_TYPE) -> Steps[AGENT_CHAT_RESPONSE_TYPE]:
        if isinstance(response, StreamingAgentChatResponse):  # of an engine whose chat streams: read it to its end
            said = "".join((yield lambda: list(response.response_gen)))
            response = AgentChatResponse(said, response.sources, response.source_nodes)
        sources = yield from self._sources(response)
        text = response.response
        if self._check_output:
            text, _ = yield from self._rules.text(text, Stage.response, "answer", [Message("user", message)])
        metadata = response.metadata
        if metadata is not None and self._check_nodes:
            metadata = yield from passable_metadata(self._rules, metadata)
        return replace(response, response=text, metadata=metadata, **sources)

    def _sources(self, response: AGENT_CHAT_RESPONSE_TYPE) -> Steps[dict[str, Any]]:
        if not self._check_nodes:
            return {"sources": response.sources, "source_nodes": response.source_nodes}
        screening = yield from self._nodes.steps(response.source_nodes)
        sources = []
        for source in response.sources:
            rules = replace(self._rules, exit_behavior="replace")
            judged, decision = yield from judged_output(rules, source, f"source '{source.tool_name}'")
            if judged is None:
                text = rules.message(decision)
                judged = ToolOutput(source.tool_name, content=text, raw_input={}, raw_output=text)
            sources.append(judged)
        return {"sources": sources, "source_nodes": screening.nodes}


def _chunk(delta: str, text: str | None = None) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text or delta), delta=delta)


def _released(tokens: Generator[str, None, None], stream: TextStream) -> ChatResponseGen:
    said = ""
    try:
        for token in tokens:
            for text in run(stream.take(token)):
                said += text
                yield _chunk(text, said)
            if stream.stopped:
                break
        else:
            for text in run(stream.end()):
                said += text
                yield _chunk(text, said)
        stream.conclude()
    finally:
        stream.close()
        tokens.close()


async def _areleased(tokens: AsyncGenerator[str, None], stream: TextStream) -> ChatResponseAsyncGen:
    said = ""
    try:
        async for token in tokens:
            for text in await arun(stream.take(token)):
                said += text
                yield _chunk(text, said)
            if stream.stopped:
                break
        else:
            for text in await arun(stream.end()):
                said += text
                yield _chunk(text, said)
        stream.conclude()
    finally:
        stream.close()
        await tokens.aclose()
