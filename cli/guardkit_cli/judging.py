"""Records to rows: batches of what is there, each text judged once, rows out in the order they came in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardkit_cli.output import Row
from guardkit_cli.records import Item, Record

if TYPE_CHECKING:
    from guardkit import Decision, Guard, Stage

MAX_CACHED = 16_384
MAX_CACHED_TEXT = 10_000
MAX_CACHED_CHARS = 16_000_000
MAX_WAITING_CHARS = 4_000_000


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


class Judge:
    """Takes records, gives rows to `emit`. `flush` when no more input is at hand, or at the end."""

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
        self._waiting: list[Record] = []
        self._new: dict[str, None] = {}  # texts to judge, once each, in order
        self._chats: list[Record] = []
        self._n_chars = 0

    def add(self, records: Sequence[Record]) -> None:
        cache, new = self._cache, self._new
        for record in records:
            item = record.item
            self._waiting.append(record)
            self._n_chars += len(record.text)
            if isinstance(item, str) and not record.more:
                if item not in new and cache.get(item) is None:
                    new[item] = None
            elif item is not None:
                self._chats.append(record)
            if (
                len(new) + len(self._chats) >= self._batch_size
                or len(self._waiting) >= 16 * self._batch_size
                or self._n_chars >= MAX_WAITING_CHARS
            ):
                self.flush()

    def flush(self) -> None:
        """Judge what waits and emit its rows."""
        if not self._waiting:
            return
        texts = list(self._new)
        decisions = self._decide([*texts, *(item for record in self._chats for item in items_of(record))])
        fresh = dict(zip(texts, decisions, strict=False))
        chats = iter(decisions[len(texts) :])
        rows = [self._row(record, fresh, chats.__next__) for record in self._waiting]
        for text, decision in fresh.items():
            if decision.judged:  # a fault may pass; the next such text is tried again
                self._cache.put(text, decision)
        self._waiting.clear()
        self._new.clear()
        self._chats.clear()
        self._n_chars = 0
        self._emit(rows)

    def _row(self, record: Record, fresh: dict[str, Decision], next_chat: Callable[[], Decision]) -> Row:
        item = record.item
        decision: Decision | None
        if item is None:
            decision = None
        elif isinstance(item, str) and not record.more:
            decision = fresh.get(item) or self._cache.get(item)
        else:
            from guardkit.policy import worst_of

            decision = worst_of([next_chat() for _ in items_of(record)])
        tolerated = self._allow_errors and (decision is None or not decision.judged)
        row = Row(self.tally.records, record, decision, tolerated, self._redacted(decision))
        self.tally.add(row)
        return row

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
