"""Texts inside other forms: a call's arguments, a file's data."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

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


@dataclass(frozen=True, slots=True)
class FileText:
    """The text of a file. is_picture: what it shows cannot be judged by it (SVG)."""

    content: str
    is_picture: bool


def file_text(block: Any) -> FileText | None:
    """The text of a file whose media type says that it is one; None for media, and for what cannot be decoded."""
    media_type, data, is_plain = "", None, False
    for found in texts_of(block, Stage.document):
        key = found.path[-1] if found.path else None
        if found.text is None:
            continue
        if key in at.MEDIA_TYPES:
            media_type = found.text
        elif found.text[:5].lower() == "data:" and "," in found.text:
            head, _, data = found.text[5:].partition(",")
            media_type, is_plain = head or "text/plain", not head.lower().endswith(";base64")
        elif key in at.MEDIA_DATA:
            data = found.text
    kind, _, parameters = media_type.lower().partition(";")
    if data is None or not at.TEXT_MEDIA.fullmatch(kind.strip()):
        return None
    charset = re.search(r"charset=\"?([\w.:-]+)", parameters)
    text = unquote(data) if is_plain else _from_base64(data, charset[1] if charset else "utf-8")
    return None if text is None else FileText(text, kind.startswith("image/"))


def _from_base64(data: str, encoding: str) -> str | None:
    """What base64 says, however it is written; what is none of it, as it stands. None for bytes that are no text."""
    packed = re.sub(r"[\r\n]", "", data).translate(_FOR_URLS).rstrip("=")
    try:
        raw = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        return data
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else encoding)
    except (UnicodeDecodeError, LookupError):
        return None
    return decoded(text.encode("utf-8", "surrogatepass"))


_FOR_URLS = str.maketrans("-_", "+/")
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
