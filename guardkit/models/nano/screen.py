"""What is clearly harmless, told from the tokens' embeddings alone, at a hundredth of the model's cost.

A small convolutional classifier (fewer than 50,000 weights) that was fitted to nano's own judgements: it settles a
window only where nano would almost surely find nothing, and leaves all others to nano. What it may lose is bounded by
group of languages when its limits are chosen (training/nano/screen.py) and printed by benchmarks/nano_screen.py.

It computes with whole numbers that float32 holds exactly, so a window's answer does not depend on what else is in the
batch. A token's projection does not depend on its neighbours: it is computed when the token is first met.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guardkit.models.base import Floats, Ints, Scores
from guardkit.models.nano.unigram import FIRST_BYTE_ID, FIRST_PIECE_ID

WIDTH = 5  # tokens that a filter sees
MOST = 255.0  # of an activation, a whole number
PART_LIMIT = np.float32(-3000)  # three quarters of harmless parts are below it, and hardly one that nano is sure of
ALONE = 1 << 18  # multiplications up to which numpy's BLAS uses the caller's thread alone: others would only wait


class Screen:
    """embeddings: of all tokens (see `Embeddings`); file: what training/nano/screen.py wrote."""

    def __init__(self, embeddings: Embeddings, file: Path):
        data = np.load(file)  # one record
        self._unit = np.float32(data["unit"])
        self._layers = [
            (data[f"w{i}"].astype(np.float32), data[f"b{i}"].astype(np.float32), data[f"s{i}"].astype(np.float32))
            for i in range(3)
        ]
        self._last, self._bias = data["w3"].astype(np.float32), np.float32(data["b3"])
        self._limits: Floats = data["limits"].astype(np.float32)  # by group
        self._edges: Floats = data["edges"].astype(np.float32)
        self._scores: Floats = data["scores"].astype(np.float32)
        self._embeddings = embeddings
        n_tokens = len(embeddings)
        self._projected = np.zeros((n_tokens + 1, self._layers[0][0].shape[1]), np.uint8)  # the last row: no token
        self._is_projected = np.zeros(n_tokens, bool)
        self._nothing = np.zeros((1, 9), np.float32)

    def __call__(self, windows: Sequence[list[int]], groups: Ints, parts: Sequence[bool]) -> list[Scores | None]:
        """For each window (ids with their frame; its group of languages; whether it is a part of a long text, which
        counts only where nano is all but sure) the scores that it is settled with, or None where nano has to judge
        it."""
        levels = self.levels(windows)
        settled = levels <= np.where(parts, PART_LIMIT, self._limits[groups])
        rows = self._scores[np.searchsorted(self._edges, levels)]
        out: list[Scores | None] = []
        for at, ids in enumerate(windows):
            whole = not any(FIRST_BYTE_ID <= i < FIRST_PIECE_ID for i in ids)  # no character that no piece has
            out.append(Scores(rows[at : at + 1], self._nothing) if settled[at] and whole else None)
        return out

    def levels(self, windows: Sequence[list[int]]) -> Floats:
        """[N], whole numbers: the higher, the less sure it is that a window is harmless."""
        lengths = np.array([len(ids) - 2 for ids in windows], np.int64)
        gap = [len(self._is_projected)] * (WIDTH // 2)
        flat: list[int] = gap[:]
        for ids in windows:
            flat += ids[1:-1] or gap[:1]
            flat += gap
        tokens = np.array(flat, np.int64)
        self._project(np.unique(tokens)[:-1])
        h = self._projected[tokens].astype(np.float32)
        weights, bias, scale = self._layers[1]
        n = len(h) - WIDTH + 1
        y = _activated(sum(_product(h[k : k + n], weights[k]) for k in range(WIDTH)) + bias, scale)
        counts = np.maximum(lengths, 1)
        starts = np.concatenate(([0], np.cumsum(counts + WIDTH // 2)[:-1]))
        ends = np.stack((starts, starts + counts), 1).ravel()
        y = np.concatenate((y, np.zeros((1, y.shape[1]), np.float32)))  # `reduceat` wants an index behind the last
        highest = np.maximum.reduceat(y, ends)[::2]
        mean = np.floor(np.add.reduceat(y, ends)[::2] / counts[:, None].astype(np.float32))
        weights, bias, scale = self._layers[2]
        inner = _activated(_product(np.concatenate((highest, mean), 1), weights) + bias, scale)
        return np.asarray(inner @ self._last + self._bias, np.float32)

    def _project(self, tokens: NDArray[np.int64]) -> None:
        new = tokens[~self._is_projected[tokens]]
        if len(new):
            weights, bias, scale = self._layers[0]
            whole = np.clip(np.rint(self._embeddings(new) * self._unit), -127, 127)
            self._projected[new] = _activated(_product(whole, weights) + bias, scale)
            self._is_projected[new] = True


def _product(x: Floats, weights: Floats) -> Floats:
    """x @ weights, so many rows at a time that no other thread is asked to help."""
    out = np.empty((len(x), weights.shape[1]), np.float32)
    rows = max(ALONE // weights.size, 1)
    for at in range(0, len(x), rows):
        np.matmul(x[at : at + rows], weights, out=out[at : at + rows])
    return out


def _activated(y: Floats, scale: Floats) -> Floats:
    return np.asarray(np.clip(np.floor(y * scale), 0, MOST))


class Embeddings:
    """The tokens' embeddings where they lie in the graph's file: 4 bits a value, a scale for each block of values. No
    more of them is held in memory than was looked at."""

    def __init__(self, path: Path, n_tokens: int):
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = dict(tensors(data))
        (at, size), (scale_at, scale_size) = found[b"words"], found[b"word_scale"]
        self._packed = np.frombuffer(data, np.uint8, size, at).reshape(n_tokens, -1)
        self._scale = np.frombuffer(data, np.float16, scale_size // 2, scale_at).reshape(n_tokens, -1)

    def __len__(self) -> int:
        return len(self._packed)

    def __call__(self, tokens: NDArray[np.int64]) -> Floats:
        """[N, width]"""
        packed = self._packed[tokens]
        values = np.stack((packed & 15, packed >> 4), 2).reshape(len(tokens), -1).astype(np.float32) - 8
        scale = self._scale[tokens].astype(np.float32)
        return values * np.repeat(scale, values.shape[1] // scale.shape[1], axis=1)


def tensors(data: mmap.mmap | bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """The tensors of an ONNX file: the name, and where the raw data lie (offset, bytes)."""
    for number, at, size in _fields(data, 0, len(data)):
        if number == 7:  # of a model, the graph
            for inner, start, length in _fields(data, at, at + size):
                if inner == 5:  # of a graph, a tensor: its name is field 8, its raw data field 9
                    parts = {n: (a, s) for n, a, s in _fields(data, start, start + length)}
                    if 8 in parts and 9 in parts:
                        yield data[parts[8][0] : sum(parts[8])], parts[9]


def _fields(data: mmap.mmap | bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a protocol buffer that have a length: number, offset, bytes."""
    while at < end:
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                yield key >> 3, at, size
                at += size
            case 5:
                at += 4
            case kind:
                raise ValueError(f"no ONNX file: a field of type {kind}")


def _varint(data: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
