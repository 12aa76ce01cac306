"""``POST /page/stream``: a prompt and an answer, judged as if the answer came from a model, piece by piece.

The answer is server-sent events, each a JSON object with a ``kind``: "prompt" (its decision, and its text in pieces),
"step" (tokens that were judged, with their risks; how many characters are released), "stop", "end" and "error".
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from guardkit import AsyncStreamGuard, Decision, Guard, Message, Stage, StreamGuard
from guardkit.models.base import Scores, StreamModel, Tokens
from guardkit.verdict import SEVERITIES
from guardkit_serve.calls import Call, body_of
from guardkit_serve.errors import HttpError, overloaded
from guardkit_serve.judging import decide, item_of

MAX_CHARS = 200_000
MAX_PACE_MS = 1000
WORDS_A_STEP = 24  # without a pause between them
_WORD = re.compile(r"\S+\s*|\s+")
_KEYS = ("prompt", "prompt_stage", "answer", "answer_stage", "model", "policy", "holdback", "pace_ms")


@dataclass(frozen=True)
class _Asked:
    prompt: str
    prompt_stage: Stage
    answer: str
    answer_stage: Stage
    holdback: int | None
    pace_ms: int


async def stream(request: Request, call: Call) -> Response:
    body = await body_of(request)
    if not isinstance(body, Mapping) or set(body) - set(_KEYS):
        raise HttpError(400, f"the body must be a JSON object with the keys {', '.join(_KEYS)}")
    asked = _Asked(
        _text(body, "prompt"),
        _stage(body, "prompt_stage", Stage.prompt, True),
        _text(body, "answer"),
        _stage(body, "answer_stage", Stage.response, False),
        _number(body, "holdback", 1024),
        _number(body, "pace_ms", MAX_PACE_MS) or 0,
    )
    if not asked.prompt.strip() and not asked.answer.strip():
        raise HttpError(400, "there is nothing to judge")
    if call.serving.observer.requests_open > call.serving.settings.max_requests:
        raise overloaded("as many requests as may are under way; try again")
    model, policy = body.get("model"), body.get("policy")
    guard = call.pick(model if isinstance(model, str) else None, policy if isinstance(policy, str) else None)
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return StreamingResponse(_events(asked, guard, call), media_type="text/event-stream", headers=headers)


async def _events(asked: _Asked, guard: Guard, call: Call) -> AsyncIterator[bytes]:
    observer, settings = call.serving.observer, call.serving.settings
    if asked.prompt.strip():
        try:
            (decision,) = await decide(guard, [item_of(asked.prompt, asked.prompt_stage)], observer, settings.judge_s)
        except HttpError as error:
            yield _event("error", message=error.message)
            return
        yield _event("prompt", decision=told(decision), pieces=_pieces(asked.prompt, decision))
    if asked.answer.strip():
        async for event in _answer(asked, guard, call):
            yield event
    yield _event("done")


async def _answer(asked: _Asked, guard: Guard, call: Call) -> AsyncIterator[bytes]:
    observer, seconds = call.serving.observer, call.serving.settings.judge_s
    holdback = call.serving.settings.holdback if asked.holdback is None else asked.holdback
    shown, spent = _Shown(asked.answer, guard.model), 0.0
    context = [Message("user", asked.prompt)] if asked.prompt.strip() else []
    observer.stream_opened(asked.answer_stage.value, guard.model.name, guard.policy.name)
    judging: StreamGuard | None = None
    decision: Decision | None = None
    try:
        judging = guard.stream(context, stage=asked.answer_stage, holdback=holdback)
        judging.listen(shown.judged)
        twin = AsyncStreamGuard(judging)
        for piece in (*_cut(asked.answer, asked.pace_ms), None):
            start = time.perf_counter()
            async with asyncio.timeout(seconds):
                events = await (twin.finish() if piece is None else twin.feed(piece))
            spent += time.perf_counter() - start
            retracted = sum(e.n_chars for e in events if e.kind == "retract")
            yield _event("step", tokens=shown.take(), released=judging.released, retracted=retracted)
            if judging.stopped:
                break
            if asked.pace_ms and piece is not None:
                await asyncio.sleep(asked.pace_ms / 1e3)
        decision = judging.decision
        counts = {"released": judging.released, "withheld": len(asked.answer) - judging.released}
        kind = "stop" if judging.stopped else "end"
        yield _event(kind, decision=told(decision), rest=shown.rest(), ms=round(spent * 1e3, 2), **counts)
    except Exception as error:
        # Whatever it was: nothing more of this answer was judged. Its message may quote a text, but only the asker's.
        decision = guard.not_judged(f"{type(error).__name__}: {error}", asked.answer_stage, None)
        released = judging.released if judging is not None else 0
        counts = {"released": released, "withheld": len(asked.answer) - released}
        kind = "stop" if decision.action.stops else "end"
        yield _event(kind, decision=told(decision), rest=shown.rest(), ms=round(spent * 1e3, 2), **counts)
    finally:
        released, early = 0, 0
        if judging is not None:
            judging.close()
            released, early = judging.released, judging.shown_early
            decision = decision or judging.decision
        decision = decision or guard.not_judged("the client went away", asked.answer_stage, None)
        counted = released, len(asked.answer) - released, early
        observer.stream_closed(decision, guard.model.name, guard.policy.name, *counted)


class _Shown:
    """The answer in the tokens that were judged, as ``[text, risk, severity]``; what is no token has no risk."""

    def __init__(self, text: str, model: StreamModel):
        self._text, self._model, self._at = text, model, 0
        self._new: list[tuple[str, float | None, str | None]] = []

    def judged(self, tokens: Tokens, scores: Scores) -> None:
        levels = self._model.severities(scores, tokens.stage)
        for i, (start, row) in enumerate(zip(tokens.starts, scores.severity, strict=True)):
            end = tokens.starts[i + 1] if i + 1 < len(tokens) else tokens.end
            if start > self._at:
                self._new.append((self._text[self._at : start], None, None))
            if end > max(start, self._at):
                severity = SEVERITIES[int(levels[i])].value
                self._new.append((self._text[max(start, self._at) : end], round(float(1 - row[0]), 4), severity))
            self._at = max(self._at, end)

    def take(self) -> list[tuple[str, float | None, str | None]]:
        new, self._new = self._new, []
        return new

    def rest(self) -> str:
        """What was not judged."""
        return self._text[self._at :]


def told(decision: Decision) -> dict[str, Any]:
    """A decision with all that explains it."""
    verdict = decision.verdict
    out: dict[str, Any] = {
        "action": decision.action.value,
        "judged": decision.judged,
        "rule": decision.rule,
        "stage": decision.stage.value,
        "error": decision.error,
    }
    if verdict is None:
        return out
    return out | {
        "severity": verdict.severity.value,
        "categories": [c.label for c in verdict.categories],
        "scores": {name: round(p, 4) for name, p in verdict.scores.items()},
        "score": None if decision.score is None else round(decision.score, 4),
        "threshold": decision.threshold,
        "model": verdict.model,
        "coverage": verdict.coverage,
        "refusal": verdict.refusal,
        "ms": round(verdict.latency_ms, 2),
    }


def _pieces(text: str, decision: Decision) -> list[tuple[str, bool]]:
    """The text, and which part of it was flagged."""
    verdict = decision.verdict
    if verdict is None or verdict.char_start is None or verdict.char_end is None:
        return [(text, False)]
    start, end = verdict.char_start, verdict.char_end
    return [p for p in ((text[:start], False), (text[start:end], True), (text[end:], False)) if p[0]]


def _cut(text: str, pace_ms: int) -> list[str]:
    words = _WORD.findall(text)
    at_once = 1 if pace_ms else WORDS_A_STEP
    return ["".join(words[i : i + at_once]) for i in range(0, len(words), at_once)]


def _event(kind: str, **values: Any) -> bytes:
    return f"data: {json.dumps({'kind': kind, **values})}\n\n".encode()


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str):
        raise HttpError(400, f"'{key}' must be a string", param=key)
    if len(value) > MAX_CHARS:
        raise HttpError(413, f"'{key}' may have {MAX_CHARS:,} characters", "request_too_large", param=key)
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs joined; halves are no text


def _stage(body: Mapping[str, Any], key: str, default: Stage, is_query: bool) -> Stage:
    value = body.get(key, default.value)
    known = [s.value for s in Stage if s.is_query == is_query]
    if value not in known:
        raise HttpError(400, f"'{key}' must be one of {', '.join(known)}", param=key)
    return Stage(value)


def _number(body: Mapping[str, Any], key: str, most: int) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise HttpError(400, f"'{key}' must be a number from 0 to {most}", param=key)
    return value
