"""What an ingestion pipeline remembers of a document that was dropped: nothing.

`IngestionPipeline` writes its own input into its docstore when all steps are done, whatever they made of it, and counts
it as read. A `GuardTransform` therefore takes what it drops out of the input of the pipeline that called it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import BaseNode, Document
from llama_index.postprocessor.guardkit.nodes import Screened
from llama_index.postprocessor.guardkit.rules import REDACTED

_FARTHEST = 24  # frames between a pipeline and its step: instrumentation and progress bars wrap the call


class Run:
    """The pipeline run that a step is part of: its input, which it stores at its end, and its docstore."""

    def __init__(self, pipeline: IngestionPipeline, given: list[BaseNode]):
        self._docstore, self._given = pipeline.docstore, given

    @classmethod
    def of_caller(cls) -> Run | None:
        """The run that is calling; pipelines tell their steps nothing of it, so it is read off the call stack."""
        frame: FrameType | None = sys._getframe(1)
        for _ in range(_FARTHEST):
            if frame is None:
                return None
            if frame.f_code.co_name in ("run", "arun"):
                found = frame.f_locals
                pipeline, given = found.get("self"), found.get("nodes_to_run")
                if isinstance(pipeline, IngestionPipeline):
                    stores = pipeline.docstore is not None and isinstance(given, list)
                    return cls(pipeline, given) if stores else None  # type: ignore[arg-type]
            frame = frame.f_back
        return None

    def forget(self, results: Sequence[Screened], nodes: Sequence[BaseNode]) -> None:
        """Keep what was withheld out of the docstore: a document that was dropped whole is not stored and not counted
        as read; of one that lost a part, or whose text was redacted, the text is not stored, and its hash differs from
        that of the document, so that the next run reads it again."""
        assert self._docstore is not None
        changed: dict[str, list[bool]] = {}  # whether each piece of a document was dropped
        for result, node in zip(results, nodes, strict=True):
            if result.outcome in ("dropped", "redacted"):
                for name in {node.node_id, node.ref_doc_id or node.node_id}:
                    changed.setdefault(name, [])
        for result, node in zip(results, nodes, strict=True):
            for name in {node.node_id, node.ref_doc_id or node.node_id} & changed.keys():
                changed[name].append(result.outcome == "dropped")
        for node in list(self._given):
            pieces = changed.get(node.node_id)
            if pieces is None:
                continue
            at = next(i for i, given in enumerate(self._given) if given is node)
            if all(pieces):
                del self._given[at]
                self._docstore.delete_document(node.node_id, raise_error=False)
            else:
                self._given[at] = Document(id_=node.node_id, text=REDACTED)
