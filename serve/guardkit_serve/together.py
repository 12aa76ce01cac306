"""The metrics of several worker processes as one. Each leaves its own in a folder; whichever is asked adds them up."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

EVERY_S = 2.0  # how old what the others left may be


class Together:
    """own: the text of this process's metrics. Counts of workers that ended are kept; what they had open is not."""

    def __init__(self, folder: Path, own: Callable[[], bytes]):
        self._folder, self._own = folder, own
        self._lock = threading.Lock()
        self._stop = threading.Event()
        args = (weakref.ref(self), self._stop)
        threading.Thread(target=_keep_leaving, args=args, name="guardkit-metrics", daemon=True).start()

    def leave(self) -> None:
        """Put this process's metrics into the folder, whole or not at all."""
        with self._lock:
            path = self._folder / f"{os.getpid()}.prom"
            draft = path.with_suffix(".new")
            draft.write_bytes(self._own())
            draft.replace(path)

    def text(self) -> bytes:
        """The sum. Raises OSError where the folder is gone."""
        self.leave()
        registry = CollectorRegistry()
        registry.register(_Sum(self._folder))
        found: bytes = generate_latest(registry)
        return found

    def close(self) -> None:
        self._stop.set()


class _Sum:
    def __init__(self, folder: Path):
        self._folder = folder

    def collect(self) -> Iterator[Any]:
        families: dict[str, Any] = {}
        values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for path in sorted(self._folder.glob("*.prom")):
            ended = not _lives(int(path.stem))
            for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
                if ended and family.type == "gauge":
                    continue
                families.setdefault(family.name, Family(family.name, family.documentation, family.type))
                sums = values.setdefault(family.name, {})
                for sample in family.samples:
                    key = sample.name, tuple(sorted(sample.labels.items()))
                    if sample.name.endswith("_created"):  # a time: the earliest
                        sums[key] = min(sums.get(key, sample.value), sample.value)
                    else:
                        sums[key] = sums.get(key, 0.0) + sample.value
        for name, family in families.items():
            for (sample_name, labels), value in values[name].items():
                family.add_sample(sample_name, dict(labels), value)
            yield family


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _keep_leaving(ref: weakref.ref[Together], stop: threading.Event) -> None:
    while not stop.wait(EVERY_S):
        together = ref()
        if together is None:
            return
        try:
            together.leave()
        except OSError:  # the folder is gone, or the disk is full: who asks is told
            pass
        del together
