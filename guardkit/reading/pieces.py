"""Pieces of a stream, as APIs send them: told from whole records, and joined to the message that they come to.

A piece by itself is too short to be judged: a word may be cut, and a flag takes several tokens. Joined are the texts
that stand at the same place in piece after piece (the same path, candidate, block and item), whatever the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from guardkit.messages import Message
from guardkit.reading import positions as at
from guardkit.reading.payloads import arguments_text
from guardkit.reading.values import as_sequence, is_name, texts_of
from guardkit.verdict import Stage

_EVENTS = (
    "content_block_", "message_start", "message_delta", "message_stop", "text-start", "text-end", "reasoning-start",
    "reasoning-end", "tool-input-start", "message-start", "content-start", "content-end", "message-end",
)  # fmt: skip
"""Events between the pieces, of Anthropic, the AI SDK and Cohere."""
_DELTAS = ("contentBlockDelta", "contentBlockStart", "messageStart")
"""Of Bedrock, which names an event by its key."""
PIECES = ("is_finished", "token", *_DELTAS)
"""Keys of pieces that no whole record of a known shape has."""
_UNFINISHED = {"done": ("message", "response"), "stop": ("content", "token"), "is_finished": ("text", "event_type")}
"""Of Ollama, llama.cpp and Cohere: what says that more comes, and where the text of such a piece stands."""
_LANES = ("index", "output_index", "content_index", "summary_index", "item_id", "contentBlockIndex", "id", "toolCallId")
_SILENT = (at.NO_TEXT | at.BLOCK_NO_TEXT | at.RESPONSE_METADATA) | {
    "item_id", "event_type", "obfuscation", "provider", "responseId", "modelVersion", "native_finish_reason",
    "generation_id", "response_id", "stopReason", "thread_id", "run_id", "assistant_id", "event_id",
    "sessionUpdate", "kind", "taskId", "contextId", "artifactId",
}  # fmt: skip


def piece_of(data: Any) -> str | None:
    """What says that a record is only a piece of a stream; None for a whole one."""
    if not isinstance(data, Mapping):
        return None
    kind = data.get("type")
    for key, beside in _UNFINISHED.items():
        if data.get(key) is False and any(isinstance(data.get(name), str | Mapping) for name in beside):
            return f"'{key}' is false"
    if isinstance(told := data.get("object"), str) and (told == "chat.completion.chunk" or told.endswith(".delta")):
        return f"'{told[:40]}'"
    if isinstance(kind, str) and (kind.endswith(("_delta", ".delta", "-delta")) or kind.startswith(_EVENTS)):
        return f"'{kind[:40]}'"
    if kind == "completion" and "completion" in data and data.get("stop_reason", "") is None:
        return "'stop_reason' is null"
    if isinstance(data.get("token"), Mapping) and "text" in data["token"] and data.get("generated_text", "") is None:
        return "'token'"
    named = next((key for key in _DELTAS if isinstance(data.get(key), Mapping)), None)
    return named and f"'{named}'"


def is_piece(data: Any) -> bool:
    """Whether a record is a piece; also by its choices, which have a message of their own about it."""
    choices = data.get("choices") if isinstance(data, Mapping) else None
    are_cut = isinstance(choices, list) and choices and all(isinstance(c, Mapping) and _is_cut(c) for c in choices)
    return bool(are_cut) or piece_of(data) is not None


def _is_cut(choice: Mapping[Any, Any]) -> bool:
    if choice.get("message") is not None:
        return False
    return isinstance(choice.get("delta"), Mapping) or (
        isinstance(choice.get("text"), str) and choice.get("finish_reason", "") is None
    )


def refuse_piece(data: Mapping[Any, Any]) -> None:
    """Raises for a piece of a stream: a run of flagged tokens is longer than a piece."""
    if (why := piece_of(data)) is not None:
        raise ValueError(f"a piece of a stream ({why}): join the pieces to one record")


def joined(pieces: Iterable[Any]) -> Message:
    """What a model wrote in a stream, its texts, thoughts and calls each put together."""
    lanes: dict[tuple[Any, ...], list[str]] = {}
    unread: list[str] = []
    for piece in pieces:
        kind = str(piece.get("type", piece.get("sessionUpdate", ""))) if isinstance(piece, Mapping) else ""
        for found in texts_of(piece, Stage.response):
            if found.text is None:
                unread.append(found.what)
                continue
            path = tuple(step for step in found.path if not isinstance(step, int))
            if not _SILENT.isdisjoint(path) and is_name(found.text, 6):
                continue
            where = tuple(_numbers(piece, found.path))
            lanes.setdefault((_stage_of(kind, path), path, where), []).append(found.text)
    texts: dict[Stage, list[str]] = {stage: [] for stage in (Stage.response, Stage.reasoning, Stage.tool_call)}
    for (stage, _, _), parts in lanes.items():
        text = "".join(parts)
        texts[stage].append(arguments_text(text) if stage is Stage.tool_call else text)
    return Message(
        "assistant",
        "\n".join(texts[Stage.response]),
        "\n".join(texts[Stage.reasoning]),
        tuple(texts[Stage.tool_call]),
        tuple(dict.fromkeys(unread)),
    )


def _numbers(piece: Any, path: tuple[Any, ...]) -> Iterable[Any]:
    """Which candidate, item and block a place belongs to: what the objects on the way to it are numbered."""
    value = piece
    for step in path:
        if isinstance(value, Mapping):
            yield from (str(value[key]) for key in _LANES if key in value and not _is_of_piece(value, piece, key))
            value = value.get(step)
        else:
            listed = as_sequence(value)
            value = listed[step] if listed is not None and isinstance(step, int) and step < len(listed) else None


def _is_of_piece(value: Any, piece: Any, key: str) -> bool:
    """Whether a number counts the pieces, or names one, rather than a place: TGI's "index", an id beside a "token"."""
    return value is piece and (key == "id" or "token" in value) and not str(value.get("type", "")).endswith("-delta")


def _stage_of(kind: str, path: tuple[Any, ...]) -> Stage:
    if (
        set(path) & {*at.REASONING, "reasoningContent"}
        or "reasoning" in kind
        or "thinking" in kind
        or "thought" in kind
    ):
        return Stage.reasoning
    if set(path) & {*at.CALLS, *at.CALL_ARGUMENTS, "inputTextDelta", "toolUse"} or "tool" in kind or "call" in kind:
        return Stage.tool_call
    return Stage.response
