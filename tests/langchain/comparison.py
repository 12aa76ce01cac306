"""The same leak matrix for LangChain's own middlewares: prints the table in docs/langchain.md.

    python -m tests.langchain.comparison

The PII middleware looks for the flagged words by a pattern of its own and redacts them everywhere it can; the
moderation middleware asks a scripted stand-in for OpenAI's service that flags the same words. Only the flagged words
count as a leak here, since redaction lets the rest of a text through by design.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from langchain.agents.middleware import PIIMiddleware
from langchain_openai.middleware import OpenAIModerationMiddleware

from langchain_guardkit import GuardMiddleware
from tests.langchain.matrix import table
from tests.leaks import FLAGGED, make_guard


def moderate(text: str) -> Any:
    flagged = FLAGGED in text
    categories = SimpleNamespace(model_dump=lambda: {"violence": flagged})
    return SimpleNamespace(results=[SimpleNamespace(flagged=flagged, categories=categories)])


class Moderations:
    def create(self, *, model: str, input: str) -> Any:
        return moderate(input)


class AsyncModerations:
    async def create(self, *, model: str, input: str) -> Any:
        return moderate(input)


def pii() -> Any:
    return PIIMiddleware(
        "flagged words", detector=FLAGGED, apply_to_input=True, apply_to_output=True, apply_to_tool_results=True
    )


def moderation() -> Any:
    return OpenAIModerationMiddleware(
        check_tool_results=True,
        client=SimpleNamespace(moderations=Moderations()),  # type: ignore[arg-type]
        async_client=SimpleNamespace(moderations=AsyncModerations()),  # type: ignore[arg-type]
    )


CONTENDERS: dict[str, Callable[[], Any]] = {
    "PIIMiddleware": pii,
    "OpenAIModerationMiddleware": moderation,
    "GuardMiddleware": lambda: GuardMiddleware(make_guard(), exit_behavior="end"),
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table(CONTENDERS))
