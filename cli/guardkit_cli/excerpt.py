"""A text on one line, centred on its flagged place, with the place marked."""

from __future__ import annotations

from guardkit_cli.output import BOLD, RED, escape, paint, shorten

MARKS = ("[[", "]]")
"""What stands around the flagged place where there is no colour."""


def excerpt(text: str, place: tuple[int, int] | None, width: int, coloured: bool = False) -> str:
    """At most `width` columns of `text`, escaped. place: the characters that are marked; None: the text's beginning.

    A place that is too long for the line shows its beginning; what is left out is "…".
    """
    if place is None:
        return shorten(text, width)
    start, end = place
    open_mark, close_mark = ("", "") if coloured else MARKS
    room = max(width - len(open_mark) - len(close_mark), 4)
    inside = shorten(text[start : min(end, start + room + 1)], room)
    room -= columns(inside)
    # What the place leaves is shared by both sides; the side that needs less gives the rest to the other.
    before, after = escape(text[max(start - width, 0) : start]), escape(text[end : end + width])
    if end - start > width:
        after = ""
    right = min(columns(after), max(room - room // 2, room - columns(before)))
    left = _last(before, room - right, cut_before=start > width)
    tail = shorten(after + ("…" if end + width < len(text) and after else ""), right) if right else ""
    middle = paint(inside, f"{BOLD};{RED}", coloured) if coloured else f"{open_mark}{inside}{close_mark}"
    return f"{left}{middle}{tail}"


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _last(text: str, width: int, *, cut_before: bool) -> str:
    """The end of `text`, at most `width` columns wide."""
    if columns(text) <= width and not cut_before:
        return text
    if width < 2:
        return ""
    kept, used = len(text), 1
    while kept and used + columns(text[kept - 1]) <= width:
        kept -= 1
        used += columns(text[kept])
    return "…" + text[kept:]
