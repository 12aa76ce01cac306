"""How long OpenMP's threads look for work, beside a program that takes a core and without one: milliseconds a step.

    python benchmarks/busy_cpu.py [--spins 1000 4000 16000] [--rounds 2]

0.6B's shape with 7 layers, random weights in bfloat16, all cores, in a process of its own for each setting: torch's
choice, and some values of `GOMP_SPINCOUNT`. They take turns. The other program computes without end, on one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict

from common import header, table

STEPS = {"one token": [(128, 1)], "16 streams, a token each": [(128, 1)] * 16, "8 texts of 64 tokens": [(0, 64)] * 8}
TIMES = {"one token": 40, "16 streams, a token each": 15, "8 texts of 64 tokens": 3}
ENDLESS = "while True: pass"


def worker() -> None:
    import torch
    from stream_models import SIZES

    from guardkit.engine.cache import ContiguousCache, Run, Slot
    from guardkit.engine.qwen3 import Qwen3

    config = SIZES["0.6B"].__class__(**{**vars(SIZES["0.6B"]), "num_hidden_layers": 7, "vocab_size": 1000})
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
        for name, shape in Qwen3.shapes(config).items()
    }
    model, cache = Qwen3.of(config, tensors), ContiguousCache(config, torch.bfloat16, torch.device("cpu"), 1 << 20)
    for name, runs in STEPS.items():
        own, row = [], 0
        for start, n in runs:
            own.append(Run(Slot(), row, start, n))
            cache.reserve(own[-1].slot, start + n)
            row += n
        positions = torch.cat([torch.arange(run.start, run.end) for run in own])
        took = []
        with torch.inference_mode():
            for _ in range(TIMES[name] + 2):
                begun = time.perf_counter()
                cache.begin(own)
                model.forward(torch.zeros(row, dtype=torch.long), positions, cache)
                took.append((time.perf_counter() - begun) * 1e3)
        print(f"{name}\t{statistics.mean(took[2:])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spins", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    header((__doc__ or "").splitlines()[0], "torch")
    found: dict[tuple[str, str, int | None], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for where in ("alone", "beside another program"):
            for spins in (None, *args.spins):
                environ = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
                if spins is not None:
                    environ["GOMP_SPINCOUNT"] = str(spins)
                other = None if where == "alone" else subprocess.Popen([sys.executable, "-c", ENDLESS])
                try:
                    run = [sys.executable, __file__, "--worker"]
                    told = subprocess.run(run, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
                finally:
                    if other is not None:
                        other.kill()
                        other.wait()
                for line in told.splitlines():
                    name, ms = line.split("\t")
                    found[where, name, spins].append(float(ms))
    rows = [
        (where, name, *(f"{statistics.median(found[where, name, spins]):.1f}" for spins in (None, *args.spins)))
        for where in ("beside another program", "alone")
        for name in STEPS
    ]
    table(("", "ms a step", "torch's choice", *(f"GOMP_SPINCOUNT={n}" for n in args.spins)), rows)


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        worker()
    else:
        main()
