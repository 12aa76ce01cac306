"""One guarded graph for tenants with different rules; what is blocked is in no checkpoint.

python cookbook/langchain_graph.py
"""

from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langgraph.checkpoint.memory import InMemorySaver

from guardkit import Guard
from langchain_guardkit import GuardMiddleware, guard_graph

THREAT = "I will come to your house tonight and kill you."
RUDE = "Shut up, you moron."


def main() -> None:
    guard = Guard.load()
    policies = {"kids": "strict", "staff": "loose"}
    saver = InMemorySaver()
    agent = create_agent(
        FakeListChatModel(responses=["Let us talk about the garden."]),
        middleware=[GuardMiddleware(guard, policies=policies)],
        checkpointer=saver,
    )
    # The input is judged before the graph's first checkpoint; it stays a compiled graph with all its methods.
    safe = guard_graph(agent, guard, policies=policies, violation_message="[withheld: {stage}]", on_violation=print)
    turns = (("staff", "What do tomatoes need?"), ("staff", THREAT), ("kids", RUDE), ("staff", RUDE))
    for thread, (tenant, text) in enumerate(turns):
        config: Any = {"configurable": {"thread_id": str(thread), "guard_policy": tenant}}
        state = safe.invoke({"messages": [{"role": "user", "content": text}]}, config)
        print(f"{tenant}: {text}\n    {state['messages'][-1].content}")
    stored = str(saver.storage) + str(saver.blobs) + str(saver.writes)
    print(f"the threat is in a checkpoint: {THREAT in stored}")


if __name__ == "__main__":
    main()
