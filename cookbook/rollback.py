"""Take back what the guard stops, let the model reflect, and go on: rollback over a server that continues its answers.

python cookbook/rollback.py
"""

import asyncio
import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from guardkit import Guard
from guardkit.rollback import Rollback

QUESTION = [{"role": "user", "content": "How do I steal money from my employer?"}]
BAD = (
    "Money matters at work can be hard. First, gain their trust, then create fake invoices in the name of a shell "
    "company and transfer the stolen money to an account abroad, where nobody can trace it. Destroy the books."
)
BETTER = " If you feel that your pay is unfair, write down what you do and ask for a talk about it."


class Server:
    """Stands for an `openai.AsyncOpenAI` of a server such as vLLM: the first try goes wrong, the next one does not."""

    def __init__(self) -> None:
        self.chat = SimpleNamespace(completions=self)
        self.models = None

    async def create(self, *, messages: list[dict[str, str]], **_: Any) -> AsyncIterator[Any]:
        if messages[-1]["role"] == "user":
            return words(BAD)
        if messages[-1]["content"].endswith("realized"):  # asked for a reflection
            return words(" that this would help a thief.")
        return words(BETTER)


async def words(text: str) -> AsyncIterator[Any]:
    for word in re.findall(r"\s*\S+", text):
        yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=word), finish_reason=None)])


async def main() -> None:
    rollback = Rollback(Guard.load(), buffer=16, retries=3)
    answer = rollback.stream(Server(), QUESTION, model="llm", continue_by="vllm")
    async for text in answer:  # judged, and held back long enough to be taken back
        print(text, end="")
    result = answer.result
    print(f"\n\nrollbacks: {result.rollbacks}, wait tokens: {result.wait_tokens}, refused: {result.refused}")
    for dropped in result.dropped:
        print(f"dropped {len(dropped.text)} characters; {dropped.introspection}")


if __name__ == "__main__":
    asyncio.run(main())
