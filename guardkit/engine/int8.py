"""Weights in 8 bits: a quarter of float32's memory, and of the reading that a streamed token waits for.

Each row of a matrix is cut into blocks of `BLOCK` weights that share a scale. Nothing is fitted to data, so any
checkpoint can be loaded like this.

* On a CPU, ONNX Runtime's `MatMulNBits` multiplies; it rounds each row's activations to 8 bits block by block, so that
  a row's result does not depend on the rows beside it. Yet what differs in the last bit may be rounded to another of
  256 steps, which later layers carry on: so rows are computed in pairs (the last one of an odd number is summed in
  another order), and attention in blocks that lie still (`AlignedCache`). The two halves of a layer, before and after
  attention, are one graph each: norms, products, rotary positions and the gate run without a way back to Python.
  Activations, keys and values are float32.
* Elsewhere only the weights are rounded, a scale a row. On a GPU a kernel of ours multiplies single rows; more are
  multiplied with the weights put back. Other devices have torch's own kernel, where there is one.

Embeddings are kept a scale a row. Heads stay as they are: they are small, and verdicts are read off them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.config import Qwen3Config
from guardkit.engine.qwen3 import Embedding, FloatLayer, Linear, Qwen3, qk_norm
from guardkit.errors import MissingExtra, ModelLoadError

BLOCK = 128  # weights that share a scale
ZERO = 128  # what a weight of 0 is stored as
OPSET = 17
ROWS = 8  # the most rows of torch's 8-bit product; beyond, it is slower than a product with the weights put back


def load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, threads: int | None) -> Qwen3:
    """The backbone of `checkpoint`, one layer after another: no more than one is ever at hand in full precision."""
    config = checkpoint.config

    def take(name: str) -> Tensor:
        return checkpoint.load({name: shapes[name]}, dtype=dtype, device=device)[name]

    shapes = Qwen3.shapes(config)
    checkpoint.check(shapes)
    layers: list[FloatLayer | OnnxLayer] = []
    for i in range(config.num_hidden_layers):
        own: Callable[[str], Tensor] = lambda name, i=i: take(f"model.layers.{i}.{name}")  # type: ignore[misc]  # noqa: E731
        layers.append(OnnxLayer(config, own, threads) if device.type == "cpu" else FloatLayer(config, own, Int8Linear))
    embed = Int8Embedding(take("model.embed_tokens.weight"))
    return Qwen3(config, embed, layers, take("model.norm.weight"))


def _by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> int8 [N, K] and scales [N, 1], in the weight's dtype."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (weight.float() / scale).round_().to(torch.int8), scale.to(weight.dtype)


class Int8Embedding(Embedding):
    def __init__(self, weight: Tensor):
        super().__init__(torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
        self._scale = torch.empty((len(weight), 1), dtype=weight.dtype, device=weight.device)
        for at in range(0, len(weight), 1 << 14):  # in pieces: a vocabulary is large
            rows = slice(at, at + (1 << 14))
            self.weight[rows], self._scale[rows] = _by_row(weight[rows])

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).to(self._scale.dtype) * self._scale[ids]


class Int8Linear(Linear):
    """A matrix without bias in 8 bits, a scale a row."""

    def __init__(self, weight: Tensor):
        self.weight, scale = _by_row(weight)
        self.scale: Tensor = scale[:, 0]
        # CUDA's kernel of that name takes ten times as long as the weights put back (H200).
        self._packed = weight.device.type != "cuda" and _has_product(weight.device, weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed and len(x) <= ROWS:
            return torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.weight, self.scale)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


_products: dict[tuple[str, torch.dtype], bool] = {}


def _has_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's 8-bit product exists here and is right; tried once on a small matrix."""
    key = (device.type, dtype)
    if key not in _products:
        try:
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(64, 64, generator=generator).to(device, dtype)
            x = torch.randn(ROWS, 64, generator=generator).to(device, dtype)
            rounded, scale = _by_row(weight)
            found = torch.ops.aten._weight_int8pack_mm(x, rounded, scale[:, 0])
            _products[key] = torch.allclose(found, F.linear(x, rounded.to(dtype) * scale), rtol=2e-2, atol=2e-1)
        except (RuntimeError, NotImplementedError, AttributeError):
            _products[key] = False
    return _products[key]


class OnnxLayer:
    """A decoder layer on a CPU: the graphs before and after attention."""

    def __init__(self, config: Qwen3Config, take: Callable[[str], Tensor], threads: int | None):
        c, heads = config, config.num_attention_heads + 2 * config.num_key_value_heads
        turned = config.num_attention_heads + config.num_key_value_heads
        before = _Graph(c)
        x = before.input("x", [c.hidden_size])
        cos, sin = before.input("cos", [1, c.head_dim]), before.input("sin", [1, c.head_dim])
        normed = before.norm(x, take("input_layernorm.weight"))
        qkv = before.product(normed, torch.cat([take(f"self_attn.{n}_proj.weight") for n in "qkv"]))
        qkv = before.add("Reshape", qkv, before.whole([-1, heads, c.head_dim]))
        qk, v = before.split(qkv, [turned, heads - turned], axis=1)
        qk = before.norm(qk, torch.ones(c.head_dim))
        qk = before.add("Mul", qk, before.constant(qk_norm(config, take)))
        low, high = before.split(qk, [c.head_dim // 2] * 2, axis=2)
        half = before.add("Concat", before.add("Neg", high), low, axis=-1)
        qk = before.add("Add", before.add("Mul", qk, cos), before.add("Mul", half, sin))
        self._before = before.session({qk: [turned, c.head_dim], v: [heads - turned, c.head_dim]}, threads)

        after = _Graph(c)
        x, attended = after.input("x", [c.hidden_size]), after.input("attended", [c.num_attention_heads * c.head_dim])
        x = after.add("Add", x, after.product(attended, take("self_attn.o_proj.weight")))
        normed = after.norm(x, take("post_attention_layernorm.weight"))
        both = after.product(normed, torch.cat([take("mlp.gate_proj.weight"), take("mlp.up_proj.weight")]))
        gate, up = after.split(both, [c.intermediate_size] * 2, axis=1)
        gated = after.add("Mul", after.add("Mul", gate, after.add("Sigmoid", gate)), up)
        x = after.add("Add", x, after.product(gated, take("mlp.down_proj.weight")))
        self._after = after.session({x: [c.hidden_size]}, threads)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        qk, v = self._before.run(None, {"x": _even(x), "cos": _even(cos), "sin": _even(sin)})
        return torch.from_numpy(qk)[: len(x)], torch.from_numpy(v)[: len(x)]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        (out,) = self._after.run(None, {"x": _even(x), "attended": _even(attended)})
        return torch.from_numpy(out)[: len(x)]


def _even(rows: Tensor) -> Any:
    """With a row of zeros behind an odd number of rows."""
    odd = len(rows) % 2
    return (torch.cat([rows, rows.new_zeros((1, *rows.shape[1:]))]) if odd else rows.contiguous()).numpy()


class _Graph:
    """An ONNX graph under construction. Values are known by name; the first dimension of each is the row."""

    def __init__(self, config: Qwen3Config):
        try:
            self._onnx: Any = importlib.import_module("onnx")
        except ImportError as error:
            raise MissingExtra("quantize='int8'", "torch") from error
        self._eps = config.rms_norm_eps
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._matrices: dict[str, Any] = {}  # handed over beside the graph: in it, they would stay in memory twice
        self._inputs: list[Any] = []

    def input(self, name: str, shape: list[int]) -> str:
        self._inputs.append(self._value(name, shape))
        return name

    def _value(self, name: str, shape: list[int]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, ["rows", *shape])

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(op, inputs, [name], domain=domain, **attributes))
        return name

    def split(self, x: str, sizes: list[int], axis: int) -> tuple[str, str]:
        names = [f"v{len(self._nodes)}.{i}" for i in range(2)]
        self._nodes.append(self._onnx.helper.make_node("Split", [x, self.whole(sizes)], names, axis=axis))
        return names[0], names[1]

    def constant(self, tensor: Tensor) -> str:
        name = f"c{len(self._constants)}"  # scalars and norms
        self._constants.append(self._onnx.numpy_helper.from_array(tensor.numpy(), name))
        return name

    def whole(self, numbers: list[int]) -> str:
        return self.constant(torch.tensor(numbers, dtype=torch.int64))

    def norm(self, x: str, weight: Tensor) -> str:
        return self.add(
            "SimplifiedLayerNormalization", x, self.constant(weight), axis=-1, epsilon=self._eps, stash_type=1
        )

    def product(self, x: str, weight: Tensor) -> str:
        """x [rows, K] times `weight` [N, K] transposed, the weight in blocks of 8 bits."""
        n, k = weight.shape
        blocks = F.pad(weight, (0, -k % BLOCK)).view(n, -1, BLOCK)
        scale = blocks.abs().amax(2, keepdim=True).clamp_min(1e-12) / 127
        stored = self._matrix(((blocks / scale).round_() + ZERO).to(torch.uint8))
        scales = self._matrix(scale.flatten())
        return self.add(
            "MatMulNBits", x, stored, scales,
            domain="com.microsoft", K=k, N=n, bits=8, block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip

    def _matrix(self, tensor: Tensor) -> str:
        from guardkit.ort import ort

        onnx, name = self._onnx, f"m{len(self._matrices)}"
        self._matrices[name] = ort.OrtValue.ortvalue_from_numpy(tensor.numpy())
        kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
        stub = onnx.TensorProto(name=name, data_type=kind, dims=tensor.shape, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", "memory"), ("offset", "0"), ("length", str(tensor.nbytes))):
            stub.external_data.add(key=key, value=value)
        self._constants.append(stub)
        return name

    def session(self, outputs: dict[str, list[int]], threads: int | None) -> Any:
        from guardkit.ort import ort

        onnx = self._onnx
        shown = [self._value(name, shape) for name, shape in outputs.items()]
        graph = onnx.helper.make_graph(self._nodes, "half", self._inputs, shown, self._constants)
        versions = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("com.microsoft", 1)]
        model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=9)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        # Threads that wait would take the cores from attention, which is torch's.
        options.add_external_initializers(list(self._matrices), list(self._matrices.values()))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelLoadError(
                f"onnxruntime {ort.__version__} refuses weights in 8 bits ({error}); pip install -U onnxruntime, or "
                "leave quantize out"
            ) from error
