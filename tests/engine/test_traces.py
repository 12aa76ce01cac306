"""Reasoning traces with the Qwen3Guard engines: exact offsets, the same for any pieces, blocks for Gen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guardkit import Guard
from guardkit.trace import trace, trace_batch
from tests.engine.checkpoints import built, write_gen

TEXT = (
    "<think>Let me see. 今日は👩‍👩‍👧 晴れ。Dr. Roe says no.\n\nHm, 3.14 café…</think>\n\nYes: 😀😀 go on, and on. "
    + "More words. " * 30
)


@pytest.fixture(scope="module")
def gen(root: Path) -> Any:
    return Guard.load(str(built(root, write_gen)), device="cpu", dtype="float32").model


@pytest.mark.parametrize("kind", ["model", "gen"])
def test_traces(kind: str, request: pytest.FixtureRequest):
    model = request.getfixturevalue(kind)
    guard = Guard(model)
    found = trace(guard, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": TEXT}])
    assert [p.stage.value for p in found.parts] == ["reasoning", "response"]
    for part in found.parts:
        assert TEXT[part.start :].startswith(part.text)
        assert "".join(part.text[s.start : s.end] for s in part.spans) == part.text
        assert "".join(part.text[s.start : s.end] for s in part.sentences) == part.text
    assert found.unit == ("block" if kind == "gen" else "token")
    if kind == "gen":
        assert all(len(p.spans) == -(-p.n_tokens // model.stride) for p in found.parts)
    else:
        assert any(s.start == s.end for p in found.parts for s in p.spans)  # several tokens of one character
        assert [len(p.spans) for p in found.parts] == [p.n_tokens for p in found.parts]
    pieces, again, alone = trace_batch(guard, [TEXT], feed_chars=5)[0], *trace_batch(guard, [TEXT, "Hello."])
    for other in (again, trace(guard, TEXT)):
        for part, same in zip(pieces.parts, other.parts, strict=True):
            assert [(s.start, s.end) for s in part.spans] == [(s.start, s.end) for s in same.spans]
            assert part.spans[-1].scores == pytest.approx(same.spans[-1].scores, abs=0.02)
    assert alone.judged
