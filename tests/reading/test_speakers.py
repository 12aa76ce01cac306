# ruff: noqa: E501
"""Who speaks, said in the ways of exports and frameworks; keys that tell a stage; blocks that no table knows."""

from __future__ import annotations

from typing import Any

import pytest

from guardkit import Message
from guardkit.reading.records import read_record
from tests.reading.examples import places

VALUES: dict[str, Any] = {
    "ChatGPT's export": {"title": "«prompt»", "mapping": {
        "a": {"id": "a", "message": {"id": "a", "author": {"role": "user", "name": None}, "content": {"content_type": "text", "parts": ["«prompt»"]}}, "parent": None},
        "b": {"message": {"author": {"role": "assistant"}, "content": {"content_type": "thoughts", "thoughts": [{"summary": "«reasoning»", "content": "«reasoning»"}]}}},
        "c": {"message": {"author": {"role": "assistant"}, "content": {"content_type": "code", "language": "python", "text": "«tool_call»"}}},
        "d": {"message": {"author": {"role": "tool", "name": "python"}, "content": {"content_type": "execution_output", "text": "«tool_output»"}}},
        "e": {"message": {"author": {"role": "assistant", "note": "«response»"}, "content": {"content_type": "text", "parts": ["«response»", {"x": "«response»"}]}}}}},
    "Claude's export": {"uuid": "u1", "name": "«prompt»", "chat_messages": [
        {"uuid": "m1", "sender": "human", "text": "«prompt»", "attachments": [{"file_name": "a.txt", "extracted_content": "«prompt»"}]},
        {"uuid": "m2", "sender": "assistant", "text": "«response»", "content": [{"type": "tool_use", "name": "f", "input": {"q": "«tool_call»"}}]}]},
    "AutoGen": {"run": {"log": [
        {"source": "user", "type": "TextMessage", "content": "«prompt»"},
        {"source": "writer", "type": "TextMessage", "content": "«response»", "models_usage": None},
        {"source": "writer", "type": "ToolCallRequestEvent", "content": [{"id": "c1", "name": "f", "arguments": "{\"q\": \"«tool_call»\"}"}]},
        {"source": "writer", "type": "ToolCallExecutionEvent", "content": [{"call_id": "c1", "name": "f", "content": "«tool_output»", "is_error": False}]}]}},
    "Pydantic AI": {"history": {"all": [
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": ["«prompt»", {"kind": "image-url", "url": "https://x.example/a"}]}, {"part_kind": "tool-return", "tool_name": "f", "content": {"a": "«tool_output»"}}]},
        {"kind": "response", "parts": [{"part_kind": "thinking", "content": "«reasoning»"}, {"part_kind": "text", "content": "«response»"}, {"part_kind": "tool-call", "tool_name": "f", "args": "{\"q\": \"«tool_call»\"}"}]}]}},
    "an agent's step": {"step": 3, "thought": "«reasoning»", "tool_calls": [{"name": "f", "arguments": {"q": "«tool_call»"}}], "observation": {"stdout": "«tool_output»"}, "retrieved_documents": [{"text": "«document»"}], "note": "«prompt»"},
    "run step of OpenAI's assistants": {"object": "thread.run.step", "step_details": {"type": "tool_calls", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"q\": \"«tool_call»\"}", "output": "«tool_output»"}}]}},
    "settings are no texts of a stage": {"run": {"reasoning": {"effort": "«prompt»"}, "thinking": {"type": "enabled", "budget": 3}, "tool_calls": "«prompt»", "documents": {"messages": [{"role": "assistant", "content": "«response»"}]}}},
}  # fmt: skip
RECORDS: dict[str, Any] = {
    "agents with names": {"output": [{"role": "agent/writer", "parts": [{"content_type": "text/plain", "content": "«response»"}]}]},
    "Mistral's conversations": {"conversation_id": "c1", "outputs": [{"type": "tool.execution", "name": "web", "arguments": "{\"q\": \"«tool_call»\"}"}, {"type": "message.output", "role": "assistant", "content": [{"type": "text", "text": "«response»"}, {"type": "tool_reference", "title": "«response»"}]}]},
    "Groq's tools": {"choices": [{"message": {"role": "assistant", "content": "«response»", "executed_tools": [{"type": "search", "arguments": "{\"q\": \"«tool_call»\"}", "output": "«tool_output»"}]}}]},
    "kinds to come": {"output": [{"type": "map_search_call", "arguments": {"q": "«tool_call»"}}, {"type": "map_search_result", "places": ["«tool_output»"]}, {"type": "message", "role": "assistant", "content": [{"type": "code_run_result", "log": "«tool_output»"}]}]},
    "bare result of MCP": {"content": [{"type": "text", "text": "«tool_output»"}], "structuredContent": {"a": ["«tool_output»"]}, "isError": False},
}  # fmt: skip


def stages(record: Any) -> list[str]:
    found = []
    for judged in read_record(record).judged:
        item = judged.item if isinstance(judged.item, list) else [Message("user", judged.item)]
        found += [part.stage.value for part in item[-1].parts() if "BAD" in (part.text or "")]
    return found


@pytest.mark.parametrize("name", [*VALUES, *RECORDS])
def test_each_text_is_judged_at_the_stage_of_who_says_it(name: str) -> None:
    for stage, record in places((VALUES | RECORDS)[name]):
        assert stages(record) == [stage], record


def test_the_answer_of_a_quiz_may_be_a_number() -> None:
    found = read_record({"question": "Is this BAD?", "choices": ["yes", "no"], "answer": 1})
    assert [judged.item for judged in found.judged] == ["Is this BAD?"]
    with pytest.raises(ValueError, match="must be a string"):
        read_record({"question": "Is this BAD?", "answer": 1})
