"""From a plan to a server that runs: sockets, worker processes, signals, a reload, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from guardkit import Guard, GuardkitError
from guardkit.process.start import private_folder
from guardkit_serve.app import create_app
from guardkit_serve.calls import Serving
from guardkit_serve.guards import Guards, with_policy
from guardkit_serve.heads import HTTP
from guardkit_serve.observe import Observer
from guardkit_serve.plan import Model, Plan

Load = Callable[..., Guard]
MORE_S = 2.0  # after the grace, for the last bytes


def serve(plan: Plan, load: Load, again: Callable[[], Plan], ready: Callable[[str], None]) -> int:
    """Run until a signal ends it; the exit status. again: reads the plan anew, for a reload; ready: is told the
    address once requests are taken. Raises OSError where the address is taken, `GuardkitError` for a model that does
    not load."""
    settings = plan.settings
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=2048) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _log_to_stderr()
        if plan.workers > 1:
            return _Workers(plan, load, again, lambda: ready(address)).run(listening)
        return _Server(plan, load, again, lambda: ready(address)).work(listening)


class _Server(uvicorn.Server):
    """One process: its models, its event loop."""

    def __init__(
        self,
        plan: Plan,
        load: Load,
        again: Callable[[], Plan],
        ready: Callable[[], None],
        folder: Path | None = None,
    ):
        self._plan, self._load, self._again, self._ready = plan, load, again, ready
        self._guards: dict[Model, Guard] = plan.load_guards(load)
        named = {model.name: guard for model, guard in self._guards.items()}
        observer = Observer(plan.settings.page_texts, folder)
        self.app = create_app(named, plan.settings, policies=plan.load_policies(), observer=observer)
        self._interrupted = False
        super().__init__(
            uvicorn.Config(
                self.app,
                http=HTTP,
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(plan.settings.grace_s + MORE_S) + 1,
            )
        )

    def work(self, listening: socket.socket) -> int:
        try:
            self.run(sockets=[listening])
        finally:
            for guard in self._guards.values():
                guard.close()
        return 130 if self._interrupted else 0 if self.started else 3

    @property
    def serving(self) -> Serving:
        serving: Serving = self.app.state.shared["serving"]
        return serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        _settle()
        if hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
                loop.add_signal_handler(signal.SIGHUP, lambda: setattr(self, "_task", loop.create_task(self.reload())))
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's own, but a signal that was followed is not raised again: the end is the answer to it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in kept.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self.serving.ready = False
            with contextlib.suppress(RuntimeError):
                loop = asyncio.get_event_loop()
                loop.call_soon_threadsafe(loop.call_later, self._plan.settings.grace_s, self.serving.draining.end)
        self._interrupted = self._interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def reload(self) -> None:
        """Take the plan as it is now; one that is not valid, or does not load, changes nothing."""
        log = logging.getLogger("guardkit.serve")
        try:
            plan = await asyncio.to_thread(self._again)
            guards = await asyncio.to_thread(plan.load_guards, self._load, self._guards)
            policies = plan.load_policies()
        except (GuardkitError, OSError) as error:
            log.error("not reloaded: %s", error)
            return
        old, self._guards, self._plan = self._guards, guards, plan
        first = next(iter(policies.values()))
        named = {model.name: with_policy(guard, first) for model, guard in guards.items()}
        before = self.serving
        before.observer.keep_texts = plan.settings.page_texts
        self.app.state.shared["serving"] = self.app.state.serving = Serving(
            plan.settings, Guards(named, policies), before.observer, before.upstreams, before.draining, ready=True
        )
        for model, guard in old.items():
            if model not in guards:  # what it is judging may come to its end
                asyncio.get_running_loop().call_later(plan.settings.grace_s, guard.close)
        asyncio.get_running_loop().call_later(plan.settings.grace_s, _settle)
        log.info("reloaded")


def _settle() -> None:
    """What is there now stays: the collector need not look at all of a model's objects whenever a thousand streams'
    requests have piled up, while nobody else can run. Only in a process that is a server's own."""
    if threading.current_thread() is threading.main_thread():
        gc.unfreeze()
        gc.collect()
        gc.freeze()


class _Workers:
    """Several processes that take requests from one socket. Those that end are replaced. A model with weights of its
    own has a process for all of them."""

    def __init__(self, plan: Plan, load: Load, again: Callable[[], Plan], ready: Callable[[], None]):
        self._models = private_folder()  # where the workers find the processes of their models
        self._plan, self._load, self._ready = plan.shared(self._models), load, ready
        self._again = lambda: again().shared(self._models)
        self._running: set[int] = set()
        self._is_ending = self._interrupted = False
        self._n_ready = 0

    def run(self, listening: socket.socket) -> int:
        with tempfile.TemporaryDirectory(prefix="guardkit-metrics-") as folder:
            self._folder = Path(folder)
            try:
                return self._run(listening)
            finally:
                shutil.rmtree(self._models, ignore_errors=True)

    def _run(self, listening: socket.socket) -> int:
        # Loaded before there are workers, so that what is wrong is said once; held until they are connected.
        held = [self._load(each.source, **dict(each.options)) for each in self._plan.models if each.is_shared]
        reader, writer = os.pipe()
        for _ in range(self._plan.workers):
            self._start(listening, writer)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sig, self._pass_on)
        code = 0
        threading.Thread(target=self._wait_ready, args=(reader, held), daemon=True).start()
        del held
        while self._running:
            try:
                pid, status = os.wait()
            except InterruptedError:
                continue
            if pid not in self._running:  # a model's, which its workers start again
                continue
            self._running.discard(pid)
            if self._is_ending:
                continue
            if self._n_ready < self._plan.workers:  # it did not even start: neither will another
                code = os.waitstatus_to_exitcode(status) or 3
                self._pass_on(signal.SIGTERM, None)
            else:
                logging.getLogger("guardkit.serve").error("a worker ended with status %s; starting another", status)
                self._start(listening, writer)
        _wait_for_models()
        return 130 if self._interrupted else code

    def _start(self, listening: socket.socket, writer: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._work(listening, writer)
        self._running.add(pid)

    def _work(self, listening: socket.socket, writer: int) -> NoReturn:
        code = 3
        try:
            for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(sig, signal.SIG_DFL)
            server = _Server(self._plan, self._load, self._again, lambda: _told(writer), self._folder)
            code = server.work(listening)
        except (GuardkitError, OSError) as error:
            print(f"guard: error: {error}", file=sys.stderr, flush=True)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _wait_ready(self, reader: int, held: list[Guard]) -> None:
        while self._n_ready < self._plan.workers:
            self._n_ready += len(os.read(reader, 1))
        for guard in held:
            guard.close()
        self._ready()

    def _pass_on(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGHUP:
            self._is_ending = True
            self._interrupted = self._interrupted or sig == signal.SIGINT
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)


def _wait_for_models() -> None:
    """Until the models' processes, which end with their last worker, are gone."""
    end = time.monotonic() + MORE_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def _told(writer: int) -> None:
    os.write(writer, b".")


def _log_to_stderr() -> None:
    """The access log as lines of JSON, faults as text."""
    for name, form in (("guardkit.access", "%(message)s"), ("guardkit.serve", "guard: %(levelname)s: %(message)s")):
        logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(form))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def unset_keys(plan: Plan) -> list[str]:
    """Environment variables that the upstreams' keys should stand in, and do not."""
    return [u.key_env for u in plan.settings.upstreams if u.key_env and not os.environ.get(u.key_env, "").strip()]


def is_open(plan: Plan) -> bool:
    """Whether anybody who reaches this machine may use the server."""
    return not plan.settings.is_loopback and not plan.settings.keys


__all__: list[Any] = ["is_open", "serve", "unset_keys"]
