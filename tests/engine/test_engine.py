"""The engine against transformers on the same weights, however the tokens come; and its housekeeping."""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guardkit import GuardkitError, Overloaded, telemetry
from guardkit.engine.cache import Cache, ContiguousCache, Slot
from guardkit.engine.config import Qwen3Config
from guardkit.engine.engine import Engine, Limits
from guardkit.engine.paged_cache import PagedCache
from guardkit.engine.qwen3 import Qwen3, rotary
from guardkit.telemetry.prometheus import Prometheus
from tests.asking import eventually
from tests.engine.checkpoints import reference_logits

CPU = torch.device("cpu")
CACHES = (ContiguousCache, PagedCache)


def engine_of(model: Any, cache: type[Cache] = ContiguousCache, capacity: int = 1 << 14, **limits: Any) -> Engine:
    """An engine of its own over the shared weights."""
    own = cache(model.engine.model.config, torch.float32, CPU, capacity)
    settings = Limits(**{"step_tokens": 96, "mixed_tokens": 24, "max_sequences": 64, **limits})
    return Engine(model.engine.model, model.engine.heads, own, settings)


def ids_of(seed: int, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 151643, n)]


@pytest.fixture(scope="module")
def text(folder: Path) -> tuple[list[int], dict[str, np.ndarray]]:
    """Ids, and the reference's logits by head."""
    ids = ids_of(0, 300)
    found = reference_logits(folder, ids)
    response = torch.cat([found.risk, found.category], 1).numpy()
    query = torch.cat([found.query_risk, found.query_category], 1).numpy()
    return ids, {"response": response, "query": query}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def feed(engine: Engine, sequence: Any, ids: list[int], sizes: list[int], head: str = "response") -> np.ndarray:
    out, at = [], 0
    while at < len(ids):
        n = sizes[len(out) % len(sizes)]
        out.append(engine.submit(sequence, ids[at : at + n], head).result())
        at += n
    return np.concatenate(out)


def test_rotations_are_computed_as_far_as_texts_reach() -> None:
    config = Qwen3Config(8, 8, 1, 1, 1, 64, 1e6, 5000, head_dim=16)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in Qwen3.shapes(config).items()}
    model = Qwen3.of(config, tensors)
    whole = rotary(config, range(5000), torch.float32, CPU)
    at_load = len(model.cos)
    assert at_load < 2000
    asked = torch.tensor([7, 4, 4998])
    seen: list[torch.Tensor] = []

    class Nobody:
        """Attention that sees nothing else."""

        fused = None

        def attend(self, _: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            seen.append(q)
            return v.flatten(1)

    for positions in (asked[:2], torch.tensor([at_load, 3]), asked):
        model.forward(positions % 64, positions, Nobody())
        assert len(model.cos) <= max(2 * at_load, 5000)
    assert torch.equal(seen[0], seen[2][:2])
    for table, expected in zip((model.cos, model.sin), whole, strict=True):
        assert torch.equal(table, expected[: len(table)])
    assert len(model.cos) == 4999


@pytest.mark.parametrize("head", ["response", "query"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sizes", [[300], [1], [7, 1, 64, 1, 1, 130]], ids=["one shot", "token by token", "chunks"])
def test_logits_equal_transformers(model: Any, text: Any, cache: type[Cache], sizes: list[int], head: str) -> None:
    ids, expected = text
    engine = engine_of(model, cache)
    close(feed(engine, engine.open(), ids, sizes, head), expected[head])


@pytest.mark.parametrize("cache", CACHES)
def test_strangers_in_the_batch_change_nothing(model: Any, folder: Path, text: Any, cache: type[Cache]) -> None:
    ids, expected = text
    engine = engine_of(model, cache)
    others = [ids_of(seed, 40 * seed) for seed in (1, 2, 3)]
    sequences = [engine.open() for _ in range(4)]
    found: list[list[Future[Any]]] = [[] for _ in sequences]
    for at in range(0, 300, 5):
        for i, all_ids in enumerate([ids, *others]):
            if all_ids[at : at + 5]:
                found[i].append(engine.submit(sequences[i], all_ids[at : at + 5], "response"))
    close(np.concatenate([f.result() for f in found[0]]), expected["response"])
    for i, other in enumerate(others, 1):
        reference = reference_logits(folder, other)
        close(np.concatenate([f.result() for f in found[i]])[:, :3], reference.risk.numpy())


@pytest.mark.parametrize("cache", CACHES)
def test_tokens_on_trial_leave_no_trace(model: Any, text: Any, cache: type[Cache]) -> None:
    ids, expected = text
    engine = engine_of(model, cache)
    sequence = engine.open()
    found = []
    for at in range(0, 300, 60):
        trial = engine.submit(sequence, [*ids[at : at + 3], *ids_of(at, 150)], "response", keep=False).result()
        close(trial[:3], expected["response"][at : at + 3])
        found.append(engine.submit(sequence, ids[at : at + 60], "response").result())
    close(np.concatenate(found), expected["response"])
    assert sequence.ids == ids


@pytest.mark.parametrize(
    ("cache", "host_tokens"), [(ContiguousCache, 0), (PagedCache, 0), (PagedCache, 1 << 14)], ids=str
)
def test_evicted_sequences_come_back_as_they_were(model: Any, text: Any, cache: type[Cache], host_tokens: int) -> None:
    """Three sequences in a cache with room for little more than one."""
    ids, expected = text
    engine = engine_of(model, cache, capacity=384, host_tokens=host_tokens)
    assert engine.max_tokens == 384
    sequences = [engine.open() for _ in range(3)]
    found: list[list[np.ndarray]] = [[], [], []]
    for at in range(0, 300, 50):
        for i, sequence in enumerate(sequences):
            engine.submit(sequence, [1, 2, 3], "response", keep=False).result()
            found[i].append(engine.submit(sequence, ids[at : at + 50], "response").result())
    for parts in found:
        close(np.concatenate(parts), expected["response"])
    assert engine.counters.evicted > 3
    assert bool(engine.counters.restored) is bool(host_tokens)
    assert engine.cache.used <= 384
    for sequence in sequences:
        engine.close(sequence)
    assert eventually(lambda: (engine.cache.used, engine.open_sequences, engine._saved_tokens) == (0, 0, 0))


class _Full(PagedCache):
    """On a device without memory for copies: to the host (every second time), or back."""

    saves = 0

    def save(self, slot: Slot, n_tokens: int) -> Callable[[], None]:
        self.saves += 1
        if self.saves % 2:
            raise RuntimeError("CUDA out of memory")

        def put_back() -> None:
            raise RuntimeError("CUDA out of memory")

        return put_back


def test_what_cannot_be_copied_on_eviction_is_computed_again(model: Any, text: Any) -> None:
    ids, expected = text
    engine = engine_of(model, _Full, capacity=384, host_tokens=1 << 14)
    sequences = [engine.open() for _ in range(2)]
    found: list[list[np.ndarray]] = [[], []]
    for at in range(0, 300, 50):
        for i, sequence in enumerate(sequences):
            found[i].append(engine.submit(sequence, ids[at : at + 50], "response").result())
    for parts in found:
        close(np.concatenate(parts), expected["response"])
    assert engine.cache.saves >= 4
    assert engine.counters.restored == 0
    for sequence in sequences:
        engine.close(sequence)
    assert eventually(lambda: (engine.cache.used, engine._saved_tokens) == (0, 0))


def test_what_is_read_starts_where_it_was_asked(model: Any, text: Any) -> None:
    ids, expected = text
    engine = engine_of(model)
    close(engine.submit(engine.open(), ids, "query", read_from=299).result(), expected["query"][299:])
    sequence = engine.open()
    assert engine.submit(sequence, ids[:200]).result().size == 0
    close(engine.submit(sequence, ids[200:], "response", read_from=40).result(), expected["response"][240:])


def test_short_pieces_do_not_wait_for_long_texts(model: Any) -> None:
    """A long prefill takes many steps; a short piece that comes after it is done long before."""
    engine = engine_of(model)
    order: list[str] = []
    long = engine.submit(engine.open(), ids_of(1, 6000), "response")
    long.add_done_callback(lambda _: order.append("long"))
    sequence = engine.open()
    for i in range(5):
        engine.submit(sequence, ids_of(i, 2), "response").result()
        order.append("short")
    long.result()
    time.sleep(0.05)
    assert order == ["short"] * 5 + ["long"]


def test_no_sequence_starves(model: Any) -> None:
    """More short pieces than a step takes, for ever: a long text still gets through."""
    engine = engine_of(model, step_tokens=48, mixed_tokens=16)
    long = engine.submit(engine.open(), ids_of(1, 400), "response")
    sequences = [engine.open() for _ in range(40)]
    for _ in range(60):
        pending = [engine.submit(s, [5], "response", keep=False) for s in sequences]
        for future in pending:
            future.result()
        if long.done():
            return
    raise AssertionError("the long text never came through")


def test_of_many_long_texts_the_first_are_done_while_the_last_wait(model: Any) -> None:
    engine = engine_of(model, step_tokens=50)
    with engine._loop.turn() as turn:
        found = [engine.submit(engine.open(), ids_of(i, 200), "response", read_from=199) for i in range(20)]
        for _ in range(40):  # half of the steps that they take
            turn.step()
        done = [future.done() for future in found]
        assert 8 <= sum(done) <= 10
        assert all(done[:8])
        while turn.step():
            pass
    assert all(future.done() for future in found)


def test_a_very_long_text_stops_no_others(model: Any) -> None:
    engine = engine_of(model, step_tokens=50)
    with engine._loop.turn() as turn:
        very = engine.submit(engine.open(), ids_of(1, 1000), "response", read_from=999)
        for i in range(5):
            other = engine.submit(engine.open(), ids_of(2 + i, 80), "response")
            for _ in range(4):
                turn.step()
            assert other.done()
        assert not very.done()
        while turn.step():
            pass
    assert very.done()


def test_texts_of_a_step_each_do_not_stop_a_very_long_one(model: Any) -> None:
    engine = engine_of(model, step_tokens=50)
    with engine._loop.turn() as turn:
        very = engine.submit(engine.open(), ids_of(1, 600), "response", read_from=599)
        others = [engine.submit(engine.open(), ids_of(i, 45), "response") for i in (2, 3)]
        for i in range(30):  # of two steps one
            turn.step()
            for at, other in enumerate(others):
                if other.done():  # its caller asks again
                    others[at] = engine.submit(engine.open(), ids_of(4 + i, 45), "response")
        assert very.done()
        while turn.step():
            pass
    assert all(other.done() for other in others)


def test_bad_ids_and_too_many_are_refused_at_once(model: Any) -> None:
    engine = engine_of(model, capacity=256)
    sequence = engine.open()
    for bad in ([-1], [151936], [5, 1 << 40]):
        with pytest.raises(ValueError, match="token ids"):
            engine.submit(sequence, bad)
    engine.submit(sequence, ids_of(0, 200)).result()
    with pytest.raises(ValueError, match="200 \\+ 57 tokens do not fit into 256"):
        engine.submit(sequence, ids_of(0, 57))
    engine.submit(sequence, ids_of(0, 56), "response").result()


def test_admission(model: Any) -> None:
    engine = engine_of(model, max_sequences=2)
    first, _ = engine.open(), engine.open()
    with pytest.raises(Overloaded, match="2 streams are open"):
        engine.open()
    engine.open(counted=False)
    engine.close(first)
    engine.close(first)
    engine.open()


def test_a_failing_step_fails_its_requests_and_no_others(model: Any, text: Any) -> None:
    ids, expected = text
    engine = engine_of(model)
    engine.heads = {**engine.heads, "broken": lambda _: 1 / 0}  # type: ignore[dict-item]
    good, bad = engine.open(), engine.open()
    before = engine.submit(good, ids[:100], "response").result()
    with pytest.raises(ZeroDivisionError):
        engine.submit(bad, [1], "broken").result()
    with pytest.raises(ValueError, match="over"):
        engine.submit(bad, [1], "response")
    after = engine.submit(good, ids[100:], "response").result()
    close(np.concatenate([before, after]), expected["response"])
    assert engine.open_sequences == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_forked_child_inherits_undone_is_over_there_and_never_read_as_done(model: Any, text: Any) -> None:
    """Tokens that were still in the inbox, such as a stream's context: what follows them must not be judged without."""
    ids, expected = text
    engine = engine_of(model)
    sequence, cut = engine.open(), engine.open()
    engine.submit(cut, ids[:20]).result()
    with engine._loop.turn():
        context = engine.submit(sequence, ids[:50])
        engine.truncate(cut, 5)
        child = os.fork()
        if not child:
            try:
                with pytest.raises(GuardkitError, match="the parent process"):
                    context.result(0)
                with pytest.raises(ValueError, match="over"):
                    engine.submit(sequence, ids[50:60], "response")
                assert cut.ids == ids[:5]
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    close(engine.submit(sequence, ids[50:60], "response").result(), expected["response"][50:60])


def test_closing_cancels_what_waits_and_frees_the_slot(model: Any) -> None:
    engine = engine_of(model)
    sequences = [engine.open() for _ in range(6)]
    pending = [engine.submit(s, ids_of(i, 900), "response") for i, s in enumerate(sequences)]
    for sequence in sequences[1:]:
        engine.close(sequence)
    assert pending[0].result().shape == (900, 11)
    assert all(f.cancelled() for f in pending[1:])
    engine.close(sequences[0])
    assert eventually(lambda: (engine.cache.used, engine.open_sequences) == (0, 0))
    with pytest.raises(ValueError, match="over"):
        engine.submit(sequences[0], [1])


@pytest.mark.parametrize("cache", CACHES)
def test_metrics_read_the_cache_and_what_waits(model: Any, cache: type[Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    # The metrics are of all engines there are: none of those that other tests left may go in between.
    gc.collect()
    monkeypatch.setattr("guardkit.loop.IDLE_S", 60)
    gc.disable()
    try:
        _metrics(model, cache)
    finally:
        gc.enable()


def _metrics(model: Any, cache: type[Cache]) -> None:
    def read() -> dict[str, float]:
        found = telemetry.readings()
        return {metric.name: value for metric, labels, value in found if labels == {"loop": "engine"}}

    before = read()
    metrics = Prometheus()
    engine = engine_of(model, cache, capacity=4096)
    sequence = engine.open()
    engine.submit(sequence, ids_of(1, 100), "response").result()
    held = read()
    assert held["guardkit.cache.used"] - before["guardkit.cache.used"] == 128  # in steps of 64 tokens
    assert held["guardkit.cache.room"] - before["guardkit.cache.room"] == 4096
    assert held["guardkit.queue.depth"] == 0
    engine.close(sequence)
    eventually(lambda: read()["guardkit.cache.used"] == before["guardkit.cache.used"])
    assert b'guardkit_batch_rows_count{loop="engine"}' in metrics.text()
    engine.shut("over")
    assert read()["guardkit.cache.room"] == before["guardkit.cache.room"]
    metrics.close()


def test_a_cancelled_future_does_not_stop_the_sequence(model: Any, text: Any) -> None:
    ids, expected = text
    engine = engine_of(model)
    engine.submit(engine.open(), ids_of(9, 2000))  # so that the next ones wait
    sequence = engine.open()
    engine.submit(sequence, ids[:150], "response").cancel()
    close(engine.submit(sequence, ids[150:], "response").result(), expected["response"][150:])


def test_the_worker_ends_when_idle_and_comes_back(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardkit.loop.IDLE_S", 0.05)
    engine = engine_of(model)
    sequence = engine.open()
    for _ in range(2):
        engine.submit(sequence, [1], "response").result()
        worker = engine._loop._thread
        assert worker is not None
        worker.join(60)
        assert not worker.is_alive()
        assert engine._loop._thread is None


def test_many_threads_share_an_engine(model: Any, text: Any) -> None:
    ids, expected = text
    engine = engine_of(model, capacity=2048)
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        sequence = engine.open()
        found[i] = feed(engine, sequence, ids, [1 + i, 30])
        engine.close(sequence)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        close(found[i], expected["response"])
    assert eventually(lambda: (engine.cache.used, engine.open_sequences) == (0, 0))


@pytest.mark.slow
def test_bfloat16_at_true_shapes_agrees_where_the_margin_is_clear() -> None:
    """0.6B's shapes, random weights: float32 by transformers against bfloat16 here, token by token and in chunks."""
    from transformers import Qwen3Config as ReferenceConfig
    from transformers import Qwen3Model

    from guardkit.engine.config import Qwen3Config

    sizes = {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 4096, "max_position_embeddings": 8192,
    }  # fmt: skip
    config = Qwen3Config(**sizes, rope_theta=1e6)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * shape[1] ** -0.5
        for name, shape in Qwen3.shapes(config).items()
    }
    tensors = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}
    heads = torch.randn(11, 1024, generator=generator) * 1024**-0.5
    ids = ids_of(3, 96)
    ids = [i % 4096 for i in ids]
    with torch.inference_mode():
        parameters = {"rope_theta": 1e6, "rope_type": "default"}
        reference = Qwen3Model(ReferenceConfig(**sizes, rope_parameters=parameters)).eval()
        reference.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items()})
        expected = (reference(torch.tensor([ids])).last_hidden_state[0] @ heads.T).numpy()
        del reference
    model = Qwen3.of(config, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    cache = ContiguousCache(config, torch.bfloat16, CPU, 1024)
    engine = Engine(model, {"response": lambda h: h.float() @ heads.T}, cache, Limits(64, 16))
    for found in (feed(engine, engine.open(), ids, [1]), feed(engine, engine.open(), ids, [40, 1, 17])):
        for part in (slice(0, 3), slice(3, 11)):
            ordered = np.sort(expected[:, part], axis=1)
            error = np.abs(found[:, part] - expected[:, part]).max()
            clear = ordered[:, -1] - ordered[:, -2] > 2 * error
            assert error < 0.5  # logits have a deviation of about 1
            assert clear.mean() > 0.5
            assert (found[:, part].argmax(1) == expected[:, part].argmax(1))[clear].all()
