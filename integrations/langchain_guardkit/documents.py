"""Retrieved documents: those that are unsafe or carry injected instructions are dropped, flagged or redacted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, get_args

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, PrivateAttr

from guardkit import Action, Decision, Guard, GuardkitError, Stage
from langchain_guardkit.enforcing import (
    VIOLATION_MESSAGE,
    Enforcement,
    MessageViolation,
    OnViolation,
    Policies,
    ViolationMessage,
    worst,
)
from langchain_guardkit.marks import METADATA_KEY, summary
from langchain_guardkit.reading import joined_texts
from langchain_guardkit.trying import Once
from langchain_guardkit.unobserved import Unobserved, without_own_callbacks
from langchain_guardkit.values import about_document

OnUnsafe = Literal["drop", "flag", "redact", "error"]


class GuardDocumentTransformer(BaseDocumentTransformer):
    """Judges documents, content and metadata, in one batch.

    on_unsafe: what happens to a document that the policy blocks: "drop" leaves it out, "redact" puts the violation
    message in the place of its text (and drops metadata that is itself at fault), "flag" keeps it as it is, marked, and
    "error" raises `GuardViolation`. A document that the policy only flags is kept and marked. The mark is
    ``metadata["guardkit"]``. Order is kept, and what is safe goes through unchanged.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        on_unsafe: OnUnsafe = "drop",
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
    ):
        if on_unsafe not in get_args(OnUnsafe):
            raise GuardkitError(f"unknown on_unsafe '{on_unsafe}'; known: {', '.join(get_args(OnUnsafe))}")
        self._enforcement = Enforcement(
            guard, "error" if on_unsafe == "error" else "replace", violation_message, on_violation, policies or {}
        )
        self._on_unsafe = on_unsafe

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        run = self._enforcement.for_run()
        about = [joined_texts(about_document(document), Stage.document) for document in documents]
        texts = [document.page_content for document in documents] + [text for text, _ in about]
        asked = [i for i, text in enumerate(texts) if text.strip()]
        decided = run.guard.decide_batch([texts[i] for i in asked], stage=Stage.document)
        by_text = dict(zip(asked, decided, strict=True))
        for i, (_, unknown) in enumerate(about, len(documents)):
            if unknown is not None:
                found = run.guard.not_judged(unknown, Stage.document, None)
                by_text[i] = worst([found, by_text[i]]) if i in by_text else found
        kept = []
        for i, document in enumerate(documents):
            settled = self._settle(run, document, by_text.get(i), by_text.get(len(documents) + i), i)
            if settled is not None:
                kept.append(settled)
        return kept

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        return await asyncio.to_thread(self.transform_documents, documents, **kwargs)

    def _settle(
        self, run: Enforcement, document: Document, text: Decision | None, about: Decision | None, index: int
    ) -> Document | None:
        found = [decision for decision in (text, about) if decision is not None]
        if not found or (decision := worst(found)).action is Action.allow:
            return document
        mark = {METADATA_KEY: summary(decision)}
        if not decision.action.stops or self._on_unsafe == "flag":
            return document.model_copy(update={"metadata": {**document.metadata, **mark}})
        run.report(decision)
        if self._on_unsafe == "error" and decision.action is Action.block:
            raise MessageViolation(decision, index)
        if self._on_unsafe == "drop" and decision.action is Action.block:
            return None
        content = document.page_content
        if text is not None and text.action.stops:
            redacts = text.action is Action.redact and text.judged
            content = run.redacted(content, text, Stage.document) if redacts else run.text(text)
        update: dict[str, Any] = {"page_content": content, "metadata": {**document.metadata, **mark}}
        if about is not None and about.action.stops:
            update |= {"metadata": mark, "id": None}
        return document.model_copy(update=update)


class GuardRetriever(Once, BaseRetriever):
    """A retriever whose documents are judged before anything sees them; see `GuardDocumentTransformer`.

    The wrapped retriever runs unobserved, so events and tracers see this one's judged documents alone.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: Any
    _transformer: GuardDocumentTransformer = PrivateAttr()

    def __init__(
        self,
        retriever: Runnable[str, list[Document]],
        guard: Guard,
        *,
        on_unsafe: OnUnsafe = "drop",
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
    ):
        fields: dict[str, Any] = {"inner": retriever}
        if isinstance(retriever, BaseRetriever):
            fields = {"inner": without_own_callbacks(retriever), "tags": retriever.tags, "metadata": retriever.metadata}
        super().__init__(**fields)
        self._transformer = GuardDocumentTransformer(
            guard,
            on_unsafe=on_unsafe,
            violation_message=violation_message,
            on_violation=on_violation,
            policies=policies,
        )

    def guarding(self, other: Any) -> Any:
        if isinstance(other, GuardRetriever):
            return other
        twin = self.model_copy(
            update={"inner": without_own_callbacks(other) if isinstance(other, BaseRetriever) else other}
        )
        return twin

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        with Unobserved():
            documents = self.inner.invoke(query, **kwargs)
        return self._transformer.transform_documents(documents)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        with Unobserved():
            documents = await self.inner.ainvoke(query, **kwargs)
        return await self._transformer.atransform_documents(documents)
