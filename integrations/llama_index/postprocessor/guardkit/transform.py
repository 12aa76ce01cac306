"""`GuardTransform`: a corpus is screened before it is indexed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.postprocessor.guardkit.guards import GuardComponent, Source
from llama_index.postprocessor.guardkit.ingestion import Run
from llama_index.postprocessor.guardkit.nodes import Media, NodeRules, OnBlock, named
from llama_index.postprocessor.guardkit.rules import OnViolation, Rules
from llama_index.postprocessor.guardkit.steps import Steps, arun, run

from guardkit import Guard, NotJudged

_epochs: dict[str, str] = {}
"""For each way of screening, a name that changes when something was dropped: part of a pipeline's cache key. What a
cache gives back is not screened again, so nothing could keep a dropped document out of the docstore then."""


class GuardTransform(GuardComponent, TransformComponent):
    """A step of an `IngestionPipeline` that drops, redacts or flags nodes and documents.

    guard: as for `GuardNodePostprocessor`; a name, a mapping or a module-level function where the pipeline runs with
    several workers, of which each makes the guard once. The pipeline's cache takes a change of model or policy for a
    change of the step, and is not asked again once something was dropped, or in another process. Put it first: a step
    before it has its results cached as they are. What it drops is not stored in the docstore of the pipeline either,
    and is read again by the next run; with `num_workers` the pipeline stores it, for its input is in another process:
    use `GuardIngestionPipeline` there.
    """

    on_block: OnBlock = Field(default="drop", description="What becomes of a node that the policy blocks.")
    media: Media = Field(default="on_error", description="Images, audio, video: as the policy's on_error, or keep.")
    on_not_judged: Literal["raise", "drop"] = Field(
        default="raise",
        description="A text that the guard failed to judge and on_error blocks: stop the run, so that no cache "
        "remembers the node as gone, or drop the node.",
    )
    batch_size: int = Field(default=256, ge=1, description="Nodes handed to the guard at once.")
    on_violation: OnViolation | None = Field(default=None, exclude=True)

    def __init__(self, guard: Guard | Source, **fields: Any) -> None:
        super().__init__(guard=guard, **fields)

    @classmethod
    def class_name(cls) -> str:
        return "GuardTransform"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        settings: dict[str, Any] = super().to_dict(**kwargs)
        return settings | {"epoch": _epochs.setdefault(_key(settings), uuid.uuid4().hex)}

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return run(self._screen(nodes, Run.of_caller()))

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return await arun(self._screen(nodes, Run.of_caller()))

    def _screen(self, nodes: Sequence[BaseNode], pipeline_run: Run | None) -> Steps[list[BaseNode]]:
        given = list(nodes)
        rules = Rules(self.guard, on_violation=self.on_violation)
        results = yield from NodeRules(rules, self.on_block, self.media, self.batch_size).screen(given)
        for result in results:
            failed = not result.decision.judged and result.node is None and not result.media
            if failed and self.on_not_judged == "raise":
                raise NotJudged(
                    f"{named(result.node_id)} was not judged ({result.decision.error}); run again, or set "
                    "on_not_judged='drop', or the guard's on_error='allow'"
                )
        if any(result.outcome in ("dropped", "redacted") for result in results):
            _epochs[_key(super().to_dict())] = uuid.uuid4().hex
            if pipeline_run is not None:
                yield lambda: pipeline_run.forget(results, given)
        return [result.node for result in results if result.node is not None]


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)
