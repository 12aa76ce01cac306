"""What labelling at scale costs and where the bottleneck is: stage times measured here, a cluster simulated with them.

    python benchmarks/label_scale.py [--documents 1000000000] [--tokens 600] [--rows 2000] [--model nano|fake]

Three parts:

1. Stage times, measured on this machine: reading and taking records apart, judging (nano), keeping labels, writing the
   output; a row each, and the tokens and bytes of a row.
2. Cost of --documents documents: core hours on nano by the measured rate; GPU hours of Qwen3Guard-Gen by a roofline:
   2 FLOP a parameter and token at --mfu of a GPU's peak, which is COMPUTED and was not measured. --prompt tokens of
   Gen's own template come on top of each document, unless they are shared.
3. A simulation of the scheduler of `--engine ray`: workers that pull ranges of rows, share the network, are started one
   after the other and die at random (a range is then done again from its last block). It says how long the job takes,
   how busy workers are, and what they wait for; beside it what the simple division says.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from common import header, note, table
from label_throughput import load, write

GPUS = {"H100 SXM, bf16": 989e12, "A100, bf16": 312e12, "L4, bf16": 121e12}  # dense peak FLOP/s, by their data sheets
MODELS = {"Qwen3Guard-Gen-0.6B": 0.6e9, "Qwen3Guard-Gen-4B": 4.0e9}  # parameters that a token passes


@dataclass(frozen=True)
class Stages:
    """Seconds of one core for a row of each stage; what a row holds."""

    read: float
    judge: float
    keep: float
    write: float
    tokens: float
    bytes: float

    @property
    def around(self) -> float:
        """All but judging."""
        return self.read + self.keep + self.write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, default=1e9)
    parser.add_argument("--tokens", type=float, default=600, help="of a document")
    parser.add_argument("--prompt", type=float, default=0, help="tokens of Gen's template that are not shared")
    parser.add_argument("--rows", type=int, default=2000, help="that stages are measured on")
    parser.add_argument("--model", choices=["nano", "fake"], default="nano")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of a GPU's peak that is reached; assumed")
    parser.add_argument("--core-hour", type=float, default=0.04, help="its price; assumed")
    parser.add_argument("--gpu-hour", type=float, default=2.5, help="its price; assumed")
    parser.add_argument("--network", type=float, default=1.25e9, help="bytes a second that all workers share")
    options = parser.parse_args()
    header("Labelling at scale", "pyarrow")
    stages = measured(options.rows, options.model)
    shown = [("read and take apart", stages.read), ("judge", stages.judge), ("keep labels", stages.keep)]
    shown.append(("write the output", stages.write))
    table(
        ["stage", "µs a row", "share"],
        [[n, f"{1e6 * s:,.1f}", f"{s / sum(x for _, x in shown):.1%}"] for n, s in shown],
    )
    print(f"A row: {stages.tokens:,.0f} tokens of the model, {stages.bytes:,.0f} bytes.\n")
    scale = options.tokens / max(stages.tokens, 1.0)
    document = Stages(
        stages.read * scale,
        stages.judge * scale,
        stages.keep,
        stages.write * scale,
        options.tokens,
        stages.bytes * scale,
    )
    costs(options, document)
    simulate_all(options, document)
    return 0


# --------------------------------------------------------------------------------------------------------- measured


def measured(n_rows: int, model: str) -> Stages:
    """Stage times on this machine, in CPU seconds of one core: what other work takes from it does not count."""
    from guardkit.labelling.inputs import find
    from guardkit.labelling.jobs import Place, Settings, jobs_of
    from guardkit.labelling.judging import Judge
    from guardkit.labelling.output import write_output
    from guardkit.labelling.progress import Block

    guard = load(model, threads=1)  # more of them spin while they wait
    with tempfile.TemporaryDirectory(prefix="guardkit-scale-") as folder:
        path = Path(folder) / "in.jsonl"
        write(path, n_rows, n_rows, 3)
        inputs = find([str(path)]).inputs
        place = Place.of(str(Path(folder) / "out.jsonl"), inputs)
        (job,) = jobs_of(inputs, place, None)
        settings, judge = Settings(), Judge([guard])
        about = job.given.about(path)
        job.progress.begin(about)
        first = next(iter(job.given.units(path, "guardkit")))
        judge.labels(first.rows(settings.reading, range(64)))
        judge.forget()
        times = [time.process_time()]
        units = job.given.units(path, "guardkit")
        rows = [row for unit in units for row in unit.rows(settings.reading, range(len(unit)))]
        times.append(time.process_time())
        labels = [one for at in range(0, n_rows, 1024) for one in judge.encoded(rows[at : at + 1024])]
        times.append(time.process_time())
        kept = [(row.index, row.form, data) for row, (_, data) in zip(rows, labels, strict=True)]
        job.progress.add(Block(0, n_rows), kept)
        times.append(time.process_time())
        write_output(job, path, about, place, None, settings)
        times.append(time.process_time())
        read, judged, keep, written = ((b - a) / n_rows for a, b in pairwise(times))
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        tokens = sum(len(guard.model.tokenizer.encode(text)[0]) for text in texts) / n_rows
        note(f"judging: {judged * n_rows:.2f} core seconds")
        return Stages(read, judged, keep, written, tokens, path.stat().st_size / n_rows)


# ------------------------------------------------------------------------------------------------------------- cost


def costs(options: argparse.Namespace, document: Stages) -> None:
    n = options.documents
    core_h = n * (document.judge + document.around) / 3600
    rows = [
        ["nano", "cores", f"{core_h:,.0f} core hours", f"{core_h * options.core_hour:,.0f}", "measured rate, scaled"]
    ]
    tokens = n * (options.tokens + options.prompt)
    for model, parameters in MODELS.items():
        for gpu, peak in GPUS.items():
            hours = 2 * parameters * tokens / (peak * options.mfu) / 3600
            price = f"{hours * options.gpu_hour:,.0f}"
            rows.append([model, gpu, f"{hours:,.0f} GPU hours", price, f"COMPUTED: {options.mfu:.0%} of the peak"])
    print(f"{n:,.0f} documents of {options.tokens:,.0f} tokens; prices are assumed: {options.core_hour:g} a core hour,")
    print(f"{options.gpu_hour:g} a GPU hour, whichever GPU.\n")
    table(["guard", "on", "time", "cost", "from"], rows)
    rows = []
    for model, parameters in MODELS.items():
        rate = GPUS["H100 SXM, bf16"] * options.mfu / (2 * parameters * (options.tokens + options.prompt))
        rows.append([model, f"{rate:,.0f}", f"{rate * document.around:,.1f}", f"{rate * document.bytes / 1e6:,.1f}"])
    print("What one H100 (COMPUTED, as above) asks of the rest: cores that read and write beside it, and bytes.\n")
    table(["guard", "documents/s", "cores for reading and writing", "MB/s read"], rows)


# ------------------------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True)
class Outcome:
    seconds: float
    busy: float
    waiting: float
    redone: float


def simulate(
    n_rows: float,
    workers: int,
    row_s: float,
    row_bytes: float,
    network: float,
    *,
    split: int = 32_768,
    start_s: float = 30.0,
    mean_life_s: float = 4 * 3600.0,
    block_s: float = 10.0,
    seed: int = 1,
) -> Outcome:
    """Workers that pull ranges. Each range is read over a network that those who read share evenly, and judged; a
    worker dies after a random time, loses at most a block, and comes back after its start. busy, waiting: shares of the
    workers' time spent judging, and waiting for the network."""
    rng = random.Random(seed)
    left = max(1, round(n_rows / split))
    rows = n_rows / left
    free: list[tuple[float, int]] = [(rng.uniform(0, start_s) + start_s, w) for w in range(workers)]
    heapq.heapify(free)
    dies = [at + rng.expovariate(1 / mean_life_s) for at, _ in sorted(free, key=lambda x: x[1])]
    busy = waiting = redone = end = 0.0
    while left:
        now, worker = heapq.heappop(free)
        left -= 1
        judging = rows * row_s
        reading = rows * row_bytes * workers / network  # at a fair share, where all read at once
        took = max(reading, judging)  # a thread reads ahead
        waiting += max(0.0, reading - judging)
        busy += judging
        done = now + took
        while dies[worker] < done:
            lost = min(block_s, max(0.0, dies[worker] - now))
            redone += lost
            done += lost + start_s
            dies[worker] += start_s + rng.expovariate(1 / mean_life_s)
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    whole = workers * end
    return Outcome(end, busy / whole, waiting / whole, redone / max(busy, 1e-9))


def simulate_all(options: argparse.Namespace, document: Stages) -> None:
    n = options.documents
    print("The scheduler, simulated: ranges of 32,768 rows, workers start within a minute and live 4 hours on average,")
    print(f'all of them share {options.network / 1e9:g} GB/s. "Divided": rows by workers, nothing else.\n')
    rows = []
    cases: list[tuple[str, float, tuple[int, ...]]] = [
        ("nano, a core each", document.judge + document.around, (64, 1024, 16384)),
    ]
    for model, parameters in MODELS.items():
        per_row = 2 * parameters * (options.tokens + options.prompt) / (GPUS["H100 SXM, bf16"] * options.mfu)
        cases.append((f"{model}, an H100 each (COMPUTED)", per_row, (8, 64, 512)))
    for name, per_row, sizes in cases:
        for workers in sizes:
            found = simulate(n, workers, per_row, document.bytes, options.network)
            divided = n * per_row / workers
            rows.append(
                [
                    *(name, f"{workers:,}", f"{divided / 3600:,.1f}", f"{found.seconds / 3600:,.1f}"),
                    *(f"{found.busy:.0%}", f"{found.waiting:.0%}", f"{found.redone:.2%}"),
                ]
            )
    table(["guard", "workers", "divided, h", "simulated, h", "busy", "waits for the network", "judged twice"], rows)


if __name__ == "__main__":
    sys.exit(main())
