"""Data preparation: the labelled files and the synthetic rows become one train and one dev file.

    python training/nano/prepare.py --data DIR --out WORK

`DIR` holds `train/*.jsonl.gz` in the format described in README.md; `bench/*.jsonl.gz`, where present, is read only
to *drop* any row whose text stands in it. Writes WORK/{train,dev}.jsonl.gz and prints what it took from where.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import synthetic

DEV_SHARE = 0.06
# Rows taken from each file at the most (all others: DEFAULT_CAP). Social-media sets are held down: their idea of
# "controversial" is offensive wording, which is not what a guard is mostly asked about.
DEFAULT_CAP = 4000
CAPS = {
    "benign_exams_questions": 3000, "benign_sib200_multilingual": 7000, "benign_xquad": 5000, "cold": 5000,
    "davidson_hate": 3000, "korean_hate_kocohub": 2500, "told_br": 3500, "toxic_spans_civil": 4000,
    "paradetox": 6000, "multilingual_hatecheck": 7000, "sghatecheck": 3000, "germeval2018": 4000, "mlma_hate": 3000,
    "kosbi_ko_en": 9000, "square_ko_en": 2000, "mlcommons_v05_malicious_user": 6000, "benign_gpteacher": 12910,
    "diasafety": 9000, "gptfuzz_responses": 5383, "salad_mcq_responses": 5528, "benign_codealpaca": 4529,
    "aart": 2500, "hatecheck": 3000, "hatemoji_build": 3000, "synthetic": 25000,
}  # fmt: skip
# Small sets of the kind that matters most are seen more than once in an epoch.
REPEAT = {
    "wildguardtrain_aegistrain_prompts": 3, "coconot_prompts": 3, "llm_warden_jailbreak_vs_benign": 2,
    "coconot_pref_responses": 2, "aisafetylab_unlearning": 3, "jbb_artifact_responses_judge_labelled": 2,
    "priming_attacks_manual": 2, "refusal_direction_runs_machine_labelled": 2, "jailjudge_mini": 2,
    "aegis2_sample_unsafe_prompts": 2, "deepset_prompt_injections": 2, "benign_misc_prompts": 2,
    "benign_seed_tasks": 2, "surge_toxicity": 2, "star1_prompts": 2, "dangerousqa": 2, "trustllm_misuse": 2,
    "salad_queries": 2,
}  # fmt: skip
# Machine labels, or labels of another task: seen, but with less weight in the loss.
WEIGHT = {
    "davidson_hate": 0.5, "paradetox": 0.5, "told_br": 0.5, "mlma_hate": 0.4, "cold": 0.5, "harmfulqa": 0.5,
    "square_ko_en": 0.5, "toxic_spans_civil": 0.6, "korean_hate_kocohub": 0.5, "safetext": 0.6,
}  # fmt: skip


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def read(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def judged_text(row: dict) -> str:
    return (row["response"] if row["kind"] == "response" else row["prompt"]) or ""


def bench_texts(folder: Path) -> set[str]:
    texts: set[str] = set()
    for path in sorted(folder.glob("*.jsonl.gz")):
        for row in read(path):
            texts.add(normal(judged_text(row)))
            if row["prompt"]:
                texts.add(normal(row["prompt"]))
    return texts


def is_dev(row: dict) -> bool:
    """Split by the prompt (the text itself where there is none), so that no prompt stands on both sides."""
    key = normal(row["prompt"] or judged_text(row)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") < DEV_SHARE * 2**32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files = sorted((args.data / "train").glob("*.jsonl.gz"))
    if not files:
        sys.exit(f"{args.data}/train holds no *.jsonl.gz: pass the folder of the labelled data with --data")
    rng = random.Random(args.seed)
    held_out = bench_texts(args.data / "bench")
    sources: dict[str, list[dict]] = {p.name.removesuffix(".jsonl.gz"): list(read(p)) for p in files}
    sources["synthetic"] = list(synthetic.rows(args.seed))
    split: dict[str, list[dict]] = {"train": [], "dev": []}
    seen: set[tuple[str, str]] = set()
    counts: dict[str, collections.Counter[str]] = {}
    for name, rows in sources.items():
        rng.shuffle(rows)
        taken: collections.Counter[str] = collections.Counter()
        for row in rows:
            text = judged_text(row)
            key = (row["kind"], normal((row["prompt"] or "") + " | " + text))
            if row["severity"] is None and row["refusal"] is None:
                taken["unlabelled"] += 1
            elif not normal(text) or key in seen or normal(text) in held_out:
                taken["dropped"] += 1
            else:
                side = "dev" if is_dev(row) else "train"
                if taken[side] >= CAPS.get(name, DEFAULT_CAP) * (DEV_SHARE if side == "dev" else 1):
                    continue
                seen.add(key)
                taken[side] += 1
                kept = {k: row[k] for k in ("kind", "prompt", "response", "severity", "categories", "refusal", "lang")}
                kept |= {"source": row["source"] if name == "synthetic" else name, "weight": WEIGHT.get(name, 1.0)}
                split[side] += [kept] * (REPEAT.get(name, 1) if side == "train" else 1)
        counts[name] = taken
    args.out.mkdir(parents=True, exist_ok=True)
    for side, rows in split.items():
        rng.shuffle(rows)
        with gzip.open(args.out / f"{side}.jsonl.gz", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, taken in counts.items():
        print(f"{name:45s} {dict(taken)}")
    print({side: len(rows) for side, rows in split.items()})


if __name__ == "__main__":
    main()
