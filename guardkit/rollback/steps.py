"""One answer from its first token to its end: when the guard is asked, what is shown, what is taken back.

The steps are a generator that calls neither a language model nor a guard: it yields what is to be called, is sent the
result, and yields text to be shown. So each decision is written once, for local models and servers, sync and async.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from guardkit.errors import NotJudged
from guardkit.events import Mark
from guardkit.guard import Guard
from guardkit.messages import REASONING_TAG, Message
from guardkit.rollback.draft import Draft
from guardkit.rollback.result import Dropped, FinishReason, RollbackResult
from guardkit.rollback.words import Words
from guardkit.stream import StreamGuard
from guardkit.verdict import Stage, Verdict


@dataclass(frozen=True)
class Settings:
    """See `Rollback`."""

    buffer: int
    retries: int
    stride: int
    introspect: bool
    show_introspection: bool
    introspection_tokens: int


@dataclass(frozen=True)
class Call:
    """What is to be called: a method of the language model's side (`Source`), or of the stream that judges."""

    on: Literal["source", "stream"]
    name: str
    args: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


Steps = Generator["Call | str", Any, None]


class Answer:
    """One answer under way. `steps` leads it to its end; the rest tells how it stands. stage: reasoning for a text that
    begins inside of it."""

    def __init__(
        self,
        guard: Guard,
        settings: Settings,
        words: Words,
        context: Sequence[Message],
        stops: Sequence[str] = (),
        stage: Stage = Stage.response,
    ):
        self._guard, self._settings, self._words, self._context = guard, settings, words, tuple(context)
        self._stage = stage
        self._draft = Draft(stops)
        self.stream: StreamGuard | None = None
        self._marks: list[Mark] = []  # places that the guard can go back to, oldest first
        self._fed = 0  # characters that the guard has
        self._checked = 0  # tokens that the guard has
        self._stopped = False  # whether a stop string ended the text
        self.shown = ""
        self.dropped: list[Dropped] = []
        self.rollbacks = 0
        self.refused = False
        self.reason: FinishReason = "stop"
        self.error: str | None = None
        self.verdict: Verdict | None = None

    @property
    def wait_tokens(self) -> int:
        return self._settings.buffer * (self.rollbacks + 1)

    @property
    def result(self) -> RollbackResult:
        draft = self._draft
        return RollbackResult(
            text=self.shown,
            answer=draft.text[: draft.shown],
            refused=self.refused,
            finish_reason="refusal" if self.refused else self.reason,
            rollbacks=self.rollbacks,
            wait_tokens=self.wait_tokens,
            n_tokens=draft.shown_tokens,
            dropped=tuple(self.dropped),
            verdict=self.verdict,
            error=self.error,
        )

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()

    def steps(self) -> Steps:
        try:
            if not self._open():
                yield self._refuse()
                return
            while True:
                ended = self._stopped
                if not ended:
                    piece = yield Call("source", "next")
                    ended = piece is None or self._draft.add(piece)
                if not ended and self._draft.n_tokens - self._checked < self._settings.stride:
                    continue
                if (yield from self._judge(ended)):
                    if text := self._draft.show(self._showable(ended)):
                        self.shown += text
                        yield text
                    if ended:
                        self.reason = yield Call("source", "reason")
                        return
                elif not (yield from self._try_again()):
                    yield self._refuse()
                    return
        finally:
            if self.stream is not None:
                if not self.refused and self.stream.judged:
                    self.verdict = self.stream.verdict
                self.stream.close()

    # -- judging

    def _open(self) -> bool:
        """A stream of the guard's; False where it cannot judge."""
        self.close()
        least = max(self._guard.debounce - 1, 1)  # the buffer is the hold-back
        self._fed, self._checked, self._marks = 0, 0, []
        try:
            self.stream = self._guard.stream(self._context, stage=self._stage, holdback=least)
            return self._is_judged() and self._mark()
        except NotJudged as error:
            self.error = str(error)
            return False

    def _mark(self) -> bool:
        assert self.stream is not None
        try:
            mark = self.stream.mark()
        except NotImplementedError:  # a model that cannot go back: it reads from the start again
            return True
        draft = self._draft
        while len(self._marks) > 1 and self._marks[1].n_chars <= draft.shown:
            del self._marks[0]
        self._marks.append(mark)
        return True

    def _is_judged(self) -> bool:
        """Whether all that the stream was fed was judged. What goes through since `on_error` allows it is not."""
        assert self.stream is not None
        if not self.stream.judged:
            self.error = self.error or self.stream.decision.error or "not judged"
        return self.error is None

    def _judge(self, ended: bool) -> Generator[Call, Any, bool]:
        """Have the new text judged; whether it may stand."""
        end = len(self._draft.text) if ended else max(self._draft.settled, self._fed)
        if not (yield from self._feed(end, ended)):
            return False
        self._checked = self._draft.n_tokens
        return True if ended else self._mark()

    def _feed(self, end: int, ended: bool = False) -> Generator[Call, Any, bool]:
        assert self.stream is not None
        text, self._fed = self._draft.text[self._fed : end], end
        try:
            if text:
                yield Call("stream", "feed", (text,))
            if ended and not self.stream.stopped:
                yield Call("stream", "finish", options=(("close", False),))
        except NotJudged as error:
            self.error = str(error)
        return self._is_judged() and not self.stream.stopped

    def _showable(self, ended: bool) -> int:
        """Tokens that may be shown: all but the buffer, and no text that the guard still thinks about."""
        assert self.stream is not None
        draft = self._draft
        if ended:
            return draft.n_tokens
        judged = draft.tokens_within(min(self.stream.released, draft.settled))
        return min(draft.whole(max(draft.n_tokens - self._settings.buffer, 0)), judged)

    # -- going back

    def _try_again(self) -> Generator[Call, Any, bool]:
        """Take the buffer back and let the model reflect. False where the answer ends in a refusal."""
        if self.error is not None:
            return False
        assert self.stream is not None
        draft, settings, verdict = self._draft, self._settings, self.stream.verdict
        self.verdict = verdict
        if self.rollbacks == settings.retries:
            return False
        answer, self._stopped = draft.text, False
        keep = draft.whole(max(draft.n_tokens - settings.buffer, 0))
        if verdict.char_index is not None:  # a guard that found it late
            keep = min(keep, draft.tokens_within(verdict.char_index))
        keep = max(keep, draft.shown_tokens)
        text = draft.drop(keep)
        self.dropped.append(Dropped(text, verdict))
        while not (yield from self._go_back()):
            if self.error is not None or draft.n_tokens == draft.shown_tokens:
                return False
            text = draft.drop(draft.shown_tokens) + text  # of what was kept, too, the guard now says no
            self.dropped[-1] = Dropped(text, verdict)
        self.rollbacks += 1
        yield Call("source", "back", (draft.n_tokens, draft.text, not settings.introspect))
        words: str | None = None
        if settings.introspect:
            words = yield from self._introspect(answer)
        self.dropped[-1] = Dropped(text, verdict, words)
        return True

    def _go_back(self) -> Generator[Call, Any, bool]:
        """Take the guard back to the end of the draft; whether what is kept may stand."""
        draft = self._draft
        if not self._marks:
            if not self._open():
                return False
        else:
            assert self.stream is not None
            self._marks = [mark for mark in self._marks if mark.n_chars <= len(draft.text)]
            try:
                self.stream.rewind(self._marks[-1])
            except NotJudged as error:
                self.error = str(error)
                return False
            self._fed = self._marks[-1].n_chars
        self._checked = draft.n_tokens
        return (yield from self._feed(max(draft.settled, self._fed)))

    def _introspect(self, answer: str) -> Generator[Call, Any, str]:
        settings, words = self._settings, self._words
        most = settings.introspection_tokens
        if settings.show_introspection:
            most = min(most, settings.buffer)
        asked = words.introspection(self._context, answer)
        text: str = yield Call("source", "introspect", (asked, words.begin, most))
        pieces: Sequence[str] = yield Call("source", "insert", (text, settings.show_introspection))
        for piece in pieces:
            self._stopped = self._draft.add(piece) or self._stopped
        return text

    def _refuse(self) -> str:
        """The end of an answer that cannot go on; nothing that was not shown yet is."""
        self.refused = True
        if self._draft.n_tokens > self._draft.shown_tokens:
            text = self._draft.drop(self._draft.shown_tokens)
            self.dropped.append(Dropped(text, self.verdict if self.error is None else None))
        between = "\n\n" if self.shown and not self.shown.endswith("\n") else ""
        tags = REASONING_TAG.findall(self.shown)
        if (not tags[-1]) if tags else self._stage is Stage.reasoning:
            between = "\n</think>\n\n"  # a refusal is no thought
        text = between + self._words.refusal
        self.shown += text
        return text
