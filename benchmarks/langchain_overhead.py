"""What a guard adds to a LangChain chain: microseconds a token and a call, and time to the first token by hold-back.

    python benchmarks/langchain_overhead.py [--tokens 500] [--runs 15] [--nano]

A scripted chat model streams one word a chunk, harmless words. The same chain runs bare and guarded, in turns; the
difference is what LangChain's wrapping and the stream runtime cost, over a `FakeGuard` that needs no time for its
verdicts. `--nano` adds the embedded model. Time to the first token is also counted in chunks that the model had sent
by then: that is what waits for a real model, whatever the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from common import header, median, note, table, words
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from guardkit import Guard
from guardkit.testing import FakeGuard
from langchain_guardkit import GuardedChatModel, GuardMiddleware, GuardRunnable

HOLDBACKS = (0, 4, 16)


class Words(BaseChatModel):
    """Streams harmless words, one a chunk, without any delay."""

    pieces: list[str]
    sent: int = 0

    @property
    def _llm_type(self) -> str:
        return "words"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(self.pieces)))])

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for self.sent, piece in enumerate(self.pieces, 1):  # noqa: B020
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece, id="1"))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk


def drain(chain: Any) -> None:
    for _ in chain.stream("hello"):
        pass


def adrain(chain: Any) -> None:
    async def consume() -> None:
        async for _ in chain.astream("hello"):
            pass

    asyncio.run(consume())


def call(chain: Any) -> None:
    chain.invoke("hello")


def in_turns(measure: Callable[[Any], object], chains: dict[str, Any], runs: int) -> dict[str, tuple[float, float]]:
    """The median seconds of each chain, (wall, CPU); they take turns, so that a busy moment hits all alike."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in chains}
    for _ in range(runs + 1):
        for name, chain in chains.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            measure(chain)
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    # Without the first run, which warms up.
    return {name: (median([w for w, _ in t[1:]]), median([c for _, c in t[1:]])) for name, t in found.items()}


def added(times: dict[str, tuple[float, float]], scale: float) -> list[list[str]]:
    """A row for each chain: wall time, and what the guard adds to the bare chain's wall and CPU time."""
    bare = times["bare"]
    return [
        [name, f"{wall * scale:.0f}", f"{(wall - bare[0]) * scale:.0f}", f"{(cpu - bare[1]) * scale:.0f}"]
        for name, (wall, cpu) in times.items()
    ]


def overhead(title: str, make: Callable[..., Guard], model: Words, runs: int) -> None:
    tokens = len(model.pieces)
    guard = make()
    chains = {
        "bare": model,
        "GuardedChatModel": GuardedChatModel(model, guard),
        "then GuardRunnable": model | GuardRunnable(guard),
    }
    rows = []
    for surface, measure in (("stream", drain), ("astream", adrain)):
        rows += [[surface, *row] for row in added(in_turns(measure, chains, runs), 1e6 / tokens)]
    print(f"## Time a token, {title}, {tokens} tokens\n")
    table(["surface", "chain", "us a token", "added", "added, CPU"], rows)
    short = Words(pieces=model.pieces[:20])
    chains = {
        "bare": short,
        "GuardedChatModel": GuardedChatModel(short, guard),
        "then GuardRunnable": short | GuardRunnable(guard),
    }
    print(f"## Time a call (`invoke`, an answer of 20 words), {title}\n")
    table(["chain", "us a call", "added", "added, CPU"], added(in_turns(call, chains, runs * 10), 1e6))


def agent_turn(title: str, make: Callable[..., Guard], n_messages: int, runs: int) -> None:
    """One more turn of an agent whose thread holds a history: its last checkpoint is loaded, and each message known."""
    from langchain.agents import create_agent
    from langgraph.checkpoint.memory import InMemorySaver

    kinds = (HumanMessage, AIMessage)
    history = [kinds[i % 2](f"message {i} of this long talk") for i in range(n_messages)]
    agents: dict[str, Any] = {}
    for name, middleware in (("bare", []), ("GuardMiddleware", [GuardMiddleware(make())])):
        agents[name] = create_agent(Words(pieces=["fine"]), [], middleware=middleware, checkpointer=InMemorySaver())
        agents[name].invoke({"messages": history}, {"configurable": {"thread_id": "0"}})

    def turn(agent: Any) -> None:
        agent.invoke({"messages": [HumanMessage("and now?")]}, {"configurable": {"thread_id": "0"}})

    times = in_turns(turn, agents, runs)
    bare = times["bare"]
    rows = [[name, f"{w * 1e3:.1f}", f"{c * 1e3:.1f}", f"{c / bare[1]:.2f}"] for name, (w, c) in times.items()]
    print(f"## An agent's turn after {n_messages} messages, {title}\n")
    table(["agent", "ms a turn", "CPU", "CPU, times the bare one"], rows)


def first_token(title: str, make: Callable[..., Guard], model: Words, runs: int) -> None:
    rows = []
    chains = {"bare": model} | {f"hold-back {h}": GuardedChatModel(model, make(holdback=h)) for h in HOLDBACKS}
    sent: dict[str, int] = {}

    def first(name: str) -> None:
        stream = chains[name].stream("hello")
        next(c for c in stream if c.content)
        sent[name] = model.sent

    for name, (wall, _) in in_turns(first, {name: name for name in chains}, runs * 5).items():
        rows.append([name, f"{wall * 1e6:.0f}", str(sent[name])])
    print(f"## Time to the first token, {title}\n")
    table(["chain", "us", "chunks the model had sent"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--messages", type=int, default=400, help="of the history in an agent's turn")
    parser.add_argument("--nano", action="store_true", help="also with the embedded model")
    args = parser.parse_args()
    header("LangChain overhead", "langchain-core")
    model = Words(pieces=list(itertools.islice(words(1), args.tokens)))
    guards: dict[str, Callable[..., Guard]] = {"FakeGuard": FakeGuard}
    if args.nano:
        policy = {"name": "measure", "rules": [{"action": "flag"}]}
        guards["nano"] = lambda **settings: Guard.load(policy=policy, **settings)
    for title, make in guards.items():
        note(f"{title} ...")
        overhead(title, make, model, args.runs)
        agent_turn(title, make, args.messages, args.runs)
        first_token(title, make, model, args.runs)


if __name__ == "__main__":
    main()
