"""Who holds what another sequence begins with: a table of hashed blocks, and the closed sequences that are kept for it.

A conversation is checked, streamed and checked again with one more turn: each begins with the tokens of the one before.
So what a closed sequence has in the cache stays there while there is room, least recently used first to go, and a new
sequence starts with the longest beginning that some other one has, open or closed. The table only finds candidates;
what counts is that the token ids are equal. Called by the owner of the engine's loop alone.
"""

from __future__ import annotations

from collections import OrderedDict

from guardkit.engine.cache import Cache
from guardkit.engine.sequence import Sequence

BLOCK = 16  # tokens that are looked up together; a shorter beginning is not shared
WAIT = 64  # tokens that are worth waiting a step for, where another sequence is about to compute them


class Prefixes:
    """room: tokens of closed sequences that stay in `cache`; 0: only pinned beginnings are shared."""

    def __init__(self, cache: Cache, room: int):
        self._cache, self.room = cache, room
        self._kept: OrderedDict[Sequence, None] = OrderedDict()  # closed, the least recently used first
        self._holders: dict[int, Sequence] = {}  # of the first blocks, hashed one on another: who has them

    def add(self, sequence: Sequence) -> None:
        """Make what the cache has of a sequence known."""
        keys, ids = sequence.keys, sequence.ids
        while self.room and (len(keys) + 1) * BLOCK <= sequence.cached:
            at = len(keys) * BLOCK
            keys.append(_hash(keys[-1] if keys else 0, ids[at : at + BLOCK]))
            self._holders[keys[-1]] = sequence

    def cut(self, sequence: Sequence, n_tokens: int) -> None:
        """Only the first `n_tokens` of a sequence are in the cache any longer."""
        keys = sequence.keys
        while len(keys) * BLOCK > n_tokens:
            key = keys.pop()
            if self._holders.get(key) is sequence:
                del self._holders[key]

    def find(self, ids: list[int], most: int) -> tuple[Sequence, int] | None:
        """A sequence that begins with the first of `ids`, and with how many of them: `most` at the most."""
        key, n, found = 0, 0, None
        while self._holders and n + BLOCK <= most:
            key = _hash(key, ids[n : n + BLOCK])
            holder = self._holders.get(key)
            if holder is None:
                break
            n, found = n + BLOCK, holder
        if found is None or found.cached < n or found.ids[:n] != ids[:n]:  # two hashes that happen to be equal
            return None
        if found in self._kept:
            self._kept.move_to_end(found)
        return found, common(found.ids[: found.cached], ids[:most], n)

    def unknown(self, ids: list[int]) -> list[int]:
        """Hashes of the whole blocks of a text behind what others have of it."""
        found, key = [], 0
        for at in range(0, len(ids) // BLOCK * BLOCK if self.room else 0, BLOCK):
            key = _hash(key, ids[at : at + BLOCK])
            if key not in self._holders:
                found.append(key)
        return found

    # -- closed sequences

    def keep(self, sequence: Sequence) -> bool:
        """Take over what a closed sequence has in the cache; False where that is not worth it."""
        if sequence.slot.held > self.room or len(sequence.keys) == 0:
            return False
        self._cache.keep(sequence.slot)
        source, sequence.source = sequence.source, None
        if (
            source is not None and source in self._kept and source.ids == sequence.ids[: len(source.ids)]
        ):  # all of it is here too
            self._drop(source)
        self._kept[sequence] = None
        while self._cache.kept > self.room:
            self.drop_oldest()
        return True

    def took(self, source: Sequence) -> None:
        """What `source` held was shared, or moved."""
        if source in self._kept and not source.slot.held:
            self._drop(source)

    def drop_oldest(self) -> bool:
        """Give the memory of the kept sequence that was of use the longest time ago back; False where there is none."""
        for sequence in self._kept:
            self._drop(sequence)
            return True
        return False

    def _drop(self, sequence: Sequence) -> None:
        del self._kept[sequence]
        self._cache.release(sequence.slot)
        self.cut(sequence, 0)
        sequence.ids, sequence.cached = [], 0

    def clear(self) -> None:
        while self.drop_oldest():
            pass


def common(a: list[int], b: list[int], at: int = 0) -> int:
    """How many tokens two lists begin with alike; the first `at` are known to be."""
    end = min(len(a), len(b))
    while at < end and a[at : at + BLOCK] == b[at : at + BLOCK]:
        at += BLOCK
    at = min(at, end)
    while at < end and a[at] == b[at]:
        at += 1
    return at


def _hash(before: int, block: list[int]) -> int:
    return hash((before, *block))
