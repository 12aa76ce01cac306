"""The real program among other programs: pipes, signals, terminals, start-up."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and signals")

UNWANTED = ("rich", "yaml", "asyncio", "importlib.metadata", "torch", "transformers", "onnxruntime", "pydantic")


def refuses(process, data: bytes) -> bool:
    """Whether `process` stops reading, for good, what is written to it again and again."""
    try:
        for _ in range(100_000):
            process.stdin.write(data * 100)
    except BrokenPipeError:
        return True
    return False


def test_check_answers_line_by_line(start):
    process = start("check", "--json")
    for i in range(5):
        process.stdin.write(b"line BAD %d\n" % i)
        process.stdin.flush()
        row = json.loads(process.stdout.readline())  # blocks for ever if it waits for a batch
        assert (row["index"], row["action"]) == (i, "block")
    process.stdin.close()
    assert process.wait(60) == 1


def test_check_is_clean_when_its_reader_goes_away(start):
    process = start("check")
    process.stdout.close()
    assert refuses(process, b"hello there\n")
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [["check", "hi"], ["--help"], ["models"], ["policy", "show"], ["doctor"]])
def test_a_closed_pipe_is_quiet_for_short_outputs_too(start, command):
    read, write = os.pipe()
    os.close(read)
    process = start(*command, stdout=write)
    os.close(write)
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["check", "hi"], ["check", "--json", "hi"], ["stream"], ["--help"]])
def test_a_full_disk_is_no_success(start, command):
    with open("/dev/full", "wb") as full:
        process = start(*command, stdout=full)
        _, err = process.communicate(b"some text", timeout=60)
    assert process.returncode == 3
    assert b"No space left" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize("command", ["check", "stream"])
def test_ctrl_c_ends_with_130_and_no_traceback(start, command):
    process = start(command)
    process.stdin.write(b"one BAT of these lines\n" * 20)
    process.stdin.flush()
    assert process.stdout.read(1)  # up and running, waiting for more
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_during_a_model_call(start):
    process = start("check", env={"SLOW_MS": "600"})
    process.stdin.write(b"a\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdin.write(b"b\n")
    process.stdin.flush()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    err = process.stderr.read()
    assert b"Traceback" not in err
    assert b"interrupted after 1 record:" in err


def test_stream_releases_while_its_input_is_open(start):
    process = start("stream", "--holdback", "2")
    process.stdin.write(b"one two three four five ")
    process.stdin.flush()
    assert os.read(process.stdout.fileno(), 100).startswith(b"one two")
    process.stdin.close()
    assert process.wait(60) == 0


def test_stream_stops_its_source(start):
    process = start("stream")
    assert refuses(process, b"this is so BAD ")
    assert process.wait(60) == 1
    assert b"BAD" not in process.stdout.read()


def test_stream_is_clean_when_its_reader_goes_away(start):
    process = start("stream")
    process.stdout.close()
    assert refuses(process, b"hello there\n")
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


def test_stream_does_not_wait_for_much_input_to_be_judged(start):
    """A big file is judged in small pieces, so that its beginning is out long before its end is judged."""
    process = start("stream", env={"SLOW_MS": "100"})
    process.stdin.write(b"word " * 8000)
    process.stdin.close()
    assert process.stdout.read(1)
    assert process.poll() is None  # most of it is still to be judged
    assert len(process.stdout.read()) == 8000 * 5 - 1


@pytest.mark.slow
def test_50_mb_on_one_line(start):
    process = start("check", "--json")
    out, err = process.communicate(b"first\n" + b"0123456789" * 5_000_000 + b" BAD\nlast", timeout=120)
    assert [json.loads(line)["action"] for line in out.splitlines()] == ["allow", "block", "allow"]
    assert process.returncode == 1, err


def test_non_blocking_standard_input(start):
    read, write = os.pipe()
    os.set_blocking(read, False)
    process = start("check", "--json", stdin=read)
    os.close(read)
    time.sleep(0.3)
    os.write(write, b"BAD\n")
    assert json.loads(process.stdout.readline())["action"] == "block"
    os.close(write)
    assert process.wait(60) == 1


def test_closed_standard_streams(environment):
    def guard(redirection: str, *args: str) -> subprocess.CompletedProcess[str]:
        program = os.path.join(os.path.dirname(__file__), "fake_guard_program.py")
        command = f'exec "$0" "$@" {redirection}'
        return subprocess.run(
            ["sh", "-c", command, sys.executable, program, *args], env=environment, capture_output=True, text=True
        )

    assert guard("<&-", "check").returncode == 3
    assert guard("<&-", "stream").returncode == 3
    assert guard(">&-", "check", "hi").returncode == 2
    assert guard(">&-", "check", "--quiet", "BAD").returncode == 1
    assert guard("2>&-", "check", "BAD").returncode == 1
    assert "Traceback" not in guard("<&-", "check").stderr


def test_a_terminal(environment):
    """On a terminal: colour, a hint instead of a hang, and progress for a file."""
    import pty

    def guard(*args: str, stdin: int | None = None) -> tuple[int, str]:
        leader, follower = pty.openpty()
        program = os.path.join(os.path.dirname(__file__), "fake_guard_program.py")
        process = subprocess.Popen(
            [sys.executable, program, *args],
            env=environment | {"TERM": "xterm"},
            stdin=follower if stdin is None else stdin,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        seen = b""
        try:
            while data := os.read(leader, 65536):
                seen += data
        except OSError:  # how Linux says that the terminal is gone
            pass
        os.close(leader)
        return process.wait(60), seen.decode()

    code, seen = guard("check")
    assert code == 2
    assert "nothing to judge" in seen
    assert guard("stream")[0] == 2
    code, seen = guard("check", "BAD")
    assert code == 1
    assert "\x1b[31mblock" in seen


def test_progress_for_a_file_on_a_terminal(environment, tmp_path):
    import pty

    file = tmp_path / "log"
    file.write_text("".join(f"line {i}\n" for i in range(100_000)))
    leader, follower = pty.openpty()
    program = os.path.join(os.path.dirname(__file__), "fake_guard_program.py")
    process = subprocess.Popen(
        [sys.executable, program, "check", "--input", str(file)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=follower,
    )
    os.close(follower)
    seen = b""
    try:
        while data := os.read(leader, 65536):
            seen += data
    except OSError:
        pass
    os.close(leader)
    assert process.wait(60) == 0
    assert b"% " in seen
    assert b"records" in seen
    assert b"100,000 records: 0 flagged" in seen.split(b"\x1b[K")[-1]


@pytest.mark.parametrize("command", [["--help"], ["check", "--help"], ["check", "hi"]])
def test_start_up_imports_nothing_heavy(environment, command):
    program = os.path.join(os.path.dirname(__file__), "fake_guard_program.py")
    listed = subprocess.run(
        [sys.executable, program, *command],
        env=environment | {"LIST_MODULES": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(listed.stdout.splitlines())
    assert not loaded & set(UNWANTED)
    assert (
        not loaded & {f"guardkit_cli.{name}" for name in ("stream", "eval", "models", "policy", "doctor")}
        or "hi" not in command
    )
    assert "numpy" not in loaded or "hi" in command


def test_a_signal_that_does_not_interrupt_the_read_is_heard():
    """As one that comes just before the call: here another thread takes it."""
    from guardkit_cli.records import Source

    class Heard(Exception):
        pass

    def handler(*_: object) -> None:
        raise Heard

    def signals() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        if not heard.wait(60):
            os.write(write, b"nobody heard\n")

    read, write = os.pipe()
    heard = threading.Event()
    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=signals)
    try:
        with open(read, "rb", buffering=0) as file:
            threading.Timer(0.1, thread.start).start()
            with pytest.raises(Heard):
                Source("-", file).read()
        in_time = thread.is_alive()
    finally:
        heard.set()
        thread.join()
        os.close(write)
        signal.signal(signal.SIGUSR1, before)
    assert in_time


def test_an_error_of_no_file_is_not_laid_on_standard_output(capsys):
    from guardkit_cli.app import exit_code_of

    assert exit_code_of(OSError(-2, "Name or service not known")) == 3
    assert exit_code_of(OSError(errno.ENOSPC, "No space left on device")) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert "standard output" not in first
    assert "standard output" in second
