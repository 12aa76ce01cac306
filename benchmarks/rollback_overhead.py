"""What rollback adds where nothing is flagged: beside plain `generate` and the guard's own time.

    python benchmarks/rollback_overhead.py [--llm FOLDER [--gguf FILE]] [--tokens 200] [--runs 5] [--guard nano]

The same model answers in turns: with `generate`; with `Rollback`; and the guard alone reads the same text in the same
strides. The ratio is Rollback's time to that of `generate` and the guard together. Sampling settings are those of CARE.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from common import header, median, table
from llm import add_options, load

from guardkit import Guard
from guardkit.rollback import Rollback

ALLOW = {"name": "watch", "rules": [{"action": "allow"}]}
ASK = "Tell me about tomatoes, step by step."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--buffer", type=int, default=40)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--guard", default="nano")
    args = parser.parse_args()
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError:
        print("rollback_overhead: skipped, since torch and transformers are not installed")
        return
    header("Rollback where nothing is flagged", "torch", "transformers")
    model, tokenizer = load(args)
    guard = Guard.load(args.guard, policy=ALLOW)
    rollback = Rollback(guard, buffer=args.buffer)
    sampling: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
    }
    messages = [{"role": "user", "content": ASK}]
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, return_tensors="pt"
        )
    else:
        ids = tokenizer(ASK, return_tensors="pt")["input_ids"]
    texts: list[str] = []

    def plain() -> None:
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.tokens, min_new_tokens=args.tokens,
                pad_token_id=0, **sampling,
            )  # fmt: skip
        pieces = [
            tokenizer.decode(out[0, at : at + args.buffer // 2])
            for at in range(ids.shape[1], out.shape[1], args.buffer // 2)
        ]
        texts[:] = pieces

    def judged() -> None:
        with guard.stream(messages) as stream:
            for piece in texts:
                stream.feed(piece)
            stream.finish()

    def both() -> None:
        result = rollback.generate(
            model, tokenizer, messages if tokenizer.chat_template else ASK, max_new_tokens=args.tokens, eos_token_id=[],
            **sampling,
        )  # fmt: skip
        assert result.n_tokens
        assert not result.rollbacks

    seconds = _in_turns({"generate": plain, "the guard": judged, "Rollback": both}, args.runs)
    middle = {name: median(found) for name, found in seconds.items()}
    together = [a + b for a, b in zip(seconds["generate"], seconds["the guard"], strict=True)]
    ratios = [c / t for c, t in zip(seconds["Rollback"], together, strict=True)]
    table(["", "ms a token"], [[name, f"{value * 1e3 / args.tokens:.2f}"] for name, value in middle.items()])
    print(f"Rollback takes {median(ratios):.2f} times generate and the guard together (median of {args.runs} runs).")


def _in_turns(calls: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            start = time.process_time()  # of all threads: what else the machine does is not counted
            call()
            if run:  # the first warms up
                found[name].append(time.process_time() - start)
    return found


if __name__ == "__main__":
    main()
