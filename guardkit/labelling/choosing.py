"""Which rows are labelled (a sample), and which of the labelled ones stay (`--where`)."""

from __future__ import annotations

import hashlib
import random
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkit.policy import Action
from guardkit.verdict import SEVERITIES, Category, Stage

_VALUES: dict[str, tuple[str, ...]] = {
    "severity": tuple(s.value for s in SEVERITIES),
    "action": tuple(a.value for a in Action),
    "category": tuple(c.value for c in Category),
    "stage": tuple(s.value for s in Stage),
    "refusal": ("true", "false", "none"),
    "coverage": ("measured", "unmeasured"),
}


@dataclass(frozen=True)
class Where:
    """Conditions on labels, all of which must hold: ``severity=safe``, ``action=allow,flag``, ``category!=pii``,
    ``refusal=true``; a severity alone is short for the first. A row that was not judged meets none."""

    conditions: tuple[tuple[str, bool, frozenset[str]], ...]
    text: str

    @classmethod
    def parse(cls, texts: Sequence[str], categories: Sequence[Category] = tuple(Category)) -> Where | None:
        """categories: what the model names. Raises ValueError that names what is known; None without conditions."""
        known_values = _VALUES | {"category": tuple(c.value for c in categories)}
        found = []
        for text in texts:
            match = re.fullmatch(r"\s*(\w+)\s*(!?=)\s*(.+?)\s*", text)
            key, sign, values = match.groups() if match else ("severity", "=", text)
            if key not in _VALUES:
                raise ValueError(f"unknown condition '{text}'; conditions are about {', '.join(_VALUES)}")
            names = frozenset(value.strip() for value in values.split(","))
            unknown = sorted(names - set(known_values[key]))
            if unknown:
                raise ValueError(f"'{unknown[0]}' is no {key}; known: {', '.join(known_values[key])}")
            found.append((key, sign == "=", names))
        return cls(tuple(found), " and ".join(texts)) if found else None

    def keeps(self, label: Mapping[str, Any]) -> bool:
        if "error" in label:
            return False
        return all((not _said(label, key).isdisjoint(names)) is wanted for key, wanted, names in self.conditions)


def _said(label: Mapping[str, Any], key: str) -> frozenset[str]:
    if key == "category":
        return frozenset(label["categories"])
    if key == "coverage":
        return frozenset((label.get("coverage", "measured"),))
    value = label[key]
    return frozenset((str(value).lower(),))


@dataclass(frozen=True)
class Sample:
    """Rows drawn at random, the same ones each time: a number of them, or a share of all.

    counts: the rows of each input by its output's name, in order; needed for a number.
    """

    number: int | None = None
    share: float | None = None
    seed: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Sample:
        """Of "1000" or "5%". Raises ValueError."""
        try:
            share = float(text.removesuffix("%")) / 100 if text.endswith("%") else None
            number = None if share is not None else int(text)
        except ValueError:
            share, number = None, 0
        if (number is not None and number < 1) or (share is not None and not 0 < share <= 1):
            raise ValueError(f"a sample is a number of rows or a percentage, such as 1000 or 5%, not '{text}'")
        return cls(number, share, seed)

    def of(self, name: str) -> Chosen:
        """The rows of an input that are in the sample."""
        if self.share is not None:
            return Chosen(self.seed, name, int(self.share * 2**64))
        total = sum(self.counts.values())
        drawn = sorted(random.Random(self.seed).sample(range(total), min(self.number or 0, total)))
        start = 0
        for other, count in self.counts.items():
            if other == name:
                rows = drawn[bisect_left(drawn, start) : bisect_left(drawn, start + count)]
                return Chosen(rows=frozenset(row - start for row in rows))
            start += count
        return Chosen(rows=frozenset())

    def __str__(self) -> str:
        return f"{self.number} rows" if self.number is not None else f"{100 * (self.share or 0):g}%"


@dataclass(frozen=True)
class Chosen:
    """Whether a row is in the sample, by its index."""

    seed: int = 0
    name: str = ""
    below: int = 0
    rows: frozenset[int] | None = None

    def __call__(self, index: int) -> bool:
        if self.rows is not None:
            return index in self.rows
        digest = hashlib.blake2b(f"{self.seed}/{self.name}/{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.below
