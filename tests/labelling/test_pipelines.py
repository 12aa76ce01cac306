"""The adapters, each in its real library where that is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guardkit.testing import FakeGuard

SCRIPT: dict[str, Any] = {"BAD": "unsafe", "HMM": "controversial", "BOOM": RuntimeError("boom")}
TEXTS = ["fine", "BAD one", "HMM two", "BOOM", "fine too"]
FOUND = ["safe", "unsafe", "controversial", None, "safe"]


def test_datatrove(tmp_path: Path) -> None:
    pytest.importorskip("datatrove", reason="datatrove is not installed")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from guardkit_pipelines.datatrove_filter import GuardFilter

    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(TEXTS)]
    (tmp_path / "in" / "a.jsonl").write_text("".join(lines))
    removed = JsonlWriter(str(tmp_path / "removed"), compression=None)
    pipeline = [
        JsonlReader(str(tmp_path / "in")),
        GuardFilter(FakeGuard(SCRIPT), exclusion_writer=removed),
        JsonlWriter(str(tmp_path / "out"), compression=None),
    ]
    LocalPipelineExecutor(pipeline=pipeline, logging_dir=str(tmp_path / "logs")).run()
    kept, gone = (
        [json.loads(line) for path in (tmp_path / name).rglob("*.jsonl") for line in path.read_text().splitlines()]
        for name in ("out", "removed")
    )
    assert [d["text"] for d in kept] == ["fine", "fine too"]
    assert [d["metadata"]["guardkit"]["severity"] for d in gone] == ["unsafe", "controversial", None]
    assert [d["metadata"]["filter_reason"] for d in gone] == [
        "guardkit_unsafe", "guardkit_controversial", "guardkit_not_judged"
    ]  # fmt: skip


def test_nemo_curator() -> None:
    pytest.importorskip("nemo_curator", reason="nemo-curator is not installed")
    import pyarrow as pa
    from guardkit_pipelines.curator_stage import GuardStage
    from nemo_curator.tasks import DocumentBatch

    batch = DocumentBatch(dataset_name="d", data=pa.table({"text": TEXTS, "n": range(5)}))
    for where, rows in (([], [0, 1, 2, 3, 4]), (["safe"], [0, 4])):
        stage = GuardStage(FakeGuard(SCRIPT), where=where)
        stage.setup()
        found = stage.process(batch).to_pyarrow()
        assert found["n"].to_pylist() == rows
        assert [v["severity"] for v in found["guardkit"].to_pylist()] == [FOUND[i] for i in rows]
    assert stage.with_(batch_size=2).batch_size == 2


@pytest.mark.slow
def test_data_juicer() -> None:
    pytest.importorskip("data_juicer", reason="py-data-juicer is not installed")
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops.base_op import OPERATORS
    from guardkit_pipelines.juicer_ops import GuardFilter, GuardMapper

    assert OPERATORS.modules["guard_filter"] is GuardFilter
    data = NestedDataset.from_list([{"text": text} for text in TEXTS])
    mapped = GuardMapper(FakeGuard(SCRIPT), num_proc=1).run(data)
    assert [r["guardkit"]["severity"] for r in mapped.to_list()] == FOUND
    kept = GuardFilter(FakeGuard(SCRIPT), num_proc=1).run(data)
    assert [r["text"] for r in kept.to_list()] == ["fine", "fine too"]


@pytest.mark.slow
def test_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    import shutil
    import sys

    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)  # its workers' interpreter; else any python3 of the path
    from guardkit_pipelines.spark_udf import guard_udf
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.warehouse.dir", str(tmp_path))
        .getOrCreate()
    )
    try:
        frame = session.createDataFrame([(i, text) for i, text in enumerate([*TEXTS, None])], "id int, text string")
        labelled = frame.withColumn("guardkit", guard_udf(FakeGuard(SCRIPT))(frame.text))
        found = [row.guardkit.severity for row in labelled.orderBy("id").collect()]
        assert found == [*FOUND, None]
        assert labelled.where("guardkit.severity = 'safe'").count() == 2
    finally:
        session.stop()
