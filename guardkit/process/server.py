"""The process of a model: one thread that reads what its peers ask, runs the model's steps, and answers.

It holds the model's turn for good, so nothing competes with its steps for the interpreter. All that came while a step
was under way goes into the next one together, whoever it came from. It ends when nobody is connected any more.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import selectors
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

from guardkit.errors import GuardkitError
from guardkit.loop import Turn
from guardkit.models.base import StreamModel
from guardkit.models.registry import load_model
from guardkit.process.peer import Peer
from guardkit.process.start import SOCKET, clear, is_own, locked
from guardkit.process.telling import Telling, name_of
from guardkit.process.wire import error_row, frame, profile_of
from guardkit.spinning import bound_spinning


def main(told: str) -> NoReturn:
    """told: JSON with the model's name and options, its folder, and the numbers of two sockets."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    bound_spinning()
    plan = json.loads(told)
    first, listening = socket.socket(fileno=plan["first"]), socket.socket(fileno=plan["listening"])
    loading = _Loading(first)
    code = 0
    try:
        try:
            model = load_model(plan["name"], **plan["options"])
            server = Server(model, listening, Path(plan["folder"]))
        except Exception as error:
            _refuse(error, first, listening, Path(plan["folder"]))
            code = 1
        else:
            loading.end()
            gc.collect()
            gc.freeze()  # a model's objects stay: the collector need not look at them when many requests pile up
            code = server.run(first)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)  # what a GPU's libraries do at an exit, nobody waits for


class _Loading:
    """Ends the process where whoever started it goes away before the model is loaded."""

    def __init__(self, first: socket.socket):
        self._woken, self._wake = os.pipe()
        threading.Thread(target=self._watch, args=(first.fileno(),), daemon=True).start()

    def _watch(self, first: int) -> None:
        poll = select.poll()
        poll.register(first, 0)  # its end alone
        poll.register(self._woken, select.POLLIN)
        if any(descriptor == first for descriptor, _ in poll.poll()):
            os._exit(1)

    def end(self) -> None:
        os.write(self._wake, b".")


def _refuse(error: Exception, first: socket.socket, listening: socket.socket, folder: Path) -> None:
    """The model does not load: tell whoever waits for it."""
    said = frame({"error": error_row(error)})
    with locked(folder):
        listening.setblocking(False)
        waiting = [first]
        while True:
            try:
                waiting.append(listening.accept()[0])
            except OSError:
                break
        clear(folder)
        for sock in waiting:
            with contextlib.suppress(OSError):  # gone
                sock.settimeout(1)
                sock.sendall(said)


class Server:
    """Serves `model` to whoever connects to `listening`. Raises `GuardkitError` for a model that cannot be served."""

    def __init__(self, model: StreamModel, listening: socket.socket, folder: Path):
        self.model, self._listening, self._folder = model, listening, folder
        self._twins: dict[float | None, StreamModel] = {model.threshold: model}
        turn = model.turn()
        loop = "" if turn is None else name_of(turn.loop.name)
        self._hello = frame({"profile": profile_of(model), "pid": os.getpid(), "loop": loop})
        self._telling = Telling()
        self._selector = selectors.DefaultSelector()
        self._peers: dict[Peer, None] = {}  # the longest connected first
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ, None)

    def run(self, *sockets: socket.socket) -> int:
        """Until nobody is connected, or the model cannot go on; the exit status."""
        turn = self.model.turn()
        if turn is None:
            raise GuardkitError(f"{self.model.name} has no loop of its own, and cannot be served by a process")
        for sock in sockets:
            self._greet(sock)
        with turn, self._telling:
            while not turn.loop.closed:
                self._listen(turn)
                if not self._peers and self._may_end():
                    return 0
                turn.step()
                if self._peers and self._telling.left_s == 0:
                    next(iter(self._peers)).send(frame([self._telling.news()]))
                for peer in list(self._peers):
                    peer.flush()
        return 1

    def twin(self, threshold: float | None) -> StreamModel:
        """The model under a threshold of a guard's own."""
        if threshold not in self._twins:
            self._twins[threshold] = self.model.with_threshold(float(threshold or 0))
        return self._twins[threshold]

    def _listen(self, turn: Turn) -> None:
        """Take what came; wait for something where there is nothing to do."""
        is_idle = turn.loop.is_free
        for key, events in self._selector.select(self._telling.left_s if is_idle and self._peers else 0):
            if key.data is None:
                self._accept()
            else:
                if events & selectors.EVENT_READ:
                    key.data.read()
                    self._telling.is_new = True
                if events & selectors.EVENT_WRITE:
                    key.data.flush()

    def _accept(self) -> bool:
        try:
            sock, _ = self._listening.accept()
        except OSError:  # gone again
            return False
        if not is_own(sock):
            sock.close()
            return False
        self._greet(sock)
        return True

    def _greet(self, sock: socket.socket) -> None:
        peer = Peer(self, sock)
        self._peers[peer] = None
        self._selector.register(sock, selectors.EVENT_READ, peer)
        peer.send(self._hello)

    @property
    def has_one_peer(self) -> bool:
        return len(self._peers) == 1

    def watch(self, peer: Peer, writing: bool) -> None:
        """writing: whether to be told when there is room for more of what is to be sent."""
        self._selector.modify(peer.sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0), peer)

    def leave(self, peer: Peer) -> None:
        self._peers.pop(peer, None)
        self._telling.is_new = True
        self._selector.unregister(peer.sock)
        peer.sock.close()

    def _may_end(self) -> bool:
        """Whether nobody is about to connect; then the next to come starts a process of their own."""
        with locked(self._folder, wait=False) as alone:
            if alone and not self._accept():
                (self._folder / SOCKET).unlink(missing_ok=True)
                if not self._accept():  # between the two
                    self._listening.close()
                    clear(self._folder)
                    return True
        if not self._peers:  # somebody who holds the lock is on their way here
            select.select([self._listening], [], [], 0.05)
        return False
