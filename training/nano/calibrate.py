"""Fit nano's temperatures and choose its thresholds, on the dev split alone.

    python training/nano/calibrate.py --work WORK --model guardkit/models/nano

Runs the exported graph over WORK/dev.jsonl.gz and writes MODEL/calibration.json. Temperatures minimise the
cross-entropy. Thresholds are chosen on rows that look like what a guard is asked about (not in `SOCIAL` or `EASY`: social-media
sets and templates are left out), each dev source weighing the same for its class: "unsafe" maximises F1 under a bound on the false
positives among benign rows, "flagged" (unsafe or controversial) does the same under a wider one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from guardkit.messages import Message  # noqa: E402
from guardkit.models.base import Query, Tokens  # noqa: E402
from guardkit.models.nano.model import Nano  # noqa: E402
from guardkit.verdict import Stage  # noqa: E402

SEVERITY = {"safe": 0, "controversial": 1, "unsafe": 2}
SOCIAL = ("davidson_hate", "told_br", "mlma_hate", "cold", "korean_hate_kocohub", "germeval2018", "paradetox",
          "toxic_spans_civil", "square_ko_en", "sghatecheck", "multilingual_hatecheck", "kosbi_ko_en", "safetext",
          "convabuse", "benign_sib200_multilingual", "benign_exams_questions", "benign_xquad", "harmfulqa",
          "latent_jailbreak_responses", "benign_bbq_sample")  # fmt: skip
# No prompt of these is ever flagged: they say nothing about false positives, and would dilute their bound.
EASY = ("synthetic_", "benign_codealpaca", "benign_gpteacher", "benign_seed_tasks", "cyberseceval_frr_benign")
# The most benign rows that may be called "unsafe", and "unsafe or controversial".
BOUNDS = {"query": (0.06, 0.10), "response": (0.06, 0.10)}


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    def loss(t: float) -> float:
        z = logits / t
        z = z - z.max(1, keepdims=True)
        return float(-(z[np.arange(len(z)), labels] - np.log(np.exp(z).sum(1))).mean())

    return float(minimize_scalar(loss, bounds=(0.3, 5.0), method="bounded").x)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def ece(p: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the likeliest class."""
    top, right = p.max(1), p.argmax(1) == labels
    at = np.minimum((top * bins).astype(int), bins - 1)
    return float(sum(abs(top[at == b].mean() - right[at == b].mean()) * (at == b).mean() for b in set(at)))


def choose(
    score: np.ndarray, positive: np.ndarray, weight: np.ndarray, most_false: float
) -> tuple[float, float, float]:
    """The threshold with the best weighted F1 whose weighted false-positive rate is at most `most_false`."""
    best = (0.99, 0.0, 0.0)
    for t in np.arange(0.05, 0.97, 0.01):
        hit = score >= t
        tp, fp, fn = (weight[m].sum() for m in (hit & positive, hit & ~positive, ~hit & positive))
        false = fp / weight[~positive].sum()
        f1 = 2 * tp / (2 * tp + fp + fn)
        if false <= most_false and f1 > best[1]:
            best = (round(float(t), 2), float(f1), float(false))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    target = args.model / "calibration.json"
    stages = ("prompt", "tool_output", "document", "response", "reasoning", "tool_call")
    neutral = {"unsafe": 0.5, "flagged": 0.5}
    raw = {"temperature": {"query": 1.0, "response": 1.0}, "thresholds": dict.fromkeys(stages, neutral)}
    target.write_text(json.dumps(raw))
    nano = Nano(args.model)
    with gzip.open(args.work / "dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [r for r in map(json.loads, lines) if r["severity"] and not r["source"].startswith("translated_")]
    result: dict[str, dict] = {"temperature": {}, "thresholds": {}}
    for side in ("query", "response"):
        mine = [r for r in rows if (r["kind"] == "prompt") == (side == "query")]
        labels = np.array([SEVERITY[r["severity"]] for r in mine])
        if side == "query":
            windows = nano.query([Query(r["prompt"]) for r in mine])
            tokens = [min((w.scores.severity for w in found), key=lambda p: p[0, 0]) for found in windows]
        else:
            sessions = [nano.open([Message("user", r["prompt"])] if r["prompt"] else []) for r in mine]
            ids = [nano.tokenizer.encode(r["response"][:20000])[0] for r in mine]
            keep = [i for i, x in enumerate(ids) if x]
            mine, labels = [mine[i] for i in keep], labels[keep]
            found = nano.append_batch([(sessions[i], Tokens(Stage.response, ids[i])) for i in keep])
            tokens = [f.severity for f in found]
        last = np.log(np.stack([t[-1] for t in tokens]) + 1e-12)
        temperature = fit_temperature(last, labels)
        before, after = ece(softmax(last), labels), ece(softmax(last / temperature), labels)
        result["temperature"][side] = round(temperature, 3)
        print(f"{side}: temperature {temperature:.3f}, ECE {before:.4f} -> {after:.4f} on {len(labels)} dev rows")
        cooled = [softmax(np.log(t + 1e-12) / temperature) for t in tokens]
        like = np.array(
            [r["source"] not in SOCIAL and not (side == "query" and r["source"].startswith(EASY)) for r in mine]
        )
        for name, column, positive, bound in (
            ("unsafe", [c[:, 2] for c in cooled], labels == 2, BOUNDS[side][0]),
            ("flagged", [1 - c[:, 0] for c in cooled], labels > 0, BOUNDS[side][1]),
        ):
            # A response is flagged where two tokens in a row are; a query has one position.
            score = np.array([np.minimum(c[1:], c[:-1]).max() if len(c) > 1 else c[0] for c in column])
            use = like & ((labels != 1) | (name == "flagged"))
            share = Counter((r["source"], bool(p)) for r, p, u in zip(mine, positive, use, strict=True) if u)
            weight = np.array([1 / share[r["source"], bool(p)] ** 0.5 if u else 0.0 for r, p, u in zip(mine, positive, use, strict=True)])  # fmt: skip
            t, f1, false = choose(score[use], positive[use], weight[use], bound)
            print(f"  {name}: threshold {t}, F1 {f1:.3f}, false positives {false:.3f} on {use.sum()} rows")
            for stage in stages[:3] if side == "query" else stages[3:]:
                result["thresholds"].setdefault(stage, {})[name] = t
    for limits in result["thresholds"].values():
        limits["flagged"] = min(limits["flagged"], limits["unsafe"])
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
