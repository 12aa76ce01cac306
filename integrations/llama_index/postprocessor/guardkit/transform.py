"""`GuardTransform`: a corpus is screened before it is indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.postprocessor.guardkit.guards import GuardComponent, Source
from llama_index.postprocessor.guardkit.nodes import Media, NodeRules, OnBlock
from llama_index.postprocessor.guardkit.steps import Steps, arun, run

from guardkit import Guard, NotJudged


class GuardTransform(GuardComponent, TransformComponent):
    """A step of an `IngestionPipeline` that drops, redacts or flags nodes and documents.

    guard: as for `GuardNodePostprocessor`; a name, a mapping or a module-level function where the pipeline runs with
    several workers, of which each makes the guard once. The pipeline's cache takes a change of model or policy for a
    change of the step.
    """

    on_block: OnBlock = Field(default="drop", description="What becomes of a node that the policy blocks.")
    media: Media = Field(default="on_error", description="Images, audio, video: as the policy's on_error, or keep.")
    on_not_judged: Literal["raise", "drop"] = Field(
        default="raise",
        description="A text that the guard failed to judge and on_error blocks: stop the run, so that no cache "
        "remembers the node as gone, or drop the node.",
    )
    batch_size: int = Field(default=256, ge=1, description="Nodes handed to the guard at once.")

    def __init__(self, guard: Guard | Source, **fields: Any) -> None:
        super().__init__(guard=guard, **fields)

    @classmethod
    def class_name(cls) -> str:
        return "GuardTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return run(self._screen(nodes))

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return await arun(self._screen(nodes))

    def _screen(self, nodes: Sequence[BaseNode]) -> Steps[list[BaseNode]]:
        results = yield from NodeRules(self.guard, self.on_block, self.media, self.batch_size).screen(nodes)
        for result in results:
            failed = not result.decision.judged and result.node is None and not result.media
            if failed and self.on_not_judged == "raise":
                raise NotJudged(
                    f"node {result.node_id} was not judged ({result.decision.error}); run again, or set "
                    "on_not_judged='drop', or the guard's on_error='allow'"
                )
        return [result.node for result in results if result.node is not None]
