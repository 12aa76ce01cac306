"""Fit nano's early way out, the evidence of harm in single tokens (see guardkit/models/nano/screen.py).

    python training/nano/screen.py --work WORK --model guardkit/models/nano

After calibrate.py: a logistic regression with weights that are not negative over the tokens of the training prompts,
whole and in records of logs. The limit is the greatest sum at which, of the dev prompts that the network flags, no more
than `LOST` are settled. Writes MODEL/screen.npy and the limit into MODEL/calibration.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parent))
from train import Frames, example, load, wraps

from guardkit.models.base import Query  # on the path through train.py
from guardkit.models.nano.model import Nano
from guardkit.verdict import Stage

LOST = 0.005  # of what the network flags, at the most
SEEN = 12  # harmless texts with a token, at the least: below, nothing is known of it
STEP = 32  # a weight's unit is 1 / STEP


def matrix(rows: list[list[int]], size: int) -> sp.csr_matrix:
    """Which tokens stand in which text."""
    distinct = [sorted(set(row)) for row in rows]
    ends = np.cumsum([0, *map(len, distinct)])
    columns = np.concatenate([np.array(row, np.int32) for row in distinct])
    return sp.csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=(len(rows), size))


def fit(x: sp.csr_matrix, y: np.ndarray, rounds: int = 250, rate: float = 0.05, decay: float = 2e-6) -> np.ndarray:
    """Weights >= 0 of a logistic regression (Adam; what falls below zero is set to it)."""
    w, first, second, bias = np.zeros(x.shape[1], np.float32), 0.0, 0.0, -2.0
    xt = x.T.tocsr()
    share = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean())) / len(y)
    for step in range(1, rounds + 1):
        error = (1 / (1 + np.exp(-(bias + x @ w))) - y) * share
        grad = xt @ error + decay * (w > 0)
        first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad**2
        w = np.maximum(0, w - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8))
        bias -= 2.0 * error.sum()
    return np.asarray(w, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=80000, help="training prompts that are used, at the most")
    args = parser.parse_args()
    nano = Nano(args.model, exact=True)
    rng = random.Random(0)
    rows = [r for r in load(args.work / "train.jsonl.gz", nano.tokenizer, args.rows) if r.query and r.severity >= 0]
    frames = Frames(wraps(nano.tokenizer, rng), [r.text for r in rows if r.severity == 0 and len(r.text) > 4])
    shown = [(e.ids, r.severity > 0) for r in rows if (e := example(r, nano.window, rng, frames))]
    x, y = matrix([ids for ids, _ in shown], nano.tokenizer.size), np.array([bad for _, bad in shown])
    weights = np.minimum(np.ceil(fit(x, y) * STEP), 254)
    weights[np.asarray(x[~y].sum(0)).ravel() < SEEN] = 255
    table = weights.astype(np.uint8)

    with_text = [json.loads(line) for line in _lines(args.work / "dev.jsonl.gz")]
    texts = [r["prompt"] for r in with_text if r["kind"] == "prompt" and r["severity"]]
    severity = [max(nano.severities(w.scores.severity, Stage.prompt)[0] for w in found) for found in nano.query([Query(t) for t in texts])]  # fmt: skip
    flagged = np.array(severity) > 0
    # The worst window of a long text is unknown here: the whole text's sum is more, so the limit is on the safe side
    # for one that is short, and a long one is seldom settled anyway.
    sums = np.array([int(table[np.array(nano.tokenizer.encode(t)[0], np.int32)].sum(dtype=np.int64)) for t in texts])
    bad = np.sort(sums[flagged])
    limit = int(bad[int(LOST * len(bad))]) - 1
    settled = sums <= limit
    print(
        f"limit {limit}: settles {settled[~flagged].mean():.1%} of the {int((~flagged).sum())} dev prompts that the network"
        f" passes, and {settled[flagged].mean():.2%} of the {int(flagged.sum())} that it flags"
    )
    np.save(args.model / "screen.npy", table)
    target = args.model / "calibration.json"
    calibration = json.loads(target.read_text())
    calibration["screen"] = {"limit": limit, "safe": round(1 - max(float((settled & flagged).sum() / max(settled.sum(), 1)), 0.001), 4)}  # fmt: skip
    target.write_text(json.dumps(calibration, indent=2) + "\n")


def _lines(path: Path) -> list[str]:
    import gzip

    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return list(lines)


if __name__ == "__main__":
    main()
