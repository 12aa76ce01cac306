"""Fit nano's temperatures and choose its thresholds, on the dev split alone.

    python training/nano/calibrate.py --work WORK --model guardkit/models/nano --data DATA

Runs the exported graph over WORK/dev.jsonl.gz and writes MODEL/calibration.json. Temperatures minimise the
cross-entropy. Thresholds are chosen on rows that look like what a guard is asked about (not in `SOCIAL` or `EASY`:
social-media sets and templates are left out), each dev source weighing the same for its class: the one with the best F1
under two bounds, on the false positives among ordinary benign rows and, apart from them, among look-alikes that were
written to be hard (`HARD`), so that neither kind uses up the other's. "unsafe" and "flagged" (unsafe or controversial)
have bounds of their own. The thresholds are those of English; every other group of languages gets a shift of the
logit of "safe", which puts its own threshold, chosen by the same rule and drawn towards that of all of them together, on
the English one. Of queries it is then lowered as far as harmless text in each of its languages, ordinary rows and hard
ones allow (`lowered`): dev rows are of the sources that were trained on and are found at any threshold, others are not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))
from evaluate import harmless  # noqa: E402

from guardkit.messages import Message  # noqa: E402
from guardkit.models.base import Append, Query, Tokens  # noqa: E402
from guardkit.models.nano.calibration import GROUPS  # noqa: E402
from guardkit.models.nano.model import Nano  # noqa: E402
from guardkit.runner import run  # noqa: E402
from guardkit.verdict import Stage  # noqa: E402

SEVERITY = {"safe": 0, "controversial": 1, "unsafe": 2}
SOCIAL = ("davidson_hate", "told_br", "mlma_hate", "cold", "korean_hate_kocohub", "germeval2018", "paradetox",
          "toxic_spans_civil", "square_ko_en", "sghatecheck", "multilingual_hatecheck", "kosbi_ko_en", "safetext",
          "convabuse", "benign_sib200_multilingual", "benign_exams_questions", "benign_xquad", "harmfulqa",
          "latent_jailbreak_responses", "benign_bbq_sample", "cyberseceval_prompt_injection_unlabelled")  # fmt: skip
# No prompt of these is ever flagged: they say nothing about false positives, and would dilute their bound.
EASY = ("synthetic_", "benign_codealpaca", "benign_gpteacher", "benign_seed_tasks", "cyberseceval_frr_benign")
HARD = ("pairs", "coconot_prompts", "cyberseceval_frr_benign", "synthetic_contrast", "answers")
# The most ordinary rows, and the most hard ones, that may be called "unsafe", and "unsafe or controversial".
BOUNDS = {
    "query": {"unsafe": (0.05, 0.18), "flagged": (0.12, 0.30)},
    "response": {"unsafe": (0.06, 0.20), "flagged": (0.15, 0.30)},
}
OTHER_LANGUAGES = (0.03, 0.25)  # the same for "flagged" outside English: what is ordinary there is plainly harmless
# Of plainly harmless text in each language, of ordinary rows and of hard ones, the most that a lowered threshold may flag.
# A group has few of the last two: as if PRIOR rows more had been looked at, of which these shares are flagged.
LOWERED, PRIOR, PRIOR_FLAGGED, FEWEST_PLAIN, STEP = (0.03, 0.07, 0.25), 10, (0.05, 0.2), 30, 0.25
HARMLESS, HARMLESS_EACH = "benign_sib200_multilingual", 70  # sentences that were not trained on, of each language
PLAIN = ("benign_xquad", "benign_sib200_multilingual", "benign_exams_questions")  # harmless text, for other languages
# A group's own threshold, from so many rows of either kind on; it counts as its rows, and that of all other languages
# together as LEAST rows.
FEWEST, LEAST = 15, 40
# Threats and encouragement in answers: their words alone can be a quotation or a story, so that they lean to
# "controversial". Their own limit of "unsafe" may add so many false positives among all rows, and is this at least.
REFUSAL_MOST = 0.03
GRAVE, GRAVE_MORE, GRAVE_LEAST = ("violent", "self_harm"), 0.01, 0.3


def asked(work: Query | Append):
    """One piece of work, as a job."""
    return (yield work)


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
    score: np.ndarray, positive: np.ndarray, weight: np.ndarray, hard: np.ndarray, most: tuple[float, float]
) -> tuple[float, float, float, float]:
    """The threshold with the best weighted F1 whose weighted false-positive rates are within `most`: (threshold, F1,
    rate among ordinary rows, rate among hard ones)."""
    best = (0.97, 0.0, 0.0, 0.0)
    for t in np.arange(0.03, 0.97, 0.01):
        hit = score >= t
        tp, fp, fn = (weight[m].sum() for m in (hit & positive, hit & ~positive, ~hit & positive))
        rates = [weight[hit & m].sum() / max(weight[m].sum(), 1e-9) for m in (~positive & ~hard, ~positive & hard)]
        f1 = 2 * tp / (2 * tp + fp + fn)
        if rates[0] <= most[0] and rates[1] <= most[1] and f1 > best[1]:
            best = (round(float(t), 2), float(f1), float(rates[0]), float(rates[1]))
    return best


def choose_grave(
    score: np.ndarray, mine: np.ndarray, positive: np.ndarray, weight: np.ndarray, limit: float
) -> tuple[float, float, float]:
    """The lowest limit of "unsafe" for the rows `mine` that adds at most GRAVE_MORE false positives to those of `limit`,
    and more hits than those: (limit, rate of hits added, of false positives)."""
    best = (limit, 0.0, 0.0)
    for t in np.arange(limit, GRAVE_LEAST - 1e-9, -0.01):
        new = mine & (score >= t) & (score < limit)
        hits, false = (weight[new & m].sum() / max(weight[m].sum(), 1e-9) for m in (positive, ~positive))
        if false <= GRAVE_MORE and hits > false:
            best = (round(float(t), 2), float(hits), float(false))
    return best


def choose_refusal(score: np.ndarray, positive: np.ndarray) -> tuple[float, float, float]:
    """The least logit whose F1 is the best but for 0.01, with a false-positive rate of at most REFUSAL_MOST: (logit, F1,
    rate). F1 hardly changes over a wide range."""
    found = []
    for t in np.arange(-4, 4.01, 0.1):
        hit = score >= t
        f1 = 2 * (hit & positive).sum() / max((hit.sum() + positive.sum()), 1)
        found.append((round(float(t), 1), float(f1), float(hit[~positive].mean())))
    found = [one for one in found if one[2] <= REFUSAL_MOST] or [(0.0, 0.0, 0.0)]
    best = max(f1 for _, f1, _ in found)
    return next(one for one in found if one[1] >= best - 0.01)


def lowered(least: float, ordinary: np.ndarray, hard: np.ndarray, plain: dict[str, np.ndarray]) -> float:
    """The lowest threshold from `least` down, in steps, that keeps to LOWERED. All are odds of "not safe"; plain: by
    language."""
    languages = [odds_ for odds_ in plain.values() if len(odds_) >= FEWEST_PLAIN]

    def allows(t: float) -> bool:
        rates = [
            ((rows >= t).sum() + PRIOR * share) / (len(rows) + PRIOR)
            for rows, share in zip((ordinary, hard), PRIOR_FLAGGED, strict=True)
        ]
        worst = max((float((rows >= t).mean()) for rows in languages), default=1.0)
        return worst <= LOWERED[0] and rates[0] <= LOWERED[1] and rates[1] <= LOWERED[2]

    while allows(least - STEP):
        least -= STEP
    return least


def untrained(work: Path, data: Path) -> list[dict]:
    """Harmless sentences that training had in no split, at most HARMLESS_EACH of each language."""
    taken = {row["prompt"] for row in harmless(data / "train")}
    for name in ("train", "dev"):
        with gzip.open(work / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            taken |= {r["response"] or r["prompt"] for r in map(json.loads, lines) if r["source"] == HARMLESS}
    with gzip.open(data / "train" / f"{HARMLESS}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [(r["lang"], r["response"] or r["prompt"]) for r in map(json.loads, lines)]
    random.Random(11).shuffle(rows)
    found: dict[str, list[dict]] = {}
    for lang, text in rows:
        some = found.setdefault(lang, [])
        if text not in taken and len(text) <= 300 and len(some) < HARMLESS_EACH:
            some.append({"kind": "prompt", "prompt": text, "source": "untrained", "lang": lang, "severity": "safe"})
    return [row for some in found.values() for row in some]


def odds(p: float) -> float:
    return float(np.log(p / (1 - p)))


def judged(row: dict) -> str:
    return row["prompt"] if row["kind"] == "prompt" else row["response"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    target = args.model / "calibration.json"
    stages = ("prompt", "tool_output", "document", "response", "reasoning", "tool_call")
    neutral = {"unsafe": 0.5, "flagged": 0.5}
    raw = {"temperature": {"query": 1.0, "response": 1.0}, "thresholds": dict.fromkeys(stages, neutral)}
    target.write_text(json.dumps(raw))
    nano = Nano(args.model)
    with gzip.open(args.work / "dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [r for r in map(json.loads, lines) if r["severity"]]
    result: dict[str, dict] = {"temperature": {}, "thresholds": {}}
    result["shifts"] = {"query": {}, "response": {}}
    for side in ("query", "response"):
        mine = [r for r in rows if (r["kind"] == "prompt") == (side == "query")]
        labels = np.array([SEVERITY[r["severity"]] for r in mine])
        if side == "query":
            windows = run(nano, [partial(asked, Query(r["prompt"])) for r in mine])
            tokens = [min((w.scores.severity for w in found), key=lambda p: p[0, 0]) for found in windows]
        else:
            sessions = [nano.open([Message("user", r["prompt"])] if r["prompt"] else []) for r in mine]
            ids = [nano.tokenizer.encode(r["response"][:20000])[0] for r in mine]
            keep = [i for i, x in enumerate(ids) if x]
            mine, labels = [mine[i] for i in keep], labels[keep]
            work = [Append(sessions[i], Tokens(Stage.response, ids[i])) for i in keep]
            found = run(nano, [partial(asked, w) for w in work])
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

        # A response is flagged where two tokens in a row are; a query has one position.
        def peak(column: list[np.ndarray]) -> np.ndarray:
            return np.array([np.minimum(c[1:], c[:-1]).max() if len(c) > 1 else c[0] for c in column])

        hard = np.array([r["source"].startswith(HARD) for r in mine])
        group = nano._groups_of([nano.tokenizer.encode(judged(r)[:2000])[0] for r in mine])
        english = group == 0
        for name, score, positive in (
            ("unsafe", peak([c[:, 2] for c in cooled]), labels == 2),
            ("flagged", peak([1 - c[:, 0] for c in cooled]), labels > 0),
        ):
            use = like & ((labels != 1) | (name == "flagged"))
            share = Counter((r["source"], bool(p)) for r, p, u in zip(mine, positive, use, strict=True) if u)
            weight = np.array([1 / share[r["source"], bool(p)] ** 0.5 if u else 0.0 for r, p, u in zip(mine, positive, use, strict=True)])  # fmt: skip
            use_en = use & english
            t, f1, false, false_hard = choose(score[use_en], positive[use_en], weight[use_en], hard[use_en], BOUNDS[side][name])  # fmt: skip
            print(f"  {name}: threshold {t}, F1 {f1:.3f}, false positives {false:.3f}, of look-alikes {false_hard:.3f}, {use_en.sum()} rows")  # fmt: skip
            for stage in stages[:3] if side == "query" else stages[3:]:
                result["thresholds"].setdefault(stage, {})[name] = t
            if side == "response" and name == "unsafe":
                at = [int(np.minimum(c[1:, 2], c[:-1, 2]).argmax()) + 1 if len(c) > 1 else 0 for c in cooled]
                top = np.array([nano.response_categories[f.category[i].argmax()].value for f, i in zip(found, at, strict=True)])  # fmt: skip
                for category in GRAVE:
                    own, hits, false = choose_grave(score[use], (top == category)[use], positive[use], weight[use], t)
                    print(f"    {category}: limit {own}, adds {hits:.3f} of the unsafe, {false:.3f} of the safe rows")
                    result["thresholds"]["response"].setdefault("categories", {})[category] = own
        if side == "response":
            told = np.array([r["refusal"] is not None for r in mine])
            refuses = np.array([bool(r["refusal"]) for r in mine])[told]
            refusal = np.array([odds(min(max(float(f.refusal[-1]), 1e-6), 1 - 1e-6)) for f in found])[told]
            result["refusal"], f1, false = choose_refusal(refusal, refuses)
            print(
                f"  refusal: from logit {result['refusal']}, F1 {f1:.3f}, false positives {false:.3f}, {told.sum()} rows"
            )
        plain = np.array([r["source"] in PLAIN for r in mine])
        logit = np.array([odds(min(max(float(s), 1e-6), 1 - 1e-6)) for s in score])
        spoken: dict[int, dict[str, np.ndarray]] = {}  # by group and language, harmless text
        if side == "query":
            more = untrained(args.work, args.data)
            windows = run(nano, [partial(asked, Query(r["prompt"])) for r in more])
            p = np.stack([min((w.scores.severity for w in w_), key=lambda q: q[0, 0])[0] for w_ in windows])
            p = np.clip(softmax(np.log(p + 1e-12) / temperature)[:, 0], 1e-6, 1 - 1e-6)
            theirs = nano._groups_of([nano.tokenizer.encode(r["prompt"])[0] for r in more])
            rows_of = [*zip(more, theirs, np.log((1 - p) / p), strict=True)]
            rows_of += [e for e, is_plain in zip(zip(mine, group, logit, strict=True), plain, strict=True) if is_plain]
            for g in range(len(GROUPS)):
                for language in {r["lang"] for r, of, _ in rows_of if of == g}:
                    found_l = [x for r, of, x in rows_of if of == g and r["lang"] == language]
                    spoken.setdefault(g, {})[language] = np.array(found_l)
        foreign = (like | plain) & (group > 0) & (group < len(GROUPS))
        one = np.ones(len(mine))
        pooled = choose(score[foreign], positive[foreign], one[foreign], hard[foreign], OTHER_LANGUAGES)[0]
        print(f"  outside English: own threshold {pooled}, {foreign.sum()} rows")
        for i, name in enumerate(GROUPS[1:], 1):
            use = foreign & (group == i)
            n = min(int((use & positive).sum()), int((use & ~positive).sum()))
            own = choose(score[use], positive[use], one[use], hard[use], OTHER_LANGUAGES)[0] if n >= FEWEST else pooled
            least = (odds(own) * n + odds(pooled) * LEAST) / (n + LEAST)
            if side == "query":
                ordinary, tricky = (use & ~positive & ~plain & kind for kind in (~hard, hard))
                least = lowered(least, logit[ordinary], logit[tricky], spoken.get(i, {}))
            shift = round(odds(t) - least, 3)
            result["shifts"][side][name] = shift
            at = np.array([1 / (1 + np.exp(-(odds(min(max(s, 1e-6), 1 - 1e-6)) + shift))) for s in score[use]]) >= t
            print(f"  {name}: own threshold {own}, {use.sum()} rows; shift {shift}: recall {at[positive[use]].mean():.3f}, false positives {at[~positive[use]].mean():.3f}")  # fmt: skip
    for limits in result["thresholds"].values():
        limits["flagged"] = min(limits["flagged"], limits["unsafe"])
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
