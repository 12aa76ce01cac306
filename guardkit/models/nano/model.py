"""nano's runtime: the ONNX graph, its cache, its windows, its batches.

The graph computes with integers wherever numbers are summed (8-bit weights and activations at fixed scales, 32-bit
sums), so a token's scores do not depend on what else is in the batch or on how a stream was cut: they are equal to
the last bit. What stands before the judgement (a query; the frame of a response) is read in both directions; a
token of a response sees only what came before it. The cache of a session is one array of 8-bit keys and values that
grows with its window.

A response longer than the window goes on in a new one that starts with the last `LEAD` tokens, so memory is constant
and the cost per token flat. A query longer than the window is judged in windows that overlap by at least `OVERLAP`
tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guardkit import telemetry
from guardkit.coverage import Coverage
from guardkit.errors import ModelLoadError
from guardkit.loop import Loop, Turn
from guardkit.messages import Message
from guardkit.models.base import Floats, Ints, Limits, Query, QueryScores, Scores, Session, StreamModel, Work
from guardkit.models.nano.calibration import GROUPS, Calibration
from guardkit.models.nano.graph import Found, Graph, Pass, shares
from guardkit.models.nano.opaque import without_opaque
from guardkit.models.nano.queries import PARTED, Window
from guardkit.models.nano.said import softmax
from guardkit.models.nano.scheduler import NanoScheduler
from guardkit.models.nano.screen import Embeddings, Screen
from guardkit.models.nano.session import NanoSession
from guardkit.models.nano.unigram import CLS, SEP, UnigramTokenizer
from guardkit.ticket import Pending, Ticket
from guardkit.verdict import Category, Stage

CONTEXT = 62  # tokens of the last user message that stand before a response: its head and its tail
OVERLAP = 48  # tokens that two windows of a query share at least
BACK = 40  # further tokens that a window may go back to begin where a sentence, a line or a record does
PART = 56  # tokens of a part, at most
PART_SHIFT = np.array([10.5, 1, 1], np.float32)  # how much likelier safe a part is than its words are alone
WINDOW_CACHE = 8192  # judged windows of queries that are remembered (logs and junk repeat themselves)
SENTENCE_ENDS = frozenset(".!?;。！？।")
SLICE_CHARS = 1 << 18  # a long text is tokenised this much at a time
_CATEGORIES = tuple(
    Category[name]
    for name in (
        "violent", "sexual", "self_harm", "political", "pii", "copyright", "non_violent_illegal", "unethical",
        "jailbreak",
    )
)  # fmt: skip


class Nano(StreamModel):
    name = "nano"
    query_categories = _CATEGORIES
    response_categories = _CATEGORIES[:8]
    judges_normalized_view = True
    in_flight = 256

    def __init__(self, folder: Path, threads: int | None = None):
        """threads: for one forward pass (default: all cores of this process)."""
        try:
            self._graph = Graph(folder, threads)
            self._calibration = Calibration.read(folder / "calibration.json")
            self.coverage = Coverage.read(folder / "coverage.json")
            self.tokenizer = UnigramTokenizer(folder / "pieces.txt", folder / "scores.npy")
            screen = folder / "screen.npy"  # not there while the recipe makes a new model
            embeddings = Embeddings(folder / "nano.onnx", self.tokenizer.size)
            self._screen = Screen(embeddings, screen) if screen.exists() else None
            self._groups = np.load(folder / "groups.npy")  # by token: an index into GROUPS, or more for none
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelLoadError(f"nano does not load from {folder}: {error}; reinstall guardkit") from error
        self.window, self.cache_shape = self._graph.window, self._graph.cache_shape
        self._seen: OrderedDict[bytes, Scores] = OrderedDict()
        self._settled: OrderedDict[tuple[bytes, bool], Scores | None] = OrderedDict()  # None: by nano itself only
        self._hits = 0  # windows that were in it
        self._loop = Loop("guardkit-nano", NanoScheduler(self, self.threads))

    # -- one verb, one owner (`loop.py`); the rest is called by the owner alone

    def submit(self, works: Sequence[Work], deadline: float | None = None) -> list[Pending]:
        tickets = [Ticket(work, deadline, self) for work in works]
        self._loop.put([*tickets])
        return list(tickets)

    def turn(self) -> Turn:
        return self._loop.turn()

    def close(self) -> None:
        self._loop.close("nano was closed; load it again")
        self._graph.free()
        self._seen.clear()
        self._settled.clear()

    @property
    def closed(self) -> bool:
        return self._loop.closed

    def interrupt(self) -> None:
        self._graph.interrupt()

    def before_fork(self) -> None:
        """ONNX Runtime's threads stay in the parent, and a child that ends would wait for them: both load the graph
        anew when they need it."""
        self._graph.free()

    def forked(self) -> None:
        self._graph.forked()

    def own(self, session: Session) -> NanoSession:
        if not isinstance(session, NanoSession):
            raise TypeError(f"a session of another model: {type(session).__name__}")
        return session

    # -- queries

    def windows(self, query: Query, parts: bool = False) -> Iterator[Window]:
        """Ids with their frame, start and end of every window; start and end where the text was cut. A long text is
        tokenised as its windows are drawn. parts: between them the sentences of a text of more than `PARTED` tokens, a
        few at a time."""
        room = self.window - 2
        text = without_opaque(query.text)
        ids: list[int] = []
        starts: list[int] = []
        cut = False
        offset = begin = part = 0  # tokens that the next window and the next part begin with
        while True:
            piece = text[offset : offset + SLICE_CHARS]
            last = offset + len(piece) == len(text)
            stable = len(piece) if last else self.tokenizer.stable_chars(piece)
            new_ids, new_starts = self.tokenizer.encode(piece[:stable])
            ids += new_ids
            starts += [offset + s for s in new_starts]
            offset += stable
            while len(ids) - begin > room:
                yield [CLS, *ids[begin : begin + room], SEP], starts[begin], starts[begin + room], False
                begin = _next_begin(text, starts, begin + room - OVERLAP)
                cut = True
                while parts and part + PART <= begin:
                    stop = _next_begin(text, starts, part + PART)
                    yield [CLS, *ids[part:stop], SEP], starts[part], starts[stop], True
                    part = stop
            if last:
                break
            gone = min(begin, part) if parts else begin
            del ids[:gone], starts[:gone]
            begin, part = begin - gone, max(part - gone, 0)
        start, end = (starts[begin] if begin < len(starts) else offset, len(text)) if cut else (None, None)
        yield [CLS, *ids[begin:], SEP], start, end, False
        while parts and part < len(ids) and (cut or len(ids) > PARTED):
            stop = len(ids) if len(ids) - part <= PART else _next_begin(text, starts, part + PART)
            yield [CLS, *ids[part:stop], SEP], starts[part], starts[stop] if stop < len(ids) else len(text), True
            part = stop

    def key(self, ids: list[int]) -> bytes:
        """What two windows that are judged alike have in common."""
        return np.asarray(ids, np.int32).tobytes()

    def screen(self, windows: Sequence[tuple[bytes, list[int], bool]]) -> None:
        """Let the screen look at windows (keys, ids, whether each is a part), which it may then settle; what it said is
        remembered."""
        if self._screen is None or not windows:
            return
        new: dict[tuple[bytes, bool], list[int]] = {}
        for key, ids, is_part in windows:
            if (key, is_part) in self._settled:
                self._settled.move_to_end((key, is_part))
            else:
                new[key, is_part] = ids
        if new:
            parts = [is_part for _, is_part in new]
            found = self._screen(list(new.values()), self._groups_of(list(new.values())), parts)
            self._settled.update(zip(new, found, strict=True))
        while len(self._settled) > WINDOW_CACHE:
            self._settled.popitem(last=False)

    def recall(self, key: bytes, early: bool = False, is_part: bool = False) -> Scores | None:
        """The scores of a window that was judged before, or that the screen settled where it was asked (early)."""
        found = self._settled.get((key, is_part)) if early else None
        if found is not None:
            return found
        found = self._seen.get(key)
        if found is not None:
            self._hits += 1
            self._seen.move_to_end(key)
        return found

    def knows(self, key: bytes, early: bool) -> bool:
        """Whether `recall` would find a window that is no part; it counts as no use of it."""
        return key in self._seen or (early and self._settled.get((key, False)) is not None)

    @property
    def remembered(self) -> tuple[int, int, int]:
        """Judged windows that are remembered, how many may be, and how many came again."""
        return len(self._seen), WINDOW_CACHE, self._hits

    def judge_windows(self, windows: Sequence[list[int]]) -> list[Scores]:
        """The query heads' scores of each window; they are remembered."""
        return self._judged(windows, self._forward(self._side_by_side(windows)))

    def begin_windows(self, windows: Sequence[list[int]]) -> Callable[[], list[Scores]]:
        """`judge_windows` in other threads. Gives what waits for the scores."""
        passes = self._side_by_side(windows)
        self._count(passes)
        end = self._graph.begin(passes)
        return lambda: self._judged(windows, end())

    def _side_by_side(self, windows: Sequence[list[int]]) -> list[Pass]:
        return [_read(windows[share], is_kept=False) for share in shares([len(ids) for ids in windows], self.threads)]

    def _judged(self, windows: Sequence[list[int]], found: Sequence[Found]) -> list[Scores]:
        logits = np.concatenate([logits for logits, _ in found])
        scores = self._query_scores(logits[:, 12:], self._groups_of(windows))
        out = []
        for row, ids in enumerate(windows):
            one = Scores(scores.severity[row : row + 1].copy(), scores.category[row : row + 1].copy())
            self._seen[self.key(ids)] = one
            out.append(one)
        while len(self._seen) > WINDOW_CACHE:
            self._seen.popitem(last=False)
        return out

    def read(self, windows: Sequence[list[int]]) -> tuple[Floats, NDArray[np.int8]]:
        """One pass over windows of queries: logits at the end of each [N, 24], keys and values [N, T, *cache_shape] of
        its tokens and of the padding behind them."""
        return self._forward([_read(windows)])[0]

    def weigh(
        self, best: dict[object, tuple[float, QueryScores]], query: Query, scores: Scores, window: Window
    ) -> None:
        """Of a long text's windows keep the worst by each measure that a policy can ask about. Of a part, which says
        less by itself, more is asked."""
        _, start, end, is_part = window
        if is_part:
            severity = scores.severity * PART_SHIFT
            scores = Scores(severity / severity.sum(), scores.category)
        found = QueryScores(scores, start, end, windowed=start is not None)
        safe, _, unsafe = (float(p) for p in scores.severity[0])
        level = int(self.severities(scores, query.stage)[0])
        category = int(scores.category[0].argmax()) if level else None
        for measure, badness in (("flagged", 1 - safe), ("unsafe", unsafe), ((level, category), 1 - safe)):
            before = best.get(measure)
            # Of equals the first window in the text, in whatever order they were judged.
            if before is None or (badness, -(start or 0)) > (before[0], -(before[1].start or 0)):
                best[measure] = (badness, found)

    def _groups_of(self, windows: Sequence[list[int]]) -> Ints:
        """The group of languages (index into `GROUPS`) that most pieces of each window are of [N]."""
        rows = np.repeat(np.arange(len(windows)), [len(ids) for ids in windows])
        found = self._groups[np.fromiter(chain.from_iterable(windows), np.int64, len(rows))]
        n = len(GROUPS) + 1
        counts = np.bincount(rows * n + np.minimum(found, n - 1), minlength=n * len(windows)).reshape(-1, n)
        return np.asarray(counts[:, : len(GROUPS)].argmax(1))

    def _query_scores(self, logits: Floats, groups: Ints) -> Scores:
        severity = logits[:, :3] / self._calibration.query_temperature
        severity[:, 0] -= self._calibration.query_shifts[groups]
        return Scores(softmax(severity), softmax(logits[:, 3:12]))

    # -- responses

    def nothing(self) -> Scores:
        return Scores(np.zeros((0, 3), np.float32), np.zeros((0, 8), np.float32), np.zeros(0, np.float32))

    def open(self, context: Sequence[Message]) -> NanoSession:
        return NanoSession(self, *self._frame(context))

    def _frame(self, context: Sequence[Message]) -> tuple[list[int], bool]:
        """The ids that stand before a response, and whether they are less than the whole context."""
        asked = next((m.said for m in reversed(context) if m.stage is Stage.prompt), "")
        half = CONTEXT // 2
        if len(asked) > 64 * CONTEXT:  # only the ends are used: do not tokenise a whole document for them
            head, tail = (
                self.tokenizer.encode(asked[: 32 * CONTEXT])[0],
                self.tokenizer.encode(asked[-32 * CONTEXT :])[0],
            )
            ids = head + tail
        else:
            ids = self.tokenizer.encode(asked)[0]
        cut = len(context) > 1 or len(ids) > CONTEXT
        if len(ids) > CONTEXT:
            ids = ids[:half] + ids[half - CONTEXT :]
        return [CLS, *ids, SEP], cut

    def judge_pieces(self, work: Sequence[tuple[NanoSession, list[int]]]) -> list[Scores]:
        """One step of sessions with equally long caches; scores of the response tokens among the new ones."""
        width = max(len(ids) for _, ids in work)
        parts = [work[share] for share in shares([width] * len(work), self.threads)]
        found: list[Scores] = []
        for part, (logits, new_cache) in zip(parts, self._forward([_go_on(part) for part in parts]), strict=True):
            for row, (session, new) in enumerate(part):
                n = len(new) - session.unjudged
                own, logits = logits[:n, :12], logits[n:]
                session.keep(new, new_cache[row, : len(new)])
                found.append(self._response_scores(own, new[session.unjudged :], session))
        return found

    def _response_scores(self, logits: Floats, ids: list[int], session: NanoSession) -> Scores:
        session.said, said, mean, groups = session.said.more(logits, self._groups[ids])
        severity = said[:, :3] / self._calibration.response_temperature
        severity[:, 0] -= self._calibration.response_shifts[groups]
        refusal = (1 / (1 + np.exp(self._calibration.refusal - mean[:, 11]))).astype(np.float32)
        return Scores(softmax(severity), softmax(said[:, 3:11]), refusal, np.full(len(logits), session.windowed))

    # -- both

    def limits(self, stage: Stage) -> Limits:
        return super().limits(stage) or self._calibration.limits[stage]

    @property
    def threads(self) -> int:
        """That it computes with."""
        return self._graph.threads

    def _forward(self, passes: Sequence[Pass]) -> list[Found]:
        self._count(passes)
        return self._graph.forward(passes)

    def _count(self, passes: Sequence[Pass]) -> None:
        telemetry.batch(self.name, sum(len(one.ids) for one in passes))


def _read(windows: Sequence[list[int]], is_kept: bool = True) -> Pass:
    """Windows of queries, each read at its end."""
    ends = np.array([len(ids) - 1 for ids in windows], np.int64)
    padded = np.zeros((len(windows), int(ends.max()) + 1), np.int64)
    for row, ids in enumerate(windows):
        padded[row, : len(ids)] = ids
    return Pass(padded, None, np.arange(len(windows)) * padded.shape[1] + ends, ends, is_kept)


def _go_on(work: Sequence[tuple[NanoSession, list[int]]]) -> Pass:
    """The next tokens of responses, read at those that are to be judged."""
    width = max(len(ids) for _, ids in work)
    ids = np.zeros((len(work), width), np.int64)
    rows = []
    for row, (session, new) in enumerate(work):
        ids[row, : len(new)] = new
        rows.append(row * width + np.arange(session.unjudged, len(new)))
    past = np.stack([s.cache() for s, _ in work]) if len(work) > 1 else work[0][0].cache()[None]
    frames = None if work[0][0].cached else np.array([len(s.frame) for s, _ in work])
    return Pass(ids, past, np.concatenate(rows), frames)


def _next_begin(text: str, starts: Sequence[int], latest: int) -> int:
    """The token that the next window begins with, `latest` at the latest: where a sentence, a line or a record does,
    if there is such a place near. What repeats itself then gives equal windows, which are judged once."""
    for i in range(latest, max(latest - BACK, 0), -1):
        at = starts[i]
        between = text[starts[i - 1] : at]
        if text[at] == "{" or "\n" in between or (between[-1:].isspace() and between.rstrip()[-1:] in SENTENCE_ENDS):
            return i
    return latest
