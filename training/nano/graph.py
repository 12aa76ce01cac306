"""The graph apart from its weights: MODEL/graph.onnx, whose larger tensors lie in MODEL/nano.onnx, at its offsets.

    python training/nano/graph.py --model guardkit/models/nano

ONNX Runtime maps them from there: a process loads in a third of the time, holds 40 MB less, and processes share them.
Where a residual is added and normalised, the graph has two nodes: ONNX Runtime's fused one for this
(SkipLayerNormalization) goes through a row value by value, and took a quarter of a pass.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parents[2]))
from guardkit.models.nano.screen import tensors

LEAST_BYTES = 1024  # of a tensor that stays where it is


def apart(path: Path) -> bytes:
    """The graph of the model at `path`, which names that file as the place of its tensors."""
    data = path.read_bytes()
    model = onnx.load_from_string(data)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "SkipLayerNormalization":
            nodes.append(node)
            continue
        x, y, gamma, beta = node.input
        (epsilon,) = (a.f for a in node.attribute if a.name == "epsilon")
        total = f"{node.output[0]}_sum"
        nodes.append(helper.make_node("Add", [x, y], [total]))
        nodes.append(
            helper.make_node("LayerNormalization", [total, gamma, beta], list(node.output), axis=-1, epsilon=epsilon)
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    where = {name.decode(): place for name, place in tensors(data)}
    for tensor in model.graph.initializer:
        at, size = where.get(tensor.name, (0, 0))
        if size < LEAST_BYTES:
            continue
        assert data[at : at + size] == tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", at), ("length", size)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
    helper.set_model_props(model, {p.key: p.value for p in model.metadata_props} | {"weights_bytes": str(len(data))})
    return model.SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    graph = apart(args.model / "nano.onnx")
    (args.model / "graph.onnx").write_bytes(graph)
    print(f"{args.model / 'graph.onnx'}: {len(graph):,} bytes")


if __name__ == "__main__":
    main()
