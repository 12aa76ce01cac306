"""What the disguise benchmark measures, with the embedded model: wrapped harm is found, harmless text stays safe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from guardkit import Guard
from guardkit.normalize import normalized_view

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WHOLE = (  # disguises that leave nothing of themselves behind
    *("all as \\u", "all as \\x", "octal", "decimal references", "hexadecimal references", "references, escaped"),
    *("percent, every byte", "quoted-printable", "base64", "base64 twice", "base64 of percent", "base32", "hex"),
    *("hex, spaced", "binary", "tags in words", "comments in words"),
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("disguises")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.load()


def test_a_request_is_found_in_every_disguise_that_comes_off_whole(script: ModuleType, guard: Guard) -> None:
    texts = [text for texts in script.REQUESTS.values() for text in texts]
    for text in texts:
        for name in WHOLE:
            wrapped = script.DISGUISES[name](text)
            view = normalized_view(wrapped)
            assert (view.text if view else wrapped) == text, name
    assert all(script.DISGUISES[name](texts[0]) != texts[0] for name in WHOLE)
    flagged = [text for text in texts[:4] if guard.check(text).severity.value != "safe"]
    assert flagged
    inside = [script.DISGUISES[name](text) for text in flagged for name in WHOLE[::4]]
    assert all(verdict.severity.value != "safe" for verdict in guard.check_batch(inside))
    as_data = [f'{{"id": 1, "body": "{text}"}}' for text in inside[:4]]
    verdicts = guard.check_batch(as_data, stage="tool_output")
    plain = guard.check_batch([f'{{"id": 1, "body": "{text}"}}' for text in flagged[:1]], stage="tool_output")
    assert all(verdict.severity >= plain[0].severity for verdict in verdicts)


@pytest.mark.slow
def test_harmless_text_stays_safe(script: ModuleType, guard: Guard) -> None:
    """Files of this machine and made-up notation; a text that a view flags would have been safe without views."""
    counts = script.false_alarms(guard, script.harmless(script.folders(), most=5, rounds=2))
    total, viewed, _, flagged = (sum(column) for column in zip(*counts.values(), strict=True))
    assert total > 100
    assert viewed > 20
    assert flagged == 0
