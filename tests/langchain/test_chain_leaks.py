"""The leak test for chains and for a chat model alone: `GuardedChatModel`, `GuardRunnable`, callbacks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from guardkit import GuardViolation
from langchain_guardkit import GuardedChatModel, GuardRunnable
from tests.langchain.scripted import MARKER, USAGE, ScriptedModel, reply, script_for
from tests.langchain.surfaces import CHAIN_SURFACES, WATCHED_SURFACES
from tests.leaks import BAD, FLAGGED, SAFE, SIZES, VIOLATION, Seen, check_no_trace, make_guard

HOLDBACK = 4
ALL = {**CHAIN_SURFACES, **WATCHED_SURFACES}
PROMPT = ChatPromptTemplate.from_messages([("human", "{question}")])


class Whole(ScriptedModel):
    """A model that does not stream."""

    _stream = BaseChatModel._stream
    _astream = BaseChatModel._astream


def model(stage: str, size: int, text: str = BAD, **fields: Any) -> ScriptedModel:
    return ScriptedModel(replies=script_for(stage, text)[1], size=size, **fields)


def run(surface: Any, chain: Any, behavior: str, value: Any) -> list[Any]:
    seen: list[Any] = []
    try:
        for item in surface(chain, value, {}):
            seen.append(item)
    except GuardViolation as violation:
        assert behavior == "error"
        check_no_trace(violation, "error")
    else:
        assert behavior != "error"
    return seen


@pytest.mark.parametrize("blocks", [False, True], ids=["text", "blocks"])
@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("stage", ["answer", "reasoning", "tool_call"])
@pytest.mark.parametrize("surface", ALL)
def test_a_guarded_model_leaks_on_no_surface(surface: str, stage: str, behavior: Any, blocks: bool) -> None:
    for size in SIZES:
        guard = make_guard(holdback=HOLDBACK)
        chain = PROMPT | GuardedChatModel(model(stage, size, blocks=blocks), guard, exit_behavior=behavior)
        seen = run(ALL[surface], chain, behavior, {"question": "hello"})
        check_no_trace(seen, f"{surface}, {size} characters a chunk")
        if behavior != "error":
            assert "withheld by a safety guard" in str(seen)


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("stage", ["answer", "reasoning", "tool_call"])
@pytest.mark.parametrize("surface", CHAIN_SURFACES)
def test_a_guard_after_a_model_leaks_nothing_into_what_the_chain_gives(surface: str, stage: str, behavior: Any) -> None:
    for size in SIZES:
        guard = make_guard(holdback=HOLDBACK)
        chain = PROMPT | model(stage, size) | GuardRunnable(guard, exit_behavior=behavior)
        check_no_trace(run(CHAIN_SURFACES[surface], chain, behavior, {"question": "hello"}), surface)


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("surface", CHAIN_SURFACES)
def test_a_guard_after_a_parser_leaks_nothing(surface: str, behavior: Any) -> None:
    for size in SIZES:
        guard = make_guard(holdback=HOLDBACK)
        chain = PROMPT | model("answer", size) | StrOutputParser() | GuardRunnable(guard, exit_behavior=behavior)
        check_no_trace(run(CHAIN_SURFACES[surface], chain, behavior, {"question": "hello"}), surface)


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("surface", CHAIN_SURFACES)
def test_an_unsafe_prompt_does_not_reach_the_model(surface: str, behavior: Any) -> None:
    inner = ScriptedModel(replies=[reply(SAFE)])
    chain = PROMPT | GuardRunnable(make_guard(), exit_behavior=behavior) | inner
    check_no_trace(run(CHAIN_SURFACES[surface], chain, behavior, {"question": BAD}), surface)
    check_no_trace(inner.asked, "what the model was asked")
    inner = ScriptedModel(replies=[reply(SAFE)])
    chain = PROMPT | GuardedChatModel(inner, make_guard(), exit_behavior=behavior)
    check_no_trace(run(CHAIN_SURFACES[surface], chain, behavior, {"question": BAD}), surface)
    check_no_trace(inner.asked, "what the model was asked")
    assert len(inner.asked) == (1 if behavior == "replace" else 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("surface", ["stream", "astream"])
@pytest.mark.parametrize("shape", ["guarded model", "guard after model", "guard after parser"])
@pytest.mark.parametrize("holdback", [0, 1, 4, 8])
def test_what_passes_is_complete_in_order_and_live(shape: str, surface: str, size: int, holdback: int) -> None:
    inner = model("answer", size, SAFE)
    guard = make_guard(holdback=holdback)
    chain: Runnable[Any, Any] = {
        "guarded model": PROMPT | GuardedChatModel(inner, guard),
        "guard after model": PROMPT | inner | GuardRunnable(guard),
        "guard after parser": PROMPT | inner | StrOutputParser() | GuardRunnable(guard),
    }[shape]
    seen, whole = Seen(), None
    for _, item in CHAIN_SURFACES[surface](chain, {"question": "hello"}, {}):
        seen.source = inner.source
        seen.add(item if isinstance(item, str) else item.content)
        whole = item if whole is None else whole + item
    seen.check_complete(SAFE)
    seen.check_live(holdback)
    if isinstance(whole, AIMessageChunk):
        assert (whole.id, whole.usage_metadata, whole.response_metadata) == ("reply-1", USAGE, MARKER)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_reasoning_answer_and_tool_calls_keep_their_places(size: int, blocks: bool) -> None:
    message = reply("the answer is fine", reasoning="thinking it over at some length", query="a query")
    plain = ScriptedModel(replies=[message], size=size, blocks=blocks)
    guarded = GuardedChatModel(ScriptedModel(replies=[message], size=size, blocks=blocks), make_guard())
    expected, got = list(plain.stream("hello")), list(guarded.stream("hello"))
    whole, expected_whole = got[0], expected[0]
    for chunk in got[1:]:
        whole = whole + chunk
    for chunk in expected[1:]:
        expected_whole = expected_whole + chunk
    assert whole.model_dump() == expected_whole.model_dump()


class Watcher(BaseCallbackHandler):
    """Keeps everything that LangChain tells a callback."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **_: Any) -> None:
        self.seen += [token, chunk]

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.seen.append(response)

    def on_llm_error(self, error: BaseException, *, response: Any = None, **_: Any) -> None:
        self.seen += [error, response]

    def on_tool_end(self, output: Any, **_: Any) -> None:
        self.seen.append(output)

    def on_chain_end(self, outputs: Any, **_: Any) -> None:
        self.seen.append(outputs)


@pytest.mark.parametrize("where", ["config", "model"])
@pytest.mark.parametrize("call", ["invoke", "stream", "ainvoke", "astream"])
@pytest.mark.parametrize("behavior", ["error", "end"])
def test_legacy_callbacks_see_judged_text_alone(where: str, call: str, behavior: Any) -> None:
    watcher = Watcher()
    inner = model("answer", 3, callbacks=[watcher] if where == "model" else None)
    guarded = GuardedChatModel(inner, make_guard(), exit_behavior=behavior)
    config: Any = {"callbacks": [watcher]} if where == "config" else {}

    async def arun() -> None:
        if call == "ainvoke":
            await guarded.ainvoke("hello", config)
        else:
            async for _ in guarded.astream("hello", config):
                pass

    try:
        if call == "invoke":
            guarded.invoke("hello", config)
        elif call == "stream":
            list(guarded.stream("hello", config))
        else:
            asyncio.run(arun())
    except GuardViolation:
        assert behavior == "error"
    assert watcher.seen
    check_no_trace(watcher.seen, "callbacks")


def test_a_model_built_from_runnables_passes_no_callbacks_on() -> None:
    """What the wrapped model runs by itself inherits the surrounding run's callbacks, unless they are taken away."""
    leaky = RunnableLambda(lambda _: BAD).with_config(run_name="inside")

    class Nested(ScriptedModel):
        def _next(self, messages: list[BaseMessage]) -> Any:
            return reply(leaky.invoke("x"))

    watcher = Watcher()
    guarded = GuardedChatModel(Nested(replies=[]), make_guard(), exit_behavior="end")
    chain = PROMPT | guarded
    chain.invoke({"question": "hello"}, {"callbacks": [watcher]})
    list(chain.stream({"question": "hello"}, {"callbacks": [watcher]}))
    check_no_trace(watcher.seen, "callbacks of what runs inside")


def test_every_candidate_is_judged() -> None:
    from langchain_core.outputs import ChatGeneration, ChatResult

    class Many(ScriptedModel):
        def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=r) for r in self.replies])

    many = Many(replies=[reply(SAFE), reply(BAD), reply(SAFE)])
    result = GuardedChatModel(many, make_guard(), exit_behavior="replace").generate([[]])
    check_no_trace(result, "candidates")
    assert [g.text == SAFE for g in result.generations[0]] == [True, False, True]


def test_a_short_holdback_is_declared_in_the_metadata() -> None:
    guarded = GuardedChatModel(model("answer", 1), make_guard(holdback=0), exit_behavior="end")
    chunks = list(guarded.stream("hello"))
    text = "".join(str(chunk.content) for chunk in chunks)
    declared = chunks[-1].response_metadata["guardkit"].get("shown_early", 0)
    # The first token of the flagged pair is not flagged by itself; the second went out as it came.
    assert text.count("¶") <= declared + len(FLAGGED.split()[0])
    assert "§" not in text


def test_metadata_that_repeats_the_text_goes_with_it() -> None:
    class Probabilities(ScriptedModel):
        def _text(self, message: Any, piece: str) -> AIMessageChunk:
            logprobs = {"content": [{"token": piece}]}
            return AIMessageChunk(content=piece, id=message.id, response_metadata={"logprobs": logprobs})

    for size in SIZES:
        inner = Probabilities(replies=[reply(BAD)], size=size)
        chain = inner | GuardRunnable(make_guard(), exit_behavior="end")
        check_no_trace(list(chain.stream("hello")), "log-probabilities")
        inner = Probabilities(replies=[reply(BAD)], size=size)
        check_no_trace(list(GuardedChatModel(inner, make_guard(), exit_behavior="end").stream("x")), "wrapped")


def test_escaped_tool_arguments_are_read_as_the_tool_will_read_them() -> None:
    escaped = "".join(f"\\u{ord(c):04x}" for c in FLAGGED)

    class Escaped(ScriptedModel):
        def _after(self, message: Any) -> Any:
            from langchain_core.messages.tool import tool_call_chunk

            for i in range(0, len(escaped), self.size):
                piece = escaped[i : i + self.size]
                call = tool_call_chunk(name="look" if i == 0 else None, args=piece, id="1", index=0)
                yield AIMessageChunk(content="", id=message.id, tool_call_chunks=[call])

    for size in SIZES:
        with pytest.raises(GuardViolation, match="tool_call"):
            list(GuardedChatModel(Escaped(replies=[reply("")], size=size), make_guard()).stream("hello"))


@pytest.mark.parametrize("surface", ALL)
def test_the_surfaces_see_what_they_are_there_to_see(surface: str) -> None:
    seen = list(ALL[surface](PROMPT | model("answer", 3), {"question": "hello"}, {}))
    with pytest.raises(AssertionError):
        check_no_trace(seen, "a bare model")


def test_violation_text_has_its_placeholders_filled() -> None:
    chain = model("answer", 200) | GuardRunnable(
        make_guard(), exit_behavior="replace", violation_message="{stage}/{severity}/{categories}"
    )
    assert chain.invoke("hello").content == "response/unsafe/Violent"
    assert VIOLATION not in chain.invoke("hello").content


def test_what_a_cache_holds_is_judged_each_time() -> None:
    from langchain_core.caches import InMemoryCache

    inner = model("answer", 7, cache=InMemoryCache())
    (PROMPT | inner).invoke({"question": "x"})  # fills it
    for _ in range(2):
        for behavior in ("end", "error"):
            guarded = GuardedChatModel(inner, make_guard(), exit_behavior=behavior)  # type: ignore[arg-type]
            check_no_trace(run(CHAIN_SURFACES["invoke"], PROMPT | guarded, behavior, {"question": "x"}), "cached")
    assert len(inner.asked) == 1


@pytest.mark.parametrize("of_the_application", [False, True])
@pytest.mark.parametrize("streams", [False, True])
def test_a_cache_keeps_what_passed_and_nothing_else(of_the_application: bool, streams: bool) -> None:
    from langchain_core.caches import InMemoryCache
    from langchain_core.globals import set_llm_cache

    cache = InMemoryCache()
    answers = ["fine", BAD, "never"]
    inner = (ScriptedModel if streams else Whole)(replies=[AIMessage(text) for text in answers])
    if not of_the_application:
        inner.cache = cache
    guarded = GuardedChatModel(inner, make_guard(), exit_behavior="end", violation_message=VIOLATION)
    set_llm_cache(cache if of_the_application else None)
    try:
        calls = [guarded.invoke, lambda text: asyncio.run(guarded.ainvoke(text))]
        if not streams:  # a model that does not stream answers a stream from its cache, too
            calls += [lambda text: next(iter(list(guarded.stream(text))))]
        assert [call("one").content for call in calls] == ["fine"] * len(calls)
        assert guarded.invoke("two").content == VIOLATION
    finally:
        set_llm_cache(None)
    assert len(cache._cache) == 1
    check_no_trace(cache._cache, "cache")


@pytest.mark.parametrize("call", ["invoke", "stream"])
@pytest.mark.parametrize("fence", ["", "```json\n"])
def test_an_answer_in_json_is_read_without_its_escapes(call: str, fence: str) -> None:
    """What parses it shows the object's own text."""
    text = fence + json.dumps({"text": BAD})
    assert "¶" not in text
    for size in (1, 5, len(text)):
        for blocks in (False, True):
            scripted = ScriptedModel(replies=[AIMessage(text)], size=size, blocks=blocks)
            chain = GuardedChatModel(scripted, make_guard()) | JsonOutputParser()
            seen: list[Any] = []
            with pytest.raises(GuardViolation) as caught:
                seen.extend(chain.stream("x") if call == "stream" else [chain.invoke("x")])
            check_no_trace([seen, caught.value], "json")
    harmless = json.dumps({"text": "schön, größer"})
    chain = GuardedChatModel(ScriptedModel(replies=[AIMessage(harmless)], size=3), make_guard()) | JsonOutputParser()
    assert list(chain.stream("x"))[-1] == chain.invoke("x") == {"text": "schön, größer"}


@pytest.mark.parametrize("text", [SAFE, BAD])
@pytest.mark.parametrize("call", ["invoke", "stream"])
def test_the_newer_form_of_content_blocks(call: str, text: str) -> None:
    for size in SIZES:
        answer = reply(text, reasoning="thinking", query="a query")
        plain = ScriptedModel(replies=[answer], size=size, output_version="v1")
        guarded = GuardedChatModel(
            ScriptedModel(replies=[answer], size=size, output_version="v1"), make_guard(), exit_behavior="end"
        )
        got = [guarded.invoke("x")] if call == "invoke" else list(guarded.stream("x"))
        if text == BAD:
            check_no_trace(got, "blocks")
            continue
        expected = [plain.invoke("x")] if call == "invoke" else list(plain.stream("x"))
        whole, wanted = got[0], expected[0]
        for chunk in got[1:]:
            whole = whole + chunk
        for chunk in expected[1:]:
            wanted = wanted + chunk
        assert whole.text == wanted.text
        assert whole.tool_calls == wanted.tool_calls
