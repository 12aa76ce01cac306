"""Policy: from a verdict to what an application should do about it.

A policy is an ordered list of rules; the first that matches decides. A custom policy's rules come first and those of
the built-in that it extends come after, so a policy file holds only what differs. See `Policy` for the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import total_ordering
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardkit.errors import PolicyError, did_you_mean
from guardkit.policy_values import Invalid, Where, by_value, fail, one, quoted, several
from guardkit.verdict import SEVERITIES, Category, Severity, Stage, Verdict


@total_ordering
class Action(Enum):
    """What to do with a text. Ordered: ``allow < flag < redact < block``.

    A stream cannot replace a span that it has yet to see the end of: there, redact stops like block.
    """

    allow = "allow"
    flag = "flag"
    redact = "redact"
    block = "block"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Action):
            return NotImplemented
        order = list(Action)
        return order.index(self) < order.index(other)

    @property
    def stops(self) -> bool:
        """Whether text under this action must not be shown as it is."""
        return self is Action.redact or self is Action.block


MARK = "[redacted]"
"""What stands in place of a text that is redacted."""


@dataclass(frozen=True)
class Decision:
    """A verdict with the policy's action.

    judged is False where there is no (whole) verdict; `error` then says why, and `action` is at least that of
    `on_error`. `rule` names what decided: "policy-name: rule 2 (...)", "on_error" or "on_unmeasured". limit: the first
    threshold of that rule, where it has one. text: what was judged, which the verdict's places count in (one part of a
    message; None for a stream). overloaded: not judged only because the model had no room: worth another try later.
    """

    action: Action
    verdict: Verdict | None
    rule: str
    judged: bool = True
    stage: Stage = Stage.prompt
    error: str | None = None
    limit: tuple[Severity, float] | None = None
    text: str | None = field(default=None, compare=False, repr=False)
    overloaded: bool = field(default=False, compare=False)

    def redacted(self, mark: str = MARK) -> str:
        """`text` with `mark` in place of the flagged place; all of it replaced where the place is not known, and
        nothing where the action lets the text pass. `Guard.redact` goes on until what is left passes."""
        if not self.action.stops:
            return self.text or ""
        verdict, text = self.verdict, self.text
        if text is None or verdict is None or verdict.char_start is None or verdict.char_end is None:
            return mark
        return text[: verdict.char_start] + mark + text[verdict.char_end :]

    @property
    def score(self) -> float | None:
        """The probability that `threshold` is held against; None without a verdict."""
        if self.verdict is None:
            return None
        return self.verdict.score if self.limit is None else self.verdict.scores.get(self.limit[0].value, 0.0)

    @property
    def threshold(self) -> float | None:
        """What decided about `score`: the rule's threshold where it has one, else the model's, where that has one."""
        return self.limit[1] if self.limit else self.verdict.threshold if self.verdict else None

    def __str__(self) -> str:
        if self.verdict is None:
            return f"{self.action.value}: {self.stage.value} was not judged ({self.error})"
        about = ", ".join(c.label for c in self.verdict.categories)
        found = f"{self.verdict.severity.value}{f' ({about})' if about else ''}"
        return f"{self.action.value}: {self.stage.value} is {found}, by {self.rule}"


def worst_of(decisions: Sequence[Decision]) -> Decision:
    """One decision for several texts of a record: the strongest action; not judged if any of them is not."""
    if len(decisions) == 1:
        return decisions[0]
    found = max(decisions, key=lambda d: (d.action, d.verdict.severity if d.verdict else Severity.safe))
    unread = next((d for d in decisions if not d.judged), None)
    if unread is None or not found.judged:
        return found
    return replace(unread, action=max(found.action, unread.action), verdict=found.verdict, stage=found.stage)


@dataclass(frozen=True)
class Rule:
    """One condition and its action. Empty `stages` or `categories` match all.

    severity: the mildest severity that matches. threshold: scores that must all be reached ("at least"); a rule
    with a threshold and no severity acts on scores alone.
    """

    action: Action
    stages: frozenset[Stage] = frozenset()
    categories: frozenset[Category] = frozenset()
    severity: Severity | None = Severity.controversial
    threshold: tuple[tuple[Severity, float], ...] = ()

    def matches(self, verdict: Verdict) -> bool:
        return (
            (not self.stages or verdict.stage in self.stages)
            and (self.severity is None or verdict.severity >= self.severity)
            and (not self.categories or not self.categories.isdisjoint(verdict.categories))
            and all(verdict.scores.get(s.value, 0.0) >= least for s, least in self.threshold)
        )

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self.stages:
            out["stage"] = [s.value for s in Stage if s in self.stages]
        if self.categories:
            own = sorted(c.value for c in self.categories if c.is_own)
            out["category"] = [c.value for c in Category if c in self.categories] + own
        if self.severity is not None:
            out["severity"] = self.severity.value
        if self.threshold:
            out["threshold"] = {s.value: p for s, p in self.threshold}
        return out | {"action": self.action.value}

    def __str__(self) -> str:
        return ", ".join(f"{k} {v}" for k, v in self.to_dict().items() if k != "action") + f" -> {self.action.value}"


def _builtin(unsafe: Action, controversial: Action) -> tuple[Rule, ...]:
    return Rule(unsafe, severity=Severity.unsafe), Rule(controversial, severity=Severity.controversial)


BUILTINS: dict[str, tuple[Rule, ...]] = {
    "strict": _builtin(Action.block, Action.block),
    "balanced": _builtin(Action.block, Action.flag),
    "loose": _builtin(Action.block, Action.allow),
}
DEFAULT_POLICY = "balanced"
DEFAULT_ON_ERROR = Action.block
DEFAULT_ON_UNMEASURED = Action.flag
_KEYS = ("name", "extends", "on_error", "on_unmeasured", "rules")
_RULE_KEYS = ("stage", "category", "severity", "threshold", "action")


class Policy:
    """What to do about each kind of verdict.

    name: shown in decisions; extends: the built-in whose rules follow (default: "balanced"); on_error: the action
    for what could not be judged, "block" (default) or "allow"; on_unmeasured: the action for what would be allowed, in
    a language or script that the model was not measured on: "flag" (default), "block" or "allow"; rules: mappings with
    the keys ``stage`` and ``category`` (a name or a list), ``severity`` (at least), ``threshold``
    (``{severity: probability}``, at least) and ``action``. Anything else raises `PolicyError` that names the known
    keys.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        extends: str | None = None,
        on_error: str | Action | None = None,
        on_unmeasured: str | Action | None = None,
        rules: Iterable[Mapping[str, Any] | Rule] = (),
        categories: Iterable[Category] | None = None,
        **unknown: Any,
    ):
        if unknown:
            fail(("",), f"unknown key {quoted(unknown)}; known: {', '.join(_KEYS)}")
        base = extends or (name if name in BUILTINS else DEFAULT_POLICY)
        if base not in BUILTINS:
            fail(("extends",), f"unknown policy '{base}'; known: {', '.join(BUILTINS)}")
        self.name = name or base
        self.extends = base
        self.on_error = DEFAULT_ON_ERROR if on_error is None else parse_on_error(on_error)
        self.on_unmeasured = DEFAULT_ON_UNMEASURED if on_unmeasured is None else _on_unmeasured(on_unmeasured)
        known = known_categories(categories)
        own, inherited = tuple(_rule(r, ("rules", i), known) for i, r in enumerate(rules)), BUILTINS[base]
        if own[-len(inherited) :] == inherited:  # a file that `to_yaml` wrote has them already
            own = own[: -len(inherited)]
        self.own_rules = own
        self.rules = own + inherited
        self._watching = tuple(rule for rule in self.rules if rule.severity in (None, Severity.safe))

    @classmethod
    def load(
        cls, source: str | Path | Policy | Mapping[str, Any], *, categories: Iterable[Category] | None = None
    ) -> Policy:
        """A built-in's name, a path to a YAML file, a mapping, or a policy as it is. categories: see the class; where
        they are given, a policy's rules are held against them too. Raises `PolicyError`."""
        if isinstance(source, Policy):
            if categories is not None:
                source.check(categories)
            return source
        if isinstance(source, Mapping):
            return _from_mapping(source, categories)
        if str(source) in BUILTINS:
            return cls(str(source))
        known = ", ".join(BUILTINS)
        file = Path(source).expanduser()
        if not file.is_file():
            fail((), f"no policy '{source}': neither a file nor one of {known}{did_you_mean(str(source), BUILTINS)}")
        from guardkit.policy_file import read  # yaml is imported only where a file is read

        data, lines = read(file)
        try:
            return _from_mapping(data, categories)
        except Invalid as error:
            path = error.path
            while path and path not in lines:
                path = path[:-1]
            raise PolicyError(error.message, source=str(source), line=lines.get(path, 1)) from None

    def check(self, categories: Iterable[Category]) -> None:
        """Raise `PolicyError` where a rule names none of a model's `categories`: it would never act."""
        known = known_categories(categories)
        for i, rule in enumerate(self.own_rules):
            for category in rule.categories:
                one(by_value(known), f"category in rule {i + 1} of {self.name},", category, ("rules", i, "category"))

    def decide(self, verdict: Verdict) -> Decision:
        """The action for `verdict`, and the rule that gave it."""
        for number, rule in enumerate(self.rules, 1):
            if rule.matches(verdict):
                name = f"{self.name}: rule {number} ({rule})"
                limit = rule.threshold[0] if rule.threshold else None
                return self.act_on_coverage(Decision(rule.action, verdict, name, True, verdict.stage, limit=limit))
        return self.act_on_coverage(
            Decision(Action.allow, verdict, f"{self.name}: no rule matches", True, verdict.stage)
        )

    def act_on_coverage(self, decision: Decision) -> Decision:
        """`decision`, or where it allows what the model was not measured on, what `on_unmeasured` says of that."""
        verdict = decision.verdict
        if verdict is None or verdict.coverage is None or decision.action is not Action.allow:
            return decision
        if self.on_unmeasured is Action.allow:
            return decision
        return replace(decision, action=self.on_unmeasured, rule=f"{self.name}: on_unmeasured", limit=None)

    def on_errors(self, action: str | Action) -> Policy:
        """The same policy with another `on_error`."""
        rules, about = self.own_rules, self.on_unmeasured
        return Policy(self.name, extends=self.extends, on_error=action, on_unmeasured=about, rules=rules)

    def watches(self, stage: Stage) -> bool:
        """Whether some rule may act on tokens of a stage although their severity is safe."""
        return any(not rule.stages or stage in rule.stages for rule in self._watching)

    def candidates(self, scores: NDArray[np.float32], stage: Stage) -> NDArray[np.bool_]:
        """Which tokens a threshold rule may act on although their severity is safe. scores [n, 3] -> [n]."""
        found = np.zeros(len(scores), bool)
        for rule in self._watching:
            if not rule.stages or stage in rule.stages:
                reached = [scores[:, SEVERITIES.index(s)] >= least for s, least in rule.threshold]
                found |= np.logical_and.reduce(reached)
        return found

    def explain(self, verdict: Verdict) -> str:
        """For people: every rule in order, and which one decided."""
        lines = [f"verdict: {verdict.severity.value}, stage {verdict.stage.value}"]
        if verdict.categories:
            lines[0] += f", {', '.join(c.value for c in verdict.categories)}"
        decided = False
        for number, rule in enumerate(self.rules, 1):
            hit = rule.matches(verdict) and not decided
            decided = decided or hit
            lines.append(f"  {'=>' if hit else '  '} rule {number}: {rule}")
        return "\n".join([*lines, f"action: {self.decide(verdict).action.value} (policy {self.name})"])

    def to_dict(self) -> dict[str, Any]:
        rules = [rule.to_dict() for rule in self.own_rules]
        return {
            "name": self.name,
            "extends": self.extends,
            "on_error": self.on_error.value,
            "on_unmeasured": self.on_unmeasured.value,
            "rules": rules,
        }

    def to_yaml(self) -> str:
        """A policy file with the same meaning, that works as it stands: all rules, those of the built-in included."""
        from guardkit.policy_file import write

        return write(self.to_dict() | {"rules": [rule.to_dict() for rule in self.rules]})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.extends, self.on_error, self.rules))

    def __repr__(self) -> str:
        rules = len(self.own_rules)
        return f"Policy({self.name!r}, extends={self.extends!r}, on_error={self.on_error.value!r}, rules={rules})"


def parse_on_error(value: object) -> Action:
    """ "block" or "allow"; anything else raises `PolicyError`."""
    name = value.value if isinstance(value, Action) else value
    if name not in ("block", "allow"):
        fail(("on_error",), f"on_error must be 'block' or 'allow', not {value!r}")
    return Action(name)


def known_categories(categories: Iterable[Category] | None) -> tuple[Category, ...]:
    """What a policy may name for a model of `categories`: these, where some are the model's own; else Qwen3Guard's
    nine, so that one policy serves all models that share them."""
    found = tuple(categories or ())
    return found if any(c.is_own for c in found) else tuple(Category)


def _from_mapping(data: Mapping[str, Any], categories: Iterable[Category] | None = None) -> Policy:
    for key in data:
        if key not in _KEYS:
            fail((key,), f"unknown key '{key}'; known: {', '.join(_KEYS)}")
    rules = data.get("rules") or ()
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        fail(("rules",), "'rules' must be a list")
    for key in ("name", "extends"):
        if data.get(key) is not None and not isinstance(data[key], str):
            fail((key,), f"'{key}' must be a string")
    return Policy(
        data.get("name"),
        extends=data.get("extends"),
        on_error=data.get("on_error"),
        on_unmeasured=data.get("on_unmeasured"),
        rules=rules,
        categories=categories,
    )


def _on_unmeasured(value: str | Action) -> Action:
    name = value.value if isinstance(value, Action) else value
    if name not in ("block", "flag", "allow"):
        fail(("on_unmeasured",), f"on_unmeasured must be 'block', 'flag' or 'allow', not {value!r}")
    return Action(name)


def _rule(data: Mapping[str, Any] | Rule, path: Where, known: Sequence[Category]) -> Rule:
    if isinstance(data, Rule):
        return data
    if not isinstance(data, Mapping):
        fail(path, f"a rule is a mapping with the keys {', '.join(_RULE_KEYS)}")
    for key in data:
        if key not in _RULE_KEYS:
            fail((*path, key), f"unknown key '{key}' in a rule; known: {', '.join(_RULE_KEYS)}")
    if "action" not in data:
        fail(path, f"a rule needs an 'action': {', '.join(a.value for a in Action)}")
    threshold = data.get("threshold") or {}
    if not isinstance(threshold, Mapping):
        fail((*path, "threshold"), "'threshold' maps a severity to a probability, as {unsafe: 0.3}")
    limits = []
    for name, least in threshold.items():
        at = (*path, "threshold", name)
        if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
            fail(at, f"the threshold of '{name}' must be a number from 0 to 1, not {least!r}")
        limits.append((one(by_value(Severity), "severity", name, at), float(least)))
    severity = data.get("severity")
    if severity is None:
        minimum = None if limits else Severity.controversial
    else:
        minimum = one(by_value(Severity), "severity", severity, (*path, "severity"))
    if data.get("category") and minimum in (None, Severity.safe):
        fail(path, "a category is known only of what is not safe: add 'severity: controversial' or 'unsafe'")
    return Rule(
        action=one(by_value(Action), "action", data["action"], (*path, "action")),
        stages=several(by_value(Stage), "stage", data.get("stage"), (*path, "stage")),
        categories=several(by_value(known), "category", data.get("category"), (*path, "category")),
        severity=minimum,
        threshold=tuple(limits),
    )
