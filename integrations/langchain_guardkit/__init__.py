"""guardkit for LangChain: chains, chat models, agents, retrievers and graphs in which every text is judged."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_guardkit.chat_model import GuardedChatModel
    from langchain_guardkit.enforcing import MessageViolation
    from langchain_guardkit.middleware import GuardMiddleware
    from langchain_guardkit.runnable import GuardRunnable
    from langchain_guardkit.tools import GuardedTool, guarded_writer

# Modules load when they are first used: all but the middleware and the graph helpers need langchain-core alone.
_HOME = {
    "chat_model": ("GuardedChatModel",),
    "enforcing": ("MessageViolation",),
    "middleware": ("GuardMiddleware",),
    "runnable": ("GuardRunnable",),
    "tools": ("GuardedTool", "guarded_writer"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "GuardMiddleware",
    "GuardRunnable",
    "GuardedChatModel",
    "GuardedTool",
    "MessageViolation",
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
