"""`GuardIngestionPipeline`: documents are screened before the pipeline does or remembers anything with them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode, Document
from llama_index.postprocessor.guardkit.guards import Source
from llama_index.postprocessor.guardkit.llm import GuardedLLM, guarded
from llama_index.postprocessor.guardkit.nodes import Media, OnBlock
from llama_index.postprocessor.guardkit.rules import OnViolation
from llama_index.postprocessor.guardkit.transform import GuardTransform

from guardkit import Guard

_screened: ContextVar[list[BaseNode] | None] = ContextVar("guardkit_screened", default=None)


class GuardIngestionPipeline(IngestionPipeline):
    """An `IngestionPipeline` that screens its input first: what is dropped reaches no step, worker, cache, docstore or
    vector store, and a later run with a looser policy reads it as if for the first time. What models of its steps add,
    such as titles and summaries, is judged as their answers.

    A document that was good before, and is dropped now, is deleted from docstore and vector store. guard, on_block,
    media: as for `GuardTransform`; everything else is the pipeline's own.
    """

    _transform: GuardTransform = PrivateAttr()

    def __init__(
        self,
        guard: Guard | Source,
        *,
        on_block: OnBlock = "drop",
        media: Media = "on_error",
        on_violation: OnViolation | None = None,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.transformations = [self._with_guarded_model(step, guard, on_violation) for step in self.transformations]
        self._transform = GuardTransform(guard, on_block=on_block, media=media, on_violation=on_violation)

    @staticmethod
    def _with_guarded_model(step: Any, guard: Guard | Source, on_violation: OnViolation | None) -> Any:
        """A step that asks a model, such as an extractor of titles, asks a guarded one: what it says is stored."""
        model = getattr(step, "llm", None)
        if not isinstance(model, LLM) or isinstance(model, GuardedLLM):
            return step
        asked = guarded(model, guard, exit_behavior="replace", on_violation=on_violation, check_input=False)
        return step.model_copy(update={"llm": asked})

    async def arun(self, *args: Any, **kwargs: Any) -> Sequence[BaseNode]:
        given = _Given(*args, **kwargs)
        inputs = list(super()._prepare_inputs(given.documents, given.nodes))
        passed = list(await self._transform.acall(inputs))
        await asyncio.to_thread(self._forget, inputs, passed)
        token = _screened.set(passed)
        try:
            done: Sequence[BaseNode] = await super().arun(*args, **kwargs)
            return done
        finally:
            _screened.reset(token)

    def _prepare_inputs(
        self, documents: Sequence[Document] | None, nodes: Sequence[BaseNode] | None
    ) -> Sequence[BaseNode]:
        if (screened := _screened.get()) is not None:
            return screened
        inputs = list(super()._prepare_inputs(list(documents or []), list(nodes or [])))
        passed = list(self._transform(inputs))
        self._forget(inputs, passed)
        return passed

    def _forget(self, inputs: Sequence[BaseNode], passed: Sequence[BaseNode]) -> None:
        """Delete what an earlier run kept of documents that do not pass any more."""
        if self.docstore is None:
            return
        kept = {node.node_id for node in passed}
        for node in inputs:
            name = node.ref_doc_id or node.node_id
            if node.node_id not in kept and self.docstore.get_document_hash(name):
                self.docstore.delete_ref_doc(name, raise_error=False)
                self.docstore.delete_document(name, raise_error=False)
                if self.vector_store is not None:
                    self.vector_store.delete(name)


class _Given:
    """The input of a run, out of the arguments of `IngestionPipeline.run`."""

    def __init__(
        self,
        show_progress: bool = False,
        documents: Sequence[Document] | None = None,
        nodes: Sequence[BaseNode] | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        self.documents, self.nodes = list(documents or []), list(nodes or [])
