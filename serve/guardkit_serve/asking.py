"""A request on its way in: what it asks is judged, taken out of the history or redacted where the policy says so."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from guardkit import Action, Decision, Guard, GuardkitError, Message, Stage
from guardkit.batch import Item
from guardkit.policy import MARK
from guardkit.reading import positions as at
from guardkit.reading.values import Path, is_name, replaced, texts_of
from guardkit_serve.judging import decide
from guardkit_serve.observe import Observer
from guardkit_serve.protocols.base import Protocol, Violation
from guardkit_serve.walking import SETTINGS

MAX_KEPT = 20_000
"""Digests of messages that passed, kept a guard: a conversation is sent again with each of its turns."""
_STRUCTURE = (at.NO_TEXT | at.BLOCK_NO_TEXT | SETTINGS | set(at.CALL_NAMES)) - {"data"}


class Passed:
    """What passed before, by digest, with its action. Nothing of a text is kept."""

    def __init__(self) -> None:
        self._actions: OrderedDict[bytes, Action] = OrderedDict()

    def get(self, key: bytes) -> Action | None:
        if key in self._actions:
            self._actions.move_to_end(key)
        return self._actions.get(key)

    def add(self, key: bytes, action: Action) -> None:
        self._actions[key] = action
        if len(self._actions) > MAX_KEPT:
            self._actions.popitem(last=False)


async def judge_request(
    protocol: Protocol, guard: Guard, passed: Passed, observer: Observer, seconds: float
) -> tuple[Mapping[str, Any], Action]:
    """The body to send on (the same object where nothing in it was changed), and the strictest action. Raises
    `Violation`, and `HttpError` for what cannot be read or where the guard has no room."""
    asked = protocol.asked()
    decisions = await _decide(guard, passed, [one.item for one in asked], observer, seconds)
    action = max((a for a, _ in decisions), default=Action.allow)
    texts: dict[Path, str] = {}
    is_stopped = False
    for one, (found, decision) in zip(asked, decisions, strict=True):
        if found.stops:
            assert decision is not None
            is_stopped = True
            if found is Action.block and not one.earlier:
                raise Violation(decision, "request")
            texts |= await redactions(guard, protocol.body, one.path, decision)
    if not is_stopped:
        protocol.remember()
        return protocol.body, action
    protocol.body = replaced(protocol.body, texts)
    again = protocol.asked()  # what cannot be replaced, as a file that is named by its id, is stopped once more
    for _, decision in await _decide(guard, passed, [one.item for one in again], observer, seconds):
        if decision is not None and decision.action.stops:
            raise Violation(decision, "request")
    protocol.remember()
    return protocol.body, Action.redact


async def _decide(
    guard: Guard, passed: Passed, items: Sequence[Item], observer: Observer, seconds: float
) -> list[tuple[Action, Decision | None]]:
    """Each item's action, with its decision where it was judged now."""
    keys = _digests(items)
    out: list[tuple[Action, Decision | None]] = [(Action.allow, None)] * len(items)
    new: dict[bytes, list[int]] = {}
    for i, key in enumerate(keys):
        if (known := passed.get(key)) is not None:
            out[i] = known, None
        else:
            new.setdefault(key, []).append(i)
    if not new:
        return out
    decisions = await decide(guard, [items[where[0]] for where in new.values()], observer, seconds)
    for (key, where), decision in zip(new.items(), decisions, strict=True):
        if decision.judged and not decision.action.stops:
            passed.add(key, decision.action)
        for i in where:
            out[i] = decision.action, decision
    return out


def _digests(items: Sequence[Item]) -> list[bytes]:
    """One for each item, its context included. A list that only goes on where another ended is not read twice."""
    out, known = [], {}
    for item in items:
        digest = b""
        for message in item:
            assert isinstance(message, Message)
            step = digest, id(message)
            if step not in known:
                known[step] = hashlib.blake2b(digest + repr(message).encode("utf-8", "surrogatepass")).digest()
            digest = known[step]
        out.append(digest)
    return out


async def redactions(guard: Guard, body: Any, path: Path, decision: Decision) -> dict[Path, str]:
    """What stands in the place of each text at `path`: redacted, or for what a policy blocks and what could not be
    judged, the mark alone. Names where names belong stay."""
    value = body
    for step in path:
        value = value[step]
    texts: dict[Path, str] = {}
    for found in texts_of(value, decision.stage, path=path):
        if found.text is None or found.is_key:
            continue
        names = [step for step in found.path[len(path) :] if isinstance(step, str)]
        if names and names[-1] in _STRUCTURE and is_name(found.text, 6):
            continue
        if names and names[-1] == "arguments":
            texts[found.path] = "{}"
        elif decision.action is Action.block or not decision.judged:
            texts[found.path] = MARK
        else:
            texts[found.path] = await _redacted(guard, found.text, decision.stage)
    return texts


async def _redacted(guard: Guard, text: str, stage: Stage) -> str:
    try:
        return await asyncio.to_thread(guard.redact, text, stage=stage)
    except GuardkitError:
        return MARK
