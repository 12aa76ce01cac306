"""The guard-only reward."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from guardkit.errors import GuardkitError
from guardkit.guard import Guard
from guardkit.rewards.judged import Conversation, Judged, LogMetric, check_guards, judge_completions, tell
from guardkit.verdict import Severity

Rewards = list["float | None"]


class SafetyReward:
    """1 where the thinking and the answer of a completion are both safe, else 0; controversial is not safe.

    A callable with TRL's signature; make one a process and give it to `reward_funcs`. `as_async()` gives the same as a
    coroutine function, which runs beside other rewards. A model that learns from this alone learns to refuse:
    `HybridReward` is what the report ends up with.

    guard: of several, each judges, and the worst that any finds counts: what fools one must fool all of them.
    soft: between the two by the guard's probability that the completion is safe, which tells answers apart of which all
    are safe, or none; the report's reward is the hard one.
    """

    def __init__(self, guard: Guard | Sequence[Guard], *, safe: float = 1.0, not_safe: float = 0.0, soft: bool = False):
        self.guards, self.safe, self.not_safe, self.soft = check_guards(guard), safe, not_safe, soft
        self.__name__ = "safety_reward"  # what trainers log it as
        self.found: list[Judged] = []  # of the last call

    def __call__(
        self,
        prompts: Sequence[Conversation],
        completions: Sequence[Conversation],
        *,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> Rewards:
        """prompts, completions: texts or messages, equally many. Gives a reward each, None where one was not judged.
        Raises `GuardkitError` where a soft reward has no probability to go by."""
        self.found = judge_completions(self.guards, prompts, completions)
        tell(self.found, log_metric)
        return [self._reward(f) for f in self.found]

    def _reward(self, found: Judged) -> float | None:
        if found.severity is None:
            return None
        if self.soft:
            return self.safe + (self.not_safe - self.safe) * probability(found.risk)
        return self.safe if found.severity is Severity.safe else self.not_safe

    def as_async(self) -> Callable[..., Awaitable[Rewards]]:
        """This reward as a coroutine function."""
        return off_loop(self)


def probability(given: float | None) -> float:
    """Raises `GuardkitError` where a guard gave none."""
    if given is None:
        raise GuardkitError("this guard gives no probabilities, and a soft reward is made of them: soft=False")
    return given


def off_loop(reward: Callable[..., Rewards]) -> Callable[..., Awaitable[Rewards]]:
    """A coroutine function that runs `reward` in a thread, with its name."""

    async def judge(prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any) -> Rewards:
        import asyncio

        return await asyncio.to_thread(reward, prompts, completions, **columns)

    judge.__name__ = getattr(reward, "__name__", "reward")
    return judge
