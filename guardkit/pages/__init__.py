"""What guardkit's HTML pages share: the look, the head with its content policy, tables, badges.

Every page is one file that needs no network. A content policy holds the browser to that: styles and scripts run only
if they are the page's own, known by their hash. Values are escaped unless they are `Html`.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path

from guardkit.pages.text import Html, attribute, html, piece, prepared

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
FOOT = Html("</body></html>\n")
_NUMBER = re.compile(r"[-–\d.,:%\s\[\]]*")  # intervals and shares, too
SHADES = (0.1, 0.25, 0.5, 0.75)
"""The risks at which a darker shade begins."""


def shade(risk: float) -> int:
    """From 0 to 4: the class `r0` to `r4`."""
    return sum(risk >= bound for bound in SHADES)


def head(title: str, *, style: str = "", script: str = "") -> Html:
    """The page up to and with `<body>`. style: rules behind the shared ones; script: the page's only one."""
    style = STYLE + style
    policy = f"default-src 'none'; style-src {_hash(style)}"
    if script:
        policy += f"; script-src {_hash(script)}"
    return Html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">\n'
        f"<title>{attribute(title)}</title><style>{style}</style>"
        + (f"<script>{script}</script>" if script else "")
        + "</head><body>\n"
    )


def _hash(source: str) -> str:
    return f"'sha256-{urlsafe_b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def header(title: str, *about: object) -> Html:
    """The top of a page: its title, and a line each of what it is about."""
    lines = "".join(f'<p class="note">{html(line)}</p>' for line in about if line)
    return Html(f'<header id="top"><div class="brand">guardkit</div><h1>{html(title)}</h1>{lines}</header>\n')


def badge(value: str) -> Html:
    """A severity, an action, or another word in a box."""
    return Html(f'<span class="badge {attribute(value)}">{html(value)}</span>')


def table(head: Sequence[object], rows: Iterable[Sequence[object]], name: str, *, wide: bool = False) -> Html:
    """A table that scrolls inside its own box, by keyboard too. wide: lines are not broken, and the first column
    stays; what looks like numbers stands to the right."""
    cells = [[html(cell) for cell in row] for row in rows]
    numeric = [_are_numbers([row[i] for row in cells]) for i in range(len(head))]
    kind = [' class="n"' if n else "" for n in numeric]
    top = "".join(f'<th scope="col"{k}>{html(cell)}</th>' for cell, k in zip(head, kind, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{cell}</td>" for cell, k in zip(row, kind, strict=True)) + "</tr>\n" for row in cells
    )
    return box(
        f"<table{' class=wide' if wide else ''}><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>", name
    )


def box(content: str, name: str, kind: str = "scroll") -> Html:
    """What scrolls by itself: named, and in reach of the keyboard."""
    return Html(f'<div class="{kind}" role="region" aria-label="{attribute(name)}" tabindex="0">{content}</div>\n')


def _are_numbers(cells: Sequence[str]) -> bool:
    return any(c[:1].isdigit() for c in cells) and all(_NUMBER.fullmatch(c) for c in cells)


__all__ = [
    "FOOT",
    "SHADES",
    "STYLE",
    "Html",
    "attribute",
    "badge",
    "box",
    "head",
    "header",
    "html",
    "piece",
    "prepared",
    "shade",
    "table",
]
