"""One connection to a model's process: what crosses it, and who waits for the answers. Used by one thread alone, but
for tickets, which end on any."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from guardkit.errors import ModelError
from guardkit.models.base import Query, Session, Work
from guardkit.process.start import Joined
from guardkit.process.telling import NUMBER, Told
from guardkit.process.wire import (
    Frames,
    Numbers,
    append_row,
    frame,
    message_row,
    query_row,
    result_of,
    was_cancelled,
)
from guardkit.ticket import Ticket

Entry = tuple[Any, ...]
"""What is to be sent: "work", threshold, works, tickets; "open", session, context; "mark" or "rewind", session, mark,
ticket; "close", session; "forget", session, mark; "cancel", ticket. "ready", ticket: is given when there is one."""


class Crossing(Ticket[Work | None]):
    """Work that is answered elsewhere. number: of the answer, once it was sent."""

    __slots__ = ("_lay", "number")

    def __init__(self, work: Work | None, deadline: float | None, lay: Callable[[Entry], None]):
        super().__init__(work, deadline)
        self._lay, self.number = lay, -1

    def cancel(self) -> bool:
        if self.done():
            return self.cancelled()
        super().cancel()
        if self.cancelled():
            self._lay(("cancel", self))
        return self.cancelled()


class FarSession(Session):
    """A response that a model's process holds, by its number. owner: the link that it belongs to."""

    def __init__(self, owner: object, number: int):
        self.owner, self.number = owner, number
        self.connection: Connection | None = None  # that it was opened on
        self.error: BaseException | None = None  # why it was not

    @property
    def why(self) -> BaseException:
        """Why it is over."""
        found = self.error if self.connection is None else self.connection.error
        return found or ModelError("the response was opened on a connection that is gone")


class Connection:
    """owner: the link that uses it. pid: the model's process, 0 until that has loaded; loop: where work waits there.
    error: why it ended."""

    def __init__(self, owner: object, joined: Joined, told: Told):
        self.owner, self.sock, self.process = owner, joined.sock, joined.process
        self.sock.setblocking(False)
        self.frames, self.out = Frames(), bytearray()
        self.told, self.loop = told, ""
        self.pid = 0
        self.error: BaseException | None = None
        self.waiting: dict[int, Crossing] = {}
        self._number = 0  # of the newest answer that was asked for

    # -- out

    def take(self, outbox: deque[Entry]) -> None:
        """Lay all that waits into one frame."""
        rows: list[Any] = []
        while outbox:
            try:
                entry = outbox.popleft()
            except IndexError:  # another thread was faster
                break
            if (row := self._row(*entry)) is not None:
                rows.append(row)
        if rows:
            try:
                self.out += frame(rows)
            except (TypeError, ValueError):  # one of them is nothing that can be sent; the others are
                for row in rows:
                    self._take_alone(row)

    def _take_alone(self, row: list[Any]) -> None:
        try:
            self.out += frame([row])
        except (TypeError, ValueError) as error:
            for number in [row[1] + i for i in range(len(row[4]))] if row[0] == "work" else [row[1]]:
                if (ticket := self.waiting.pop(number, None)) is not None:
                    ticket.fail(error)

    def _row(self, kind: str, *more: Any) -> list[Any] | None:
        """An entry as it is sent; None where it is not."""
        if kind == "work":
            return self._work_row(*more)
        if kind == "ready":
            more[0].give(None)
            return None
        if kind == "cancel":
            return None if self.waiting.pop(more[0].number, None) is None else [kind, more[0].number]
        session: FarSession = more[0]
        if kind == "open":
            session.connection = self
            return [kind, session.number, [message_row(message) for message in more[1]]]
        if session.connection is not self:
            fail((kind, *more), session.why)
            return None
        if kind in ("mark", "rewind"):
            return [kind, self._await(more[2]), session.number, more[1]]
        return [kind, session.number, *more[1:]]  # close, forget

    def _work_row(
        self, threshold: float | None, works: Sequence[Work], tickets: Sequence[Crossing]
    ) -> list[Any] | None:
        rows, first = [], self._number + 1
        for work, ticket in zip(works, tickets, strict=True):
            if isinstance(work, Query):
                if not ticket.wanted:
                    continue
                rows.append(query_row(work))
            elif not isinstance(work.session, FarSession) or work.session.owner is not self.owner:
                ticket.fail(TypeError(f"a session of another model: {type(work.session).__name__}"))
                continue
            elif work.session.connection is not self:
                ticket.fail(work.session.why)
                continue
            else:  # one that nobody waits for is a part of its response all the same
                rows.append(append_row(work.session.number, work))
            self._await(ticket)
        return ["work", first, tickets[0].deadline, threshold, rows] if rows else None

    def _await(self, ticket: Crossing) -> int:
        self._number += 1
        ticket.number = self._number
        self.waiting[self._number] = ticket
        return self._number

    def write(self) -> None:
        """Send what there is room for. Raises OSError where the other end is gone."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while self.out:
                del self.out[: self.sock.send(self.out)]

    # -- in

    def answer(self, rows: Any, tail: bytes) -> None:
        """Hand results to who waits for them. Raises ValueError or the like for what are none."""
        numbers = Numbers(tail)
        for number, *row in rows:
            if number == NUMBER:
                self.told.take(*row)
                continue
            result, ticket = result_of(row, numbers), self.waiting.pop(number, None)
            if ticket is None:  # given up
                continue
            if was_cancelled(row):
                Ticket.cancel(ticket)
            elif isinstance(result, Exception):
                ticket.fail(result)
            else:
                ticket.give(result)

    def end(self, error: BaseException) -> None:
        """All that waits for an answer fails."""
        self.error = error
        self.sock.close()
        for ticket in list(self.waiting.values()):
            ticket.fail(error)
        self.waiting.clear()


def fail(entry: Entry, error: BaseException) -> None:
    """What waits for an entry that is not sent learns why."""
    kind, *more = entry
    if kind == "open":
        more[0].error = error
    elif kind == "work":
        for ticket in more[2]:
            ticket.fail(error)
    elif kind in ("ready", "mark", "rewind"):
        more[-1].fail(error)


def fail_all(outbox: deque[Entry], error: BaseException) -> None:
    while outbox:
        try:
            fail(outbox.popleft(), error)
        except IndexError:  # another thread was faster
            return
