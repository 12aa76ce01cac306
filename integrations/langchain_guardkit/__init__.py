"""guardkit for LangChain: chains, chat models, agents, retrievers and graphs in which every text is judged."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_guardkit.callbacks import AsyncGuardCallbackHandler, GuardCallbackHandler, Observation
    from langchain_guardkit.chat_model import GuardedChatModel
    from langchain_guardkit.documents import GuardDocumentTransformer, GuardRetriever
    from langchain_guardkit.enforcing import MessageViolation
    from langchain_guardkit.graph import guard_node, guard_route
    from langchain_guardkit.guarded_graph import guard_graph
    from langchain_guardkit.middleware import GuardMiddleware
    from langchain_guardkit.rollback import RollbackChatModel
    from langchain_guardkit.runnable import GuardRunnable
    from langchain_guardkit.store import GuardedStore
    from langchain_guardkit.tools import GuardedTool, guarded_writer

# Modules load when they are first used: the middleware alone needs langchain and langgraph.
_HOME = {
    "callbacks": ("AsyncGuardCallbackHandler", "GuardCallbackHandler", "Observation"),
    "chat_model": ("GuardedChatModel",),
    "documents": ("GuardDocumentTransformer", "GuardRetriever"),
    "enforcing": ("MessageViolation",),
    "graph": ("guard_node", "guard_route"),
    "guarded_graph": ("guard_graph",),
    "middleware": ("GuardMiddleware",),
    "rollback": ("RollbackChatModel",),
    "runnable": ("GuardRunnable",),
    "store": ("GuardedStore",),
    "tools": ("GuardedTool", "guarded_writer"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AsyncGuardCallbackHandler",
    "GuardCallbackHandler",
    "GuardDocumentTransformer",
    "GuardMiddleware",
    "GuardRetriever",
    "GuardRunnable",
    "GuardedChatModel",
    "GuardedStore",
    "GuardedTool",
    "MessageViolation",
    "Observation",
    "RollbackChatModel",
    "guard_graph",
    "guard_node",
    "guard_route",
    "guarded_writer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'langchain_guardkit' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"langchain_guardkit.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
