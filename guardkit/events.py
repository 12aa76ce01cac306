"""What a stream tells: typed events, and marks to come back to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from guardkit.verdict import Verdict


@dataclass(frozen=True)
class TextEvent:
    """`text` may be shown now."""

    kind: Literal["text"] = field(default="text", init=False)
    text: str


@dataclass(frozen=True)
class FlagEvent:
    """The verdict grew worse without stopping the text."""

    kind: Literal["flag"] = field(default="flag", init=False)
    verdict: Verdict


@dataclass(frozen=True)
class StopEvent:
    """The policy stopped the text; `withheld` characters were received and are not to be shown."""

    kind: Literal["stop"] = field(default="stop", init=False)
    verdict: Verdict
    withheld: int


@dataclass(frozen=True)
class RetractEvent:
    """The last `n_chars` characters that were shown must be taken back."""

    kind: Literal["retract"] = field(default="retract", init=False)
    n_chars: int


@dataclass(frozen=True, eq=False)
class Mark:
    """A place in a stream that `StreamGuard.rewind` goes back to. n_chars: received up to there."""

    n_chars: int
    _number: int
    _state: tuple[Any, ...] = field(repr=False)


Event = TextEvent | FlagEvent | StopEvent | RetractEvent
