"""One of those that a model's process serves: what it asked for, and what it is answered."""

from __future__ import annotations

import socket
import sys
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any

from guardkit.models.base import Append, Floats, Session, Work
from guardkit.process.wire import (
    PIECE,
    Frames,
    cancelled_row,
    done_row,
    error_row,
    frame,
    message_of,
    query_of,
    result_row,
    tokens_of,
)
from guardkit.ticket import Pending

if TYPE_CHECKING:
    from guardkit.process.server import Server


class Peer:
    """One connection: its sessions and marks by number, its work under way."""

    def __init__(self, server: Server, sock: socket.socket):
        sock.setblocking(False)
        self.sock, self._server = sock, server
        self._frames = Frames()
        self._out = bytearray()
        self._rows: list[Any] = []  # results, and their numbers, that wait to be sent
        self._numbers: list[Floats] = []
        self._is_writing = False  # whether the socket had no room
        self._sessions: dict[int, Session | Exception] = {}
        self._marks: dict[tuple[int, int], Any] = {}
        self._under_way: dict[int, Pending] = {}
        self._is_gone = False

    # -- in

    def read(self) -> None:
        try:
            while True:
                data = self.sock.recv(PIECE)
                if not data:
                    self.end()
                    return
                for rows, _ in self._frames.push(data):
                    for row in rows:
                        self._do(row)
                        if self._is_gone:
                            return
                if len(data) < PIECE:
                    return
        except (BlockingIOError, InterruptedError):
            pass
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
        ) as error:  # it went away, or speaks something else
            if not isinstance(error, OSError):
                print(f"guardkit: a connection was closed: {type(error).__name__}: {error}", file=sys.stderr)
            self.end()

    def _do(self, row: list[Any]) -> None:
        match row:
            case ["work", first, deadline, threshold, works]:
                self._submit(first, deadline, threshold, works)
            case ["open", session, context]:
                try:
                    self._sessions[session] = self._server.model.open([message_of(each) for each in context])
                except Exception as error:
                    self._sessions[session] = error
            case ["close", session]:
                self._close(session)
            case ["mark", number, session, mark]:
                self._answer(number, partial(self._mark, session, mark))
            case ["rewind", number, session, mark]:
                self._answer(number, lambda: self._session(session).rewind(self._marks[session, mark]))
            case ["forget", session, mark]:
                self._marks.pop((session, mark), None)
            case ["cancel", number]:
                if (pending := self._under_way.get(number)) is not None:
                    pending.cancel()
            case ["bye"]:
                self.send(frame({"last": self._server.has_one_peer}))
                self.end()
            case _:
                raise ValueError("an unknown message")

    def _session(self, number: int) -> Session:
        found = self._sessions[number]
        if isinstance(found, Exception):
            raise found
        return found

    def _submit(self, first: int, deadline: float | None, threshold: float | None, rows: list[Any]) -> None:
        works: list[Work] = []
        numbers: list[int] = []
        for number, row in enumerate(rows, first):
            try:
                if isinstance(row[0], str):
                    works.append(query_of(row))
                else:
                    works.append(Append(self._session(row[0]), tokens_of(row), row[1]))
                numbers.append(number)
            except Exception as error:
                self._rows.append([number, *error_row(error)])
        try:
            pending = self._server.twin(threshold).submit(works, deadline) if works else []
        except Exception as error:
            self._rows += [[number, *error_row(error)] for number in numbers]
            return
        for number, each in zip(numbers, pending, strict=True):
            self._under_way[number] = each
            each.add_done_callback(partial(self._landed, number))

    def _mark(self, session: int, mark: int) -> None:
        self._marks[session, mark] = self._session(session).mark()

    def _answer(self, number: int, call: Any) -> None:
        try:
            call()
            self._rows.append([number, *done_row()])
        except Exception as error:
            self._rows.append([number, *error_row(error)])

    def _close(self, number: int) -> None:
        for key in [key for key in self._marks if key[0] == number]:
            del self._marks[key]
        session = self._sessions.pop(number, None)
        if isinstance(session, Session):
            session.close()

    # -- out

    def _landed(self, number: int, pending: Pending) -> None:
        if self._under_way.pop(number, None) is None or self._is_gone:
            return
        before = len(self._numbers)
        try:
            row = result_row(pending.result(0), self._numbers)
        except CancelledError:
            row = cancelled_row()
        except Exception as error:
            del self._numbers[before:]
            row = error_row(error)
        self._rows.append([number, *row])

    def send(self, data: bytes) -> None:
        self._out += data
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        if self._is_gone:
            return
        if self._rows:
            self._out += frame(self._rows, self._numbers)
            self._rows, self._numbers = [], []
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.end()
            return
        if bool(self._out) is not self._is_writing:
            self._is_writing = bool(self._out)
            self._server.watch(self, self._is_writing)

    def end(self) -> None:
        """It went away: nobody wants its work any more."""
        if self._is_gone:
            return
        self._is_gone = True
        under_way, self._under_way = self._under_way, {}
        for pending in under_way.values():
            pending.cancel()
        for number in list(self._sessions):
            self._close(number)
        self._server.leave(self)
