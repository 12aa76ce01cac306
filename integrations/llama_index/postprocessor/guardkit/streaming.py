"""A streamed answer, judged as it arrives: reasoning, text and tool calls, each at its own stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.postprocessor.guardkit.marks import mark_of
from llama_index.postprocessor.guardkit.messages import (
    CALL_KEYS,
    begins_json,
    calls_of,
    parts_of,
    read,
    said_aside,
    silent_part,
)
from llama_index.postprocessor.guardkit.rules import Rules, report, worst
from llama_index.postprocessor.guardkit.steps import Steps
from pydantic import BaseModel

from guardkit import Action, Decision, Guard, Message, NotJudged, Stage
from guardkit.events import Event
from guardkit.reading.payloads import ArgumentsReader
from guardkit.reading.values import is_name
from guardkit.stream import StreamGuard

_CLOSERS = "\"'}]) \n"
_USAGE_KEYS = ("usage", "usage_metadata")


class Channel:
    """One text on its way out. shown: what was let out; stopped: the decision that ended it."""

    def __init__(self, guard: Guard, stage: Stage, context: Sequence[Message]):
        self._guard, self._stage, self._context = guard, stage, list(context)
        self._stream: StreamGuard | None = None
        self._flagged: Decision | None = None
        self._received = ""
        self._released = 0  # characters that the stream let out
        self.shown = ""
        self.stopped: Decision | None = None

    def feed(self, delta: str) -> Steps[str]:
        """Take more text; returns what may be shown now."""
        if not delta or self.stopped:
            return ""
        self._received += delta
        try:
            if self._stream is None:
                self._stream = yield partial(self._guard.stream, self._context, stage=self._stage)
            events: list[Event] = yield partial(self._stream.feed, delta)
        except NotJudged as error:
            return self._fail(error)
        return self._take(events)

    def finish(self) -> Steps[str]:
        """The text is complete; returns the rest of it."""
        if self._stream is None or self.stopped:
            return ""
        stream, self._stream = self._stream, None
        try:
            events: list[Event] = yield stream.finish
        except NotJudged as error:
            return self._fail(error)
        finally:
            stream.close()
        return self._take(events, stream)

    def settle(self) -> Steps[str]:
        """Another text takes over, and this one may go on after it: returns its tail, judged as it stands."""
        if self._stream is None or self.stopped:
            return ""
        stream = self._stream
        try:
            verdict = yield lambda: stream.verdict
        except NotJudged as error:
            return self._fail(error)
        decision = self._guard.policy.decide(verdict) if stream.judged else None
        if decision is not None and decision.action.stops:
            self.stopped = decision
            return ""
        return self._show(len(self._received))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _show(self, end: int) -> str:
        """Let out what comes before `end`."""
        out = self._received[len(self.shown) : end]
        self.shown += out
        return out

    def _take(self, events: list[Event], stream: StreamGuard | None = None) -> str:
        for event in events:
            if event.kind == "text":
                self._released += len(event.text)
            elif event.kind == "retract":  # shown too early, by a hold-back that is too short: not kept at least
                self._released -= event.n_chars
                self.shown = self.shown[: self._released]
            elif event.kind == "stop":
                self.stopped = (stream or self._stream).decision  # type: ignore[union-attr]
            elif self._flagged is None:
                self._flagged = (stream or self._stream).decision  # type: ignore[union-attr]
                report(self._flagged, f"streamed {self._stage.value}", "flagged")
        return self._show(self._released)

    def _fail(self, error: NotJudged) -> str:
        decision = self._stream.decision if self._stream is not None else None
        if decision is None or not decision.action.stops:
            decision = Decision(Action.block, None, "not judged", False, self._stage, str(error))
        self.stopped = decision
        return ""


class _CallChannel:
    """A tool call that grows from one snapshot to the next. Judged on its text without what closes it."""

    def __init__(self, guard: Guard, context: Sequence[Message]):
        self._new = partial(Channel, guard, Stage.tool_call, context)
        self._channel = self._new()
        self._fed = self._text = ""
        self.finished = False

    @property
    def stopped(self) -> Decision | None:
        return self._channel.stopped

    def grow(self, text: str) -> Steps[None]:
        """Take the next snapshot."""
        if self.finished and text == self._text:
            return
        open_text = text.rstrip(_CLOSERS)
        if self.finished or not open_text.startswith(self._fed):
            self._channel.close()
            self._channel, self._fed, self.finished = self._new(), "", False
        yield from self._channel.feed(open_text[len(self._fed) :])
        self._fed, self._text = open_text, text

    def finish(self) -> Steps[None]:
        if not self.finished:
            yield from self._channel.feed(self._text[len(self._fed) :])
            yield from self._channel.finish()
            self.finished = True

    def covers(self, text: str) -> bool:
        """Whether all of this snapshot's text was let out."""
        open_text = text.rstrip(_CLOSERS)
        return self.finished or (
            len(self._channel.shown) >= len(open_text) and self._channel.shown.startswith(open_text)
        )

    def close(self) -> None:
        self._channel.close()


class ChatStream:
    """The chunks of one streamed answer in, those that may be shown out.

    Text and reasoning leave as soon as their hold-back allows; a tool call leaves with the newest snapshot that is
    judged. `raw` and log probabilities go ahead of the judgement, so of them only the usage counts remain.
    """

    def __init__(self, rules: Rules, context: Sequence[Message]):
        self._rules, self._context = rules, context
        self._text = Channel(rules.guard, Stage.response, context)
        self._thought = Channel(rules.guard, Stage.reasoning, context)
        self._calls: list[_CallChannel] = []
        self._snapshots: deque[tuple[list[str], ChatMessage]] = deque()
        self._shown_calls: ChatMessage | None = None
        self._seen_text = self._seen_thought = 0
        self._last: ChatResponse | None = None
        self._decoded: Channel | None = None  # what a parser will read, once that differs from what stands there
        self._reader, self._said = ArgumentsReader(), ""
        self.stopped: Decision | None = None

    @property
    def text(self) -> str:
        return self._text.shown

    def take(self, chunk: ChatResponse) -> Steps[list[ChatResponse]]:
        """Judge what is new in a chunk; returns the chunks that may be shown now."""
        self._last = chunk
        text, thought = self._new_text(chunk), self._new_thought(chunk)
        shown = thoughts = ""
        if thought:
            shown += yield from self._text.settle()
            thoughts += yield from self._thought.feed(thought)
        if text:
            thoughts += yield from self._thought.settle()
            yield from self._decode(text)
            if self._decoded is None or self._decoded.stopped is None:
                shown += yield from self._text.feed(text)
        changed = yield from self._grow_calls(chunk.message)
        return self._out(shown, thoughts, changed)

    def end(self) -> Steps[list[ChatResponse]]:
        """The source is complete: judge the rest."""
        thoughts = yield from self._thought.finish()
        if self._decoded is not None:
            yield from self._decoded.finish()
        shown = ""
        if self._decoded is None or self._decoded.stopped is None:
            shown = yield from self._text.finish()
        for call in self._calls:
            yield from call.finish()
        yield from self._judge_rest()
        return self._out(shown, thoughts, self._promote(), final=True)

    def conclude(self) -> None:
        """After the last chunk: report a violation, or raise it."""
        if self.stopped:
            self._rules.violated(self.stopped, f"streamed {self.stopped.stage.value}")

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    @property
    def _channels(self) -> list[Channel | _CallChannel]:
        decoded = [] if self._decoded is None else [self._decoded]
        return [self._thought, *decoded, self._text, *self._calls]

    def _decode(self, text: str) -> Steps[None]:
        """An answer in JSON is judged as its parser will read it, without escapes, before it is judged as it stands."""
        if self._decoded is None:
            self._said += text
            if "\\" not in text or not begins_json(self._said):
                return
            self._decoded, text = Channel(self._rules.guard, Stage.response, self._context), self._said
        yield from self._decoded.feed(self._reader.push(text))

    # -- what is new in a chunk

    def _new_text(self, chunk: ChatResponse) -> str:
        """The delta, or what the message gained where a source sends no deltas."""
        content = chunk.message.content or ""
        new = chunk.delta if chunk.delta is not None else content[self._seen_text :]
        self._seen_text = max(self._seen_text + len(new), len(content) if chunk.delta is None else 0)
        return new

    def _new_thought(self, chunk: ChatResponse) -> str:
        content = "\n".join(b.content or "" for b in chunk.message.blocks if isinstance(b, ThinkingBlock))
        delta = chunk.additional_kwargs.get("thinking_delta") or chunk.message.additional_kwargs.get("thinking_delta")
        new = delta if isinstance(delta, str) and delta else content[self._seen_thought :]
        self._seen_thought = max(self._seen_thought + len(new), len(content))
        return new

    def _grow_calls(self, message: ChatMessage) -> Steps[bool]:
        texts = calls_of(message)
        if not texts:
            return False
        for i, text in enumerate(texts):
            if i == len(self._calls):
                if i:
                    yield from self._calls[i - 1].finish()
                self._calls.append(_CallChannel(self._rules.guard, self._context))
            yield from self._calls[i].grow(text)
        self._snapshots.append((texts, message))
        return self._promote()

    def _promote(self) -> bool:
        """Take the newest snapshot of which every call was let out."""
        changed = False
        while self._snapshots:
            texts, message = self._snapshots[0]
            if not all(c.covers(t) and c.stopped is None for c, t in zip(self._calls, texts, strict=False)):
                break
            self._snapshots.popleft()
            self._shown_calls, changed = message, True
        return changed

    def _judge_rest(self) -> Steps[None]:
        """What else stands in the last message: citations and documents, and what cannot be judged."""
        rest = read(ChatMessage(role=MessageRole.ASSISTANT, blocks=self._other_blocks()))
        items = [[*self._context, part] for part in parts_of(rest) if part.attached or part.unjudgeable or part.content]
        if items:
            decision = worst((yield partial(self._rules.guard.decide_batch, items)))
            if decision.action.stops:
                self.stopped = self.stopped or decision
            elif decision.action is Action.flag:
                report(decision, f"streamed {decision.stage.value}", "flagged")

    def _other_blocks(self) -> list[ContentBlock]:
        known = (TextBlock, ThinkingBlock, ToolCallBlock)
        return [b for b in self._last.message.blocks if not isinstance(b, known)] if self._last else []

    # -- chunks out

    def _out(self, shown: str, thoughts: str, changed: bool, final: bool = False) -> list[ChatResponse]:
        for channel in self._channels:
            self.stopped = self.stopped or channel.stopped
        out = []
        if shown or thoughts or (not self.stopped and (changed or (final and self._last is not None))):
            out.append(self._chunk(shown, thoughts, final))
        if self.stopped and self._rules.exit_behavior != "error":
            out.append(self._violation(self.stopped))
        return out

    def _violation(self, decision: Decision) -> ChatResponse:
        """The last chunk of a stopped answer. Ended, its message is the violation message alone; replaced, that
        message follows what was let out before."""
        rules = self._rules
        said, mark = rules.message(decision), mark_of(decision)
        delta = f"\n\n{said}" if self.text else said
        text = said if rules.exit_behavior == "end" else self.text + delta
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text)], additional_kwargs=mark),
            delta=delta,
            raw=usage_of(self._last.raw if self._last else None),
            additional_kwargs=dict(mark),
        )

    def _chunk(self, shown: str, thoughts: str, final: bool) -> ChatResponse:
        last = self._last or ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT))
        blocks: list[ContentBlock] = []
        thought = self._thought.shown
        if thought:
            blocks.append(self._thinking_block(last.message, thought, final))
        if self.text or not final or not (thought or self._shown_calls):
            blocks.append(TextBlock(text=self.text))
        kwargs = silent_part(last.message.additional_kwargs)
        if self._shown_calls is not None:
            blocks += [b for b in self._shown_calls.blocks if isinstance(b, ToolCallBlock)]
            calls = self._shown_calls.additional_kwargs
            kwargs |= {k: calls[k] for k in CALL_KEYS if k in calls}
        if final and self.stopped is None:
            blocks += self._other_blocks()
        counts = numbers(last.additional_kwargs)
        return ChatResponse(
            message=ChatMessage(role=last.message.role, blocks=blocks, additional_kwargs=kwargs),
            delta=shown,
            raw=usage_of(last.raw),
            additional_kwargs=counts | ({"thinking_delta": thoughts} if thoughts else {}),
        )

    def _thinking_block(self, message: ChatMessage, thought: str, final: bool) -> ThinkingBlock:
        """As the source has it (it may be signed) where all of it was let out, else what was let out."""
        blocks = [b for b in message.blocks if isinstance(b, ThinkingBlock)]
        if final and len(blocks) == 1 and blocks[0].content == thought and not said_aside(blocks[0]):
            return blocks[0]
        return ThinkingBlock(content=thought)


class TextStream:
    """One streamed text, as query and chat engines give it. stopped: the decision that ended it."""

    def __init__(self, rules: Rules, context: Sequence[Message]):
        self._rules, self._channel = rules, Channel(rules.guard, Stage.response, context)

    @property
    def stopped(self) -> Decision | None:
        return self._channel.stopped

    def take(self, delta: str) -> Steps[list[str]]:
        """Judge more text; returns what may be shown now, and after a stop the violation message."""
        return self._out((yield from self._channel.feed(delta)))

    def end(self) -> Steps[list[str]]:
        return self._out((yield from self._channel.finish()))

    def conclude(self) -> None:
        """After the last text: report a violation, or raise it."""
        if self.stopped:
            self._rules.violated(self.stopped, "streamed answer")

    def close(self) -> None:
        self._channel.close()

    def _out(self, text: str) -> list[str]:
        out = [text] if text else []
        if self.stopped and self._rules.exit_behavior != "error":
            message = self._rules.message(self.stopped)
            out.append(f"\n\n{message}" if self._channel.shown else message)
        return out


def usage_of(raw: Any) -> dict[str, Any] | None:
    """The usage counts of a provider's raw response; everything else there may hold text that was not judged."""
    if isinstance(raw, BaseModel):
        raw = raw.model_dump()
    if not isinstance(raw, dict):
        return None
    found = {k: raw[k] for k in _USAGE_KEYS if raw.get(k) is not None}
    dumped = {k: v.model_dump() if isinstance(v, BaseModel) else v for k, v in found.items()}
    return {k: numbers(v) for k, v in dumped.items() if isinstance(v, dict)} or None


def numbers(source: dict[str, Any]) -> dict[str, Any]:
    """The counts in a mapping, nested ones included, under keys that are names."""
    kept = {k: numbers(v) if isinstance(v, dict) else v for k, v in source.items() if isinstance(v, int | float | dict)}
    return {k: v for k, v in kept.items() if v != {} and is_name(str(k), 6)}
