"""Training by several processes, as `torchrun` starts them: gloo on a CPU, each with the whole model."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardkit import Guard


@pytest.mark.slow
def test_two_processes_train_one_guard(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "tests.training.two_processes", str(root), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert (first["world"], first["backend"]) == (2, "gloo")
    assert first["stream"]["dev"] == second["stream"]["dev"]  # one model, whatever rows each of them learned from
    told = json.loads((tmp_path / "stream" / "training.json").read_text(encoding="utf-8"))
    assert told["steps"] == second["stream"]["steps"] == 2 * math.ceil(told["n_train"] / 16)
    rates = [rate for rate in first["stream"]["rates"] if rate is not None]
    assert len(rates) >= 10  # measured at each tenth of the run, whose length is that of all processes together
    guard = Guard.load(tmp_path / "stream", device="cpu", dtype="float32", threads=1)
    assert guard.decide("we walk along the river with bread").judged
    assert (tmp_path / "gen" / "config.json").is_file()
    assert Guard.load(tmp_path / "gen", device="cpu", dtype="float32", threads=1).categories
    assert done.stderr.count("to learn from") == 2  # one process speaks
