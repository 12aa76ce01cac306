"""How far guards that vote agree: shares, Cohen's kappa of each pair, Fleiss' kappa of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Agreement:
    """rows: that all guards judged. unanimous: the share of them with one severity. pairs: of two guards the share
    where they agree, and Cohen's kappa. fleiss: Fleiss' kappa. A kappa is None where chance alone agrees always."""

    rows: int
    unanimous: float
    pairs: Mapping[tuple[str, str], tuple[float, float | None]]
    fleiss: float | None

    def lines(self) -> list[str]:
        """For people."""
        if not self.rows:
            return []
        found = [f"all guards agree on {self.unanimous:.1%} of {self.rows:,} rows; Fleiss' kappa {shown(self.fleiss)}"]
        found += [
            f"{one} and {other}: {share:.1%}, Cohen's kappa {shown(kappa)}"
            for (one, other), (share, kappa) in self.pairs.items()
        ]
        return found


def agreement(votes: Mapping[str, int], names: Sequence[str]) -> Agreement:
    """votes: how often each combination was given, severities in the order of `names`, joined by blanks."""
    counts = {tuple(key.split(" ")): n for key, n in votes.items()}
    rows = sum(counts.values())
    if not rows:
        return Agreement(0, 0.0, {}, None)
    unanimous = sum(n for given, n in counts.items() if len(set(given)) == 1) / rows
    kappas = {pair: cohen(table) for pair, table in pairs(votes, names).items()}
    return Agreement(rows, unanimous, kappas, _fleiss(counts, rows, len(names)))


def pairs(votes: Mapping[str, int], names: Sequence[str]) -> dict[tuple[str, str], Counter[tuple[str, str]]]:
    """Of each two guards, how often they gave each two severities."""
    found: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for i, j in combinations(range(len(names)), 2):
        table = found[names[i], names[j]] = Counter()
        for key, n in votes.items():
            given = key.split(" ")
            table[given[i], given[j]] += n
    return found


def cohen(table: Mapping[tuple[str, str], int]) -> tuple[float, float | None]:
    """The share of rows where two annotators agree, and Cohen's kappa; of a table of how often they gave each pair of
    severities. The kappa is None where chance alone agrees always, or there are no rows."""
    rows = sum(table.values())
    if not rows:
        return 0.0, None
    agreed = sum(n for (one, other), n in table.items() if one == other) / rows
    ones, others = Counter[str](), Counter[str]()
    for (one, other), n in table.items():
        ones[one] += n
        others[other] += n
    return agreed, _kappa(agreed, sum(ones[s] * others[s] for s in ones) / rows**2)


def _fleiss(counts: Mapping[tuple[str, ...], int], rows: int, n_guards: int) -> float | None:
    agreed = 0.0
    shares: Counter[str] = Counter()
    for given, n in counts.items():
        by = Counter(given)
        shares.update({s: c * n for s, c in by.items()})
        agreed += n * sum(c * (c - 1) for c in by.values()) / (n_guards * (n_guards - 1))
    chance = sum((c / (rows * n_guards)) ** 2 for c in shares.values())
    return _kappa(agreed / rows, chance)


def _kappa(agreed: float, chance: float) -> float | None:
    return None if chance >= 1 else (agreed - chance) / (1 - chance)


def shown(kappa: float | None) -> str:
    """For people."""
    return "-" if kappa is None else f"{kappa:.2f}"
