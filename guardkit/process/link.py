"""An application's end of the way to a model's process: one thread that sends what waits and hands results out.

Callers, on any thread, lay entries into an outbox and wake the thread where it sleeps; so they never wait for the
socket, an interrupt never cuts a frame in half, and what came together crosses in one frame. Where the connection
breaks, all that crossed it fails, and the next call connects again, or starts the process anew.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardkit import telemetry
from guardkit.errors import GuardkitError, ModelError, ModelLoadError
from guardkit.loop import STOP_S, Load
from guardkit.process.connection import Connection, Crossing, Entry, FarSession, fail_all
from guardkit.process.start import clear_up, folder_of, forking, join_or_start
from guardkit.process.telling import Told
from guardkit.process.wire import PIECE, error_of, frame
from guardkit.rounds import at_the_end_of_the_round

AGAIN_S = 2.0  # a process that ends within this time after it has loaded, or cannot load, is not started on and on
CALL_S = 30.0  # for the answer about a place in a response, which the model gives between two steps
REAP_S = 2.0  # for a process whose connection has ended to be gone
TRIES = 5  # to join a process that is about to end


class Link:
    """To the process of the model `name` under the folder `base`. profile: what it said of itself."""

    def __init__(self, name: str, options: dict[str, Any], base: Path):
        self.name, self._options, self._folder = name, options, folder_of(base, name, options)
        self.profile: dict[str, Any] | None = None
        self._closed = ""  # why, once it is
        self._connection: Connection | None = None
        self._begin()
        _LINKS.add(self)
        telemetry.far.add(self)

    def _begin(self) -> None:
        self._outbox: deque[Entry] = deque()
        self._gate = threading.Lock()  # for starting the thread
        self._thread: threading.Thread | None = None
        self._is_asleep = self._is_over = False
        self._woken, self._wake = -1, -1
        self._not_before = 0.0  # a connection that broke until then is not made again
        self._error: Exception | None = None  # why it broke
        self._n_joins = 0  # in a row, to a process that was about to end
        self._told = Told()

    @property
    def pid(self) -> int:
        """The model's process; 0 where there is no connection."""
        connection = self._connection
        return 0 if connection is None else connection.pid

    def loads(self) -> Iterator[tuple[str, Load]]:
        """How busy the model is with this application's work; for metrics."""
        connection = self._connection
        if connection is not None and connection.pid:
            yield from self._told.loads(connection.loop, len(connection.waiting))

    def connect(self) -> dict[str, Any]:
        """Have the model loaded, or found; its profile. Raises what its process says."""
        ready = Crossing(None, None, self.lay)
        self.put(("ready", ready))
        try:
            ready.result()
        except BaseException:
            self.close("it did not load", STOP_S)
            raise
        return self.profile or {}

    # -- called from any thread

    def put(self, entry: Entry, together: bool = False) -> None:
        """Hand an entry over. Raises `GuardkitError` once closed. together: tasks of an event loop may wake the thread
        once for all of their round."""
        if self._closed:
            raise GuardkitError(self._closed)
        self._outbox.append(entry)
        if self._thread is None:
            self._start()
        if together:
            at_the_end_of_the_round(self._ring)
        else:
            self._ring()
        if self._is_over:  # it ended meanwhile
            fail_all(self._outbox, GuardkitError(self._closed))

    def lay(self, entry: Entry) -> None:
        """`put` for what needs no answer. Raises nothing."""
        if not self._closed and self._thread is not None:
            self._outbox.append(entry)
            self._ring()

    def lay_by(self, entry: Entry) -> None:
        """`lay` for a finalizer, which may run anywhere: it goes out with what comes next."""
        if not self._closed:
            self._outbox.append(entry)

    def ask(self, kind: str, session: FarSession, mark: int) -> None:
        """Have something done to a session, and wait until it is."""
        done = Crossing(None, None, self.lay)
        self.put((kind, session, mark, done))
        done.result(CALL_S)

    def close(self, why: str, wait_s: float = STOP_S) -> None:
        """Leave the process, which ends where nobody else is connected. Safe to call twice."""
        self._closed = self._closed or why
        self._ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    def forked(self) -> None:
        """In a forked child: its connection is its own, and made when it is needed."""
        outbox, connection = self._outbox, self._connection
        for descriptor in (self._woken, self._wake):
            if descriptor >= 0:
                os.close(descriptor)
        self._connection = None
        self._begin()
        error = GuardkitError(f"{self.name}: work of the parent process")
        if connection is not None:
            if connection.process is not None:
                connection.process.returncode = 0  # no child of this process
            connection.end(error)
        fail_all(outbox, error)

    def _ring(self) -> None:
        # Only the thread says that it is awake: an interrupt between a mark here and the write would leave it asleep.
        if self._is_asleep:
            with contextlib.suppress(OSError):  # it is full, or closed: the thread is awake, or over
                os.write(self._wake, b".")

    def _start(self) -> None:
        with self._gate:
            if self._thread is None:
                self._woken, self._wake = os.pipe()
                for descriptor in (self._woken, self._wake):
                    os.set_blocking(descriptor, False)
                self._thread = threading.Thread(target=self._run, name=f"guardkit-{self.name}", daemon=True)
                self._thread.start()

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except BaseException as error:
            logging.getLogger("guardkit").exception("the connection to %s failed", self.name)
            self._closed = self._closed or f"{self.name}: {type(error).__name__}: {error}"
        finally:
            why = GuardkitError(self._closed)
            self._is_over = True
            fail_all(self._outbox, why)
            self._leave(why)

    def _turn(self) -> None:
        if self._outbox and self._connection is None:
            self._connect()
        if (connection := self._connection) is not None:
            if connection.pid:
                connection.take(self._outbox)
            try:
                connection.write()
            except OSError:
                self._lose(connection)
        if self._wait() and (connection := self._connection) is not None:
            self._read(connection)

    def _wait(self) -> bool:
        """Until somebody has something for the thread; whether it is the connection."""
        connection, poll = self._connection, select.poll()
        poll.register(self._woken, select.POLLIN)
        if connection is not None:
            poll.register(connection.sock, select.POLLIN | (select.POLLOUT if connection.out else 0))
        self._is_asleep = True
        now = self._closed or (self._outbox and (connection is None or connection.pid))
        found = {descriptor for descriptor, _ in poll.poll(0 if now else None)}
        self._is_asleep = False
        if self._woken in found:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
            found.discard(self._woken)
        return bool(found)

    def _connect(self) -> None:
        try:
            if self._error is not None and time.monotonic() < self._not_before:
                raise self._error
            with forking:
                self._connection = Connection(self, join_or_start(self.name, self._options, self._folder), self._told)
        except Exception as error:
            fail_all(self._outbox, error)

    def _read(self, connection: Connection) -> None:
        try:
            while connection is self._connection:
                data = connection.sock.recv(PIECE)
                for rows, tail in connection.frames.push(data):
                    if connection.pid:
                        connection.answer(rows, tail)
                    elif connection is self._connection:
                        self._greet(connection, rows)
                if not data:
                    self._lose(connection)
                if len(data) < PIECE:
                    return
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._lose(connection)

    def _greet(self, connection: Connection, said: dict[str, Any]) -> None:
        """The first frame: the model's profile, or why there is none."""
        if "error" in said:
            self._drop(connection, error_of(said["error"]))
        elif self.profile not in (None, said["profile"]):
            what = "its files are not those that were loaded at first; load it anew"
            self._drop(connection, ModelLoadError(f"{self.name}: {what}"))
        else:
            self.profile, connection.pid, self._n_joins = said["profile"], said["pid"], 0
            connection.loop = said["loop"]
            self._not_before = time.monotonic() + AGAIN_S

    # -- its ends

    def _lose(self, connection: Connection) -> None:
        """The other end is gone."""
        if connection is not self._connection:
            return
        process, ended = connection.process, "ended"
        if process is not None:
            with contextlib.suppress(Exception):
                ended = f"ended with status {process.wait(REAP_S)}"
        if connection.pid:
            error: Exception = ModelError(
                f"the process of {self.name} (pid {connection.pid}) {ended}: what was under way there is not judged; "
                "a later call loads the model again"
            )
            logging.getLogger("guardkit").error("%s", error)
        elif process is None and self._n_joins < TRIES:  # it was about to end when it was joined
            self._n_joins += 1
            connection.sock.close()
            self._connection = None
            return
        else:
            error = ModelLoadError(f"{self.name}: the process that was to load it {ended}")
        self._drop(connection, error)

    def _drop(self, connection: Connection, error: Exception) -> None:
        """Fail all that crossed a connection, and all that waits for one that never was."""
        self._error, self._connection = error, None
        self._told.lost()
        connection.end(error)
        if not connection.pid:
            self._not_before = time.monotonic() + AGAIN_S
            fail_all(self._outbox, error)
        if connection.process is not None:
            with contextlib.suppress(Exception):
                connection.process.wait(REAP_S)

    def _leave(self, why: BaseException) -> None:
        connection = self._connection
        if connection is None:
            with contextlib.suppress(OSError, GuardkitError), forking:
                clear_up(self._folder)
            return
        for ticket in list(connection.waiting.values()):  # who waits need not wait for the goodbye
            ticket.fail(why)
        is_last = not connection.pid  # who started it and goes before it has loaded takes it along
        with contextlib.suppress(OSError, ValueError):
            connection.sock.settimeout(STOP_S)
            if connection.pid:
                connection.sock.sendall(connection.out + frame([["bye"]]))
            while connection.pid and (data := connection.sock.recv(PIECE)):
                for rows, _ in connection.frames.push(data):
                    is_last = is_last or (isinstance(rows, dict) and bool(rows.get("last")))
        self._connection = None
        connection.end(why)
        if connection.process is not None and is_last:
            with contextlib.suppress(Exception):
                connection.process.wait(STOP_S)


_LINKS: weakref.WeakSet[Link] = weakref.WeakSet()


def _end() -> None:
    end = time.monotonic() + STOP_S
    for link in list(_LINKS):
        link.close(f"{link.name}: the program is ending", 0)
    for link in list(_LINKS):
        link.close("", max(end - time.monotonic(), 0))


def _forked() -> None:
    for link in list(_LINKS):
        link.forked()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
