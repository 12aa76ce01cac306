"""`GuardQueryEngine`: the query in, the nodes, and the answer out of any query engine."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Generator, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.types import TokenAsyncGen, TokenGen
from llama_index.postprocessor.guardkit.guards import Source, resolve
from llama_index.postprocessor.guardkit.messages import texts_in
from llama_index.postprocessor.guardkit.postprocessor import GuardNodePostprocessor
from llama_index.postprocessor.guardkit.rules import (
    VIOLATION_MESSAGE,
    ExitBehavior,
    Rules,
    described,
    redacted,
    report,
    worst,
)
from llama_index.postprocessor.guardkit.steps import Steps, arun, run
from llama_index.postprocessor.guardkit.streaming import TextStream

from guardkit import Action, Decision, Guard, Message, Stage

METADATA_KEY = "guardkit"
_E = TypeVar("_E")


class GuardQueryEngine(BaseQueryEngine):
    """Wraps any query engine; wrapped around a `RetrieverQueryEngine` it is one.

    exit_behavior: "error" raises `GuardViolation`; otherwise a blocked query is answered with `violation_message`
    without asking the engine, and a blocked answer is replaced by it; a stream ends with it. Nodes go through
    `node_postprocessor` (default: a `GuardNodePostprocessor` that drops) before the engine reads them, in a copy of
    the engine: the one that was given stays as it is. Engines that hide their retriever have their sources screened
    when they answer; their retriever should be guarded itself. A decision that is no plain allow stands in the
    answer's ``metadata["guardkit"]``.
    """

    def __new__(cls, query_engine: BaseQueryEngine | None = None, *args: Any, **kwargs: Any) -> GuardQueryEngine:
        if cls is GuardQueryEngine and isinstance(query_engine, RetrieverQueryEngine):
            return super().__new__(_GuardRetrieverQueryEngine)
        return super().__new__(cls)

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        guard: Guard | Source,
        *,
        exit_behavior: ExitBehavior = "end",
        violation_message: str = VIOLATION_MESSAGE,
        check_input: bool = True,
        check_nodes: bool = True,
        check_output: bool = True,
        node_postprocessor: GuardNodePostprocessor | None = None,
        callback_manager: CallbackManager | None = None,
    ):
        self._rules = Rules(resolve(guard), exit_behavior, violation_message)
        self._check_input, self._check_output = check_input, check_output
        self._nodes = node_postprocessor or GuardNodePostprocessor(guard=self._rules.guard)
        self._check_nodes = check_nodes
        self._engine = with_guarded_nodes(query_engine, self._nodes) if check_nodes else query_engine
        known = type(query_engine).__module__.startswith("llama_index.core.")
        self._nodes_guarded = known and hasattr(query_engine, "_node_postprocessors")
        BaseQueryEngine.__init__(self, callback_manager or getattr(query_engine, "callback_manager", None))

    def _get_prompts(self) -> PromptDictType:
        return self._engine._get_prompts()

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._engine._update_prompts(prompts)

    def _get_prompt_modules(self) -> PromptMixinType:
        return self._engine._get_prompt_modules()

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        query, refusal = run(self._input(query_bundle))
        if refusal:
            return self._refusal(refusal)
        return self._answer(query, self._engine.query(query))

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        query, refusal = await arun(self._input(query_bundle))
        if refusal:
            return self._arefusal(refusal)
        return await self._aanswer(query, await self._engine.aquery(query))

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query, refusal = run(self._input(query_bundle))
        if refusal:
            return []
        nodes = self._engine.retrieve(query)
        return self._nodes.postprocess_nodes(nodes, query) if self._screens else nodes

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query, refusal = await arun(self._input(query_bundle))
        if refusal:
            return []
        nodes: list[NodeWithScore] = await self._engine.aretrieve(query)  # type: ignore[attr-defined]
        return await self._nodes.apostprocess_nodes(nodes, query) if self._screens else nodes

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        if self._check_nodes:
            nodes = self._nodes.postprocess_nodes(nodes, query_bundle)
            additional_source_nodes = self._nodes.postprocess_nodes(list(additional_source_nodes or []))
        response = self._engine.synthesize(query_bundle, nodes, additional_source_nodes)
        return self._answer(query_bundle, response)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        if self._check_nodes:
            nodes = await self._nodes.apostprocess_nodes(nodes, query_bundle)
            additional_source_nodes = await self._nodes.apostprocess_nodes(list(additional_source_nodes or []))
        response = await self._engine.asynthesize(query_bundle, nodes, additional_source_nodes)
        return await self._aanswer(query_bundle, response)

    # -- decisions

    @property
    def _screens(self) -> bool:
        """Whether sources are screened when they come out, since the engine could not be made to do it before."""
        return self._check_nodes and not self._nodes_guarded

    def _input(self, query: QueryBundle) -> Steps[tuple[QueryBundle, Decision | None]]:
        """The query as it may be asked, or the decision that refuses it."""
        if not self._check_input:
            return query, None
        items: list[Any] = [query.query_str, *(query.custom_embedding_strs or [])]
        if query.image_path:
            items.append([Message("user", unjudgeable=("image",))])
        decisions: list[Decision] = yield partial(self._rules.guard.decide_batch, items, stage=Stage.prompt)
        decision = worst(decisions)
        if decision.action is Action.redact:
            text = yield from redacted(self._rules.guard, query.query_str, Stage.prompt)
            report(decision, "query", "redacted")
            return QueryBundle(text), None
        if decision.action is Action.block:
            self._rules.violated(decision, "query")
            return query, decision
        if decision.action is Action.flag:
            report(decision, "query", "flagged")
        return query, None

    def _answer(self, query: QueryBundle, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        response = run(self._sources(response))
        if not self._check_output:
            return response
        if isinstance(response, StreamingResponse) and response.response_txt is None:
            stream = TextStream(self._rules, _context(query))
            metadata = response.metadata = {} if response.metadata is None else response.metadata
            return replace(response, response_gen=_released(response.response_gen, stream, metadata))
        return run(self._whole(query, response))

    async def _aanswer(self, query: QueryBundle, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        response = await arun(self._sources(response))
        if not self._check_output:
            return response
        if isinstance(response, AsyncStreamingResponse) and response.response_txt is None:
            stream = TextStream(self._rules, _context(query))
            metadata = response.metadata = {} if response.metadata is None else response.metadata
            return replace(response, response_gen=_areleased(response.response_gen, stream, metadata))
        if isinstance(response, StreamingResponse):  # an engine without an async stream of its own
            return self._answer(query, response)
        return await arun(self._whole(query, response))

    def _sources(self, response: RESPONSE_TYPE) -> Steps[RESPONSE_TYPE]:
        """Screen the sources where that was not done before, and what else stands in the metadata."""
        if not self._check_nodes:
            return response
        nodes, metadata = response.source_nodes, dict(response.metadata or {})
        ids = {n.node_id for n in nodes}
        if self._screens:
            screening = yield from self._nodes.steps(nodes)
            nodes = screening.nodes
            kept = {n.node_id: n.metadata for n in nodes}
            metadata = {k: kept.get(k, v) for k, v in metadata.items() if k in kept or k not in ids}
        metadata = yield from passable_metadata(self._rules, metadata, ids)
        return replace(response, source_nodes=nodes, metadata=metadata if response.metadata is not None else None)

    def _whole(self, query: QueryBundle, response: RESPONSE_TYPE) -> Steps[RESPONSE_TYPE]:
        if isinstance(response, StreamingResponse | AsyncStreamingResponse):
            said = response.response_txt or ""
        else:
            said = "" if response.response is None else str(response)
        text, decision = yield from self._rules.text(said, Stage.response, "answer", _context(query))
        if decision.action is Action.allow:
            return response
        metadata = {**(response.metadata or {}), METADATA_KEY: described(decision)}
        if not decision.action.stops:
            return replace(response, metadata=metadata)
        if isinstance(response, PydanticResponse):  # half an object is none
            text = self._rules.violation_message
        return Response(text, response.source_nodes, metadata)

    # -- answers to a query that is refused

    def _refusal(self, decision: Decision) -> RESPONSE_TYPE:
        metadata = {METADATA_KEY: described(decision)}
        message = self._rules.violation_message
        if not self._streams:
            return Response(message, metadata=metadata)
        return StreamingResponse((text for text in [message]), metadata=metadata)

    def _arefusal(self, decision: Decision) -> RESPONSE_TYPE:
        if not self._streams:
            return self._refusal(decision)

        async def said() -> TokenAsyncGen:
            yield self._rules.violation_message

        return AsyncStreamingResponse(said(), metadata={METADATA_KEY: described(decision)})

    @property
    def _streams(self) -> bool:
        synthesizer = getattr(self._engine, "_response_synthesizer", None)
        return bool(getattr(synthesizer, "_streaming", False))


class _GuardRetrieverQueryEngine(GuardQueryEngine, RetrieverQueryEngine):
    """A `GuardQueryEngine` for the places that ask for a `RetrieverQueryEngine`."""

    _engine: RetrieverQueryEngine

    @property
    def _response_synthesizer(self) -> Any:  # type: ignore[override]
        return self._engine._response_synthesizer

    @property
    def _retriever(self) -> Any:  # type: ignore[override]
        return self._engine._retriever

    @property
    def _node_postprocessors(self) -> Any:  # type: ignore[override]
        return self._engine._node_postprocessors

    def with_retriever(self, retriever: BaseRetriever) -> RetrieverQueryEngine:
        clone = copy.copy(self)
        clone._engine = self._engine.with_retriever(retriever)
        return clone


def with_guarded_nodes(engine: _E, postprocessor: GuardNodePostprocessor) -> _E:
    """A copy of an engine whose own node postprocessors, and those of engines in it, end with `postprocessor`."""
    made = copy.copy(engine)
    for name, value in list(vars(engine).items()):
        if name == "_node_postprocessors":
            setattr(made, name, [*(value or []), postprocessor])
        elif isinstance(value, BaseQueryEngine):
            setattr(made, name, with_guarded_nodes(value, postprocessor))
        elif isinstance(value, list | tuple) and any(isinstance(v, BaseQueryEngine) for v in value):
            setattr(made, name, [_if_engine(v, postprocessor) for v in value])
        elif isinstance(value, dict) and any(isinstance(v, BaseQueryEngine) for v in value.values()):
            setattr(made, name, {k: _if_engine(v, postprocessor) for k, v in value.items()})
    return made


def passable_metadata(rules: Rules, metadata: dict[str, Any], known: Set[str] = frozenset()) -> Steps[dict[str, Any]]:
    """An answer's metadata without the keys under which something is blocked. known: keys that were judged before."""
    others = {k: "\n".join(texts) for k, v in metadata.items() if k not in known and (texts := texts_in(v))}
    if not others:
        return metadata
    items = list(others.values())
    found: list[Decision] = yield partial(rules.guard.decide_batch, items, stage=Stage.document)
    bad = {key: decision for key, decision in zip(others, found, strict=True) if decision.action.stops}
    for key, decision in bad.items():
        report(decision, f"metadata '{key}' of the answer", "dropped")
    return {k: v for k, v in metadata.items() if k not in bad}


def _if_engine(value: Any, postprocessor: GuardNodePostprocessor) -> Any:
    return with_guarded_nodes(value, postprocessor) if isinstance(value, BaseQueryEngine) else value


def _context(query: QueryBundle) -> list[Message]:
    return [Message("user", query.query_str)]


def _released(tokens: TokenGen, stream: TextStream, metadata: dict[str, Any]) -> TokenGen:
    try:
        for token in tokens:
            yield from run(stream.take(token))
            if stream.stopped:
                break
        else:
            yield from run(stream.end())
        stream.conclude()
    finally:
        stream.close()
        if stream.stopped:
            metadata[METADATA_KEY] = described(stream.stopped)
        if isinstance(tokens, Generator):
            tokens.close()


async def _areleased(tokens: TokenAsyncGen, stream: TextStream, metadata: dict[str, Any]) -> TokenAsyncGen:
    try:
        async for token in tokens:
            for text in await arun(stream.take(token)):
                yield text
            if stream.stopped:
                break
        else:
            for text in await arun(stream.end()):
                yield text
        stream.conclude()
    finally:
        stream.close()
        if stream.stopped:
            metadata[METADATA_KEY] = described(stream.stopped)
        if isinstance(tokens, AsyncGenerator):
            await tokens.aclose()
