"""Records to outputs of models: every text that a model wrote, with what came before it."""

from __future__ import annotations

from dataclasses import dataclass

from guardkit_cli.records import Item, Record


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a model. message: its index in the record's messages or candidates; None where the record is no
    list of them. item is None where the record cannot be read; `record.error` then says why."""

    record: Record
    message: int | None
    item: Item | None

    @property
    def prompt(self) -> str:
        """What the user said last before it, for people."""
        if not isinstance(self.item, list):
            return ""
        return next((m.content for m in reversed(self.item[:-1]) if m.role in ("user", "human") and m.content), "")


def outputs(record: Record) -> list[Output]:
    """The outputs in a record, never none: what cannot be read is there, without an item."""
    if record.item is None:
        return [Output(record, None, None)]
    items = (record.item, *record.more)
    return [Output(record, number, item) for item, number in zip(items, record.numbers, strict=True)]


def reads_as_json(text: str) -> bool:
    """Whether a text, or its first line, is a JSON object or a list of them."""
    text = text.lstrip()
    return text.startswith(("{", "[")) and any(_is_record(t) for t in (text.partition("\n")[0], text))


def _is_record(text: str) -> bool:
    import json

    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return all(isinstance(d, dict) for d in (data if isinstance(data, list) else [data])) and data != []
