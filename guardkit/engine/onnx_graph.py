"""An ONNX graph under construction: the few operators that a decoder needs, and weights in 8 bits."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.errors import MissingExtra, ModelLoadError

BLOCK = 128  # weights that share a scale
ZERO = 128  # what a weight of 0 is stored as
OPSET = 17
SPIN_US = 50  # how long a thread looks for more work before it sleeps; waking it takes as long
SPINS_BOUNDED = (1, 32)  # the version of ONNX Runtime from which on that is known to be heeded
MICROSOFT = "com.microsoft"  # the domain of its own operators


class Matrix(NamedTuple):
    """A matrix [n, k] in blocks of 8 bits. stored, scales: ONNX Runtime's values."""

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


def refused(error: Exception) -> ModelLoadError:
    """onnxruntime's own error, of what it cannot compute here."""
    from guardkit.ort import ort

    return ModelLoadError(
        f"onnxruntime {ort.__version__} refuses weights in 8 bits ({error}); pip install -U onnxruntime, or "
        "leave quantize out"
    )


class Graph:
    """Values are known by name. A graph inside another one (`either`) sees the values of that."""

    def __init__(self, eps: float, outer: Graph | None = None):
        try:
            self._onnx: Any = importlib.import_module("onnx")
        except ImportError as error:
            raise MissingExtra("quantize='int8'", "torch") from error
        self._eps = eps
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._constants: list[Any] = outer._constants if outer else []
        self._matrices: dict[str, Any] = (
            outer._matrices if outer else {}
        )  # beside the graph: in it, they would be twice
        self._names: Any = outer._names if outer else itertools.count()

    def input(self, name: str, *shape: int | str, kind: str = "FLOAT") -> str:
        """kind: one of ONNX's."""
        tensor = self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), shape)
        self._inputs.append(tensor)
        return name

    def add(self, op: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        """A node, and the name of its first output. outputs: their names; none given: one, of a new name."""
        made = list(outputs) or [self.name()]
        self._nodes.append(self._onnx.helper.make_node(op, inputs, made, domain=domain, **attributes))
        return made[0]

    def either(
        self, condition: str, yes: Callable[[Graph], Sequence[str]], no: Callable[[Graph], Sequence[str]]
    ) -> list[str]:
        """What one of two graphs gives. yes, no: make it, and name its outputs, as many as the other's."""
        branches = []
        for make in (yes, no):
            inner = Graph(self._eps, self)
            branches.append(inner._proto(make(inner)))
        names = [self.name() for _ in branches[0].output]
        self.add("If", condition, outputs=names, then_branch=branches[0], else_branch=branches[1])
        return names

    def split(self, x: str, sizes: str, n: int, axis: int) -> list[str]:
        """x in `n` parts. sizes: a value of whole numbers."""
        parts = [self.name() for _ in range(n)]
        self.add("Split", x, sizes, outputs=parts, axis=axis)
        return parts

    def constant(self, tensor: Tensor) -> str:
        name = self.name()
        self._constants.append(self._onnx.numpy_helper.from_array(tensor.numpy(), name))
        return name

    def whole(self, *numbers: int) -> str:
        return self.constant(torch.tensor(numbers, dtype=torch.int64))

    def norm(self, x: str, weight: Tensor) -> str:
        inputs = x, self.constant(weight)
        return self.add("SimplifiedLayerNormalization", *inputs, axis=-1, epsilon=self._eps, stash_type=1)

    def add_norm(self, x: str, more: str, weight: Tensor) -> tuple[str, str]:
        """The norm of the sum of `x` and `more`, and the sum."""
        normed, total = self.name(), self.name()
        inputs, outputs = (x, more, self.constant(weight)), (normed, "", "", total)
        self.add("SkipSimplifiedLayerNormalization", *inputs, outputs=outputs, domain=MICROSOFT, epsilon=self._eps)
        return normed, total

    def gated(self, both: str, width: int) -> str:
        """[rows, 2 width], gate and up side by side -> SiLU(gate) * up."""
        gate, up = self.split(both, self.whole(width, width), 2, axis=1)
        return self.add("Mul", self.add("QuickGelu", gate, domain=MICROSOFT, alpha=1.0), up)

    def product(self, x: str, weight: Matrix) -> str:
        """x [rows, k] times `weight` [n, k] transposed."""
        return self.add(
            "MatMulNBits", x, self._matrix(weight.stored), self._matrix(weight.scales),
            domain=MICROSOFT, K=weight.k, N=weight.n, bits=8, block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip

    def session(self, outputs: Sequence[str], threads: int) -> Any:
        from guardkit.ort import ort

        versions = [self._onnx.helper.make_opsetid("", OPSET), self._onnx.helper.make_opsetid(MICROSOFT, 1)]
        proto = self._proto(outputs, self._constants)
        model = self._onnx.helper.make_model(proto, opset_imports=versions, ir_version=9)
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
            raise refused(error) from error

    def name(self) -> str:
        return f"v{next(self._names)}"

    def _proto(self, outputs: Sequence[str], constants: Sequence[Any] = ()) -> Any:
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        shown = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        return helper.make_graph(self._nodes, "graph", self._inputs, shown, constants)

    def _matrix(self, value: Any) -> str:
        """A value of ONNX Runtime's as a constant: a stub in the graph, which says that it is elsewhere."""
        name, proto = self.name(), self._onnx.TensorProto
        self._matrices[name] = value
        stub = proto(name=name, data_type=value.element_type(), dims=value.shape(), data_location=proto.EXTERNAL)
        size = math.prod(value.shape()) * self._onnx.helper.tensor_dtype_to_np_dtype(value.element_type()).itemsize
        for key, text in (("location", "memory"), ("offset", "0"), ("length", str(size))):
            stub.external_data.add(key=key, value=text)
        self._constants.append(stub)
        return name
