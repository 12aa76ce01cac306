"""ONNX graphs of a decoder's pieces, with weights in 8 bits: ONNX Runtime's `MatMulNBits` multiplies, and its
`GroupQueryAttention` attends."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.config import Qwen3Config
from guardkit.errors import MissingExtra, ModelLoadError

BLOCK = 128  # weights that share a scale
ZERO = 128  # what a weight of 0 is stored as
OPSET = 17
SPIN_US = 50  # how long a thread looks for more work before it sleeps; waking it takes as long
SPINS_BOUNDED = (1, 32)  # the version of ONNX Runtime from which on that is known to be heeded
MICROSOFT = "com.microsoft"  # the domain of its own operators


class Matrix(NamedTuple):
    """A matrix [n, k] in blocks of 8 bits, outside of any graph: several graphs share it."""

    n: int
    k: int
    stored: Any
    scales: Any


def in_8_bits(weight: Tensor) -> Matrix:
    from guardkit.ort import ort

    n, k = weight.shape
    blocks = F.pad(weight, (0, -k % BLOCK)).view(n, -1, BLOCK)
    scale = blocks.abs().amax(2, keepdim=True).clamp_min(1e-12) / 127
    stored = ((blocks / scale).round_() + ZERO).to(torch.uint8)
    return Matrix(n, k, *(ort.OrtValue.ortvalue_from_numpy(t.numpy()) for t in (stored, scale.flatten())))


class Graph:
    """A graph under construction. Values are known by name; the first dimension of each is the row, unless said."""

    def __init__(self, eps: float):
        try:
            self._onnx: Any = importlib.import_module("onnx")
        except ImportError as error:
            raise MissingExtra("quantize='int8'", "torch") from error
        self._eps = eps
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._matrices: dict[str, Any] = {}  # handed over beside the graph: in it, they would stay in memory twice
        self._inputs: list[Any] = []

    def input(self, name: str, *shape: int | str, whole: bool = False) -> str:
        """whole: of whole numbers in 32 bits, in place of float32."""
        kind = self._onnx.TensorProto.INT32 if whole else self._onnx.TensorProto.FLOAT
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, kind, shape))
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
        self._nodes.append(self._onnx.helper.make_node(op, inputs, outputs, domain=domain, **attributes))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        self.node(op, list(inputs), [name], **attributes)
        return name

    def split(self, x: str, sizes: list[int]) -> list[str]:
        """The columns of x."""
        parts = [f"v{len(self._nodes)}.{i}" for i in range(len(sizes))]
        self.node("Split", [x, self.whole(sizes)], parts, axis=1)
        return parts

    def constant(self, tensor: Tensor) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(tensor.numpy(), name))
        return name

    def whole(self, numbers: list[int]) -> str:
        return self.constant(torch.tensor(numbers, dtype=torch.int64))

    def norm(self, x: str, weight: str) -> str:
        return self.add("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self._eps, stash_type=1)

    def add_norm(self, x: str, more: str, weight: str) -> tuple[str, str]:
        """The norm of the sum of `x` and `more`, and the sum."""
        normed, total = (f"v{len(self._nodes)}.{i}" for i in range(2))
        inputs, outputs = [x, more, weight], [normed, "", "", total]
        self.node("SkipSimplifiedLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=self._eps)
        return normed, total

    def gated(self, both: str, width: int) -> str:
        """[rows, 2 width], gate and up side by side -> SiLU(gate) * up."""
        gate, up = self.split(both, [width] * 2)
        return self.add("Mul", self.add("Mul", gate, self.add("Sigmoid", gate)), up)

    def attention(self, qkv: str, norms: Sequence[str], past: Sequence[str], at: Sequence[str], c: Qwen3Config) -> str:
        """qkv [rows, (heads + 2 kv_heads) * D] of one sequence -> [rows, heads * D]; past: the names of its keys and
        values [1, kv_heads, room, D], which get the rows' own ones at their places; at: see `at`."""
        dim, wide, narrow = c.head_dim, c.num_attention_heads, c.num_key_value_heads
        q, k, v = self.split(qkv, [heads * dim for heads in (wide, narrow, narrow)])
        q = self._norm_of_heads(q, wide, dim, norms[0])
        k = self._norm_of_heads(k, narrow, dim, norms[1])
        v = self.add("Reshape", v, self.whole([1, -1, narrow * dim]))
        out = f"v{len(self._nodes)}"
        self.node(
            "GroupQueryAttention", [q, k, v, *past, *at], [out, *(f"{name}.with" for name in past)],
            domain=MICROSOFT, num_heads=wide, kv_num_heads=narrow, do_rotary=1,
        )  # fmt: skip
        return self.add("Reshape", out, self.whole([-1, wide * dim]))

    def _norm_of_heads(self, x: str, heads: int, dim: int, weight: str) -> str:
        """[rows, heads * dim] -> [1, rows, heads * dim], each head normed."""
        normed = self.norm(self.add("Reshape", x, self.whole([-1, heads, dim])), weight)
        return self.add("Reshape", normed, self.whole([1, -1, heads * dim]))

    def past(self, name: str, c: Qwen3Config) -> list[str]:
        """Inputs for keys and values; their outputs are to be given the same memory."""
        return [self.input(f"{name}.{what}", 1, c.num_key_value_heads, "room", c.head_dim) for what in "kv"]

    def at(self, cos: Tensor, sin: Tensor) -> list[str]:
        """Inputs that say where the rows stand: `last` [1], the last one's position, and `end` [1], one more. cos, sin
        [positions, D / 2]: the turns of all positions there can be."""
        return [*(self.input(name, 1, whole=True) for name in ("last", "end")), self.constant(cos), self.constant(sin)]

    def product(self, x: str, weight: Matrix) -> str:
        """x [rows, k] times `weight` [n, k] transposed."""
        return self.add(
            "MatMulNBits", x, self._matrix(weight.stored), self._matrix(weight.scales),
            domain=MICROSOFT, K=weight.k, N=weight.n, bits=8, block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip

    def _matrix(self, value: Any) -> str:
        onnx, name = self._onnx, f"m{len(self._matrices)}"
        self._matrices[name] = value
        array = value.numpy()
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        stub = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        for key, text in (("location", "memory"), ("offset", "0"), ("length", str(array.nbytes))):
            stub.external_data.add(key=key, value=text)
        self._constants.append(stub)
        return name

    def session(self, outputs: Sequence[str], threads: int) -> Any:
        from guardkit.ort import ort

        onnx = self._onnx
        shown = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        graph = onnx.helper.make_graph(self._nodes, "part", self._inputs, shown, self._constants)
        versions = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(MICROSOFT, 1)]
        model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=9)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        options.add_external_initializers(list(self._matrices), list(self._matrices.values()))
        # Threads that wait for long would take the cores from others; from one product to the next one they may.
        bounded = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= SPINS_BOUNDED
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if bounded else "0")
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
        try:
            return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelLoadError(
                f"onnxruntime {ort.__version__} refuses weights in 8 bits ({error}); pip install -U onnxruntime, or "
                "leave quantize out"
            ) from error
