"""A model that lives in a process of its own, as its application sees it: all of the model but the weights."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from guardkit.errors import GuardkitError, Overloaded
from guardkit.messages import Message
from guardkit.models.base import Limits, Session, StreamModel, Work
from guardkit.process.connection import Crossing, FarSession
from guardkit.process.link import Link
from guardkit.process.start import private_folder
from guardkit.process.wire import apply
from guardkit.ticket import Pending
from guardkit.verdict import Stage


def load(name: str, options: dict[str, Any], process: Literal[True] | str | Path) -> ProcessModel:
    """Load a model in a process of its own, or connect to the one that has it. process: the folder by which others
    find it; True: a new one. Raises what loading it here would raise."""
    base = private_folder() if process is True else Path(process).expanduser().absolute()
    link = Link(name, options, base)
    model = ProcessModel(link, link.connect())
    model.source = name, {**options, "process": str(base)}
    return model


class _Held:
    """Shared by a model and its twins: the connection ends with the last of them. open: the numbers of the sessions
    that this process has open."""

    def __init__(self, link: Link):
        self.open: set[int] = set()
        self.numbers, self._pid = itertools.count(1), os.getpid()
        weakref.finalize(self, link.close, f"{link.name} was closed; load it again", 0).atexit = False

    def next(self, most: int | None) -> int:
        """The number of a new session. Raises `Overloaded` where as many are open as may be."""
        if self._pid != os.getpid():  # a forked child: the others are its parent's
            self.open, self._pid = set(), os.getpid()
        if most is not None and len(self.open) >= most:
            raise Overloaded(f"{most} streams are open, as many as may be; close some, or raise max_streams")
        number = next(self.numbers)
        self.open.add(number)
        return number


class ProcessModel(StreamModel):
    """Judges as the model in the process does, to the last bit. Where that process dies, what it had under way fails,
    and so do its streams; the next call loads the model again."""

    def __init__(self, link: Link, profile: dict[str, Any]):
        self._held, self._link = _Held(link), link
        self._max_streams: int | None = profile["max_streams"]
        self._limits = apply(profile, self)

    @property
    def max_streams(self) -> int | None:
        return self._max_streams

    @property
    def pid(self) -> int:
        """The process that has the model; 0 where this one is not connected."""
        return self._link.pid

    def submit(self, works: Sequence[Work], deadline: float | None = None) -> list[Pending]:
        tickets = [Crossing(work, deadline, self._link.lay) for work in works]
        if tickets:
            self._link.put(("work", self.threshold, works, tickets), together=True)
        return list(tickets)

    def open(self, context: Sequence[Message]) -> Session:
        session = _ProcessSession(self._link, self._held.next(self._max_streams), self._held)
        try:
            self._link.put(("open", session, tuple(context)))
        except GuardkitError:
            session.close()
            raise
        return session

    def limits(self, stage: Stage) -> Limits | None:
        return super().limits(stage) or self._limits[stage]

    def close(self) -> None:
        self._link.close(f"{self.name} was closed; load it again")


class _ProcessSession(FarSession):
    def __init__(self, link: Link, number: int, held: _Held):
        super().__init__(link, number)
        self._link, self._held = link, held
        self._marks = itertools.count(1)

    def mark(self) -> _Mark:
        mark = _Mark(self, next(self._marks))
        self._link.ask("mark", self, mark.number)
        return mark

    def rewind(self, mark: _Mark) -> None:
        self._link.ask("rewind", self, mark.number)

    def close(self) -> None:
        if self.is_open:
            self._held.open.discard(self.number)
            self._link.lay(("close", self))

    def __del__(self) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        return self.number in self._held.open


class _Mark:
    """A place in a response, which the process remembers as long as this object lives."""

    def __init__(self, session: _ProcessSession, number: int):
        self.session, self.number = session, number

    def __del__(self) -> None:
        if self.session.is_open:  # else it is forgotten with its session, which nothing must keep alive
            self.session._link.lay_by(("forget", self.session, self.number))
