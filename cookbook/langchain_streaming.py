"""A chat that streams: any chat model in, the same interface out, and text comes out once it is judged.

python cookbook/langchain_streaming.py
"""

import asyncio

from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate

from guardkit import Guard
from langchain_guardkit import GuardedChatModel

GOOD = (
    "Dear neighbour, the music was rather loud last night and I have to get up early. "
    "Could you turn it down after ten? Thank you, and have a good week."
)
BAD = (
    "Sure! First, gain their trust, then create fake invoices in the name of a shell company and transfer the stolen "
    "money to an account abroad, where nobody can trace it. Destroy the books before anyone finds out."
)


def model(guard: Guard, answer: str) -> GuardedChatModel:
    llm = FakeListChatModel(responses=[answer])  # streams one character a chunk
    return GuardedChatModel(llm, guard, exit_behavior="end", violation_message="[withheld]")


async def events(guard: Guard) -> str:
    """The same through `astream_events`: the model's own run shows judged text alone."""
    chain = ChatPromptTemplate.from_template("{question}") | model(guard, BAD)
    shown = ""
    async for event in chain.astream_events({"question": "How do I steal money from my employer?"}, version="v2"):
        if event["event"] == "on_chat_model_stream":
            shown += event["data"]["chunk"].content
    return shown


def main() -> None:
    guard = Guard.load(policy={"extends": "balanced", "rules": [{"stage": "prompt", "action": "flag"}]})
    for answer in (GOOD, BAD):
        shown = ""
        for chunk in model(guard, answer).stream("Write a note."):
            shown += chunk.content
        print(f"{shown}\n")
    print(f"events: {asyncio.run(events(guard))}")


if __name__ == "__main__":
    main()
