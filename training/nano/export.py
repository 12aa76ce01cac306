"""Export nano: torch weights -> one ONNX graph that computes with integers, plus a check that it agrees with torch.

    python training/nano/export.py --work WORK --out guardkit/models/nano

Weights, keys and values take 7 of 8 bits: on CPUs without VNNI the products of an unsigned and a signed byte are
added in pairs in 16 bits, and must not saturate. Weights have a scale for each output channel. Activations are 8-bit at scales fixed here, from training
texts: no scale depends on a batch or a chunk. Sums are 32-bit integers, so every value is exact whatever the shape.
Embeddings keep the 4 bits in blocks of 32 that the base comes in.

Attention: keys, queries and values are 8-bit; the values carry one constant column more a head, so that the same
integer product gives the softmax's numerator and denominator.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from model import Nano, sees
from model import load as load_model
from train import Example, example, load, vocabulary

MS = "com.microsoft"
WEIGHT_MAX = 63  # of weights, keys and values: 2 * 255 * 63 fits 16 bits
ONE = 63  # the constant column of the values
Array = NDArray[Any]


class Ranges:
    """What was seen at each point of the network over sampled positions: the largest magnitudes, as a high quantile; by
    channel, all; products: the sums of x x^T [in, in]."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Array]] = {}
        self.channels: dict[str, Array] = {}
        self.products: dict[str, Array] = {}

    def add(self, name: str, x: torch.Tensor, per: int = 1) -> None:
        """x [..., n * per]; keeps the maxima by token, for `per` > 1 of each of the `per` groups of columns."""
        flat = x.detach().abs().reshape(-1, per, x.shape[-1] // per).amax(-1)
        self.seen.setdefault(name, []).append(flat.float().numpy())
        widest = x.detach().abs().reshape(-1, x.shape[-1]).amax(0).float().numpy()
        self.channels[name] = np.maximum(self.channels.get(name, widest), widest)
        if per == 1:
            rows = x.detach().reshape(-1, x.shape[-1])
            self.products[name] = self.products.get(name, 0.0) + (rows.T @ rows).double().numpy()

    def top(self, name: str, quantile: float = 0.9995) -> Array:
        return np.quantile(np.concatenate(self.seen[name]), quantile, axis=0)


@torch.no_grad()
def measure(model: Nano, examples: list[Example]) -> Ranges:
    """Run the float model over `examples` and record ranges where the graph quantises."""
    ranges = Ranges()
    for e in examples:
        ids = torch.tensor([e.ids])
        visible = sees(len(e.ids), torch.tensor([e.first]))
        x = model.norm(model.words(ids) + model.positions.weight[: ids.shape[1]])
        for i, layer in enumerate(model.layers):
            ranges.add(f"x{i}", x)
            q, k, v = layer.qkv(x).chunk(3, -1)
            ranges.add(f"q{i}", q, layer.heads)
            ranges.add(f"k{i}", k, layer.heads)
            ranges.add(f"v{i}", v, layer.heads)
            split = [t.view(1, -1, layer.heads, 32).transpose(1, 2) for t in (q, k, v)]
            attended = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=visible)
            attended = attended.transpose(1, 2).reshape(x.shape)
            ranges.add(f"a{i}", attended)
            x = layer.norm1(x + layer.out(attended))
            ranges.add(f"m{i}", x)
            g = torch.nn.functional.gelu(layer.up(x))
            ranges.add(f"g{i}", g)
            x = layer.norm2(x + layer.down(g))
        last = x[:, e.first :]
        ranges.add("h", last)
        for side in ("response", "query"):
            pre = torch.nn.functional.gelu(getattr(model, f"{side}_pre")(last))
            ranges.add(f"p_{side}", pre)
    return ranges


SMOOTHING = 0.75  # how much of an activation's uneven range goes into the weights (measured in log.md)


def smooth(widest: Array, weight: Array) -> Array:
    """Scales [in] for an activation's channels, given each one's reach and `weight` [out, in].

    A few channels reach far further than all others (at [CLS] above all); one scale for all would leave the rest a
    handful of steps. (SmoothQuant, arXiv 2211.10438; here all channels then share the unit 1/127.)
    """
    rows = np.abs(weight) / np.maximum(np.abs(weight).max(1, keepdims=True), 1e-9)
    reach = np.maximum(widest, 1e-3 * widest.max())
    scale = reach**SMOOTHING / np.maximum(rows.max(0), 1e-3) ** (1 - SMOOTHING)
    return np.asarray(scale * (reach / scale).max() / 127, np.float32)


def rounded(weight: Array, products: Array) -> Array:
    """Integers [out, in] for `weight` in steps, such that the error of the products with x, whose x x^T sum up to
    `products` [in, in], is small: what rounding one column costs, the columns still to come make good. (GPTQ, arXiv
    2210.17323.)"""
    rest, diagonal = weight.astype(np.float64), np.diag(products)
    order = np.argsort(-diagonal)
    damped = products[np.ix_(order, order)] + 0.01 * diagonal.mean() * np.eye(len(order))
    pull = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest = rest[:, order]
    for column in range(len(order)):
        whole = np.clip(np.round(rest[:, column]), -WEIGHT_MAX, WEIGHT_MAX)
        error = (rest[:, column] - whole) / pull[column, column]
        rest[:, column] = whole
        rest[:, column + 1 :] -= np.outer(error, pull[column, column + 1 :])
    out = np.empty_like(rest)
    out[:, order] = rest
    return out.astype(np.int8)


class Graph:
    """A thin layer over onnx.helper: every call adds a node and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[onnx.TensorProto] = []
        self._names: set[str] = set()
        self.zero_u8 = self.const("zero_u8", np.uint8(0))
        self.mid_u8 = self.const("mid_u8", np.uint8(128))
        self.zero_s8 = self.const("zero_s8", np.int8(0))
        self.one = self.const("one", np.float32(1))

    def const(self, name: str, value: Any) -> str:
        if name not in self._names:
            self._names.add(name)
            self.values.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        name = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))
        return name

    def split(self, x: str, sizes: tuple[int, ...]) -> list[str]:
        outs = [f"n{len(self.nodes)}_{i}" for i in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [x, self.ints(*sizes)], outs, axis=-1))
        return outs

    def quantize(self, x: str, scale: float, zero: str) -> str:
        return self.op("QuantizeLinear", x, self.const(f"scale{len(self.nodes)}", np.float32(scale)), zero)

    def smoothed(self, x: str, ranges: Ranges, name: str, weight: Array, bias: Array) -> str:
        """`linear` on float x, what was seen of which is `name`, quantised at a scale for each channel."""
        scale = smooth(ranges.channels[name], weight)
        scaled = self.op("Mul", x, self.const(f"smooth{len(self.nodes)}", (1 / scale).astype(np.float32)))
        products = ranges.products[name] / np.outer(scale, scale)
        return self.linear(self.quantize(scaled, 1.0, self.mid_u8), 1.0, weight * scale, bias, products)

    def linear(self, x: str, scale: float, weight: Array, bias: Array, products: Array) -> str:
        """x (u8 around 128, at `scale`) times weight [out, in], plus bias."""
        step = np.abs(weight).max(1) / WEIGHT_MAX
        step[step == 0] = 1.0
        w = rounded(weight / step[:, None], products).T
        n = f"w{len(self.nodes)}"
        return self.op(
            "MatMulIntegerToFloat", x, self.const(n, w), self.one,
            self.const(n + "s", (scale * step).astype(np.float32)), self.mid_u8, self.zero_s8,
            self.const(n + "b", bias.astype(np.float32)), domain=MS,
        )  # fmt: skip


def blocks(table: Array, size: int = 32) -> tuple[Array, Array]:
    """Rows [V, H] in 4 bits -> (two values a byte, around 8 [V, H / 2]; a scale for each block of `size` [V, H / size]).

    The base's rows are integers at some scale already; of the scales that put the largest value on an integer the one
    with the least error is that one.
    """
    rows = table.reshape(len(table), -1, size)
    widest = np.abs(rows).max(-1)
    best = np.full(widest.shape, np.inf, np.float32)
    scale = np.ones_like(widest)
    for step in (-8, 8, *range(1, 8)):
        one = (np.maximum(widest, 1e-6) / step).astype(np.float16).astype(np.float32)
        error = np.square(np.clip(np.round(rows / one[..., None]), -8, 7) * one[..., None] - rows).sum(-1)
        better = error < best * 0.99
        best, scale = np.where(better, error, best), np.where(better, one, scale)
    values = (np.clip(np.round(rows / scale[..., None]), -8, 7) + 8).astype(np.uint8).reshape(table.shape)
    print(f"embeddings in 4 bits: relative error {np.sqrt(best.sum() / np.square(rows).sum()):.5f}")
    return values[:, 0::2] | values[:, 1::2] << 4, scale.astype(np.float16)


def build(model: Nano, ranges: Ranges) -> bytes:
    c = model.config
    state = {k: v.detach().float().numpy() for k, v in model.state_dict().items()}
    heads, width = c.heads, c.hidden // c.heads
    kv = c.hidden + heads * (width + 1)
    g = Graph()

    def norm(x: str, y: str, name: str) -> str:
        gamma, beta = (g.const(f"{name}.{p}", state[f"{name}.{p}"]) for p in ("weight", "bias"))
        return g.op("SkipLayerNormalization", x, y, gamma, beta, domain=MS, epsilon=c.eps)

    packed, scale = blocks(state["words.weight"])
    embedded = g.op(
        "GatherBlockQuantized", g.const("words", packed), "ids", g.const("word_scale", scale),
        domain=MS, bits=4, block_size=32, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    embedded = g.op("Cast", embedded, to=TensorProto.FLOAT)
    x = norm(embedded, g.op("Gather", g.const("positions.weight", state["positions.weight"]), "positions"), "norm")
    new = []
    for i in range(c.layers):
        at = f"layers.{i}."
        q, k, v = (ranges.top(f"{n}{i}") for n in "qkv")
        # One product of scales for all heads, so that scores come out in one unit; balanced between q and k.
        unit = float((q * k).max()) / (127 * WEIGHT_MAX)
        sq, sv = np.sqrt(unit * q / k * WEIGHT_MAX / 127), v / WEIGHT_MAX
        sk = unit / sq
        weight, bias = state[at + "qkv.weight"], state[at + "qkv.bias"]
        vw = np.zeros((heads, width + 1, c.hidden), np.float32)
        vb = np.zeros((heads, width + 1), np.float32)
        vw[:, :width] = weight[2 * c.hidden :].reshape(heads, width, -1) / sv[:, None, None]
        vb[:, :width] = bias[2 * c.hidden :].reshape(heads, width) / sv[:, None]
        vb[:, width] = ONE
        all_w = np.concatenate([
            weight[: c.hidden] / np.repeat(sq, width)[:, None],
            weight[c.hidden : 2 * c.hidden] / np.repeat(sk, width)[:, None], vw.reshape(-1, c.hidden),
        ])  # fmt: skip
        all_b = np.concatenate([
            bias[: c.hidden] / np.repeat(sq, width), bias[c.hidden : 2 * c.hidden] / np.repeat(sk, width), vb.reshape(-1),
        ])  # fmt: skip
        qkv = g.quantize(g.smoothed(x, ranges, f"x{i}", all_w, all_b), 1.0, g.zero_s8)
        query, fresh = g.split(qkv, (c.hidden, kv))
        low, high = (g.const(n, np.int8(v)) for n, v in (("low", -WEIGHT_MAX), ("high", WEIGHT_MAX)))
        fresh = g.op("Clip", fresh, low, high)
        new.append(g.op("Unsqueeze", fresh, g.ints(2)))
        past = g.op("Gather", "past", g.const(f"layer{i}", np.int64(i)), axis=2)
        keys, values = g.split(g.op("Concat", past, fresh, axis=1), (c.hidden, kv - c.hidden))
        by_head = g.ints(0, 0, heads, width)
        query = g.op("Transpose", g.op("Reshape", query, by_head), perm=[0, 2, 1, 3])
        keys = g.op("Transpose", g.op("Reshape", keys, by_head), perm=[0, 2, 3, 1])
        values = g.op("Transpose", g.op("Reshape", values, g.ints(0, 0, heads, width + 1)), perm=[0, 2, 1, 3])
        to_score = g.const(f"unit{i}", np.float32(unit / np.sqrt(width)))
        scores = g.op("Add", g.op("MatMulIntegerToFloat", query, keys, to_score, g.one, domain=MS), "mask")
        above = g.op("Sub", scores, g.op("ReduceMax", scores, axes=[-1], keepdims=1))
        share = g.op("QuantizeLinear", g.op("Exp", above), g.const("share", np.float32(1 / 255)), g.zero_u8)
        sums = g.op("MatMulIntegerToFloat", share, values, g.one, g.one, domain=MS)
        above, below = g.split(sums, (width, 1))
        # Numerator / denominator is in units of sv / ONE; bring each channel to its scale of the next product.
        scale = smooth(ranges.channels[f"a{i}"], state[at + "out.weight"])
        units = np.asarray((sv * ONE)[:, None] / scale.reshape(heads, width), np.float32)
        ratio = g.op("Mul", g.op("Div", above, below), g.const(f"ratio{i}", units[:, None, :]))
        attended = g.op("Transpose", g.quantize(ratio, 1.0, g.mid_u8), perm=[0, 2, 1, 3])
        attended = g.op("Reshape", attended, g.ints(0, 0, c.hidden))
        if i == c.layers - 1:  # behind the last attention only the positions that are read matter
            attended, x = (g.op("Gather", g.op("Reshape", t, g.ints(-1, c.hidden)), "rows") for t in (attended, x))
        weight, products = state[at + "out.weight"] * scale, ranges.products[f"a{i}"] / np.outer(scale, scale)
        x = norm(x, g.linear(attended, 1.0, weight, state[at + "out.bias"], products), at + "norm1")
        up = g.smoothed(x, ranges, f"m{i}", state[at + "up.weight"], state[at + "up.bias"])
        inner = g.op("Gelu", up, domain=MS)
        down = g.smoothed(inner, ranges, f"g{i}", state[at + "down.weight"], state[at + "down.bias"])
        x = norm(x, down, at + "norm2")
    logits = []
    for side in ("response", "query"):
        pre, head = ((state[f"{side}_{part}.weight"], state[f"{side}_{part}.bias"]) for part in ("pre", "head"))
        inner = g.op("Gelu", g.smoothed(x, ranges, "h", *pre), domain=MS)
        logits.append(g.smoothed(inner, ranges, f"p_{side}", *head))
    g.op("Concat", *logits, out="logits", axis=-1)
    g.op("Concat", *new, out="new", axis=2)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes, "nano",
        [
            info("ids", TensorProto.INT64, ["B", "T"]), info("positions", TensorProto.INT64, ["B", "T"]),
            info("past", TensorProto.INT8, ["B", "P", c.layers, kv]),
            info("mask", TensorProto.FLOAT, ["M", 1, "T", "S"]), info("rows", TensorProto.INT64, ["N"]),
        ],
        [info("logits", TensorProto.FLOAT, ["N", 24]), info("new", TensorProto.INT8, ["B", "T", c.layers, kv])],
        g.values,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    out = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="guardkit")
    helper.set_model_props(out, {"positions": str(c.positions), "cache_shape": json.dumps([c.layers, kv])})
    return out.SerializeToString()


@torch.no_grad()
def compare(model: Nano, path: Path, examples: list[Example]) -> None:
    """Print how far the graph's probabilities are from torch's, at each example's last position."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape = json.loads(session.get_modelmeta().custom_metadata_map["cache_shape"])
    far = []
    for e in examples:
        ids = np.array([e.ids], np.int64)
        n = ids.shape[1]
        mask = np.where(sees(n, torch.tensor([e.first])).numpy(), np.float32(0), np.float32(-1e9))
        feed = {"ids": ids, "positions": np.arange(n)[None], "past": np.zeros((1, 0, *shape), np.int8), "mask": mask}
        got = torch.tensor(session.run(["logits"], feed | {"rows": np.array([n - 1])})[0])
        hidden = model(torch.tensor(ids), torch.tensor([e.first]), torch.tensor([n - 1]))
        want = model.query(hidden)[:, :3] if e.row.query else model.response(hidden)[:, :3]
        mine = got[:, 12:15] if e.row.query else got[:, :3]
        far.append(((mine.softmax(-1) - want.softmax(-1)).abs().max().item(), mine.argmax() != want.argmax()))
    gaps = np.array([f for f, _ in far])
    flips = sum(int(x) for _, x in far)
    print(f"{path.stat().st_size / 1e6:.1f} MB; |dp| median {np.median(gaps):.4f} p95 {np.quantile(gaps, 0.95):.4f} "
          f"max {gaps.max():.4f}; severity differs on {flips} of {len(far)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=1500, help="training texts that the ranges are measured on")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # texts go one by one: a second thread only waits
    tokenizer = vocabulary(args.work)
    model = load_model(args.work, args.work / "nano.pt")
    model.eval()
    rng = random.Random(1)
    rows = load(args.work / "train.jsonl.gz", tokenizer)
    sample = [e for r in rng.sample(rows, args.texts) if (e := example(r, 192, rng))]
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / "nano.onnx"
    target.write_bytes(build(model, measure(model, sample)))
    for name in ("pieces.txt", "scores.npy"):
        shutil.copy(args.work / name, args.out / name)
    dev = load(args.work / "dev.jsonl.gz", tokenizer)
    compare(model, target, [e for r in rng.sample(dev, min(800, len(dev))) if (e := example(r, 192, None))])


if __name__ == "__main__":
    main()
