"""A stream of JSON values, cut where each ends: the items of an array, or values one after another.

Only the value that is under way is held, so memory does not grow with the file. Values are cut by their brackets and
quotes alone: one that is not valid is handed on like any other, and fails on its own.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.S)
_STRING_REST = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.S)


class JsonValues:
    """`feed` text cut anywhere, get ``(line, source text)`` of each value that it completes; `finish` at the end."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.n_held = 0
        """Characters of the value that is under way."""
        self._depth = 0
        self._in_string = self._escaped = self._in_array = False
        self._line = 1  # of the end of what is held
        self.is_cut_off = False
        """After `finish`: whether the last value did not end."""

    def feed(self, text: str) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        start = at = 0
        while at < len(text):
            if self._in_string:
                at = self._string(text, at)
                continue
            token = _TOKEN.search(text, at)
            if token is None:
                break
            at = token.end()
            mark = token[0]
            if mark == '"':  # a string that goes on in the next piece
                self._in_string = True
            elif mark in "[{":
                if self._depth == 0 and not self._in_array:
                    start = self._cut(text, start, token.start(), found)
                    if mark == "[":
                        self._in_array = True
                        start = self._skip(text, start, at)
                        continue
                self._depth += 1
            elif mark in "]}":
                if self._depth:
                    self._depth -= 1
                    if self._depth == 0 and not self._in_array:
                        start = self._cut(text, start, at, found)
                elif self._in_array and mark == "]":
                    start = self._skip(text, self._cut(text, start, token.start(), found), at)
                    self._in_array = False
            elif mark == "," and self._depth == 0 and self._in_array:
                start = self._skip(text, self._cut(text, start, token.start(), found), at)
        if start < len(text):
            self._pieces.append(text[start:])
            self.n_held += len(text) - start
            self._line += text.count("\n", start)
        return found

    def finish(self) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        self.is_cut_off = self._in_array or self._in_string or self._depth > 0
        self._cut("", 0, 0, found)
        return found

    def _string(self, text: str, at: int) -> int:
        """Go on inside a string; where it ends, or the end of `text`."""
        if self._escaped:
            at, self._escaped = at + 1, False
        rest = _STRING_REST.match(text, at)
        end = rest.end() if rest else at
        if end >= len(text):
            return len(text)
        if text[end] == "\\":  # its escape is cut
            self._escaped = True
        else:
            self._in_string = False
        return end + 1

    def _cut(self, text: str, start: int, end: int, found: list[tuple[int, str]]) -> int:
        """Hand out what is held with ``text[start:end]``; blanks are nothing."""
        value = "".join((*self._pieces, text[start:end]))
        line = self._line + text.count("\n", start, end)
        if value.strip():
            lead = len(value) - len(value.lstrip())
            found.append((line - value.count("\n", lead), value.strip()))
        self._pieces, self._line, self.n_held = [], line, 0
        return end

    def _skip(self, text: str, start: int, end: int) -> int:
        self._line += text.count("\n", start, end)
        return end
