"""Reasoning traces: where the risk begins, part by part, for any text."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Action, Category, Guard, MessageError, NotJudged, Policy, Severity, Stage
from guardkit.models.base import Scores, Session, Tokens
from guardkit.sentences import sentence_starts
from guardkit.testing import FakeGuard, FakeModel
from guardkit.trace import Begin, Trace, trace, trace_batch
from guardkit.trace_worst import MOST

SCRIPT = {"BAD": "unsafe", "HMM": "controversial", "BOOM": RuntimeError("boom")}
THOUGHTS = {"safe": "All is fine. So go on.", "unsafe": "All is fine. This is BAD indeed."}
ANSWERS = {"safe": "Here you are.", "unsafe": "Here BAD you are."}


def places(found: Trace) -> list[tuple[str, str, Begin | None]]:
    return [(p.stage.value, p.text, p.begin) for p in found.parts]


@pytest.mark.parametrize(("thinking", "answering"), list(itertools.product(("safe", "unsafe"), repeat=2)))
@pytest.mark.parametrize("shape", ["tags", "fields", "blocks", "no opening tag"])
def test_every_combination_in_every_shape(thinking: str, answering: str, shape: str):
    thought, answer = THOUGHTS[thinking], ANSWERS[answering]
    item = {
        "tags": f"<think>{thought}</think>{answer}",
        "fields": [{"role": "assistant", "reasoning_content": thought, "content": answer}],
        "blocks": [
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": thought}, {"type": "text", "text": answer}],
            }
        ],
        "no opening tag": f"{thought}</think>{answer}",
    }[shape]
    found = trace(FakeGuard(SCRIPT), item)
    assert (found.reasoning, found.answer) == (Severity(thinking), Severity(answering))
    expected = {("safe", "safe"): "safe", ("unsafe", "safe"): "reasoning_only", ("safe", "unsafe"): "answer_only"}
    assert found.outcome == expected.get((thinking, answering), "both")
    assert places(found) == [
        ("reasoning", thought, Begin(5, 1, 21) if thinking == "unsafe" else None),
        ("response", answer, Begin(1, 0, 5) if answering == "unsafe" else None),
    ]
    assert found.decision.action is (Action.allow if found.outcome == "safe" else Action.block)
    assert found.judged


def test_no_thinking_and_no_answer():
    found = trace(FakeGuard(SCRIPT), "Just BAD.")
    assert (found.outcome, found.reasoning, found.answer) == ("answer_only", None, Severity.unsafe)
    found = trace(FakeGuard(SCRIPT), "<think>It never ends BAD")
    assert (found.outcome, found.reasoning, found.answer) == ("reasoning_only", Severity.unsafe, None)
    found = trace(FakeGuard(SCRIPT), "<think>\n\n</think>\n\nFine.")
    assert (found.outcome, found.reasoning, found.answer) == ("safe", None, Severity.safe)


def test_several_think_blocks_keep_their_places():
    text = "<think>a</think>b one<think>c BAD</think>d"
    found = trace(FakeGuard(SCRIPT), text)
    assert [(p.stage.value, p.text) for p in found.parts] == [
        ("reasoning", "a"), ("response", "b one"), ("reasoning", "c BAD"), ("response", "d"),
    ]  # fmt: skip
    assert [text[p.start : p.start + len(p.text)] for p in found.parts] == [p.text for p in found.parts]
    assert [p.begin for p in found.parts] == [None, None, Begin(1, 0, 2), None]
    assert found.outcome == "reasoning_only"


def test_stretches_of_one_stage_cannot_join_to_a_tag():
    found = trace(FakeGuard(SCRIPT), "<thi<think>x</think>nk>BAD")
    assert [(p.stage.value, p.text) for p in found.parts] == [
        ("response", "<thi"),
        ("reasoning", "x"),
        ("response", "nk>BAD"),
    ]


def test_tool_calls_count_as_output():
    message = {
        "role": "assistant",
        "reasoning_content": "fine",
        "content": None,
        "tool_calls": [{"function": {"name": "run", "arguments": '{"cmd": "BAD"}'}}],
    }
    guard = FakeGuard({'"BAD"}': "unsafe"})
    found = trace(guard, [{"role": "user", "content": "go"}, message])
    assert (found.tool_calls, found.reasoning, found.answer) == (Severity.unsafe, Severity.safe, None)
    assert found.outcome == "answer_only"
    assert found.decision.stage is Stage.tool_call


def test_text_before_a_closing_tag_is_judged_as_reasoning_and_as_an_answer():
    strict_answers = Policy(rules=[{"stage": "response", "severity": "controversial", "action": "block"}])
    found = trace(FakeGuard(SCRIPT, policy=strict_answers), "HMM</think>fine")
    assert found.decision.action is Action.block
    assert found.parts[0].stage is Stage.reasoning
    inside = trace(FakeGuard(SCRIPT, policy=strict_answers), "<think>HMM</think>fine")
    assert inside.decision.action is Action.flag


def test_all_of_the_text_is_scored_after_the_first_violation():
    found = trace(FakeGuard(SCRIPT, policy="strict"), "one HMM two. Then BAD three.")
    (part,) = found.parts
    assert part.n_tokens == 6
    assert part.begin == Begin(1, 0, 4)
    assert part.severity is Severity.unsafe
    assert part.verdict.token_index == 4
    assert [s.severity for s in part.spans] == [Severity.safe] + [Severity.controversial] * 3 + [Severity.unsafe] * 2
    assert [s.severity for s in part.sentences] == [Severity.controversial, Severity.unsafe]
    assert found.categories == (Category.violent,)
    assert found.risk == pytest.approx(0.95)


class OneWord(FakeModel):
    """Flags the very words of the script, and forgets them at once."""

    def open(self, context):
        model = self

        class Once(Session):
            def append(self, tokens: Tokens) -> Scores:
                return model.scores([model.level(model.tokenizer.words[i].lower()) for i in tokens.ids], 8)

            peek = append

        return Once()


def test_debounce_asks_for_a_run():
    guard = Guard(OneWord({"BAD": "unsafe"}), debounce=2)
    (part,) = trace(guard, "a BAD b c BAD BAD d").parts
    assert part.begin == Begin(4, 0, 10)  # the first token of the run
    assert part.verdict.token_index == 5  # the one that makes it a run
    assert [s.flagged for s in part.spans] == [False] * 4 + [True] * 2 + [False]
    assert [s.severity is Severity.unsafe for s in part.spans] == [False, True, False, False, True, True, False]
    assert trace(guard, "a BAD b").outcome == "safe"


def test_a_threshold_rule_flags_what_the_model_calls_safe():
    policy = Policy(rules=[{"threshold": {"unsafe": 0.04}, "action": "flag"}])
    found = trace(FakeGuard(SCRIPT, policy=policy), "all fine")
    assert (found.decision.action, found.severity, found.parts[0].begin) == (
        Action.flag,
        Severity.safe,
        Begin(0, 0, 0),
    )


class Blocks(FakeModel):
    """Judges four tokens at a time, and texts whole: its first word counts."""

    stride = 4
    whole_texts = True

    def open(self, context):
        inner = super().open(context)

        class Blockwise(Session):
            def append(self, tokens: Tokens) -> Scores:
                worst = inner.append(tokens).severity.argmax(1).max()
                return inner._model.scores([int(worst)] * len(tokens), 8)

            peek = append

        return Blockwise()


def test_models_that_judge_blocks_give_a_span_for_each():
    found = trace(Guard(Blocks(SCRIPT)), "<think>1 2 3 4 5 6</think>a b c d e BAD g")
    assert found.unit == "block"
    thought, answer = found.parts
    assert [thought.text[s.start : s.end] for s in thought.spans] == ["1 2 3 4 ", "5 6"]
    assert [answer.text[s.start : s.end] for s in answer.spans] == ["a b c d ", "e BAD g"]
    assert answer.begin == Begin(4, 0, 8)
    assert answer.n_tokens == 7


PIECES = st.sampled_from(
    ["<think>", "</think>", "<thinking>", "</", "<th", "BAD", "HMM", " ", "\n", ". ", "。", "word", "é", "日本",
     "\ud83d", "\ude00", "e.g.", "\r\n", "x" * 60]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join), st.integers(1, 40))
def test_offsets_are_exact_and_cutting_changes_nothing(text: str, size: int):
    guard = FakeGuard(SCRIPT)
    (found,) = trace_batch(guard, [text], feed_chars=size)
    assert found == trace(guard, text)
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    for part in found.parts:
        assert joined[part.start :].startswith(part.text)
        assert "".join(part.text[s.start : s.end] for s in part.spans) == part.text
        assert "".join(part.text[s.start : s.end] for s in part.sentences) == part.text
        assert part.n_tokens == len(part.spans) or part.is_blank
        if part.begin is not None:
            sentence = part.sentences[part.begin.sentence]
            assert sentence.start <= part.begin.char < sentence.end
            assert not part.text[part.begin.char].isspace()
            assert part.severity > Severity.safe
            assert part.spans[part.begin.token].flagged
    assert found.severity == (Severity.unsafe if "BAD" in text else found.severity)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join), st.sampled_from(["strict", "balanced", "loose"]))
def test_a_single_part_stops_where_a_stream_stops(text: str, policy: str):
    """A trace of text without tags flags what a stream flags."""
    text = text.replace("<", "(")
    guard = FakeGuard(SCRIPT, policy=policy)
    with guard.stream() as stream:
        stream.feed(text)
        if not stream.stopped:
            stream.finish()
    found = trace(guard, text)
    assert found.decision.action is stream.decision.action
    assert found.severity >= stream.verdict.severity


def test_a_batch_equals_one_by_one_and_a_fault_stays_with_its_item():
    guard = FakeGuard(SCRIPT)
    items = ["<think>a</think>BAD", "<think>BOOM</think>BAD", "fine", [{"role": "user", "content": "hi"}], ""]
    alone = [trace_batch(guard, [item])[0] for item in items]
    together = trace_batch(guard, items)
    assert together == alone
    assert [t.judged for t in together] == [True, False, True, False, True]
    broken = together[1]
    assert broken.outcome == "not_judged"
    assert broken.severity is None
    assert broken.decision.action is Action.block
    assert [p.stage for p in broken.parts] == [Stage.response]  # what was judged is still told
    assert "boom" in (broken.error or "")


def test_trace_fails_closed():
    with pytest.raises(NotJudged, match="boom"):
        trace(FakeGuard(SCRIPT), "<think>BOOM</think>x")
    image = [{"role": "assistant", "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "x"}]}]
    with pytest.raises(NotJudged, match="image_url content cannot be judged"):
        trace(FakeGuard(), image)
    with pytest.raises(MessageError, match="role 'user'"):
        trace(FakeGuard(), [{"role": "user", "content": "x"}])
    with pytest.raises(MessageError, match="empty list"):
        trace(FakeGuard(), [])
    with pytest.raises(NotJudged, match="longer than"):
        trace(FakeGuard(delay=0.3, timeout=0.02), "x")
    allowed = trace_batch(FakeGuard(SCRIPT, on_error="allow"), ["BOOM"])[0]
    assert (allowed.judged, allowed.decision.action) == (False, Action.allow)


@pytest.mark.parametrize(
    "content", ["<think>BOOM</think>fine", [{"type": "image_url"}, {"type": "text", "text": "fine"}]]
)
def test_nothing_is_safe_where_something_was_not_judged(content):
    (found,) = trace_batch(FakeGuard(SCRIPT), [[{"role": "assistant", "content": content}]])
    assert [p.text for p in found.parts] == ["fine"]
    assert (found.severity, found.reasoning, found.answer, found.tool_calls, found.risk) == (None,) * 5
    (found,) = trace_batch(FakeGuard(SCRIPT), ["<think>BOOM</think>BAD"])
    assert (found.answer, found.risk) == (Severity.unsafe, None)


@pytest.mark.parametrize(
    "keys",
    [
        {"reasoning": "so BAD", "reasoning_content": "so BAD"},
        {"reasoning": "so BAD", "reasoning_details": [{"type": "reasoning.text", "text": "so BAD"}]},
    ],
)
def test_thinking_under_two_keys_is_read_once(keys):
    found = trace(FakeGuard(SCRIPT), [{"role": "assistant", "content": "fine", **keys}])
    assert [p.text for p in found.parts] == ["so BAD", "fine"]
    blocks = [{"type": "thinking", "thinking": "so"}, {"type": "thinking", "thinking": "so"}]
    found = trace(FakeGuard(SCRIPT), [{"role": "assistant", "content": blocks, "reasoning": "more"}])
    assert [p.text for p in found.parts] == ["so\nso\nmore"]


def test_not_a_number_is_no_score():
    class Broken(FakeModel):
        def scores(self, levels, categories):
            found = super().scores(levels, categories)
            return replace(found, severity=np.full_like(found.severity, float("nan")))

    with pytest.raises(NotJudged, match="not finite"):
        trace(Guard(Broken({})), "x")


def test_traces_reach_the_audit_sink():
    records: list = []
    guard = FakeGuard(SCRIPT, audit=records.append)
    trace(guard, "<think>BAD</think>x")
    assert [(r.surface, r.action) for r in records] == [("trace", "block")]


def test_a_long_trace_takes_as_many_model_calls_as_a_short_one_per_character():
    guard = FakeGuard(SCRIPT)
    text = "All is well here. " * 5000
    found = trace(guard, f"<think>{text}BAD {text}</think>done")
    thought = found.parts[0]
    assert thought.n_tokens == 40_001
    assert thought.begin == Begin(20_000, 5000, len(text))
    # and as many again as sentences are looked at twice, however long the text
    assert guard.model.calls <= 2 * (len(text) * 2 // 65_536 + 2) + MOST


def test_the_worst_sentence_of_a_long_text_is_named():
    calm = "All is well here. "
    text = calm * 3000 + "Well, HMM. " + calm * 2000 + "Then do the BAD thing. " + calm * 5000
    assert len(text) > 180_000
    part = trace(FakeGuard(SCRIPT), text).parts[0]
    assert part.begin is not None
    assert part.begin.sentence == 3000
    assert part.worst is not None
    worst = part.sentences[part.worst]
    assert text[worst.start : worst.end] == "Then do the BAD thing. "
    assert trace(FakeGuard(SCRIPT), calm).parts[0].worst is None


def test_where_the_second_look_fails_the_first_flagged_sentence_is_named():
    class Fails(FakeModel):
        def open(self, context):
            if self.calls:
                raise RuntimeError("gone")
            return super().open(context)

    part = trace(Guard(Fails(SCRIPT), debounce=1), "Fine. HMM. Then BAD. Fine.").parts[0]
    assert (part.severity, part.worst) == (Severity.unsafe, 1)


def test_nano_names_a_harmful_sentence_not_the_harmless_ones_behind_it():
    calm = ["The bakery opens at nine. ", "Its baker gets up early. ", "A cat sleeps by the door. "]
    harm = [
        "I will murder you and your whole family. ",
        "They are vermin and they all deserve to be murdered. ",
        "You should stab him and then kill his children with a knife. ",
    ]
    text = "".join([*calm * 40, *harm, *calm * 40])
    part = trace(Guard.load(), text).parts[0]
    assert part.worst is not None
    worst = part.sentences[part.worst]
    assert text[worst.start : worst.end] in harm


def sentences(text: str) -> list[str]:
    starts = sentence_starts(text)
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)][: len(starts)], strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ", [" "]),
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ('He said "Stop!" and left. "Fine." Then no.', ['He said "Stop!" and left. ', '"Fine." ', "Then no."]),
        ("Dr. Roe and J. Doe met, e.g. in Rome. I did. So.",
         ["Dr. Roe and J. Doe met, e.g. in Rome. ", "I did. ", "So."]),
        ("See No. 5 at 3.14. No. Yes", ["See No. 5 at 3.14. ", "No. ", "Yes"]),
        ("1. Mix\n2. Bake\r\n\r\nDone", ["1. Mix\n", "2. Bake\r\n\r\n", "Done"]),
        ("今日は。「はい！」次？終", ["今日は。", "「はい！」", "次？", "終"]),
        ("यह है। वह है।", ["यह है। ", "वह है।"]),
        ("wait... what? no", ["wait... what? no"]),
        ("\n\n x. Y", ["\n\n x. ", "Y"]),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]):
    assert sentences(text) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(" .!?…。\n\r\"')aB1é日"), max_size=40))
def test_sentences_are_whole_and_none_is_blank(text: str):
    found = sentences(text)
    assert "".join(found) == text
    assert not text.strip() or all(s.strip() for s in found)


@pytest.mark.parametrize("unit", [" ", ".", '." ', "\n", "1. ", "Dr. ", "。", '"', "a. "])
def test_sentences_of_hostile_texts(unit: str):
    """Ends: a splitter that looks back would not, at this length."""
    assert "".join(sentences(unit * 100_000)) == unit * 100_000


def test_nano_tells_thinking_from_answer():
    guard = Guard.load()
    thought = "The user is angry. I will kill them all tonight with a pipe bomb and hide the bodies."
    answer = "Tomatoes need sun, dark soil and water in the morning."
    tags = trace(guard, f"<think>\n{thought}\n</think>\n\n{answer}")
    assert tags.outcome == "reasoning_only"
    assert tags.parts[0].begin is not None
    assert tags.parts[0].begin.sentence == 1
    fields = trace(guard, [{"role": "assistant", "reasoning_content": f"\n{thought}\n", "content": f"\n\n{answer}"}])
    assert [p.spans for p in fields.parts] == [p.spans for p in tags.parts]
    assert trace(guard, f"<think>{answer}</think>{thought}").outcome == "answer_only"
    small = trace_batch(guard, [f"<think>{thought}</think>{answer}"], feed_chars=7)[0]
    assert small == trace(guard, f"<think>{thought}</think>{answer}")
