"""Annotated sentences in a guard's own tokens.

Qwen3GuardTest gives the first and last token of the sentence as indexes into the whole rendered chat, in Qwen3's
vocabulary. They are turned into characters of the response, and those into tokens of the model that is scored.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from guardkit.evaluation.rows import text_of
from guardkit.messages import Message


class Encoder(Protocol):
    def encode(self, text: str) -> tuple[list[int], list[int]]: ...


def characters(
    qwen: Encoder, messages: Sequence[Message | Mapping[str, Any]], first: int, last: int
) -> tuple[int, int] | None:
    """The characters (end exclusive) of tokens `first` to `last` of the chat that Qwen3's template renders.

    A turn is `<|im_start|>`, its role, a line break, the content, `<|im_end|>` and a line break. The last turn begins
    with its reasoning between think tags, or, without any, with an empty pair of them. None where the tokens do not
    lie in the response.
    """
    base = sum(_turn(qwen, m) for m in messages[:-1]) + 3
    text = text_of(messages[-1])
    opened, closed = text.find("<think>"), text.find("</think>")
    if opened >= 0 and closed > opened:
        inner = text[opened + 7 : closed]
        at = opened + 7 + len(inner) - len(inner.lstrip("\n"))
        stripped = inner.strip("\n")
        answer = text[closed + 8 :]
        # Before it <think> and a line break; a line break after it (which joins a full stop), </think>, a blank line.
        starts = [at + s for s in qwen.encode(stripped + "\n")[1]]
        after = closed + 8 + len(answer) - len(answer.lstrip("\n"))
        starts += [closed, closed + 8]
        starts += [after + s for s in qwen.encode(text[after:])[1]]
        base += 2
    else:
        at = len(text) - len(text.lstrip("\n"))
        starts = [at + s for s in qwen.encode(text[at:])[1]]
        base += 4
    i, j = first - base, last - base
    if not 0 <= i <= j < len(starts):
        return None
    return starts[i], starts[j + 1] if j + 1 < len(starts) else len(text)


def _turn(qwen: Encoder, source: Message | Mapping[str, Any]) -> int:
    message = Message.of(source)
    text = text_of(message)
    if message.role == "assistant" and "</think>" in text:  # reasoning of earlier turns is left out
        text = text.rpartition("</think>")[2].lstrip("\n")
    # The line break after the role joins line breaks that the content begins with.
    return 4 + len(qwen.encode("\n" + text)[0])


def tokens(starts: Sequence[int], span: tuple[int, int]) -> tuple[int, int] | None:
    """The first and last token of `span`; starts: the first character of each of the response's tokens, ascending."""
    if not starts or span[0] >= span[1]:
        return None
    first = max(bisect_right(starts, span[0]) - 1, 0)
    last = bisect_left(starts, span[1]) - 1
    return (first, last) if last >= first else None
