"""The hybrid reward: helpfulness, unless the guard objects or the model refuses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from guardkit.errors import GuardkitError, MissingExtra, NotJudged
from guardkit.guard import Guard
from guardkit.rewards.judged import Conversation, Judged, LogMetric, check_guards, judge_completions, tell
from guardkit.rewards.safety import Rewards, off_loop, probability
from guardkit.verdict import Severity

Helpfulness = Callable[..., "Sequence[float | None] | Awaitable[Sequence[float | None]]"]
"""A reward with TRL's signature, sync or async: ``(prompts, completions, **columns)`` -> a number or None each."""


class HybridReward:
    """With a helpfulness reward W: ``min(unsafe, W)`` where thinking or answer is unsafe, ``min(refused, W)`` where the
    answer refuses, else ``W``.

    guard: of several, each judges, and the worst that any finds counts (a refusal, too: where any says so).
    helpfulness: see `Helpfulness`; `per_sample` makes one of a function for one completion, `RewardServer` of a server.
    unsafe, refused: the caps, -10 and -5 in the report, whose W is about -10 to 10; scale them with yours.
    strict: whether controversial counts as unsafe here; the report's formula tests unsafe alone.
    soft: the mean of the reward as unsafe and of the reward as safe, by the guard's probability of unsafe (strict: of
    not safe), which tells answers apart that the guard is unsure of; the report's reward is the hard one.
    refusals: who says what a refusal is, ``(prompts, completions) -> [bool]``, for a guard that does not.
    Where the guard or W has no answer, the reward is None.
    """

    def __init__(
        self,
        guard: Guard | Sequence[Guard],
        helpfulness: Helpfulness,
        *,
        unsafe: float = -10.0,
        refused: float = -5.0,
        strict: bool = False,
        soft: bool = False,
        refusals: Callable[[Sequence[Conversation], Sequence[Conversation]], Sequence[bool]] | None = None,
    ):
        if not callable(helpfulness):
            raise GuardkitError(
                f"helpfulness is a function with TRL's signature, not {type(helpfulness).__name__}; "
                "per_sample(...) and RewardServer(url) make one"
            )
        self.guards, self.helpfulness = check_guards(guard), helpfulness
        self.unsafe, self.refused, self.strict, self.soft, self.refusals = unsafe, refused, strict, soft, refusals
        self.__name__ = "hybrid_reward"
        self.found: list[Judged] = []

    def __call__(
        self,
        prompts: Sequence[Conversation],
        completions: Sequence[Conversation],
        *,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> Rewards:
        """As `SafetyReward`. Raises `GuardkitError` where nobody says what a refusal is, too."""
        self.found = judge_completions(self.guards, prompts, completions)
        tell(self.found, log_metric)
        if log_metric is not None:
            columns["log_metric"] = log_metric
        told: Any = self.helpfulness(prompts=prompts, completions=completions, **columns)
        helpful = _numbers(_run(told) if inspect.isawaitable(told) else told, len(completions))
        refused = self._refused(prompts, completions)
        return [self._reward(found, w, no) for found, w, no in zip(self.found, helpful, refused, strict=True)]

    def _refused(self, prompts: Sequence[Conversation], completions: Sequence[Conversation]) -> Sequence[bool]:
        if self.refusals is not None:
            refused = self.refusals(prompts, completions)
            if len(refused) != len(completions):
                raise ValueError(f"refusals gave {len(refused)} answers for {len(completions)} completions")
            return refused
        answers = [f for f in self.found if f.severity is not None and f.error is None]
        if answers and all(f.refusal is None for f in answers):
            raise GuardkitError(
                "this guard does not judge refusals, and without them the hybrid reward teaches a model to refuse: "
                "take nano or Qwen3Guard-Gen, or pass refusals="
            )
        return [bool(f.refusal) for f in self.found]

    def _reward(self, found: Judged, helpful: float | None, refused: bool) -> float | None:
        if found.severity is None or helpful is None or not math.isfinite(helpful):
            return None
        if_unsafe = min(self.unsafe, float(helpful))
        if_safe = min(self.refused, float(helpful)) if refused else float(helpful)
        if self.soft:
            p = probability(found.risk if self.strict else found.unsafe)
            return p * if_unsafe + (1.0 - p) * if_safe
        worst = Severity.controversial if self.strict else Severity.unsafe
        return if_unsafe if found.severity >= worst else if_safe

    def as_async(self) -> Callable[..., Awaitable[Rewards]]:
        """This reward as a coroutine function."""
        return off_loop(self)


def _numbers(told: Any, n: int) -> list[float | None]:
    """What a helpfulness reward gave. Raises ValueError for anything but `n` numbers or None."""
    try:
        found = [None if each is None else float(each) for each in told]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the helpfulness reward gave no list of numbers, but {type(told).__name__} {str(told)[:80]!r}"
        ) from error
    if len(found) != n:
        raise ValueError(f"the helpfulness reward gave {len(found)} numbers for {n} completions")
    return found


def _run(work: Awaitable[Any]) -> Any:
    """Wait for an async helpfulness reward, whether or not a loop runs in this thread."""
    import asyncio
    import threading

    async def whole() -> Any:
        return await work

    out: list[Any] = []

    def alone() -> None:
        try:
            out.append(asyncio.run(whole()))
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=alone, name="guardkit-helpfulness")
    thread.start()
    thread.join()
    if isinstance(out[0], BaseException):
        raise out[0]
    return out[0]


def per_sample(score: Callable[[Conversation, Conversation], float | None]) -> Helpfulness:
    """A helpfulness reward of a function that scores one completion after its prompt."""

    def helpfulness(
        prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any
    ) -> list[float | None]:
        return [score(p, c) for p, c in zip(prompts, completions, strict=True)]

    return helpfulness


class RewardServer:
    """A helpfulness reward asked of a server by POST: ``{"query": [...], "prompts": [...]}`` -> ``{"rewards": [...]}``,
    where a query is a prompt with its completion behind it (OpenRLHF's form). Raises `NotJudged` where it fails.

    timeout: seconds that an answer may take. Needs the `remote` extra.
    """

    def __init__(self, url: str, *, timeout: float = 180.0, headers: dict[str, str] | None = None):
        try:
            import httpx
        except ImportError as error:
            raise MissingExtra("RewardServer", "remote") from error
        self.url, self._client = url, httpx.Client(timeout=timeout, headers=headers)

    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any
    ) -> list[float | None]:
        asked = [_plain(p) for p in prompts]
        query = [p + _plain(c) for p, c in zip(asked, completions, strict=True)]
        try:
            answer = self._client.post(self.url, json={"query": query, "prompts": asked})
            answer.raise_for_status()
            return [None if r is None else float(r) for r in answer.json()["rewards"]]
        except Exception as error:  # httpx's, JSON's, and a body of another shape
            told = f"{type(error).__name__}: {error}"
            raise NotJudged(f"the reward server at {self.url} gave no rewards ({told})") from error


def _plain(conversation: Conversation) -> str:
    if isinstance(conversation, str):
        return conversation
    from guardkit.messages import read_messages

    return "\n".join(message.content for message in read_messages(conversation))
