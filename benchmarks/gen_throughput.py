"""Tokens a second of `check_batch` with Qwen3Guard-Gen, beside `generate` one by one and in padded batches.

    python benchmarks/gen_throughput.py [--texts 500] [--reference-texts 24] [--device cuda] [--quick]

The texts are prompts and responses of mixed length (log-normal, median 6 sentences). All contenders have the same
random weights. The reference judges an even sample of the same texts, sorted by length so that batches pad little,
and is compared by tokens a second: those of texts and template as rendered, whether computed or cached. Utilisation
counts what was computed, against the measured rate of a large matrix product.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import torch
from common import header, median, mib, note, own_peak_mib, table
from gen_models import ANSWERS, NEW_TOKENS, Ours, Talk, Theirs, agree, parser, talk, weights_of
from stream_models import MIB, matmul_peak, memory_mib, memory_name, synchronize


def texts(n: int, most: int, seed: int = 3) -> list[Talk]:
    rng = random.Random(seed)
    return [talk(rng, i % 2 == 1, min(max(round(rng.lognormvariate(1.8, 0.9)), 1), most)) for i in range(n)]


def referred(theirs: Theirs, talks: Sequence[Talk], batch: int) -> float:
    """Seconds of `generate` over all talks, sorted, prompts and responses apart."""
    synchronize(theirs.device)
    start = time.perf_counter()
    for kind, role in (("prompt", "user"), ("response", "assistant")):
        own = [one for one in talks if one[-1]["role"] == role]
        own.sort(key=lambda one: len(one[-1]["content"]))
        for at in range(0, len(own), batch):
            theirs.generate(own[at : at + batch], NEW_TOKENS[kind])
    synchronize(theirs.device)
    return time.perf_counter() - start


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--texts", type=int, default=500)
    args_parser.add_argument("--reference-texts", type=int, help="default: 24 on a CPU, else as many as --texts")
    args_parser.add_argument("--batches", type=int, nargs="+", help="sizes of the reference's padded batches")
    args_parser.add_argument("--most-sentences", type=int, default=60)
    args_parser.add_argument("--runs", type=int, default=1)
    args = args_parser.parse_args()

    header("Gen throughput", "torch", "transformers")
    weights = weights_of(args)
    device = weights.device
    on_gpu = device.type == "cuda"
    if args.quick:
        args.texts, args.most_sentences = min(args.texts, 40), min(args.most_sentences, 10)
    sample = min(args.reference_texts or (args.texts if on_gpu else 24), args.texts)
    batches = [1, *(args.batches or ((16, 64) if on_gpu else (4, 8)))]
    ours = Ours(weights, args.threads)
    loaded = memory_mib(device)
    theirs = Theirs(weights, ours.template)
    talks = texts(args.texts, args.most_sentences)
    lengths = [len(ours.ids(one)) for one in talks]
    ordered = sorted(range(len(talks)), key=lambda i: lengths[i])
    chosen = [ordered[i * len(talks) // sample] for i in range(sample)]
    print(agree(ours, theirs, talks[:6], weights.dtype) + "\n")
    peak = matmul_peak(device, weights.dtype, 256 if args.quick else None)
    print(
        f"{len(talks)} texts of {min(lengths)} to {max(lengths)} tokens with the template, median "
        f"{median(lengths):.0f}, {sum(lengths):,} in all. The reference judges {sample} of them, "
        f"{sum(lengths[i] for i in chosen):,} tokens. Matrix product: {peak / 1e12:.2f} TFLOP/s.\n"
    )

    for name in ANSWERS:  # warm
        ours.answer(name)
        ours.guard.check_batch(talks[:8])
    referred(theirs, [talks[i] for i in chosen[:2]], 1)
    found: dict[str, list[float]] = {}
    computed: dict[str, tuple[int, int]] = {}
    for i in range(args.runs):
        for name in ANSWERS:
            ours.answer(name)
            before = ours.engine.counters.tokens, ours.engine.counters.steps
            synchronize(device)
            start = time.perf_counter()
            ours.guard.check_batch(talks)
            found.setdefault(f"guardkit, {name}", []).append(time.perf_counter() - start)
            after = ours.engine.counters.tokens, ours.engine.counters.steps
            computed[f"guardkit, {name}"] = after[0] - before[0], after[1] - before[1]
            note(f"run {i + 1}: guardkit, {name}: {found[f'guardkit, {name}'][-1]:.1f} s")
        for batch in batches:
            label = "generate, one by one" if batch == 1 else f"generate, batches of {batch}"
            found.setdefault(label, []).append(referred(theirs, [talks[i] for i in chosen], batch))
            note(f"run {i + 1}: {label}: {found[label][-1]:.1f} s")

    def rate(label: str) -> float:
        """Tokens a second."""
        n = sum(lengths) if label in computed else sum(lengths[i] for i in chosen)
        return n / median(found[label])

    best = max(rate(label) for label in found if label not in computed)
    rows = []
    for label, seconds in found.items():
        count = len(talks) if label in computed else sample
        row = [label, f"{count}", f"{median(seconds):,.2f}", f"{count / median(seconds):,.2f}", f"{rate(label):,.0f}"]
        if label in computed:
            tokens, steps = computed[label]
            share = (
                weights.flops(tokens, round(sum(n * n for n in lengths) / sum(lengths) / 2)) / median(seconds) / peak
            )
            row += [f"{tokens:,}", f"{steps:,}", f"{share:.0%}"]
        else:
            row += ["-", "-", "-"]
        rows.append([*row, f"{rate(label) / best:.2f}"])
    print("## Batches\n")
    head = ["", "texts", "seconds", "texts/s", "tokens/s", "computed", "passes", "of the matrix product"]
    table([*head, "times the better generate"], rows)
    most = torch.cuda.max_memory_allocated(device) / MIB if on_gpu else own_peak_mib()
    print(
        f"{memory_name(device)}: {mib(loaded)} with guardkit's model loaded, {mib(memory_mib(device))} at the end, "
        f"{mib(most)} at most (both contenders live in this process). Median of {args.runs} run(s). The answer is "
        "given: random weights say anything (see gen_models.py)."
    )


if __name__ == "__main__":
    main()
