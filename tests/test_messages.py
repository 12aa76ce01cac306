"""Messages in the shapes that chat APIs use, and reasoning told apart."""

from __future__ import annotations

import pytest

from guardkit import Message, Stage, split_reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("plain", "", "plain"),
        ("<think>a</think>b", "a", "b"),
        ("a</think>b", "a", "b"),
        ("<think>a", "a", ""),
        ("x<think>a</think>b<think>c</think>d", "ac", "xbd"),
        ("<thinking>a</thinking>b", "a", "b"),
        ("", "", ""),
        ("a < b and <thin air>", "", "a < b and <thin air>"),
    ],
)
def test_split_reasoning(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


def test_blocks_calls_and_results() -> None:
    message = Message.of({
        "role": "assistant",
        "content": [
            {"type": "text", "text": "one"},
            {"type": "tool_use", "name": "f", "input": {"a": 1}},
            {"type": "input_audio", "data": "…"},
            "two",
        ],
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "g", "arguments": "{}"}}],
    })  # fmt: skip
    assert message.content == "one\ntwo"
    assert message.tool_calls == ('f {"a": 1}', "g {}")
    assert message.unjudgeable == ("input_audio",)
    stages = [(p.stage, p.text is None) for p in message.parts()]
    assert stages == [
        (Stage.tool_call, False), (Stage.tool_call, False), (Stage.response, True), (Stage.response, False),
    ]  # fmt: skip
    result = Message.of(
        {"role": "tool", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "r"}]}]}
    )
    assert result.parts()[0].text == "r"


def test_a_message_without_content_still_has_a_part() -> None:
    assert [p.text for p in Message.of({"role": "assistant", "content": None}).parts()] == [""]


@pytest.mark.parametrize(
    ("extra", "reasoning", "calls"),
    [
        ({"reasoning_content": "why"}, "why", ()),
        ({"reasoning_content": None, "parsed": {"x": 1}}, "", ()),
        ({"function_call": {"name": "run", "arguments": '{"c": "x"}'}}, "", ('run {"c": "x"}',)),
    ],
)
def test_what_a_provider_sent_beside_the_content_is_read(
    extra: dict[str, object], reasoning: str, calls: tuple[str, ...]
) -> None:
    message = Message.of({"role": "assistant", "content": "fine", "additional_kwargs": extra})
    assert (message.content, message.reasoning, message.tool_calls) == ("fine", reasoning, calls)
    assert message.unjudgeable == ()


def test_a_call_in_both_forms_is_read_once() -> None:
    raw = {"id": "1", "type": "function", "function": {"name": "run", "arguments": '{"c": "x"}'}}
    call = {"name": "run", "args": {"c": "x"}, "id": "1"}
    both = {"role": "assistant", "content": "", "tool_calls": [call], "additional_kwargs": {"tool_calls": [raw]}}
    assert Message.of(both).tool_calls == ('run {"c": "x"}',)


@pytest.mark.parametrize(
    ("block", "reasoning"),
    [
        (
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "short"}],
                "content": [{"type": "reasoning_text", "text": "all of it"}],
            },
            "short\nall of it",
        ),
        ({"type": "thinking", "thinking": "", "text": "hidden"}, "hidden"),
        ({"type": "thinking", "thinking": "", "signature": "abc"}, ""),
    ],
)
def test_all_texts_of_a_reasoning_block_are_read(block: dict[str, object], reasoning: str) -> None:
    message = Message.of({"role": "assistant", "content": [block, {"type": "text", "text": "answer"}]})
    assert (message.reasoning, message.content, message.unjudgeable) == (reasoning, "answer", ())


def test_a_reasoning_block_without_text_is_not_judged() -> None:
    block = {"type": "reasoning", "summary": [], "encrypted_content": "…"}
    message = Message.of({"role": "assistant", "content": [block, {"type": "text", "text": "answer"}]})
    assert message.unjudgeable == ("reasoning",)
