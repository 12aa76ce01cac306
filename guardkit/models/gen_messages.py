"""Queries as the chat messages that Qwen3Guard-Gen's template keeps.

The template keeps a first system message, user messages, and assistant messages that are not first; it drops tool
messages, later system messages, a first assistant message and `reasoning_content`. The last role decides whether a
query or a response is judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from guardkit.messages import Message
from guardkit.models.base import Query
from guardkit.verdict import Stage

KEPT_CONTEXT = 2000  # characters that are kept of the last message before a text that outgrows the model's context
ALONE = (Stage.tool_output, Stage.document)  # judged without what came before
_SPECIAL = re.compile(r"<\|([^|<>\s]{1,40})\|>")
_SURROGATE = re.compile("[\ud800-\udfff]")


def render(query: Query, clean: Callable[[str], str] | None = None) -> list[dict[str, str]]:
    """A query as chat messages of which the template drops none.

    Tool outputs and later system messages become a user's; an empty user message goes before a first answer;
    reasoning and tool calls become content. Tool outputs and documents are judged by themselves, as a user's.
    Special tokens that are spelled in a text are broken up, so that no text can end its own turn; `clean` is what does
    that, and `str` leaves them for those who encode contents as plain text anyway.
    """
    clean = clean or plain
    messages: list[dict[str, str]] = []
    for message in () if query.stage in ALONE else query.context:
        if message.stage is Stage.response:
            role = "assistant"
        else:
            role = "system" if message.role in ("system", "developer") and not messages else "user"
        if content := content_of(message):
            messages.append({"role": role, "content": clean(content)})
    messages.append({"role": "user" if query.stage.is_query else "assistant", "content": clean(query.text)})
    if messages[0]["role"] == "assistant":
        messages.insert(0, {"role": "user", "content": ""})
    return messages


def content_of(message: Message) -> str:
    """All text of a message in one."""
    return "\n\n".join(filter(None, (message.reasoning, *message.tool_calls, message.said)))


def plain(text: str) -> str:
    """Text that is no special token and no half surrogate pair, for servers that tokenise what the template made."""
    return _SPECIAL.sub(r"<| \1 |>", _SURROGATE.sub("\ufffd", text))


def shortened(query: Query) -> Query:
    """The query with the end of its context only: the last message, without its middle where it is long."""
    if not query.context or query.stage in ALONE:
        return replace(query, context=())
    last = query.context[-1]
    content = content_of(last)
    if len(content) > KEPT_CONTEXT:
        content = f"{content[: KEPT_CONTEXT // 2]}\n[...]\n{content[-KEPT_CONTEXT // 2 :]}"
    return replace(query, context=(Message(last.role, content),))
