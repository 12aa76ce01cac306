"""Leading a sequence along Qwen3Guard-Gen's grammar: each choice is read from the logits of one position.

Where greedy decoding stays within the grammar the walk finds what it finds. The likeliest answer (Safe, None) is
computed along with the text itself, so that a safe text takes one pass; a walk that turns off cuts the sequence back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from guardkit.engine.engine import Engine, Rows
from guardkit.engine.engine import Sequence as Sequence_
from guardkit.engine.reading import Reading
from guardkit.errors import ModelLoadError
from guardkit.models.gen_grammar import CATEGORY_LABELS, NO_CATEGORY, REFUSAL_LABELS, SEVERITY_LABELS
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.verdict import SEVERITIES, Category

CATEGORIES = tuple(CATEGORY_LABELS.values())
RESPONSE_CATEGORIES = tuple(c for c in CATEGORIES if c is not Category.jailbreak)


@dataclass(frozen=True)
class Grammar:
    """The tokens of the answer's pieces. Of a choice only the first tokens are compared; they are all distinct."""

    safety: list[int]
    severities: dict[str, list[int]]
    categories_line: list[int]
    categories: dict[str, list[int]]
    refusal_line: list[int]
    refusals: dict[str, list[int]]
    comma: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: QwenTokenizer, folder: Path) -> Grammar:
        """Raises `ModelLoadError` where labels of one choice start with the same token."""

        def labels(names: Sequence[str]) -> dict[str, list[int]]:
            found = {name: tokenizer.ids_of(f" {name}") for name in names}
            if len({ids[0] for ids in found.values()}) < len(found):
                raise ModelLoadError(f"{folder}: the tokenizer cannot tell {', '.join(names)} apart by one token")
            return found

        made = cls(
            safety=tokenizer.ids_of("Safety:"),
            severities=labels([*SEVERITY_LABELS]),
            categories_line=tokenizer.ids_of("\nCategories:"),
            categories=labels([NO_CATEGORY, *CATEGORY_LABELS]),
            refusal_line=tokenizer.ids_of("\nRefusal:"),
            refusals=labels([*REFUSAL_LABELS]),
            comma=tokenizer.ids_of(","),
            end=[tokenizer.special("<|im_end|>")],
        )
        if len({made.comma[0], made.refusal_line[0], made.end[0]}) < 3:
            raise ModelLoadError(f"{folder}: the tokenizer cannot tell a comma, a line end and the end apart")
        return made

    @property
    def ids(self) -> list[int]:
        """The first tokens of all choices: what is read of the LM head."""
        choices = [*self.severities.values(), *self.categories.values(), *self.refusals.values()]
        return sorted({ids[0] for ids in [*choices, self.comma, self.refusal_line, self.end]})


@dataclass
class Answer:
    """severity [3] in the order of `SEVERITIES`; categories [c]: of the first category's choice; named: as listed, each
    once; refusal: the probability of Yes, None where the model ends without that line."""

    severity: Rows
    categories: Rows
    named: tuple[Category, ...] = ()
    refusal: float | None = None


Walk = Reading[Answer]


@dataclass
class _Path:
    """A sequence that is led along the grammar. ahead: tokens that were computed on trial, with their rows."""

    engine: Engine
    sequence: Sequence_
    at: int
    deadline: float | None
    ahead: list[tuple[int, Rows]] = field(default_factory=list)

    def step(self, tokens: list[int], guess: Sequence[int] = ()) -> Reading[Rows]:
        """Go on by `tokens`; the row at the last of them. `guess`: what will likely follow, computed along."""
        if [token for token, _ in self.ahead[: len(tokens)]] == tokens:
            row = self.ahead[len(tokens) - 1][1]
            del self.ahead[: len(tokens)]
        else:
            self.engine.truncate(self.sequence, self.at)
            rows = yield self.engine.submit(
                self.sequence, [*tokens, *guess], "grammar", len(tokens) - 1, deadline=self.deadline
            )
            row = rows[0]
            self.ahead = list(zip(guess, rows[1:], strict=True))
        self.at += len(tokens)
        return row


class Walker:
    """Reads answers off an engine whose head "grammar" gives the logits of `grammar.ids`."""

    def __init__(self, engine: Engine, grammar: Grammar):
        self._engine, self._grammar = engine, grammar
        self._column = {token: i for i, token in enumerate(grammar.ids)}

    def walk(self, sequence: Sequence_, ids: list[int], response: bool, deadline: float | None = None) -> Walk:
        """Lead a sequence from a rendered template to an answer; yields what it waits for. `ids` starts with what the
        sequence has."""
        grammar = self._grammar
        path = _Path(self._engine, sequence, sequence.length, deadline)
        refusal = grammar.refusal_line if response else []
        none = [*grammar.categories[NO_CATEGORY], *refusal]
        guess = [*grammar.severities["Safe"], *grammar.categories_line, *none]

        row = yield from path.step([*ids[path.at :], *grammar.safety], guess)
        label, p = self._choose(row, grammar.severities)
        severity = np.array([p[name] for level in SEVERITIES for name, s in SEVERITY_LABELS.items() if s is level])
        safe = label == "Safe"
        row = yield from path.step([*grammar.severities[label], *grammar.categories_line], none if safe else ())

        left = {n: ids for n, ids in grammar.categories.items() if not (response and n == Category.jailbreak.label)}
        label, p = self._choose(row, left)
        names = RESPONSE_CATEGORIES if response else CATEGORIES
        answer = Answer(severity.astype(np.float32), np.array([p[c.label] for c in names], np.float32))
        del left[NO_CATEGORY]
        named: list[str] = []
        while True:
            row = yield from path.step(grammar.categories[label], refusal)
            follows = {"end": grammar.end} | ({"line": refusal} if response else {})
            if label != NO_CATEGORY:
                named.append(label)
                follows |= {"comma": grammar.comma} if len(named) < len(CATEGORIES) else {}
            then, _ = self._choose(row, follows)
            if then != "comma":
                break
            row = yield from path.step(grammar.comma)
            label, _ = self._choose(row, left)
        answer.named = tuple(CATEGORY_LABELS[name] for name in dict.fromkeys(named))
        if then == "line":
            row = yield from path.step(refusal)
            answer.refusal = self._choose(row, grammar.refusals)[1]["Yes"]
        return answer

    def _choose(self, row: Rows, choices: dict[str, list[int]]) -> tuple[str, dict[str, float]]:
        """The likeliest of `choices` by its first token, and the probability of each among them."""
        logits = {name: float(row[self._column[ids[0]]]) for name, ids in choices.items()}
        top = max(logits.values())
        if not math.isfinite(top) or not all(map(math.isfinite, logits.values())):
            raise ValueError("the model gave scores that are not finite")
        weights = {name: math.exp(logit - top) for name, logit in logits.items()}
        total = sum(weights.values())
        return max(logits, key=lambda name: logits[name]), {name: w / total for name, w in weights.items()}
