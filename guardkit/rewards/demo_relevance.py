"""The demonstration's helpfulness: what an answer tells of its request, by a language model's probabilities.

The mutual information of request and answer, which generic answers have none of (Li et al. 2016, "A
diversity-promoting objective function for neural conversation models"). Words that the answer takes from the request
are left out of it first: saying the request once more would be the cheapest way to speak of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from guardkit.rewards.judged import Conversation

WORD = re.compile(r"[a-z']+", re.I)
COMMON = frozenset(
    (
        "a", "an", "and", "at", "do", "explain", "first", "for", "from", "how", "i", "in", "is", "it", "me", "my", "of",
        "on", "or", "should", "step", "that", "the", "to", "want", "what", "with",
    )
)  # fmt: skip
_ROOT = 4  # first letters by which "repair" and "repairing" count as one word
_NOTHING_TOLD, _PER_NAT = -4.0, 5.0  # the worth of an answer that tells nothing, and of one nat a content word more

_NOTHING_SAID, _WORDS = -5.0, 15  # of an answer with fewer words only the share counts; none is worth a refusal


class Relevance:
    """A helpfulness reward from -10 to 10, with TRL's signature, for short requests and answers.

    model, tokenizer: a causal language model of transformers; with LoRA adapters, they are switched off for this, so
    that a model that learns does not judge itself. No judge of truth: it sees what an answer speaks of, in words of its
    own, at what length, and that it does not repeat itself.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 32):
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        self.__name__ = "relevance"
        self._alone: dict[str, float] = {}  # requests' log-probabilities without an answer

    def __call__(self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any) -> list[float]:
        asked, told = [text_of(p) for p in prompts], [text_of(c) for c in completions]
        return [worth(nats, answer) for nats, answer in zip(self.information(asked, told), told, strict=True)]

    def information(self, asked: Sequence[str], told: Sequence[str]) -> list[float]:
        """How much likelier each answer's own words make its request, in nats for each of its content words."""
        rests = [without_words_of(request, answer) for request, answer in zip(asked, told, strict=True)]
        with_answer = self._log_probabilities(asked, rests)
        new = sorted(set(asked) - set(self._alone))
        self._alone.update(zip(new, self._log_probabilities(new, [""] * len(new)), strict=True))
        return [
            (found - self._alone[request]) / max(len(content_words(request)), 1)
            for request, found in zip(asked, with_answer, strict=True)
        ]

    def _log_probabilities(self, asked: Sequence[str], told: Sequence[str]) -> list[float]:
        """Of each request as the question to an answer."""
        import torch

        ids = [
            (self._ids(f"Answer: {answer.strip()}\nQuestion:"), self._ids(" " + request))
            for request, answer in zip(asked, told, strict=True)
        ]
        found = []
        for at in range(0, len(ids), self.batch):
            part = ids[at : at + self.batch]
            longest = max(len(before) + len(request) for before, request in part)
            most = max(len(request) for _, request in part)
            rows = torch.zeros(len(part), longest, dtype=torch.long)
            mask = torch.zeros_like(rows)
            for i, (before, request) in enumerate(part):
                rows[i, longest - len(before) - len(request) :] = torch.tensor(before + request)
                mask[i, longest - len(before) - len(request) :] = 1
            with torch.inference_mode(), _without_adapters(self.model):
                logits = self.model(
                    input_ids=rows.to(self.model.device), attention_mask=mask.to(self.model.device),
                    position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(self.model.device), logits_to_keep=most + 1,
                ).logits[:, :-1].float()  # fmt: skip
                ends = rows[:, longest - most :].to(logits.device)
                each = logits.log_softmax(-1).gather(-1, ends[..., None])[..., 0]
            found += [each[i, most - len(request) :].sum().item() for i, (_, request) in enumerate(part)]
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def worth(nats: float, answer: str) -> float:
    """The reward of an answer that tells so much of its request, less where it is short or repeats itself."""
    words = words_of(answer)
    if not words:
        return -10.0
    pairs = list(itertools.pairwise(words))
    fresh = len(set(pairs)) / max(len(pairs), 1)
    told = min(_NOTHING_TOLD + _PER_NAT * max(nats, 0.0), 10.0)
    told = _NOTHING_SAID + (told - _NOTHING_SAID) * min(len(words) / _WORDS, 1.0)
    return fresh * (told + 10) - 10


def without_words_of(request: str, answer: str) -> str:
    """The answer without the content words of the request, whatever their endings."""
    roots = {word[:_ROOT] for word in content_words(request)}
    return WORD.sub(lambda word: "" if word.group().lower()[:_ROOT] in roots else word.group(), answer)


def content_words(text: str) -> set[str]:
    return set(words_of(text)) - COMMON


def words_of(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def text_of(conversation: Conversation) -> str:
    if isinstance(conversation, str):
        return conversation
    return " ".join(str(m["content"] if isinstance(m, dict) else m.content) for m in conversation)  # type: ignore[union-attr]


def _without_adapters(model: Any) -> Any:
    import contextlib

    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
