"""Milliseconds of one check by Qwen3Guard-Gen: guardkit beside `generate`, one bare forward and a static cache.

    python benchmarks/gen_latency.py [--runs 9] [--sentences 2] [--device cuda] [--dtype bfloat16] [--quick]

On the same random weights, taking turns, one text at a time, every run with a new text:

* guardkit: `Guard.check` with the answer Safe (one pass), and with Unsafe and a category (a walk of several passes);
* generate: the model card's snippet, held to the length of a real answer (8 new tokens for a prompt, 12 for a
  response);
* static cache: the same with `cache_implementation="static"`;
* bare forward: transformers' model once over the tokens that guardkit has not cached, its `DynamicCache` holding the
  template's head: no template, no tokenizer, no answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import torch
from common import header, median, mib, note, own_peak_mib, percentile, table
from gen_models import ANSWERS, NEW_TOKENS, Ours, Talk, Theirs, agree, parser, talk, weights_of
from stream_models import MIB, memory_mib, memory_name, synchronize

REST_S = 0.005  # between turns: threads of one contender that still spin would slow the next


def contenders(ours: Ours, theirs: Theirs, kind: str, static: bool) -> dict[str, Callable[[Talk], float]]:
    """Each takes a talk and gives its seconds."""
    new = NEW_TOKENS[kind]
    caches: dict[int, Any] = {}

    def timed(call: Callable[[], object]) -> float:
        synchronize(theirs.device)
        start = time.perf_counter()
        call()
        synchronize(theirs.device)
        return time.perf_counter() - start

    def checked(name: str, one: Talk) -> float:
        ours.answer(name)
        steps = ours.engine.counters.steps
        seconds = timed(lambda: ours.guard.check(one))
        assert (ours.engine.counters.steps - steps == 1) == (name == "one pass"), "not the answer that was asked for"
        return seconds

    def bare(one: Talk) -> float:
        head = ours.head(one)
        cache = caches.setdefault(len(head), None) or theirs.prefix(head)
        caches[len(head)] = cache
        ids = [*ours.ids(one)[len(head) :], *ours.grammar.safety]
        seconds = timed(lambda: theirs.forward(ids, cache))
        cache.crop(-len(ids))
        return seconds

    found: dict[str, Callable[[Talk], float]] = {
        f"guardkit, {name}": lambda one, name=name: checked(name, one)  # type: ignore[misc]
        for name in ANSWERS
    }
    found["bare forward"] = bare
    found["generate"] = lambda one: timed(lambda: theirs.generate([one], new))
    if static:
        options = {"cache_implementation": "static"} | (
            {"disable_compile": True} if theirs.device.type == "cpu" else {}
        )
        found["generate, static cache"] = lambda one: timed(lambda: theirs.generate([one], new, **options))
    return found


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--runs", type=int, default=9)
    args_parser.add_argument("--warm", type=int, default=2, help="turns that do not count")
    args_parser.add_argument("--sentences", type=int, default=2, help="of about 15 words: the length of a text")
    args_parser.add_argument("--without-static", action="store_true", help="leave the static cache out")
    args = args_parser.parse_args()

    header("Gen latency", "torch", "transformers")
    weights = weights_of(args)
    device, unit = weights.device, memory_name(weights.device)
    memory = [("the weights", memory_mib(device))]
    ours = Ours(weights, args.threads)
    memory.append(("guardkit's model beside them, both heads cached", memory_mib(device)))
    theirs = Theirs(weights, ours.template)
    rng = random.Random(1)
    print(agree(ours, theirs, [talk(rng, bool(i % 2), args.sentences) for i in range(6)], weights.dtype) + "\n")

    for kind in NEW_TOKENS:
        talks = [talk(rng, kind == "response", args.sentences) for _ in range(args.warm + args.runs)]
        taking_turns = contenders(ours, theirs, kind, not args.without_static)
        found: dict[str, list[float]] = {name: [] for name in taking_turns}
        for i, one in enumerate(talks):
            for name, run in taking_turns.items():
                time.sleep(REST_S)
                seconds = run(one)
                if i >= args.warm:
                    found[name].append(seconds)
            note(f"{kind} {i + 1} of {len(talks)}")
        whole = [len(ours.ids(one)) for one in talks]
        print(f"## One {kind}\n")
        print(
            f"{median(whole):.0f} tokens with the template, of which {len(ours.head(talks[0]))} are cached; "
            f"an answer of {NEW_TOKENS[kind]} tokens.\n"
        )
        rows = []
        for name, seconds in found.items():
            ratios = [f"{median(found[other]) / median(seconds):.2f}" for other in ("generate", "bare forward")]
            rows.append(
                [name, *(f"{x * 1e3:,.1f}" for x in (median(seconds), percentile(seconds, 95), min(seconds))), *ratios]
            )
        table(["", "median ms", "p95", "least", "times as fast as generate", "as the bare forward"], rows)
    memory.append(("after all runs", memory_mib(device)))
    print("## Memory\n")
    table(["", unit], [[name, mib(value)] for name, value in memory])
    peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else own_peak_mib()
    print(
        f"Peak of the process {mib(peak)} MiB; both contenders live in it. The answer is given: random weights say "
        "anything (see gen_models.py). Medians and percentiles over "
        f"{args.runs} texts, each of which every contender has judged before the next one."
    )


if __name__ == "__main__":
    main()
