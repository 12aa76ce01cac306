"""Every way to run an agent or a chain and watch it: each gives the list of what a consumer sees, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

Surface = Callable[[Any, Any, Any], Iterator[Any]]
MODES = ("messages", "updates", "values", "custom")


def _stream(mode: Any) -> Surface:
    def run(agent: Any, value: Any, config: Any) -> Iterator[Any]:
        for item in agent.stream(value, config, stream_mode=mode):
            yield item if isinstance(mode, list) else (mode, item)

    return run


def _astream(mode: Any) -> Surface:
    async def source(agent: Any, value: Any, config: Any) -> AsyncIterator[Any]:
        async for item in agent.astream(value, config, stream_mode=mode):
            yield item if isinstance(mode, list) else (mode, item)

    return _synchronous(source)


def _events(version: Any) -> Surface:
    async def source(agent: Any, value: Any, config: Any) -> AsyncIterator[Any]:
        stream = agent.astream_events(value, config, version=version)
        if asyncio.iscoroutine(stream):
            stream = await stream
        async for event in stream:
            yield ("events", event)

    return _synchronous(source)


def _sync_events_v3(agent: Any, value: Any, config: Any) -> Iterator[Any]:
    for event in agent.stream_events(value, config, version="v3"):
        yield ("events", event)


async def _log(agent: Any, value: Any, config: Any) -> AsyncIterator[Any]:
    async for patch in agent.astream_log(value, config):
        yield ("log", patch.ops)


def _synchronous(source: Callable[[Any, Any, Any], AsyncIterator[Any]]) -> Surface:
    """Drive an async source from a synchronous test, one item at a time, so that its progress can be watched."""

    def run(agent: Any, value: Any, config: Any) -> Iterator[Any]:
        loop = asyncio.new_event_loop()
        stream = source(agent, value, config)
        done = object()

        async def step() -> Any:
            return await anext(stream, done)

        try:
            while (item := loop.run_until_complete(step())) is not done:
                yield item
        finally:
            loop.run_until_complete(stream.aclose())  # type: ignore[attr-defined]
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return run


def _invoke(agent: Any, value: Any, config: Any) -> Iterator[Any]:
    yield ("result", agent.invoke(value, config))


async def _ainvoke(agent: Any, value: Any, config: Any) -> AsyncIterator[Any]:
    yield ("result", await agent.ainvoke(value, config))


EVERYTHING = ["messages", "updates", "values", "custom"]
AGENT_SURFACES: dict[str, Surface] = {
    "invoke": _invoke,
    "ainvoke": _synchronous(_ainvoke),
    **{f"stream {mode}": _stream(mode) for mode in MODES},
    **{f"astream {mode}": _astream(mode) for mode in MODES},
    "stream several": _stream(EVERYTHING),
    "astream several": _astream(EVERYTHING),
    "astream_events v1": _events("v1"),
    "astream_events v2": _events("v2"),
    "astream_events v3": _events("v3"),
    "stream_events v3": _sync_events_v3,
    "astream_log": _synchronous(_log),
}


def _chain_stream(chain: Any, value: Any, config: Any) -> Iterator[Any]:
    for item in chain.stream(value, config):
        yield ("chunk", item)


async def _chain_astream(chain: Any, value: Any, config: Any) -> AsyncIterator[Any]:
    async for item in chain.astream(value, config):
        yield ("chunk", item)


def _batch(chain: Any, value: Any, config: Any) -> Iterator[Any]:
    yield ("result", chain.batch([value], config)[0])


async def _abatch(chain: Any, value: Any, config: Any) -> AsyncIterator[Any]:
    yield ("result", (await chain.abatch([value], config))[0])


CHAIN_SURFACES: dict[str, Surface] = {
    "invoke": _invoke,
    "ainvoke": _synchronous(_ainvoke),
    "batch": _batch,
    "abatch": _synchronous(_abatch),
    "stream": _chain_stream,
    "astream": _synchronous(_chain_astream),
}
WATCHED_SURFACES: dict[str, Surface] = {  # everything that watches each step of a chain
    "astream_events v1": _events("v1"),
    "astream_events v2": _events("v2"),
    "astream_log": _synchronous(_log),
}
