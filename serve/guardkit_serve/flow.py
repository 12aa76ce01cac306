"""One streamed answer on its way through the guard: events wait in one queue until their texts are released.

Order is kept, and what passes leaves with the bytes that it came in with. An event whose texts are not all released
waits whole; only at a violation is the last one cut, where the release ends.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from guardkit import Decision, Guard, Stage
from guardkit.messages import Part
from guardkit.reading.jsontext import parse
from guardkit_serve import sse
from guardkit_serve.channel import Channel
from guardkit_serve.errors import HttpError
from guardkit_serve.judging import decide, item_of
from guardkit_serve.observe import Observer
from guardkit_serve.protocols.base import Key, Piece, Protocol, Reading, Violation
from guardkit_serve.shapes import Fitted, Shapes
from guardkit_serve.sse import Frame
from guardkit_serve.walking import part_of

BEHIND_CHARS = 64
"""Of other texts of a choice, after which one that did not go on is taken to pause."""
BESIDE, ASIDE = "beside", "aside"
"""What keys of texts at places of no known meaning begin with; the place of what is in no event: comments, ids."""
_DIGITS = re.compile(r"[0-9]+")


class _Entry:
    """An event in the queue, and how far its texts must be released before it may go. said: what it says, read whole
    or by its shape."""

    __slots__ = ("blocked", "marks", "n_chars", "pieces", "raw", "said")

    def __init__(self, raw: bytes, said: tuple[Frame, Any] | Fitted, pieces: Sequence[Piece], n_chars: int):
        self.raw, self.said, self.pieces, self.n_chars = raw, said, pieces, n_chars
        self.marks: list[tuple[Channel, int]] = []
        self.blocked = True  # until all of it was handed to the guard


class _Turns:
    """Texts of one choice that may take turns, as an answer and its reasoning: how far each is behind the others."""

    def __init__(self) -> None:
        self._came = 0  # characters
        self._last: dict[Channel, int] = {}  # where each text went on last, in those

    def took(self, channel: Channel, n_chars: int) -> list[Channel]:
        """More of a text came; the others that are now taken to pause."""
        self._came += n_chars
        self._last[channel] = self._came
        if len(self._last) == 1:
            return []
        behind = [other for other, at in self._last.items() if self._came - at >= BEHIND_CHARS]
        for other in behind:
            del self._last[other]
        return [other for other in behind if not other.finished]


class Flow:
    """`push` takes events and gives the bytes that may go out. After a stop (`violation`) nothing more is taken."""

    def __init__(
        self,
        protocol: Protocol,
        guard: Guard,
        observer: Observer,
        *,
        seconds: float,
        holdback: int | None = None,
        max_bytes: int = 32 << 20,
    ):
        self._protocol, self._guard, self._observer = protocol, guard, observer
        self._seconds, self._holdback = seconds, holdback
        self._shapes = Shapes(lambda raw: self._read(sse.read(raw)))
        self._channels: dict[Key, Channel] = {}
        self._turns: dict[Any, _Turns] = {}
        self._growing: dict[Channel, int] = {}  # at a place of no known meaning: how far it is behind all others
        self._asides: set[str] = set()  # that passed, but for their numbers: signs of life with the time in them
        self._waiting: Channel | None = None  # has pieces that were not handed to the guard yet
        self._queue: deque[_Entry] = deque()
        self._waits, self._max_bytes = 0, max_bytes  # bytes in it
        self._worst: Decision | None = None
        self._came = self._went = 0  # characters
        self.violation: Violation | None = None
        self.last = False

    async def push(self, frames: Sequence[bytes]) -> bytes:
        """Raises `HttpError` for an event that cannot be read; what was judged before it stays in the queue."""
        for raw in frames:
            if self.violation is not None or self.last:
                break
            known = self._shapes.fit(raw)
            if known is not None:
                entry = _Entry(raw, known, (known.piece,), len(known.piece.text))
                self._line_up(entry)
                await self._add(entry, known.piece)
                entry.blocked = self.violation is not None
                continue
            frame = sse.read(raw)
            data, reading = self._read(frame)
            self._shapes.note(raw, data, reading)
            n_chars = sum(len(piece.text) - piece.added for piece in reading.pieces)
            await self._take(_Entry(raw, (frame, data), reading.pieces, n_chars), reading)
            self.last = reading.last
        if self._waiting is not None:
            await self._flush()
        return self._pump()

    async def finish(self) -> bytes:
        """The upstream has ended: judge what is left."""
        await self._flush()
        for channel in list(self._channels.values()):
            if self.violation is None:
                await channel.finish()
                self._check(channel)
        return self._pump()

    def close(self) -> None:
        self._queue.clear()
        for channel in self._channels.values():
            self._note(channel)
            channel.close()

    @property
    def decision(self) -> Decision | None:
        """The strictest decision of all texts so far."""
        for channel in self._channels.values():
            self._note(channel)
        return self._worst

    # ------------------------------------------------------------------------------------------------------- inside

    def _read(self, frame: Frame) -> tuple[Any, Reading]:
        data = None
        if self._protocol.parses(frame):
            try:
                data = parse(frame.data or "")
            except ValueError as error:
                raise HttpError(502, f"the upstream sent an event that is {error}", "upstream_error") from None
        reading = self._protocol.read(frame, data)
        if frame.event:
            reading.wholes += map(part_of, self._protocol.seen.new("event", frame.event))
        if frame.aside and not (frame.aside.isascii() and _DIGITS.sub("0", frame.aside) in self._asides):
            reading.wholes += map(part_of, self._protocol.seen.new(ASIDE, frame.aside))
        return data, reading

    def _line_up(self, entry: _Entry) -> None:
        self._queue.append(entry)
        self._waits += len(entry.raw)
        if self._waits > self._max_bytes:
            raise HttpError(502, "more of the answer waits to be judged than may", "upstream_error")
        self._came += entry.n_chars

    async def _add(self, entry: _Entry, piece: Piece) -> None:
        """Hand a piece over, to be judged with those that follow it."""
        channel = self._channels.get(piece.key) or self._channel(piece)
        if self._waiting is not channel:
            if self._waiting is not None:
                await self._flush()
            self._waiting = channel
        if self.violation is not None:
            return
        entry.marks.append((channel, channel.add(piece.text)))
        for behind in self._turns[piece.key[0]].took(channel, len(piece.text)):
            await behind.settle()
            self._check(behind)
        if self._growing:
            await self._pause(len(piece.text))

    async def _take(self, entry: _Entry, reading: Reading) -> None:
        self._line_up(entry)
        for piece in reading.pieces:
            await self._add(entry, piece)
            if self.violation is not None:
                return
        if not (reading.ends or reading.wholes or reading.late):
            entry.blocked = False
            return
        await self._flush()
        for end in reading.ends:
            for key in [key for key in self._channels if key[: len(end)] == end]:
                await self._finish(key)
                if self.violation is not None:
                    return
        if self.violation is None:
            wholes = [*reading.wholes, *(reading.late() if reading.late is not None else ())]
            if wholes:
                await self._judge(wholes)
            for part in wholes:
                if self.violation is None and part.text and not part.stage.is_query:
                    await self._grow(entry, part)
        entry.blocked = self.violation is not None

    def _channel(self, piece: Piece) -> Channel:
        channel = self._channels.get(piece.key)
        if channel is None:
            channel = self._channels[piece.key] = Channel(
                self._guard,
                self._protocol.context,
                piece.stage,
                observer=self._observer,
                seconds=self._seconds,
                holdback=self._holdback,
                arguments=piece.arguments,
            )
            self._turns.setdefault(piece.key[0], _Turns())
            self._check(channel)
        return channel

    async def _flush(self) -> None:
        """Have the guard judge what it was not handed yet."""
        channel = self._waiting
        if channel is not None:
            self._waiting = None
            if (judging := channel.flush()) is not None:
                await judging
            if channel.stop is not None:
                self._check(channel)

    async def _finish(self, key: Key) -> None:
        channel = self._channels.pop(key)
        await channel.finish()
        self._check(channel)
        self._note(channel)
        if channel.stop is None:
            self._protocol.seen.add_digest(channel.digest)

    async def _judge(self, wholes: Sequence[Part]) -> None:
        """What stands whole in an event: a cited page, a repeated text that was never streamed."""
        texts = list(dict.fromkeys((part.stage, part.text or "") for part in wholes if part.text is not None))
        if len(texts) < len(wholes) and any(part.text is None for part in wholes):
            fault = self._guard.not_judged("the answer holds what cannot be judged", Stage.response, None)
            self._worse(fault)
            if fault.action.stops:
                self.violation = Violation(fault, "answer")
                return
        items = [item_of(text, stage) for stage, text in texts]
        for decision in await decide(self._guard, items, self._observer, self._seconds, sheds=False) if items else ():
            self._worse(decision)
            if decision.action.stops and self.violation is None:
                self.violation = Violation(decision, "answer")
        if self.violation is None:
            self._protocol.seen.add(text for _, text in texts)
            self._asides.update(_DIGITS.sub("0", part.text or "") for part in wholes if part.what == ASIDE)

    async def _grow(self, entry: _Entry, part: Part) -> None:
        """What passed as it stands, at a place of no known meaning, may go on in later events: from the second on it
        waits as any text that grows."""
        key = (BESIDE, part.stage, part.what)
        goes_on = key in self._channels
        channel = self._channel(Piece(key, part.stage, part.text or ""))
        entry.marks.append((channel, channel.add(part.text or "")))
        if (judging := channel.flush()) is not None:
            await judging
        if goes_on:
            self._growing[channel] = 0
        else:
            await channel.settle()
        self._check(channel)

    async def _pause(self, n_chars: int) -> None:
        """Other texts went on: those at such places that did not are taken to pause."""
        for channel, behind in list(self._growing.items()):
            self._growing[channel] = behind + n_chars
            if behind + n_chars >= BEHIND_CHARS:
                del self._growing[channel]
                await channel.settle()
                self._check(channel)

    def _check(self, channel: Channel) -> None:
        if channel.stop is not None and self.violation is None:
            self.violation = Violation(channel.stop, "answer")

    def _note(self, channel: Channel) -> None:
        self._worse(channel.decision)

    def _worse(self, decision: Decision) -> None:
        if self._worst is None or decision.action > self._worst.action:
            self._worst = decision

    def _pump(self) -> bytes:
        out: list[bytes] = []
        queue = self._queue
        while queue:
            entry = queue[0]
            waits = entry.blocked
            for channel, mark in entry.marks:
                waits = waits or channel.released < mark
            if waits:
                break
            queue.popleft()
            self._waits -= len(entry.raw)
            out.append(entry.raw)
            if isinstance(entry.said, Fitted):
                self._protocol.sent_again(entry.said.data)
            else:
                self._protocol.sent(*entry.said)
            self._protocol.shown = self._protocol.shown or bool(entry.pieces)
            self._went += entry.n_chars
        if self.violation is not None:
            if queue:
                out.append(self._cut(queue[0]))
            queue.clear()
            self.violation.counts = self._went, self._came - self._went
        return b"".join(out)

    def _cut(self, entry: _Entry) -> bytes:
        """Of the event in which the release ends, what is released of its text."""
        if len(entry.pieces) != 1 or len(entry.marks) != 1 or entry.pieces[0].path is None or not entry.pieces[0].text:
            return b""
        (channel, mark), piece = entry.marks[0], entry.pieces[0]
        count = channel.released - (mark - len(piece.text))
        if count <= 0 or any("\ud800" <= c <= "\udfff" for c in piece.text):
            return b""
        frame, data = (Frame(entry.raw), entry.said.data()) if isinstance(entry.said, Fitted) else entry.said
        event = self._protocol.cut(frame, data, piece, piece.text[:count])
        if event:
            self._protocol.shown = True
            self._went += count
        return event
