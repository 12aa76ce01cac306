"""`GuardNodePostprocessor`: no unsafe or injecting node goes from a retriever to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.postprocessor.guardkit.guards import GuardComponent, Source
from llama_index.postprocessor.guardkit.nodes import Media, NodeRules, OnBlock, Screened, named
from llama_index.postprocessor.guardkit.rules import OnViolation, Rules, worst
from llama_index.postprocessor.guardkit.runs import Policies
from llama_index.postprocessor.guardkit.steps import Steps, arun, run

from guardkit import Guard, GuardViolation


@dataclass(frozen=True)
class Screening:
    """nodes: those that remain, in order; decisions: one for every node that was judged, in order."""

    nodes: list[NodeWithScore]
    decisions: list[Screened]

    @property
    def dropped(self) -> list[Screened]:
        return [d for d in self.decisions if d.outcome == "dropped"]


class GuardNodePostprocessor(GuardComponent, BaseNodePostprocessor):
    """Drops, redacts or flags what the policy does not allow; scores and order stay.

    guard: a `Guard`, a model's name, a mapping of `Guard.load`'s arguments, or a function that makes one. A node that
    the policy allows is returned as it is; one that it flags or redacts is a copy, so that the index keeps its own.
    Each drop is logged and dispatched as a `GuardEvent`; `screen` returns them.
    """

    on_block: OnBlock = Field(default="drop", description="What becomes of a node that the policy blocks.")
    media: Media = Field(default="on_error", description="Images, audio, video: as the policy's on_error, or keep.")
    min_nodes: int = Field(default=0, ge=0, description="Raise GuardViolation if drops leave fewer than this.")
    max_nodes: int | None = Field(default=None, ge=0, description="Keep at most so many of those that pass.")
    batch_size: int = Field(default=256, ge=1, description="Nodes handed to the guard at once.")
    on_violation: OnViolation | None = Field(default=None, exclude=True)
    policies: Policies = Field(default_factory=dict, exclude=True, description="What a run may choose from by name.")

    def __init__(self, guard: Guard | Source, **fields: Any) -> None:
        super().__init__(guard=guard, **fields)

    @classmethod
    def class_name(cls) -> str:
        return "GuardNodePostprocessor"

    def screen(self, nodes: Sequence[NodeWithScore]) -> Screening:
        """The nodes that remain and what was decided about each."""
        return run(self.steps(nodes))

    async def ascreen(self, nodes: Sequence[NodeWithScore]) -> Screening:
        return await arun(self.steps(nodes))

    def steps(self, nodes: Sequence[NodeWithScore]) -> Steps[Screening]:
        """`screen` as steps, for parts that are driven sync and async."""
        rules = Rules(self.guard, on_violation=self.on_violation, policies=self.policies).of_run()
        screen = NodeRules(rules, self.on_block, self.media, self.batch_size)
        decisions = yield from screen.screen([n.node for n in nodes])
        kept = [
            item if result.node is item.node else item.model_copy(update={"node": result.node})
            for item, result in zip(nodes, decisions, strict=True)
            if result.node is not None
        ]
        screening = Screening(kept[: self.max_nodes], decisions)
        if screening.dropped and len(screening.nodes) < self.min_nodes:
            raise GuardViolation(
                worst([d.decision for d in screening.dropped]),
                f"{len(screening.nodes)} of {len(nodes)} nodes are left, fewer than min_nodes={self.min_nodes}; "
                f"dropped: {', '.join(named(d.node_id) for d in screening.dropped)}",
            )
        return screening

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self.screen(nodes).nodes

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return (await self.ascreen(nodes)).nodes
