"""The experiment of CARE in small: harmful answers, quality and waiting, by intervention, buffer and tries.

    python benchmarks/rollback_care.py --llm FOLDER --gguf SmolLM2-135M-Instruct.Q4_1.gguf [--prompts FILE_OR_FOLDER]

A chat model answers harmful requests, and harmless ones that look alike: without intervention, sampled again
(resample), and with the model's own criticism before the next try (introspect). Buffers are varied at the most tries,
tries at the buffer of 40; `--grid` runs every pair. Requests are the built-in ones, or one a line of a file, or of all
.txt files of a folder. An answer is harmful where the judge says so: by default the guard that watched, as in the
paper, and so in its favour; `--judge` takes another. Quality is `guardkit.rewards.demo.usefulness` on the harmless
requests (-10 to 10), no judge of truth. `--svg` draws one plot.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import header, note, table
from llm import add_options, load

from guardkit import Guard, Severity
from guardkit.rewards.demo import usefulness
from guardkit.rewards.demo_prompts import HARMFUL, HARMLESS
from guardkit.rollback import Rollback

ALLOW = {"name": "watch", "rules": [{"action": "allow"}]}
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}  # CARE's
KINDS = ("resample", "introspect")
MIDDLE = 40


@dataclass(frozen=True)
class Setting:
    kind: str
    buffer: int = 0
    tries: int = 0


@dataclass(frozen=True)
class Found:
    """harmful, refused: shares of the harmful requests; quality: mean over the harmless ones; wait: mean wait tokens of
    all answers; rollbacks: mean over the harmful ones."""

    harmful: float
    refused: float
    refused_harmless: float
    quality: float
    wait: float
    rollbacks: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--prompts", type=Path, help="harmful requests: a file, or a folder of .txt files")
    parser.add_argument("--limit", type=int, default=24, help="requests of each kind")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer at most")
    parser.add_argument("--buffers", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--tries", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--grid", action="store_true", help="every buffer with every number of tries")
    parser.add_argument("--guard", default="nano")
    parser.add_argument("--judge")
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    args.llm = args.llm or os.environ.get("GUARDKIT_CHAT_MODEL")
    if args.llm is None:
        print("rollback_care: skipped, since there is no chat model: --llm FOLDER, or GUARDKIT_CHAT_MODEL")
        return
    header("Rollback: CARE in small", "torch", "transformers")
    harmful, harmless = requests(args.prompts)[: args.limit], [f"How do I {t}?" for t in HARMLESS][: args.limit]
    print(
        f"- {len(harmful)} harmful requests ({args.prompts or 'built in'}), {len(harmless)} harmless ones\n", flush=True
    )
    model, tokenizer = load(args)
    guard = Guard.load(args.guard)
    judge = Guard.load(args.judge) if args.judge else guard
    most = max(args.tries)
    settings = [Setting("none")]
    for kind in KINDS:
        for buffer in args.buffers:
            for tries in args.tries:
                if args.grid or tries == most or buffer == MIDDLE:
                    settings.append(Setting(kind, buffer, tries))
    found: dict[Setting, Found] = {}
    for setting in settings:
        start = time.monotonic()
        found[setting] = experiment(setting, guard, judge, model, tokenizer, harmful, harmless, args.tokens)
        note(f"{setting}: {found[setting]} in {time.monotonic() - start:.0f} s")
    rows = [
        [
            setting.kind, str(setting.buffer or "-"), str(setting.tries or "-"), f"{100 * f.harmful:.0f}%",
            f"{100 * f.refused:.0f}%", f"{100 * f.refused_harmless:.0f}%", f"{f.quality:.2f}", f"{f.wait:.0f}",
            f"{f.rollbacks:.2f}",
        ]
        for setting, f in found.items()
    ]  # fmt: skip
    table(
        [
            "intervention",
            "buffer",
            "tries",
            "harmful answers",
            "refused",
            "harmless: refused",
            "quality",
            "wait tokens",
            "rollbacks",
        ],
        rows,
    )
    if args.svg:
        args.svg.write_text(plot(found, most), encoding="utf-8")


def requests(path: Path | None) -> list[str]:
    if path is None:
        return [f"How do I {topic}?" for topic in HARMFUL]
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        sys.exit(f"{path} holds no requests: one a line, in .txt files")
    return found


def experiment(
    setting: Setting,
    guard: Guard,
    judge: Guard,
    model: Any,
    tokenizer: Any,
    harmful: Sequence[str],
    harmless: Sequence[str],
    tokens: int,
) -> Found:
    if setting.kind == "none":
        rollback = Rollback(Guard(guard.model, policy=ALLOW), buffer=1, stride=tokens)
    else:
        rollback = Rollback(
            guard, buffer=setting.buffer, retries=setting.tries, introspect=setting.kind == "introspect"
        )
    answers = [
        rollback.generate(model, tokenizer, text, max_new_tokens=tokens, seed=i, **SAMPLING)
        for i, text in enumerate([*harmful, *harmless])
    ]
    bad, good = answers[: len(harmful)], answers[len(harmful) :]
    judged = judge.decide_batch(
        [
            [{"role": "user", "content": q}, {"role": "assistant", "content": a.answer or "."}]
            for q, a in zip(harmful, bad, strict=True)
        ]
    )
    unsafe = [d.verdict is None or d.verdict.severity is Severity.unsafe for d in judged]
    return Found(
        harmful=_mean(unsafe),
        refused=_mean([a.refused for a in bad]),
        refused_harmless=_mean([a.refused for a in good]),
        quality=_mean([usefulness(q, a.text) for q, a in zip(harmless, good, strict=True)]),
        wait=_mean([0 if setting.kind == "none" else a.wait_tokens for a in answers]),
        rollbacks=_mean([a.rollbacks for a in bad]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def plot(found: dict[Setting, Found], most: int) -> str:
    """Harmful answers over wait tokens: a line an intervention, by buffer at the most tries."""
    wide, high, left, low = 460, 300, 50, 40
    longest = max([f.wait for f in found.values()] + [1.0])
    top = max([f.harmful for f in found.values()] + [0.01])

    def at(wait: float, share: float) -> str:
        return f"{left + wait / longest * (wide - left - 20):.1f},{high - low - share / top * (high - low - 30):.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" font-family="sans-serif">',
        f'<style>text {{ font-size: 11px }}</style><rect width="{wide}" height="{high}" fill="white"/>',
        f'<path d="M{at(0, top)}L{at(0, 0)}L{at(longest, 0)}" fill="none" stroke="#444"/>',
        f'<text x="{wide / 2}" y="{high - 8}" text-anchor="middle">wait tokens (0 to {longest:.0f})</text>',
        f'<text x="6" y="16">harmful answers (0 to {100 * top:.0f}%)</text>',
    ]
    none = next(f for s, f in found.items() if s.kind == "none")
    lines.append(f'<path d="M{at(0, none.harmful)}L{at(longest, none.harmful)}" stroke="#888" stroke-dasharray="4"/>')
    lines.append(f'<text x="{wide - 130}" y="{28}" fill="#888">no intervention (dashed)</text>')
    for i, (kind, colour) in enumerate(zip(KINDS, ("#b04a2f", "#2f6db0"), strict=True)):
        points = sorted((f.wait, f.harmful, s.buffer) for s, f in found.items() if s.kind == kind and s.tries == most)
        path = "L".join(at(wait, share) for wait, share, _ in points)
        lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for wait, share, buffer in points:
            x, _, y = at(wait, share).partition(",")
            lines.append(
                f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/><text x="{x}" y="{float(y) - 6}">{buffer}</text>'
            )
        lines.append(f'<text x="{wide - 130}" y="{42 + 14 * i}" fill="{colour}">{kind}, by buffer</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
