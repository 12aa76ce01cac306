"""Rewards: the report's formulas on constructed cases; what was not judged is never rewarded."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from guardkit import GuardkitError, NotJudged
from guardkit.errors import MessageError
from guardkit.rewards import HybridReward, RewardServer, SafetyReward, judge_completions, per_sample
from guardkit.rewards.adapters import for_openrlhf, for_verl
from guardkit.testing import FakeGuard

SCRIPT: dict[str, Any] = {"forbidden": "unsafe", "hmm": "controversial", "crash": RuntimeError("boom")}
IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
ASK = "What do tomatoes need?"


def assistant(content: str, **other: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content, **other}]


def refuses(prompts: Sequence[Any], completions: Sequence[Any]) -> list[bool]:
    return ["sorry" in str(c) for c in completions]


def hybrid(helpfulness: Any = 3.0, **settings: Any) -> HybridReward:
    if not callable(helpfulness):
        value = helpfulness
        helpfulness = per_sample(lambda prompt, completion: value)
    return HybridReward(FakeGuard(SCRIPT), helpfulness, **{"refusals": refuses, **settings})


CASES: list[tuple[Any, float | None, float | None]] = [  # completion, guard-only, hybrid with W = 3
    ("Sun and water.", 1.0, 3.0),
    ("A forbidden thing.", 0.0, -10.0),
    ("hmm, maybe.", 0.0, 3.0),
    ("I am sorry, no.", 1.0, -5.0),
    ("<think>forbidden plans</think>Sun and water.", 0.0, -10.0),
    ("<think>fine</think>Sun and water.", 1.0, 3.0),
    (assistant("Sun.", reasoning_content="forbidden plans"), 0.0, -10.0),
    (assistant("sorry, no.", reasoning_content="forbidden plans"), 0.0, -10.0),
    (assistant("", tool_calls=[{"function": {"name": "f", "arguments": '{"q": "forbidden"}'}}]), 0.0, -10.0),
    ([*assistant("I look."), {"role": "tool", "content": "forbidden"}, *assistant("Sun.")], 1.0, 3.0),
    ([*assistant("I look."), {"role": "tool", "content": "fine"}, *assistant("forbidden")], 0.0, -10.0),
    ("", None, None),
    ("  <think> </think> ", None, None),
    ([], None, None),
    ("crash", None, None),
    (assistant("Sun.") + assistant("crash"), None, None),
    ([{"role": "nobody", "content": "Sun."}], None, None),
    ([*assistant("Sun."), {"role": "assistant", "content": IMAGE}], None, None),
    (None, None, None),
    (3, None, None),
    ({"role": "assistant", "content": "Sun."}, None, None),  # a message, not messages
]


@pytest.mark.parametrize(("completion", "safety", "both"), CASES)
def test_the_reports_formulas(completion: Any, safety: float | None, both: float | None) -> None:
    assert SafetyReward(FakeGuard(SCRIPT))([ASK], [completion]) == [safety]
    assert hybrid()([ASK], [completion]) == [both]


def test_a_batch_equals_one_by_one() -> None:
    completions = [completion for completion, _, _ in CASES]
    asked = [ASK] * len(CASES)
    assert SafetyReward(FakeGuard(SCRIPT))(asked, completions) == [safety for _, safety, _ in CASES]
    assert hybrid()(asked, completions) == [both for _, _, both in CASES]


OTHER: dict[str, Any] = {"water": "unsafe", "maybe": "controversial", "lost": RuntimeError("boom")}


@pytest.mark.parametrize(
    ("completion", "safety", "both"),
    [
        ("Sun and rain.", 1.0, 3.0),
        ("A forbidden thing.", 0.0, -10.0),  # each guard's word is enough
        ("Sun and water.", 0.0, -10.0),
        ("Perhaps, maybe.", 0.0, 3.0),
        ("<think>water</think>Sun.", 0.0, -10.0),
        ("crash", None, None),  # what one could not judge is not judged
        ("lost and forbidden", None, None),
        ("", None, None),
    ],
)
def test_of_several_guards_the_worst_finding_counts(completion: Any, safety: Any, both: Any) -> None:
    guards = [FakeGuard(SCRIPT), FakeGuard(OTHER)]
    for order in (guards, guards[::-1]):
        assert SafetyReward(order)([ASK], [completion]) == [safety]
        reward = HybridReward(tuple(order), per_sample(lambda p, c: 3.0), refusals=refuses)
        assert reward([ASK], [completion]) == [both]


def test_several_guards_refusals_and_probabilities() -> None:
    """A refusal is what one of them says is one; the probability is the greatest, and none where one gives none."""

    class Telling(FakeGuard):
        def __init__(self, refusal: bool | None, scores: dict[str, float]):
            super().__init__({})
            self.told = {"refusal": refusal, "scores": scores}

        def decide_batch(self, items: Any, **settings: Any) -> Any:
            found = super().decide_batch(items, **settings)
            return [replace(d, verdict=replace(d.verdict, **self.told)) for d in found if d.verdict is not None]

    low, high = {"safe": 0.75, "unsafe": 0.25}, {"safe": 0.5, "controversial": 0.25, "unsafe": 0.25}
    guards = [Telling(None, low), Telling(False, high), Telling(True, low)]
    for chosen, refusal in ((guards, True), (guards[:2], False), (guards[:1] * 2, None)):
        (found,) = judge_completions(chosen, [ASK], ["Sun."])
        assert found.refusal is refusal
    assert SafetyReward(guards, soft=True)([ASK], ["Sun."]) == [0.5]
    with pytest.raises(GuardkitError, match="no probabilities"):
        SafetyReward([*guards, Telling(None, {})], soft=True)([ASK], ["Sun."])


def test_no_guard_among_several() -> None:
    with pytest.raises(GuardkitError, match="takes a Guard, not str"):
        SafetyReward([FakeGuard(SCRIPT), "nano"])  # type: ignore[list-item]
    with pytest.raises(GuardkitError, match="here are none"):
        SafetyReward([])


def test_caps_never_raise_a_reward() -> None:
    assert hybrid(-20.0)([ASK] * 3, ["forbidden", "sorry", "Sun."]) == [-20.0, -20.0, -20.0]


def test_strict_counts_controversial_as_unsafe() -> None:
    assert hybrid(strict=True)([ASK], ["hmm"]) == [-10.0]


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf")])
def test_no_helpfulness_no_reward(nothing: float | None) -> None:
    assert hybrid(nothing)([ASK] * 2, ["Sun.", "forbidden"]) == [None, None]


def test_equal_completions_are_judged_once() -> None:
    guard = FakeGuard(SCRIPT)
    SafetyReward(guard)([ASK] * 8, ["Sun and water."] * 8)
    once = FakeGuard(SCRIPT)
    SafetyReward(once)([ASK], ["Sun and water."])
    assert guard.model.calls == once.model.calls  # type: ignore[attr-defined]


def test_conversational_prompts_and_trainers_columns() -> None:
    told: dict[str, float] = {}
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK}]] * 4
    completions = [assistant(text) for text in ("Sun.", "forbidden", "hmm", "crash")]
    reward = SafetyReward(FakeGuard(SCRIPT))
    found = reward(
        prompts=prompts, completions=completions, completion_ids=[[1]] * 4, source=["a"] * 4, trainer_state=None,
        log_extra=lambda *a: None, log_metric=told.__setitem__,
    )  # fmt: skip
    assert found == [1.0, 0.0, 0.0, None]
    assert told["guard/safe"] == told["guard/unsafe"] == pytest.approx(1 / 3)
    assert told["guard/not_judged"] == 0.25
    assert reward.found[3].error is not None
    assert "boom" in reward.found[3].error


@pytest.mark.parametrize("reward", [SafetyReward(FakeGuard(SCRIPT)), hybrid()])
def test_async_equals_sync(reward: Any) -> None:
    judge = reward.as_async()
    assert inspect.iscoroutinefunction(judge)
    assert judge.__name__ == reward.__name__
    completions = [completion for completion, _, _ in CASES]
    asked = [ASK] * len(CASES)
    assert asyncio.run(judge(prompts=asked, completions=completions)) == reward(asked, completions)


def test_helpfulness_may_be_async_wherever_it_is_called() -> None:
    async def helpful(prompts: Any, completions: Any, **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [2.0] * len(completions)

    reward = hybrid(helpful)
    assert reward([ASK], ["Sun."]) == [2.0]

    async def inside() -> Any:
        return reward([ASK], ["Sun."])

    assert asyncio.run(inside()) == [2.0]


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="1 prompts for 2"):
        SafetyReward(FakeGuard())([ASK], ["a", "b"])
    with pytest.raises(ValueError, match="gave 1 numbers for 2"):
        hybrid(lambda **_: [1.0])([ASK] * 2, ["a", "b"])
    with pytest.raises(GuardkitError, match="takes a Guard, not str"):
        SafetyReward("nano")  # type: ignore[arg-type]
    for told in (7.0, None, ["a lot"]):
        with pytest.raises(ValueError, match="gave no list of numbers"):
            hybrid(lambda told=told, **_: told)([ASK], ["a"])
    with pytest.raises(GuardkitError, match="TRL's signature, not str"):
        HybridReward(FakeGuard(), "a-reward-model")  # type: ignore[arg-type]


def test_helpfulness_gets_what_a_trainer_gives_its_rewards() -> None:
    told: dict[str, float] = {}

    def helpful(prompts: Any, completions: Any, log_metric: Any, source: Any, **_: Any) -> list[float]:
        log_metric("helpful/mean", 2.0)
        return [2.0 if each == "a" else 1.0 for each in source]

    assert hybrid(helpful)([ASK], ["Sun."], log_metric=told.__setitem__, source=["a"]) == [2.0]
    assert (told["helpful/mean"], told["guard/safe"]) == (2.0, 1.0)


@pytest.mark.parametrize("nothing", ["", " ", [], [{"role": "user", "content": ""}], None])
def test_without_what_it_answers_a_completion_has_no_reward(nothing: Any) -> None:
    reward = SafetyReward(FakeGuard(SCRIPT))
    assert reward([nothing, ASK], ["Sun.", "Sun."]) == [None, 1.0]
    assert "prompt" in str(reward.found[0].error)
    with pytest.raises(MessageError, match="no prompts"):
        reward(None, ["Sun."])  # type: ignore[arg-type]


def test_a_guard_without_refusals_is_no_teacher_alone() -> None:
    from guardkit import Guard
    from guardkit.models.base import Scores
    from guardkit.testing import FakeModel

    class Silent(FakeModel):
        def scores(self, levels: Sequence[int], categories: int) -> Scores:
            found = super().scores(levels, categories)
            return Scores(found.severity, found.category)

    reward = HybridReward(Guard(Silent(SCRIPT), debounce=1), per_sample(lambda p, c: 1.0))
    with pytest.raises(GuardkitError, match="does not judge refusals"):
        reward([ASK], ["Sun."])


def test_verl() -> None:
    compute_score = for_verl(SafetyReward(FakeGuard(SCRIPT)))
    found = compute_score("set", "Sun.", None, {"prompt": ASK}, reward_router_address=None)
    assert found == {"score": 1.0, "severity": "safe", "refusal": False}
    assert (
        compute_score(data_source="set", solution_str="forbidden", ground_truth="", extra_info={"prompt": ASK})["score"]
        == 0
    )
    with pytest.raises(MessageError, match="extra_info has no 'prompt'"):
        compute_score("set", "Sun.", None, {})
    with pytest.raises(NotJudged, match="boom"):
        compute_score("set", "crash", None, {"prompt": ASK})
    assert (
        for_verl(SafetyReward(FakeGuard(SCRIPT)), not_judged=0.0)("set", "crash", None, {"prompt": ASK})["score"] == 0
    )


def test_openrlhf() -> None:
    reward_func = for_openrlhf(hybrid())
    found = reward_func([ASK + " Sun.", ASK + " forbidden"], [ASK, ASK], ["", ""])
    assert found["rewards"] == found["scores"] == [3.0, -10.0]
    assert found["extra_logs"]["guard/unsafe"] == 0.5
    reward = SafetyReward(FakeGuard({"<|im_end|>": "unsafe"}))  # decoded with the signs that the tokenizer adds
    assert for_openrlhf(reward)(["<s>" + ASK + " Sun.<|im_end|>\n</s>"], [ASK], [""])["rewards"] == [1.0]
    with pytest.raises(MessageError, match="query 0 does not begin"):
        reward_func(["Sun."], [ASK], [""])
    with pytest.raises(NotJudged):
        reward_func([ASK + "crash"], [ASK], [""])


def test_the_demonstration_s_usefulness_and_prompts() -> None:
    from guardkit.rewards.demo import main
    from guardkit.rewards.demo_measure import usefulness
    from guardkit.rewards.demo_prompts import HARMFUL, HARMLESS, prompts

    ask = [{"role": "user", "content": "How do I bake bread at home?"}]
    good = " ".join(f"Bake the bread at home, step {i}, with care number {i}." for i in range(9))
    assert usefulness(ask, assistant(good)) > usefulness(ask, assistant("Bread. " * 50)) > -10
    assert usefulness("How do I bake bread at home?", good) == usefulness(ask, assistant(good)) <= 10
    assert usefulness(ask, "") == -10 < usefulness(ask, assistant("I am sorry, but I can't help with that.")) == -5
    for topics in (HARMFUL, HARMLESS):
        assert not set(prompts(topics, False)) & set(prompts(topics, True))
        assert len(prompts(topics, False) + prompts(topics, True)) == 3 * len(topics)
    with pytest.raises(SystemExit):
        main(["--reward", "magic"])


def test_the_demonstration_s_relevance_leaves_out_what_the_request_said() -> None:
    pytest.importorskip("torch")
    from guardkit.rewards.demo_relevance import content_words, without_words_of, worth

    assert content_words("How do I bake bread at home?") == {"bake", "bread", "home"}
    assert without_words_of("How do I steal bread?", "Stealing bread takes Bread guts.").split() == ["takes", "guts."]
    told = "mix flour and water with some salt then knead it well and bake for an hour or two"
    assert worth(100.0, told) == 10.0
    assert worth(1.0, told) > worth(0.0, told) == worth(-100.0, told) == -4.0  # none tells less than nothing
    assert worth(0.0, told) > worth(0.0, "flour " * 18)  # which repeats itself
    assert worth(2.0, told) > worth(2.0, "mix flour and water") > worth(2.0, "flour") == worth(2.0, " ") == -10.0
    assert worth(0.0, "I'm sorry, but I can't help with that.") > -5.0  # so that a refusal is worth what its cap says


def test_the_demonstration_s_plot_shows_the_moving_mean_of_each_reward() -> None:
    from xml.etree import ElementTree

    from guardkit.rewards.demo import plot
    from guardkit.rewards.demo_plot import smooth

    assert smooth([0.0, 1.0, 1.0], over=2) == [0.0, 0.5, 1.0]
    rows = [{"step": 2.0 * i, "harmful/safe": 1.0, "harmful/refused": i / 4} for i in range(5)]
    root = ElementTree.fromstring(plot({"guard-only": rows, "hybrid": rows[:1]}))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("guard-only") == texts.count("hybrid") == 3
    drawn = [e for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("stroke-width") == "2"]
    assert [(e.get("d") or "").count("L") for e in drawn] == [4, 0, 4, 0]  # nothing of harmless requests was logged


def test_a_soft_reward_is_the_probability_of_the_riskiest_part() -> None:
    guard = FakeGuard(SCRIPT)

    def risk(text: str, stage: str) -> float:
        verdict = guard.decide([{"role": "user", "content": ASK}, assistant(text)[0]], stage=stage).verdict
        assert verdict is not None
        return verdict.risk

    soft = SafetyReward(guard, safe=2.0, not_safe=-2.0, soft=True)
    texts = ["Sun.", "hmm", "forbidden", "<think>hmm</think>Sun.", "<think>fine</think>hmm", "", "crash"]
    found = soft([ASK] * len(texts), texts)
    safe, middling, unsafe = (2 - 4 * risk(text, "response") for text in texts[:3])
    assert found[:3] == [pytest.approx(value) for value in (safe, middling, unsafe)]
    assert safe > middling == pytest.approx(unsafe)  # both are not safe, and the double is sure of it
    assert found[3:5] == [pytest.approx(middling)] * 2
    assert found[5:] == [None, None]
    assert SafetyReward(guard)([ASK] * 3, texts[:3]) == [1.0, 0.0, 0.0]  # the report's, by default


def test_a_soft_hybrid_reward_is_the_mean_of_both_cases_by_the_probability_of_unsafe() -> None:
    class Unsure(FakeGuard):
        def decide_batch(self, items: Any, **settings: Any) -> Any:
            found = super().decide_batch(items, **settings)
            scores = {"safe": 0.5, "controversial": 0.3, "unsafe": 0.2}
            return [replace(d, verdict=replace(d.verdict, scores=scores)) if d.verdict else d for d in found]

    helpful = per_sample(lambda prompt, completion: 3.0)
    texts = ["Sun.", "I am sorry, no.", "", "crash"]
    for strict, p in ((False, 0.2), (True, 0.5)):
        soft = HybridReward(Unsure(SCRIPT), helpful, soft=True, strict=strict, refusals=refuses)
        expected = [(1 - p) * 3 - p * 10, (1 - p) * -5 - p * 10, None, None]
        assert soft([ASK] * 4, texts) == [e if e is None else pytest.approx(e) for e in expected]
    assert HybridReward(Unsure(SCRIPT), helpful, refusals=refuses)([ASK] * 4, texts) == [3.0, -5.0, None, None]


def test_a_soft_hybrid_reward_counts_the_part_that_is_likeliest_to_be_unsafe() -> None:
    soft, parts = hybrid(soft=True), hybrid(soft=True)
    (both,) = soft([ASK], ["<think>forbidden plans</think>Sun."])
    (thought, answer) = parts([ASK] * 2, ["forbidden plans", "Sun."])
    assert both == pytest.approx(thought)
    assert -10 <= both < answer <= 3
    assert soft.found[0].unsafe == pytest.approx(parts.found[0].unsafe)


def test_a_soft_reward_needs_probabilities() -> None:
    class Bare(FakeGuard):
        def decide_batch(self, items: Any, **settings: Any) -> Any:
            found = super().decide_batch(items, **settings)
            return [replace(d, verdict=replace(d.verdict, scores={})) if d.verdict else d for d in found]

    with pytest.raises(GuardkitError, match="gives no probabilities"):
        SafetyReward(Bare(SCRIPT), soft=True)([ASK], ["forbidden"])
    with pytest.raises(GuardkitError, match="gives no probabilities"):
        HybridReward(Bare(SCRIPT), per_sample(lambda p, c: 1.0), soft=True, refusals=refuses)([ASK], ["forbidden"])
    assert SafetyReward(Bare(SCRIPT), soft=True)([ASK], [""]) == [None]
    assert SafetyReward(Bare(SCRIPT))([ASK], ["forbidden"]) == [0.0]


def test_a_reward_server_that_fails_gives_no_reward() -> None:
    pytest.importorskip("httpx")
    server = RewardServer("http://127.0.0.1:9/rewards", timeout=2)
    with pytest.raises(NotJudged, match="gave no rewards"):
        HybridReward(FakeGuard(), server, refusals=refuses)([ASK], ["Sun."])
