"""Bring the shipped graph back to torch weights, to train on from it where those are gone.

    python training/nano/restore.py --model guardkit/models/nano --out WORK/shipped.pt    # and WORK/vocab.txt

The weights come back at the 7 bits that they were stored with. Queries and keys were scaled by head for their integers;
only the product of the two scales is known, and only that matters: both get its root.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from export import ONE
from model import Config, Nano
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]


def restore(path: Path) -> Nano:
    graph = onnx.load(str(path)).graph
    values = {v.name: numpy_helper.to_array(v) for v in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    linears: list[tuple[Array, Array]] = []
    for node in graph.node:
        if node.op_type != "MatMulIntegerToFloat" or node.input[1] not in values:
            continue
        weight = values[node.input[1]].astype(np.float32) * values[node.input[3]]  # [in, out]
        quantised = made_by[node.input[0]]
        while quantised.op_type != "QuantizeLinear":  # attention's output is laid out anew in between
            quantised = made_by[quantised.input[0]]
        weight /= values[quantised.input[1]]
        scaled = made_by.get(quantised.input[0])
        if scaled is not None and scaled.op_type == "Mul" and scaled.input[1].startswith("smooth"):
            weight *= values[scaled.input[1]][:, None]
        linears.append((weight.T, values[node.input[6]]))
    vocab, positions = len(values["words"]), len(values["positions.weight"])
    model = Nano(Config(vocab_size=vocab, positions=positions))
    c, state = model.config, model.state_dict()
    state["words.weight"] = torch.tensor(values["words"] * values["word_scale"])
    state["positions.weight"] = torch.tensor(values["positions.weight"])
    for name in [n for n in state if "norm" in n]:
        state[name] = torch.tensor(values[name])
    width = c.hidden // c.heads
    at = iter(linears)

    def put(name: str, weight: Array, bias: Array) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.tensor(weight), torch.tensor(bias)

    for i in range(c.layers):
        weight, bias = next(at)
        root = float(np.sqrt(values[f"unit{i}"] * np.sqrt(width)))
        sv = values[f"ratio{i}"].reshape(-1) / ONE
        both = 2 * c.hidden
        vw = weight[both:].reshape(c.heads, width + 1, -1)[:, :width] * sv[:, None, None]
        vb = bias[both:].reshape(c.heads, width + 1)[:, :width] * sv[:, None]
        put(
            f"layers.{i}.qkv",
            np.concatenate([weight[:both] * root, vw.reshape(c.hidden, -1)]),
            np.concatenate([bias[:both] * root, vb.reshape(-1)]),
        )
        for part in ("out", "up", "down"):
            put(f"layers.{i}.{part}", *next(at))
    for part in ("response_pre", "response_head", "query_pre", "query_head"):
        put(part, *next(at))
    model.load_state_dict(state)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.save(restore(args.model / "nano.onnx").state_dict(), args.out)
    shutil.copy(args.model / "vocab.txt", args.out.parent / "vocab.txt")


if __name__ == "__main__":
    main()
