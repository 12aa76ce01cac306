"""One model on one data set: rows in batches, each text judged once and kept, columns and figures out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from guardkit._version import __version__
from guardkit.errors import NotJudged
from guardkit.evaluation import spans
from guardkit.evaluation.columns import Columns
from guardkit.evaluation.figures import RESAMPLES, SetFigures, compute
from guardkit.evaluation.locations import Located
from guardkit.evaluation.predictions import Prediction, PredictionStore, key_of
from guardkit.evaluation.rows import Row, Vocabulary
from guardkit.evaluation.sources import Source
from guardkit.guard import Guard
from guardkit.judge import RunningVerdict, run_length
from guardkit.messages import read_messages
from guardkit.models.base import Append, StreamModel
from guardkit.policy import Decision
from guardkit.response import ResponseReader
from guardkit.runner import Steps, run
from guardkit.verdict import SEVERITIES, Stage, Verdict

BATCH = 256
Progress = Callable[[Columns], None]


@dataclass(frozen=True)
class Settings:
    """seed, resamples: of the bootstrap. qwen: Qwen3's tokenizer, for sentences given in its tokens, where the model
    has another. cache: the file of predictions; None keeps nothing."""

    seed: int = 0
    resamples: int = RESAMPLES
    batch: int = BATCH
    cache: Path | None = None
    qwen: spans.Encoder | None = None


def evaluate(
    guard: Guard, name: str, revision: str, source: Source, settings: Settings, progress: Progress | None = None
) -> SetFigures:
    """Judge and score. name, revision: which model this is, in reports and in the cache (see `shown_name`)."""
    start = time.perf_counter()
    locates = source.metric == "locations"
    columns, located = Columns(Vocabulary.of(guard.categories)), Located() if locates else None
    n_cached = 0
    store = PredictionStore(settings.cache, model_key(guard, name, revision)) if settings.cache else None
    try:
        for rows in _chunks(source.rows(), settings.batch):
            wanted = {i: _key(row, locates) for i, row in enumerate(rows) if row.item is not None and row.is_labelled}
            known = store.get(list(set(wanted.values()))) if store else {}
            n_cached += sum(key in known for key in wanted.values())
            new = {key: rows[i] for i, key in wanted.items() if key not in known}
            said = _locate_all(guard, list(new.values())) if locates else _check_all(guard, list(new.values()))
            fresh = dict(zip(new, said, strict=True))
            kept = {key: p for key, p in fresh.items() if isinstance(p, Prediction)}
            if store and kept:
                store.put(kept)
            for i, row in enumerate(rows):
                if i not in wanted:
                    columns.skip(row, row.error)
                    continue
                found = known.get(wanted[i]) or fresh[wanted[i]]
                if isinstance(found, str):
                    columns.skip(row, found)
                    continue
                columns.add(row, found)
                if located is not None:
                    _place(guard, settings.qwen, row, found, located)
            if progress is not None:
                progress(columns)
    finally:
        if store is not None:
            store.close()
    about = {
        "model": name,
        "model_revision": revision,
        "dataset": source.name,
        "spec": source.spec.name if source.spec is not None else None,
        "title": source.title,
        "metric": source.metric,
        "licence": source.licence,
        "revision": source.revision(),
        "seconds": round(time.perf_counter() - start, 3),
        "n_cached": n_cached,
    }
    return compute(about, columns, located, seed=settings.seed, resamples=settings.resamples)


def model_key(guard: Guard, name: str, revision: str) -> str:
    """What a verdict depends on besides the text. The policy is part of it: one that stops a response ends its verdict
    there."""
    settings: dict[str, Any] = {
        "guardkit": __version__,
        "on": runs_on(guard.model),
        "debounce": guard.debounce,
        "normalize": guard.normalize,
        "policy": guard.policy.to_dict(),
    }
    if guard.then is not None:
        settings |= {"then": guard.then.name, "then_on": runs_on(guard.then), "when": guard.when}
    return f"{name} @ {revision} {json.dumps(settings, sort_keys=True)}"


def runs_on(model: StreamModel) -> str:
    """Device and dtype of a checkpoint, which decide a close call; "" for models that have but one way to run."""
    engine = getattr(model, "engine", None)
    return "" if engine is None else f"{engine.model.device} {engine.model.dtype}"


def shown_name(model: str) -> str:
    """A model's name as it may be shown and kept: a server's address without user and password."""
    if "://" not in model:
        return model
    try:
        parts = urlsplit(model)
        _ = parts.port  # what is no port may be half a password
    except ValueError:
        return "a server"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def model_revision(guard: Guard, name: str, asked: str | None) -> str:
    """A name for the very weights: nano's files (its code decides too), a folder's, a hub's commit; of a server only
    what it calls its model. asked: the revision that was asked for."""
    if guard.model.name == "nano":
        from guardkit.models.nano import weights_path

        folder = weights_path().parent
        kinds = (".onnx", ".json", ".txt", ".npy", ".py")
        return _hash((p.name, p.read_bytes()) for p in sorted(folder.iterdir()) if p.suffix in kinds)
    if Path(name).is_dir():
        files = (p for p in sorted(Path(name).iterdir()) if p.is_file())
        return _hash((p.name, f"{p.stat().st_size} {p.stat().st_mtime_ns}".encode()) for p in files)
    if name.startswith(("http://", "https://")):
        return guard.model.name
    try:
        from huggingface_hub import snapshot_download

        kept = snapshot_download(name, revision=asked, allow_patterns=["config.json"], local_files_only=True)
    except Exception:  # not a hub's model, or not in its cache
        return asked or "main"
    return Path(kept).name  # the commit, also where a branch was asked for


def _hash(parts: Iterator[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, data in parts:
        digest.update(name.encode() + b"\0" + data)
    return digest.hexdigest()[:12]


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _key(row: Row, locates: bool) -> bytes:
    item = [row.item, *row.others] if row.others else row.item
    return key_of("locate" if locates else "check", row.stage, item)


# ---------------------------------------------------------------------------------------------------------- judging


def _check_all(guard: Guard, rows: Sequence[Row]) -> list[Prediction | str]:
    """The guard's verdict of each row, or why there is none."""
    out: list[Prediction | str] = [""] * len(rows)
    vocabulary = Vocabulary.of(guard.categories)
    stages: dict[str | None, list[int]] = {}
    for i, row in enumerate(rows):
        stages.setdefault(row.stage, []).append(i)
    for stage, where in stages.items():
        items: list[Any] = [item for i in where for item in (rows[i].item, *rows[i].others)]
        try:
            decisions = iter(guard.decide_batch(items, stage=stage))
        except Exception as error:  # an unknown stage, or a fault of the guard itself: none of these was judged
            for i in where:
                out[i] = f"{type(error).__name__}: {error}"
            continue
        for i in where:
            out[i] = _worst(list(islice(decisions, 1 + len(rows[i].others))), vocabulary)
    return out


def _worst(decisions: Sequence[Decision], vocabulary: Vocabulary) -> Prediction | str:
    """Of the candidates of one record; all must be judged."""
    verdicts = [d.verdict for d in decisions if d.judged and d.verdict is not None]
    if len(verdicts) < len(decisions):
        return next((d.error for d in decisions if d.error), "not judged")
    return _packed(max(verdicts, key=lambda v: (SEVERITIES.index(v.severity), v.scores[v.severity.value])), vocabulary)


def _packed(
    verdict: Verdict, vocabulary: Vocabulary, levels: np.ndarray[Any, np.dtype[np.int8]] | None = None
) -> Prediction:
    safe, controversial, unsafe = (float(verdict.scores[s.value]) for s in SEVERITIES)
    refusal = -1 if verdict.refusal is None else int(verdict.refusal)
    bits = vocabulary.bits(c.value for c in verdict.categories)
    return Prediction(SEVERITIES.index(verdict.severity), bits, refusal, safe, controversial, unsafe, levels)


def _locate_all(guard: Guard, rows: Sequence[Row]) -> list[Prediction | str]:
    """The severity of each token of each row's response, or why there is none: one that fails, fails alone."""
    found = run(guard.model, [partial(_locate, guard, row) for row in rows], guard.timeout)
    return [p if isinstance(p, Prediction) else f"{type(p).__name__}: {p}" for p in found]


def _locate(guard: Guard, row: Row) -> Steps[Prediction]:
    """The severity of every token of a response, read on beyond the point where a stream would be stopped."""
    if isinstance(row.item, str) or row.item is None:
        raise TypeError("a data set with locations needs responses")
    *context, judged = read_messages(row.item)
    if row.others:
        raise TypeError("a data set with locations needs one response a row")
    if judged.stage is not Stage.response:
        raise TypeError(f"a data set with locations needs responses, not a message of role '{judged.role}'")
    if judged.tool_calls or judged.unjudgeable or judged.attached:
        what = [*judged.unjudgeable, *(["tool call"] if judged.tool_calls else []), *(p.what for p in judged.attached)]
        raise NotJudged(f"{', '.join(what)}: only text and reasoning have locations")
    model, reader = guard.model, ResponseReader(guard.model, Stage.response)
    running = RunningVerdict(reader, model, guard.policy, guard.debounce)
    groups = reader.push(row.text)[1] + reader.finish()[1]
    session = model.open(context)
    levels = [np.zeros(0, np.int8)]
    try:
        for tokens in groups:
            scores = yield Append(session, tokens)
            levels.append(model.severities(scores, tokens.stage).astype(np.int8))
            if not running.stopped:
                running.add(tokens, scores)
    finally:
        session.close()
    return _packed(running.verdict, Vocabulary.of(guard.categories), np.concatenate(levels))


def _place(guard: Guard, qwen: spans.Encoder | None, row: Row, found: Prediction, located: Located) -> None:
    """Add a row whose label is not safe to `located`, with its sentence in the model's tokens."""
    if row.severity <= 0 or found.levels is None:
        return
    span = row.span
    if span is None and row.tokens is not None and not isinstance(row.item, str) and row.item is not None:
        encoder = qwen or _qwen_of(guard)
        span = spans.characters(encoder, row.item, *row.tokens) if encoder is not None else None
    reader = ResponseReader(guard.model, Stage.response)
    groups = reader.push(row.text)[1] + reader.finish()[1]
    starts = [s for tokens in groups for s in tokens.starts]
    at = spans.tokens(starts, span) if span is not None else None
    if at is None or len(starts) != len(found.levels):
        located.n_without += 1
        return
    sizes = [len(tokens) for tokens in groups]
    block_ends = np.repeat(np.cumsum(sizes), sizes).tolist() if guard.model.stride > 1 else None
    located.add(found.levels, *at, run_length(guard.model, guard.debounce), block_ends, row.severity)


def _qwen_of(guard: Guard) -> spans.Encoder | None:
    from guardkit.models.qwen_tokenizer import QwenTokenizer

    tokenizer: object = guard.model.tokenizer
    return tokenizer if isinstance(tokenizer, QwenTokenizer) else None


def exit_code(found: Sequence[SetFigures]) -> int:
    """0, or 3 where any row was not judged."""
    return 3 if any(r.n_not_judged or r.n_unread for r in found) else 0
