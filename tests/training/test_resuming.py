"""A run that is ended in the middle and gone on with; what a step is made of."""

from __future__ import annotations

import _thread
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from guardkit.errors import TrainingError
from guardkit.training import resuming
from tests.training.conftest import Made, run
from tests.training.small import rows, write_rows

STEPS = 24
TOLD: dict[str, Any] = {"epochs": 2, "steps": STEPS, "every": 3, "batch": 8, "accumulate": 2, "max_rows": 240}


def interrupted(root: Path, out: str, **settings: Any) -> None:
    """Begin a run, and end it behind a checkpoint, as Ctrl-C does."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            if any((root / out / "checkpoints").glob("checkpoint-*/trainer_state.json")):
                _thread.interrupt_main()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run("stream", root, out, **settings)
    finally:
        over.set()
        watcher.join()


@pytest.mark.parametrize("backbone", ["full", "lora"])
def test_it_ends_as_one_that_was_not(root: Path, backbone: str) -> None:
    told = {**TOLD, "backbone": backbone}
    whole = run("stream", root, f"whole-{backbone}", **told)
    interrupted(root, f"parts-{backbone}", **told)
    begun = root / f"parts-{backbone}"
    assert not (begun / "config.json").exists()
    others = write_rows(root / "others.jsonl", rows(300, seed=1))
    for other, says in (
        ({"batch": 4}, "batch 8"),
        ({"backbone": "frozen"}, f"backbone '{backbone}'"),
        ({"train": (others,)}, r"\(other rows\)"),
        ({"train": (root / "rows.jsonl", others)}, r"\(other rows\)"),
        ({"dev": (others,)}, r"\(other rows\)"),  # so the rows are not split
    ):
        with pytest.raises(TrainingError, match=says):
            run("stream", root, begun.name, **{**told, **other}, resume=True)
    parts: Made = run("stream", root, begun.name, **{**told, "every": 7}, resume=True)
    assert parts.result.steps == whole.result.steps == STEPS
    assert not (begun / "checkpoints").exists()
    ours, theirs = (load_file(made.folder / "model.safetensors") for made in (parts, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    figures = [json.loads((made.folder / "training.json").read_text())["dev"] for made in (parts, whole)]
    assert figures[0] == figures[1]


def test_checkpoints_of_who_knows_what_run_are_not_gone_on_with(tmp_path: Path) -> None:
    asked = {"kind": "stream", "rows": [["a", "b"]]}
    resuming.check(tmp_path, asked)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    state = checkpoint / "trainer_state.json"
    for written in ("", '{"epoch": 0.2, "glo'):  # ended while it was written
        state.write_text(written)
        assert resuming.last(tmp_path) is None
        resuming.check(tmp_path, asked)
    state.write_text('{"epoch": 0.2}')
    assert resuming.last(tmp_path) == str(checkpoint)
    with pytest.raises(TrainingError, match="not what their run was told"):
        resuming.check(tmp_path, asked)
    resuming.remember(tmp_path, asked)
    resuming.check(tmp_path, asked)
    with pytest.raises(TrainingError, match="other rows"):
        resuming.check(tmp_path, {**asked, "rows": [["b", "a"]]})


def test_accumulated_batches_are_one_step_of_all_their_rows(root: Path) -> None:
    few = write_rows(root / "few.jsonl", rows(16))
    told: dict[str, Any] = {"train": (few,), "dev_share": 0.0, "steps": 1, "warmup": 0.0, "weights": "none"}
    made = {
        name: load_file(run("stream", root, name, **told, **own).folder / "model.safetensors")
        for name, own in (
            ("at-once", {"batch": 16}),
            ("by-fours", {"batch": 4, "accumulate": 4}),
            ("bf16", {"batch": 16, "precision": "bf16"}),
        )
    }
    before = load_file(root / "base" / "model.safetensors")

    def apart(left: str, right: str) -> float:
        return max(float((made[left][name] - made[right][name]).abs().max()) for name in before)

    moved = max(float((made["at-once"][name] - tensor).abs().max()) for name, tensor in before.items())
    assert apart("at-once", "by-fours") < moved / 50
    assert made["bf16"].keys() == made["at-once"].keys()
    assert {t.dtype for t in made["bf16"].values()} == {t.dtype for t in before.values()}  # saved as the base is
    assert apart("at-once", "bf16") > 0
