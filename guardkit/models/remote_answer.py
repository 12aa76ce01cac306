"""From a server's chat completion to scores: the answer as text, and where the server gives logprobs, probabilities.

The labels' first tokens tell them apart, so each probability is read at one position: a label's share among the labels
that could stand there. Without logprobs the label that was named has probability 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guardkit.engine.config import PUBLISHED, Categories
from guardkit.models.base import Floats, Scores
from guardkit.models.gen_grammar import REFUSAL_LABELS, SEVERITY_LABELS, Answer, Unparsable, parse
from guardkit.models.remote_client import ServerError
from guardkit.verdict import SEVERITIES, Category

_SEVERITY = re.compile(r"Safety:\s*(?=\S)")
_CATEGORIES = re.compile(r"Categories:\s*(?=\S)([^\r\n]*)")
_REFUSAL = re.compile(r"Refusal:\s*(?=\S)")
_CERTAIN = 1e-3  # a log probability may exceed 0 by rounding


@dataclass(frozen=True)
class Judged:
    """An answer with its scores (n = 1)."""

    answer: Answer
    scores: Scores


def read(completion: object, names: frozenset[str], where: str, categories: Categories = PUBLISHED) -> Judged:
    """Read a chat completion by one of the models `names`, which know `categories`. Raises `ServerError` or
    `Unparsable`."""
    if not isinstance(completion, dict):
        raise ServerError(f"{where}: the answer is no chat completion")
    by = completion.get("model")
    if isinstance(by, str) and by and by.rpartition("@")[0] not in names and by not in names:
        raise ServerError(f"{where}: another model answered, {by[:100]!r} instead of {min(names)!r}")
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ServerError(f"{where}: the answer has no choices")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        thought = any(message.get(key) for key in ("reasoning", "reasoning_content"))
        hint = "; the server took it for reasoning: start it without a reasoning parser" if thought else ""
        raise ServerError(f"{where}: the answer is empty{hint}")
    try:
        answer = parse(content, categories)
    except Unparsable as error:
        if choice.get("finish_reason") == "length":
            raise Unparsable(content, "cut off by the limit of tokens") from error
        raise
    try:
        found = _probabilities(choice.get("logprobs"), answer, categories.all)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise ServerError(f"{where}: the answer's logprobs cannot be read ({type(error).__name__}: {error})") from error
    return Judged(answer, replace(found or _certain(answer, categories.all), named=answer.categories))


def _certain(answer: Answer, known: Sequence[Category]) -> Scores:
    """Scores of an answer whose probabilities are not known."""
    severity = np.zeros((1, 3), np.float32)
    severity[0, SEVERITIES.index(answer.severity)] = 1
    category = np.zeros((1, len(known)), np.float32)
    category[0, [known.index(c) for c in answer.categories]] = 1
    return Scores(severity, category, _refusal(None if answer.refusal is None else float(answer.refusal)))


def _probabilities(logprobs: Any, answer: Answer, known: Sequence[Category]) -> Scores | None:
    """Scores from the tokens' logprobs, None where there are none that fit the answer."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not tokens:
        return None
    positions = _Positions(tokens)
    at = _SEVERITY.search(positions.text)
    severity = positions.shares(at.end(), list(SEVERITY_LABELS)) if at else None
    if severity is None:
        return None
    by_label = dict(zip(SEVERITY_LABELS.values(), severity, strict=True))
    row = np.array([[by_label[s] for s in SEVERITIES]], np.float32)
    if SEVERITIES[int(row.argmax())] is not answer.severity:
        raise ValueError("the likeliest label is not the one that was named")
    category = np.zeros((1, len(known)), np.float32)
    listed = _CATEGORIES.search(positions.text, at.end() if at else 0)
    if listed:
        begin = listed.start(1)
        for name in re.finditer(r"[^,\s][^,]*", listed[1]):
            shares = positions.shares(begin + name.start(), [c.label for c in known])
            if shares is not None:
                category = np.maximum(category, np.array([shares], np.float32))
    if not category.any():
        category[0, [known.index(c) for c in answer.categories]] = 1
    refused = None
    if answer.refusal is not None:
        line = _REFUSAL.search(positions.text)
        pair = positions.shares(line.end(), list(REFUSAL_LABELS)) if line else None
        refused = float(answer.refusal) if pair is None else pair[0]
    return Scores(row, category, _refusal(refused))


def _refusal(p: float | None) -> Floats | None:
    return None if p is None else np.array([p], np.float32)


class _Positions:
    """The tokens of an answer, and what else could have stood at each."""

    def __init__(self, tokens: Sequence[Mapping[str, Any]]):
        self._tokens = tokens
        self.text = "".join(str(t["token"]) for t in tokens)

    def shares(self, at: int, labels: Sequence[str]) -> list[float] | None:
        """Each label's share of the probability at the token that holds character `at`; None where none has any."""
        end = 0
        for token in self._tokens:
            end += len(token["token"])
            if end > at:
                break
        else:
            return None
        seen = {str(t["token"]): t["logprob"] for t in [*(token.get("top_logprobs") or ()), token]}
        mass = [0.0] * len(labels)
        for text, logprob in seen.items():
            if not isinstance(logprob, int | float) or math.isnan(logprob) or logprob > _CERTAIN:
                raise ValueError("a log probability that is none")
            label = _label(text.strip(), labels)
            if label is not None:
                mass[label] += math.exp(logprob)
        total = sum(mass)
        return [m / total for m in mass] if total > 0 else None


def _label(token: str, labels: Sequence[str]) -> int | None:
    """The label that `token` is the start of. Where two begin alike (PII, Politically), it is the shortest: the
    longer one's first token is longer."""
    if not token or token == "None":
        return None
    fits = [i for i, label in enumerate(labels) if label.startswith(token)]
    return min(fits, key=lambda i: len(labels[i])) if fits else None
