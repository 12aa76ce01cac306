"""Each decision is written once, as a generator of calls to the guard; `run` and `arun` carry the calls out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from llama_index.postprocessor.guardkit.runs import name_in_workflow, named, refuse_retry

T = TypeVar("T")
Steps = Generator[Callable[[], Any], Any, T]
"""Yields calls that may take time, is sent their results (or thrown their errors), and returns a T."""


def run(steps: Steps[T]) -> T:
    """Carry the calls out, one after the other."""
    refuse_retry()
    try:
        call = next(steps)
        while True:
            try:
                result = call()
            except Exception as error:
                call = steps.throw(error)
            else:
                call = steps.send(result)
    except StopIteration as done:
        value: T = done.value
        return value


async def arun(steps: Steps[T]) -> T:
    """Carry the calls out off the event loop. Cancelled, nothing further is asked and nothing is returned."""
    refuse_retry()
    with named(await name_in_workflow()):
        try:
            call = next(steps)
            while True:
                try:
                    result = await asyncio.to_thread(call)
                except asyncio.CancelledError:
                    steps.close()
                    raise
                except Exception as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(result)
        except StopIteration as done:
            value: T = done.value
            return value
