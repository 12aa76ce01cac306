"""Embeddings that stay in the checkpoint's file: of a vocabulary a text needs few rows.

The system keeps what is read often in its page cache, and takes that memory back where it is needed. A file can change
under a running process, and a guard that judged by other numbers would not notice: a checksum of every row is kept.
"""

from __future__ import annotations

import os
import weakref
import zlib

import numpy as np
import torch
from torch import Tensor

from guardkit.engine.checkpoint import StoredTensor
from guardkit.engine.qwen3 import Embedding
from guardkit.errors import ModelError, ModelLoadError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
AT_ONCE = 1 << 13  # rows read at a time while the file is checked


class StoredEmbedding(Embedding):
    """Rows of `stored` [vocabulary, hidden_size] as float32. Reads it once, and raises `ModelLoadError` where that
    fails or a value is not finite; a row that cannot be read later, or has changed, is a `ModelError`."""

    def __init__(self, stored: StoredTensor):
        self.device = torch.device("cpu")
        self._name, self._begin, self._dtype = stored.file, stored.begin, DTYPES[stored.dtype]
        n_rows, self._width = stored.shape
        self._size = self._width * self._dtype.itemsize
        self._sums = np.empty(n_rows, np.uint32)
        try:
            self._file = os.open(self._name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            weakref.finalize(self, os.close, self._file)
            for at in range(0, n_rows, AT_ONCE):
                rows = self._read(at, min(AT_ONCE, n_rows - at))
                if not self._numbers(rows).float().isfinite().all():
                    raise ModelLoadError(f"{self._name}: the embeddings hold values that are not finite")
                self._sums[at : at + AT_ONCE] = [zlib.crc32(row) for row in np.frombuffer(rows, f"V{self._size}")]
        except OSError as error:
            raise ModelLoadError(f"{self._name}: cannot be read ({error.strerror or error})") from error

    def __call__(self, ids: Tensor) -> Tensor:
        found = bytearray()
        for i in ids.tolist():
            try:
                row = self._read(i, 1)
            except OSError as error:
                raise ModelError(f"{self._name}: cannot be read any more ({error.strerror or error})") from error
            if zlib.crc32(row) != self._sums[i]:
                raise ModelError(f"{self._name} has changed since it was loaded: load the guard again")
            found += row
        return self._numbers(found).float().view(-1, self._width)

    def _read(self, first: int, n: int) -> bytes:
        data = os.pread(self._file, n * self._size, self._begin + first * self._size)
        if len(data) < n * self._size:
            raise OSError("it ends too early")
        return data

    def _numbers(self, data: bytes | bytearray) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=self._dtype)
