"""A model on the other side of a socket: the same answers, errors, deadlines and order as beside its guard."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Category, Guard, GuardkitError, Message, ModelError, NotJudged, Overloaded, Severity
from guardkit.messages import Part
from guardkit.models.base import Append, Limits, Query, QueryScores, Scores, StreamModel, Tokens
from guardkit.models.simple import SimpleModel, SimpleSession
from guardkit.models.word_tokenizer import WordTokenizer
from guardkit.process import ProcessModel, load, wire
from guardkit.process.server import Server
from guardkit.process.start import SOCKET, folder_of
from guardkit.process.wire import (
    Frames,
    Numbers,
    error_of,
    error_row,
    frame,
    message_of,
    message_row,
    query_of,
    query_row,
    result_of,
    result_row,
)
from guardkit.reading.positions import ROLES
from guardkit.verdict import Stage
from tests.asking import append, ask, ask_all, eventually, peek

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
WORDS = ["tomatoes ", "bad", " sun,\n", "bad bad ", "water", " ", "é☕ ", "<think>", "hm ", "</think>", "end. "]


class Strange(Exception):
    pass


class Stub(SimpleModel):
    """ "bad" is unsafe, and a response with one stays so; other words raise, wait, or are refused."""

    name = "stub"
    query_categories = (*Category, Category.named("Soup Recipes"))
    response_categories = tuple(Category)[:8]
    max_sessions = 1000

    def __init__(self) -> None:
        self.tokenizer = WordTokenizer()
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()
        self.n_open = 0
        self.contexts: list[Any] = []
        super().__init__()

    @property
    def max_streams(self) -> int:
        return self.max_sessions

    def limits(self, stage: Stage) -> Limits:
        own = Limits(0.7, 0.4, {Category.named("Soup Recipes"): 0.95})
        return super().limits(stage) or own

    def query(self, queries: Sequence[Query]) -> Sequence[list[QueryScores] | Exception]:
        self.batches.append(len(queries))
        self.inside.set()
        assert self.gate.wait(60)
        return [self._one(query) for query in queries]

    def _one(self, query: Query) -> list[QueryScores] | Exception:
        for word, error in ERRORS.items():
            if word in query.text:
                return error
        self.contexts.append(query.context)
        found = self.scores(["bad" in query.text], len(self.query_categories), named="soup" in query.text)
        if len(query.text) > 200:
            return [QueryScores(found, 0, 200, True), QueryScores(found, 100, len(query.text), True)]
        return [QueryScores(found)]

    def scores(self, bad: Sequence[bool], n: int, named: bool = False) -> Scores:
        severity = np.array([[0.1, 0.2, 0.7] if each else [2 / 3, 1 / 6, 1 / 6] for each in bad], np.float32)
        category = np.tile(np.linspace(1, 0, n, dtype=np.float32), (len(bad), 1))
        windowed = np.array(bad, bool)
        return Scores(
            severity, category, np.full(len(bad), 0.25, np.float32), windowed, (Category.pii,) if named else None
        )

    def open(self, context: Sequence[Message]) -> _Session:
        if self.n_open >= self.max_sessions:
            raise Overloaded("no room")
        if any("refuse" in message.said for message in context):
            raise ValueError("refused")
        self.n_open += 1
        return _Session(self)


ERRORS: dict[str, Exception] = {
    "boom": RuntimeError("boom", 3),
    "full": Overloaded("too much"),
    "late": TimeoutError("the model's own"),
    "strange": Strange("what is it"),
    "closed": ModelError("gone"),
    "key": KeyError("a key"),
}


class _Session(SimpleSession):
    def __init__(self, model: Stub):
        self._model, self._seen, self.is_closed = model, "", False

    def append(self, tokens: Tokens) -> Scores:
        if "boom" in tokens.text:
            raise RuntimeError("boom")
        found = []
        for i, start in enumerate(tokens.starts):
            self._seen += tokens.text[start - tokens.starts[0] : tokens.end_of(i) - tokens.starts[0]]
            found.append("bad" in self._seen)
        return self._model.scores(found, 8)

    def peek(self, tokens: Tokens) -> Scores:
        before = self._seen
        try:
            return self.append(tokens)
        finally:
            self._seen = before

    def mark(self) -> str:
        return self._seen

    def rewind(self, mark: str) -> None:
        self._seen = mark

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._model.n_open -= 1


@contextmanager
def served(model: StreamModel, base: Path) -> Iterator[Path]:
    """A thread in place of the process; ends with its last connection."""
    folder = folder_of(base, "stub", {})
    folder.mkdir(parents=True, mode=0o700)
    base.chmod(0o700)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / SOCKET))
    listening.listen(16)
    held, first = socket.socketpair()
    server = Server(model, listening, folder)
    thread = threading.Thread(target=server.run, args=(first,), daemon=True)
    thread.start()
    try:
        yield base
    finally:
        held.close()
        thread.join(60)
        assert not thread.is_alive()
        assert not folder.exists()


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("p")


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProcessModel, Stub]]:
    """The same for many examples."""
    stub = Stub()
    with served(stub, tmp_path_factory.mktemp("p")) as base:
        model = load("stub", {}, base)
        yield model, stub
        model.close()


@pytest.fixture
def far(base: Path) -> Iterator[tuple[ProcessModel, Stub]]:
    """A model across a socket, and the stub that is there."""
    stub = Stub()
    with served(stub, base):
        model = load("stub", {}, base)
        try:
            yield model, stub
        finally:
            stub.gate.set()
            model.close()


def sent(model: ProcessModel) -> bool:
    """Whether all that was laid down for the other side is on its way."""
    link = model._link
    return eventually(lambda: link._is_asleep and not link._outbox and not (link._connection and link._connection.out))


def guards(model: StreamModel, **options: Any) -> tuple[Guard, Guard]:
    """The same guard over a model that is far, and over one that is here."""
    return Guard(model, **options), Guard(Stub(), **options)


# -- the same


def test_all_that_a_guard_asks_of_a_model_is_the_same(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    assert isinstance(model.tokenizer, WordTokenizer)
    assert (model.name, model.in_flight, model.stride) == ("stub", stub.in_flight, stub.stride)
    assert (model.query_categories, model.response_categories) == (stub.query_categories, stub.response_categories)
    for stage in Stage:
        assert model.limits(stage) == stub.limits(stage)
        assert model.with_threshold(0.3).limits(stage) == stub.with_threshold(0.3).limits(stage)


def test_checks_and_batches_give_the_same_verdicts(far: tuple[ProcessModel, Stub]) -> None:
    here = Stub()
    texts: list[Any] = ["fine", "bad", "bad soup", "x" * 300, "\ud800 lone", "naïve ☕ bad", "", " "]
    texts.append([{"role": "user", "content": "hi", "attached": []}, {"role": "assistant", "content": "bad<think>"}])
    cases: tuple[dict[str, Any], ...] = ({}, {"threshold": 0.3}, {"threshold": 0.2, "policy": "strict"})
    for options in cases:
        mine, other = Guard(far[0], **options), Guard(here, **options)
        for stage in (None, "document", "response"):
            assert mine.check_batch(texts, stage=stage) == other.check_batch(texts, stage=stage)
        assert [mine.check(text) for text in texts] == other.check_batch(texts)
        assert asyncio.run(mine.acheck_batch(texts)) == other.check_batch(texts)
        assert mine.decide_batch(["boom", "fine"])[0].error == other.decide_batch(["boom", "fine"])[0].error


def test_scores_arrive_to_the_last_bit_and_messages_whole(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    context = (Message("user", "a", "b", ("c",), ("image",), ()), Message("tool", "e"))
    asked = [Query("bad", context=context), Query("soup " * 50, Stage.document)]
    for found, own in zip(ask(model, asked), ask(Stub(), asked), strict=True):
        assert len(found) == len(own)
        for a, b in zip(found, own, strict=True):
            assert (a.start, a.end, a.windowed, a.scores.named) == (b.start, b.end, b.windowed, b.scores.named)
            for name in ("severity", "category", "refusal", "windowed"):
                x, y = getattr(a.scores, name), getattr(b.scores, name)
                assert x.dtype == y.dtype
                assert x.tobytes() == y.tobytes()
    assert stub.contexts[0] == context


def shown(events: Sequence[Any]) -> str:
    text = ""
    for event in events:
        if event.kind == "text":
            text += event.text
        elif event.kind == "retract":
            text = text[: -event.n_chars]
    return text


def play(guard: Guard, pieces: Sequence[str]) -> Any:
    seen: list[Any] = []
    with guard.stream("hi") as stream:
        for piece in pieces:
            seen += stream.feed(piece)
        seen += stream.finish()
    return shown(seen), stream.verdict, stream.released, stream.withheld


async def aplay(guard: Guard, pieces: Sequence[str]) -> Any:
    seen: list[Any] = []
    async with guard.astream("hi") as stream:
        for piece in pieces:
            seen += await stream.feed(piece)
        seen += await stream.finish()
        inner = stream._stream
    return shown(seen), inner.verdict, inner.released, inner.withheld


CASES: tuple[dict[str, Any], ...] = (
    {}, {"holdback": 0, "debounce": 1}, {"policy": "loose", "threshold": 0.3}, {"timeout": 60},
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12), st.sampled_from(CASES), st.randoms(use_true_random=False))
def test_streams_give_the_same_in_any_pieces(
    lent: tuple[ProcessModel, Stub], words: list[str], options: dict[str, Any], rng: random.Random
) -> None:
    mine, other = guards(lent[0], **options)
    text, pieces = "".join(words), []
    while text:
        n = rng.randint(1, 9)
        pieces.append(text[:n])
        text = text[n:]
    assert play(mine, pieces) == play(other, ["".join(pieces)]) == asyncio.run(aplay(mine, pieces))
    assert eventually(lambda: lent[1].n_open == 0)


def test_many_streams_are_fed_together_and_keep_their_order(far: tuple[ProcessModel, Stub]) -> None:
    mine, other = guards(far[0])
    ends = []
    for guard in (mine, other):
        streams = [guard.stream("hi") for _ in range(30)]
        for i in range(12):
            guard.feed_many([(stream, WORDS[(n + i) % len(WORDS)]) for n, stream in enumerate(streams)])
        ends.append([(stream.verdict, stream.released) for stream in streams])
        for stream in streams:
            stream.close()
    assert ends[0] == ends[1]


def test_pieces_of_one_response_are_judged_in_order_however_many_wait(far: tuple[ProcessModel, Stub]) -> None:
    model = far[0]
    session = model.open([])
    pieces = [Append(session, Tokens(Stage.response, [0], [0], "bad " if i == 50 else "fine ", 5)) for i in range(100)]
    found = ask_all(model, pieces)
    assert [scores.severity[0, 2] > 0.5 for scores in found] == [i >= 50 for i in range(100)]


def test_a_response_goes_back_and_a_trial_leaves_nothing(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    session = model.open([Message("user", "hi")])
    good, bad = Tokens(Stage.response, [0], [0], "fine ", 5), Tokens(Stage.response, [0], [5], "bad ", 9)
    assert append(model, session, good).severity[0, 2] < 0.5
    mark = session.mark()
    assert peek(model, session, bad).severity[0, 2] > 0.5
    assert append(model, session, good).severity[0, 2] < 0.5
    assert append(model, session, bad).severity[0, 2] > 0.5
    for _ in range(2):
        session.rewind(mark)
        assert append(model, session, good).severity[0, 2] < 0.5
    session.close()
    session.close()
    assert eventually(lambda: stub.n_open == 0)


# -- errors, deadlines, cancellations


@pytest.mark.parametrize("word", ERRORS)
def test_a_model_error_comes_back_as_itself(far: tuple[ProcessModel, Stub], word: str) -> None:
    with pytest.raises(NotJudged) as failed:
        Guard(far[0]).check(word)
    cause, own = failed.value.__cause__, ERRORS[word]
    if isinstance(own, Strange):  # unknown here: of a known kind, and named
        assert type(cause) is Exception
        assert str(cause) == "Strange: what is it"
    else:
        assert (type(cause), str(cause)) == (type(own), str(own))
    assert Guard(far[0]).decide(word).overloaded is isinstance(own, Overloaded)
    assert Guard(far[0]).check("bad").severity is Severity.unsafe


def test_a_piece_that_fails_ends_its_stream_alone(far: tuple[ProcessModel, Stub]) -> None:
    guard = Guard(far[0])
    with guard.stream("hi") as stream, guard.stream("hi") as other:
        with pytest.raises(NotJudged, match="RuntimeError: boom"):
            stream.feed("fine boom fine ")
        assert stream.released == 0
        other.feed("fine ")
        other.finish()
        assert other.released == 5
    with pytest.raises(NotJudged, match="refused"), guard.stream("refuse this") as stream:
        stream.feed("some words that are not judged ")


def test_as_many_streams_are_open_as_may_be_for_one_and_for_several(base: Path) -> None:
    stub = Stub()
    stub.max_sessions = 2
    with served(stub, base):
        first, second = load("stub", {}, base), load("stub", {}, base)
        one = Guard(first).stream("hi")
        two = Guard(first).stream("hi")
        assert Guard(first).check("fine").severity is Severity.safe  # they are there
        with pytest.raises(NotJudged, match="Overloaded"):
            Guard(first).stream("hi")  # known here
        with pytest.raises(NotJudged) as refused, Guard(second).stream("hi") as stream:
            stream.feed("some words ")  # known there
        assert isinstance(refused.value.__cause__, Overloaded)
        one.close()
        assert play(Guard(first), ["fine "])[2] == 5
        two.close()
        assert eventually(lambda: stub.n_open == 0)  # by another connection than the next one comes by
        assert play(Guard(second), ["fine "])[2] == 5
        first.close()
        second.close()


def test_what_comes_too_late_is_not_judged_and_not_worked_on(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    stub.gate.clear()
    held = model.submit([Query("first")])
    assert stub.inside.wait(60)
    guard = Guard(model, timeout=0.05)
    decision = guard.decide("fine")
    assert (decision.judged, decision.action.value) == (False, "block")
    assert not asyncio.run(guard.adecide("fine")).judged
    (late,) = model.submit([Query("fine")], time.monotonic() - 1)
    assert sent(model)
    stub.gate.set()
    with pytest.raises(TimeoutError):
        late.result(60)
    assert held[0].result(60)
    assert guard.check("bad").severity is Severity.unsafe
    assert sum(stub.batches) == 2  # the first, and the last


def test_what_was_cancelled_is_not_worked_on(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    stub.gate.clear()
    held = model.submit([Query("first")])
    assert stub.inside.wait(60)

    async def storm() -> None:
        tasks = [asyncio.create_task(Guard(model).acheck(f"text {i}")) for i in range(50)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(storm())
    assert sent(model)
    (after,) = model.submit([Query("bad")])
    stub.gate.set()
    assert held[0].result(60)
    assert after.result(60)[0].scores.severity[0, 2] > 0.5
    assert sum(stub.batches) == 2


def test_what_waits_together_crosses_and_is_judged_together(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    stub.gate.clear()
    futures = model.submit([Query("first")])
    assert stub.inside.wait(60)
    threads = [threading.Thread(target=lambda: futures.extend(model.submit([Query("x")] * 5))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(futures) == 101
    assert sent(model)
    stub.gate.set()
    assert all(future.result(60) for future in futures)
    assert stub.batches == [1, 100]


def test_what_cannot_be_sent_fails_alone(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    stub.gate.clear()
    model.submit([Query("first")])
    assert stub.inside.wait(60)
    bad, good = model.submit([Query(object())]), model.submit([Query("fine")])  # type: ignore[arg-type]
    stub.gate.set()
    assert isinstance(bad[0].exception(30), TypeError)
    assert good[0].result(60)


def test_a_session_of_another_model_is_refused(far: tuple[ProcessModel, Stub]) -> None:
    session = Stub().open([])
    with pytest.raises(TypeError, match="another model"):
        append(far[0], session, Tokens(Stage.response, [0], [0], "x", 1))


# -- peers


def test_who_closes_is_told_and_others_go_on(base: Path) -> None:
    stub = Stub()
    with served(stub, base):
        first, second = load("stub", {}, base), load("stub", {}, base)
        stream = Guard(first).stream("hi")
        stub.gate.clear()
        held = first.submit([Query("first")])
        assert stub.inside.wait(60)
        other = second.submit([Query("other")])
        closing = threading.Thread(target=first.close)
        closing.start()
        assert isinstance(held[0].exception(30), GuardkitError)
        stub.gate.set()
        closing.join(60)
        assert other[0].result(60)
        with pytest.raises(GuardkitError, match="was closed"):
            first.submit([Query("x")])
        with pytest.raises(NotJudged, match="was closed"):
            stream.feed("some words ")
        assert eventually(lambda: stub.n_open == 0)
        second.close()


def test_a_model_that_is_dropped_leaves(base: Path) -> None:
    stub = Stub()
    with served(stub, base):
        guard = Guard(load("stub", {}, base).with_threshold(0.3))
        assert guard.check("bad").severity is Severity.unsafe
        stream = guard.stream("hi")
        del guard
        stream.feed("fine ")
        stream.finish()
        del stream
    # `served` has seen it end


def test_a_response_that_is_dropped_is_closed(far: tuple[ProcessModel, Stub]) -> None:
    model, stub = far
    stream = Guard(model).stream("hi")
    stream.feed("fine ")
    assert stub.n_open == 1
    del stream
    assert eventually(lambda: stub.n_open == 0)


def test_a_place_that_outlives_its_response_keeps_no_model(base: Path) -> None:
    stub = Stub()
    with served(stub, base):
        session = load("stub", {}, base).open([Message("user", "hi")])
        mark = session.mark()
        session.close()
        assert eventually(lambda: stub.n_open == 0)  # so the way is asleep
        del session, mark
    # `served` has seen it end


def test_a_peer_that_speaks_something_else_is_left_and_others_go_on(far: tuple[ProcessModel, Stub], base: Path) -> None:
    path = folder_of(base, "stub", {}) / SOCKET
    for said in (b"GET / HTTP/1.1\r\n\r\n" * 10, frame([["run", "code"]]), frame([1]), frame({"a": 1}), b"\0" * 100):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.settimeout(30)
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        assert Guard(far[0]).check("bad").severity is Severity.unsafe


def test_a_folder_that_others_may_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(GuardkitError, match="of this user alone"):
        load("nano", {}, tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(GuardkitError, match="of this user alone"):
        load("nano", {}, tmp_path / "link")
    with pytest.raises(GuardkitError, match="too long"):
        load("nano", {}, tmp_path / ("x" * 100))


# -- the wire


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5), st.randoms(use_true_random=False))
def test_frames_are_found_in_any_cutting(bodies: list[bytes], rng: random.Random) -> None:
    numbers = [np.frombuffer(body[: len(body) // 4 * 4], np.float32) for body in bodies]
    data = b"".join(frame({"at": i, "text": "é\ud800"}, [each]) for i, each in enumerate(numbers))
    frames, found, at = Frames(), [], 0
    while at < len(data):
        n = rng.randint(1, 30)
        found += frames.push(data[at : at + n])
        at += n
    assert [rows for rows, _ in found] == [{"at": i, "text": "é\ud800"} for i in range(len(bodies))]
    assert [tail for _, tail in found] == [each.tobytes() for each in numbers]


@pytest.mark.parametrize("role", ROLES)
def test_a_message_crosses_whole(role: str) -> None:
    attached = (*Message("tool", "result").parts(), *Message("user", "", unjudgeable=("image",)).parts())
    message = Message(role, "say\ud800", "think", ("call", "another"), ("image",), attached)
    ((row, _),) = Frames().push(frame(message_row(message)))
    assert message_of(row) == message


@pytest.mark.parametrize("early", [False, True])
def test_a_query_crosses_whole(early: bool) -> None:
    query = Query("text", Stage.document, (Message("user", "hi"),), early)
    ((row, _),) = Frames().push(frame(query_row(query)))
    assert query_of(row) == query


def test_all_that_works_and_models_have_crosses() -> None:
    """Who adds to these must say how it crosses (`wire.py`)."""
    known = {
        Query: "text stage context early",
        Append: "session tokens keep",
        Tokens: "stage ids starts text end",
        Scores: "severity category refusal windowed named",
        QueryScores: "scores start end windowed",
        Limits: "unsafe flagged categories",
        Message: "role content reasoning tool_calls unjudgeable attached",
        Part: "stage text what",
    }
    for kind, names in known.items():
        assert " ".join(each.name for each in dataclasses.fields(kind)) == names
    own = {"threshold", "quick", "source"}  # of each side by itself
    attributes = {name for name in StreamModel.__annotations__ if not name.startswith("_")}
    said = {"name", "tokenizer", "query_categories", "response_categories", "coverage"}
    assert attributes - own - said == set(wire._SAME)


def test_scores_that_are_no_numbers_arrive_as_such() -> None:
    """So that they are refused where they are looked at."""
    strange = np.array([[np.nan, np.inf, -0.0]], np.float32)
    kept: list[Any] = []
    row = result_row(Scores(strange, strange), kept)
    ((row, tail),) = Frames().push(frame(row, kept))
    found = result_of(row, Numbers(tail))
    assert found.severity.tobytes() == strange.tobytes()
    with pytest.raises(ValueError, match="not finite"):
        found.check(1)
    with pytest.raises(ValueError, match="buffer"):  # fewer than were promised
        result_of(row, Numbers(tail[:-4]))


def test_errors_of_every_kind_cross() -> None:
    from guardkit import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, GuardkitError)]
    assert len(kinds) > 10
    for kind in kinds:
        if kind.__name__ == "GuardViolation":  # of a policy, which is not there
            continue
        made = kind("what", "extra") if kind.__name__ == "MissingExtra" else kind("what")
        ((row, _),) = Frames().push(frame(error_row(made)))
        found = error_of(row)
        assert (type(found), str(found), vars(found)) == (kind, str(made), vars(made))
    for error in (OSError(2, "no file"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), KeyError("k")):
        ((row, _),) = Frames().push(frame(error_row(error)))
        assert str(error) in str(error_of(row)) or str(error) == str(error_of(row))
