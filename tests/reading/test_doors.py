"""Shape by door: a marked text in each place of a record of each shape, through each door (docs/inputs.md)."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.guardkit import GuardNodePostprocessor
from llama_index.postprocessor.guardkit.messages import read as read_chat_message

from guardkit import GuardViolation, Message
from guardkit.evaluation.runner import Settings, evaluate
from guardkit.evaluation.sources import Source
from guardkit.testing import FakeGuard
from guardkit_cli import loading, run
from langchain_guardkit import GuardRunnable
from langchain_guardkit.reading import read as read_langchain
from tests.reading.examples import EXAMPLES, places

DOCS = Path(__file__).resolve().parents[2] / "docs" / "inputs.md"
MODELS = {"response", "reasoning", "tool_call"}
every = pytest.mark.parametrize("name", EXAMPLES)


def fake() -> FakeGuard:
    return FakeGuard({"BAD": "unsafe"})


def by_line(monkeypatch: Any, capsys: Any, command: str, records: list[Any]) -> list[list[dict[str, Any]]]:
    """What `guard COMMAND` says of each record."""
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    monkeypatch.setattr(loading, "load_guard", lambda *_, **__: fake())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    run([command, "--jsonl", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [[row for row in rows if row["line"] == i + 1] for i in range(len(records))]


@every
def test_check(name: str, monkeypatch: Any, capsys: Any) -> None:
    stages, records = zip(*places(EXAMPLES[name]), strict=True)
    for stage, rows in zip(stages, by_line(monkeypatch, capsys, "check", list(records)), strict=True):
        blocked = [row["stage"] for row in rows if row["action"] == "block"]
        assert blocked == ([] if stage == "context" else [stage])
        assert all(row["severity"] for row in rows), "all of it was judged"
        assert stage != "context" or any(row["ignored"] for row in rows), "what was not judged is named"


@every
def test_trace(name: str, monkeypatch: Any, capsys: Any) -> None:
    stages, records = zip(*places(EXAMPLES[name]), strict=True)
    for stage, rows in zip(stages, by_line(monkeypatch, capsys, "trace", list(records)), strict=True):
        if MODELS & set(stages):
            assert [row["action"] for row in rows].count("block") == (stage != "context")
        elif name in ("text", "string", "LlamaIndex node"):  # read as what a model wrote
            assert rows[0]["action"] == "block" or "metadata" in rows[0]["ignored"]
        else:  # no output of a model: nothing is called safe but what one wrote before
            assert all(row["severity"] is None or row["message"] is not None for row in rows)


@every
def test_eval(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for stage, record in places(EXAMPLES[name]):
            shaped = (
                record if isinstance(record, dict) else {"messages" if isinstance(record, list) else "text": record}
            )
            file.write(json.dumps(shaped | {"severity": "safe" if stage == "context" else "unsafe"}) + "\n")
    figures = evaluate(fake(), "fake", "1", Source("set", None, path), Settings(resamples=0))
    assert (figures.n_unread, figures.n_not_judged) == (0, 0), figures.errors
    assert not figures.misses
    assert not figures.false_alarms


@every
def test_langchain_as_a_value_in_a_chain(name: str) -> None:
    step = GuardRunnable(fake())
    for _, record in places(EXAMPLES[name]):
        with pytest.raises(GuardViolation):
            step.invoke(record)
        with pytest.raises(GuardViolation):
            step.invoke({"input": "fine", "raw": [record]})


@every
def test_llama_index_as_metadata_and_beside_a_message(name: str) -> None:
    screen = GuardNodePostprocessor(guard=fake())
    for _, record in places(EXAMPLES[name]):
        node = NodeWithScore(node=TextNode(text="fine", metadata={"record": record}), score=1.0)
        assert screen.postprocess_nodes([node]) == []
        message = ChatMessage(role=MessageRole.USER, content="fine", additional_kwargs={"record": record})
        assert any("BAD" in (part.text or "") for part in read_chat_message(message).parts())


def said_last(record: Any) -> dict[str, Any] | None:
    """The message that is judged in a record that holds messages of roles that LangChain has."""
    if isinstance(record, dict) and "choices" in record:
        told = [choice.get("message") for choice in record["choices"] if "BAD" in repr(choice)]
        return told[0] if told else None
    if isinstance(record, dict) and isinstance(record.get("output"), dict):
        record = record["output"]["message"]
    for key in ("messages", "body"):
        if isinstance(record, dict) and key in record:
            record = record[key]
    if isinstance(record, list):
        record = record[-1]
    return record if isinstance(record, dict) and "content" in record and "role" in record else None


@every
def test_langchain_as_messages(name: str) -> None:
    kinds: dict[str, Any] = {"user": HumanMessage, "assistant": AIMessage}
    for stage, record in places(EXAMPLES[name]):
        source = said_last(record)
        if source is None or stage == "context":
            continue
        more = {k: v for k, v in source.items() if k not in ("role", "content") and v is not None}
        content = source["content"] or ""
        message = (
            ToolMessage(content, tool_call_id="c1")
            if source["role"] == "tool"
            else kinds[source["role"]](content, additional_kwargs=more)
        )
        found = [part.stage.value for part in read_langchain(message).parts() if "BAD" in (part.text or "")]
        assert stage in found


@every
def test_llama_index_as_messages(name: str) -> None:
    if not name.startswith("LlamaIndex") or "node" in name:
        return
    for stage, record in places(EXAMPLES[name]):
        message = ChatMessage.model_validate(record)
        found = [part.stage.value for part in read_chat_message(message).parts() if "BAD" in (part.text or "")]
        assert stage in found
        assert found == [p.stage.value for p in Message.of(record).parts() if "BAD" in (p.text or "")]


def test_the_table_in_the_docs_has_every_shape() -> None:
    table = DOCS.read_text(encoding="utf-8").partition("## Shape by door")[2]
    named = re.findall(r"^\| ([^|]+?) \|", table.partition("## Files")[0], re.MULTILINE)[1:]
    assert named == list(EXAMPLES)
