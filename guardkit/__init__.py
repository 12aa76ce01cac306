"""guardkit: safety middleware for LLM applications.

    from guardkit import Guard
    verdict = Guard.load().check("text")

Everything public is here; submodules load when they are first used, so that `import guardkit` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guardkit._version import __version__

if TYPE_CHECKING:
    from guardkit.astream import AsyncStreamGuard
    from guardkit.audit import AuditRecord, JsonlSink
    from guardkit.errors import (
        GuardkitError,
        GuardViolation,
        MessageError,
        MissingExtra,
        ModelError,
        ModelLoadError,
        NotJudged,
        Overloaded,
        PolicyError,
        StreamClosed,
        UnknownModel,
    )
    from guardkit.events import Event, FlagEvent, Mark, RetractEvent, StopEvent, TextEvent
    from guardkit.guard import Guard
    from guardkit.messages import Message, split_reasoning
    from guardkit.policy import Action, Decision, Policy
    from guardkit.stream import StreamGuard
    from guardkit.verdict import Category, Severity, Stage, Verdict

_HOME = {
    "astream": ("AsyncStreamGuard",),
    "audit": ("AuditRecord", "JsonlSink"),
    "errors": (
        "GuardViolation", "GuardkitError", "MessageError", "MissingExtra", "ModelError", "ModelLoadError", "NotJudged",
        "Overloaded", "PolicyError", "StreamClosed", "UnknownModel",
    ),
    "events": ("Event", "FlagEvent", "Mark", "RetractEvent", "StopEvent", "TextEvent"),
    "guard": ("Guard",),
    "messages": ("Message", "split_reasoning"),
    "policy": ("Action", "Decision", "Policy"),
    "stream": ("StreamGuard",),
    "verdict": ("Category", "Severity", "Stage", "Verdict"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Action",
    "AsyncStreamGuard",
    "AuditRecord",
    "Category",
    "Decision",
    "Event",
    "FlagEvent",
    "Guard",
    "GuardViolation",
    "GuardkitError",
    "JsonlSink",
    "Mark",
    "Message",
    "MessageError",
    "MissingExtra",
    "ModelError",
    "ModelLoadError",
    "NotJudged",
    "Overloaded",
    "Policy",
    "PolicyError",
    "RetractEvent",
    "Severity",
    "Stage",
    "StopEvent",
    "StreamClosed",
    "StreamGuard",
    "TextEvent",
    "UnknownModel",
    "Verdict",
    "__version__",
    "split_reasoning",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'guardkit' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"guardkit.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
