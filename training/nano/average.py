"""Average the weights of several runs that go on from one another: `average.py A.pt B.pt ... --out WORK/nano.pt`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, nargs="+")
parser.add_argument("--out", type=Path, required=True)
args = parser.parse_args()
states = [torch.load(path, map_location="cpu", weights_only=True) for path in args.weights]
torch.save({name: sum(s[name] for s in states) / len(states) for name in states[0]}, args.out)
