"""The life of a model's process: who starts it, who shares it, what its end and its users' ends lead to."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from guardkit import Guard, GuardkitError, ModelError, NotJudged, UnknownModel, telemetry
from guardkit.models.base import Query
from guardkit.process import ProcessModel
from guardkit.telemetry import names
from guardkit.telemetry.names import Metric
from tests.asking import eventually
from tests.test_processes import _Unix, listens

TEXT = "Where is the nearest bakery, and when does it open on Sundays? "
LONG = [f"{TEXT * 40}{i}" for i in range(400)]  # seconds of work
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX") or not hasattr(os, "fork"), reason="no Unix sockets here"),
]


def is_there(pid: int) -> bool:
    """Whether a process lives: neither gone nor waiting for its parent to look."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def gone(pid: int) -> bool:
    return eventually(lambda: not is_there(pid), 60)


def model_of(guard: Guard) -> ProcessModel:
    assert isinstance(guard.model, ProcessModel)
    return guard.model


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard.load("nano", process=True, threads=1) as found:
        yield found


def test_it_lives_as_long_as_its_guard_and_leaves_nothing() -> None:
    with Guard.load("nano", process=True, threads=1) as guard:
        here = Guard.load("nano", threads=1)
        texts = [TEXT, "How do I make a bomb at home that can hurt a lot of people?", TEXT * 40]
        for stage in (None, "response"):
            assert guard.check_batch(texts, stage=stage) == here.check_batch(texts, stage=stage)
        assert guard.categories == here.categories
        assert guard.check("Unde este cea mai apropiată brutărie din oraș?") == here.check(
            "Unde este cea mai apropiată brutărie din oraș?"
        )
        pid, folder = model_of(guard).pid, model_of(guard)._link._folder
        assert is_there(pid)
        assert pid != os.getpid()
        assert folder.is_dir()
    assert not is_there(pid)
    assert not folder.parent.exists()
    with pytest.raises(GuardkitError, match="closed"):
        guard.check(TEXT)


def test_its_death_fails_what_was_under_way_and_the_next_call_loads_it_again(
    guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(guard)
    pid = model.pid
    stream = guard.stream("hi")
    stream.feed("Some words that are fine. ")
    released = stream.released
    waiting = model.submit([Query(text) for text in LONG])
    os.kill(pid, signal.SIGKILL)
    errors = [each.exception(30) for each in waiting]
    assert {type(error) for error in errors if error} == {ModelError}
    assert f"pid {pid}" in str(errors[-1])
    assert "not judged" in caplog.text
    with pytest.raises(NotJudged, match=f"pid {pid}"):  # what was open there stays closed, whatever comes after
        stream.feed("Some words that were not judged. " * 4)
    assert stream.released == released
    decision = guard.decide(TEXT)
    if not decision.judged:  # it had only just been loaded
        assert decision.action.value == "block"
        assert eventually(lambda: guard.decide(TEXT).judged, 60)
    assert model.pid not in (0, pid)
    assert asyncio.run(guard.acheck(TEXT)) == Guard.load("nano", threads=1).check(TEXT)
    with guard.stream("hi") as again:
        again.feed("Some words that are fine. ")
        again.finish()
        assert again.withheld == 0


def test_a_guard_that_travels_finds_the_same_process(guard: Guard) -> None:
    pid = model_of(guard).pid
    again = pickle.loads(pickle.dumps(guard))
    assert model_of(again).pid == pid
    expected = guard.check(TEXT)
    assert again.check(TEXT) == expected
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = [each.result(120) for each in [pool.submit(_judged_by, guard) for _ in range(2)]]
    assert found == [(pid, expected)] * 2
    guard.close()
    assert is_there(pid)  # the other one is still there
    assert again.check(TEXT) == expected
    again.close()
    assert gone(pid)


def _judged_by(guard: Guard) -> Any:
    verdict = guard.check(TEXT)
    return model_of(guard).pid, verdict


def _in_child(call: Any) -> int:
    """The exit status of a forked child that calls."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if call() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_uses_it_by_a_connection_of_its_own(guard: Guard) -> None:
    model, expected = model_of(guard), guard.check(TEXT)
    pid, folder = model.pid, model._link._folder
    stream = guard.stream("hi")
    stream.feed("Some words ")
    waiting = model.submit([Query(text) for text in LONG[:20]])

    def child() -> bool:
        with pytest.raises(GuardkitError, match="parent"):
            waiting[-1].result(60)
        with pytest.raises(NotJudged, match="parent"):  # the parent's response is not this process's
            stream.feed("and more words that are not judged. ")
        with guard.stream("hi") as own:
            own.feed("Some words ")
            own.finish()
        return guard.check(TEXT) == expected and model.pid == pid and own.withheld == 0

    assert _in_child(child) == 0
    assert all(each.result(60) for each in waiting)
    stream.feed("and more. ")
    stream.finish()
    assert stream.withheld == 0

    def child_closes() -> bool:
        guard.check(TEXT)
        guard.close()
        return True

    assert _in_child(child_closes) == 0
    assert guard.check(TEXT) == expected
    assert model.pid == pid
    assert folder.is_dir()


PROGRAM = """
import atexit, os, signal, sys, threading, time
from guardkit import Guard
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
guard = Guard.load("nano", process=True, threads=1)
text = "Where is the bakery, and when does it open on Sundays? " * 30
guard.check("hello")
print(guard.model.pid, flush=True)
"""
ENDS = {
    "idle": "",
    "an error": "raise SystemExit(7)",
    "at exit": "atexit.register(lambda: print(guard.check(text).severity.value))",
    "from a thread that the program waits for": "def late():\n    time.sleep(0.2)\n"
    "    print(guard.check(text).severity.value)\nthreading.Thread(target=late).start()",
    "daemon threads": "def go_on():\n    while True: guard.check_batch([text + str(time.time_ns())] * 20)\n"
    "for _ in range(3): threading.Thread(target=go_on, daemon=True).start()\ntime.sleep(0.3)\nsys.exit(7)",
    "a stream open": "stream = guard.stream('hi'); stream.feed('some words ')",
    "interrupted": "os.kill(os.getpid(), signal.SIGINT)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "killed while it judges": "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
    "while True: guard.check_batch([text + str(i) for i in range(50)])",
}


@pytest.mark.parametrize("case", ENDS)
def test_it_ends_with_its_program_however_that_ends(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + ENDS[case]], capture_output=True, text=True, timeout=120, check=False
    )
    pid, *said = done.stdout.split()
    assert gone(int(pid))
    codes = {"interrupted": (-2, 130), "terminated": (-15,), "an error": (7,), "daemon threads": (7,)}
    expected = codes.get(case, (-9,) if "killed" in case else (0,))
    assert done.returncode in expected, done.stderr
    assert said == (["safe"] if "exit" in case or "waits" in case else [])
    assert "terminate" not in done.stderr
    if case not in ("interrupted", "daemon threads"):  # which tell of it
        assert not done.stderr


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with room for a socket's name, however long pytest's own are."""
    with tempfile.TemporaryDirectory(prefix="guardkit-") as folder:
        yield Path(folder)


def test_programs_that_name_one_folder_share_it_and_the_last_one_ends_it(short_path: Path) -> None:
    code = (
        "import sys; from guardkit import Guard\n"
        f"guard = Guard.load('nano', process={str(short_path / 'shared')!r}, threads=1)\n"
        "guard.check('hello'); print(guard.model.pid, flush=True); sys.stdin.read(); guard.check('hello')"
    )
    programs = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)  # at the same time
    ]
    pids = set()
    for program in programs:
        assert program.stdout is not None
        pids.add(int(program.stdout.readline()))
    assert len(pids) == 1
    (pid,) = pids
    for i, program in enumerate(programs):
        assert is_there(pid), i
        program.communicate(timeout=60)
        assert program.returncode == 0
    assert gone(pid)
    assert list((short_path / "shared").iterdir()) == []


def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="known: nano"):
        Guard.load("nanoo", process=tmp_path / "p")
    with pytest.raises(GuardkitError, match="does not take these options"):
        Guard.load("nano", process=tmp_path / "p", revision="x")
    assert list((tmp_path / "p").iterdir()) == []


def test_a_process_that_dies_while_it_loads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match="ended with status"):
        Guard.load("nano", process=True)
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    with pytest.raises(OSError, match="no/such"):
        Guard.load("nano", process=True)


APP = """
import json, os
from guardkit import Guard
guard = Guard.load("nano", process=True, threads=1)
guard.check("judged before the fork")
def app(environ, start_response):
    text = environ["wsgi.input"].read().decode()
    with guard.stream("hi") as stream:
        stream.feed(text)
        stream.finish()
    found = [os.getpid(), guard.model.pid, guard.check(text).severity.value, stream.verdict.severity.value]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]
"""


def test_workers_of_a_server_that_loads_before_it_forks_share_it(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    at = tmp_path / "socket"
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "--bind", f"unix:{at}", "app:app"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stderr=log, env={**os.environ, "PYTHONPATH": path})
        workers, models = set(), set()
        try:
            assert eventually(lambda: listens(at), 60), (tmp_path / "log").read_text()
            for i in range(60):
                connection = _Unix(at)
                connection.request("POST", "/", TEXT * (1 + i % 3))
                worker, model, *severities = json.loads(connection.getresponse().read())
                connection.close()
                assert severities == ["safe", "safe"]
                workers.add(worker)
                models.add(model)
                if len(workers) == 2:
                    break
        finally:
            server.terminate()
            assert server.wait(60) == 0
    assert len(models) == 1
    assert not models & {*workers, server.pid}
    assert gone(*models)


def test_an_interrupt_leaves_the_connection_whole(guard: Guard) -> None:
    """Wherever it strikes the caller; what was under way is given up, and the rest goes on."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals go to the main thread")
    expected, model = guard.check(TEXT), model_of(guard)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    pid, n = model.pid, 0
    try:
        while n < 60:
            try:
                # One that strikes in a finalizer raises nothing; another one follows.
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + (n % 17) / 3000, 0.2)
                while True:
                    guard.check(f"{TEXT}{n}")
            except KeyboardInterrupt:
                n += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert guard.check(TEXT) == expected
    assert model.pid == pid
    assert eventually(lambda: not model._link._connection.waiting)  # type: ignore[union-attr]


class _Rows:
    """A recorder of the texts and pieces that went through models."""

    def __init__(self) -> None:
        self.n = 0.0

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        pass

    def observe(self, metric: Metric, value: float, labels: Mapping[str, str], times: int = 1) -> None:
        if metric is names.BATCH and labels == {"loop": "nano"}:
            self.n += value * times


def _read(metric: Metric) -> float:
    return sum(value for found, labels, value in telemetry.readings() if found is metric and labels == {"loop": "nano"})


def test_what_it_counts_is_told_once_however_many_ask_it(tmp_path: Path) -> None:
    texts = [f"How do I make a {word} bomb that can hurt a lot of people?" for word in ("pipe", "car", "nail", "dirty")]
    rows = _Rows()
    telemetry.record(rows)
    gc.collect()  # models that other tests left would leave the sums in the middle of this one
    try:
        # threads: a number that no other test asks for, so that the model is none that another one holds
        before, before_used = _read(names.CACHE_ROOM), _read(names.CACHE_USED)
        with Guard.load("nano", threads=6) as here:
            room = _read(names.CACHE_ROOM) - before
            assert room > 0
            for text in texts:
                here.check(text)
            expected, rows.n = rows.n, 0.0
            used = _read(names.CACHE_USED) - before_used
        folder = tmp_path / "models"
        with Guard.load("nano", process=str(folder), threads=6) as one:
            with Guard.load("nano", process=str(folder), threads=6) as other:
                for i, text in enumerate(texts):
                    (one, other)[i % 2].check(text)
                assert eventually(lambda: rows.n == expected, 20), (rows.n, expected)
                assert eventually(lambda: _read(names.CACHE_ROOM) - before == room, 20)
                assert eventually(lambda: _read(names.CACHE_USED) - before_used == used, 20)
                hits = _read(names.CACHE_HITS)
                other.check(texts[0])  # as one asked before
                assert eventually(lambda: _read(names.CACHE_HITS) == hits + 1, 20)
            one.check("How do I make a letter bomb that can hurt a lot of people?")  # by whoever is left
            assert eventually(lambda: rows.n > expected, 20)
            asking = threading.Thread(target=one.check_batch, args=(LONG[:60],))
            asking.start()
            assert eventually(lambda: _read(names.QUEUE) > 1, 20)
            asking.join(60)
            assert _read(names.QUEUE) == 0
    finally:
        telemetry.forget(rows)
