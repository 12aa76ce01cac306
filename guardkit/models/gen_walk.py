"""Leading a sequence along Qwen3Guard-Gen's grammar: each choice is read from the logits of one position.

Where greedy decoding stays within the grammar the walk finds what it finds. The likeliest answer (Safe, None) is
computed along with the text itself, so that a safe text takes one pass; a walk that turns off cuts the sequence back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from guardkit.engine.config import PUBLISHED, Categories
from guardkit.engine.engine import Engine, Rows
from guardkit.engine.engine import Sequence as Sequence_
from guardkit.engine.reading import Reading
from guardkit.errors import ModelLoadError
from guardkit.models.gen_grammar import NO_CATEGORY, REFUSAL_LABELS, SEVERITY_LABELS
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.verdict import SEVERITIES, Category


@dataclass(frozen=True)
class Grammar:
    """The tokens of the answer's pieces. Severities, refusals and what follows a category differ in their first tokens;
    categories may begin alike, and are then told apart where they part."""

    known: Categories
    safety: list[int]
    severities: dict[str, list[int]]
    categories_line: list[int]
    categories: dict[str, list[int]]
    refusal_line: list[int]
    refusals: dict[str, list[int]]
    comma: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: QwenTokenizer, folder: Path, known: Categories = PUBLISHED) -> Grammar:
        """Raises `ModelLoadError` where the tokens do not tell the labels of a choice apart."""

        def labels(names: Sequence[str]) -> dict[str, list[int]]:
            return {name: tokenizer.ids_of(f" {name}") for name in names}

        made = cls(
            known,
            safety=tokenizer.ids_of("Safety:"),
            severities=labels([*SEVERITY_LABELS]),
            categories_line=tokenizer.ids_of("\nCategories:"),
            categories=labels([NO_CATEGORY, *(c.label for c in known.all)]),
            refusal_line=tokenizer.ids_of("\nRefusal:"),
            refusals=labels([*REFUSAL_LABELS]),
            comma=tokenizer.ids_of(","),
            end=[tokenizer.special("<|im_end|>")],
        )
        for names in (made.severities, made.refusals):
            if len({ids[0] for ids in names.values()}) < len(names):
                raise ModelLoadError(f"{folder}: the tokenizer cannot tell {', '.join(names)} apart by one token")
        after = {made.comma[0], made.refusal_line[0], made.end[0]}
        if len(after) < 3:
            raise ModelLoadError(f"{folder}: the tokenizer cannot tell a comma, a line end and the end apart")
        for name, ids in made.categories.items():
            for other, longer in made.categories.items():
                if (
                    name != other
                    and longer[: len(ids)] == ids
                    and (len(longer) == len(ids) or longer[len(ids)] in after)
                ):
                    raise ModelLoadError(f"{folder}: the tokens of category '{other}' begin with all of '{name}'")
        return made

    @property
    def longest(self) -> int:
        """Tokens of an answer that names every category."""
        named = sum(len(ids) + len(self.comma) for ids in self.categories.values())
        lines = len(self.safety) + len(self.categories_line) + len(self.refusal_line) + len(self.end)
        return named + lines + max(map(len, self.severities.values())) + max(map(len, self.refusals.values()))

    @property
    def ids(self) -> list[int]:
        """The tokens that are compared: what is read of the LM head."""
        choices = [*self.severities.values(), *self.refusals.values(), self.comma, self.refusal_line, self.end]
        return sorted({ids[0] for ids in choices} | set(_parting([*self.categories.values()])))


def _shared(labels: Sequence[list[int]]) -> int:
    """How many tokens all of the labels begin with."""
    n = 0
    for tokens in zip(*labels, strict=False):
        if len(set(tokens)) > 1:
            break
        n += 1
    return n


def _parting(labels: Sequence[list[int]]) -> Iterator[int]:
    """The tokens at which some of the labels that began alike part."""
    groups: dict[int, list[list[int]]] = {}
    for ids in labels:
        if ids:
            groups.setdefault(ids[0], []).append(ids[1:])
    if len(groups) > 1 or any(not ids for ids in labels):
        yield from groups
    for rest in groups.values():
        if len(rest) > 1:
            yield from _parting(rest)


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

        names = grammar.known.response if response else grammar.known.query
        left = {name: grammar.categories[name] for name in (NO_CATEGORY, *(c.label for c in names))}
        follows = {"end": grammar.end} | ({"line": refusal} if response else {})
        after = {"comma": grammar.comma, **follows}
        label, shares, row = yield from self._category(path, row, left, after, refusal)
        answer = Answer(severity.astype(np.float32), np.array([shares[c.label] for c in names], np.float32))
        del left[NO_CATEGORY]
        named: list[str] = []
        while True:
            if label != NO_CATEGORY:
                named.append(label)
            more = label != NO_CATEGORY and len(named) < len(grammar.known.all)
            then, _ = self._choose(row, after if more else follows)
            if then != "comma":
                break
            row = yield from path.step(grammar.comma)
            label, _, row = yield from self._category(path, row, left, after, refusal)
        by_label = {category.label: category for category in names}
        answer.named = tuple(by_label[name] for name in dict.fromkeys(named))
        if then == "line":
            row = yield from path.step(refusal)
            answer.refusal = self._choose(row, grammar.refusals)[1]["Yes"]
        return answer

    def _category(
        self, path: _Path, row: Rows, left: dict[str, list[int]], after: dict[str, list[int]], guess: list[int]
    ) -> Reading[tuple[str, dict[str, float], Rows]]:
        """Lead the sequence along the likeliest of the labels `left`; `row` is the one before it. Gives the label, the
        probability of each, and the row after it. Labels that begin alike share what their beginning has, evenly where
        the sequence went another way. after: what may follow a label, so that one can end where another goes on."""
        shares = dict.fromkeys(left, 0.0)
        alive, depth, mass = left, 0, 1.0
        while len(alive) > 1:
            groups: dict[str, dict[str, list[int]]] = {}
            for name, ids in alive.items():
                groups.setdefault(str(ids[depth]) if len(ids) > depth else "", {})[name] = ids
            choices = {token: [int(token)] for token in groups if token} | (after if "" in groups else {})
            chosen, p = self._choose(row, choices)
            ends = sum(p[name] for name in after) if "" in groups else 0.0
            chosen = chosen if chosen in groups else ""
            for token, group in groups.items():
                for name in group:
                    shares[name] = mass * (p[token] if token else ends) / len(group)
            mass *= p[chosen] if chosen else ends
            alive = groups[chosen]
            if len(alive) > 1:
                parts = _shared([*alive.values()])
                row = yield from path.step(next(iter(alive.values()))[depth:parts])
                depth = parts
        ((label, ids),) = alive.items()
        shares[label] = mass
        if len(ids) > depth:
            row = yield from path.step(ids[depth:], guess)
        return label, shares, row

    def _choose(self, row: Rows, choices: dict[str, list[int]]) -> tuple[str, dict[str, float]]:
        """The likeliest of `choices` by its first token, and the probability of each among them."""
        logits = {name: float(row[self._column[ids[0]]]) for name, ids in choices.items()}
        top = max(logits.values())
        if not math.isfinite(top) or not all(map(math.isfinite, logits.values())):
            raise ValueError("the model gave scores that are not finite")
        weights = {name: math.exp(logit - top) for name, logit in logits.items()}
        total = sum(weights.values())
        return max(logits, key=lambda name: logits[name]), {name: w / total for name, w in weights.items()}
