"""Records to rows: batches of what is there, each text judged once, rows out in the order they came in."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from guardkit_cli.output import Row
from guardkit_cli.records import Item, Record

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from guardkit import Action, Decision, Guard, Severity, Stage

MAX_CACHED = 16_384
MAX_CACHED_TEXT = 10_000
MAX_CACHED_CHARS = 16_000_000
MAX_WAITING_CHARS = 4_000_000
MAX_AHEAD = 16  # batches under way where the model wants some, but fewer: so it never waits for lines to be read
MAX_RECENT = 512  # lines that a record of several may put together


class DecisionCache:
    """The decisions of the texts seen last, bounded in number and in characters. For one guard and one stage."""

    def __init__(self, max_entries: int = MAX_CACHED, max_chars: int = MAX_CACHED_CHARS):
        self._entries: OrderedDict[str, Decision] = OrderedDict()
        self._max_entries, self._max_chars = max_entries, max_chars
        self._n_chars = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str) -> Decision | None:
        found = self._entries.get(text)
        if found is not None:
            self._entries.move_to_end(text)
        return found

    def put(self, text: str, decision: Decision) -> None:
        if len(text) > MAX_CACHED_TEXT or text in self._entries:
            return
        self._entries[text] = decision
        self._n_chars += len(text)
        while len(self._entries) > self._max_entries or self._n_chars > self._max_chars:
            self._n_chars -= len(self._entries.popitem(last=False)[0])


def _badness(decision: Decision) -> tuple[Action, Severity]:
    from guardkit import Severity

    return decision.action, decision.verdict.severity if decision.verdict else Severity.safe


def items_of(record: Record) -> list[Item]:
    """All that is judged of a record."""
    return [] if record.item is None else [record.item, *record.more]


@dataclass
class Tally:
    """What happened so far; decides the exit code."""

    records: int = 0
    flagged: int = 0
    redacted: int = 0
    blocked: int = 0
    not_judged: int = 0
    tolerated: int = 0

    def add(self, row: Row) -> None:
        self.records += 1
        action = row.action
        if not row.judged:
            self.not_judged += 1
            self.tolerated += row.tolerated
            self.blocked += row.tolerated and action == "block"  # the part that was judged is blocked
        elif action == "block":
            self.blocked += 1
        elif action == "redact":
            self.redacted += 1
        elif action != "allow":
            self.flagged += 1

    @property
    def exit_code(self) -> int:
        if self.not_judged > self.tolerated:
            return 3
        return 1 if self.blocked else 0


@dataclass(eq=False)
class _Batch:
    """Records that are judged together. waiting: each with its decision, where it is known already, or the batch that
    its text is judged in; texts: to judge, once each, in order; found: what became of them, in the end."""

    waiting: list[tuple[Record, Decision | _Batch | None]] = field(default_factory=list)
    texts: dict[str, None] = field(default_factory=dict)
    chats: list[Record] = field(default_factory=list)
    n_chars: int = 0
    decisions: Callable[[], list[Decision]] = list
    found: dict[str, Decision] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        return [*self.texts, *(item for record in self.chats for item in items_of(record))]


class Judge:
    """Takes records, gives rows to `emit`, in order. `flush` when no more input is at hand, or at the end.

    Where the model wants more pieces of work under way than a batch has, further batches are read, and rows of earlier
    ones written, while one is judged: Python and the model then share the cores. With a timeout batches are judged one
    at a time, so that none waits for another.
    """

    def __init__(
        self,
        guard: Guard,
        emit: Callable[[Sequence[Row]], None],
        *,
        stage: Stage | None = None,
        batch_size: int = 64,
        allow_errors: bool = False,
    ):
        self.tally = Tally()
        self._guard, self._emit, self._stage = guard, emit, stage
        self._batch_size, self._allow_errors = batch_size, allow_errors
        self._cache = DecisionCache()
        self._shown: dict[tuple[str, Stage], str] = {}  # texts that were redacted
        self._recent: deque[Decision | None] = deque(maxlen=MAX_RECENT)  # of lines, newest last
        self._next = _Batch()
        self._under_way: deque[_Batch] = deque()
        self._asked: dict[str, _Batch] = {}  # texts that are judged, or will be, and where
        wanted = guard.model.in_flight // batch_size if guard.timeout is None else 1
        self._most = max(wanted, MAX_AHEAD) if wanted > 1 else 1
        self._threads: ThreadPoolExecutor | None = None

    def add(self, records: Sequence[Record]) -> None:
        cache, asked, batch = self._cache, self._asked, self._next
        for record in records:
            item = record.item
            known: Decision | _Batch | None = None
            if isinstance(item, str) and not record.more:
                known = cache.get(item) or asked.get(item)
                if known is None:
                    known = asked[item] = batch
                    batch.texts[item] = None
            elif item is not None:
                batch.chats.append(record)
            batch.waiting.append((record, known))
            batch.n_chars += len(record.text)
            if (
                len(batch.texts) + len(batch.chats) >= self._batch_size
                or len(batch.waiting) >= 16 * self._batch_size
                or batch.n_chars >= MAX_WAITING_CHARS
            ):
                self._hand_over()
                batch = self._next

    def flush(self) -> None:
        """Judge what waits and emit its rows."""
        self._hand_over()
        while self._under_way:
            self._finish(self._under_way.popleft())

    def _hand_over(self) -> None:
        """Have the next batch judged; emit the rows of those that are, or of which there are enough."""
        batch, self._next = self._next, _Batch()
        if not batch.waiting:
            return
        if self._most > 1 and (items := batch.items):
            if self._threads is None:
                from concurrent.futures import ThreadPoolExecutor

                self._threads = ThreadPoolExecutor(self._most, "guard-check")
            batch.decisions = self._threads.submit(self._decide, items).result
        else:
            decisions = self._decide(batch.items)
            batch.decisions = lambda: decisions
        self._under_way.append(batch)
        while len(self._under_way) >= self._most or sum(b.n_chars for b in self._under_way) > MAX_WAITING_CHARS:
            self._finish(self._under_way.popleft())

    def _finish(self, batch: _Batch) -> None:
        """Wait for a batch's decisions and emit its rows."""
        decisions = batch.decisions()
        batch.found = dict(zip(batch.texts, decisions, strict=False))
        chats = iter(decisions[len(batch.texts) :])
        found = (self._row(record, known, chats.__next__) for record, known in batch.waiting)
        rows = [row for row in found if row is not None]
        for text, decision in batch.found.items():
            del self._asked[text]
            if decision.judged:  # a fault may pass; the next such text is tried again
                self._cache.put(text, decision)
        self._emit(rows)

    def _row(self, record: Record, known: Decision | _Batch | None, next_chat: Callable[[], Decision]) -> Row | None:
        """The row of a record; None for lines put together that are no worse than one of them."""
        item = record.item
        decision: Decision | None
        if isinstance(known, _Batch):
            decision = known.found[cast(str, item)]
        elif known is not None or item is None:
            decision = known
        else:
            from guardkit.policy import worst_of

            decision = worst_of([next_chat() for _ in items_of(record)])
        if not record.over:
            self._recent.append(decision)
        elif self._is_no_worse(decision, record.over):
            return None
        tolerated = self._allow_errors and (decision is None or not decision.judged)
        row = Row(self.tally.records, record, decision, tolerated, self._redacted(decision))
        self.tally.add(row)
        return row

    def _is_no_worse(self, decision: Decision | None, n_lines: int) -> bool:
        if decision is None or not decision.judged:
            return False
        lines = (line for line in list(self._recent)[-n_lines:] if line is not None)
        return any(not _badness(line) < _badness(decision) for line in lines)

    def _redacted(self, decision: Decision | None) -> str | None:
        if decision is None or decision.action.value != "redact" or decision.text is None:
            return None
        key = (decision.text, decision.stage)
        if key not in self._shown:
            if len(self._shown) >= MAX_CACHED:
                self._shown.clear()
            self._shown[key] = self._guard.redact(decision.text, stage=decision.stage)
        return self._shown[key]

    def _decide(self, items: Sequence[Item]) -> list[Decision]:
        if not items:
            return []
        try:
            decisions = self._guard.decide_batch(items, stage=self._stage)
        except Exception as error:  # the guard promises not to raise; if it does, nothing here was found safe
            decisions = [self._failed(error)] * len(items)
        if len(decisions) != len(items):
            decisions = [self._failed(RuntimeError("the guard lost records of a batch"))] * len(items)
        return decisions

    def _failed(self, error: Exception) -> Decision:
        from guardkit import Action, Decision, Stage

        action = Action.allow if self._allow_errors else Action.block
        reason = str(error) or type(error).__name__
        return Decision(action, None, "on_error", False, self._stage or Stage.prompt, reason)
