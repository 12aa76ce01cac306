"""A stage of NeMo Curator: every document gets a label, and those that are not wanted are left out.

pipeline.add_stage(GuardStage(model="Qwen/Qwen3Guard-Gen-0.6B", where=["safe"]).with_(resources=Resources(gpus=1)))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch

from guardkit.labelling import Labeller
from guardkit.labelling.choosing import Where
from guardkit.labelling.labels import COLUMN
from guardkit.labelling.tables import label_array


@dataclass
class GuardStage(ProcessingStage[DocumentBatch, DocumentBatch]):  # type: ignore[misc]
    """model: as for `Labeller`. text_field: the column that is judged. column: where labels go. where: keep only the
    documents whose label meets all of it (as `guard label --where`); nothing keeps all. settings: further ones of
    `Labeller`; texts count as documents unless "stage" says otherwise."""

    model: Any = "nano"
    text_field: str = "text"
    column: str = COLUMN
    where: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = "guardkit"
    resources: Resources = field(default_factory=lambda: Resources(cpus=1.0))

    def __post_init__(self) -> None:
        self._where = Where.parse(list(self.where))
        self._labeller = Labeller(self.model, **{"stage": "document", **self.settings})

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], [self.text_field]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], [self.column]

    def setup(self, worker_metadata: Any = None) -> None:
        _ = self._labeller.judge  # loads the guard, once a worker

    def process(self, task: DocumentBatch) -> DocumentBatch:
        table = task.to_pyarrow()
        labels = self._labeller.labels(table[self.text_field].to_pylist())
        table = table.append_column(self.column, label_array(labels))
        if self._where is not None:
            table = table.filter([self._where.keeps(label) for label in labels])
        return DocumentBatch(
            dataset_name=task.dataset_name, data=table, _metadata=task._metadata, _stage_perf=task._stage_perf
        )
