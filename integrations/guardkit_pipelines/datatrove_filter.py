"""A filter of datatrove: documents that the guard does not find safe are removed, with the reason.

LocalPipelineExecutor(pipeline=[JsonlReader("in"), GuardFilter("nano"), JsonlWriter("out")])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from guardkit.labelling import Labeller
from guardkit.labelling.choosing import Where
from guardkit.labelling.labels import COLUMN


class GuardFilter(BaseFilter):  # type: ignore[misc]
    """Keeps the documents whose label meets all of `where` (as `guard label --where`; nothing: all are kept). The label
    is put into the document's metadata. settings: of `Labeller`; texts count as documents unless `stage` says
    otherwise."""

    name = "guardkit"

    def __init__(
        self,
        model: Any = "nano",
        *,
        where: Sequence[str] = ("safe",),
        exclusion_writer: DiskWriter | None = None,
        batch_size: int = 256,
        **settings: Any,
    ):
        super().__init__(exclusion_writer, batch_size)
        self.where = Where.parse(where)
        self.labeller = Labeller(model, **{"stage": "document", **settings})

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        results: list[bool | tuple[bool, str]] = []
        for doc, label in zip(batch, self.labeller.labels([doc.text for doc in batch]), strict=True):
            doc.metadata[COLUMN] = dict(label)
            keeps = self.where is None or self.where.keeps(label)
            results.append(keeps or (False, f"guardkit_{label['severity'] or 'not_judged'}"))
        return results
