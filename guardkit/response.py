"""A response as it arrives: text or token ids become tokens that nothing later can change, each with its stage."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence

from guardkit.messages import REASONING_TAG, REASONING_TAGS
from guardkit.models.base import StreamModel, Tokens
from guardkit.retokenize import Cut, IdReader, IncrementalTokenizer, SurrogateJoiner
from guardkit.verdict import Stage

MEMORY = 4096  # characters of a response that are remembered: more than a sentence before any token under way
_LONGEST_TAG = max(map(len, REASONING_TAGS))


class ResponseReader:
    """Text or token ids in, final tokens out, each with its stage. Think tags themselves are no tokens."""

    def __init__(self, model: StreamModel, stage: Stage):
        self.stage = stage
        self._has_tags = stage in (Stage.response, Stage.reasoning)
        self._surrogates = SurrogateJoiner()
        self._name, self._tokenizer = model.name, model.tokenizer
        self._tokens = IncrementalTokenizer(model.tokenizer)
        self._ids: IdReader | None = None
        self._pending = ""  # text behind which a tag may still be under way
        self._stride = model.stride
        self._block: Tokens | None = None  # final tokens that wait for a whole stride
        self.text_in = 0  # characters taken in, surrogate pairs counted as one
        self._recent: list[str] = []  # the newest of them
        self._n_recent = 0

    def copy(self) -> ResponseReader:
        """A twin that goes its own way."""
        twin = copy.copy(self)
        twin._surrogates, twin._tokens = copy.copy(self._surrogates), copy.copy(self._tokens)
        twin._recent = self._recent.copy()
        twin._ids = None if self._ids is None else self._ids.copy()
        return twin

    def push(self, text: str) -> tuple[str, list[Tokens]]:
        """Take a delta; returns it with surrogate pairs joined, and the tokens that are final now."""
        out: list[Tokens] = []
        if text.isascii() and self._ids is None and "<" not in text and not (self._pending or self._surrogates.carry):
            self._took(text)  # as `_read` does, with nothing to join and no tag
            found = self._tokens.push(text)
            if found[0] or self._block is not None:
                self._add(out, found)
            return text, out
        before = "" if self._ids is None else self._end_ids(out)
        text = self._surrogates.push(text)
        self._read(text, out, final=False)
        return before + text, out

    def push_ids(self, ids: Sequence[int]) -> tuple[str, list[Tokens]]:
        """Take token ids of a model that shares the vocabulary: they are judged as they are, each one final. Returns
        their text, and the tokens. Raises TypeError where the vocabulary is not known, ValueError for an unknown id.
        """
        out: list[Tokens] = []
        if self._ids is None:
            bytes_of = getattr(self._tokenizer, "bytes_of", None)
            if bytes_of is None:
                raise TypeError(f"{self._name} has a vocabulary of its own: feed text")
            self._ids = IdReader(bytes_of)
        known = self._ids.bytes_of(ids)  # raises before anything is taken
        before = self._end_text(out)
        text = self._ids.push(ids, known)
        self._took(text)
        self._read_ids(out, final=False)
        return before + text, out

    def finish(self) -> tuple[str, list[Tokens]]:
        out: list[Tokens] = []
        before = "" if self._ids is None else self._end_ids(out)
        text = self._surrogates.finish()
        self._read(text, out, final=True)
        return before + text, out

    def read_all(self, text: str, feed_chars: int) -> Iterator[Tokens]:
        """The tokens of a whole text, read `feed_chars` characters at a time."""
        for at in range(0, len(text), feed_chars):
            yield from self.push(text[at : at + feed_chars])[1]
        yield from self.finish()[1]

    @property
    def received(self) -> int:
        """Characters received, a half surrogate pair included."""
        return self.text_in + len(self._surrogates.carry)

    @property
    def stable(self) -> int:
        """Characters whose tokens are final: no later token starts before this index."""
        if self._block is not None:
            return self._block.starts[0]
        waiting = len(self._pending) + len(self._tokens.tail)
        return self.text_in - waiting - (0 if self._ids is None else self._ids.n_chars)

    def text(self, start: int, end: int) -> str:
        """The characters from `start` to `end`, as far as they are remembered: those of the last push and at least
        `MEMORY` before it."""
        recent = "".join(self._recent)
        self._recent = [recent]
        first = self.text_in - len(recent)
        return recent[max(start - first, 0) : max(end - first, 0)]

    def peek(self) -> Tokens:
        """The tokens that are not judged yet, as if the text ended here."""
        tail = Tokens(self.stage, *self._tokens.peek())
        if self._ids is not None:
            ids, starts, text = self._ids.waiting()
            at = self._tokens.offset
            tail = Tokens(self.stage, ids, [at + start for start in starts], text, at + len(text))
        return tail if self._block is None else self._block + tail

    def _took(self, text: str) -> None:
        n_chars = len(text)
        if self._n_recent > 4 * MEMORY:
            self._recent = ["".join(self._recent)[-MEMORY:]]
            self._n_recent = MEMORY
        self.text_in += n_chars
        self._n_recent += n_chars
        self._recent.append(text)

    def _read(self, text: str, out: list[Tokens], final: bool) -> None:
        if text:
            self._took(text)
        rest = self._pending + text
        self._pending = ""
        if self._has_tags and "<" in rest:
            at = 0
            for tag in REASONING_TAG.finditer(rest):
                self._add(out, self._tokens.push(rest[at : tag.start()]))
                self._change(out, tag)
                at = tag.end()
            rest = rest[at:]
            if not final:
                rest = self._hold_partial_tag(rest)
        found = self._tokens.push(rest)
        if found[0] or self._block is not None:
            self._add(out, found)
        if final:
            self._add(out, self._tokens.finish(), flush=True)

    def _change(self, out: list[Tokens], tag: re.Match[str]) -> None:
        """A think tag ends the tokens before it, and begins another stage."""
        self._add(out, self._tokens.finish(), flush=True)
        self._tokens.skip(len(tag[0]))
        self.stage = Stage.response if tag[1] else Stage.reasoning

    def _end_text(self, out: list[Tokens]) -> str:
        """Ids follow text: its last word ends here."""
        text = self._surrogates.finish()
        if text:
            self._took(text)
        pending, self._pending = self._pending + text, ""
        if pending or self._tokens.tail:
            self._add(out, self._tokens.push(pending))
            self._add(out, self._tokens.finish())
        return text

    def _end_ids(self, out: list[Tokens]) -> str:
        """Text follows ids, or nothing: the last of them are whole."""
        assert self._ids is not None
        text = self._ids.finish()
        if text:
            self._took(text)
        self._read_ids(out, final=True)
        self._ids = None
        return text

    def _read_ids(self, out: list[Tokens], final: bool) -> None:
        """Take the ids that are final; a tag, or what may become one, is found in their text."""
        assert self._ids is not None
        text = self._ids.text if self._has_tags else ""
        if "<" in text:
            at = 0
            for tag in REASONING_TAG.finditer(text):
                self._add(out, self._placed(self._ids.take(tag.start() - at, self._tokenizer.encode)))
                self._ids.take(len(tag[0]), self._tokenizer.encode)
                self._change(out, tag)
                at = tag.end()
            if not final:
                hold = len(text) - len(self._hold_partial_tag(text[at:])) - at
                self._pending = ""
                self._add(out, self._placed(self._ids.take_whole(self._ids.n_whole - hold)))
                return
        self._add(out, self._placed(self._ids.take_whole(self._ids.n_whole)))

    def _placed(self, found: tuple[list[int], list[int], str]) -> Cut:
        """Ids with their starts in the response."""
        ids, starts, text = found
        at = self._tokens.offset
        self._tokens.skip(len(text))
        return ids, [at + start for start in starts], text, self._tokens.offset

    def _hold_partial_tag(self, text: str) -> str:
        start = text.rfind("<", -_LONGEST_TAG + 1)
        if start >= 0 and any(tag.startswith(text[start:]) for tag in REASONING_TAGS):
            self._pending = text[start:]
            return text[:start]
        return text

    def _add(self, out: list[Tokens], found: Cut, flush: bool = False) -> None:
        if not found[0] and self._block is None:
            return
        tokens = Tokens(self.stage, *found)
        if self._block is not None:
            tokens, self._block = self._block + tokens, None
        while self._stride > 1 and len(tokens) > self._stride:
            block, tokens = tokens.split(self._stride)
            out.append(block)
        if not len(tokens):
            return
        if flush or len(tokens) >= self._stride:
            out.append(tokens)
        else:
            self._block = tokens
