"""Any text as HTML: escaped, and with what cannot be seen shown."""

from __future__ import annotations

import re
from html import escape

_LONE_CR = "\ud800"  # stands for a carriage return before a line feed; no lone surrogate is left in prepared text
_SAME_LENGTH = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A, 0x0D)} | {0x7F: 0x2421, 0x0D: 0x240D}
_SURROGATE = re.compile("[\ud800-\udfff]")
# What would change how the text around it is shown, or show nothing at all: control characters, line separators, and
# Unicode's Default_Ignorable_Code_Point but for the joiners U+200C and U+200D, which many scripts and emoji need.
UNSEEN = (
    *((0x80, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5)),
    *((0x180B, 0x180F), (0x200B, 0x200B), (0x200E, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164)),
    *((0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3)),
    *((0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)
_SHOWN = {c: f'<b class="x">U+{c:04X}</b>' for low, high in UNSEEN for c in range(low, high + 1)}
_PLAIN = {c: f"U+{c:04X}" for c in _SHOWN}
_EMOJI_STYLE = "\ud801"  # stands for U+FE0F after an emoji, where it is one's usual ending
_AFTER_EMOJI = re.compile(
    "(?<=[\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff])\ufe0f|\ufe0f(?=\u20e3)"
)
for _table in (_SHOWN, _PLAIN):
    _table |= {ord(_LONE_CR): "", ord(_EMOJI_STYLE): "\ufe0f"}


class Html(str):
    """What is HTML already, and is not escaped again."""


def prepared(text: str) -> str:
    """`text` with what HTML cannot hold replaced one for one, so that offsets stay; for `piece`."""
    if not text.isascii():
        text = _AFTER_EMOJI.sub(_EMOJI_STYLE, _SURROGATE.sub("\ufffd", text))
    return text.replace("\r\n", _LONE_CR + "\n").translate(_SAME_LENGTH)


def piece(text: str) -> Html:
    """A slice of prepared text, as the content of an element."""
    return Html(escape(text).translate(_SHOWN))


def html(value: object) -> Html:
    """Any value, as the content of an element; `Html` as it is."""
    return value if isinstance(value, Html) else piece(prepared(str(value)))


def attribute(value: object) -> str:
    """Any value, for a quoted attribute, a `<title>` or an SVG's text, where no element can stand."""
    return escape(prepared(str(value))).translate(_PLAIN)


__all__ = ["UNSEEN", "Html", "attribute", "html", "piece", "prepared"]
