"""A reward with the signatures of other trainers: a file of a few lines that names a guard is all they need.

verl, ``reward.custom_reward_function.path=my_reward.py``:

    from guardkit import Guard
    from guardkit.rewards import SafetyReward
    from guardkit.rewards.adapters import for_verl

    compute_score = for_verl(SafetyReward(Guard.load("http://127.0.0.1:8000/v1")))

verl calls it for one sample at a time and without a GPU: let a server judge. The prompt must stand in the data's
``extra_info`` under "prompt".

OpenRLHF, ``--reward.remote_url my_reward.py``:

    reward_func = for_openrlhf(SafetyReward(Guard.load("http://127.0.0.1:8000/v1")))

Neither trainer knows a sample without a reward. What was not judged raises `NotJudged`, unless `not_judged` says what
it is worth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guardkit.errors import MessageError, NotJudged
from guardkit.rewards.hybrid import HybridReward
from guardkit.rewards.safety import SafetyReward

Reward = SafetyReward | HybridReward
_BEGIN_CHARS = 32
_END_SIGNS = re.compile(r"(?:\s*(?:<\|[\w.-]{1,32}\|>|</?s>|<eos>|<end_of_turn>))+\s*$")  # OpenRLHF decodes them, too


def for_verl(reward: Reward, *, not_judged: float | None = None) -> Callable[..., dict[str, Any]]:
    """``compute_score`` as verl calls it; gives ``{"score", "severity", "refusal"}``."""

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        prompt = (extra_info or {}).get("prompt")
        if not prompt:
            raise MessageError("extra_info has no 'prompt': a completion is judged with what it answers; put it there")
        (score,) = reward([prompt], [solution_str], data_source=[data_source], ground_truth=[ground_truth])
        found = reward.found[0]
        severity = found.severity.value if found.severity is not None else None
        return {"score": _known(score, found.error, not_judged), "severity": severity, "refusal": found.refusal}

    return compute_score


def for_openrlhf(reward: Reward, *, not_judged: float | None = None) -> Callable[..., dict[str, Any]]:
    """``reward_func`` as OpenRLHF calls it: queries are prompts with their completions behind them."""

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any) -> dict[str, Any]:
        completions = []
        for i, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
            at = query.find(prompt, 0, len(prompt) + _BEGIN_CHARS)  # a tokenizer may put its own sign before it
            if at < 0:
                raise MessageError(f"query {i} does not begin with its prompt: the completion cannot be told from it")
            completions.append(_END_SIGNS.sub("", query[at + len(prompt) :]))
        shares: dict[str, float] = {}
        scores = reward(list(prompts), completions, log_metric=shares.__setitem__)
        known = [_known(s, f.error, not_judged) for s, f in zip(scores, reward.found, strict=True)]
        return {"rewards": known, "scores": known, "extra_logs": shares}

    return reward_func


def _known(score: float | None, error: str | None, otherwise: float | None) -> float:
    if score is not None:
        return score
    if otherwise is None:
        raise NotJudged(f"a completion has no reward: {error or 'the helpfulness reward gave none'}")
    return otherwise
