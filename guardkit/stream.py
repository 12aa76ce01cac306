"""Streams: text deltas in, typed events out, nothing shown before it was judged.

The last `holdback` judged tokens and the unstable tail are kept back. With a hold-back of at least `debounce - 1` no
flagged text is ever shown; a smaller one shows it early, counts it, and takes it back with a `retract` event.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn
from weakref import WeakSet

from guardkit import telemetry
from guardkit.errors import NotJudged, StreamClosed
from guardkit.events import Event, FlagEvent, Mark, RetractEvent, StopEvent, TextEvent
from guardkit.judge import RunningVerdict
from guardkit.messages import Message
from guardkit.models.base import Append, Scores, Session, Tokens
from guardkit.pinpoint import Sentence, begin_of_harm, sentences_before
from guardkit.policy import Action, Decision
from guardkit.response import ResponseReader
from guardkit.runner import Steps, lead
from guardkit.verdict import Stage, Verdict

if TYPE_CHECKING:
    from guardkit.guard import Guard

HOLDBACK = 8
_UNWATCHED = nullcontext()
BLANK = 64  # characters without a token that count as one for the hold-back


_Steps = Steps[list[Event]]
"""What a call does, without the model: yields tokens to be judged, is sent their scores, returns the events."""


class StreamGuard:
    """Judges one response as it arrives. Made by `Guard.stream`; a context manager; for one thread at a time.

    verdict, decision: of what was received so far (frozen at the stop). released, withheld: characters that were let
    out and were not; they always add up to what was received. n_tokens: tokens judged. shown_early: characters that
    were let out and taken back. A model error raises `NotJudged` and ends the stream, with nothing more released,
    unless the policy's `on_error` is "allow": then the text goes through unjudged, and `judged` says so.
    """

    def __init__(self, guard: Guard, context: Sequence[Message], *, stage: Stage, holdback: int, debounce: int):
        if holdback < 0 or debounce < 1:
            raise ValueError(f"holdback must be >= 0 and debounce >= 1, not {holdback} and {debounce}")
        if stage.is_query:
            raise ValueError(f"a stream judges a model's own output; use check(..., stage='{stage.value}')")
        self._guard, self._holdback = guard, holdback
        self._context, self._debounce = context, debounce
        self._worst: tuple[Decision, list[Sentence]] | None = None  # and the sentences that it may be for
        self._reader = ResponseReader(guard.model, stage)
        self._running = RunningVerdict(self._reader, guard.model, guard.policy, debounce)
        self._session: Session | None = None
        self._held: deque[int] = deque(maxlen=max(holdback, 1))  # starts of the newest judged tokens
        self._text = ""  # received and not released
        self._held_to = 0  # the newest position in `_held`, see _hold
        self._marks: WeakSet[Mark] = WeakSet()  # those that can be gone back to
        self._n_marks = 0
        self._stage = stage
        self._closed = False
        self._finished = False
        self._recorded = False
        emitter = telemetry.active()
        self._watch = None if emitter is None else emitter.stream(guard, self)
        keeps_text = guard.keeps_text or (self._watch is not None and self._watch.wants_text)
        self._heard: list[str] | None = [] if keeps_text else None  # all that was received, for audit and telemetry
        self._listener: Callable[[Tokens, Scores], object] | None = None
        self._error: str | None = None
        self._error_type: str | None = None
        self._started = time.perf_counter()
        self.released = 0
        self.shown_early = 0
        try:
            self._session = guard.model.open(context)
        except Exception as error:
            try:
                self._fail(error)
            except NotJudged:
                self.close()
                raise

    # -- what is known

    @property
    def verdict(self) -> Verdict:
        """The verdict so far, the unstable tail judged speculatively."""
        return self._as_it_stands().verdict

    def _as_it_stands(self) -> RunningVerdict:
        session, tail = self._session, self._reader.peek()
        if session is None or self.stopped or not self.judged or not tail.ids:
            return self._running
        speculative = self._running.copy()
        try:
            speculative.add(tail, self._guard.model.judge(Append(session, tail, keep=False), self._guard.timeout))
        except Exception as error:
            raise NotJudged(f"the text so far could not be judged ({type(error).__name__}: {error})") from error
        return speculative

    def pause(self) -> tuple[Decision, int]:
        """How a text stands that pauses here, its unstable tail judged speculatively: the decision, and how many of its
        characters may be shown meanwhile, without those that a flagged run may begin with. Changes nothing. Raises
        `NotJudged`."""
        found = self._as_it_stands()
        open_from = found.open_from
        return found.decision, self._reader.received if open_from is None else max(open_from, self.released)

    @property
    def decision(self) -> Decision:
        """The policy's decision so far."""
        if self._error is None:
            return self._running.decision
        return self._guard.not_judged(self._error, self._stage, self._running.decision)

    @property
    def stopped(self) -> bool:
        return self._running.stopped or (self._error is not None and self._guard.policy.on_error is Action.block)

    @property
    def judged(self) -> bool:
        """False once a model error ended the judging."""
        return self._error is None

    @property
    def withheld(self) -> int:
        return self._reader.received - self.released

    @property
    def n_tokens(self) -> int:
        return self._running.n_tokens

    # -- text in, events out

    def listen(self, listener: Callable[[Tokens, Scores], object]) -> None:
        """Have `listener` called with tokens and their scores as they are judged, in order, each token once."""
        self._listener = listener

    def feed(self, delta: str | None) -> list[Event]:
        """Take more text; returns what may be shown now. After a stop: nothing, and the text counts as withheld.

        None, as the first and last delta of many APIs, is no text.
        """
        return self._drive(self._feed(delta))

    def feed_ids(self, ids: Sequence[int]) -> list[Event]:
        """Take token ids of an LLM that shares the guard's vocabulary: they are judged as they are, each at once.
        Raises TypeError where the guard cannot, ValueError for an id that is no token."""
        return self._drive(self._feed_ids(ids))

    def finish(self, *, close: bool = True) -> list[Event]:
        """The text is complete: judge the tail and release what is left. The stream takes no more.

        close: False leaves it open for `rewind`, until `close()`.
        """
        return self._drive(self._finish(close))

    # -- back

    def mark(self) -> Mark:
        """The place where the text is now, for `rewind`. Raises NotImplementedError where the model cannot go back."""
        self._check_open()
        if self._session is None or self._error is not None or self.stopped:
            raise NotJudged("a stream that stopped has no place to come back to")
        self._n_marks += 1
        mark = Mark(
            self._reader.received,
            self._n_marks,
            (
                self._reader.copy(),
                self._running.copy(),
                self._held.copy(),
                self._text,
                self._held_to,
                self.released,
                len(self._heard or ()),
                self._worst,
                self._session.mark(),
            ),
        )
        self._marks.add(mark)
        return mark

    def rewind(self, mark: Mark) -> None:
        """Forget all that came since `mark`, a stop included: the stream is as it was there, without asking the model.

        What was shown of it must be taken back by whoever shows it. The mark can be used again; those made since are
        void. Raises `NotJudged` where a model error ended the judging, `StreamClosed` behind `close`, ValueError for a
        mark that is void or another stream's. A model that fails here ends the judging.
        """
        if self._closed or self._session is None:
            raise StreamClosed("this stream is closed; open a new one with guard.stream(...)")
        if self._error is not None:
            raise NotJudged(f"the stream cannot go on, since it could not be judged ({self._error})")
        if mark not in self._marks:
            raise ValueError("a mark of another stream, or of a text that was taken back")
        if self.stopped:
            self._record(self._reader.received)
        reader, running, held, self._text, self._held_to, released, heard, self._worst, place = mark._state
        self._reader = reader.copy()
        self._running = running.copy(self._reader)
        self._held, self.released = held.copy(), released
        if self._heard is not None:
            del self._heard[heard:]
        self._finished = False
        for later in [m for m in self._marks if m._number > mark._number]:
            self._marks.discard(later)
        try:
            self._session.rewind(place)
        except Exception as error:
            self._fail(error)

    def _drive(self, steps: _Steps) -> list[Event]:
        try:
            with _UNWATCHED if self._watch is None else self._watch:
                return lead(self._guard.model, steps, self._guard.timeout)
        except Exception:
            raise
        except BaseException:  # interrupted: what was being judged is never released
            self.close()
            raise

    def _feed(self, delta: str | None) -> _Steps:
        if self._closed or self._finished:
            self._check_open()
        if delta is None:
            return []
        if not isinstance(delta, str):
            raise TypeError(f"a stream is fed str (or None), not {type(delta).__name__}")
        text, tokens = self._reader.push(delta)
        return (yield from self._advance(text, tokens))

    def _feed_ids(self, ids: Sequence[int]) -> _Steps:
        self._check_open()
        text, tokens = self._reader.push_ids(ids)
        return (yield from self._advance(text, tokens))

    def _finish(self, close: bool = True) -> _Steps:
        self._check_open()
        try:
            text, tokens = self._reader.finish()
            events = yield from self._advance(text, tokens, final=True)
            if self.judged and not self.stopped:
                yield from self._settle()
            self._finished = True
            return events
        finally:
            if close:
                self.close()

    def close(self) -> None:
        """End the stream without releasing what is held back. Safe to call twice; done by `with` and `finish`."""
        self._closed = True
        self._text = ""
        if self._session is not None:
            self._session.close()
            self._session = None
        if not self._recorded:
            self._recorded = True
            # Of a stream that was left early, only what went out is known to be judged.
            self._record(self._reader.received if self._finished or self.stopped else self.released)
            if self._watch is not None:
                self._watch.end(self)

    def _record(self, characters: int) -> None:
        heard = None if self._heard is None else "".join(self._heard)
        elapsed = (time.perf_counter() - self._started) * 1e3
        self._guard.record(self.decision, heard, characters, elapsed, "stream")
        if self._watch is not None:
            self._watch.decided(self, self._error_type, heard)

    def __enter__(self) -> StreamGuard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a stream can be neither copied nor pickled: it is one response in one loaded model")

    def _check_open(self) -> None:
        if self._closed or self._finished:
            raise StreamClosed("this stream is finished; open a new one with guard.stream(...)")

    def _advance(self, text: str, tokens: list[Tokens], final: bool = False) -> _Steps:
        if self._heard is not None:
            self._heard.append(text)
        if self.stopped:
            return []
        self._text += text
        events: list[Event] = []
        try:
            for group in tokens if self._error is None else ():
                if self._session is None:
                    raise StreamClosed("this stream was closed while it was being fed")
                self._judge(group, (yield Append(self._session, group)), events)
                if self._running.stopped:
                    yield from self._settle()
                    return self._stop(events)
        except Exception as error:
            self._fail(error)
        self._release(events, final)
        return events

    def _fail(self, error: Exception) -> None:
        """Nothing is judged from here on: raise, or (on_error: allow) let the text through."""
        self._error, self._error_type = f"{type(error).__name__}: {error}", type(error).__name__
        if self.stopped:
            self._text = ""
            raise NotJudged(f"the stream could not be judged and was stopped ({self._error})") from error

    def _judge(self, tokens: Tokens, scores: Scores, events: list[Event]) -> None:
        before = self._running.n_tokens
        if self._listener is not None:
            self._listener(tokens, scores)
        for decision in self._running.add(tokens, scores):
            self._worst = decision, sentences_before(self._reader.text, decision.verdict)
            if decision.action is Action.flag and decision.verdict is not None:
                events.append(FlagEvent(decision.verdict))
        judged = self._running.n_tokens - before
        for start in tokens.starts[: judged - 1 if self._running.stopped else judged]:
            if self._held_to + BLANK < start:
                self._hold_blanks(start)
            self._held.append(start)
            self._held_to = start
        if self._running.stopped:
            self._hold_blanks(tokens.starts[judged - 1])

    def _settle(self) -> Steps[None]:
        """Find where the harm begins, once: at the stop, or at the end. In between it would hold up other streams."""
        if self._worst is None:
            return
        (decision, sentences), guard = self._worst, self._guard
        n_locate = guard.model.n_locate(guard.locate)
        place = yield from begin_of_harm(
            guard.model, guard.policy, self._context, sentences, decision.stage, self._debounce, n_locate
        )
        self._running.begin_at(decision, place)

    def _hold_blanks(self, end: int) -> None:
        """A long stretch without tokens (blanks, invisible characters) counts as a token every `BLANK` characters, so
        that a flood of them can neither fill the memory nor hold the text up."""
        while self._held_to + BLANK < end:
            self._held_to += BLANK
            self._held.append(self._held_to)

    def _release(self, events: list[Event], final: bool) -> None:
        if self._closed:
            return
        end = 0
        if final or not self._holdback or self._error is not None:
            end = self._reader.text_in
        else:
            self._hold_blanks(self._reader.stable)
            if len(self._held) == self._holdback:
                end = self._held[0]
        self._emit(end, events)

    def _emit(self, end: int, events: list[Event]) -> None:
        count = end - self.released
        if count > 0:
            events.append(TextEvent(self._text[:count]))
            self._text = self._text[count:]
            self.released = end

    def _stop(self, events: list[Event]) -> list[Event]:
        """Show nothing from the flagged run on. What is let out is the same in any chunking: with a hold-back, all but
        the last `holdback` tokens before the one that flagged; without, all before the run."""
        run = self._running
        end = run.run_start
        if self._holdback:
            end = min(end, self._held[0] if len(self._held) == self._holdback else 0)
        if self._closed:
            return []
        self._emit(end, events)
        if self.released > end:
            early = self.released - end
            self.released = end
            self.shown_early += early
            events.append(RetractEvent(early))
        self._text = ""
        events.append(StopEvent(run.verdict, self.withheld))
        return events
