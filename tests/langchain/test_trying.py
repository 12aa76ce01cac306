"""What is tried again or handed to a fallback: faults, never a violation; and no run of it shows a blocked prompt."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool

from guardkit import Guard, GuardViolation
from langchain_guardkit import GuardedChatModel, GuardedTool, GuardRetriever, GuardRunnable
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, make_guard

QUICK: Any = {"wait_exponential_jitter": False, "stop_after_attempt": 3}


class Failing(ScriptedModel):
    """A provider that is down."""

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        self._asked.append([])
        raise ConnectionError("down")

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        raise ConnectionError("down")
        yield

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise ConnectionError("down")
        yield


class Runs(BaseCallbackHandler):
    """All that the runs of a chain show."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def _see(self, *args: Any, **kwargs: Any) -> None:
        self.seen += [*args[1:], kwargs.get("inputs")]

    on_chain_start = on_chat_model_start = on_tool_start = _see

    def _end(self, *args: Any, **kwargs: Any) -> None:
        self.seen += args

    on_chain_end = on_chain_error = on_llm_end = on_llm_error = _end


def model(*replies: str, behavior: Any = "error", kind: Any = ScriptedModel) -> GuardedChatModel:
    scripted = kind(replies=[AIMessage(text) for text in replies or ("fine",)])
    return GuardedChatModel(scripted, make_guard(), exit_behavior=behavior, violation_message=VIOLATION)


def ways(part: Any, config: Any = None) -> list[Callable[[str], Any]]:
    async def chunks(text: str) -> list[Any]:
        return [chunk async for chunk in part.astream(text, config)]

    return [
        lambda text: part.invoke(text, config),
        lambda text: asyncio.run(part.ainvoke(text, config)),
        lambda text: part.batch([text], config),
        lambda text: asyncio.run(part.abatch([text], config)),
        lambda text: list(part.stream(text, config)),
        lambda text: asyncio.run(chunks(text)),
    ]


GUARDED: dict[str, Callable[[GuardedChatModel], Any]] = {
    "a model": lambda m: m,
    "with tools": lambda m: m.bind_tools([looking_tool()]),
    "bound twice": lambda m: m.bind(stop=["x"]).bind(a=1),
    "with a config": lambda m: m.with_config(tags=["x"]),
    "with a parser": lambda m: m | StrOutputParser(),
    "retried": lambda m: m.bind(stop=["x"]).with_retry(**QUICK),
    "behind a guard": lambda m: make_guard() | m,
    "around a chain": lambda m: GuardRunnable(m | StrOutputParser(), make_guard()),
    "a tool": lambda m: GuardedTool(echo, make_guard(), exit_behavior="error"),
    "a retriever": lambda m: GuardRetriever(RunnableLambda(found), make_guard(), on_unsafe="error"),
}


def found(text: str) -> list[Document]:
    return [Document(text)]


@tool
def echo(text: str) -> str:
    """Say it again."""
    return text


@tool
def shout(text: str) -> str:
    """Say something else."""
    return BAD


@tool
def fail(text: str) -> str:
    """Fail."""
    raise ConnectionError("down")


@pytest.mark.parametrize("part", GUARDED)
def test_no_fallback_answers_what_was_stopped(part: str) -> None:
    asked: list[Any] = []
    fallback = RunnableLambda(lambda value: asked.append(value) or "instead")
    whole = GUARDED[part](model("fine", "fine")).with_fallbacks([fallback])
    for call in ways(whole):
        with pytest.raises(GuardViolation) as caught:
            call(BAD)
        check_no_trace(caught.value, "error")
    first, second = whole.batch([BAD, "ok"], return_exceptions=True)
    assert isinstance(first, GuardViolation)
    assert not isinstance(second, Exception)
    assert not asked


def test_a_fallback_for_violations_is_one_where_it_is_asked_for() -> None:
    instead = RunnableLambda(lambda _: "instead")
    assert model().with_fallbacks([instead], exceptions_to_handle=(GuardViolation,)).invoke(BAD) == "instead"


def test_fallback_models_of_a_guarded_model_are_guarded_like_it() -> None:
    bad = ScriptedModel(replies=[reply(BAD)])
    down = model(behavior="end", kind=Failing)
    pairs: list[tuple[Any, Any]] = [
        (down, bad),
        (down.bind(stop=["x"]), bad.bind(stop=["x"])),
        (down | StrOutputParser(), bad | StrOutputParser()),
        (GuardRunnable(down.inner, make_guard(), exit_behavior="end", violation_message=VIOLATION), bad),
    ]
    for part, fallback in pairs:
        for call in ways(part.with_fallbacks([fallback])):
            said = call("x")
            check_no_trace(said, "answers")
            assert VIOLATION in str(said)


def test_what_a_config_puts_in_a_guarded_parts_place_is_guarded_like_it() -> None:
    bad, field = ScriptedModel(replies=[reply(BAD)]), ConfigurableField(id="which")
    guarded = model(behavior="end")
    for choices in (
        guarded.configurable_alternatives(field, default_key="a", b=bad, c=lambda: bad.bind(stop=["x"])),
        guarded.bind(stop=["x"]).configurable_alternatives(field, default_key="a", b=bad.bind(stop=["y"])),
        (guarded | StrOutputParser()).configurable_alternatives(field, default_key="a", b=bad | StrOutputParser()),
        GuardRetriever(RunnableLambda(found), make_guard()).configurable_alternatives(
            field, default_key="a", b=RunnableLambda(lambda _: [Document(BAD)])
        ),
        GuardedTool(echo, make_guard()).configurable_alternatives(field, default_key="a", b=shout),
    ):
        for which in ("b", "c" if choices.alternatives.keys() > {"b"} else "b"):
            for call in ways(choices, {"configurable": {"which": which}}):
                check_no_trace(call("hello"), "what it gives")
        assert choices.invoke("hello")


def test_fallbacks_of_retrievers_and_tools_are_guarded_like_them() -> None:
    retriever = GuardRetriever(RunnableLambda(lambda _: 1 / 0), make_guard())
    assert retriever.with_fallbacks([RunnableLambda(lambda _: [Document(BAD), Document("fine")])]).invoke("x") == [
        Document("fine")
    ]
    failing = GuardedTool(fail, make_guard()).with_fallbacks([shout])
    check_no_trace(failing.invoke("x"), "the fallback tool's output")


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
def test_no_run_of_a_retry_or_a_fallback_shows_a_blocked_prompt(behavior: Any) -> None:
    guarded = model(behavior=behavior)
    step = GuardRunnable(make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
    around = GuardRunnable(guarded | StrOutputParser(), make_guard(), exit_behavior=behavior)
    for part in (guarded, guarded.bind(stop=["x"]), step | guarded, step | guarded | StrOutputParser(), around):
        for whole in (part.with_retry(**QUICK), part.with_fallbacks([guarded])):
            runs = Runs()
            for call in ways(whole, {"callbacks": [runs]}):
                try:
                    check_no_trace(call(BAD), "answers")
                except GuardViolation:
                    assert behavior == "error"
            assert runs.seen
            check_no_trace(runs.seen, "runs")


def test_a_chain_that_is_piped_is_like_one_that_is_joined() -> None:
    guarded = model(behavior="end")
    step = GuardRunnable(make_guard(), exit_behavior="end", violation_message=VIOLATION)
    for whole in (step.pipe(guarded, StrOutputParser(), name="it"), (step | guarded).pipe(StrOutputParser())):
        runs = Runs()
        for call in ways(whole, {"callbacks": [runs]}):
            check_no_trace(call(BAD), "answers")
        check_no_trace(runs.seen, "runs")
    assert step.pipe(guarded, name="it").name == "it"
    scripted = ScriptedModel(replies=[reply(BAD)])
    with pytest.raises(GuardViolation):
        GuardedChatModel(scripted, make_guard()).pipe(StrOutputParser()).with_retry(**QUICK).invoke("x")
    assert len(scripted.asked) == 1


def test_faults_are_still_tried_again_and_handed_on() -> None:
    down = Failing(replies=[reply(SAFE)])
    guarded = GuardedChatModel(down, make_guard())
    for part in (guarded, guarded.bind(stop=["x"]), make_guard() | guarded, GuardRunnable(guarded, make_guard())):
        down.asked.clear()
        with pytest.raises(ConnectionError):
            part.with_retry(**QUICK).invoke("go")
        assert len(down.asked) == 3
        assert part.with_fallbacks([RunnableLambda(lambda _: "instead")]).invoke("go") == "instead"


def test_structured_output_is_not_tried_again() -> None:
    scripted = ScriptedModel(replies=[reply(query=BAD)])
    chain: Any = GuardedChatModel(scripted, make_guard()).bind_tools([looking_tool()]) | RunnableLambda(lambda m: m)
    with pytest.raises(GuardViolation):
        chain.with_retry(**QUICK).invoke("x")
    assert len(scripted.asked) == 1


def test_they_are_saved_as_what_they_are_like() -> None:
    guarded = model()
    for part, name in (
        (guarded.bind(stop=["x"]), "RunnableBinding"),
        (guarded.with_retry(), "RunnableRetry"),
        (guarded.with_fallbacks([guarded]), "RunnableWithFallbacks"),
    ):
        assert dumpd(part)["id"][-1] == name
    real = GuardedChatModel(FakeListChatModel(responses=["fine"]), Guard.load())
    for part in (real.bind(stop=["x"]), real.with_retry(), real.with_fallbacks([real])):
        assert pickle.loads(pickle.dumps(part)).invoke("hello").content == "fine"
