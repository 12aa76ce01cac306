"""The backbone with weights in 8 bits on a CPU, by ONNX Runtime: one graph through all layers.

`MatMulNBits` rounds each row's activations to 8 bits block by block, `GroupQueryAttention` reads and writes keys and
values in place. Neither lets a row depend on the rows beside it, except that one that is alone may be summed in another
order. What differs in the last bit may be rounded to another of 256 steps, which later layers carry on; so no row is
alone where that matters, which is tried at load. Activations, keys and values are float32.

A run's attention needs keys and values of its own. The graph has `RUNS` places for them; a step of more runs is
computed in several passes. A pass of one run, as a stream's tokens are, skips the other places.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from guardkit.engine.cache import GROW, ContiguousCache, Run, Slot
from guardkit.engine.config import Qwen3Config
from guardkit.engine.onnx_graph import BLOCK, MICROSOFT, Graph, Matrix, in_8_bits, refused
from guardkit.engine.qwen3 import POSITIONS, Attention, Embedding, Qwen3, rotary
from guardkit.errors import GuardkitError, ModelLoadError

Take = Callable[[str], Tensor]
RUNS = 8  # of a pass, at most
WEIGHTS = 1 << 20  # of attention, of each head in a pass of one run: what they take in memory is bounded
UNKNOWN = (0, 0)  # address and room of what a place has
SPARE = 2  # rows behind a run's last one that may be written


class OnnxCache(ContiguousCache):
    """The graph attends; this holds what it reads and writes, and says whose rows a step has."""

    runs: Sequence[Run] = ()

    def begin(self, runs: Sequence[Run]) -> None:
        self.runs = runs

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        layers, both, heads, held, dim = shape
        # What is behind the end is read, times zero.
        return torch.zeros((layers, both, heads, held + SPARE, dim), dtype=self.dtype, device=self.device)


class _Layer(NamedTuple):
    input_norm: Tensor
    qkv: Matrix
    q_norm: Tensor
    k_norm: Tensor
    out: Matrix
    post_norm: Tensor
    gate_up: Matrix
    down: Matrix

    @staticmethod
    def of(take: Take) -> _Layer:
        return _Layer(
            take("input_layernorm.weight"),
            in_8_bits(torch.cat([take(f"self_attn.{n}_proj.weight") for n in "qkv"])),
            take("self_attn.q_norm.weight"),
            take("self_attn.k_norm.weight"),
            in_8_bits(take("self_attn.o_proj.weight")),
            take("post_attention_layernorm.weight"),
            in_8_bits(torch.cat([take("mlp.gate_proj.weight"), take("mlp.up_proj.weight")])),
            in_8_bits(take("mlp.down_proj.weight")),
        )


class OnnxQwen3(Qwen3):
    """take: a tensor of the checkpoint by its name; asked for once each, and no more than a layer's are at hand.
    in_pairs: whether rows are computed in pairs; None: if this CPU needs it."""

    def __init__(
        self, config: Qwen3Config, embed: Embedding, take: Take, threads: int | None, in_pairs: bool | None = None
    ):
        super().__init__(config, embed, [], take("model.norm.weight"))
        threads = threads or torch.get_num_threads()
        layers: list[Take] = [
            lambda name, i=i: take(f"model.layers.{i}.{name}")  # type: ignore[misc]
            for i in range(config.num_hidden_layers)
        ]
        try:
            in_pairs = not alone_as_among_others(threads) if in_pairs is None else in_pairs
            steady = is_steady(config, threads, in_pairs)
        except GuardkitError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class
            raise refused(error) from error
        if not steady:
            raise ModelLoadError(
                "quantize='int8': with this CPU and this version of onnxruntime, a token's score depends on its "
                "company; pip install -U onnxruntime, or leave quantize out"
            )
        self._layers = _Layers(config, [_Layer.of(layer) for layer in layers], self.norm, threads, in_pairs)

    def forward(self, ids: Tensor, positions: Tensor, cache: Attention) -> Tensor:
        assert isinstance(cache, OnnxCache)
        return self._layers(self.embed(ids), cache.runs)


def passes(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs of a step, in the order of their rows, as many together as a pass can compute."""
    together: list[Run] = []
    for run in runs:
        most = max(WEIGHTS // run.end, 16)
        if run.n <= most:
            together.append(run)
        if together and (len(together) == RUNS or run.n > most):
            yield together
            together = []
        if run.n > most:
            for at in range(0, run.n, most):
                yield [Run(run.slot, run.row + at, run.start + at, min(most, run.n - at))]
    if together:
        yield together


class _Layers:
    """The graph, and what it is given."""

    def __init__(self, config: Qwen3Config, layers: Sequence[_Layer], norm: Tensor, threads: int, in_pairs: bool):
        c, graph = config, Graph(config.rms_norm_eps)
        self._config, self._in_pairs = config, in_pairs
        x = graph.input("x", "rows", c.hidden_size)
        attention = _Attention(graph, c, in_pairs)
        normed = graph.norm(x, layers[0].input_norm)
        for i, layer in enumerate(layers):
            attended = attention(graph.product(normed, layer.qkv), layer.q_norm, layer.k_norm, i)
            normed, x = graph.add_norm(x, graph.product(attended, layer.out), layer.post_norm)
            gated = graph.gated(graph.product(normed, layer.gate_up), layer.gate_up.n // 2)
            after = layers[i + 1].input_norm if i + 1 < len(layers) else norm
            normed, x = graph.add_norm(x, graph.product(gated, layer.down), after)
        self._out, self._shared = normed, attention.shared
        outputs = [out for shared in attention.shared for _, out in shared]
        self._session = graph.session([normed, *outputs], threads)
        self._turns = _turns(c, POSITIONS + SPARE)
        self._nothing = torch.zeros(1, 2, c.num_key_value_heads, SPARE, c.head_dim)  # in the places without a run
        self._bound = self._session.io_binding()
        self._places = [UNKNOWN] * RUNS  # address and room of the keys and values that are bound
        for place in range(RUNS):
            self._bind(place, self._nothing)

    def __call__(self, x: Tensor, runs: Sequence[Run]) -> Tensor:
        """x [rows, hidden_size], those of the runs -> hidden states after the final norm."""
        found = []
        for some in passes(runs):
            rows = x[some[0].row : some[-1].row + some[-1].n]
            pad = len(rows) % 2 if self._in_pairs else 0  # with a row of zeros
            found.append(torch.from_numpy(self._pass(F.pad(rows, (0, 0, 0, pad)).numpy(), some))[: len(rows)])
        return found[0] if len(found) == 1 else torch.cat(found)

    def _pass(self, x: NDArray[np.float32], runs: Sequence[Run]) -> NDArray[np.float32]:
        """x: the rows of at most `RUNS` runs and, it may be, one more."""
        c, together = self._config, np.array(len(runs) > 1)
        # Attention goes through a run in blocks of even size, and sums a block's only row otherwise. So of the last row
        # of an odd number there are two: its keys and values, once more, come behind its own. In a place without a
        # run, the first row is computed twice, for nothing.
        rows = [[run.row - runs[0].row + min(i, run.n - 1) for i in range(run.n + run.n % 2)] for run in runs]
        rows += [[0, 0]] * (RUNS - len(runs) if together else 0)
        apart = np.array([row for some in rows for row in some], np.int64)
        back = np.zeros(len(x), np.int64)
        back[apart[::-1]] = np.arange(len(apart))[::-1]
        sizes = np.full(RUNS, 2, np.int64)
        sizes[: len(rows)] = [len(some) for some in rows]
        ends = sizes.astype(np.int32)
        ends[: len(runs)] += np.array([run.start for run in runs], np.int32)
        if self._in_pairs and not together:  # as they are
            ends[0] = runs[0].start + len(x)
        if (most := int(ends.max())) > len(self._turns[0]):
            self._turns = _turns(c, min(2 * most, c.max_position_embeddings + SPARE))
        lasts = ends - 1
        out = np.empty(x.shape, np.float32)
        for place in range(RUNS):
            if place < len(runs) or together or self._places[place] == UNKNOWN:
                buffer = runs[place].slot.buffer if place < len(runs) else self._nothing
                assert buffer is not None  # reserved
                self._bind(place, buffer)
        # Each is read where it lies, and lives until the pass is over.
        given: dict[str, NDArray[Any]] = {"x": x, "sizes": sizes, "apart": apart, "back": back, "together": together}
        for name, array in (*given.items(), *zip(("cos", "sin"), self._turns, strict=True)):
            self._feed(name, array, array.shape)
        for place in range(RUNS):
            self._feed(f"last.{place}", lasts[place:], (1,))
            self._feed(f"end.{place}", ends[place:], (1,))
        self._bound.bind_output(self._out, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(self._bound)
        return out

    def _feed(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        self._bound.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def _bind(self, place: int, buffer: Tensor) -> None:
        """Give a place the keys and values in `buffer` [layers, 2, kv_heads, room, D]; unless it has them: a stream's
        tokens come one after another."""
        here = buffer.data_ptr(), buffer.shape[3]
        if self._places[place] == here:
            return
        self._places[place] = UNKNOWN  # an interrupt in between leaves some layers with another text's memory
        shape, step = (1, *buffer.shape[2:]), buffer.stride(1) * buffer.itemsize if len(buffer) > 1 else 0
        for i, (name, out) in enumerate(self._shared[place]):
            address = here[0] + i * step
            self._bound.bind_input(name, "cpu", 0, np.float32, shape, address)
            self._bound.bind_output(out, "cpu", 0, np.float32, shape, address)
        self._places[place] = here


class _Attention:
    """Writes each layer's attention into the graph. shared: of each place, the inputs for the keys and values of all
    layers, with the outputs that are to be given the same memory."""

    def __init__(self, graph: Graph, config: Qwen3Config, in_pairs: bool):
        self._graph, self._config, self._in_pairs = graph, config, in_pairs
        self._are_together = graph.input("together", kind="BOOL")
        self._at = [
            [graph.input(f"{name}.{place}", 1, kind="INT32") for name in ("last", "end")] for place in range(RUNS)
        ]
        self._sizes = graph.input("sizes", RUNS, kind="INT64")
        self._turns = [graph.input(name, "positions", config.head_dim // 2) for name in ("cos", "sin")]
        self._apart, self._back = (graph.input(name, "n", kind="INT64") for name in ("apart", "back"))
        self.shared: list[list[tuple[str, str]]] = [[] for _ in range(RUNS)]

    def __call__(self, qkv: str, q_norm: Tensor, k_norm: Tensor, layer: int) -> str:
        """qkv [rows, (heads + 2 kv_heads) * D] -> [rows, heads * D]"""
        graph, c, dim = self._graph, self._config, self._config.head_dim
        wide, narrow = c.num_attention_heads, c.num_key_value_heads
        q, k, v = graph.split(qkv, graph.whole(wide * dim, narrow * dim, narrow * dim), 3, axis=1)
        rows = [
            self._by_head(q, wide, q_norm),
            self._by_head(k, narrow, k_norm),
            graph.add("Reshape", v, graph.whole(1, -1, narrow * dim)),
        ]
        pasts = [
            [graph.input(f"{what}.{layer}.{place}", 1, narrow, "room", dim) for what in "kv"] for place in range(RUNS)
        ]
        attended, *new = graph.either(
            self._are_together,
            lambda inner: self._together(inner, rows, pasts),
            lambda inner: [*self._alone(inner, rows, pasts[0]), *_as_they_are(inner, pasts[1:])],
        )
        for place, past in enumerate(pasts):
            self.shared[place] += zip(past, new[2 * place : 2 * place + 2], strict=True)
        return graph.add("Reshape", attended, graph.whole(-1, wide * dim))

    def _by_head(self, x: str, heads: int, weight: Tensor) -> str:
        """[rows, heads * D] -> [1, rows, heads * D], each head normed."""
        graph, dim = self._graph, self._config.head_dim
        normed = graph.norm(graph.add("Reshape", x, graph.whole(-1, heads, dim)), weight)
        return graph.add("Reshape", normed, graph.whole(1, -1, heads * dim))

    def _alone(self, graph: Graph, rows: Sequence[str], past: Sequence[str]) -> list[str]:
        """The rows of the only run."""
        if self._in_pairs:
            return self._attend(graph, rows, past, 0)
        attended, *new = self._attend(graph, [graph.add("Gather", x, self._apart, axis=1) for x in rows], past, 0)
        return [graph.add("Gather", attended, self._back, axis=1), *new]

    def _together(self, graph: Graph, rows: Sequence[str], pasts: Sequence[Sequence[str]]) -> list[str]:
        """Each run's rows in its place."""
        apart = [graph.split(graph.add("Gather", x, self._apart, axis=1), self._sizes, RUNS, axis=1) for x in rows]
        attended, new = [], []
        for place, past in enumerate(pasts):
            found = self._attend(graph, [parts[place] for parts in apart], past, place)
            attended.append(found[0])
            new += found[1:]
        return [graph.add("Gather", graph.add("Concat", *attended, axis=1), self._back, axis=1), *new]

    def _attend(self, graph: Graph, rows: Sequence[str], past: Sequence[str], place: int) -> list[str]:
        outputs = [graph.name() for _ in range(3)]
        graph.add(
            "GroupQueryAttention", *rows, *past, *self._at[place], *self._turns,
            outputs=outputs, domain=MICROSOFT, do_rotary=1,
            num_heads=self._config.num_attention_heads, kv_num_heads=self._config.num_key_value_heads,
        )  # fmt: skip
        return outputs


def _as_they_are(graph: Graph, pasts: Sequence[Sequence[str]]) -> list[str]:
    """Keys and values of other places. Nothing is copied, since what is given out lies in the same memory."""
    return [graph.add("Identity", name) for past in pasts for name in past]


def _turns(config: Qwen3Config, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin [positions, D / 2]."""
    tables = rotary(config, range(positions), torch.float32, torch.device("cpu"))
    cos, sin = (table[:, : config.head_dim // 2].contiguous().numpy() for table in tables)
    return cos, sin


def is_steady(config: Qwen3Config, threads: int, in_pairs: bool) -> bool:
    """Whether a row gets the same bits in any company, tried on a layer of random weights with these heads."""
    generator = torch.Generator().manual_seed(0)
    small = replace(config, num_hidden_layers=1, hidden_size=BLOCK, intermediate_size=BLOCK)
    shapes = Qwen3.shapes(small)

    def take(name: str) -> Tensor:
        shape = shapes[f"model.layers.0.{name}"]
        return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / BLOCK**0.5

    layers = _Layers(small, [_Layer.of(take)], torch.ones(BLOCK), threads, in_pairs)
    # Beyond 128 positions, where kernels begin to sum in parts.
    total, cuts = 200, ([200], [*[1] * 12, 164, *[1] * 24], [5, 1, 7, 2, 3, 46, 70, 1, 65])
    cache = OnnxCache(small, torch.float32, torch.device("cpu"), 3 * len(cuts) * -(-total // GROW) * GROW)
    x, found = torch.randn(total, BLOCK, generator=generator), []
    for sizes in cuts:
        slots, at, rows = (Slot(), Slot(), Slot()), 0, []
        for slot in slots:
            cache.reserve(slot, total)
        for n in sizes:
            rows.append(layers(x[at : at + n], [Run(slots[0], 0, at, n)]))
            beside = [Run(slots[1], 0, at, n), Run(slots[2], n, 0, 1)]
            rows.append(layers(torch.cat([x[at : at + n], x[:1]]), beside)[:n])
            at += n
        found += [torch.cat(rows[::2]), torch.cat(rows[1::2])]
    return all(torch.equal(found[0], other) for other in found[1:])


@functools.cache
def alone_as_among_others(threads: int) -> bool:
    """Whether this CPU's kernel gives a row that is alone, or the last of an odd number, the same bits as among others;
    tried once."""
    generator = torch.Generator().manual_seed(0)
    k, n, most = 4 * BLOCK, 96, 512
    graph = Graph(eps=0.0)
    product = graph.product(graph.input("x", "rows", k), in_8_bits(torch.randn(n, k, generator=generator)))
    session = graph.session([product], threads)
    x = torch.randn(most, k, generator=generator).numpy()
    (whole,) = session.run(None, {"x": x})
    sizes = (1, 1, 1, 2, 3, 5, 7, 8, 15, 33, 65)
    return all(
        (session.run(None, {"x": x[i : i + size]})[0] == whole[i : i + size]).all() for i, size in enumerate(sizes)
    )
