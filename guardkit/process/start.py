"""Where a model's process is found, and how it begins: a private folder with its socket, one process at most.

Whoever comes first starts it, the others connect; it ends with its last connection. The folder is the user's own, with
no access for others, and both ends ask the kernel who is at the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkit.errors import GuardkitError

PREFIX, SOCKET, LOCK = "guardkit-model-", "socket", "lock"
BACKLOG = 128
CONNECT_S = 10.0  # for the kernel to take a connection
MAX_PATH = 90  # bytes of a folder's path: with the socket's name it must fit into a Unix address
_CODE = (
    "import sys, json; sys.path += [p for p in json.loads(sys.argv[1]) if p not in sys.path]; "
    "from guardkit.process.server import main; main(sys.argv[2])"
)


forking = threading.Lock()
"""Held while a connection is made: a child that was forked meanwhile would keep sockets, and the lock, that it does not
know of."""


@dataclass
class Joined:
    """A connection. process: the model's, where it was started here; else it was there."""

    sock: socket.socket
    process: subprocess.Popen[bytes] | None = None


def private_folder() -> Path:
    """A new one, for a model that nobody else is to find by its path."""
    folder = tempfile.mkdtemp(prefix=PREFIX)
    if len(folder) > MAX_PATH - 20:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
    return Path(folder)


def folder_of(base: Path, name: str, options: dict[str, Any]) -> Path:
    """The folder of one model under `base`: who names the same model with the same options shares it."""
    where = str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
    key = json.dumps([where, sorted(options.items())], default=str)
    folder = base / hashlib.sha256(key.encode()).hexdigest()[:12]
    if len(os.fsencode(folder)) > MAX_PATH:
        raise GuardkitError(f"process='{base}': the path is too long for a socket; name a shorter one")
    return folder


def join_or_start(name: str, options: dict[str, Any], folder: Path) -> Joined:
    """Connect to the process of a model, or start it.

    Raises `GuardkitError` for a folder that others may use, OSError where a process cannot be started.
    """
    if (found := _connected(folder)) is not None:
        return Joined(found)
    with locked(folder):
        if (found := _connected(folder)) is not None:
            return Joined(found)
        return _start(name, options, folder)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """For the `with` block: nobody else starts or ends the process of this folder. Gives whether it is so, which it is
    where one waits for it."""
    descriptor = -1
    try:
        while True:
            _own(folder.parent)
            _own(folder)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                    break
            os.close(descriptor)  # the process of this folder ended, and took the file with it
            descriptor = -1
        yield True
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def clear(folder: Path) -> None:
    """Take away what a process leaves behind. Under the lock."""
    for name in (SOCKET, LOCK):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
        if folder.parent.name.startswith(PREFIX):  # made for this model alone
            folder.parent.rmdir()


def clear_up(folder: Path) -> None:
    """`clear` where there is no process (any more)."""
    if folder.exists():
        with locked(folder, wait=False) as alone:
            if alone and (found := _connected(folder)) is None:
                clear(folder)
            elif alone and found is not None:
                found.close()


def _own(folder: Path) -> None:
    """Make a folder that is private, or see that it is."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise GuardkitError(
            f"{folder} must be a folder of this user alone (mode 700): a model's process is reached there"
        )


def _connected(folder: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(str(folder / SOCKET))
        if not is_own(sock):
            raise GuardkitError(f"{folder / SOCKET} belongs to another user")
    except (FileNotFoundError, ConnectionError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def is_own(sock: socket.socket) -> bool:
    """Whether the process at the other end is this user's (or root's), where the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True  # the folder keeps others out
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return user in (0, os.geteuid())


def _start(name: str, options: dict[str, Any], folder: Path) -> Joined:
    path = folder / SOCKET
    path.unlink(missing_ok=True)
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listening, theirs:
        listening.bind(str(path))
        listening.listen(BACKLOG)
        told = {
            "name": name, "options": options, "folder": str(folder),
            "listening": listening.fileno(), "first": theirs.fileno(),
        }  # fmt: skip
        command = [sys.executable, "-P", "-c", _CODE, json.dumps(sys.path), json.dumps(told)]
        signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        # They go to a whole group of processes; this one is ended by who uses it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            fds = (listening.fileno(), theirs.fileno())
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=_stderr(), pass_fds=fds)
        except BaseException:
            ours.close()
            path.unlink(missing_ok=True)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Joined(ours, process)


def _stderr() -> int:
    try:
        os.fstat(2)
    except OSError:  # closed
        return subprocess.DEVNULL
    return 2


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=forking.acquire, after_in_parent=forking.release, after_in_child=forking.release)
