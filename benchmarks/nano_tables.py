"""The tables of the embedded model in docs/performance.md, all in one go: cold start, logs, streams, callers at once.

    python benchmarks/nano_tables.py [--quick] > report.md

Runs `cold_start.py`, `log_throughput.py`, `stream_latency.py` and `load_curve.py` one after another with the arguments
that the document names, each with its own header (hardware, date, load). About a quarter of an hour on two quiet cores;
`--quick` takes a few minutes and is for trying. To be run after new weights, on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from common import note

FULL = (
    "cold_start.py --runs 11",
    "log_throughput.py --distinct-lines 10000 --lines 400000 --runs 1",
    "stream_latency.py --feeds words --runs 1",
    "load_curve.py --seconds 6",
    "load_curve.py --seconds 6 --callers 1 8 64 512 --tasks",
    "load_curve.py --seconds 6 --callers 1 8 64 512 --deadline 1",
)
QUICK = (
    "cold_start.py --runs 3",
    "log_throughput.py --distinct-lines 1000 --lines 20000 --runs 1",
    "stream_latency.py --feeds words --runs 1 --lengths 100 1000 --thread-tokens 100 --reference-every 100",
    "load_curve.py --seconds 3 --callers 1 8 64",
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="smaller, to try it")
    arguments.add_argument("--torch-python", metavar="PATH", help="passed on to cold_start.py")
    args = arguments.parse_args()
    folder = Path(__file__).parent
    failed = []
    for command in QUICK if args.quick else FULL:
        script, *options = command.split()
        if args.torch_python and script == "cold_start.py":
            options += ["--torch-python", args.torch_python]
        note(f"== {command}")
        if subprocess.run([sys.executable, str(folder / script), *options], check=False).returncode:
            failed.append(command)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
