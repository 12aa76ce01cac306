"""What models said of texts, kept on disk, so that an evaluation that was killed goes on where it stopped.

One SQLite file; the key is the model, its revision and a hash of the text. Texts themselves are not stored, and
neither is what could not be judged: it is tried again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guardkit.errors import EvaluationError

_SCHEMA = 2
_HEAD = struct.Struct("<bbQddd")
_ASK = 500  # keys in one query; SQLite's limit was once 999


@dataclass(frozen=True, slots=True)
class Prediction:
    """A verdict in numbers. severity: index into `SEVERITIES`. categories: bits of a `Vocabulary`. refusal:
    0, 1, or -1 (not judged). levels: the severity of each token, for data sets with locations."""

    severity: int
    categories: int
    refusal: int
    safe: float
    controversial: float
    unsafe: float
    levels: NDArray[np.int8] | None = None

    def pack(self) -> bytes:
        head = _HEAD.pack(self.severity, self.refusal, self.categories, self.safe, self.controversial, self.unsafe)
        return head if self.levels is None else head + zlib.compress(self.levels.tobytes())

    @classmethod
    def unpack(cls, data: bytes) -> Prediction:
        severity, refusal, categories, safe, controversial, unsafe = _HEAD.unpack_from(data)
        rest = data[_HEAD.size :]
        levels = np.frombuffer(zlib.decompress(rest), np.int8) if rest else None
        return cls(severity, categories, refusal, safe, controversial, unsafe, levels)


def key_of(what: str, stage: str | None, item: object) -> bytes:
    """The key of a text: 16 bytes. what: "check" or "locate"."""
    text = json.dumps([what, stage, item], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()


class PredictionStore:
    """The predictions of one model (named with its revision) in the file at `path`, which is made where missing."""

    def __init__(self, path: Path, model: str):
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 1:  # with room for nine categories only; what is kept can be had again
                self._db.executescript("DROP TABLE IF EXISTS predictions; PRAGMA user_version=0;")
                version = 0
            if version not in (0, _SCHEMA):
                raise EvaluationError(f"{path} was written by another version of guardkit: remove it, or name another")
            self._db.executescript(
                "CREATE TABLE IF NOT EXISTS models (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);"
                "CREATE TABLE IF NOT EXISTS predictions (model INTEGER, key BLOB, value BLOB NOT NULL,"
                " PRIMARY KEY (model, key)) WITHOUT ROWID;"
                f"PRAGMA user_version={_SCHEMA};"
            )
            self._db.execute("INSERT OR IGNORE INTO models (name) VALUES (?)", (model,))
            self._model = self._db.execute("SELECT id FROM models WHERE name = ?", (model,)).fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Prediction]:
        """What is known of `keys`."""
        found: dict[bytes, Prediction] = {}
        try:
            for i in range(0, len(keys), _ASK):
                part = keys[i : i + _ASK]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value FROM predictions WHERE model = ? AND key IN ({marks})"
                for key, value in self._db.execute(query, (self._model, *part)):
                    found[key] = Prediction.unpack(value)
        except (sqlite3.Error, struct.error, zlib.error) as error:
            raise self._failed(error) from error
        return found

    def put(self, predictions: Mapping[bytes, Prediction]) -> None:
        """Keep `predictions`: all of them or, when the process dies, none."""
        rows = [(self._model, key, p.pack()) for key, p in predictions.items()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO predictions VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._db.close()

    def _failed(self, error: Exception) -> EvaluationError:
        return EvaluationError(
            f"the cache of predictions {self._path} does not work ({error}): see --cache, --no-cache"
        )
