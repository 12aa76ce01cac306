"""Labels: what a guard found in a record, as it stands beside the record.

A label depends on the record and the guard alone: no time, no place in a batch. So a run that was killed gives the
same bytes as one that was not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkit.policy import Action, Decision, worst_of
from guardkit.verdict import SEVERITIES, Stage

COLUMN = "guardkit"
DECIMALS = 6  # of scores
MAX_ERRORS = 10
Label = dict[str, Any]


def label_of(decisions: Sequence[Decision], paths: Sequence[str], policy: str) -> Label:
    """The label of a record by the decisions about its texts, the worst of which counts; of several, `parts` names
    each. `error` is there only where a text was not judged; the severity is then None."""
    decision = worst_of(decisions)
    verdict = decision.verdict
    refusals = [d.verdict.refusal for d in decisions if d.verdict is not None and d.verdict.refusal is not None]
    label: Label = {
        "severity": verdict.severity.value if decision.judged and verdict is not None else None,
        "categories": [c.value for c in verdict.categories] if verdict is not None else [],
        "scores": {k: round(float(p), DECIMALS) for k, p in verdict.scores.items()} if verdict is not None else {},
        "refusal": refusals[-1] if refusals else None,
        "stage": decision.stage.value,
        "action": decision.action.value,
        "model": verdict.model if verdict is not None else None,
        "policy": policy,
    }
    if verdict is not None and verdict.char_start is not None:
        label |= {"char_start": verdict.char_start, "char_end": verdict.char_end}
    if verdict is not None and verdict.coverage is not None:
        label["coverage"] = verdict.coverage
    if len(decisions) > 1:
        label["parts"] = [_part(d, path) for d, path in zip(decisions, paths, strict=True)]
    if not decision.judged:
        label["error"] = decision.error or "not judged"
    return label


def _part(decision: Decision, path: str) -> Label:
    verdict = decision.verdict if decision.judged else None
    severity = verdict.severity.value if verdict is not None else None
    return {"path": path, "stage": decision.stage.value, "severity": severity, "action": decision.action.value}


def unread_label(error: str, on_error: Action, policy: str, stage: Stage | None = None) -> Label:
    """The label of a record that could not be read."""
    decision = Decision(on_error, None, "on_error", False, stage or Stage.prompt, error)
    return label_of([decision], [""], policy)


def voted(labels: Sequence[Label], names: Sequence[str]) -> Label:
    """One label of several guards': the severity that most of them give, of equally many the worse; all else is what
    the first of those guards says that gave it. `votes` names each. Where one of them did not judge, none did."""
    votes = [{"model": name, "severity": label["severity"]} for name, label in zip(names, labels, strict=True)]
    failed = next((label for label in labels if "error" in label), None)
    if failed is not None:
        who = names[next(i for i, label in enumerate(labels) if label is failed)]
        unread = {"severity": None, "votes": votes, "error": f"{who}: {failed['error']}"}
        return failed | unread
    counts = Counter(label["severity"] for label in labels)
    order = [s.value for s in SEVERITIES]
    chosen = max(counts, key=lambda severity: (counts[severity], order.index(severity)))
    return next(label for label in labels if label["severity"] == chosen) | {"votes": votes}


def to_json(label: Label) -> bytes:
    """One line, ASCII."""
    return json.dumps(label).encode("ascii")


def complete(label: Label) -> Label:
    """A label with every key, None where there is nothing, for whoever takes types from the first rows."""
    scores = {s.value: label["scores"].get(s.value) for s in SEVERITIES}
    return dict.fromkeys(_KEYS) | label | {"scores": scores}


_KEYS = (
    "severity", "categories", "scores", "refusal", "stage", "action", "model", "policy", "char_start", "char_end",
    "coverage", "parts", "votes", "error",
)  # fmt: skip


def arrow_type() -> Any:
    """The type of the column of labels in tables."""
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    part = pa.struct([("path", text), ("stage", text), ("severity", text), ("action", text)])
    return pa.struct(
        [
            ("severity", text),
            ("categories", pa.list_(text)),
            ("scores", pa.struct([(s.value, pa.float64()) for s in SEVERITIES])),
            ("refusal", pa.bool_()),
            ("stage", text),
            ("action", text),
            ("model", text),
            ("policy", text),
            ("char_start", number),
            ("char_end", number),
            ("coverage", text),
            ("parts", pa.list_(part)),
            ("votes", pa.list_(pa.struct([("model", text), ("severity", text)]))),
            ("error", text),
        ]
    )


@dataclass
class Tally:
    """What was found so far: rows by severity and by action, and those that were not judged."""

    rows: int = 0
    severities: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    not_judged: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Why rows were not judged, the first `MAX_ERRORS` reasons."""
    votes: Counter[str] = field(default_factory=Counter)
    """How often several guards gave each combination of severities, joined by blanks."""

    def add(self, label: Mapping[str, Any]) -> None:
        self.rows += 1
        self.actions[label["action"]] += 1
        if label["severity"] is None:
            self.not_judged += 1
            if label["error"] in self.errors or len(self.errors) < MAX_ERRORS:
                self.errors[label["error"]] += 1
        else:
            self.severities[label["severity"]] += 1
            if "votes" in label:
                self.votes[" ".join(vote["severity"] for vote in label["votes"])] += 1

    @classmethod
    def over(cls, labels: Iterable[Label]) -> Tally:
        found = cls()
        for label in labels:
            found.add(label)
        return found

    def update(self, other: Tally) -> None:
        self.rows += other.rows
        self.severities.update(other.severities)
        self.actions.update(other.actions)
        self.not_judged += other.not_judged
        self.errors.update(other.errors)
        self.votes.update(other.votes)

    def to_dict(self) -> dict[str, Any]:
        severities = {s.value: self.severities[s.value] for s in SEVERITIES}
        actions = {a.value: self.actions[a.value] for a in Action}
        counts = {"rows": self.rows, "severities": severities, "actions": actions, "not_judged": self.not_judged}
        return counts | {"errors": dict(self.errors), "votes": dict(self.votes)}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Tally:
        severities, actions, errors, votes = (
            Counter[str](data[key]) for key in ("severities", "actions", "errors", "votes")
        )
        return cls(data["rows"], severities, actions, data["not_judged"], errors, votes)
