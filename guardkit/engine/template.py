"""A checkpoint's chat template, rendered to token ids.

The template runs in jinja's sandbox, as transformers runs it. It never sees the contents: it lays out placeholders,
and each content is put in afterwards as plain text. So no content can close its own turn or open another (a special
token that is spelled in it is text), and no content can be dropped without being noticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from guardkit.errors import MissingExtra, ModelLoadError

_MARK = "\ue000{}\ue001"  # private-use characters around the index of a content
_MARKED = re.compile("\ue000(\\d+)\ue001")
# Qwen's tokenizer never joins across it: a run of line ends closes a piece, and ASCII behind it begins one.
_CUT = re.compile(r"\n(?=[!-~])")
_REMEMBERED = 256  # of the template's own texts
Layout = list[str | int]
"""Text and placeholders (the indexes of contents) in turn."""


class TemplateTokenizer(Protocol):
    def encode(self, text: str) -> tuple[list[int], list[int]]: ...

    def special(self, name: str) -> int: ...

    @property
    def special_names(self) -> Sequence[str]: ...


class ChatTemplate:
    """source: the template's jinja text; where: the file it comes from, for messages."""

    def __init__(self, source: str, tokenizer: TemplateTokenizer, where: Path):
        self._where, self._tokenizer = where, tokenizer
        self._own: dict[str, list[int]] = {}  # the template's own texts, tokenised
        self._special = re.compile("(" + "|".join(map(re.escape, tokenizer.special_names)) + ")")
        try:
            from jinja2 import TemplateError
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise MissingExtra("a chat template", "torch") from error
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": _raise, "strftime_now": _no_clock}
        self._errors = (TemplateError, _Refused, *_FAULTS)
        try:
            self._template = environment.from_string(source)
        except self._errors as error:
            raise ModelLoadError(f"{where}: the chat template does not compile ({_short(error)})") from error

    def lay_out(self, roles: Sequence[str], **options: Any) -> Layout:
        """The turns of `roles` with a placeholder for each content. Raises `ModelLoadError` where it fails."""
        messages = [{"role": role, "content": _MARK.format(i)} for i, role in enumerate(roles)]
        try:
            text = self._template.render(messages=messages, tools=None, documents=None, **options)
        except self._errors as error:
            raise ModelLoadError(
                f"{self._where}: the chat template fails on the roles {', '.join(roles)} ({_short(error)})"
            ) from error
        pieces = _MARKED.split(text)
        return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces) if i % 2 or piece]

    def encode(self, layout: Layout, contents: Sequence[str]) -> list[int]:
        """Token ids of a layout with its contents: special tokens come from the template alone."""
        ids, rest = self.begin(layout, contents)
        return ids + self._tokenizer.encode(rest)[0]

    def begin(self, layout: Layout, contents: Sequence[str]) -> tuple[list[int], str]:
        """Token ids up to the last special token, and the text behind it, which what follows may still join."""
        ids: list[int] = []
        text: list[str] = []  # since the last special token: what may merge
        own: list[bool] = []  # whether it is the template's
        for piece in layout:
            if isinstance(piece, int):
                text.append(contents[piece])
                own.append(False)
                continue
            for i, part in enumerate(self._special.split(piece)):
                if i % 2 == 0:
                    text.append(part)
                    own.append(True)
                    continue
                ids += self._joined(text, own)
                text, own = [], []
                ids.append(self._tokenizer.special(part))
        return ids, "".join(text)

    def _joined(self, text: list[str], own: list[bool]) -> list[int]:
        """The tokens of texts that stand side by side. What the template begins and ends with is long, always the same,
        and tokenised once, up to where contents may reach into it."""
        if all(own):
            return self._remembered("".join(text))
        first, last = "", ""
        if own[0] and (cuts := [match.end() for match in _CUT.finditer(text[0])]):
            first, text = text[0][: cuts[-1]], [text[0][cuts[-1] :], *text[1:]]
        if own[-1] and (cut := _CUT.search(text[-1])):
            text, last = [*text[:-1], text[-1][: cut.end()]], text[-1][cut.end() :]
        return self._remembered(first) + self._tokenizer.encode("".join(text))[0] + self._remembered(last)

    def _remembered(self, text: str) -> list[int]:
        known = self._own.get(text)
        if known is None:
            if len(self._own) >= _REMEMBERED:
                self._own.clear()
            known = self._own[text] = self._tokenizer.encode(text)[0] if text else []
        return known


class _Refused(Exception):
    """What a template raises itself."""


_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def _raise(message: str) -> None:
    raise _Refused(message)


def _no_clock(_: str) -> str:
    return ""  # a verdict must not depend on the day
