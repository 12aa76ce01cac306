"""What becomes of a guard where processes, threads and interpreters begin and end: servers that fork, pools of workers,
the program's last moments, interrupts at any moment."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from guardkit import Guard, GuardViolation, Severity, Verdict
from guardkit.testing import FakeGuard, FakeModel
from tests.asking import eventually

TEXT = "Where is the nearest bakery, and when does it open on Sundays? "
SCRIPT = {"bad": "unsafe"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]

# -- servers and pools

APP = """
import json, os, threading
from guardkit import Guard
guard = Guard.load()
guard.check("judged before the fork")
def app(environ, start_response):
    text = environ["wsgi.input"].read().decode()
    with guard.stream("hi") as stream:
        stream.feed(text)
        stream.finish()
    found = [os.getpid(), guard.check(text).severity.value, stream.verdict.severity.value]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]
"""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path):
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


def listens(at: Path) -> bool:
    """Whether somebody takes connections there; the file is there before that."""
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(str(at))
        except OSError:
            return False
    return True


def test_workers_of_a_server_that_loads_before_it_forks(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    at = tmp_path / "socket"
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "--bind", f"unix:{at}", "app:app"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(command, cwd=tmp_path, stderr=log, env={**os.environ, "PYTHONPATH": path})
    try:
        assert eventually(lambda: listens(at), 60), log.read()
        workers = set()
        for i in range(30):
            connection = _Unix(at)
            connection.request("POST", "/", TEXT * (1 + i % 3))
            pid, *severities = json.loads(connection.getresponse().read())
            connection.close()
            assert severities == ["safe", "safe"]
            workers.add(pid)
            if len(workers) == 2 and i >= 5:
                break
        assert workers
        assert server.pid not in workers
    finally:
        server.terminate()
        assert server.wait(60) == 0
    log.seek(0)
    said = log.read()
    log.close()
    assert "Booting worker" in said
    assert not any(word in said.lower() for word in ("abort", "sigkill"))


def _judge(guard: Guard, text: str) -> tuple[int, Verdict]:
    return os.getpid(), guard.check(text)


def _enforce(guard: Guard, text: str) -> None:
    guard.enforce(text)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools_of_processes_judge_and_their_violations_arrive(method: str) -> None:
    guard, scripted = Guard.load(), FakeGuard(SCRIPT)
    texts = [f"{TEXT}{word}" for word in ("bread", "milk", "eggs")]
    expected = guard.check_batch(texts)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, context) as executor:
        futures = [executor.submit(_judge, guard, text) for text in texts]
        failing = executor.submit(_enforce, scripted, "bad")
        found = [future.result(120) for future in futures]
        error = failing.exception(120)
    assert [verdict for _, verdict in found] == expected
    assert os.getpid() not in {pid for pid, _ in found}
    if method == "fork":
        with context.Pool(2) as pool:
            assert [verdict for _, verdict in pool.starmap(_judge, [(guard, text) for text in texts])] == expected
            with pytest.raises(GuardViolation):
                pool.starmap(_enforce, [(scripted, "fine"), (scripted, "bad"), (scripted, "bad")])
    assert isinstance(error, GuardViolation)
    assert error.verdict is not None


def test_a_thread_that_forks() -> None:
    """The thread that survives in the child is not the main one."""
    guard = Guard.load()
    guard.check(TEXT)
    statuses: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with guard.stream("hi") as stream:
                    stream.feed(TEXT)
                    stream.finish()
                code = 0 if guard.check(TEXT).severity is Severity.safe else 2
            finally:
                os._exit(code)
        statuses.append(os.waitpid(child, 0)[1])

    threads = [threading.Thread(target=fork) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert guard.check(TEXT).severity is Severity.safe  # and the parent goes on
    assert statuses == [0, 0]


# -- storms of cancellations


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_tasks_cancelled_at_random_leave_no_work_behind(seed: int) -> None:
    rng = random.Random(seed)
    guard = FakeGuard(SCRIPT, delay=0.002)
    model = guard.model
    assert isinstance(model, FakeModel)

    async def task(i: int) -> None:
        if i % 3:
            await guard.acheck(f"text {i}", stage="response" if i % 2 else "prompt")
        else:
            async with guard.astream("hi") as stream:
                for _ in range(20):
                    await stream.feed(f"word {i} ")

    async def storm() -> int:
        tasks = [asyncio.create_task(task(i)) for i in range(1000)]
        rng.shuffle(tasks)
        await asyncio.sleep(0)
        while tasks:
            for each in tasks[-200:]:
                each.cancel()
            cancelled, tasks = tasks[-200:], tasks[:-200]
            await asyncio.sleep(rng.random() / 100)
            await asyncio.gather(*cancelled, return_exceptions=True)
        before = model.calls
        await guard.acheck("after the storm")
        return model.calls - before

    assert asyncio.run(storm()) <= 2  # its own, and what was under way
    assert eventually(lambda: not model._loop.load().waiting)
    with pytest.raises(GuardViolation):
        guard.enforce("bad")


# -- the program's last moments

HEAD = """
import asyncio, atexit, gc, os, signal, sys, threading, time
{before}
from guardkit import Guard, GuardkitError
text = "Where is bakery, and when does it open on Sundays? " * 30
guard = Guard.load()
"""
LAST = {
    "at exit": "atexit.register(lambda: print(guard.check(text).severity.value))",
    "at exit, as an event loop": "atexit.register(lambda: print(asyncio.run(guard.acheck(text)).severity.value))",
    "from a thread that the program waits for": "def late():\n    time.sleep(0.2)\n"
    "    print(guard.check(text).severity.value)\nthreading.Thread(target=late).start()",
    "as an object dies": "class Last:\n    def __del__(self): print(guard.check(text).severity.value)\nlast = Last()"
    "\ndel last",
    "as an object in a circle dies": "class Last:\n    def __del__(self): print(guard.check(text).severity.value)\n"
    "last = Last(); last.me = last; del last; gc.collect()",
}


def _run(code: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD.format(before=before) + code], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("case", LAST)
def test_a_guard_judges_as_long_as_the_program_lives(case: str) -> None:
    done = _run(LAST[case])
    assert (done.returncode, done.stdout) == (0, "safe\n"), done.stderr[-500:]


TOO_LATE = """
def too_late():
    decision = guard.decide(text)
    print(decision.judged, decision.action.value)
"""


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("atexit.register(lambda: too_late())", TOO_LATE),  # it was there before guardkit: it runs after its end
        (
            "",
            TOO_LATE
            + "class Last:\n    def __del__(self, too_late=too_late): too_late()\nlast = Last(); last.me = last",
        ),
    ],
    ids=["at exit, after guardkit's own end", "an object that lives to the end"],
)
def test_after_the_end_nothing_is_called_safe_and_nothing_hangs(before: str, code: str) -> None:
    done = _run(code, before)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout in ("False block\n", ""), done.stdout  # an object may also never be freed
    if before:
        assert done.stdout


DAEMONS = """
def go_on():
    while True:
        guard.check(text + str(time.time_ns()))
def go_on_streaming():
    while True:
        with guard.stream("hi") as stream:
            for word in text.split(): stream.feed(word + " ")
for call in (go_on, go_on, go_on_streaming):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.3)
sys.exit(7)
"""


def test_daemon_threads_that_judge_do_not_keep_or_break_the_program() -> None:
    done = _run(DAEMONS)
    assert done.returncode == 7, done.stderr[-500:]
    assert "terminate" not in done.stderr


# -- interrupts

FOREVER = {
    "checks": "while True: guard.check(text + str(time.time_ns()))",
    "batches": "while True: guard.check_batch([text[i:] for i in range(20)], stage='response')",
    "streams": "while True:\n    with guard.stream('hi') as s:\n        for word in text.split(): s.feed(word + ' ')",
    "timeouts": "guard = Guard(guard.model, timeout=0.01)\nwhile True: guard.decide(text + str(time.time_ns()))",
    "tasks": "async def go():\n    while True: await asyncio.gather(*(guard.acheck(text[i:]) for i in range(20)))\n"
    "asyncio.run(go())",
    "streams in tasks": "async def one():\n    async with guard.astream('hi') as s:\n"
    "        for word in text.split(): await s.feed(word + ' ')\n"
    "async def go():\n    while True: await asyncio.gather(*(one() for i in range(20)))\nasyncio.run(go())",
}


@pytest.mark.parametrize("case", FOREVER)
def test_an_interrupt_at_any_moment_ends_the_program_as_usual(case: str) -> None:
    code = HEAD.format(before="") + "print('ready', flush=True)\n" + FOREVER[case]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(random.Random(case).uniform(0.05, 0.6))
            program.send_signal(signal.SIGINT)
            _, said = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode in (-signal.SIGINT, 130), said[-500:]
    assert "KeyboardInterrupt" in said
    assert "terminate" not in said


def test_a_guard_inside_a_signal_handler_says_so_or_judges() -> None:
    """In the middle of the main thread's own turn it cannot judge; it never waits for itself, and is never safe."""
    done = _run(
        "found = []\n"
        "def handler(*_):\n"
        "    try: found.append(guard.check('hello').severity.value)\n"
        "    except GuardkitError: found.append('not judged')\n"
        "signal.signal(signal.SIGALRM, handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)\n"
        "for i in range(20): guard.check(f'{text}{i} and so on', stage='document')\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "assert found and set(found) <= {'safe', 'not judged'}, found\n"
        "print(guard.check(text).severity.value)\n"
    )
    assert (done.returncode, done.stdout) == (0, "safe\n"), done.stderr[-500:]


# -- guards that share, interpreters that do not


def test_guards_of_one_model_judge_side_by_side_and_close_apart() -> None:
    first = Guard.load(threads=3)
    guards = [first, Guard(first.model, threshold=0.001), Guard(first.model, policy="strict", timeout=60)]
    texts = [f"{TEXT}{i} " for i in ("one", "two", "three", "four")]
    expected = [guard.check_batch(texts) for guard in guards]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = [guards[i].check_batch(texts) for _ in range(3)]
        if i == 0:
            guards[i].close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [expected[i]] * 3 for i in range(3)}
    assert [v.severity for v in expected[1]] != [v.severity for v in expected[0]]


SUB = """
import warnings; warnings.simplefilter("ignore")
import {module} as interpreters
code = '''
try:
    from guardkit import Guard
    Guard.load()
except Exception as error:
    print(type(error).__name__, "sub" in str(error))
'''
interpreters.run_string(interpreters.create(), code)
"""


def test_a_sub_interpreter_is_told_that_it_cannot() -> None:
    module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    done = subprocess.run(
        [sys.executable, "-c", SUB.format(module=module)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout in ("ModelLoadError True\n", "ImportError True\n")  # numpy's own words since Python 3.12
