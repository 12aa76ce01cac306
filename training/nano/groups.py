"""Which group of languages each piece of the vocabulary is of: MODEL/groups.npy (see `GROUPS` in the runtime).

    python training/nano/groups.py --work WORK --model guardkit/models/nano

By the script of its letters; a Latin piece is English where English training texts use it more than the others do.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from train import vocabulary

from guardkit.models.nano.calibration import GROUPS  # on the path through train.py
from guardkit.models.nano.unigram import FIRST_PIECE_ID

NONE = len(GROUPS)
SCRIPTS = {
    "european": "CYRILLIC GREEK ARMENIAN GEORGIAN",
    "semitic": "ARABIC HEBREW ETHIOPIC SYRIAC THAANA",
    "indic": "DEVANAGARI BENGALI GURMUKHI GUJARATI ORIYA TAMIL TELUGU KANNADA MALAYALAM SINHALA",
    "south_east_asian": "THAI LAO TIBETAN MYANMAR KHMER",
    "chinese": "CJK BOPOMOFO",
    "japanese": "HIRAGANA KATAKANA HALFWIDTH",
    "korean": "HANGUL",
}
OF = {script: GROUPS.index(group) for group, scripts in SCRIPTS.items() for script in scripts.split()}
LATIN = GROUPS.index("latin")


def group(piece: str) -> int:
    for char in piece.removeprefix("▁"):
        if char.isalpha():
            script = unicodedata.name(char, "NONE").split()[0].split("-")[0]
            return LATIN if script == "LATIN" else OF.get(script, NONE)
    return NONE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = vocabulary(args.work)
    counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    with gzip.open(args.work / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            counts[row["lang"] == "en"].update(tokenizer.encode((row["response"] or row["prompt"] or "")[:2000])[0])
    table = np.full(tokenizer.size, NONE, np.uint8)
    pieces = (args.work / "pieces.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    table[FIRST_PIECE_ID:] = [group(piece) for piece in pieces]
    english = np.array([counts[True][i] for i in range(tokenizer.size)]) + 0.2
    others = np.array([counts[False][i] if table[i] == LATIN else 0 for i in range(tokenizer.size)]) + 0.2
    latin = table == LATIN
    english, others = english / english[latin].sum(), others / others[latin].sum()
    table[latin & (english > 2 * others)] = GROUPS.index("english")
    table[latin & (english <= 2 * others) & (others <= 2 * english)] = NONE
    np.save(args.model / "groups.npy", table)
    print({name: int((table == i).sum()) for i, name in enumerate((*GROUPS, "none"))})


if __name__ == "__main__":
    main()
