"""The backbone with weights in 8 bits on a CPU: ONNX Runtime's `MatMulNBits` multiplies.

It rounds each row's activations to 8 bits block by block, so that a row's result does not depend on the rows beside it.
Yet what differs in the last bit may be rounded to another of 256 steps, which later layers carry on. So attention is
computed in blocks that lie still (`AlignedCache`); and where a kernel sums a row that is alone in another order than
rows in pairs, which is tried at load, rows are computed in pairs.

From one layer's attention to the next one's queries is one graph, without a way back to Python. Activations, keys and
values are float32.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.config import Qwen3Config
from guardkit.engine.qwen3 import Attend, Embedding, Qwen3, qk_norm
from guardkit.errors import MissingExtra, ModelLoadError

BLOCK = 128  # weights that share a scale
ZERO = 128  # what a weight of 0 is stored as
OPSET = 17
SPIN_US = 50  # how long a thread looks for more work before it sleeps; waking it takes as long
SPINS_BOUNDED = (1, 32)  # the version of ONNX Runtime from which on that is known to be heeded
MICROSOFT = "com.microsoft"  # the domain of its own operators
Take = Callable[[str], Tensor]


class OnnxQwen3(Qwen3):
    """take: a tensor of the checkpoint by its name; asked for once each, and no more than two layers' are at hand.
    in_pairs: whether rows are computed in pairs; None: if this CPU needs it."""

    def __init__(
        self, config: Qwen3Config, embed: Embedding, take: Take, threads: int | None, in_pairs: bool | None = None
    ):
        super().__init__(config, embed, [], take("model.norm.weight"))
        threads = threads or torch.get_num_threads()
        self._in_pairs = not alone_as_among_others(threads) if in_pairs is None else in_pairs
        layers: list[Take] = [
            lambda name, i=i: take(f"model.layers.{i}.{name}")  # type: ignore[misc]
            for i in range(config.num_hidden_layers)
        ]
        before: list[Take | None] = [None, *layers]
        after: list[Take | None] = [*layers, None]
        self._parts = [self._part(left, right, threads) for left, right in zip(before, after, strict=True)]

    def _part(self, left: Take | None, right: Take | None, threads: int) -> Any:
        """From behind the attention of layer `left` to before that of `right`. None: there is no such layer."""
        c, graph = self.config, _Graph(self.config.rms_norm_eps)
        x = graph.input("x", [c.hidden_size])
        norm = self.norm if right is None else right("input_layernorm.weight")
        if left is None:
            normed, outputs = graph.norm(x, norm), []
        else:
            attended = graph.input("attended", [c.num_attention_heads * c.head_dim])
            product = graph.product(attended, left("self_attn.o_proj.weight"))
            normed, x = graph.add_norm(x, product, left("post_attention_layernorm.weight"))
            both = graph.product(normed, torch.cat([left("mlp.gate_proj.weight"), left("mlp.up_proj.weight")]))
            gate, up = graph.split(both, [c.intermediate_size] * 2, axis=1)
            gated = graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), up)
            normed, x = graph.add_norm(x, graph.product(gated, left("mlp.down_proj.weight")), norm)
            outputs = [x]
        if right is None:
            return graph.session([normed], threads)
        turned, narrow = c.num_attention_heads + c.num_key_value_heads, c.num_key_value_heads
        cos, sin = (graph.input(name, [c.head_dim // 2]) for name in ("cos", "sin"))
        qkv = graph.product(normed, torch.cat([right(f"self_attn.{n}_proj.weight") for n in "qkv"]))
        qkv = graph.add("Reshape", qkv, graph.whole([-1, turned + narrow, c.head_dim]))
        qk, v = graph.split(qkv, [turned, narrow], axis=1)
        qk = graph.add("Mul", graph.norm(qk, torch.ones(c.head_dim)), graph.constant(qk_norm(c, right)))
        qk = graph.add("Reshape", qk, graph.whole([1, -1, turned * c.head_dim]))
        # Position 0: of the row, since its turn is in the same row of cos and sin.
        qk = graph.add("RotaryEmbedding", qk, graph.whole([0]), cos, sin, domain=MICROSOFT)
        return graph.session([*outputs, qk, v], threads)

    def _through(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        n, dim, wide = len(x), self.config.head_dim, self.config.num_attention_heads
        cos, sin = cos[:, : dim // 2].contiguous(), sin[:, : dim // 2].contiguous()
        if self._in_pairs and n % 2:  # a row of zeros behind the last one
            x, cos, sin = (F.pad(rows, (0, 0, 0, 1)) for rows in (x, cos, sin))
        turns = {"cos": cos.numpy(), "sin": sin.numpy()}
        rows = x.numpy()
        qk, v = self._parts[0].run(None, {"x": rows, **turns})
        for i, part in enumerate(self._parts[1:], 1):
            turned = torch.from_numpy(qk).view(len(rows), -1, dim)
            attended = attend(i - 1, turned[:, :wide], turned[:, wide:], torch.from_numpy(v))
            feeds = {"x": rows, "attended": attended.numpy()}
            if i < len(self._parts) - 1:
                rows, qk, v = part.run(None, feeds | turns)
            else:
                (rows,) = part.run(None, feeds)
        return torch.from_numpy(rows)[:n]


@functools.cache
def alone_as_among_others(threads: int) -> bool:
    """Whether this CPU's kernel gives a row that is alone, or the last of an odd number, the same bits as among others;
    tried once."""
    generator = torch.Generator().manual_seed(0)
    k, n, most = 4 * BLOCK, 96, 512
    graph = _Graph(eps=0.0)
    product = graph.product(graph.input("x", [k]), torch.randn(n, k, generator=generator))
    session = graph.session([product], threads)
    x = torch.randn(most, k, generator=generator).numpy()
    (whole,) = session.run(None, {"x": x})
    sizes = (1, 1, 1, 2, 3, 5, 7, 8, 15, 33, 65)
    return all(
        (session.run(None, {"x": x[i : i + size]})[0] == whole[i : i + size]).all() for i, size in enumerate(sizes)
    )


class _Graph:
    """An ONNX graph under construction. Values are known by name; the first dimension of each is the row."""

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

    def input(self, name: str, shape: list[int]) -> str:
        kind = self._onnx.TensorProto.FLOAT
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, kind, ["rows", *shape]))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> None:
        self._nodes.append(self._onnx.helper.make_node(op, inputs, outputs, domain=domain, **attributes))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        self.node(op, list(inputs), [name], **attributes)
        return name

    def split(self, x: str, sizes: list[int], axis: int) -> tuple[str, str]:
        first, second = (f"v{len(self._nodes)}.{i}" for i in range(2))
        self.node("Split", [x, self.whole(sizes)], [first, second], axis=axis)
        return first, second

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

    def add_norm(self, x: str, more: str, weight: Tensor) -> tuple[str, str]:
        """The norm of the sum of `x` and `more`, and the sum."""
        normed, total = (f"v{len(self._nodes)}.{i}" for i in range(2))
        inputs = [x, more, self.constant(weight)]
        op = "SkipSimplifiedLayerNormalization"
        self.node(op, inputs, [normed, "", "", total], domain=MICROSOFT, epsilon=self._eps)
        return normed, total

    def product(self, x: str, weight: Tensor) -> str:
        """x [rows, K] times `weight` [N, K] transposed, the weight in blocks of 8 bits."""
        n, k = weight.shape
        blocks = F.pad(weight, (0, -k % BLOCK)).view(n, -1, BLOCK)
        scale = blocks.abs().amax(2, keepdim=True).clamp_min(1e-12) / 127
        stored = self._matrix(((blocks / scale).round_() + ZERO).to(torch.uint8))
        scales = self._matrix(scale.flatten())
        return self.add(
            "MatMulNBits", x, stored, scales,
            domain=MICROSOFT, K=k, N=n, bits=8, block_size=BLOCK, accuracy_level=4,
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

    def session(self, outputs: list[str], threads: int) -> Any:
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
