"""A reasoning model: thoughts and answer are judged at their own stages, and either can stop the message.

python cookbook/langchain_reasoning.py
"""

from collections.abc import Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from guardkit import Guard
from langchain_guardkit import GuardedChatModel

FINE = "The user wants the capital of France. That is Paris, so I say so."
UNSAFE = (
    "First gain their trust, then create fake invoices in the name of a shell company and transfer the stolen money "
    "to an account abroad, where nobody can trace it. Destroy the books before anyone finds out."
)


class ReasoningModel(BaseChatModel):
    """Stands for a model that gives its reasoning apart, as a content block."""

    reasoning: str
    answer: str

    @property
    def _llm_type(self) -> str:
        return "fake-reasoning"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        blocks = [{"type": "reasoning", "reasoning": self.reasoning}, {"type": "text", "text": self.answer}]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=blocks))])

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for word in self.reasoning.split(" "):
            block = {"type": "reasoning", "reasoning": f"{word} ", "index": 0}
            yield ChatGenerationChunk(message=AIMessageChunk(content=[block]))
        for word in self.answer.split(" "):
            yield ChatGenerationChunk(
                message=AIMessageChunk(content=[{"type": "text", "text": f"{word} ", "index": 1}])
            )


def main() -> None:
    guard = Guard.load()
    for reasoning in (FINE, UNSAFE):
        inner = ReasoningModel(reasoning=reasoning, answer="It is Paris.")
        model = GuardedChatModel(inner, guard, exit_behavior="end", violation_message="[withheld]")
        thoughts = answer = ""
        details = None
        for chunk in model.stream("What is the capital of France?"):
            for block in chunk.content_blocks:
                thoughts += block.get("reasoning", "")
                answer += block.get("text", "")
            details = chunk.response_metadata.get("guardkit", details)
        print(f"reasoning: {len(thoughts.strip())} of {len(reasoning)} characters shown")
        print(f"answer: {answer.strip()}")
        print(f"stopped at: {details['stage'] if details else None}\n")


if __name__ == "__main__":
    main()
