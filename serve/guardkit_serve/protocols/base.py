"""What a protocol is to the proxy: how its requests, answers and events are read, cut and ended.

One object is one exchange: it reads the request first, and then its answer, whole or event by event.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from guardkit import Decision, Message, MessageError, Stage
from guardkit.batch import Item
from guardkit.messages import Part
from guardkit.reading.message import read_message
from guardkit.reading.values import Path, texts_of
from guardkit_serve.errors import HttpError
from guardkit_serve.sse import Frame
from guardkit_serve.walking import SETTINGS, Seen, part_of, schema_text, without_opaque

_EMBEDDED = re.compile(r"(\w+_)?embed(s|ding|dings)")
"""Keys of a request, and types of its blocks, whose values a model reads and nobody else."""
_IDS = re.compile(r"(\w+_)?(token|input)_ids")
TOKEN_SETTINGS = frozenset(("stop", "stop_token_ids", "allowed_token_ids", "logprob_token_ids"))
"""Keys of a request whose numbers of tokens are no text."""
Key = tuple[Hashable, ...]
"""Which text of an answer: the first element is what it belongs to (a choice, a block, an item), the rest its kind."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing in a request that is judged. path: where it stands in the body; earlier: part of a turn that is over,
    so that it can be taken out of the history instead of ending the request."""

    path: Path
    item: Item
    earlier: bool = False


class Piece(NamedTuple):
    """More of one text. path: where it stands in the event's data, None where the event cannot be cut there; added:
    characters of `text` that are not the upstream's."""

    key: Key
    stage: Stage
    text: str
    path: Path | None = None
    arguments: bool = False
    added: int = 0


@dataclass(slots=True)
class Reading:
    """What an event holds. ends: beginnings of the keys of texts that are complete with it; wholes: texts that are
    judged as they stand; late: gives more of them, once what the event ends is judged; last: whether the answer is
    complete."""

    pieces: list[Piece] = field(default_factory=list)
    ends: list[Key] = field(default_factory=list)
    wholes: list[Part] = field(default_factory=list)
    late: Callable[[], list[Part]] | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One candidate of a whole answer. path: where it stands in the answer."""

    path: Path
    message: Message


class Violation(Exception):
    """A text was stopped. message: for people; it names no text. counts: characters of a stream that went out, and
    that came and did not."""

    def __init__(self, decision: Decision, where: str):
        self.decision, self.where = decision, where
        self.counts: tuple[int, int] | None = None
        verdict = decision.verdict
        about = ", ".join(c.label for c in verdict.categories) if verdict else ""
        why = f"found to be {verdict.severity.value}{f' ({about})' if about else ''}" if verdict else "not judged"
        self.message = f"{'The request' if where == 'request' else 'The answer'} was withheld: {why}."
        super().__init__(self.message)

    def error(self) -> HttpError:
        return HttpError(400, self.message, "content_filter")

    def told(self) -> dict[str, Any]:
        """For the field `guardkit` of what ends an answer."""
        verdict = self.decision.verdict
        return {
            "action": self.decision.action.value,
            "stage": self.decision.stage.value,
            "severity": verdict.severity.value if verdict else None,
            "categories": [c.value for c in verdict.categories] if verdict else [],
            "judged": self.decision.judged,
            **({"released": self.counts[0], "withheld": self.counts[1]} if self.counts else {}),
        }


class Protocol(ABC):
    """See the module. message: what stands in place of a violation with "replace"."""

    path: ClassVar[str]
    """Of the request, at this server and after an upstream's base."""

    def __init__(self, body: Mapping[str, Any], message: str):
        self.body, self.message = body, message
        self.seen = Seen()
        self.context: list[Message] = []
        self.shown = False
        """Whether the client has seen any text of the answer."""

    # -- the request

    @abstractmethod
    def asked(self) -> list[Asked]:
        """What in the request is judged; sets `context`. Raises `HttpError` (400) for what cannot be read."""

    def remember(self) -> None:
        """What the request says was judged: an answer may repeat it (instructions, tools)."""
        self.seen.add(found.text for found in texts_of(self.body, Stage.prompt) if found.text)

    # -- a whole answer

    @abstractmethod
    def answers(self, data: Mapping[str, Any]) -> tuple[list[Answer], list[Part]]:
        """Each candidate, and what else is judged in the answer. Raises `MessageError`."""

    @abstractmethod
    def ended_whole(self, data: Mapping[str, Any], found: Mapping[int, Violation], replace: bool) -> dict[str, Any]:
        """The answer with the candidates of `found` (by their place in `answers`) ended, or replaced."""

    @abstractmethod
    def refused(self, violation: Violation, replace: bool) -> dict[str, Any]:
        """A whole answer to a request that was not passed on."""

    # -- a streamed answer

    @abstractmethod
    def read(self, frame: Frame, data: Any) -> Reading:
        """What an event holds. Raises `HttpError` for one that has no place in this protocol."""

    def parses(self, frame: Frame) -> bool:
        """Whether the event's data is JSON."""
        return frame.data is not None

    @abstractmethod
    def sent(self, frame: Frame, data: Any) -> None:
        """An event has gone out."""

    def sent_again(self, data: Callable[[], Any]) -> None:
        """An event has gone out that differs from one before it in its text, in numbers at its top and in padding.
        data: makes what it says."""
        self.sent(Frame(b""), data())

    @abstractmethod
    def cut(self, frame: Frame, data: Any, piece: Piece, text: str) -> bytes:
        """The event with no more than `text` of its text."""

    @abstractmethod
    def ended(self, violation: Violation, replace: bool) -> bytes:
        """What ends a stream after a violation; begins the stream where nothing has gone out."""

    @abstractmethod
    def failed(self, error: HttpError) -> bytes:
        """What ends a stream with an error, so that a client hears of it and of the end."""

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether what has gone out is a whole answer in this protocol."""

    def closing(self) -> bytes:
        """What a complete stream lacks at its end."""
        return b""


# ---------------------------------------------------------------------------------------------------- shared by them


def asked_messages(raw: Any, key: str, first: list[Message]) -> tuple[list[Asked], list[Message]]:
    """Each message of a list, to be judged after `first` and those before it; and all of them."""
    if not isinstance(raw, list) or not raw:
        raise HttpError(400, f"'{key}' must be a list, with at least one message", param=key)
    read: list[Message] = []
    for i, one in enumerate(raw):
        try:
            message = read_message(without_opaque(one), i)
            read.append(replace(message, unjudgeable=(*message.unjudgeable, *_unreadable(one))))
        except (MessageError, RecursionError) as error:
            raise HttpError(400, f"{key}: {error or 'nested too deeply'}", param=key) from None
    turn = _turn(read)
    asked = []
    for i, message in enumerate(read):
        earlier = i < turn and message.role not in ("system", "developer")
        asked.append(Asked((key, i), [*first, *read[: i + 1]], earlier))
    return asked, [*first, *read]


def _turn(messages: Sequence[Message]) -> int:
    """Where the present turn begins: with the last thing that the user said."""
    said = [i for i, m in enumerate(messages) if m.stage is Stage.prompt and m.role not in ("system", "developer")]
    said = [i for i in said if messages[i].content or messages[i].unjudgeable]
    if not said:
        return 0
    at = said[-1]
    while at > 0 and at - 1 in said:
        at -= 1
    return at


def asked_system(value: Any, key: str) -> tuple[list[Asked], list[Message]]:
    if not value:
        return [], []
    try:
        message = read_message({"role": "system", "content": value})
    except (MessageError, RecursionError) as error:
        raise HttpError(400, f"{key}: {error or 'nested too deeply'}", param=key) from None
    return [Asked((key,), [message])], [message]


def asked_tools(value: Any, key: str) -> list[Asked]:
    """Tools' definitions: other people's words, judged as documents."""
    listed = value if isinstance(value, list) else [value] if value else []
    asked = []
    for i, tool in enumerate(listed):
        if text := schema_text(tool):
            path = (key, i) if listed is value else (key,)
            asked.append(Asked(path, [Message("user", attached=(Part(Stage.document, text, key),))]))
    return asked


def asked_rest(body: Mapping[str, Any], read: frozenset[str], seen: Seen) -> list[Asked]:
    """Whatever else in a request holds text."""
    out = []
    for key, value in body.items():
        if key not in read:
            if _EMBEDDED.fullmatch(key) or (_is_ids(value) and key not in TOKEN_SETTINGS):
                out.append(Asked((key,), [Message("user", unjudgeable=(key,))]))
            for found in seen.new(key, value, Stage.prompt, SETTINGS):
                part = Part(Stage.prompt, found.text, found.what)
                out.append(Asked(found.path, [Message("user", attached=(part,))]))
    return out


def _unreadable(message: Any) -> list[str]:
    """What in a message is text that only a model reads: numbers of tokens, embeddings."""
    found = [key for key, value in message.items() if _EMBEDDED.fullmatch(key) or (_IDS.fullmatch(key) and value)]
    content = message.get("content")
    for block in content if isinstance(content, list) else ():
        if isinstance(block, Mapping):
            named = [str(block.get("type")), *block]
            found += [name for name in named if _EMBEDDED.fullmatch(name) or _IDS.fullmatch(name)][:1]
        elif not isinstance(block, str):
            found.append("token ids")
    return found


def _is_ids(value: Any) -> bool:
    """Whether a value may be a text as the numbers of its tokens."""
    if not isinstance(value, list) or not value:
        return False
    return all((isinstance(each, int) and not isinstance(each, bool)) or _is_ids(each) for each in value)


def parts_of(seen: Seen, data: Mapping[str, Any], read: frozenset[str], stage: Stage = Stage.response) -> list[Part]:
    """What in an answer's object stands beside what is `read`, and must be judged."""
    out: list[Part] = []
    for key, value in data.items():
        if key not in read:
            out += map(part_of, seen.new(key, value, stage))
    return out
