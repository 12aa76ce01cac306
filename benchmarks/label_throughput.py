"""Rows per second of `guard label` beside `check_batch`, its memory, and what kills do to it.

    python benchmarks/label_throughput.py [--rows 20000] [--runs 3] [--model nano|fake]
    python benchmarks/label_throughput.py --kills 10 --rows 1000000 --distinct 2000

Without --kills: texts are judged by `Guard.check_batch`, 1,024 at a time, and by the local engine from a file to a
file; in one process, by turns, so that both meet the same load. Each turn has texts of its own, since nano remembers
what it judged. Beside the time stands CPU time, which feels the load of other work less. Goal: at least 90% of
`check_batch`. Memory is this process's own, at a tenth of the rows, at the end, and at most.

With --kills: the same file is labelled by `guard label`, left alone once, and once killed (SIGKILL) at that many random
points; the outputs must be equal, byte for byte. --distinct: how many different texts there are; the rest repeat them.
With --ray the rows also go through two actors on a local cluster (needs the ray extra), a tenth of them first, so that
what starting the actors takes does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Watch, guard_command, header, median, mib, note, question, rss_mib, table

BATCH = 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--distinct", type=int, help="different texts; default: all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", choices=["nano", "fake"], default="nano")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    header("guard label", "pyarrow", "ray")
    with tempfile.TemporaryDirectory(prefix="guardkit-label-") as folder:
        if options.kills:
            source = Path(folder) / "in.jsonl"
            write(source, options.rows, options.distinct or options.rows, options.seed)
            note(f"{options.rows:,} rows, {source.stat().st_size / 2**20:,.1f} MiB")
            return kills(source, Path(folder), options)
        throughput(Path(folder), options)
    return 0


def write(path: Path, rows: int, distinct: int, seed: int) -> list[str]:
    """Rows of harmless texts with an id; all of one length or so; no text in two files of other seeds. Gives the text
    of each row."""
    rng = random.Random(seed)
    known = [f"{question(rng)} ({seed}-{i})" for i in range(distinct)]
    texts = known if distinct == rows else rng.choices(known, k=rows)
    with path.open("w", encoding="utf-8") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"id": i, "text": text}) + "\n")
    return texts


def load(model: str, **settings: Any) -> Any:
    if model == "fake":
        from guardkit.testing import FakeGuard

        return FakeGuard({"bomb": "unsafe"})
    from guardkit import Guard

    return Guard.load(model, **settings)


# ------------------------------------------------------------------------------------------------------- throughput


class Clock:
    """Seconds since it was made, of the wall and of all CPUs that this process had."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def per_row(self, rows: int) -> tuple[float, float]:
        return (time.perf_counter() - self._wall) / rows, (time.process_time() - self._cpu) / rows


def throughput(folder: Path, options: argparse.Namespace) -> None:
    from guardkit.labelling.inputs import find
    from guardkit.labelling.jobs import Place, Settings, jobs_of
    from guardkit.labelling.judging import Judge
    from guardkit.labelling.run import Run

    guard = load(options.model)
    rows, distinct = options.rows, options.distinct or options.rows
    guard.check_batch(write(folder / "warm.jsonl", 256, 256, 0))
    by_check: list[tuple[float, float]] = []
    by_label: list[tuple[float, float]] = []
    memory: list[float] = []
    tenth, seen = 0.0, 0

    def told(_: object, found: Any) -> None:
        nonlocal tenth, seen
        seen += found.rows
        memory.append(rss_mib() or 0.0)
        if not tenth and seen >= rows / 10:
            tenth = memory[-1]

    for run in range(options.runs):
        texts = write(folder / "check.jsonl", rows, distinct, options.seed + 2 * run)
        clock = Clock()
        for at in range(0, rows, BATCH):
            guard.check_batch(texts[at : at + BATCH])
        by_check.append(clock.per_row(rows))
        del texts
        source = folder / f"label-{run}.jsonl"
        write(source, rows, distinct, options.seed + 2 * run + 1)
        clock = Clock()
        inputs = find([str(source)]).inputs
        place = Place.of(str(folder / f"out-{run}.jsonl"), inputs)
        Run(jobs_of(inputs, place, None), place, Judge([guard]), Settings(), told=told).run()
        by_label.append(clock.per_row(rows))
        check, label = by_check[-1], by_label[-1]
        note(
            f"run {run + 1}: check_batch {1 / check[0]:,.0f}/s, guard label {1 / label[0]:,.0f}/s "
            f"({check[0] / label[0]:.0%}, by CPU time {check[1] / label[1]:.0%})"
        )
    ways = [("`check_batch`", by_check), ("`guard label`, file to file", by_label)]
    if options.ray:
        ways.append(("`--engine ray`, 2 actors", [by_ray(folder, options)]))
    usual = [median([took[kind] for took in by_check]) for kind in (0, 1)]
    shown = []
    for way, took in ways:
        wall, cpu = (median([one[kind] for one in took]) for kind in (0, 1))
        # What Ray's processes take is not this one's CPU time.
        by_cpu = [f"{1e6 * cpu:,.0f}", f"{usual[1] / cpu:.0%}"] if took in (by_check, by_label) else ["", ""]
        shown.append([way, f"{1 / wall:,.0f}", f"{1e6 * wall:,.0f}", f"{usual[0] / wall:.0%}", *by_cpu])
    table(["way", "rows/s", "µs a row", "of check_batch", "CPU µs a row", "of check_batch"], shown)
    peak = max(memory, default=0.0)
    table(["memory, MiB", "at a tenth", "at most", "at the end"], [["", mib(tenth), mib(peak), mib(rss_mib())]])


def by_ray(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds a row on two actors, without what starting them takes: by the difference of two runs. (No CPU time: it is
    that of other processes.)"""
    from guardkit.labelling import Labeller
    from guardkit.labelling.inputs import find
    from guardkit.labelling.jobs import Place, Settings, jobs_of
    from guardkit.labelling.ray_engine import RayOptions, RayRun

    labeller = Labeller(load("fake")) if options.model == "fake" else Labeller("nano", threads=1)
    sizes = (options.rows // 10, options.rows)
    took = []
    for number, rows in enumerate(sizes):
        source = folder / f"ray-{number}.jsonl"
        distinct = min(options.distinct or rows, rows)
        write(source, rows, distinct, options.seed + 2 * options.runs + number)
        inputs = find([str(source)]).inputs
        place = Place.of(str(folder / f"out-ray-{number}.jsonl"), inputs)
        split = RayOptions(actors=(2, 2), split_rows=max(rows // 8, 1024))
        run = RayRun(jobs_of(inputs, place, None), place, labeller, Settings(), split)
        run.judged_by(lambda made: made.judge.names)  # the cluster is up
        start = time.perf_counter()
        run.run()
        took.append(time.perf_counter() - start)
    per_row = (took[1] - took[0]) / (sizes[1] - sizes[0])
    note(f"ray: {took[0]:,.1f} s for {sizes[0]:,} rows, {took[1]:,.1f} s for {sizes[1]:,}")
    return max(per_row, 1e-9), 0.0


# ------------------------------------------------------------------------------------------------------------ kills


def kills(source: Path, folder: Path, options: argparse.Namespace) -> int:
    rng = random.Random(options.seed)
    alone, killed = folder / "alone.jsonl", folder / "killed.jsonl"
    start = time.perf_counter()
    process = started(source, alone, options.model)
    watch = Watch(process.pid)
    said = process.communicate()[1]
    watch.stop()
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"the run that was left alone ended with {process.returncode}:\n{said[-2000:]}")
    note(f"left alone: {seconds:,.0f} s, at most {mib(watch.peak)} MiB")
    n_kills, total = 0, 0.0
    peak = 0.0
    while True:
        begun = time.perf_counter()
        process = started(source, killed, options.model)
        watch = Watch(process.pid)
        if n_kills < options.kills:
            # Wherever it is by then: starting, judging, writing. All kills fall within one run's time.
            wait = rng.uniform(0.2, 1.8) * seconds / (options.kills + 1)
            try:
                process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                n_kills += 1
        process.communicate()
        watch.stop()
        total += time.perf_counter() - begun
        peak = max(peak, watch.peak or 0.0)
        if process.returncode == 0:
            break
    equal = same(alone, killed)
    table(
        ["rows", "distinct", "kills", "alone, s", "killed, s in all", "memory at most, MiB", "output equal"],
        [
            [
                f"{options.rows:,}",
                f"{options.distinct or options.rows:,}",
                str(n_kills),
                f"{seconds:,.0f}",
                f"{total:,.0f}",
                f"{mib(watch.peak)} ({mib(peak)})",
                "yes" if equal else "NO",
            ]
        ],
    )
    return 0 if equal else 1


PROGRAM = """
import sys
from guardkit.testing import FakeGuard
from guardkit_cli import loading, main
if sys.argv.pop(1) == "fake":
    loading.load_guard = lambda model, **_: FakeGuard({"bomb": "unsafe"})
main()
"""


def started(source: Path, out: Path, model: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, model, "label", str(source), "--out", str(out)]
    if model == "nano":
        command = guard_command("label", str(source), "--out", str(out))
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def same(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while True:
            a, b = first.read(1 << 20), second.read(1 << 20)
            if a != b:
                return False
            if not a:
                return True


if __name__ == "__main__":
    sys.exit(main())
