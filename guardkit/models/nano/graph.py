"""nano's ONNX graph: passes over batches of rows, a few of them side by side.

The threads of one pass wait for each other at every product; two passes of half the rows, each on a core of its own,
do not. So many rows run in passes side by side, a few tokens in their caller's thread, and only a large pass that is
alone in several threads; what is begun runs in other threads alone, while the caller's reads on. Since sums are whole
numbers, a row's scores are the same in any pass.

graph.onnx holds the graph, nano.onnx beside it the tensors, which are mapped from there (training/nano/graph.py).
"""

from __future__ import annotations

import ctypes
import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardkit.models.base import Floats, Ints
from guardkit.ort import ort

Found = tuple[Floats, NDArray[np.int8]]
"""Of a pass the logits [N, 24] (response: 3 severity, 8 category, 1 refusal; query: 3 severity, 9 category) and the new
keys and values [B, T, *cache_shape] (T is 0 where they are not wanted)."""
FUSED = ["SkipLayerNormFusion"]  # its kernel takes six times as long as those of the two nodes
SHARE_TOKENS = 64  # padded, of a pass beside others at least: of fewer a token costs more
WIDE_TOKENS = 32  # from which on a pass that is alone is worth more than one thread


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass reads.

    ids [B, T]; past [B, P, *cache_shape]: keys and values of the P positions before (None: none); rows [N]: which of
    the B*T positions are read; frames [B]: how many of a row's first positions see each other (None: none, a position
    sees what is before it); is_kept: whether the new keys and values are wanted.
    """

    ids: Ints
    past: NDArray[np.int8] | None
    rows: Ints
    frames: Ints | None = None
    is_kept: bool = True


class Graph:
    """The graph in one process. folder: that holds it; threads: that it computes with, all together (default: all cores
    of the process)."""

    def __init__(self, folder: Path, threads: int | None = None):
        self.threads = threads or _cores()
        self._path = (folder / "graph.onnx").resolve()  # tensors may only lie beside the file itself
        self._options = ort.RunOptions()
        self._sessions: dict[int, ort.InferenceSession] = {}  # by threads
        self._helpers: ThreadPoolExecutor | None = None
        meta = self._session(1).get_modelmeta().custom_metadata_map
        weights = self._path.with_name("nano.onnx")
        if weights.stat().st_size != int(meta["weights_bytes"]):
            raise ValueError(f"{weights} is not the file that {self._path.name} belongs to")
        self.window = int(meta["positions"])
        self.cache_shape: tuple[int, ...] = tuple(json.loads(meta["cache_shape"]))  # a token's: layers x (keys, values)

    def forward(self, passes: Sequence[Pass]) -> list[Found]:
        """Each pass's result. They run side by side, in this thread and in others as far as those are free."""
        if len(passes) == 1:
            threads = self.threads if passes[0].ids.size >= WIDE_TOKENS else 1
            return [self._run(self._session(threads), passes[0])]
        session = self._session(1)
        todo = deque(range(len(passes)))
        found: dict[int, Found] = {}

        def work() -> None:
            while todo:
                with suppress(IndexError):  # another thread was faster
                    at = todo.popleft()
                    found[at] = self._run(session, passes[at])

        others: list[Future[None]] = []
        with suppress(RuntimeError):  # closed meanwhile, or the program is ending: nothing is handed over any more
            while len(others) < min(self.threads, len(passes)) - 1:
                others.append(self._pool().submit(work))
        try:
            work()
        finally:
            todo.clear()
            begun = [other for other in others if not other.cancel()]
            wait(begun)
        for other in begun:
            other.result()
        return [found[at] for at in range(len(passes))]

    def begin(self, passes: Sequence[Pass]) -> Callable[[], list[Found]]:
        """Have passes run in other threads, behind those that were begun before. Gives what waits for their results."""
        session = self._session(1)
        try:
            begun = [self._pool().submit(self._run, session, one) for one in passes]
        except RuntimeError:  # as above
            return lambda: [self._run(session, one) for one in passes]

        def end() -> list[Found]:
            wait(begun)
            return [each.result() for each in begun]

        return end

    def _pool(self) -> ThreadPoolExecutor:
        helpers = self._helpers  # which may be closed meanwhile
        if helpers is None:
            helpers = self._helpers = ThreadPoolExecutor(self.threads, "guardkit-nano-pass")
        return helpers

    def _feed(self, one: Pass) -> dict[str, Any]:
        batch, length = one.ids.shape
        past = np.zeros((batch, 0, *self.cache_shape), np.int8) if one.past is None else one.past
        before = past.shape[1]
        positions = np.broadcast_to(before + np.arange(length), (batch, length))
        visible = np.arange(before + length)[None, :] <= before + np.arange(length)[:, None]
        if one.frames is not None:
            visible = visible | (np.arange(before + length) < one.frames[:, None, None])
        mask = np.where(visible, np.float32(0), np.float32(-1e9)).reshape(-1, 1, length, before + length)
        return {
            "ids": one.ids, "positions": np.ascontiguousarray(positions), "past": past, "mask": mask, "rows": one.rows,
        }  # fmt: skip

    def _run(self, session: ort.InferenceSession, one: Pass) -> Found:
        feed = self._feed(one)
        try:
            logits, *new = session.run(["logits", "new"] if one.is_kept else ["logits"], feed, self._options)
        except Exception:
            if self._options.terminate:
                raise RuntimeError("nano was interrupted: the program ends") from None
            raise
        return logits, new[0] if new else feed["past"][:, :0]

    def _session(self, threads: int) -> ort.InferenceSession:
        session = self._sessions.get(threads)
        if session is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = self._sessions[threads] = ort.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"], disabled_optimizers=FUSED
            )
        return session

    def interrupt(self) -> None:
        """End the passes that are under way; there will be no other."""
        self._options.terminate = True

    def free(self) -> None:
        self._sessions = {}
        helpers, self._helpers = self._helpers, None
        if helpers is not None:
            helpers.shutdown()

    def forked(self) -> None:
        """ONNX Runtime has threads that stayed in the parent, and a child that ended as usual would wait for them: it
        loads a session of its own when it needs one, never frees an old one, and leaves by `_exit`, once Python is
        done and with its own status."""
        self._helpers = None  # their threads stayed there too
        for session in self._sessions.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self._sessions = {}
        with suppress(AttributeError, OSError, TypeError):  # glibc only
            libc = ctypes.CDLL(None)
            libc.on_exit(libc._exit, None)


def shares(lengths: Sequence[int], most: int) -> list[slice]:
    """Rows of these lengths, in their order, cut into at most `most` passes, of which the costliest costs as little as
    can be: its rows times the longest of them."""
    total = sum(lengths)
    n = min(most, len(lengths), total // SHARE_TOKENS)
    if n < 2:
        return [slice(0, len(lengths))]

    def cut(bound: int) -> list[slice]:
        found: list[slice] = []
        begin = longest = 0
        for at, length in enumerate(lengths):
            longest = max(longest, length)
            if (at + 1 - begin) * longest > bound:
                found.append(slice(begin, at))
                begin, longest = at, length
        return [*found, slice(begin, len(lengths))]

    longest = max(lengths)
    low, high = max(longest, -(-total // n)), -(-len(lengths) // n) * longest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= n else (middle + 1, high)
    return cut(low)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
