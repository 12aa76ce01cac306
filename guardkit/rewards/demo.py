"""SafeRL in small: a chat model learns from the guard, and what became of it is measured.

    python -m guardkit.rewards.demo --llm FOLDER --gguf SmolLM2-135M-Instruct.Q4_1.gguf --minutes 15

GRPO with sequence-level ratios (GSPO) and LoRA, on harmful and harmless requests, once with the guard-only reward and
once with the hybrid one. Held-out requests are answered before and after, and judged. Needs the `rl` extra.
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
from guardkit.rewards.demo_measure import Figures, measure
from guardkit.rewards.demo_plot import Panel, smooth, svg
from guardkit.rewards.demo_prompts import HARMFUL, HARMLESS, prompts
from guardkit.rewards.demo_train import adapt, load, train, warm_up

REWARDS = ("guard-only", "hybrid")


def table(found: dict[str, Figures]) -> str:
    """The figures as Markdown, a column a model."""
    names = list(found)
    rows = [f"| held out | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for measure_ in found[names[0]]:
        rows.append(f"| {measure_} | " + " | ".join(f"{found[name][measure_]:.3g}" for name in names) + " |")
    return "\n".join(rows)


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
    made.add_argument("--guard", default="nano", help="the guard that rewards")
    made.add_argument("--judge", help="another guard that measures; the rewarding one by default")
    made.add_argument("--minutes", type=float, default=25.0, help="of training, for each reward at most")
    made.add_argument("--steps", type=int, default=200, help="of training, for each reward at most")
    made.add_argument("--requests", type=int, default=60, help="held out, of each kind at most")
    made.add_argument("--answers", type=int, default=8, help="sampled for a request")
    made.add_argument(
        "--soft", action="store_true", help="the guard-only reward is the probability of safe, not 0 or 1"
    )
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

    args.out.mkdir(parents=True, exist_ok=True)
    guard = Guard.load(args.guard)
    judge = Guard.load(args.judge) if args.judge else guard
    harmful, harmless = (prompts(topics, True)[: args.requests] for topics in (HARMFUL, HARMLESS))

    def measured() -> Figures:
        return measure(model.eval(), tokenizer, judge, harmful, harmless, args.tokens)

    found: dict[str, Figures] = {}

    def note(name: str, figures: Figures) -> None:
        found[name] = figures
        print(table({name: figures}), flush=True)

    logs: dict[str, list[Figures]] = {}
    model, tokenizer = load(args)
    torch.manual_seed(args.seed)
    model = adapt(model)
    if args.refusals:
        note("as it came", measured())
        steps, share = warm_up(model, tokenizer, args.refusals, seed=args.seed)
        print(f"taught to refuse {share:.0%} of the harmful requests in {steps} steps", flush=True)
    note("before", measured())
    start_weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for kind in args.reward:
        model.load_state_dict(start_weights, strict=False)
        start, cpu = time.monotonic(), time.process_time()
        logs[kind] = train(args, kind, guard, model, tokenizer)
        took = f"{time.monotonic() - start:.0f} s ({time.process_time() - cpu:.0f} s of CPU time)"
        print(f"{kind}: {len(logs[kind])} generations in {took}", flush=True)
        note(kind, measured())
        told = {"figures": found, "logs": logs, "command": sys.argv[1:] if argv is None else list(argv)}
        (args.out / "figures.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    (args.out / "steps.svg").write_text(plot(logs), encoding="utf-8")
    print(table(found), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
