"""Values of no known shape: the chats, messages and responses that lie in them are read as such, each text at its own
stage; all other texts are one prompt.

Traces, exports and logs wrap what an API was sent and gave in forms of their own, often as JSON in a string.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from guardkit.errors import MessageError
from guardkit.messages import Message, Part
from guardkit.reading import positions as at
from guardkit.reading.drafts import Draft
from guardkit.reading.jsontext import parse
from guardkit.reading.message import read_message
from guardkit.reading.pieces import is_piece, joined
from guardkit.reading.values import Found, Key, Path, texts_of, written
from guardkit.verdict import Stage

_DEEPEST_PIECE = 4
DEEPEST = 32
"""Levels at which chats are looked for; below them all is one prompt."""
Known = Callable[[Any], Draft | None]
"""Reads a value of a known shape; None for others."""
Said = tuple[str, list[Message]]
"""Where a chat lies, and its messages."""
_Taken = dict[Path, tuple[str, ...] | None]
"""Paths of what is read as a chat, and the keys of it that are; None: all."""


def opened(value: Any, depth: int = 0) -> Any:
    """`value` with the objects and lists that are JSON in a string; itself where there is none."""
    if isinstance(value, str):
        text = value.strip().removeprefix("data:").lstrip()
        if len(text) < 3 or text[0] not in "{[" or text[-1] not in "}]":
            return value
        try:
            inner = parse(text)
        except ValueError:  # no JSON, or a key twice: as it stands
            return value
        return opened(inner, depth + 1)
    if depth > DEEPEST:
        return value
    if isinstance(value, Mapping):
        new = {key: opened(child, depth + 1) for key, child in value.items()}
        return new if any(new[key] is not child for key, child in value.items()) else value
    if isinstance(value, list):
        items = [opened(child, depth + 1) for child in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def read_nested(data: Any, known: Known, signs: Collection[str], found: Sequence[Found] = ()) -> Message:
    """A message of a user whose content is what stands in no chat, and whose attached parts are what stands in one.

    signs: keys of which a value of a known shape has at least one. found: every text in `data`, where that is known
    already.
    """
    found = found or texts_of(data, Stage.prompt, names=True)
    if not any(f.text in signs if f.is_key else f.text is not None and _may_be_json(f.text) for f in found):
        return _message(found, [])  # most logs
    plain, data = data, opened(data)
    said: list[Said] = []
    taken: _Taken = {}
    _find(data, (), known, said, taken)
    if data is not plain:
        found = texts_of(data, Stage.prompt, names=True)
    parts = [part for _, messages in said for message in messages for part in message.parts() if part.text != ""]
    return _message([f for f in found if not _is_taken(f.path, taken)] if taken else found, parts)


def _may_be_json(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[") or text.startswith("data:")


def chats_in(data: Any, known: Known) -> list[Said]:
    """The chats, messages and responses that lie in a value, in order."""
    said: list[Said] = []
    _find(opened(data), (), known, said, {})
    return said


def _message(found: Sequence[Found], parts: Sequence[Part]) -> Message:
    unread = [f.what for f in found if f.text is None] + [p.what for p in parts if p.text is None]
    return Message(
        "user",
        "\n".join(f.text for f in found if f.text is not None),
        unjudgeable=tuple(dict.fromkeys(unread)),
        attached=tuple(part for part in parts if part.text),
    )


def _find(value: Any, path: Path, known: Known, said: list[Said], taken: _Taken) -> None:
    """Read what is a chat in `value`, and look for others in the rest of it."""
    if not isinstance(value, Mapping | list) or not value or len(path) > DEEPEST:
        return
    used: Sequence[Any] = ()
    if path or isinstance(value, list):
        if isinstance(value, list) and len(value) > 1 and all(is_piece(item) for item in value):
            said.append((written(path), [joined(value)]))
            taken[path] = None
            return
        if isinstance(value, list) and len(value) > 1 and (wrapped := _wrapped_pieces(value)):
            said.append((written(path), [joined(piece for _, piece in wrapped)]))
            taken.update({(*path, *where): None for where, _ in wrapped})
        draft = _draft(value, known)
        if draft is not None:
            answers = [message for *_, told in draft.answers for message in told]
            said.append((written(path), [*(m for *_, m in draft.messages), *answers]))
            if isinstance(value, list):
                taken[path] = None
                return
            used = draft.used
    if isinstance(value, Mapping):
        for key in [key for key in value if key in at.TOLD_BY_KEY and key not in used]:
            if (message := _told(key, value[key])) is not None:
                said.append((written((*path, key)), [message]))
                used = (*used, key)
    if used:
        taken[path] = tuple(used)
    for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
        if key not in used:
            _find(child, (*path, key), known, said, taken)


def _wrapped_pieces(items: Sequence[Any]) -> list[tuple[Path, Any]]:
    """The pieces of a stream that the items of a list wrap, one in each; none where an item wraps none."""
    found: list[tuple[Path, Any]] = []
    for i, item in enumerate(items):
        inside = _pieces_in(item, (i,))
        if len(inside) != 1:
            return []
        found += inside
    return found


def _pieces_in(value: Any, path: Path) -> list[tuple[Path, Any]]:
    if not isinstance(value, Mapping) or len(path) > _DEEPEST_PIECE:
        return []
    if is_piece(value) or (isinstance(value.get("token"), str) and len(path) == 1):
        return [(path, value)]
    return [found for key, child in value.items() for found in _pieces_in(child, (*path, key))]


def _told(key: str, value: Any) -> Message | None:
    """What stands at a key that tells its stage; None where that does not look the part, or holds chats itself."""
    stage = at.TOLD_BY_KEY[key]
    try:
        if stage is Stage.tool_call:
            listed = [value] if isinstance(value, Mapping) else value
            if not isinstance(listed, list) or not all(isinstance(call, Mapping) for call in listed):
                return None
            message = read_message({"role": "assistant", "content": None, "tool_calls": listed})
            return None if message.unjudgeable or not message.tool_calls else message
    except MessageError:
        return None
    found = texts_of(value, stage, names=True)
    flat = isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if not found or any(f.text is None for f in found) or not (flat or stage in (Stage.tool_output, Stage.document)):
        return None
    if not flat and any(f.is_key and f.text in _CHATS for f in found):
        return None
    return Message("user", attached=(Part(stage, "\n".join(f.text for f in found if f.text), key),))


_CHATS = frozenset(("role", "messages", "choices", "lc", *at.TOLD_BY_KEY))


def _draft(value: Any, known: Known) -> Draft | None:
    try:
        draft = known(value)
    except (ValueError, MessageError):  # not of a shape after all: walked
        return None
    return None if draft is None or draft.text is not None or draft.ignored else draft


def _is_taken(path: Path, taken: _Taken) -> bool:
    for n in range(len(path)):
        if (used := taken.get(path[:n], ())) is None:
            return True
        if used and (path[n].name if isinstance(path[n], Key) else path[n]) in used:
            return True
    return False
