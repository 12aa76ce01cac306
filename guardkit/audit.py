"""The audit hook: every decision can be handed to a sink, which is told the truth about what was judged.

A sink is a callable that takes an `AuditRecord`, a path to a JSONL file, or the address of a webhook. The text itself
is left out unless asked for. A record whose `judged` is False says why in `error`; it never looks like one that passed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardkit.audit_text import audit_text
from guardkit.policy import Decision


@dataclass(frozen=True)
class AuditRecord:
    """One decision. time: Unix seconds; characters: length of what was judged (of a stream closed before its
    end: of what went out); surface: "check" or "stream"."""

    time: float
    surface: str
    model: str
    stage: str
    judged: bool
    action: str
    rule: str
    severity: str | None
    categories: tuple[str, ...]
    scores: dict[str, float] | None
    refusal: bool | None
    error: str | None
    characters: int
    latency_ms: float
    text: str | None = None

    def to_dict(self) -> dict[str, Any]:
        out = asdict(self)
        out["categories"] = list(self.categories)
        if self.text is None:
            del out["text"]
        return out


Sink = Callable[[AuditRecord], object]


class JsonlSink:
    """Appends one JSON object a line to a file; safe to share between threads. An unwritable file raises OSError.

    A file that was moved or removed (log rotation) is opened anew under its name. Where the disk was full in the middle
    of a line, the next record begins a new one.
    """

    def __init__(self, path: str | Path):
        self._path, self._lock = Path(path).expanduser(), threading.Lock()
        self._torn = False
        self._open()

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)

    def _is_moved(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def __call__(self, record: AuditRecord) -> None:
        line = (json.dumps(record.to_dict(), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            if self._is_moved():
                self._file.close()
                self._open()
                self._torn = False
            self._write(b"\n" + line if self._torn else line)

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        finally:
            if len(rest) < len(line):
                self._torn = bool(rest)

    def close(self) -> None:
        self._file.close()

    def __reduce__(self) -> tuple[type[JsonlSink], tuple[str | Path]]:
        return JsonlSink, (self._path,)


class Audit:
    """Turns decisions into records for one sink."""

    def __init__(self, sink: Sink | str | Path, model: str, with_text: bool = False):
        self._sink = _sink(sink) if isinstance(sink, str | Path) else sink
        if not callable(self._sink):
            raise TypeError(f"audit must be a file, the address of a webhook or a callable, not {type(sink).__name__}")
        self._model, self.with_text = model, with_text

    def __call__(self, decision: Decision, text: object, characters: int, latency_ms: float, surface: str) -> None:
        verdict = decision.verdict
        self._sink(
            AuditRecord(
                time=time.time(),
                surface=surface,
                model=verdict.model if verdict else self._model,
                stage=decision.stage.value,
                judged=decision.judged,
                action=decision.action.value,
                rule=decision.rule,
                severity=verdict.severity.value if verdict else None,
                categories=tuple(c.value for c in verdict.categories) if verdict else (),
                scores=dict(verdict.scores) if verdict else None,
                refusal=verdict.refusal if verdict else None,
                error=decision.error,
                characters=characters,
                latency_ms=latency_ms,
                text=audit_text(text) if self.with_text and text is not None else None,
            )
        )


def _sink(target: str | Path) -> Sink:
    if str(target).startswith(("http://", "https://")):
        from guardkit.webhook import WebhookSink

        return WebhookSink(str(target))
    return JsonlSink(target)
