"""Disagreement that counts only on rows whose labels a third model finds doubtful."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guardkit.errors import LabelError
from guardkit.labelling.rows import Item
from guardkit.training.annotators import Opinion
from guardkit.training.cross import Labelled, cross_annotate
from guardkit.training.doubt import ROUNDS, doubts, only_doubtful
from guardkit.training.halves import halves
from guardkit.training.labels import main
from guardkit.training.light import Light
from guardkit.verdict import Severity
from tests.training_labels.conftest import read_jsonl, write_jsonl

SAFE, CONTROVERSIAL, UNSAFE = Severity.safe, Severity.controversial, Severity.unsafe


def divided(texts: Sequence[Item | None], rounds: int = ROUNDS) -> list[list[int]]:
    return [halves(texts, seed=1000 + i) for i in range(rounds)]


def test_no_row_is_doubted_by_a_model_that_saw_it() -> None:
    texts: list[Item | None] = [f"row {i}" for i in range(160)]
    labels: list[Severity | None] = [None if i % 10 == 0 else UNSAFE if i % 3 else SAFE for i in range(160)]
    fits = 0

    def trainer(items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Any:
        nonlocal fits
        fits += 1
        seen = set(map(str, items))
        assert not seen & {str(texts[i]) for i, label in enumerate(labels) if label is None}

        def predict(items: Sequence[Item]) -> list[Opinion]:
            assert not seen & set(map(str, items))
            return [Opinion(SAFE, 0.9)] * len(items)

        return predict

    found = doubts(texts, labels, halves(texts), divided(texts, 2), trainer)
    assert sorted(found) == [i for i, label in enumerate(labels) if label]
    assert fits == 2 * (2 * 2 + 1)


def test_labels_that_are_contradicted_are_what_is_learned() -> None:
    texts: list[Item | None] = [f"{'odd' if i % 4 == 3 else 'plain'} {i}" for i in range(80)]
    labels: list[Severity | None] = [UNSAFE if i % 2 else SAFE for i in range(80)]
    labels[0] = CONTROVERSIAL
    told: list[dict[str, Severity]] = []

    def trainer(items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Any:
        told.append(dict(zip(map(str, items), levels, strict=True)))
        # Of models of a part: odd rows are safe, all others what their number says; so odd rows are contradicted.
        return lambda items: [Opinion(UNSAFE if int(str(item).split()[1]) % 4 == 1 else SAFE, 0.8) for item in items]

    doubts(texts, labels, [0] * 40 + [1] * 40, [[0, 0, 1, 1] * 20, [0, 1, 1, 0] * 20], trainer)
    last = [fit for fit in told if len(fit) == 40]  # of the whole half
    assert len(last) == 2
    for fit in last:
        for text, level in fit.items():
            assert (level is UNSAFE) is (text.startswith("odd") or text == "plain 0")


def test_planted_borderline_rows_are_told_from_rows_that_were_not_learned(planted: list[dict[str, Any]]) -> None:
    texts: list[Item | None] = [row["text"] for row in planted]
    given = [Severity(row["severity"]) for row in planted]
    sides, trainer = halves(texts), Light(vectors=False)
    labelled = cross_annotate(texts, given, sides, trainer, weight=8.0)
    doubted = doubts(texts, given, sides, divided(texts, 2), trainer)

    def precision(found: Sequence[Labelled]) -> float:
        called = [row["true"] for row, label in zip(planted, found, strict=True) if label.source == "disagreement"]
        return called.count("border") / len(called)

    found = only_doubtful(labelled, given, doubted, 0.2)
    assert precision(found) > 1.3 * precision(labelled)
    for label, before, now in zip(given, labelled, found, strict=True):
        assert now == before or (before.source, now.source, now.severity) == ("disagreement", "given", label)


def test_the_share_is_of_all_rows_and_what_was_not_doubted_keeps_its_label() -> None:
    given = [SAFE, UNSAFE, SAFE, UNSAFE, SAFE, None]
    labelled = [Labelled(CONTROVERSIAL, "disagreement", UNSAFE, SAFE)] * 4 + [Labelled(SAFE, "given"), Labelled(None)]
    doubted = {
        0: Opinion(UNSAFE, 0.7), 1: Opinion(SAFE, 0.6), 2: Opinion(None, 0.0, "the server is away"),
        3: Opinion(SAFE, 1.0), 4: Opinion(UNSAFE, 0.9),
    }  # fmt: skip
    found = only_doubtful(labelled, given, doubted, 0.5)
    assert [label.severity for label in found] == [CONTROVERSIAL, UNSAFE, SAFE, UNSAFE, SAFE, None]
    assert found[2].error == "doubt: the server is away"
    found = only_doubtful(labelled, given, doubted, 1.0)
    assert [label.source for label in found[:4]] == ["disagreement", "disagreement", "given", "given"]  # of no doubt: 3


def test_too_few_rows_and_labels_that_nothing_contradicts() -> None:
    texts: list[Item | None] = [f"row {i}" for i in range(8)]
    labels: list[Severity | None] = [SAFE, UNSAFE] * 4

    def right(items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Any:
        return lambda items: [Opinion(UNSAFE if int(str(item)[4:]) % 2 else SAFE) for item in items]

    found = doubts(texts, labels, [0] * 4 + [1] * 4, [[0, 0, 1, 1] * 2], right)
    assert set(found.values()) == {Opinion(SAFE)}
    with pytest.raises(LabelError, match="too few for doubt"):
        doubts(texts, labels, [0] * 4 + [1] * 4, [[0, 1] * 4], right)


def test_the_command_doubts_and_does_not_train_again_for_another_share(
    tmp_path: Path, planted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", planted), tmp_path / "out.jsonl"
    command = [str(source), "--out", str(out), "--trainer", "ngrams", "--weight", "8"]
    shares = []
    for share in ("1", "0.3", "0.1"):
        assert main([*command, "--doubt", share]) == 0
        shares.append(sum(row["label_source"] == "disagreement" for row in read_jsonl(out)))
        trained = capsys.readouterr().err
        assert ("doubt-1" in trained) is (share == "0.3")
    assert shares[0] > shares[1] > shares[2] > 0
    assert shares[2] <= 0.1 * len(planted)
    assert main([*command, "--doubt", "0"]) == 2
