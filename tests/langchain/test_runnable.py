"""`GuardRunnable` in chains: what it takes and gives, batches, verdicts on runs, and LangChain's own ways with it."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from pydantic import BaseModel

from guardkit import GuardkitError, GuardViolation
from langchain_guardkit import GuardedChatModel, GuardRunnable
from tests.langchain.scripted import ScriptedModel, reply
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, make_guard


class Shape(BaseModel):
    text: str


@dataclasses.dataclass
class Data:
    text: str


def values(text: str) -> dict[str, Any]:
    return {
        "string": text,
        "string prompt": StringPromptValue(text=text),
        "chat prompt": ChatPromptValue(messages=[SystemMessage(SAFE), HumanMessage(text)]),
        "message": HumanMessage(text, id="7"),
        "answer": AIMessage(text, additional_kwargs={"reasoning_content": SAFE}),
        "reasoning": AIMessage("fine", additional_kwargs={"reasoning_content": text}),
        "blocks": AIMessage([{"type": "text", "text": text}]),
        "tool call": AIMessage("", tool_calls=[{"name": "f", "args": {"a": text}, "id": "1"}]),
        "messages": [HumanMessage("hello"), AIMessage(text)],
        "dict": {"question": text, "count": 3, "history": [HumanMessage("hello")]},
        "nested": {"a": [{"b": (text, None)}]},
        "document": Document(text, metadata={"source": "shelf"}),
        "documents": [Document(SAFE), Document(text)],
        "metadata": Document(SAFE, metadata={"title": text}),
        "model": Shape(text=text),
        "dataclass": Data(text),
    }


@pytest.mark.parametrize("kind", values(SAFE))
def test_what_is_allowed_comes_back_as_it_was(kind: str) -> None:
    value = values(SAFE)[kind]
    guard = GuardRunnable(make_guard())
    assert guard.invoke(value) is value
    assert asyncio.run(guard.ainvoke(value)) is value
    assert guard.batch([value, value]) == [value, value]
    streamed = list(guard.stream(value))
    assert (["".join(streamed)] if isinstance(value, str) else streamed) == [value]


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("kind", values(SAFE))
def test_what_is_unsafe_does_not(kind: str, behavior: Any) -> None:
    value = values(BAD)[kind]
    guard = GuardRunnable(make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
    calls = [
        lambda: guard.invoke(value),
        lambda: asyncio.run(guard.ainvoke(value)),
        lambda: guard.batch([value])[0],
        lambda: list(guard.stream(value)),
    ]
    for call in calls:
        if behavior == "error":
            with pytest.raises(GuardViolation):
                call()
        else:
            result = call()
            check_no_trace(result, kind)
            assert VIOLATION in str(result)


def test_replace_leaves_the_rest_and_end_leaves_nothing_else() -> None:
    value = [HumanMessage("hello", id="1"), HumanMessage(BAD, id="2")]
    replaced = GuardRunnable(make_guard(), exit_behavior="replace", violation_message=VIOLATION).invoke(value)
    ended = GuardRunnable(make_guard(), exit_behavior="end", violation_message=VIOLATION).invoke(value)
    assert [(m.content, m.id) for m in replaced] == [("hello", "1"), (VIOLATION, "2")]
    assert [m.content for m in ended] == [VIOLATION]


def test_a_policys_redact_replaces_whatever_the_exit_behaviour() -> None:
    guard = make_guard(policy={"rules": [{"severity": "unsafe", "action": "redact"}]})
    runnable = GuardRunnable(guard, exit_behavior="error", violation_message=VIOLATION)
    assert runnable.invoke(BAD) == VIOLATION
    assert (
        GuardedChatModel(ScriptedModel(replies=[reply(BAD)]), guard, violation_message=VIOLATION).invoke("x").content
        == VIOLATION
    )


def test_a_batch_is_one_batch_and_its_items_stand_alone() -> None:
    guard = make_guard()
    runnable = GuardRunnable(guard, stage="prompt")
    assert runnable.batch(["a", "b", "c"]) == ["a", "b", "c"]
    assert guard.model.calls == 1
    for results in (
        runnable.batch(["a", BAD, "c"], return_exceptions=True),
        asyncio.run(runnable.abatch(["a", BAD, "c"], return_exceptions=True)),
    ):
        assert (results[0], results[2]) == ("a", "c")
        assert isinstance(results[1], GuardViolation)
    with pytest.raises(GuardViolation):
        runnable.batch(["a", BAD])
    assert runnable.batch([]) == []


def test_runs_carry_the_verdict() -> None:
    guard = GuardRunnable(make_guard())
    for text, action in (("fine", "allow"), ("hmm", "flag"), (BAD, "block")):
        for call in ("invoke", "stream", "batch"):
            collector = RunCollectorCallbackHandler()
            config: Any = {"callbacks": [collector], "tags": ["mine"], "metadata": {"mine": 1}}
            try:
                if call == "stream":
                    list(guard.stream(text, config))
                else:
                    getattr(guard, call)([text] if call == "batch" else text, config)
            except GuardViolation:
                assert action == "block"
            (run,) = collector.traced_runs
            assert run.metadata["guardkit"]["action"] == action
            assert run.metadata["mine"] == 1
            assert {"mine", f"guardkit:{action}"} <= set(run.tags or ())


def test_langchains_own_ways_with_a_runnable() -> None:
    guard = GuardRunnable(make_guard())
    model = ScriptedModel(replies=[reply(SAFE)])
    assert guard.with_fallbacks([RunnableLambda(lambda _: "instead")]).invoke(BAD) == "instead"
    calls = []

    def count(value: str) -> str:
        calls.append(value)
        return value

    with pytest.raises(GuardViolation):
        (RunnableLambda(count) | guard).with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke(BAD)
    assert calls == [BAD, BAD]
    with pytest.raises(GuardViolation, match="document"):
        guard.bind(stage="document").invoke(BAD)
    chain = ChatPromptTemplate.from_template("{q}") | guard | model | guard | StrOutputParser()
    assert chain.invoke({"q": "hello"}) == SAFE
    drawn = chain.get_graph().draw_mermaid()
    assert drawn.count("(guard)") == 2
    assert '"not_implemented"' in dumps(chain)
    assert guard.with_config(run_name="mine").invoke("fine") == "fine"
    assert "fake" in repr(guard)
    assert list((RunnableLambda(lambda x: x) | guard).map().batch([["a"], ["b"]])) == [["a"], ["b"]]


def test_streams_of_other_values_are_judged_when_they_are_complete() -> None:
    for text in ("fine", BAD):
        model = ScriptedModel(replies=[reply(f'{{"a": "{text}", "b": 1}}')], size=3)
        chain = model | JsonOutputParser() | GuardRunnable(make_guard(), exit_behavior="replace")
        assert list(chain.stream("x")) == [{"a": text if text == "fine" else "This content was withheld by a safety "
                                            "guard (prompt: Violent).", "b": 1}]  # fmt: skip
        parallel = RunnableParallel(one=model | StrOutputParser(), two=RunnableLambda(lambda _: 2))
        streamed = list((parallel | GuardRunnable(make_guard(), exit_behavior="replace")).stream("x"))
        assert len(streamed) == 1
        check_no_trace(streamed, "parallel")


def test_the_core_object_in_a_chain() -> None:
    guard = make_guard()
    model = ScriptedModel(replies=[reply(SAFE)], size=3)
    chain = guard | model | guard.as_runnable(exit_behavior="end")
    assert "".join(c.content for c in chain.stream("hello")) == SAFE
    with pytest.raises(GuardViolation):
        (guard | model).invoke(BAD)
    with pytest.raises(TypeError, match="as_runnable"):
        (model | guard).invoke("hello")  # type: ignore[operator]
    with pytest.raises(TypeError, match="as_runnable"):
        list((model | guard).stream("hello"))  # type: ignore[operator]


def test_mistakes_are_named() -> None:
    with pytest.raises(GuardkitError, match="unknown stage 'answer'"):
        GuardRunnable(make_guard(), stage="answer")
    with pytest.raises(GuardkitError, match="unknown exit_behavior"):
        GuardRunnable(make_guard(), exit_behavior="stop")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Guard"):
        GuardRunnable("nano")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="chat model"):
        GuardedChatModel(ScriptedModel(replies=[]).bind(stop=["x"]), make_guard())  # type: ignore[arg-type]


def test_importing_the_core_loads_no_framework_and_the_package_only_what_it_uses() -> None:
    script = (
        "import sys, guardkit; from guardkit import Guard; assert 'langchain_core' not in sys.modules\n"
        "import langchain_guardkit; assert 'langchain_core' not in sys.modules\n"
        "from langchain_guardkit import GuardRunnable, GuardedChatModel, GuardRetriever, guard_node, GuardedTool\n"
        "assert 'langchain' not in sys.modules and 'langgraph' not in sys.modules"
    )
    import os
    from pathlib import Path

    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'integrations'}"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_export_exists() -> None:
    import langchain_guardkit

    for name in langchain_guardkit.__all__:
        assert getattr(langchain_guardkit, name).__doc__
    assert sorted(langchain_guardkit.__all__) == langchain_guardkit.__all__
