"""The leak test's own checker: it must see what it is there to see. And the core's stream passes it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from guardkit import Message
from tests.leaks import AFTER_MARK, BAD, FLAGGED, SAFE, SIZES, Seen, Source, check_no_trace, make_guard


@dataclass
class Box:
    inside: object


@pytest.mark.parametrize(
    "hidden",
    [
        FLAGGED,
        {"a": [{"b": ("x", FLAGGED)}]},
        {FLAGGED: 1},
        FLAGGED.encode(),
        Box([Message("user", FLAGGED)]),
        ValueError(FLAGGED),
        "\\u00b6",
    ],
)
def test_a_trace_is_found_wherever_it_hides(hidden: object) -> None:
    with pytest.raises(AssertionError, match="state"):
        check_no_trace(Box(hidden), "state")
    check_no_trace(Box(SAFE), "state")


def test_a_leak_a_loss_a_repeat_and_a_late_arrival_are_found() -> None:
    seen = Seen()
    seen.add(AFTER_MARK)
    with pytest.raises(AssertionError):
        seen.check_clean()
    late = Seen(source := Source(SAFE, 3))
    for _ in source:
        pass
    late.add(SAFE)
    late.check_complete(SAFE)
    with pytest.raises(AssertionError, match="before"):
        late.check_live(8)
    late.add(SAFE)
    with pytest.raises(AssertionError):
        late.check_complete(SAFE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("holdback", [0, 1, 4, 8])
def test_the_core_passes(size: int, holdback: int) -> None:
    for text in (SAFE, BAD):
        seen = Seen(source := Source(text, size))
        with make_guard(holdback=holdback).stream() as stream:
            for piece in source:
                for event in stream.feed(piece):
                    seen.add(event.text if event.kind == "text" else "")
                if stream.stopped:
                    break
            else:
                for event in stream.finish():
                    seen.add(event.text if event.kind == "text" else "")
            # Without a hold-back the key's first word goes out before anything shows that it starts the key.
            seen.check_clean(0 if holdback else len(FLAGGED))
            if text is SAFE:
                seen.check_complete(SAFE)
                seen.check_live(holdback)
            else:
                assert stream.stopped
