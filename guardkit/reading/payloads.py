"""Texts inside other forms: a call's arguments, a file's data."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from guardkit.reading import positions as at
from guardkit.reading.jsontext import parse
from guardkit.reading.values import decoded, texts_of
from guardkit.verdict import Stage


def arguments_text(arguments: Any) -> str:
    """A call's arguments as text: JSON without escapes for what is no ASCII, of a JSON string what it says."""
    if isinstance(arguments, str):
        try:
            parsed = parse(arguments)
        except ValueError:  # no JSON, or a key twice: as it stands
            return arguments
        if isinstance(parsed, str):
            return parsed
        arguments = parsed
    try:
        return json.dumps(arguments, ensure_ascii=False, default=_texts)
    except (ValueError, TypeError, RecursionError):  # a cycle, or keys that are no strings
        return "\n".join(_texts(arguments))


def _texts(value: Any) -> list[str]:
    return [
        found.text if found.text is not None else found.what for found in texts_of(value, Stage.tool_call, names=True)
    ]


def file_text(block: Any) -> str | None:
    """The text of a file whose media type says that it is one; None for media."""
    media_type, data = "", None
    for found in texts_of(block, Stage.document):
        key = found.path[-1] if found.path else None
        if found.text is None:
            continue
        if key in at.MEDIA_TYPES:
            media_type = found.text
        elif found.text.startswith("data:") and "," in found.text:
            head, _, data = found.text.partition(",")
            media_type = head.removeprefix("data:").partition(";")[0]
        elif key in at.MEDIA_DATA:
            data = found.text
    if data is None or not media_type.startswith(at.TEXT_MEDIA):
        return None
    try:
        return decoded(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return data


_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,4}|.)?", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class ArgumentsReader:
    """JSON arguments that arrive in pieces, with the escapes in their strings undone: what a tool will read."""

    def __init__(self) -> None:
        self._pending = ""

    def push(self, raw: str) -> str:
        text = self._pending + raw
        self._pending = ""
        if "\\" not in text:
            return text
        out, at = [], 0
        for match in _ESCAPE.finditer(text):
            out.append(text[at : match.start()])
            at = match.end()
            body = match[1]
            if at == len(text) and (body is None or (body[0] == "u" and len(body) < 5)):
                self._pending = match[0]  # the rest of the escape is still to come
            elif body is not None:
                out.append(chr(int(body[1:], 16)) if len(body) == 5 else _ESCAPED.get(body, body))
        return "".join([*out, text[at:]])

    @property
    def pending(self) -> str:
        """The beginning of an escape whose rest is still to come."""
        return self._pending
