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
from llama_index.core.query_engine import (
    RetrieverQueryEngine,
    RetryGuidelineQueryEngine,
    RetryQueryEngine,
    RetrySourceQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.types import TokenAsyncGen, TokenGen
from llama_index.postprocessor.guardkit.guards import Source, resolve
from llama_index.postprocessor.guardkit.marks import described
from llama_index.postprocessor.guardkit.messages import texts_in
from llama_index.postprocessor.guardkit.parts import guarded_postprocessors, has_guarded_models, with_guarded_models
from llama_index.postprocessor.guardkit.postprocessor import GuardNodePostprocessor
from llama_index.postprocessor.guardkit.rules import (
    VIOLATION_MESSAGE,
    ExitBehavior,
    OnViolation,
    Rules,
    ViolationMessage,
    redacted,
    report,
    worst,
)
from llama_index.postprocessor.guardkit.runs import Policies
from llama_index.postprocessor.guardkit.steps import Steps, arun, run
from llama_index.postprocessor.guardkit.streaming import TextStream
from llama_index.postprocessor.guardkit.synthesizers import with_guarded_drafts

from guardkit import Action, Decision, Guard, GuardViolation, Message, Stage
from guardkit.reading.values import texts_of

METADATA_KEY = "guardkit"
_E = TypeVar("_E")
_RETRYING = (RetryQueryEngine, RetrySourceQueryEngine, RetryGuidelineQueryEngine)


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
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
        check_input: bool = True,
        check_nodes: bool = True,
        check_output: bool = True,
        node_postprocessor: GuardNodePostprocessor | None = None,
        callback_manager: CallbackManager | None = None,
    ):
        self._rules = Rules(resolve(guard), exit_behavior, violation_message, on_violation, policies or {})
        self._check_input, self._check_output = check_input, check_output
        self._nodes = node_postprocessor or nodes_of(self._rules)
        self._check_nodes = check_nodes
        self._engine = with_guarded_parts(
            query_engine, self._nodes if check_nodes else None, self._rules if check_output else None
        )
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
        try:
            return self._answer(query, self._engine.query(query))
        except GuardViolation as violation:
            if not self._refuses:
                raise
            return self._refusal(violation.decision)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        query, refusal = await arun(self._input(query_bundle))
        if refusal:
            return self._arefusal(refusal)
        try:
            return await self._aanswer(query, await self._engine.aquery(query))
        except GuardViolation as violation:
            if not self._refuses:
                raise
            return self._arefusal(violation.decision)

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
    def _refuses(self) -> bool:
        """Whether a violation came out of the engine only so that it is not asked again, or because a model in it was
        to say how to go on, and no message can stand in the place of that."""
        raising = isinstance(self._engine, _RETRYING) or has_guarded_models(self._engine)
        return raising and self._rules.exit_behavior != "error"

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
            self._rules.withheld(decision, "query", "redacted")
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
            stream = TextStream(self._rules.of_run(), _context(query))
            metadata = response.metadata = {} if response.metadata is None else response.metadata
            return replace(response, response_gen=_released(response.response_gen, stream, metadata))
        return run(self._whole(query, response))

    async def _aanswer(self, query: QueryBundle, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        response = await arun(self._sources(response))
        if not self._check_output:
            return response
        if isinstance(response, AsyncStreamingResponse) and response.response_txt is None:
            stream = TextStream(await arun(self._of_run()), _context(query))
            metadata = response.metadata = {} if response.metadata is None else response.metadata
            return replace(response, response_gen=_areleased(response.response_gen, stream, metadata))
        if isinstance(response, StreamingResponse):  # an engine without an async stream of its own
            return self._answer(query, response)
        return await arun(self._whole(query, response))

    def _of_run(self) -> Steps[Rules]:
        yield from ()
        return self._rules.of_run()

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
        elif isinstance(response, PydanticResponse):
            said = "\n".join(texts_in(response.response))
        else:
            said = "" if response.response is None else str(response)
        text, decision = yield from self._rules.text(said, Stage.response, "answer", _context(query))
        if decision.action is Action.allow:
            return response
        metadata = {**(response.metadata or {}), METADATA_KEY: described(decision)}
        if not decision.action.stops:
            return replace(response, metadata=metadata)
        if isinstance(response, PydanticResponse):  # half an object is none
            text = self._rules.message(decision)
        return Response(text, response.source_nodes, metadata)

    # -- answers to a query that is refused

    def _refusal(self, decision: Decision) -> RESPONSE_TYPE:
        metadata = {METADATA_KEY: described(decision)}
        message = self._rules.message(decision)
        if not self._streams:
            return Response(message, metadata=metadata)
        return StreamingResponse((text for text in [message]), metadata=metadata)

    def _arefusal(self, decision: Decision) -> RESPONSE_TYPE:
        if not self._streams:
            return self._refusal(decision)

        async def said() -> TokenAsyncGen:
            yield self._rules.message(decision)

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


def nodes_of(rules: Rules) -> GuardNodePostprocessor:
    return GuardNodePostprocessor(guard=rules.base, policies=rules.policies, on_violation=rules.on_violation)


def with_guarded_parts(engine: _E, postprocessor: GuardNodePostprocessor | None, rules: Rules | None) -> _E:
    """A copy of an engine with guarded parts, and with engines in it that have them.

    postprocessor: comes last among its node postprocessors; None where nodes are not judged. rules: for what enters
    its next prompt: refine drafts, and the answers of engines in it; None where answers are not judged.
    """
    made = copy.copy(engine)
    for name, value in list(vars(engine).items()):
        if name == "_node_postprocessors":
            if postprocessor is not None:
                setattr(made, name, guarded_postprocessors(value or [], postprocessor))
        elif isinstance(value, BaseSynthesizer):
            if rules is not None:
                setattr(made, name, with_guarded_drafts(value, rules))
        elif isinstance(value, BaseQueryEngine):
            setattr(made, name, _inner_engine(engine, value, postprocessor, rules))
        elif isinstance(value, list | tuple) and any(isinstance(v, BaseQueryEngine) for v in value):
            setattr(made, name, [_inner_engine(engine, v, postprocessor, rules) for v in value])
        elif isinstance(value, dict) and any(isinstance(v, BaseQueryEngine) for v in value.values()):
            setattr(made, name, {k: _inner_engine(engine, v, postprocessor, rules) for k, v in value.items()})
    if rules is not None:
        with_guarded_models(engine, made, rules)
    return made


def _inner_engine(outer: Any, inner: Any, postprocessor: GuardNodePostprocessor | None, rules: Rules | None) -> Any:
    """An engine whose answer goes on into another prompt answers guarded; one whose answer is passed on as it is has
    its parts guarded alone, since the outer engine's answer is judged."""
    if not isinstance(inner, BaseQueryEngine) or isinstance(inner, GuardQueryEngine):
        return inner
    streams = getattr(getattr(inner, "_response_synthesizer", None), "_streaming", False)
    if rules is None or streams or isinstance(outer, TransformQueryEngine):
        return with_guarded_parts(inner, postprocessor, rules)
    exit_behavior: ExitBehavior = "error" if isinstance(outer, _RETRYING) else rules.exit_behavior
    return GuardQueryEngine(
        inner,
        rules.base,
        exit_behavior=exit_behavior,
        violation_message=rules.violation_message,
        on_violation=rules.on_violation,
        policies=rules.policies,
        check_nodes=postprocessor is not None,
        node_postprocessor=postprocessor,
    )


def passable_metadata(rules: Rules, metadata: dict[str, Any], known: Set[str] = frozenset()) -> Steps[dict[str, Any]]:
    """An answer's metadata without the keys under which something is blocked. known: keys that were judged before."""
    others: dict[str, Any] = {}
    for key, value in metadata.items():
        found_in = texts_of(value, Stage.document) if key not in known else []
        if any(f.text is None for f in found_in):
            others[key] = [Message("user", "\n".join(f.text or "" for f in found_in), unjudgeable=("metadata",))]
        elif key not in known and (found_in or not isinstance(key, str)):
            others[key] = "\n".join([str(key), *(f.text or "" for f in found_in)])
        elif key not in known:
            others[key] = key
    if not others:
        return metadata
    items = list(others.values())
    found: list[Decision] = yield partial(rules.guard.decide_batch, items, stage=Stage.document)
    bad = {key: decision for key, decision in zip(others, found, strict=True) if decision.action.stops}
    for decision in bad.values():
        rules.withheld(decision, "metadata of the answer", "dropped")
    return {k: v for k, v in metadata.items() if k not in bad}


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
