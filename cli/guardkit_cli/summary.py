"""What was found in all records: counts by action, category, file and language, the worst, what was not judged."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

from guardkit_cli.output import Row

MANY = 8  # names of a kind that are listed; the rest are counted
WORST = 3
_ORDER = ("allow", "flag", "redact", "block")


class Summary:
    """Rows in, counts out. In constant memory: of the rows themselves only the worst are kept.

    top: how many of the worst are kept. language: names the language or script of a text.
    """

    def __init__(self, *, top: int = WORST, language: Callable[[str], str] | None = None):
        self._top, self._language = top, language
        self.records = 0
        self.actions: Counter[str] = Counter()
        self.categories: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.flagged_languages: Counter[str] = Counter()
        self.files: dict[str, Counter[str]] = {}
        self.errors: Counter[str] = Counter()
        self.unmeasured = 0
        self._worst: list[tuple[tuple[int, float, int], Row]] = []

    def add(self, row: Row) -> None:
        self.records += 1
        action = row.action if row.judged else "not judged"
        self.actions[action] += 1
        self.files.setdefault(row.record.source, Counter())[action] += 1
        if not row.judged:
            self.errors[row.error] += 1
        verdict = row.decision.verdict if row.decision is not None else None
        if self._language is not None:
            name = self._language(row.text)
            self.languages[name] += 1
            self.flagged_languages[name] += action != "allow"
        if verdict is None:
            return
        self.unmeasured += verdict.coverage is not None
        if row.action == "allow":
            return
        self.categories.update(c.value for c in verdict.categories)
        if self._top and row.decision is not None:
            badness = (_ORDER.index(row.action), row.decision.score or 0.0, -row.index)
            keep = heapq.heappush if len(self._worst) < self._top else heapq.heappushpop
            keep(self._worst, (badness, row))

    @property
    def worst(self) -> list[Row]:
        """The worst first: by action, then by score, then in input order."""
        return [row for _, row in sorted(self._worst, key=lambda found: found[0], reverse=True)]

    def counts(self) -> dict[str, int]:
        """By action, and what was not judged; each record once."""
        return {name: self.actions[name] for name in (*_ORDER, "not judged")}

    def lines(self) -> list[str]:
        """For people, without the worst: one line a kind of count, none that says nothing."""
        found = []
        if self.categories:
            found.append(f"categories: {_listed(self.categories)}")
        if len(self.files) > 1:
            bad = {name: sum(c.values()) - c["allow"] for name, c in self.files.items()}
            ranked = sorted((n for n in bad if bad[n]), key=lambda n: -bad[n])
            if ranked:
                each = [f"{n} {bad[n]:,} of {sum(self.files[n].values()):,}" for n in ranked[:MANY]]
                more = [f"{len(ranked) - MANY:,} more files"] if len(ranked) > MANY else []
                found.append(f"files: {', '.join(each + more)}")
        if self.languages:
            each = [
                f"{name} {n:,}"
                + (f" ({self.flagged_languages[name]:,} not allowed)" if self.flagged_languages[name] else "")
                for name, n in self.languages.most_common(MANY)
            ]
            found.append(f"languages: {', '.join(each)}")
        found += [f"not judged: {n:,} × {reason}" for reason, n in self.errors.most_common(MANY)]
        return found

    def to_dict(self, row_to_dict: Callable[[Row], dict[str, Any]]) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "records": self.records,
            "actions": self.counts(),
            "categories": dict(self.categories.most_common()),
            "files": {name: dict(counts) for name, counts in self.files.items()},
            "languages": dict(self.languages.most_common()),
            "unmeasured": self.unmeasured,
            "not_judged": dict(self.errors.most_common()),
            "worst": [row_to_dict(row) for row in self.worst],
        }


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.most_common(MANY))
