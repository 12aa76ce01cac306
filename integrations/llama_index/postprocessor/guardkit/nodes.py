"""What is judged in a node, and what becomes of the node: kept, flagged, redacted or dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from llama_index.core.schema import BaseNode, ImageNode, IndexNode, MetadataMode, Node
from llama_index.postprocessor.guardkit.rules import REDACTED, redacted, report, worst
from llama_index.postprocessor.guardkit.steps import Steps

from guardkit import Action, Category, Decision, Guard, Message, Severity, Stage

OnBlock = Literal["drop", "redact", "flag"]
Media = Literal["on_error", "keep"]
Outcome = Literal["kept", "flagged", "redacted", "dropped"]

ACTION_KEY = "guardkit_action"
SEVERITY_KEY = "guardkit_severity"
CATEGORIES_KEY = "guardkit_categories"
_KEYS = (ACTION_KEY, SEVERITY_KEY, CATEGORIES_KEY)
_WORDS = {"", "none", *(a.value for a in Action), *(s.value for s in Severity), *(c.value for c in Category)}


@dataclass(frozen=True)
class Screened:
    """One node and what became of it. node: None where it was dropped; media: images or the like decided."""

    node_id: str
    node: BaseNode | None
    decision: Decision
    outcome: Outcome
    media: bool = False


@dataclass(frozen=True)
class NodeRules:
    """How nodes are screened.

    on_block: what becomes of a node that the policy blocks. media: images, audio and video follow the policy's
    `on_error` ("on_error"), or pass ("keep"). batch_size: nodes handed to the guard at once.
    """

    guard: Guard
    on_block: OnBlock = "drop"
    media: Media = "on_error"
    batch_size: int = 256

    def screen(self, nodes: Sequence[BaseNode]) -> Steps[list[Screened]]:
        """Judge nodes in batches; one result a node, in order. Reports every one that is not plainly kept."""
        results: list[Screened] = []
        for at in range(0, len(nodes), self.batch_size):
            batch = nodes[at : at + self.batch_size]
            items = [self._items(node) for node in batch]
            flat = [item for some in items for item in some]
            decisions: list[Decision] = yield partial(self.guard.decide_batch, flat, stage=Stage.document)
            start = 0
            for node, some in zip(batch, items, strict=True):
                results.append((yield from self._settle(node, some, decisions[start : start + len(some)])))
                start += len(some)
        return results

    def _settle(self, node: BaseNode, items: list[str | list[Message]], decisions: list[Decision]) -> Steps[Screened]:
        decision = worst(decisions)
        if decision.action is Action.allow:
            return Screened(node.node_id, node, decision, "kept")
        media = any(d.action.stops and not isinstance(i, str) for i, d in zip(items, decisions, strict=True))
        wanted = {"drop": "dropped", "redact": "redacted", "flag": "flagged"}[self.on_block]
        outcome: Any = {Action.flag: "flagged", Action.redact: "redacted", Action.block: wanted}[decision.action]
        kept: BaseNode | None = None
        if outcome == "flagged":
            kept = _marked(node, decision)
        elif outcome == "redacted" and not media:
            kept = yield from self._redacted(node, decision)
        if kept is None:
            outcome = "dropped"
        report(decision, f"node {node.node_id}", outcome)
        return Screened(node.node_id, kept, decision, outcome, media)

    def _items(self, node: BaseNode) -> list[str | list[Message]]:
        """The texts that may reach a prompt from this node, and a message for each thing that cannot be judged."""
        shown = node.get_content(MetadataMode.LLM) or node.get_metadata_str(MetadataMode.LLM)
        items: list[str | list[Message]] = [shown]
        hidden = "\n".join(f"{k}: {v}" for k, v in _hidden_metadata(node))
        if hidden:
            items.append(hidden)
        if isinstance(node, IndexNode) and isinstance(node.obj, str):
            items.append(node.obj)
        elif isinstance(node, IndexNode) and isinstance(node.obj, BaseNode):
            items += self._items(node.obj)
        elif isinstance(node, IndexNode) and isinstance(node.obj, dict | list):
            items.append("\n".join(_texts(node.obj)))
        if self.media == "on_error":
            items += [[Message("user", unjudgeable=(kind,))] for kind in _media(node)]
        return items

    def _redacted(self, node: BaseNode, decision: Decision) -> Steps[BaseNode | None]:
        """A copy whose every text passes, or None where there is none."""
        text = yield from redacted(self.guard, node.get_content(MetadataMode.NONE), Stage.document)
        keys = [k for k, v in node.metadata.items() if list(_texts(v))]
        values = ["\n".join(_texts(node.metadata[k])) for k in keys]
        decisions: list[Decision] = yield lambda: self.guard.decide_batch(values, stage=Stage.document)
        bad = {k for k, d in zip(keys, decisions, strict=True) if d.action.stops}
        for drop in (bad, set(keys)):  # what passes piece by piece may not pass together
            copy = _rewritten(node, text, drop)
            items = self._items(copy)
            again: list[Decision] = yield partial(self.guard.decide_batch, items, stage=Stage.document)
            if not any(d.action.stops for d in again):
                return _marked(copy, decision)
            text = REDACTED
        return None


def _marked(node: BaseNode, decision: Decision) -> BaseNode:
    """A copy that says in its metadata what was found; neither prompts nor embeddings see that."""
    verdict = decision.verdict
    copy = node.model_copy()
    copy.metadata = node.metadata | {
        ACTION_KEY: decision.action.value,
        SEVERITY_KEY: verdict.severity.value if verdict else "none",
        CATEGORIES_KEY: ",".join(c.value for c in verdict.categories) if verdict else "",
    }
    copy.excluded_llm_metadata_keys = [*dict.fromkeys([*node.excluded_llm_metadata_keys, *_KEYS])]
    copy.excluded_embed_metadata_keys = [*dict.fromkeys([*node.excluded_embed_metadata_keys, *_KEYS])]
    return copy


def _rewritten(node: BaseNode, text: str, bad_keys: set[str]) -> BaseNode:
    copy = node.model_copy()
    copy.metadata = {k: REDACTED if k in bad_keys else v for k, v in node.metadata.items()}
    copy.relationships = {
        kind: [i.model_copy(update={"metadata": {}}) for i in related]
        if isinstance(related, list)
        else related.model_copy(update={"metadata": {}})
        for kind, related in node.relationships.items()
    }
    copy.embedding = None  # of the text as it was
    if isinstance(copy, ImageNode):
        copy.text_embedding = None
    if node.get_content(MetadataMode.NONE):
        copy.set_content(text)
    return copy


def _hidden_metadata(node: BaseNode) -> Iterator[tuple[str, str]]:
    """Texts in metadata that prompts do not show by default, but that other postprocessors may put there."""
    for key in node.excluded_llm_metadata_keys:
        value = node.metadata.get(key)
        if key in _KEYS and isinstance(value, str) and set(value.split(",")) <= _WORDS:
            continue
        for text in _texts(value):
            yield key, text
    own = set(_texts(node.metadata))
    for related in node.relationships.values():
        for info in related if isinstance(related, list) else [related]:
            for text in _texts(info.metadata):
                if text not in own:  # mostly copies of the node's own
                    yield "related", text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _texts(inner)


def _media(node: BaseNode) -> list[str]:
    if isinstance(node, ImageNode):
        return ["image"] if node.image or node.image_path or node.image_url else []
    if isinstance(node, Node):
        kinds = ("image", "audio", "video")
        return [kind for kind in kinds if getattr(node, f"{kind}_resource") is not None]
    return []
