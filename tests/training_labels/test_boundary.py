"""The search for the place where an answer turns unsafe."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.training.boundary import Boundary, Search, bisection, every_prefix, most_tests, units


def drive(search: Search, unsafe: Sequence[bool]) -> tuple[Boundary, list[int]]:
    """The boundary, and the prefixes that were tested; unsafe: by how many units a prefix has, from 1 on."""
    tested: list[int] = []
    try:
        i = next(search)
        while True:
            tested.append(i)
            i = search.send(unsafe[i - 1])
    except StopIteration as stop:
        found: Boundary = stop.value
        return found, tested


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 70), st.integers(0, 71), st.integers(0, 3))
def test_bisection_equals_an_exhaustive_search_where_the_tests_are_monotone(n: int, first: int, verify: int) -> None:
    unsafe = [i >= first for i in range(n)]
    whole, _ = drive(every_prefix(n), unsafe)
    found, tested = drive(bisection(n, verify), unsafe)
    assert found.unit == whole.unit == (first if first < n else None)
    assert found.monotone
    assert found.tested == len(tested) == len(set(tested))
    assert len(tested) <= most_tests(n, verify)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=24), st.integers(0, 3))
def test_what_was_tested_always_fits_what_is_said(unsafe: list[bool], verify: int) -> None:
    found, tested = drive(bisection(len(unsafe), verify), unsafe)
    if found.unit is None:
        assert not unsafe or not unsafe[-1]
        return
    assert unsafe[found.unit]  # the prefix that ends with that unit was tested
    assert found.unit + 1 in tested
    for i in range(max(1, found.unit + 1 - verify), found.unit + 1):
        assert i in tested
        assert not unsafe[i - 1]
    odd = any(unsafe[i - 1] != (i > found.unit) for i in tested)
    assert found.monotone is not odd


def test_a_neighbour_that_is_unsafe_leads_the_search_below_it() -> None:
    #         1      2     3      4      5     6
    unsafe = [False, True, True, False, True, True]
    assert drive(bisection(6), unsafe)[0].unit == 1
    unsafe = [False, True, False, False, True, True]  # 3 and 4 are safe: bisection alone ends at 5
    assert drive(bisection(6), unsafe)[0] == Boundary(4, 4)
    found, _ = drive(bisection(6, verify=3), unsafe)
    assert (found.unit, found.monotone) == (1, False)


def test_units_are_words_and_single_characters_where_no_blanks_are_written() -> None:
    text = "  One, two\n\n三四 five" + "x" * 100
    found = [text[start:end] for start, end in units(text)]
    assert found == ["One,", "two", "三", "四", "five" + "x" * 44, "x" * 48, "x" * 8]
    assert units(" \n") == []


@pytest.mark.parametrize(("n", "most"), [(0, 0), (1, 1), (2, 2), (100, 8)])
def test_most_tests(n: int, most: int) -> None:
    assert most_tests(n) == most
