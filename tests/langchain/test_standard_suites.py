"""LangChain's own standard suites: a guarded model is a chat model, a guarded retriever a retriever."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_guardkit import GuardedChatModel, GuardRetriever
from tests.langchain.scripted import ScriptedModel, reply
from tests.leaks import SAFE, make_guard

for _suite in (ChatModelIntegrationTests, RetrieversIntegrationTests):
    for _name, _coroutine in inspect.getmembers(_suite, inspect.iscoroutinefunction):
        setattr(_suite, _name, pytest.mark.asyncio(_coroutine))  # the suites leave that to a setting


class Guarded(GuardedChatModel):
    """As the suites make models: from keyword arguments."""

    def __init__(self, **kwargs: Any):
        super().__init__(ScriptedModel(replies=[reply(SAFE)], **kwargs), make_guard())


class ScriptedFields:
    """A script knows no tools: what the suites would ask of a real provider is left out."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Guarded

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def returns_usage_metadata(self) -> bool:
        return True


class TestUnits(ScriptedFields, ChatModelUnitTests):
    pass


@pytest.mark.filterwarnings("ignore")
class TestBehaviour(ScriptedFields, ChatModelIntegrationTests):
    pass


class Shelf(BaseRetriever):
    k: int = 3

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [Document(f"{SAFE} {i}") for i in range(k or self.k)]


class GuardedShelf(GuardRetriever):
    def __init__(self, **kwargs: Any):
        super().__init__(Shelf(**kwargs), make_guard())


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return GuardedShelf

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {}

    @property
    def retriever_query_example(self) -> str:
        return "a query"
