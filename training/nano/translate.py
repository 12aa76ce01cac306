# SPDX-License-Identifier: Apache-2.0
"""Word-by-word translation with our own word lists, and the vocabulary entries that go with them.

`lexicon/LANGUAGE.tsv` (written for this project): an English word form, a tab, the forms that translate it. A text put
into another language word by word is clumsy, but it carries the words that decide, and every labelled English row can
be shown that way (as CoSDA-ML, arXiv 2006.06402). The base vocabulary is English: the translations take the places of
entries that the training data hardly use, each starting from the embedding of the English words it translates.

    python training/nano/translate.py --work WORK --base MINILM --weights IN.pt --out OUT.pt

writes WORK/vocab.txt and OUT.pt from weights over the base vocabulary.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from guardkit.models.nano.tokenizer import FIRST_BYTE_ID, NanoTokenizer, fold  # noqa: E402

LEXICON = Path(__file__).parent / "lexicon"
ENTRIES = 33500  # of the vocabulary, at the most: 384 bytes each in the shipped file
RARE = 5  # an entry seen at most this often in the training data gives up its place
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")


def lexicons() -> dict[str, dict[str, list[str]]]:
    """Language -> English form -> its translations, the likeliest first; English forms by frequency."""
    out: dict[str, dict[str, list[str]]] = {}
    for path in sorted(LEXICON.glob("*.tsv")):
        pairs = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        out[path.stem] = {english: forms.split("|") for english, forms in pairs if forms}
    return out


def translate(text: str, lexicon: dict[str, list[str]], rng: random.Random) -> tuple[str, float]:
    """`text` word by word, and the share of its words that the lexicon has."""
    seen = known = 0

    def one(match: re.Match[str]) -> str:
        nonlocal seen, known
        word = match.group()
        forms = lexicon.get(word.lower())
        seen += 1
        if forms is None:
            return word
        known += 1
        form = forms[0] if rng.random() < 0.5 else rng.choice(forms)
        return form.capitalize() if word[0].isupper() else form

    return WORD.sub(one, text), known / max(seen, 1)


def spelled(form: str) -> str:
    """A form as the vocabulary spells it."""
    return "".join(map(fold, form))


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    entries = (args.base / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = NanoTokenizer(entries)
    state = torch.load(args.weights, map_location="cpu", weights_only=True)
    table = state["words.weight"]
    if len(table) != len(entries):
        sys.exit(
            f"{args.weights} has {len(table)} entries, the base vocabulary {len(entries)}: it was put over once already"
        )

    counts: Counter[int] = Counter()
    with gzip.open(args.work / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not row["source"].startswith("translated"):
                for text in (row["prompt"], row["response"]):
                    counts.update(tokenizer.encode((text or "")[:2000])[0])
    kept_for_bytes = range(FIRST_BYTE_ID, FIRST_BYTE_ID + 256)
    forms = {spelled(form) for lexicon in lexicons().values() for shown in lexicon.values() for form in shown}
    free = [
        i
        for i, entry in enumerate(entries)
        if counts[i] <= RARE
        and i not in kept_for_bytes
        and entry not in forms  # shared spellings
        and (entry.startswith("[unused") or (len(entry.removeprefix("##")) > 1 and not entry.startswith("[")))
    ]
    places = free + list(range(len(entries), ENTRIES))

    # In the order of the English words' frequency, all languages abreast; a shared spelling keeps its entry.
    meanings: dict[str, list[tuple[float, torch.Tensor]]] = defaultdict(list)
    order: dict[str, None] = {}
    ranked = [
        (rank + 1000 * place, form, english, 1 / (1 + place))
        for lexicon in lexicons().values()
        for rank, (english, forms) in enumerate(lexicon.items())
        for place, form in enumerate(forms)
    ]
    for _, form, english, weight in sorted(ranked, key=lambda r: r[0]):
        folded = spelled(form)
        if not folded.isalpha() or len(tokenizer.encode(folded)[0]) < 2:
            continue
        order.setdefault(folded)
        meanings[folded].append((weight, table[tokenizer.encode(english)[0]].mean(0)))
    fresh = list(order)[: len(places)]
    grown = torch.cat([table, torch.zeros(max(0, ENTRIES - len(entries)), table.shape[1])])
    entries += [""] * (ENTRIES - len(entries))
    for at, form in zip(places, fresh, strict=False):
        entries[at] = form
        total = sum(weight for weight, _ in meanings[form])
        grown[at] = sum(weight / total * vector for weight, vector in meanings[form])
    (args.work / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    torch.save(state | {"words.weight": grown}, args.out)
    print(f"{len(free)} places free, {len(order)} forms wanted, {len(fresh)} new entries")


if __name__ == "__main__":
    main()
