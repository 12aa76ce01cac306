"""The one owner of a loaded model's state: an inbox, a scheduler, and a thread that serves them.

Work comes as a `Ticket` into the inbox and leaves as its result. Whoever holds the turn owns the state: the loop's
own thread, or a single caller that found the loop idle and serves itself (and whoever comes meanwhile) without a
hand-over. So the scheduler needs no lock, and what waits is seen together and batched.

A ticket carries a deadline and can be cancelled; what nobody wants any more is dropped before it runs. The thread
starts with the first work that needs it, ends when idle, stops before the interpreter does, and starts anew in a
forked child.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from guardkit.errors import GuardkitError
from guardkit.rounds import BRIEF_S, at_the_end_of_the_round
from guardkit.ticket import Step

IDLE_S = 5.0  # an idle thread ends after this time; the next work starts another
STOP_S = 10.0  # how long a fork, or the end of the program, waits for the steps that are under way, all together


@dataclass(frozen=True)
class Load:
    """waiting: pieces of work that are not answered yet. cached, room: entries of the cache, and how many fit (0:
    there is none); hits: rows that were in it already, since the model was loaded."""

    waiting: int = 0
    cached: int = 0
    room: int = 0
    hits: int = 0


class Scheduler(Protocol):
    """What is done in turn. Called by the owner alone."""

    def take(self, message: Any) -> None:
        """Book a message of the inbox. Raises nothing."""

    def step(self) -> bool:
        """Do one bounded piece of what waits; False where nothing waits. A fault of the work goes to its tickets."""

    @property
    def busy(self) -> bool:
        """Whether anything waits for a step."""

    def load(self) -> Load:
        """How busy it is. Called from any thread: near enough is good enough."""

    def interrupt(self) -> None:
        """End the step that is under way as soon as can be. Called from another thread, at the end of the program."""

    def reset(self, error: BaseException) -> None:
        """Fail all that waits, and what was under way."""

    def before_fork(self) -> None:
        """This process is about to fork: let go of what a child could neither use nor free."""

    def forked(self) -> None:
        """In a forked child: what did not survive the fork is made anew when it is needed."""


class Sizes(Protocol):
    """Of a scheduler whose work takes as long as it has tokens: whether an event loop may do it itself."""

    def may_serve(self) -> bool:
        """Whether the thread that asks may run steps."""

    @property
    def tokens(self) -> int:
        """How many tokens what waits is; 0: that does not tell how long it takes, or somebody may not wait so long."""


class Loop:
    """Serves one scheduler. name: of the thread, and in errors."""

    def __init__(self, name: str, scheduler: Scheduler, sizes: Sizes | None = None):
        """sizes: of what waits, for event loops to do themselves what is brief; None: they never do."""
        self.name, self._scheduler, self._sizes = name, scheduler, sizes
        self._seconds: dict[int, float] = {}  # that work took, by the bit length of its number of tokens; moving means
        self._n_taken = 0
        self._closed = ""  # why, once it is
        self._start()
        _LOOPS.add(self)

    def _start(self) -> None:
        self._inbox: deque[Any] = deque()
        self._claims: list[Turn] = []  # the first one has the turn
        self._gate = threading.Lock()  # for starting and ending the thread; no work is done under it
        self._wake = _Bell()
        self._thread: threading.Thread | None = None
        self._fork: Turn | None = None  # the turn of one that forks

    def put(self, message: Any) -> None:
        """Hand a message over, or a list of them, which is the loop's then. Raises `GuardkitError` once closed."""
        if self._closed:
            raise GuardkitError(self._closed)
        self._inbox.append(message)
        if not self._claims:
            at_the_end_of_the_round(self._kick, self.serve_round)

    def tell(self, message: Any) -> None:
        """`put` for what is no work: booked here and now where the loop is idle. Raises nothing."""
        if self._closed:
            return
        self._inbox.append(message)
        if not self._claims:
            with self.turn() as turn:
                if turn.owned:
                    turn.take()

    def turn(self) -> Turn:
        return Turn(self)

    def serve_round(self) -> None:
        """Called by an event loop for what its tasks put into the inbox in one round: it is done here and now where it
        is brief and nothing else waits, else by the thread."""
        if self._claims or not self._inbox:
            return
        if self._sizes is None or not self._sizes.may_serve():
            self._kick()
            return
        with self.turn() as turn:
            turn.serve_brief()

    def load(self) -> Load:
        """How busy it is, what has not been taken yet included."""
        load = self._scheduler.load()
        waiting = sum(len(m) if isinstance(m, list) else 1 for m in self._inbox.copy())
        return replace(load, waiting=load.waiting + waiting)

    @property
    def is_free(self) -> bool:
        """Whether it is open, and nothing waits. For who has the turn."""
        return not (self._closed or self._inbox or self._scheduler.busy)

    @property
    def closed(self) -> bool:
        return bool(self._closed)

    def close(self, why: str) -> None:
        """Take no more work (it raises `GuardkitError(why)`), fail what waits, end the thread. Safe to call twice."""
        self._closed = self._closed or why
        self._inbox.append(None)
        if not (self._claims and self._claims[0].is_own):
            self._serve_all()
            self._wake.ring()

    def shut(self, end: float) -> None:
        """The program ends: nothing may run in the model when the interpreter goes. Waits until `end` for it."""
        self._closed = self._closed or f"{self.name}: the program is ending"
        self._scheduler.interrupt()
        self._wake.ring()
        while time.monotonic() < end and any(claim.is_live for claim in list(self._claims)):
            time.sleep(0.001)

    def before_fork(self, end: float) -> None:
        """No step is under way while the process forks; waits until `end` for one that is."""
        while self._fork is None:
            if self._claims and self._claims[0].is_own:
                return  # a fork in the middle of the caller's own turn
            turn = self.turn().__enter__()
            if turn.owned:
                self._fork = turn
                self._scheduler.before_fork()
                return
            turn.__exit__(None, None, None)
            if time.monotonic() > end:
                return
            time.sleep(0.001)

    def forked_here(self) -> None:
        """In the parent, after it."""
        turn, self._fork = self._fork, None
        if turn is not None:
            turn.__exit__(None, None, None)

    def after_fork(self) -> None:
        """In the child: the thread, and whoever had the turn, stayed in the parent."""
        waiting = list(self._inbox)
        self._start()
        error = GuardkitError(f"{self.name}: work of the parent process")
        for message in filter(None, waiting):  # booked, so that the reset fails it with all that hangs on it
            for each in message if isinstance(message, list) else [message]:
                self._scheduler.take(each)
        self._scheduler.forked()
        self._scheduler.reset(error)

    def _kick(self) -> None:
        with self._gate:
            self._wake.ring()
            if self._thread is None and not _ending:
                args = (weakref.ref(self), self._wake)
                self._thread = threading.Thread(target=_serve, args=args, name=self.name, daemon=True)
                self._thread.start()

    def _is_idle(self) -> bool:
        """Whether the thread may end; decided where no work can slip in between."""
        with self._gate:
            if self._inbox and not self._closed:
                return False
            self._thread = None
            return True

    def _serve_all(self) -> None:
        with self.turn() as turn:
            if turn.owned:
                turn.drain()


class Turn:
    """A claim on a loop's state, for a `with` block. owned: whether it came first."""

    def __init__(self, loop: Loop):
        self._loop, self._ident = loop, threading.get_ident()
        self.owned = False

    def __enter__(self) -> Turn:
        loop = self._loop
        claims = loop._claims
        if claims and claims[0].is_own:
            if claims[0].is_live:
                raise GuardkitError("a guard was called from within its own model's work (a signal handler?)")
            claims.pop(0)  # left behind by an interrupt between two instructions
        claims.append(self)
        self.owned = claims[0] is self and not _ending
        if not self.owned:  # a claim that stayed would keep the loop's thread away
            self._withdraw()
        return self

    def leave(self) -> None:
        """Give the turn up before the block ends: for who has to wait for others."""
        if self.owned:
            self.owned = False
            self._withdraw()

    def _withdraw(self) -> None:
        loop = self._loop
        if self in loop._claims:
            loop._claims.remove(self)
        if not loop._claims and (loop._inbox or loop._scheduler.busy):
            loop._kick()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = self._loop
        try:
            if self.owned and error is not None and not isinstance(error, Exception):
                # An interrupt may have struck between any two instructions: nothing half done is gone on with.
                loop._scheduler.reset(GuardkitError(f"interrupted ({kind.__name__ if kind else ''})"))
        finally:
            self.leave()

    @property
    def loop(self) -> Loop:
        return self._loop

    @property
    def is_own(self) -> bool:
        return self._ident == threading.get_ident()

    @property
    def is_live(self) -> bool:
        """Whether its thread is still inside the `with` block."""
        frame = sys._getframe(1) if self.is_own else sys._current_frames().get(self._ident)
        while frame is not None:
            if any(value is self for value in frame.f_locals.values()):
                return True
            frame = frame.f_back
        return False

    def step(self) -> bool:
        """Take what came, do one piece of work. False where there was nothing to do."""
        loop, scheduler = self._loop, self._loop._scheduler
        if _ending:
            raise GuardkitError(loop._closed)
        with Step():
            try:
                self.take()
                return scheduler.step()
            except Exception as error:  # of the scheduler itself: nobody may wait for ever, and the thread goes on
                import logging

                logging.getLogger("guardkit").exception("a step failed")
                scheduler.reset(GuardkitError(f"{loop.name}: a step failed ({type(error).__name__}: {error})"))
                return False

    def take(self) -> None:
        """Book what came."""
        loop, scheduler = self._loop, self._loop._scheduler
        inbox = loop._inbox
        while inbox:
            message = inbox[0]  # it leaves the inbox when it is booked: an interrupt in between loses nobody's work
            loop._n_taken += 1
            try:
                if message is None:
                    scheduler.reset(GuardkitError(loop._closed))
                elif isinstance(message, list):
                    while message:
                        scheduler.take(message[0])
                        del message[0]
                else:
                    scheduler.take(message)
            except Exception:
                inbox.popleft()
                raise
            inbox.popleft()

    def serve_brief(self) -> None:
        """Where it is owned: take what came, and do it if that is brief; else the thread does it when this ends."""
        loop, sizes = self._loop, self._loop._sizes
        if self.owned and sizes is not None:
            self.take()
            tokens = sizes.tokens
            if loop._seconds.get(tokens.bit_length(), BRIEF_S) < BRIEF_S:
                self.serve(tokens)

    def drain(self) -> None:
        sizes = self._loop._sizes
        if sizes is not None:
            self.take()
            self.serve(sizes.tokens)
        while not _ending and (self.step() or self._loop._inbox):
            pass

    def serve(self, tokens: int) -> None:
        """Do what was taken, and book how long that number of tokens took. It ends early where more comes meanwhile,
        which may take long: on an event loop that is the thread's."""
        loop, began = self._loop, time.perf_counter()
        n_taken = loop._n_taken
        while not _ending and self.step():
            if loop._inbox or n_taken != loop._n_taken:
                return
        if tokens and n_taken == loop._n_taken:
            size, took = tokens.bit_length(), time.perf_counter() - began
            loop._seconds[size] = 0.7 * loop._seconds.get(size, took) + 0.3 * took


def loops() -> list[Loop]:
    """Those of this process that are not closed."""
    return [loop for loop in list(_LOOPS) if not loop.closed]


class _Bell:
    """Wakes one thread that waits; a ring before the wait counts too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # it rang already
            pass

    def wait(self, timeout: float) -> bool:
        return self._lock.acquire(timeout=timeout)


def _serve(ref: weakref.ref[Loop], wake: _Bell) -> None:
    while True:
        woken = wake.wait(IDLE_S)
        loop = ref()
        if loop is None or _ending:
            return
        if not woken and loop._is_idle():
            return
        loop._serve_all()
        if loop._closed and loop._is_idle():
            return
        del loop


_LOOPS: weakref.WeakSet[Loop] = weakref.WeakSet()
_ending = False


def _end() -> None:
    global _ending
    _ending = True
    end = time.monotonic() + STOP_S
    for loop in list(_LOOPS):
        loop.shut(end)


def _before_fork() -> None:
    end = time.monotonic() + STOP_S
    for loop in list(_LOOPS):
        loop.before_fork(end)


def _forked_here() -> None:
    for loop in list(_LOOPS):
        loop.forked_here()


def _forked() -> None:
    for loop in list(_LOOPS):
        loop.after_fork()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_forked_here, after_in_child=_forked)
