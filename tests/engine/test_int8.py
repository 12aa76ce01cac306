"""Weights in 8 bits: the same verdicts as in full precision, however the tokens come."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from guardkit import Guard, GuardkitError
from guardkit.engine.cache import ContiguousCache, Run, Slot
from guardkit.engine.checkpoint import Checkpoint, StoredTensor
from guardkit.engine.int8 import Int8Embedding, Int8Linear
from guardkit.engine.onnx_graph import Graph, Matrix
from guardkit.engine.onnx_qwen3 import RUNS, WEIGHTS, OnnxCache, OnnxQwen3, alone_as_among_others, passes
from guardkit.engine.qwen3 import Qwen3
from guardkit.engine.stored_embedding import StoredEmbedding
from guardkit.errors import ModelError, ModelLoadError, NotJudged
from guardkit.verdict import SAME_SCORE
from tests.engine.checkpoints import built, write_gen, write_stream
from tests.engine.test_stream_model import ANSWER, ASK

pytest.importorskip("onnx")
SIZES: dict[str, Any] = {"hidden": 128, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate": 224}
TEXTS = [
    ANSWER,
    "Where is the bakery?",
    "Ein Satz mit Umlauten: äöü.",
    "1 2 3 4 5 6 7 8 9",
    "def f(x):\n    return x + 1\n" * 12,
]


@pytest.fixture(scope="module")
def checkpoint(root: Path) -> Path:
    return built(root, write_stream, positions=2048, **SIZES)


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> Any:
    return Guard.load(str(checkpoint), device="cpu", dtype="float32", policy="loose")


@pytest.fixture(scope="module")
def small(checkpoint: Path) -> Any:
    return Guard.load(str(checkpoint), device="cpu", quantize="int8", policy="loose")


def rows(model: Any, ids: list[int], sizes: list[int]) -> Any:
    engine = model.engine
    sequence, found, at = engine.open(), [], 0
    while at < len(ids):
        n = sizes[len(found) % len(sizes)]
        found.append(engine.submit(sequence, ids[at : at + n], "response").result())
        at += n
    engine.close(sequence)
    return np.concatenate(found)


def test_scores_are_close_to_full_precision(exact: Guard, small: Guard) -> None:
    differences, same = [], []
    for text in TEXTS:
        ids = exact.model.tokenizer.encode(text)[0]  # type: ignore[attr-defined]
        a, b = (torch.tensor(rows(g.model, ids, [len(ids)]))[:, :3].softmax(1) for g in (exact, small))
        differences += (a - b).abs().amax(1).tolist()
        top = a.sort(1).values
        clear = top[:, 2] - top[:, 1] > 0.1
        same += (a.argmax(1) == b.argmax(1))[clear].tolist()
    assert np.median(differences) < 0.02
    assert np.mean(same) >= 0.99


@pytest.mark.parametrize("sizes", [[1], [3, 1, 7], [40]])
def test_a_token_scores_the_same_in_any_pieces(small: Guard, sizes: list[int]) -> None:
    ids = small.model.tokenizer.encode(ANSWER * 2)[0]  # type: ignore[attr-defined]
    whole, pieces = (torch.tensor(rows(small.model, ids, n))[:, :3].softmax(1) for n in ([len(ids)], sizes))
    assert (whole - pieces).abs().max() < SAME_SCORE / 100  # the heads are float sums


def test_a_batch_equals_one_by_one(small: Guard) -> None:
    items: list[Any] = [[*ASK, {"role": "assistant", "content": text}] for text in TEXTS]
    assert small.check_batch([*items, *TEXTS]) == [small.check(item) for item in [*items, *TEXTS]]


def backbone(checkpoint: Path, in_pairs: bool | None = None) -> tuple[OnnxQwen3, OnnxCache]:
    opened = Checkpoint.open(checkpoint)
    shapes = Qwen3.shapes(opened.config)
    take = lambda name: opened.load({name: shapes[name]}, dtype=torch.float32, device="cpu")[name]  # noqa: E731
    embed = StoredEmbedding(opened.tensors["model.embed_tokens.weight"])
    model = OnnxQwen3(opened.config, embed, take, 1, in_pairs)
    return model, OnnxCache(opened.config, torch.float32, torch.device("cpu"), 1 << 16)


def hidden(model: OnnxQwen3, cache: OnnxCache, *texts: tuple[Slot, int, int]) -> list[torch.Tensor]:
    """One step. texts: a slot, and the positions [start, end) of it to compute; token ids follow from positions."""
    runs, spans, row = [], [], 0
    for slot, start, end in texts:
        assert cache.reserve(slot, end)
        runs.append(Run(slot, row, start, end - start))
        spans.append(torch.arange(start, end))
        row += end - start
    cache.begin(runs)
    positions = torch.cat(spans)
    found = model.forward(positions % 250 + 7, positions, cache)
    return list(found.split([len(span) for span in spans]))


def test_rows_in_pairs_are_rows_alone_where_the_cpu_allows_it(checkpoint: Path) -> None:
    found = []
    for in_pairs in (not alone_as_among_others(1), True):
        model, cache = backbone(checkpoint, in_pairs)
        slot, at, rows = Slot(), 0, []
        for n in (5, 1, 1, 2, 1):
            rows += hidden(model, cache, (slot, at, at + n))
            at += n
        found.append(torch.cat(rows))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("sizes", [[200], [1], [2, 5, 1, 64, 3], [127, 2, 1], [129, 65]])
def test_hidden_states_are_the_same_to_the_last_bit(checkpoint: Path, sizes: list[int]) -> None:
    """In any pieces, alone or beside others, of which there may be more than a pass takes."""
    model, cache = backbone(checkpoint)
    whole = hidden(model, cache, (Slot(), 0, 200))[0]
    company = [[Slot() for _ in range(n + 1)] for n in (0, 1, 2, RUNS, 2 * RUNS)]
    at = step = 0
    while at < 200:
        end = min(at + sizes[step % len(sizes)], 200)
        for slots in company:
            others = [(slot, step, step + 1) for slot in slots[1:]]
            found, *of_others = hidden(model, cache, *others[::2], (slots[0], at, end), *others[1::2])[
                len(others[::2]) :
            ]
            assert torch.equal(found, whole[at:end])
            for other in of_others:
                assert torch.equal(other, whole[step : step + 1])
        at, step = end, step + 1


def test_a_long_run_is_computed_in_passes(checkpoint: Path) -> None:
    model, cache = backbone(checkpoint)
    runs = [Run(Slot(), 0, 0, 3), Run(Slot(), 3, 0, 1500), Run(Slot(), 1503, 40, 2)]
    found = [run for some in passes(runs) for run in some]
    assert [run.row for run in found] == [0, *range(3, 1503, found[1].n), 1503]
    assert sum(run.n for run in found) == 1505
    assert max(run.n * run.end for run in found) <= WEIGHTS
    whole = hidden(model, cache, (Slot(), 0, 1500))[0]
    slot = Slot()
    pieces = [hidden(model, cache, (slot, at, at + 300))[0] for at in range(0, 1500, 300)]
    assert torch.equal(torch.cat(pieces), whole)


def test_what_was_rolled_back_leaves_no_trace(checkpoint: Path) -> None:
    model, cache = backbone(checkpoint)
    slot = Slot()
    whole = hidden(model, cache, (Slot(), 0, 40))[0]
    hidden(model, cache, (slot, 0, 33))
    cache.begin([Run(slot, 0, 20, 4)])
    span = torch.arange(20, 24)
    model.forward(span + 100, span, cache)  # other tokens, which are taken back
    assert torch.equal(hidden(model, cache, (slot, 20, 40))[0], whole[20:])


class _Interrupted:
    """A binding that Ctrl-C strikes behind some inputs."""

    def __init__(self, bound: Any, after: int):
        self._bound, self._left = bound, after

    def bind_input(self, *given: Any) -> None:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self._bound.bind_input(*given)

    def bind_output(self, *given: Any) -> None:
        self._bound.bind_output(*given)


@pytest.mark.parametrize("n", [1, 2])
def test_an_interrupt_while_keys_and_values_are_bound_mixes_no_texts(checkpoint: Path, n: int) -> None:
    model, cache = backbone(checkpoint)
    whole = hidden(model, cache, (Slot(), 0, 50))[0]
    first, others = Slot(), [Slot() for _ in range(n)]
    hidden(model, cache, *[(Slot(), 0, 1) for _ in others[1:]], (first, 0, 40), (Slot(), 0, 1))
    runs, span = [Run(slot, 10 * i, 0, 10) for i, slot in enumerate(others)], torch.arange(10).repeat(n)
    for slot in others:
        cache.reserve(slot, 10)
    cache.begin(runs)
    layers = model._layers
    own = layers._bound
    layers._bound = _Interrupted(own, 2 * SIZES["layers"] * n - 1)
    with pytest.raises(KeyboardInterrupt):
        model.forward(span + 100, span, cache)
    layers._bound = own
    model.forward(span + 100, span, cache)
    assert torch.equal(hidden(model, cache, (first, 40, 50))[0], whole[40:])


def test_what_onnxruntime_cannot_compute_is_told_at_load(root: Path) -> None:
    odd = built(root, write_stream, **{**SIZES, "head_dim": 24})
    with pytest.raises(ModelLoadError, match=r"refuses weights in 8 bits .*multiple of 16"):
        Guard.load(str(odd), device="cpu", quantize="int8")


class _OldValue:
    """onnxruntime's before 1.23: it does not say how many bytes it has."""

    def __init__(self, kind: int, *shape: int):
        self.element_type, self.shape = lambda: kind, lambda: list(shape)


def test_a_graph_says_how_long_its_matrices_are() -> None:
    graph = Graph(eps=0.0)
    graph.product("x", Matrix(6, 256, _OldValue(2, 6, 2, 128), _OldValue(1, 12)))
    told = [{entry.key: entry.value for entry in stub.external_data} for stub in graph._constants]
    assert [each["length"] for each in told] == ["1536", "48"]


def test_hidden_states_agree_with_full_precision(checkpoint: Path) -> None:
    model, cache = backbone(checkpoint)
    opened = Checkpoint.open(checkpoint)
    tensors = opened.load(Qwen3.shapes(opened.config), dtype=torch.float32, device="cpu")
    exact = Qwen3.of(opened.config, tensors)
    plain, slot = ContiguousCache(opened.config, torch.float32, torch.device("cpu"), 1 << 16), Slot()
    plain.reserve(slot, 700)
    plain.begin([Run(slot, 0, 0, 700)])
    positions = torch.arange(700)
    wanted = exact.forward(positions % 250 + 7, positions, plain)
    found = hidden(model, cache, (Slot(), 0, 700))[0]
    away = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert away.median() < 0.1
    assert away.max() < 0.3  # attention that is wrong is off by about 1


def in_file(file: Path, name: str) -> StoredTensor:
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:begin])[name]
    return StoredTensor(file, entry["dtype"], tuple(entry["shape"]), begin + entry["data_offsets"][0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_embeddings_stay_in_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    name, table = "model.embed_tokens.weight", torch.randn(300, 48).to(dtype)
    save_file({"before": torch.zeros(7), name: table}, tmp_path / "model.safetensors")
    embed = StoredEmbedding(in_file(tmp_path / "model.safetensors", name))
    ids = torch.tensor([299, 0, 7, 7])
    assert torch.equal(embed(ids), table[ids].float())
    with (tmp_path / "model.safetensors").open("r+b") as file:  # one value of the last row
        file.seek(-2, 2)
        file.write(b"\x01\x02")
    assert torch.equal(embed(ids[1:]), table[ids[1:]].float())
    with pytest.raises(ModelError, match=r"model\.safetensors has changed since it was loaded: load the guard again"):
        embed(ids)
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(ModelError, match="cannot be read any more"):
        embed(ids[1:])


def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    table = torch.zeros(20, 8)
    table[13, 2] = torch.nan
    save_file({"e": table}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match="not finite"):
        StoredEmbedding(in_file(tmp_path / "model.safetensors", "e"))


def test_a_checkpoint_that_changes_under_a_guard_lets_nothing_pass(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "changing")
    guard = Guard.load(str(folder), device="cpu", quantize="int8")
    file = folder / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(NotJudged, match="load the guard again"):
        guard.check("Where is the bakery?")


def test_gen_loads_in_8_bits(root: Path) -> None:
    folder = built(root, write_gen, **SIZES)
    exact = Guard.load(str(folder), device="cpu", dtype="float32")
    small = Guard.load(str(folder), device="cpu", quantize="int8")
    for text in TEXTS:
        a, b = exact.check(text).scores, small.check(text).scores
        assert max(abs(a[name] - b[name]) for name in a) < 0.1


def test_the_weights_take_a_quarter_of_the_memory() -> None:
    weight = torch.randn(256, 512)
    for made in (Int8Linear(weight), Int8Embedding(weight)):
        assert made.weight.nbytes * 4 == weight.nbytes  # type: ignore[attr-defined]


@pytest.mark.parametrize("n", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_own_product(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(96, 64, generator=generator), torch.randn(n, 64, generator=generator)
    found = Int8Linear(weight.to(dtype))(x.to(dtype)).float()
    assert (found - F.linear(x, weight)).abs().max() < 0.5  # sums of 64 products with a deviation of 8


def test_what_cannot_be_asked_for(checkpoint: Path) -> None:
    with pytest.raises(GuardkitError, match="known: int8"):
        Guard.load(str(checkpoint), device="cpu", quantize="int3")
    with pytest.raises(GuardkitError, match="float32"):
        Guard.load(str(checkpoint), device="cpu", quantize="int8", dtype="bfloat16")
    with pytest.raises(GuardkitError, match="quantize"):
        Guard.load("nano", quantize="int8")
