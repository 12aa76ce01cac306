"""Messages, and the parts of one that are judged: each at its own stage.

`Message.of` reads the shapes that chat APIs use (`guardkit/reading/message.py`). `parts` lists what must be judged in a
message; a part that cannot be judged at all (an image) is listed too, without text, so that nothing is dropped in
silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guardkit.errors import MessageError
from guardkit.reading.positions import ROLES
from guardkit.verdict import Stage

REASONING_TAG = re.compile(r"<(/?)(?:think|thinking)>")
REASONING_TAGS = ("<think>", "</think>", "<thinking>", "</thinking>")


@dataclass(frozen=True)
class Part:
    """One judged piece of a message. `text` is None where the content (an image, audio) cannot be judged; `what` says
    where it was found, or what it is."""

    stage: Stage
    text: str | None
    what: str = "text"


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    role: "user", "assistant", "system", "tool" or a synonym of theirs; content: the text (for an assistant the
    answer, which may still hold ``<think>`` tags); reasoning: the reasoning where the API gives it apart; tool_calls:
    each call as text, name and arguments; unjudgeable: kinds of content that no guard here can read; attached: texts
    of other stages or of unknown meaning, such as tool results and documents in a user's message.
    """

    role: str
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[str, ...] = ()
    unjudgeable: tuple[str, ...] = ()
    attached: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MessageError(f"unknown role '{self.role}'; known: {', '.join(ROLES)}")

    @property
    def stage(self) -> Stage:
        """The stage of the message's own content."""
        return ROLES[self.role]

    @classmethod
    def of(cls, source: Message | Mapping[str, Any], index: int = 0) -> Message:
        """Read a chat API's message. Raises `MessageError` that names `index` and what was expected."""
        if isinstance(source, Message):
            return source
        from guardkit.reading.message import read_message  # not needed to judge plain texts

        return read_message(source, index)

    @property
    def said(self) -> str:
        """Content and attached texts in one: what the message says as the context of another."""
        return "\n".join(filter(None, (self.content, *(part.text for part in self.attached))))

    def parts(self, stage: Stage | None = None) -> list[Part]:
        """What must be judged, in order; never empty. `stage` overrides the stage of the content."""
        found = []
        if self.reasoning:
            found.append(Part(Stage.reasoning, self.reasoning, "reasoning"))
        found += [Part(Stage.tool_call, call, "tool call") for call in self.tool_calls]
        found += [Part(stage or self.stage, None, kind) for kind in self.unjudgeable]
        if self.content or not (found or self.attached):
            found.append(Part(stage or self.stage, self.content))
        return [*found, *self.attached]


def split_reasoning(text: str) -> tuple[str, str]:
    """Split a model's output into ``(reasoning, answer)``.

    Reads ``<think>…</think>`` anywhere in the text, also unclosed (the rest is reasoning) or without its opening tag
    (all before the closing tag is reasoning), as servers give it whose chat template opens the block in the prompt.
    """
    pieces: dict[bool, list[str]] = {True: [], False: []}
    inside, at = starts_in_reasoning(text), 0
    for tag in REASONING_TAG.finditer(text):
        pieces[inside].append(text[at : tag.start()])
        inside, at = not tag[1], tag.end()
    pieces[inside].append(text[at:])
    return "".join(pieces[True]), "".join(pieces[False])


def starts_in_reasoning(text: str) -> bool:
    """Whether the first reasoning tag in `text` is a closing one."""
    first = REASONING_TAG.search(text)
    return bool(first and first[1])


def read_messages(source: Sequence[Message | Mapping[str, Any]]) -> list[Message]:
    return [Message.of(m, i) for i, m in enumerate(source)]
