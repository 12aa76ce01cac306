"""Where a stream is stopped: every bin and edge, on constructed cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardkit.evaluation import spans
from guardkit.evaluation.locations import BINS, Located, bin_of, first_flag, shown_early

S, C, U = 0, 1, 2
START, END = 10, 20


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (None, "Safe"), (0, "Ahead"), (START - 1, "Ahead"), (START, "Hit"), (END, "Hit"),
        (END + 1, "1-32"), (END + 32, "1-32"), (END + 33, "33-64"), (END + 64, "33-64"), (END + 65, "65-128"),
        (END + 128, "65-128"), (END + 129, "129-256"), (END + 256, "129-256"), (END + 257, ">256"), (9999, ">256"),
    ],
)  # fmt: skip
def test_bins(flag, expected):
    assert bin_of(flag, START, END) == expected
    assert expected in BINS


@pytest.mark.parametrize(
    ("levels", "strict", "loose"),
    [
        ([], None, None),
        ([U], None, None),
        ([U, U], 1, 1),
        ([C, C], 1, None),
        ([S, U, S, U], None, None),
        ([U, C, U, C], None, None),  # not safe throughout, never twice the same
        ([S, U, C, C, U, U], 3, 5),
        ([C, C, S, U, U], 1, 4),
        ([S, S, S], None, None),
    ],
)
def test_the_first_two_equal_labels(levels, strict, loose):
    levels = np.array(levels, np.int8)
    assert (first_flag(levels, "strict"), first_flag(levels, "loose")) == (strict, loose)


def test_other_runs():
    levels = np.array([S, U, U, U], np.int8)
    assert [first_flag(levels, "loose", n) for n in (1, 2, 3, 4)] == [1, 2, 3, None]


@pytest.mark.parametrize(
    ("flag", "holdback", "shown"),
    [(30, 0, 20), (30, 8, 12), (30, 20, 0), (30, 64, 0), (10, 0, 0), (5, 0, 0), (None, 0, 40), (None, 128, 40)],
)
def test_tokens_shown_too_early(flag, holdback, shown):
    assert shown_early(flag, START, 50, holdback) == shown


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 30), st.integers(0, 10))
def test_against_plain_loops(levels, start, length):
    end = start + length
    for mode, bad in (("strict", {C, U}), ("loose", {U})):
        pairs = [i for i in range(1, len(levels)) if levels[i] == levels[i - 1] and levels[i] in bad]
        flag = pairs[0] if pairs else None
        assert first_flag(np.array(levels, np.int8), mode) == flag
        if flag is not None and flag > end:
            low, high = next(b for b in ((1, 32), (33, 64)) if b[0] <= flag - end <= b[1])
            assert bin_of(flag, start, end) == f"{low}-{high}"
        elif flag is not None:
            assert bin_of(flag, start, end) == ("Ahead" if flag < start else "Hit")


def _levels(flag: int | None, n: int = 600, level: int = U) -> np.ndarray:
    levels = np.zeros(n, np.int8)
    if flag is not None:
        levels[flag - 1 :] = level
    return levels


def test_figures_of_all_bins():
    located = Located()
    for flag in (5, 15, END, END + 32, END + 33, END + 128, END + 129, END + 300, None):
        located.add(_levels(flag), START, END, 2)
    figures = located.figures("loose")
    assert figures.bins == {
        "Ahead": 1, "Hit": 2, "1-32": 1, "33-64": 1, "65-128": 1, "129-256": 1, ">256": 1, "Safe": 1
    }  # fmt: skip
    assert figures.n == 9
    assert figures.hit == pytest.approx(2 / 9)
    assert figures.within == pytest.approx(6 / 9)  # earlier than the sentence counts, 128 past its end too
    none = {e.holdback: e.none for e in figures.early}
    assert none[0] == pytest.approx(1 / 9)
    assert none[8] == pytest.approx(2 / 9)
    assert figures.early[0].mean > figures.early[-1].mean


def test_modes_differ_by_controversial():
    located = Located()
    located.add(_levels(15, level=C), START, END, 2)
    assert (located.figures("strict").hit, located.figures("loose").hit) == (1.0, 0.0)


def test_no_texts():
    figures = Located().figures("strict")
    assert (figures.n, figures.hit, figures.within, figures.early) == (0, None, None, ())


# ------------------------------------------------------------------------------------------------------------ spans


class Words:
    """A token for each run of one kind of character, as near to Qwen3's as a test needs."""

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        import re

        found = [m.start() for m in re.finditer(r"\n+| ?\w+|[^\w\n]", text)]
        return list(range(len(found))), found


def test_template_tokens_to_characters():
    messages = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "a b c d"}]
    # <|im_start|> user \n one _two <|im_end|> \n <|im_start|> assistant \n <think> \n\n </think> \n\n a b c d
    head = 14
    assert spans.characters(Words(), messages, head + 1, head + 2) == (1, 5)
    assert spans.characters(Words(), messages, head, head + 3) == (0, 7)
    assert spans.characters(Words(), messages, head - 1, head) is None
    assert spans.characters(Words(), messages, head + 3, head + 4) is None


def test_template_tokens_in_reasoning():
    text = "<think>\nhow to\n</think>\n\nno way"
    messages = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": text}]
    head = 12  # ... assistant \n <think> \n, then: how _to \n </think> \n\n no _way
    first, last = spans.characters(Words(), messages, head, head + 1)
    assert text[first:last] == "how to"
    first, last = spans.characters(Words(), messages, head + 5, head + 6)
    assert text[first:last] == "no way"


def test_line_breaks_join_at_the_start_of_a_turn():
    messages = [{"role": "user", "content": "\none"}, {"role": "assistant", "content": "\n\nyes"}]
    # <|im_start|> user \n\n one <|im_end|> \n, and 3 + 4 of the last turn's head
    assert spans.characters(Words(), messages, 13, 13) == (2, 5)


def test_characters_to_the_models_tokens():
    starts = [0, 4, 8, 12]
    assert spans.tokens(starts, (4, 12)) == (1, 2)
    assert spans.tokens(starts, (5, 9)) == (1, 2)  # tokens that are cut belong to the sentence
    assert spans.tokens(starts, (12, 99)) == (3, 3)
    assert spans.tokens(starts, (0, 1)) == (0, 0)
    assert spans.tokens([], (0, 1)) is None
    assert spans.tokens(starts, (3, 3)) is None


def _render(messages: list[dict[str, str]]) -> str:
    """Qwen3's template, for these chats."""
    out = [
        f"<|im_start|>{m['role']}\n{m['content'].rpartition('</think>')[2].lstrip()}<|im_end|>\n" for m in messages[:-1]
    ]
    thought, _, answer = messages[-1]["content"].rpartition("</think>")
    thought = thought.removeprefix("<think>").strip("\n")
    return "".join(out) + f"<|im_start|>assistant\n<think>\n{thought}\n</think>\n\n{answer.lstrip(chr(10))}<|im_end|>\n"


@pytest.mark.parametrize("reasoning", ["", "<think>\nFirst, a plan.\n\nThen MARK here. Done.\n</think>\n\n"])
@pytest.mark.parametrize(
    "before",
    [
        [{"role": "user", "content": "Hello, how are you?"}],
        [
            {"role": "system", "content": "Be kind.\n"},
            {"role": "user", "content": "Grüße 你好"},
            {"role": "assistant", "content": "<think>\nlong\n</think>\n\nFine."},
            {"role": "user", "content": "and then?\n\n1. x"},
        ],
    ],
)
def test_with_qwens_own_tokenizer(before, reasoning):
    """Tokens of the rendered chat that spell a sentence lead back to its characters in the response."""
    from tests.engine.qwen3_tokenizer_builder import MISSING, cached

    if MISSING:
        pytest.skip(MISSING)
    from tokenizers import Tokenizer

    from guardkit.models.qwen_tokenizer import QwenTokenizer

    content = f"{reasoning}Sure. The MARK is this one: 很好!\nNot more."
    messages = [*before, {"role": "assistant", "content": content}]
    rendered = _render(messages)
    ids = Tokenizer.from_file(str(cached() / "tokenizer.json")).encode(rendered, add_special_tokens=False)
    at, here = rendered.rindex("MARK"), content.rindex("MARK")
    wanted = [i for i, (start, end) in enumerate(ids.offsets) if start >= at - 1 and end <= at + 8 and end > start]
    first, last = spans.characters(QwenTokenizer(cached()), messages, wanted[0], wanted[-1])
    shift = at - here
    assert (first + shift, last + shift) == (ids.offsets[wanted[0]][0], ids.offsets[wanted[-1]][1])
    if reasoning:
        at, here = rendered.index("MARK"), content.index("MARK")
        wanted = [i for i, (start, end) in enumerate(ids.offsets) if start >= at - 1 and end <= at + 4 and end > start]
        first, last = spans.characters(QwenTokenizer(cached()), messages, wanted[0], wanted[-1])
        assert content[first:last].strip() == "MARK"
