"""Cold start: `echo hi | guard check` as a whole process, beside `import torch` and a bare interpreter.

    python benchmarks/cold_start.py [--runs 21] [--torch-python PATH]

The commands take turns, so that a change in the machine's speed meets all of them. Files are in the page cache
(two runs of each are thrown away). Goal: guard under 0.4 of `import torch`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import Ran, check_guard, guard_command, header, median, mib, note, peak_of, percentile, run, table

GOAL = 0.4
WARM_UPS = 2


def torch_version(python: str) -> str | None:
    """The version of torch that `python` imports; None where it has none."""
    code = "import sys, torch; print(torch.__version__, 'on Python', sys.version.split()[0])"
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(f"--torch-python {python}: {error.strerror}")
    return asked.stdout.strip() if asked.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21, help="runs of each command (default 21)")
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable, help="an interpreter with torch")
    args = parser.parse_args()

    header("Cold start")
    guard = guard_command("check")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import onnxruntime'": [sys.executable, "-c", "import onnxruntime"],
        "echo hi \\| guard check": guard,
    }
    torch = torch_version(args.torch_python)
    if torch:
        commands["python -c 'import torch'"] = [args.torch_python, "-c", "import torch"]
        print(f"`guard` is {guard[0]}. torch is {torch} ({args.torch_python}).")
    else:
        print(
            f"SKIPPED: `import torch`: {args.torch_python} has no torch. Pass --torch-python PATH for one that has, or "
            "pip install torch."
        )
    print(f"Medians of {args.runs} interleaved runs, after {WARM_UPS} that do not count.\n", flush=True)

    ran: dict[str, list[Ran]] = {name: [] for name in commands}
    names = list(commands)
    for i in range(WARM_UPS + args.runs):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            one = run(commands[name], b"hi\n")
            if commands[name] is guard:
                check_guard(one.code, one.stderr)
            elif one.code:
                sys.exit(f"{name} failed:\n{one.stderr[-2000:]}")
            if i >= WARM_UPS:
                ran[name].append(one)
        if i >= WARM_UPS:
            note(f"run {i - WARM_UPS + 1} of {args.runs}")

    wall = {name: median([r.seconds for r in runs]) for name, runs in ran.items()}
    table(
        ["command", "median ms", "p95 ms", "least ms", "median CPU ms", "of import torch", "peak MiB"],
        [
            [
                f"`{name}`",
                f"{wall[name] * 1e3:,.0f}",
                f"{percentile([r.seconds for r in runs], 95) * 1e3:,.0f}",
                f"{min(r.seconds for r in runs) * 1e3:,.0f}",
                f"{median([r.cpu_s for r in runs]) * 1e3:,.0f}",
                f"{wall[name] / wall[names[-1]]:.2f}" if torch else "-",
                mib(peak_of(commands[name], b"hi\n")),
            ]
            for name, runs in ran.items()
        ],
    )
    if torch:
        ratio = wall[names[2]] / wall[names[-1]]
        print(f"guard check takes {ratio:.2f} of `import torch` (goal: under {GOAL}).")


if __name__ == "__main__":
    main()
