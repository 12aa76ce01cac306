"""SafeRL in small: a chat model learns from the guard, and what became of it is measured.

    python -m guardkit.rewards.demo --llm FOLDER --gguf SmolLM2-135M-Instruct.Q4_1.gguf --minutes 15

GRPO with sequence-level ratios (GSPO) and LoRA, on harmful and harmless requests, once with the guard-only reward and
once with the hybrid one. Held-out requests are answered before and after, and judged. Ctrl-C ends the training with one
reward early, and goes on with what comes behind it. Needs the `rl` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from guardkit.errors import MissingExtra
from guardkit.guard import Guard
from guardkit.rewards.demo_measure import Figures, answers, figures, loaded, table, usefulness
from guardkit.rewards.demo_plot import Panel, smooth, svg
from guardkit.rewards.demo_prompts import HARMFUL, HARMLESS, prompts
from guardkit.rewards.demo_relevance import Relevance
from guardkit.rewards.demo_train import adapt, load, telling, train, warm_up
from guardkit.rewards.hybrid import HybridReward, per_sample
from guardkit.rewards.safety import SafetyReward
from guardkit.spinning import bound_spinning

REWARDS = ("guard-only", "hybrid")
HELPFULNESS = ("relevance", "usefulness")


def plot(logs: dict[str, list[Figures]]) -> str:
    """What the guard found while training, the mean of five generations, as SVG."""
    shown = {
        "harmful/safe": "harmful requests: answers judged safe",
        "harmful/refused": "harmful requests: refused",
        "harmless/refused": "harmless requests: refused",
    }
    panels = []
    for name, title in shown.items():
        lines = {}
        for kind, rows in logs.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            lines[kind] = list(zip([x for x, _ in points], smooth([y for _, y in points]), strict=True))
        panels.append(Panel(title, "steps", lines))
    return svg(panels)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m guardkit.rewards.demo", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--llm", required=True, help="a chat model: a folder or a hub id")
    made.add_argument("--gguf", help="its file, where it is a GGUF (needs the package gguf)")
    made.add_argument("--out", type=Path, default=Path("safe-rl"), help="for adapters, logs and figures")
    made.add_argument("--reward", nargs="+", choices=REWARDS, default=list(REWARDS))
    made.add_argument("--guard", nargs="+", default=["nano"], help="that rewards; of several, the worst finding counts")
    made.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="MODEL",
        help="another guard that measures beside it; repeatable",
    )
    made.add_argument("--minutes", type=float, default=25.0, help="of training, for each reward at most")
    made.add_argument(
        "--steps", type=int, nargs="+", default=[200], help="of training, at most: for all rewards, or for each"
    )
    made.add_argument("--requests", type=int, default=60, help="held out, of each kind at most")
    made.add_argument("--samples", type=int, default=1, help="answers to each of these that are measured")
    made.add_argument("--answers", type=int, default=8, help="sampled for a request in training")
    made.add_argument("--batch", type=int, default=2, help="requests of a training step")
    made.add_argument(
        "--updates", type=int, default=2, help="training steps on the answers of one sampling; of 1, none needs a ratio"
    )
    made.add_argument("--soft", action="store_true", help="rewards by the guard's probabilities, not by its verdicts")
    made.add_argument(
        "--keep", action="store_true", help="requests, too, whose answers are all unsafe, or none: the rest drops them"
    )
    made.add_argument("--strict", action="store_true", help="controversial counts as unsafe in the hybrid reward, too")
    made.add_argument("--helpfulness", choices=HELPFULNESS, default="relevance", help="of the hybrid reward")
    made.add_argument("--beta", type=float, default=0.0, help="weight of the distance (KL) from the model before")
    made.add_argument("--tokens", type=int, default=40, help="of an answer at most")
    made.add_argument(
        "--refusals",
        type=float,
        default=0.13,
        help="share of harmful requests that it is taught to refuse before; 0: none",
    )
    made.add_argument("--learning-rate", type=float, default=5e-4)
    made.add_argument(
        "--clip", type=float, default=0.02, help="how far the ratio of a sequence may fall; a third more to rise"
    )
    made.add_argument("--resume", action="store_true", help="go on with what --out holds; --minutes count anew")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--gpu", action="store_true")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    for package in ("torch", "trl", "peft", "datasets"):
        try:
            __import__(package)
        except ImportError as error:
            print(MissingExtra("the demonstration", "rl"), file=sys.stderr)
            raise SystemExit(2) from error
    import torch
    from safetensors.torch import load_file, save_file

    steps = args.steps * len(args.reward) if len(args.steps) == 1 else args.steps
    if len(steps) != len(args.reward):
        parser().error(f"--steps: {len(steps)} numbers for {len(args.reward)} rewards")
    args.out.mkdir(parents=True, exist_ok=True)
    guards, judges = [Guard.load(name) for name in args.guard], loaded(args.judge)
    held_out = {
        kind: [text for text in prompts(topics, True)[: args.requests] for _ in range(args.samples)]
        for kind, topics in (("harmful", HARMFUL), ("harmless", HARMLESS))
    }
    found: dict[str, Figures] = {}
    given: dict[str, dict[str, list[tuple[str, str]]]] = {}
    logs: dict[str, list[Figures]] = {}

    def measure(name: str) -> None:
        model.eval()
        given[name] = {
            kind: list(zip(asked, answers(model, tokenizer, asked, args.tokens), strict=True))
            for kind, asked in held_out.items()
        }
        (args.out / "answers.json").write_text(json.dumps(given, indent=1), encoding="utf-8")
        found[name] = figures(given[name], guards[0], judges, relevance)
        told = {"figures": found, "logs": logs, "command": sys.argv[1:] if argv is None else list(argv)}
        (args.out / "figures.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        print(table({name: found[name]}), flush=True)

    model, tokenizer = load(args)
    torch.manual_seed(args.seed)
    model = adapt(model)
    relevance = Relevance(model, tokenizer)
    helpful = relevance if args.helpfulness == "relevance" else per_sample(usefulness)
    start_file = args.out / "start.safetensors"
    if args.resume and start_file.exists():
        model.load_state_dict(load_file(start_file), strict=False)
        told = json.loads((args.out / "figures.json").read_text(encoding="utf-8"))
        found.update(told["figures"])
        logs.update(told["logs"])
        given.update(json.loads((args.out / "answers.json").read_text(encoding="utf-8")))
    else:
        if args.refusals:
            measure("as it came")
            taught, share = warm_up(model, tokenizer, args.refusals, seed=args.seed)
            print(f"taught to refuse {share:.0%} of the harmful requests in {taught} steps", flush=True)
        measure("before")
        save_file({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, start_file)
    start_weights = load_file(start_file)
    harmful = prompts(HARMFUL, False)
    if not (args.soft or args.keep):  # a probability tells answers apart that have one verdict
        kept = telling(guards, model, tokenizer, harmful, args.answers, args.tokens)
        print(f"{len(kept)} of {len(harmful)} harmful requests get both unsafe answers and others", flush=True)
        harmful = kept
    for kind, most in zip(args.reward, steps, strict=True):
        if kind in found:
            continue
        model.load_state_dict(start_weights, strict=False)
        start, cpu = time.monotonic(), time.process_time()
        reward = (
            SafetyReward(guards, soft=args.soft)
            if kind == "guard-only"
            else HybridReward(guards, helpful, soft=args.soft, strict=args.strict)
        )
        logs[kind] = train(args, kind, most, reward, model, tokenizer, harmful)
        took = f"{time.monotonic() - start:.0f} s ({time.process_time() - cpu:.0f} s of CPU time)"
        print(f"{kind}: {len(logs[kind])} generations in {took}", flush=True)
        measure(kind)
    (args.out / "steps.svg").write_text(plot(logs), encoding="utf-8")
    print(table(found), flush=True)
    return 0


if __name__ == "__main__":
    bound_spinning()
    raise SystemExit(main())
