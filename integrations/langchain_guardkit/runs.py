"""A stream as one run of LangChain's: its callbacks, and nothing of what was not judged in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
)

from guardkit import Decision
from langchain_guardkit.marks import METADATA_KEY, summary


def run_of(
    runnable: Runnable[Any, Any],
    config: RunnableConfig,
    shown: Any,
    produce: Callable[[Any], Iterator[Any]],
) -> Iterator[Any]:
    """The chunks of `produce`, as a run that shows `shown` as its input. Chunks are added up only where a handler
    watches, and once, at the end."""
    config = ensure_config(config)
    run = get_callback_manager_for_config(config).on_chain_start(
        None, "" if shown is None else shown, name=config.get("run_name") or runnable.get_name(), run_id=_id(config)
    )
    chunks: list[Any] = []
    try:
        source = produce(run)
        for handler in run.handlers:
            if hasattr(handler, "tap_output_iter"):
                source = handler.tap_output_iter(run.run_id, source)
        for chunk in source:
            if run.handlers:
                chunks.append(chunk)
            yield chunk
    except GeneratorExit:
        run.on_chain_end(joined(chunks))
        raise
    except BaseException as error:
        run.on_chain_error(error)
        raise
    run.on_chain_end(joined(chunks))


async def arun_of(
    runnable: Runnable[Any, Any],
    config: RunnableConfig,
    shown: Any,
    produce: Callable[[Any], AsyncIterator[Any]],
) -> AsyncIterator[Any]:
    """The async twin of `run_of`."""
    config = ensure_config(config)
    run = await get_async_callback_manager_for_config(config).on_chain_start(
        None, "" if shown is None else shown, name=config.get("run_name") or runnable.get_name(), run_id=_id(config)
    )
    chunks: list[Any] = []
    inner = source = produce(run)
    try:
        for handler in run.handlers:
            if hasattr(handler, "tap_output_aiter"):
                source = handler.tap_output_aiter(run.run_id, source)
        async for chunk in source:
            if run.handlers:
                chunks.append(chunk)
            yield chunk
    except GeneratorExit:
        await run.on_chain_end(joined(chunks))
        raise
    except BaseException as error:
        await run.on_chain_error(error)
        raise
    else:
        await run.on_chain_end(joined(chunks))
    finally:
        for stream in (source, inner):
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()


def annotate(run: Any, decision: Decision) -> None:
    """Put a decision on a run: its tags and metadata, as tracers and event streams see them at the run's end."""
    run.metadata[METADATA_KEY] = summary(decision)
    tag = f"{METADATA_KEY}:{decision.action.value}"
    run.tags.append(tag)
    for handler in run.handlers:  # tracers keep a copy of the tags
        traced = getattr(handler, "run_map", {}).get(str(run.run_id))
        tags = getattr(traced, "tags", None)
        if isinstance(tags, list) and tag not in tags:
            tags.append(tag)


def joined(chunks: Sequence[Any]) -> Any:
    """As LangChain adds up a stream: chunks that do not add up replace each other, as a JSON parser's do."""
    if not chunks:
        return None
    if all(isinstance(chunk, str) for chunk in chunks):
        return "".join(chunks)
    if len(chunks) > 1 and all(isinstance(chunk, AIMessageChunk) for chunk in chunks):
        return chunks[0] + list(chunks[1:])
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = added(whole, chunk)
    return whole


def added(whole: Any, chunk: Any) -> Any:
    try:
        return whole + chunk
    except TypeError:
        return chunk


def _id(config: RunnableConfig) -> Any:
    return config.pop("run_id", None)
