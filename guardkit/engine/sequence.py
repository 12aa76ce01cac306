"""Sequences of tokens, and what their callers ask of the engine's loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from guardkit.engine.cache import Slot
from guardkit.ticket import Pending, Ticket

Rows = NDArray[np.float32]


@dataclass(eq=False, slots=True)
class Sequence:
    """The tokens of one text and what the cache holds of them. Made by `Engine.open`; opaque to others."""

    # Its caller's:
    counted: bool
    prefix: Sequence | None = None  # what it starts with; its keys and values are shared where they are at hand
    pinned: bool = False  # never evicted
    length: int = 0  # tokens once every request is served
    last: Pending | None = None  # the newest request
    closed: bool = False
    # The loop's:
    ids: list[int] = field(default_factory=list)
    cached: int = 0  # of `ids`, in the cache now
    slot: Slot = field(default_factory=Slot)
    source: Sequence | None = None  # whose beginning it shares
    keys: list[int] = field(default_factory=list)  # hashes of the blocks that others can find, see `prefixes.py`
    saved: tuple[Callable[[], bool], int] | None = None  # while evicted: what puts a copy back, and its tokens
    requests: deque[Request] = field(default_factory=deque)
    last_step: int = 0
    broken: BaseException | None = None  # the error of the step that left the cache in doubt


@dataclass(eq=False, slots=True)
class Request:
    sequence: Sequence
    ids: list[int]
    head: str | None
    read: int  # the next token to be read: an index into `ids`, then (once started) into the sequence
    keep: bool
    number: int  # in the order of arrival
    future: Ticket[None]
    base: int = -1  # the sequence's length before this request; -1 until it is started
    found: list[Rows] = field(default_factory=list)
    to_do: int = 0  # tokens that are counted as waiting, see `waiting.py`
    blocks: list[int] = field(default_factory=list)  # hashes of those that others need not compute again


@dataclass(frozen=True)
class Truncate:
    sequence: Sequence
    n_tokens: int


@dataclass(frozen=True)
class Close:
    sequence: Sequence
