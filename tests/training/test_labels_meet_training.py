"""What labels and token labels write is what training reads; and trained heads can label in turn."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from guardkit.labelling.judging import Judge
from guardkit.messages import Message
from guardkit.testing import FakeGuard
from guardkit.training.annotators import trainer_named
from guardkit.training.categories import PUBLISHED
from guardkit.training.continuing import Continued
from guardkit.training.heads import Heads, repeats
from guardkit.training.rows import row_of
from guardkit.training.token_search import Finder
from guardkit.training.tokens import label_tokens
from guardkit.verdict import Severity
from tests.training.small import rows


class _Silent:
    name = "silent"

    def continuations(self, prefixes: list[object]) -> list[Continued]:
        return [Continued(("",) * 8, 1, 0) for _ in prefixes]


def test_training_reads_token_labels(tmp_path: Path) -> None:
    made = rows(40, seed=5)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "unsafe_from"}) + "\n" for r in made))
    guard = Judge([FakeGuard(dict.fromkeys(("dragon", "sword", "passport", "address"), "unsafe"))])
    label_tokens([str(source)], tmp_path / "out.jsonl", Finder(_Silent(), guard))
    read = [row_of(line, PUBLISHED) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.unsafe_from for row in read if row] == [row.get("unsafe_from") for row in made]
    assert any(row.unsafe_from for row in read if row)


def test_heads_are_trained_on_one_half_and_label_the_other(root: Path) -> None:
    settings = {"backbone": "full", "rate": 3e-3, "epochs": 4, "batch": 32, "precision": "fp32", "cpu": True}
    trainer = Heads(str(root / "base"), load={"device": "cpu", "dtype": "float32", "threads": 1}, **settings)
    made = rows(700, seed=6)
    items = [
        [Message("user", r["prompt"]), Message("assistant", r["response"])] if r["response"] else r["prompt"]
        for r in made
    ]
    levels = [Severity(r["severity"]) for r in made]
    weights = [2.0 if level is Severity.unsafe else 1.0 for level in levels[:600]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predict = trainer(items[:600], levels[:600], weights)
    finally:
        torch.set_num_threads(threads)
    found = [opinion.severity for opinion in predict(items[600:])]
    hits = sum(a is b for a, b in zip(found, levels[600:], strict=True)) / 100
    majority = max(levels[600:].count(s) for s in Severity) / 100
    assert hits > majority + 0.1


def test_weights_become_repeats() -> None:
    assert repeats([2.0, 1.0, 4.0]) == [2, 1, 4]
    many = repeats([1.5] * 1000 + [1.0])
    assert set(many) == {1, 2}
    assert 1400 < sum(many) < 1600
    assert isinstance(trainer_named("heads:some/base"), Heads)
