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
