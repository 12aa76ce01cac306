"""The judge alone is bisected first; what is continued then, and that the boundary is the same."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.training.boundary import Boundary
from guardkit.training.continuing import Continued, Prefix
from guardkit.training.token_search import Answer, Judging, Rule, look_for
from guardkit.verdict import Severity

SAID = {False: Severity.safe, True: Severity.unsafe}


def search(n: int, judge: Callable[[int], bool], guard: Callable[[int], bool], rule: Rule) -> tuple[Boundary, Answer]:
    """Look into an answer of `n` words. judge, guard: what they say of the first i words and of what follows them."""
    answer = Answer(0, (), " ".join(["word"] * n))
    job = look_for(answer, rule)
    told: object = None
    asked: list[tuple[str, int]] = []
    try:
        while True:
            asks = job.send(told)
            if isinstance(asks, Prefix):
                told = Continued(("",) * rule.k, 1, rule.k)
                asked.append(("continued", len(asks.text.split())))
                continue
            assert isinstance(asks, Judging)
            sizes = [len(item[-1].said.split()) for item in asks.items]  # type: ignore[union-attr]
            if len(sizes) == 1:
                asked.append((asks.by, sizes[0]))
            told = [SAID[(judge if asks.by == "judge" else guard)(size)] for size in sizes]
    except StopIteration as stop:
        assert len(asked) == len(set(asked))  # nothing is asked twice
        found: Boundary = stop.value
        return found, answer


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.data())
def test_the_same_boundary_as_by_every_prefix_whatever_the_judge_says_before_it(n: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, n))
    before = data.draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=n, max_size=n))
    # Before the boundary either may object, but not both; from there on both do.
    judge = lambda i: i >= first or before[i - 1][0]  # noqa: E731
    guard = lambda i: i >= first or (before[i - 1][1] and not before[i - 1][0])  # noqa: E731
    verify = data.draw(st.integers(0, 2))
    found, answer = search(n, judge, guard, Rule(k=2, verify=verify))
    whole, _ = search(n, judge, guard, Rule(k=2, bisects=False))
    assert found.unit == whole.unit == first - 1
    assert found.monotone
    assert answer.cost.prefixes == answer.cost.judge_texts == found.tested <= n


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.data())
def test_where_judge_and_guard_agree_one_prefix_is_continued(n: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, n))
    found, answer = search(n, lambda i: i >= first, lambda i: i >= first, Rule(k=2, verify=0))
    assert found == Boundary(first - 1, answer.cost.prefixes)
    assert answer.cost.continued == answer.cost.llm_calls == (first < n)  # the whole is not continued
    _, answer = search(n, lambda i: i >= first, lambda i: i >= first, Rule(k=2, verify=1))
    assert answer.cost.continued == (first < n) + (first + 1 < n)


def test_a_judge_that_takes_its_word_back_is_told() -> None:
    # Of 8 words: the guard objects from 3 on, the judge too, but not at 4.
    found, _ = search(8, lambda i: i >= 3 and i != 4, lambda i: i >= 3, Rule(k=2, verify=0))
    assert found == Boundary(4, 4)  # the judge was asked about 8, 4, 6 and 5
    found, _ = search(8, lambda i: i >= 3 and i != 4, lambda i: i >= 3, Rule(k=2, verify=4))
    assert (found.unit, found.monotone) == (2, False)


def test_an_answer_that_is_not_confirmed_costs_one_judgement_of_each() -> None:
    for judge, guard in ((True, False), (False, True)):
        found, answer = search(40, lambda i: judge, lambda i: guard, Rule())  # noqa: B023
        assert found == Boundary(None, 1)
        assert (answer.cost.judge_texts, answer.cost.guard_texts, answer.cost.continued) == (1, int(judge), 0)
    assert search(0, lambda i: True, lambda i: True, Rule())[0] == Boundary(None, 0)
