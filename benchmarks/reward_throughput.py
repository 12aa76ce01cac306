"""Completions a second through the rewards, beside `check_batch` of the same guard on the same texts.

    python benchmarks/reward_throughput.py [--completions 256] [--words 40] [--runs 5] [--guard nano]

A batch of prompts with eight completions each, as GRPO gives them, harmless and all different. Both judge it in turns,
each time with new texts. The ratio is what reading conversations, telling thinking from answers and counting costs.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from typing import Any

from common import header, median, question, table, words

from guardkit import Guard
from guardkit.rewards import HybridReward, SafetyReward, per_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--completions", type=int, default=256)
    parser.add_argument("--words", type=int, default=40, help="of a completion")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--guard", default="nano")
    args = parser.parse_args()
    header("Rewards")
    guard = Guard.load(args.guard)
    rewards = {
        "SafetyReward": SafetyReward(guard),
        "HybridReward": HybridReward(guard, per_sample(lambda p, c: 1.0), refusals=lambda p, c: [False] * len(c)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("check_batch", *rewards)}
    for run in range(args.runs + 1):
        for i, name in enumerate(seconds):
            source, rng = words(1000 * run + i), random.Random(1000 * run + i)
            prompts = [question(rng) for _ in range(-(-args.completions // 8)) for _ in range(8)][: args.completions]
            texts = ["".join(itertools.islice(source, args.words)) for _ in prompts]
            start = time.process_time()  # of all threads: what else the machine does is not counted
            if name == "check_batch":
                guard.check_batch([_talk(p, c) for p, c in zip(prompts, texts, strict=True)])
            else:
                rewards[name](prompts, texts)
            seconds[name].append(time.process_time() - start)
    base = median(seconds["check_batch"][1:])  # without the first run, which warms up
    rows = []
    for name, found in seconds.items():
        middle = median(found[1:])
        rows.append([name, f"{args.completions / middle:.0f}", f"{base / middle:.2f}"])
    table(["", "completions per CPU second", "of check_batch"], rows)


def _talk(prompt: str, completion: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


if __name__ == "__main__":
    main()
