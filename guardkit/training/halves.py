"""Two halves of a data set, by content: the same rows always fall on the same sides, in any order, on any machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from guardkit.labelling.rows import Item


def content_of(item: Item) -> str:
    """A text or a conversation as one string, without what does not tell two of them apart: case and white space."""
    told = item if isinstance(item, str) else "\0".join(f"{m.role}\1{m.reasoning}\1{m.said}" for m in item)
    return " ".join(told.casefold().split())


def halves(items: Sequence[Item | None], groups: Sequence[str | None] | None = None, *, seed: int = 0) -> list[int]:
    """The side, 0 or 1, of each item. Equal items are on one side, and so are items of one group (None: of no group),
    also where a chain of both connects them. Items that are None go with their group."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    keys: list[str] = []
    for at, item in enumerate(items):
        group = groups[at] if groups is not None else None
        own = None if item is None else f"text {content_of(item)}"
        named = None if group is None else f"group {group}"
        keys.append(own or named or "")
        if own is not None and named is not None:
            one, other = sorted((root(own), root(named)))
            parent[other] = one  # the least key stands for all, in whatever order they came
    return [hashlib.blake2b(f"{seed} {root(key)}".encode("utf-8", "surrogatepass")).digest()[0] & 1 for key in keys]
