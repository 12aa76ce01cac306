"""The guard as a reward for reinforcement learning, after SafeRL of the Qwen3Guard report (section 3.5).

    SafetyReward(guard)                  1 where thinking and answer are both safe, else 0
    HybridReward(guard, helpfulness)     helpfulness, capped where an answer is unsafe or refuses

Both have TRL's signature for reward functions: ``(prompts, completions, **columns) -> list[float | None]``. ``None``
means that a completion could not be judged; a trainer leaves it out, and it never counts as safe.
`guardkit.rewards.adapters` has the signatures of verl and OpenRLHF.
"""

from guardkit.rewards.hybrid import Helpfulness, HybridReward, RewardServer, per_sample
from guardkit.rewards.judged import Judged, judge_completions
from guardkit.rewards.safety import SafetyReward

__all__ = [
    "Helpfulness",
    "HybridReward",
    "Judged",
    "RewardServer",
    "SafetyReward",
    "judge_completions",
    "per_sample",
]
