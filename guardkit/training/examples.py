"""Rows as token ids with labels, framed as the engine frames a text when it judges it.

Stream: a prompt is labelled at the `<|im_end|>` of its turn; a response at every token: safe before `unsafe_from`, the
row's severity from there on. Where the place is not known, only the last `tail` tokens of an unsafe response are
labelled. Gen: the template, then the answer; only what is known of the answer is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from guardkit.engine.config import Categories
from guardkit.engine.template import ChatTemplate
from guardkit.messages import Message
from guardkit.models.base import Query, StreamModel
from guardkit.models.gen_messages import render
from guardkit.models.gen_walk import Grammar
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.models.stream import Frames
from guardkit.response import ResponseReader
from guardkit.training.categories import CategorySet
from guardkit.training.rows import Row
from guardkit.verdict import SEVERITIES, Severity, Stage

IGNORED = -100
RISKS = (Severity.safe, Severity.unsafe, Severity.controversial)
"""Class ids of the published risk heads."""
_RISK_OF = {SEVERITIES.index(severity): i for i, severity in enumerate(RISKS)}
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Example:
    """ids [n]; labels [n]: of Stream the risk class at each token, of Gen the token that each one learns; -100: none.
    at: the token at which the whole row is judged. severity, category: class ids of the whole row, category -100 where
    it is none or not known."""

    ids: Ints
    labels: Ints
    at: int
    severity: int
    category: int
    is_query: bool

    def __len__(self) -> int:
        return len(self.ids)


class StreamExamples:
    """Rows for Stream's heads. tail: see the module."""

    def __init__(self, folder: Path, template: str, tokenizer: QwenTokenizer, categories: CategorySet, tail: int = 8):
        self._tokenizer, self._categories, self._tail = tokenizer, categories, tail
        self.name, self.stride = "training", 1  # what a reader of responses asks of a model, with the tokenizer
        self.tokenizer = tokenizer
        self._frames = Frames(ChatTemplate(template, tokenizer, folder), tokenizer)

    def of(self, row: Row, most: int) -> Example | None:
        """None for a row that has more than `most` tokens (of a response: no labelled one among the first)."""
        if row.response is None:
            ids = self._frames.query([], row.prompt)
            labels = np.full(len(ids), IGNORED, np.int32)
            labels[-1] = _RISK_OF[row.severity]
            return self._example(row, ids, labels) if len(ids) <= most else None
        context = [Message("user", row.prompt)] if row.prompt else []
        frame = self._frames.response(context, most // 2)
        ids, starts = list(frame.ids), [-1] * len(frame.ids)
        before: Stage | None = None
        for tokens in ResponseReader(cast(StreamModel, self), Stage.response).read_all(row.response, len(row.response)):
            scaffold = frame.scaffold(before, tokens.stage)
            ids += [*scaffold, *tokens.ids]
            starts += [-1] * len(scaffold) + list(tokens.starts)
            before = tokens.stage
        labels = self._token_labels(row, np.array(starts, np.int32))
        ids, labels = ids[:most], labels[:most]
        return self._example(row, ids, labels) if (labels != IGNORED).any() else None

    def _token_labels(self, row: Row, starts: Ints) -> Ints:
        """By the index of each token's first character; -1 for tokens of the frame."""
        labels = np.full(len(starts), IGNORED, np.int32)
        (own,) = np.nonzero(starts >= 0)
        if not row.severity:
            labels[own] = _RISK_OF[0]
        elif row.unsafe_from is None:
            labels[own[-self._tail :]] = _RISK_OF[row.severity]
        else:
            # The token in which the place lies counts: it is the first whose next one starts behind it.
            ends = np.append(starts[own][1:], len(row.response or "") + 1)
            labels[own] = np.where(ends > row.unsafe_from, _RISK_OF[row.severity], _RISK_OF[0])
        return labels

    def _example(self, row: Row, ids: Sequence[int], labels: Ints) -> Example:
        names = self._categories.query if row.response is None else self._categories.response
        category = names.index(row.categories[0]) if row.severity and row.categories else IGNORED
        at = int(np.nonzero(labels != IGNORED)[0][-1])
        return Example(np.array(ids, np.int32), labels, at, _RISK_OF[row.severity], category, row.response is None)


class GenExamples:
    """Rows for Gen: its template, and the answer in its grammar."""

    def __init__(self, folder: Path, template: str, tokenizer: QwenTokenizer, categories: CategorySet):
        self._template = ChatTemplate(template, tokenizer, folder)
        self._grammar = Grammar.of(tokenizer, folder, Categories(categories.query, categories.response))
        self._categories = categories

    @property
    def choices(self) -> list[int]:
        """The first tokens of the severities' labels, in the order of `RISKS`."""
        by_name = {name.lower(): ids[0] for name, ids in self._grammar.severities.items()}
        return [by_name[severity.value] for severity in RISKS]

    def of(self, row: Row, most: int) -> Example | None:
        """None for a row that has more than `most` tokens."""
        if row.response is None:
            turns = render(Query(row.prompt), clean=str)
        else:
            turns = render(Query(row.response, Stage.response, (Message("user", row.prompt),)), clean=str)
        layout = self._template.lay_out([turn["role"] for turn in turns])
        ids = self._template.encode(layout, [turn["content"] for turn in turns])
        labels = [IGNORED] * len(ids)
        at = len(ids) + len(self._grammar.safety) - 1
        for piece, is_known in self._answer(row):
            ids += piece
            labels += piece if is_known else [IGNORED] * len(piece)
        if len(ids) > most:
            return None
        names = self._categories.query if row.response is None else self._categories.response
        category = names.index(row.categories[0]) if row.categories else IGNORED
        shifted = [*labels[1:], IGNORED]  # each token is learned where it is predicted
        return Example(
            np.array(ids, np.int32),
            np.array(shifted, np.int32),
            at,
            _RISK_OF[row.severity],
            category,
            row.response is None,
        )

    def _answer(self, row: Row) -> list[tuple[list[int], bool]]:
        """The answer's pieces, and whether each one is known. What follows a piece that is not known still is."""
        grammar = self._grammar
        label = next(name for name in grammar.severities if name.lower() == SEVERITIES[row.severity].value)
        pieces = [(grammar.safety, True), (grammar.severities[label], True), (grammar.categories_line, True)]
        known = bool(row.categories) or not row.severity
        for i, name in enumerate([c.label for c in row.categories] or ["None"]):
            pieces += [(grammar.comma, True)] * (i > 0) + [(grammar.categories[name], known)]
        if row.response is not None:
            pieces.append((grammar.refusal_line, row.refusal is not None))
            pieces.append((grammar.refusals["Yes" if row.refusal else "No"], row.refusal is not None))
        return [*pieces, (grammar.end, known or row.response is not None)]
