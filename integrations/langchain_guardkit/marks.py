"""The mark that a message or document keeps of what was decided about it: no text of what was judged.

A mark is data like any other, and anybody can write one. So one that this process did not write is judged like the rest
of what carries it, and it is trusted only to end a turn, never to let a text pass.
"""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from guardkit import Action, Category, Decision, Severity, Stage, Verdict
from guardkit.reading.values import is_name

METADATA_KEY = "guardkit"
_ID = re.compile(r"[0-9a-f]{32}")


class Recent:
    """The decisions behind the marks that this process wrote, by their ids, and their words. Bounded."""

    def __init__(self, size: int = 4096):
        self._size = size
        self._known: OrderedDict[str, tuple[Decision, str]] = OrderedDict()
        self._words: OrderedDict[str, None] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def keep(self, decision: Decision, message: str) -> str:
        key = uuid.uuid4().hex
        self._known[key] = decision, message
        self.said(message)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return key

    def get(self, mark: Mapping[str, Any]) -> Decision | None:
        """The decision behind a mark; None where it was not written here, or says another message than it did then: a
        mark is there to be seen, and whoever saw it can put it on a text of his own."""
        decision, message = self._known.get(str(mark.get("id")), (None, None))
        return decision if message == mark.get("message") else None

    def ended(self, mark: Mapping[str, Any]) -> bool:
        """Remember that a turn ends for this mark; whether it did before."""
        key = str(mark.get("id"))
        known = key in self._ended
        self._ended[key] = None
        while len(self._ended) > self._size:
            self._ended.popitem(last=False)
        return known

    def said(self, words: str) -> None:
        """A rule or a violation message stands in a mark of this process."""
        self._words[words] = None
        while len(self._words) > self._size:
            self._words.popitem(last=False)

    def wrote(self, words: Any) -> bool:
        return isinstance(words, str) and words in self._words


RECENT = Recent()


def summary(decision: Decision) -> dict[str, Any]:
    """A decision as plain metadata, without any text of what was judged."""
    verdict = decision.verdict
    RECENT.said(decision.rule)
    return {
        "action": decision.action.value,
        "judged": decision.judged,
        "stage": decision.stage.value,
        "severity": verdict.severity.value if verdict else None,
        "categories": [c.value for c in verdict.categories] if verdict else [],
        "rule": decision.rule,
    }


def decision_of(mark: Mapping[str, Any]) -> Decision:
    """The decision that a mark stands for; one of another process has no scores."""
    found = RECENT.get(mark)
    if found is not None:
        return found
    stage = Stage(mark.get("stage", Stage.prompt.value))
    verdict = None
    if mark.get("severity"):
        categories = tuple(Category.named(c) for c in mark.get("categories", ()))
        verdict = Verdict(Severity(mark["severity"]), categories, stage=stage)
    judged = bool(mark.get("judged", verdict is not None))
    error = None if judged else "see the log of the process that judged it"
    return Decision(Action(mark["action"]), verdict, str(mark.get("rule", "")), judged, stage, error)


def withheld(message: BaseMessage) -> dict[str, Any] | None:
    """Where a guard put its violation message in this message's place, or at its end in a stream: why."""
    found = message.response_metadata.get(METADATA_KEY)
    if not isinstance(found, dict) or found.get("action") not in ("block", "redact") or found.get("spans"):
        return None
    return found if all(_fits(key, value) for key, value in found.items() if key not in _WORDS) else None


def withheld_here(message: BaseMessage) -> dict[str, Any] | None:
    """The same, where this process wrote it."""
    found = withheld(message)
    return None if found is None or RECENT.get(found) is None else found


def ends_first(message: BaseMessage) -> bool:
    """Whether no other guard of an agent ends the turn for this message: one step takes one jump."""
    return not RECENT.ended(withheld(message) or {})


def _value_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: value is None or type(value) in kinds


def _is_category(value: Any) -> bool:
    """The value of a category, the model's own too, which reads as a name; no text in its place."""
    try:
        return isinstance(value, str) and is_name(value) and Category.named(value).value == value
    except ValueError:
        return False


_WORDS = ("rule", "message")
_KNOWN: dict[str, Callable[[Any], bool]] = {
    "action": {action.value for action in Action}.__contains__,
    "judged": _value_of(bool),
    "stage": {stage.value for stage in Stage}.__contains__,
    "severity": {None, *(severity.value for severity in Severity)}.__contains__,
    "categories": lambda value: isinstance(value, list) and all(map(_is_category, value)),
    "id": lambda value: isinstance(value, str) and _ID.fullmatch(value) is not None,
    "index": _value_of(int),
    "spans": _value_of(bool),
    "shown_early": _value_of(int),
}


def foreign(mark: Any, content: Any = None) -> Any:
    """What stands in the place of a mark and is none, or is text that this process did not write: to be judged. Falsy
    where there is nothing. content: of the message that carries it, which is judged in any case."""
    if not isinstance(mark, Mapping):
        return mark
    left = {}
    for key, value in mark.items():
        if not _fits(key, value) and not (key in _WORDS and (value == content or RECENT.wrote(value))):
            left[key] = value
    return left


def _fits(key: Any, value: Any) -> bool:
    check = _KNOWN.get(key) if isinstance(key, str) else None
    try:
        return check is not None and check(value)
    except TypeError:  # an unhashable value
        return False
