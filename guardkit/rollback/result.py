"""What a guarded decoding gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guardkit.verdict import Verdict

FinishReason = Literal["stop", "length", "refusal"]


@dataclass(frozen=True)
class Dropped:
    """Text that was generated and taken back. verdict: for which; None where it was not judged. introspection: what the
    model then wrote of it."""

    text: str
    verdict: Verdict | None
    introspection: str | None = None


@dataclass(frozen=True)
class RollbackResult:
    """text: what may be shown, a refusal at its end included; answer: the model's own part of it.

    refused: whether it ends in a refusal, for `error` where the guard could not judge, else since the tries were used
    up. rollbacks: tries that were made. wait_tokens: tokens that a reader waits for beyond plain streaming, the buffer
    once and again for every try. n_tokens: tokens of `answer`. dropped: in order, what it was refused for last.
    verdict: of the answer, or what it was refused for; None where there is none.
    """

    text: str
    answer: str
    refused: bool
    finish_reason: FinishReason
    rollbacks: int
    wait_tokens: int
    n_tokens: int
    dropped: tuple[Dropped, ...]
    verdict: Verdict | None
    error: str | None = None

    def __str__(self) -> str:
        return self.text
